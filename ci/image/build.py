#!/usr/bin/env python3
"""Build a patched image from a released one: picks it, pins it by digest, labels the result.

    ci/image/build.py --release 0.5.10.post1 --arch gfx950 --rocm 7.2
    ci/image/build.py --release 0.5.9 --arch gfx942 --rocm 7.0 --slug indexer --tag mine:indexer
    ci/image/build.py --release 0.5.9 --arch gfx942 --rocm 7.0 --print

Builds with docker, podman or buildah: the one that --engine or CONTAINER_ENGINE names, else the
first of the three that is installed and works. The registry is asked only for the digest of --base.
The image's name is the last line. --print needs neither an engine nor a registry.

Exit codes: 0 built, 1 refused or failed, 2 wrong usage.
"""

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

HOME = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOME))

from ci.image import engines  # noqa: E402
from patchset import series  # noqa: E402
from patchset.errors import WrongUsage  # noqa: E402

GPUS = {"gfx942": "mi30x", "gfx950": "mi35x"}
ROCM = {"7.0": "rocm700", "7.2": "rocm720"}
# podman and buildah know no default registry.
REPOSITORY = "docker.io/lmsysorg/sglang"


def main() -> None:
    given = arguments()
    flavour = f"{given.release}-{ROCM[given.rocm]}-{GPUS[given.arch]}"
    base = given.base or f"{REPOSITORY}:v{flavour}"
    if "@" in base and not re.search(r"@sha256:[0-9a-f]{64}$", base):
        refuse(f"{base} is not pinned", "a digest is @sha256: and 64 hexadecimal digits")
    suffix = "".join(f"-{slug}" for slug in given.slug)
    tag = given.tag or f"sglang-rocm-patches:{flavour}{suffix}"
    if given.print:
        if "@" not in base:
            base += "@DIGEST"
            print(f"DIGEST stands for what {base[:-7]} has now, as sha256:...", file=sys.stderr)
        print(shlex.join(command(given, given.engine or "docker", base, tag)))
        return
    engine = usable(given.engine)
    print(f"build.py: with {engine}", file=sys.stderr)
    base = base if "@" in base else pinned(engine, base)
    # The engine's progress goes where it is seen; stdout is kept for the image's name.
    if subprocess.run(command(given, engine, base, tag), cwd=HOME, stdout=sys.stderr).returncode:
        refuse(f"{engine} build failed, see above")
    print(tag)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--release", required=True, metavar="R", help="of sglang, as 0.5.10.post1")
    parser.add_argument("--arch", required=True, choices=GPUS)
    parser.add_argument("--rocm", required=True, choices=ROCM)
    parser.add_argument("--slug", action="append", default=[], metavar="S", help="default: all")
    parser.add_argument("--base", metavar="IMAGE", help="default: the release's own image")
    parser.add_argument("--target", choices=("layered", "source"), default="layered")
    parser.add_argument("--tilelang-commit", default="", metavar="C", help="default: as it is")
    parser.add_argument("--tag", metavar="T", help="default: sglang-rocm-patches:<release>-...")
    parser.add_argument(
        "--engine", choices=engines.WORKS, default=engines.preferred(), help="default: see above"
    )
    parser.add_argument("--print", action="store_true", help="print the command, build nothing")
    given = parser.parse_args()
    if given.engine and given.engine not in engines.WORKS:
        known = ", ".join(engines.WORKS)
        parser.error(f"{engines.VARIABLE} is {given.engine!r}: it must be one of {known}")
    given.slug = list(dict.fromkeys(given.slug))
    try:
        given.patches = series.load(HOME).release(given.release)
    except WrongUsage as wrong:
        parser.error(str(wrong))
    if unknown := set(given.slug) - set(given.patches.patches):
        known, name = ", ".join(given.patches.patches), given.patches.name
        parser.error(f"{name} has no patch {', '.join(sorted(unknown))}: it has {known}")
    return given


def command(given: argparse.Namespace, engine: str, base: str, tag: str) -> list[str]:
    passed = {
        "BASE": base,
        "BASE_DIGEST": base.partition("@")[2],
        "ARCH": given.arch,
        "RELEASE": given.release,
        "PATCHSET_DIGEST": given.patches.digest,
        "SLUGS": " ".join(given.slug),
        "TILELANG_COMMIT": given.tilelang_commit,
    }
    words = [engine, "build", "--file", "rocm.Dockerfile", "--target", given.target]
    for name, value in passed.items():
        words += ["--build-arg", f"{name}={value}"]
    return [*words, "--tag", tag, "."]


def usable(named: str | None) -> str:
    try:
        if named is None:
            return engines.choose()
        engines.check(named)
    except engines.EngineError as error:
        refuse(
            "no container engine can build here",
            str(error),
            f"name another by --engine or {engines.VARIABLE}; --print shows the command",
        )
    return named


def pinned(engine: str, image: str) -> str:
    """`image` by the digest that its tag has now."""
    digest, said = engines.digest(engine, image)
    if digest is None:
        refuse(
            f"cannot find the digest of {image}: {said}",
            "is there such a tag? Without a registry in reach, give --base IMAGE@sha256:...",
        )
    return f"{image}@{digest}"


def refuse(*lines: str) -> NoReturn:
    sys.exit("\n  ".join(["build.py: " + lines[0], *lines[1:]]))


if __name__ == "__main__":
    main()
