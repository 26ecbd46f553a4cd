# shellcheck shell=bash
# Sourced by the scripts in ci/: puts the Python environment of a platform first on PATH, making it
# if it is not there or its requirements have changed. Argument: cpu, cuda or rocm; on a GPU also
# `accuracy`, for what ci/gsm8k.py and ci/throughput.py need (the CPU's has it).
#
# On a GPU the machine's own torch, triton and aiter are what is tested: that environment only adds
# the test tools to the system's packages, so pip never touches them.

environment_for() {
    local platform=$1 python=${PYTHON:-} beside='' wanted
    case "$platform" in
        cpu)
            wanted=(ci/requirements-tools.txt ci/requirements.txt ci/requirements-no-deps.txt)
            wanted+=(ci/requirements-accuracy.txt)
            ;;
        cuda | rocm) wanted=(ci/requirements-tools.txt) beside=1 ;;
        *) echo "no platform '$platform': rocm, cuda or cpu" >&2; return 2 ;;
    esac
    if [ -z "$python" ]; then
        # The CPU environment is pinned for 3.11; a GPU's is whatever its torch was built for.
        python=python3
        [ "$platform" = cpu ] && command -v python3.11 >/dev/null && python=python3.11
    fi
    local home=$PWD/build/environment-$platform
    if [ "${2:-}" = accuracy ] && [ -n "$beside" ]; then
        wanted+=(ci/requirements-accuracy.txt)
        home+=-accuracy
    fi
    local stamp
    stamp=$("$python" --version; cat "${wanted[@]}")
    if [ ! -f "$home/stamp" ] || [ "$(cat "$home/stamp")" != "$stamp" ]; then
        echo "== environment: $home (a few minutes, once)"
        # New requirements are added to what is there; another Python, or another checkout's, is not.
        if [ -L "$home" ] || [ "$(head -n 1 "$home/stamp" 2>/dev/null)" != "${stamp%%$'\n'*}" ]; then
            rm -rf "$home"
            "venv${beside:+_beside}" "$python" "$home"
        fi
        local file flags
        for file in "${wanted[@]}"; do
            flags=(--no-compile) # ci/test keeps bytecode elsewhere
            [[ $file == *no-deps* || $file == *accuracy* ]] && flags+=(--no-deps)
            "$home/bin/python" -m pip install --quiet --disable-pip-version-check "${flags[@]}" -r "$file"
        done
        echo "$stamp" >"$home/stamp"
    fi
    export PATH="$home/bin:$PATH" VIRTUAL_ENV="$home"
    if [ "$platform" = cpu ]; then packages_of_releases; fi
}

venv() { "$1" -m venv "$2"; }

# One that sees the packages of the Python that makes it. The ROCm images' is itself a virtual
# environment, and what venv calls the system's packages are those of the Python below it: no torch,
# no sglang. Editable installs are .pth files, so its folder is read as one with packages.
venv_beside() {
    local packages='import sysconfig; print(sysconfig.get_path("purelib"))' folder
    if "$1" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)'; then
        venv "$1" "$2"
        folder=$("$1" -c "$packages")
        echo "import site; site.addsitedir('$folder')" >"$("$2/bin/python" -c "$packages")/image.pth"
    else
        "$1" -m venv --system-site-packages "$2"
    fi
}

# What a release pins otherwise than the environment, each release's in a folder of its own.
packages_of_releases() {
    local file folder
    for file in ci/requirements-[0-9]*.txt; do
        folder=$PWD/build/packages-$(basename "${file#ci/requirements-}" .txt)
        if ! cmp --silent "$file" "$folder/requirements.txt"; then
            rm -rf "$folder" "$folder.unfinished"
            python3 -m pip install --quiet --disable-pip-version-check --no-compile --no-deps \
                --target "$folder.unfinished" -r "$file"
            cp "$file" "$folder.unfinished/requirements.txt"
            mv "$folder.unfinished" "$folder"
        fi
    done
}
environment_for "$@"
