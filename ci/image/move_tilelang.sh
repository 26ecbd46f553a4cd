#!/usr/bin/env bash
# Move the image's TileLang to another commit and rebuild what differs.
#
#   move_tilelang.sh COMMIT
#
# The checkout (TILELANG, default /opt/tilelang) is used where it lies: its Python from the tree, its
# libraries from build/, where CMake keeps the options that the image was built with. So a fetch and
# an incremental build are enough; pip has no part in it. The submodules, TVM among them, must be the
# same at both commits: another TVM would be an hour's build.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
[ $# -eq 1 ] || { echo "usage: move_tilelang.sh COMMIT" >&2; exit 2; }
commit=$1
tilelang=${TILELANG:-/opt/tilelang}
refuse() { printf 'move_tilelang.sh: %s\n' "$@" >&2; exit 1; }

[ -f "$tilelang/build/CMakeCache.txt" ] || refuse \
    "there is no TileLang build at $tilelang/build" \
    "released ROCm images have one; is BASE another image?"
cd "$tilelang"
before=$(git rev-parse HEAD)
case "$before" in "$commit"*) echo "TileLang is at $commit"; exit 0 ;; esac
git cat-file -e "$commit^{commit}" 2>/dev/null || git fetch --quiet --depth=1 origin "$commit" ||
    refuse "cannot fetch commit $commit of TileLang from $(git remote get-url origin)" \
        "name it whole, 40 digits, as a server gives out no shorter one; or leave TILELANG_COMMIT out"
changed=$(git diff --raw "$before" "$commit" -- | awk '$1 == ":160000" || $2 == "160000" {print $NF}')
[ -z "$changed" ] || refuse \
    "between $before and $commit these submodules move: $changed" \
    "that is a whole rebuild: choose a commit with the same submodules, or a newer image"

# -f: the image's build has edited pyproject.toml, which no longer matters.
git checkout --quiet --force --detach "$commit"
# Configured anew, since the list of sources may differ; the options come from the cache.
if ! { cmake -S . -B build && cmake --build build --parallel; } >build/moved.log 2>&1; then
    tail -n 40 build/moved.log >&2
    git checkout --quiet --force --detach "$before"
    refuse "TileLang $commit does not build; the checkout is at $before again" \
        "the whole log: $tilelang/build/moved.log"
fi
echo "TileLang moved from $before to $commit"
