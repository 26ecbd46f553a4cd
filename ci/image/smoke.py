#!/usr/bin/env python3
"""That an image imports what it should, from where users start, and that no package changed.

    smoke.py before FILE   note the version of every installed package
    smoke.py after FILE    compare with that note, and find the packages that sglang needs
    smoke.py gpu           import the modules that are patched; needs the GPU

A build host has no GPU, and aiter asks one for its architecture when it is imported; so a build
finds packages and compiles modules, and the first container on a GPU imports them.

Exit codes: 0 all is well, 1 something is not, 2 wrong usage.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import py_compile
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NoReturn

HOME = Path(__file__).resolve().parents[2]
NEEDED = ("sglang", "aiter", "torch", "triton", "tilelang", "sgl_kernel")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("before").add_argument("note", type=Path)
    after = commands.add_parser("after")
    after.add_argument("note", type=Path)
    after.add_argument("--rebuilt", action="append", default=[], metavar="NAME")
    commands.add_parser("gpu")
    given = parser.parse_args()
    if given.command == "before":
        given.note.write_text(json.dumps(installed(), indent=1))
        return
    if given.command == "after":
        unchanged(json.loads(given.note.read_text()), given.rebuilt)
        found()
        compiled()
    else:
        imported()
    print(f"{given.command}: as it should be, seen from {Path.cwd()}")


def installed() -> dict[str, str]:
    packages = importlib.metadata.distributions()
    return {package.metadata["Name"]: package.version for package in packages}


def unchanged(before: dict[str, str], rebuilt: list[str]) -> None:
    now = installed()
    changed = [
        f"{name}: {before.get(name, 'absent')} before, {now.get(name, 'absent')} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name not in rebuilt
    ]
    if changed:
        fail("the layer changed installed packages; in a ROCm image none can be replaced", *changed)


def found() -> None:
    """Each package is one, not a folder that happens to have its name."""
    for name in NEEDED:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            where = list(spec.submodule_search_locations or ()) if spec else "nowhere"
            fail(f"`import {name}` in {Path.cwd()} finds no package", f"found: {where}")


def compiled() -> None:
    for path in patched_files():
        try:
            py_compile.compile(str(path), doraise=True)
        except py_compile.PyCompileError as error:
            fail(f"{path} does not compile", str(error))


def imported() -> None:
    for name in NEEDED:
        importlib.import_module(name)
    for path in patched_files():
        name = ".".join(path.relative_to(tree().parent).with_suffix("").parts)
        name = name.removesuffix(".__init__")
        if name.endswith("__main__"):
            continue
        try:
            importlib.import_module(name)
        except Exception:
            fail(f"`import {name}` fails", traceback.format_exc())
    from sglang.srt import rocm_patches

    print(rocm_patches.summary())


def tree() -> Path:
    return Path(importlib.util.find_spec("sglang").origin).parent


def patched_files() -> list[Path]:
    command = [sys.executable, HOME / "apply.py", "status", "--json", "--tree", tree()]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        fail("apply.py status refuses this tree", done.stdout or done.stderr)
    paths = [file["path"] for file in json.loads(done.stdout)["files"]]
    return [tree().parent / path for path in paths if path.endswith(".py")]


def fail(*lines: str) -> NoReturn:
    sys.exit("\n  ".join(["smoke.py: " + lines[0], *lines[1:]]))


if __name__ == "__main__":
    # As `python3 -m` and -c have it: this file's folder is not where users start.
    sys.path[0] = ""
    main()
