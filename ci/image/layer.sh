#!/usr/bin/env bash
# What rocm.Dockerfile adds to a released image, in one step: the patches, TileLang's commit if asked
# for, import paths, the proof. No network and no pip, unless TILELANG_COMMIT is given.
#
#   layer.sh ARCH RELEASE DIGEST [SLUG...]
#
# WORKSPACE (default /sgl-workspace) and TILELANG (default /opt/tilelang) say where the image keeps
# them; TILELANG_COMMIT moves TileLang there; REBUILT names packages that rebuild.sh has just made.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
[ $# -ge 3 ] || { echo "usage: layer.sh ARCH RELEASE DIGEST [SLUG...]" >&2; exit 2; }
home=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
arch=$1 release=$2 digest=$3
shift 3
case "$arch" in
    gfx942 | gfx950) ;;
    *) echo "layer.sh: no architecture '$arch': gfx942 or gfx950" >&2; exit 2 ;;
esac
workspace=${WORKSPACE:-/sgl-workspace}
note=$(mktemp)
trap 'rm -f "$note"' EXIT

cd "$workspace" || { echo "layer.sh: is BASE a released ROCm image of sglang?" >&2; exit 1; }
# A rebuild has noted the packages before it began.
if [ -n "${PACKAGES_BEFORE:-}" ]; then
    cp "$PACKAGES_BEFORE" "$note"
else
    python3 "$home/smoke.py" before "$note"
fi
# First of all that changes anything: it refuses a base that is none, and says why.
python3 "$home/install.py" --workspace "$workspace" --release "$release" --digest "$digest" "$@"
if [ -n "${TILELANG_COMMIT:-}" ]; then
    "$home/move_tilelang.sh" "$TILELANG_COMMIT"
fi
python3 "$home/import_paths.py" --workspace "$workspace"
rebuilt=()
for name in ${REBUILT:-}; do rebuilt+=(--rebuilt "$name"); done
python3 "$home/smoke.py" after "$note" --arch "$arch" "${rebuilt[@]}"
