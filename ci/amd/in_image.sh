#!/usr/bin/env bash
# Run a command in a ROCm image, with this checkout at /work, the GPUs and a cache that outlives it.
#
#   in_image.sh IMAGE COMMAND [ARGUMENT...]
#
# With ENVIRONMENT=accuracy, python3 also has what ci/gsm8k.py and ci/throughput.py need.
# CONTAINER names the container; one of that name, left by a command that was cut off, is removed
# first, as its servers still hold the GPUs. clean_up.sh removes it for good.
# CONTAINER_ENGINE is docker (default) or podman.
# CACHE (default ~/.cache/rocm-patches) keeps what is downloaded; HF_TOKEN is handed on, by name so
# that no log shows it. What the container writes belongs to the one who called, as a runner that
# cannot delete its own workspace fails the next job.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
[ $# -ge 2 ] || { echo "usage: in_image.sh IMAGE COMMAND [ARGUMENT...]" >&2; exit 2; }
image=$1
engine=${CONTAINER_ENGINE:-docker}
shift
cache=${CACHE:-$HOME/.cache/rocm-patches}
mkdir -p "$cache"
container=${CONTAINER:-rocm-patches-$$}
"$engine" container rm --force "$container" >/dev/null 2>&1 || true

# A runner in a cluster is told which render devices are its own.
devices=(--device /dev/dri)
if [ -r /etc/podinfo/gha-render-devices ]; then
    read -ra devices </etc/podinfo/gha-render-devices
fi

# shellcheck disable=SC2016  # expanded in the container
exec "$engine" run --rm --init --name "$container" \
    --device /dev/kfd "${devices[@]}" --group-add video \
    --shm-size 32g --ulimit nofile=65536:65536 \
    --cap-add SYS_PTRACE --security-opt seccomp=unconfined \
    --volume "$PWD:/work" --workdir /work --volume "$cache:/cache" \
    --env HF_TOKEN --env HF_HOME=/cache/huggingface --env PIP_CACHE_DIR=/cache/pip \
    --env HF_HUB_ETAG_TIMEOUT=300 --env HF_HUB_DOWNLOAD_TIMEOUT=300 \
    --env OWNER="$(id -u):$(id -g)" --env ENVIRONMENT="${ENVIRONMENT:-}" \
    --env ROCM_PATCHES_IMAGE="$image" \
    "$image" bash -c '
        set -euo pipefail
        git config --global --add safe.directory /work
        trap "chown -R \"$OWNER\" /work" EXIT
        source ci/environment.sh rocm "$ENVIRONMENT"
        "$@"' bash "$@"
