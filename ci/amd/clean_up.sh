#!/usr/bin/env bash
# After a job, however it ended: the container that in_image.sh may have left, what it wrote as root,
# and the image.
#
#   CONTAINER=NAME clean_up.sh IMAGE             CONTAINER_ENGINE is docker (default) or podman
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
[ $# -eq 1 ] || { echo "usage: CONTAINER=NAME clean_up.sh IMAGE" >&2; exit 2; }
image=$1
engine=${CONTAINER_ENGINE:-docker}
"$engine" container rm --force "${CONTAINER:?the name that in_image.sh was given}" >/dev/null 2>&1 || true
"$engine" image inspect "$image" >/dev/null 2>&1 || { echo "there is no $image"; exit 0; }
# A container that was removed had no time to hand its files back.
"$engine" run --rm --volume "$PWD:/work" "$image" chown -R "$(id -u):$(id -g)" /work
"$engine" image rm --force "$image"
