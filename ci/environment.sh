# shellcheck shell=bash
# Sourced, from anywhere: puts the Python environment of a platform first on PATH; ci/environment.py
# makes it where it is not there. Arguments: cpu, cuda or rocm; on a GPU also `accuracy`.

environment_for() {
    local house home python=${PYTHON:-} each
    house=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || return
    # A GPU's environment is for the Python whose torch it is; the CPU's for one that has wheels.
    local candidates=(python3)
    [ "${1:-}" = cpu ] && candidates=(python3.11 python3.12 python3.13 python3)
    for each in "${candidates[@]}"; do
        # A name may be there and start nothing, as pyenv's are.
        [ -z "$python" ] && "$each" -c '' 2>/dev/null && python=$each
    done
    if ! "${python:=python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "environment: '$python' is no Python 3.10 or newer; install Python 3.11, or name one by PYTHON" >&2
        return 2
    fi
    home=$("$python" "$house/ci/environment.py" "$@") || return
    # --help is no folder.
    [ -d "$home" ] || { printf '%s\n' "$home"; return; }
    export PATH="$home/bin:$PATH" VIRTUAL_ENV="$home"
}
environment_for "$@"
