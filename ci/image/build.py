#!/usr/bin/env python3
"""Build a patched image from a released one: picks it, pins it by digest, labels the result.

    ci/image/build.py --release 0.5.10.post1 --arch gfx950 --rocm 7.2
    ci/image/build.py --release 0.5.9 --arch gfx942 --rocm 7.0 --slug indexer --tag mine:indexer

Prints the image's name last. Needs docker; the registry only to find the digest of --base.
Exit codes: 0 built, 1 refused or failed, 2 wrong usage.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

HOME = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOME))

from patchset import series  # noqa: E402
from patchset.errors import WrongUsage  # noqa: E402

GPUS = {"gfx942": "mi30x", "gfx950": "mi35x"}
ROCM = {"7.0": "rocm700", "7.2": "rocm720"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--release", required=True, metavar="R", help="of sglang, as 0.5.10.post1")
    parser.add_argument("--arch", required=True, choices=GPUS)
    parser.add_argument("--rocm", required=True, choices=ROCM)
    parser.add_argument("--slug", action="append", default=[], metavar="S", help="default: all")
    parser.add_argument("--base", metavar="IMAGE", help="default: the release's own image")
    parser.add_argument("--target", choices=("layered", "source"), default="layered")
    parser.add_argument("--tilelang-commit", default="", metavar="C", help="default: as it is")
    parser.add_argument("--tag", metavar="T", help="default: sglang-rocm-patches:<release>-...")
    parser.add_argument("--print", action="store_true", help="print the command, build nothing")
    given = parser.parse_args()
    given.slug = list(dict.fromkeys(given.slug))
    patchset = series.load(HOME)
    try:
        release = patchset.release(given.release)
    except WrongUsage as wrong:
        parser.error(str(wrong))
    if unknown := set(given.slug) - set(release.patches):
        known = ", ".join(release.patches)
        parser.error(f"{release.name} has no patch {', '.join(sorted(unknown))}: it has {known}")
    flavour = f"{given.release}-{ROCM[given.rocm]}-{GPUS[given.arch]}"
    base = pinned(given.base or f"lmsysorg/sglang:v{flavour}")
    suffix = "".join(f"-{slug}" for slug in given.slug)
    tag = given.tag or f"sglang-rocm-patches:{flavour}{suffix}"
    arguments = {
        "BASE": base,
        "BASE_DIGEST": base.partition("@")[2],
        "ARCH": given.arch,
        "RELEASE": given.release,
        "PATCHSET_DIGEST": release.digest,
        "SLUGS": " ".join(given.slug),
        "TILELANG_COMMIT": given.tilelang_commit,
    }
    command = ["docker", "build", "--file", "rocm.Dockerfile", "--target", given.target]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    command += ["--tag", tag, "."]
    if given.print:
        print(json.dumps(command))
        return
    if run(command, capture=False).returncode:
        refuse("docker build failed, see above")
    print(tag)


def pinned(image: str) -> str:
    """`image` by the digest that its tag has now."""
    if re.search(r"@sha256:[0-9a-f]{64}$", image):
        return image
    if "@" in image:
        refuse(f"{image} is not pinned", "a digest is @sha256: and 64 hexadecimal digits")
    form = "{{.Manifest.Digest}}"
    found = run(["docker", "buildx", "imagetools", "inspect", image, "--format", form])
    digest = found.stdout.strip()
    if found.returncode or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        said = (found.stderr.strip() or digest or "no answer").partition("\n")[0]
        refuse(
            f"cannot find the digest of {image}: {said}",
            "is there such a tag? Without docker's buildx or a registry in reach, give"
            " --base IMAGE@sha256:...",
        )
    return f"{image}@{digest}"


def run(command: list[str], capture: bool = True) -> subprocess.CompletedProcess:
    # Docker's progress goes where it is seen; stdout is kept for the image's name.
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} if capture else {"stdout": 2}
    try:
        return subprocess.run(command, cwd=HOME, text=True, **streams)
    except FileNotFoundError:
        refuse("there is no docker here", "build where there is; --print shows the command")


def refuse(*lines: str) -> NoReturn:
    sys.exit("\n  ".join(["build.py: " + lines[0], *lines[1:]]))


if __name__ == "__main__":
    main()
