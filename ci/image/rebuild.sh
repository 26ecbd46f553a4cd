#!/usr/bin/env bash
# Rebuild from their sources, as they lie in the image, what a released image has compiled and the
# patches call: sgl-kernel, aiter with its kernels for one architecture, and TileLang. An hour or
# more; needs no GPU. torch and triton stay what they are.
#
#   rebuild.sh ARCH RELEASE DIGEST [SLUG...]      then layer.sh does the rest
#
# Not rebuilt is what no patch calls: the Rust gateway, Mooncake, MoRI. For those, and for another
# ROCm, build sglang's own docker/rocm.Dockerfile from a fork with the patches (apply.py export).
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
[ $# -ge 3 ] || { echo "usage: rebuild.sh ARCH RELEASE DIGEST [SLUG...]" >&2; exit 2; }
arch=$1
case "$arch" in
    gfx942 | gfx950) ;;
    *) echo "rebuild.sh: no architecture '$arch': gfx942 or gfx950" >&2; exit 2 ;;
esac
home=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
workspace=${WORKSPACE:-/sgl-workspace}
tilelang=${TILELANG:-/opt/tilelang}
for source in "$workspace/sglang/sgl-kernel/setup_rocm.py" "$workspace/aiter/setup.py" "$tilelang/build/CMakeCache.txt"; do
    [ -f "$source" ] || {
        echo "rebuild.sh: there is no $source" >&2
        echo "  the base must be a released ROCm image; layer.sh needs fewer sources" >&2
        exit 1
    }
done
PACKAGES_BEFORE=$(mktemp)
export PACKAGES_BEFORE
python3 "$home/smoke.py" before "$PACKAGES_BEFORE"

# As sglang's own image does it: this setup file installs into the environment that runs it.
(cd "$workspace/sglang/sgl-kernel" && AMDGPU_TARGET=$arch python3 setup_rocm.py install)
# compat: a plain .pth, which a folder of the same name does not hide. Before 23.1 pip hears of it
# only where it is told to build by PEP 517, for a project that is a setup.py alone.
(cd "$workspace/aiter" && GPU_ARCHS=$arch PREBUILD_KERNELS=1 python3 -m pip install \
    --no-deps --no-build-isolation --no-index --use-pep517 \
    --config-settings editable_mode=compat --editable .)
cmake --build "$tilelang/build" --clean-first --parallel

REBUILT="amd-aiter aiter sgl-kernel sglang-kernel ${REBUILT:-}" "$home/layer.sh" "$@"
