#!/usr/bin/env bash
# That an image's label can say which image it was built on: a tag may be another one tomorrow.
#
#   pinned.sh BASE BASE_DIGEST
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
[ $# -eq 2 ] || { echo "usage: pinned.sh BASE BASE_DIGEST" >&2; exit 2; }
base=$1 digest=$2
if ! [[ $digest =~ ^sha256:[0-9a-f]{64}$ && $base == *"@$digest" ]]; then
    echo "pinned.sh: BASE is '$base' and BASE_DIGEST '$digest': the label would say nothing, or not the truth" >&2
    echo "  give BASE=IMAGE@sha256:... and BASE_DIGEST=sha256:..., or build with ci/image/build.py," >&2
    echo "  which finds the digest of a tag" >&2
    exit 1
fi
