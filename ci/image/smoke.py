#!/usr/bin/env python3
"""Check an image: it imports what it should from the user's directory, and no package changed.

    smoke.py before FILE             note the version of every installed package
    smoke.py after FILE --arch ARCH  compare with that note, import what sglang needs, and ask the
                                     patches what they are
    smoke.py gpu                     import the modules that are patched, too; needs the GPU

A build host has no GPU. aiter queries a GPU for its architecture at import, unless GPU_ARCHS names
the architecture. The command lists each package that cannot be imported without a GPU; the first
container on a GPU checks these packages. That container also checks the patched modules, because
some of them query a GPU.

Exit codes: 0 all is well, 1 something is not, 2 wrong usage.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import os
import py_compile
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NoReturn

HOME = Path(__file__).resolve().parents[2]
NEEDED = ("aiter", "torch", "triton", "tilelang", "sgl_kernel", "sglang")
# How aiter, torch and HIP say that they find no GPU.
NO_GPU = re.compile(r"rocminfo|No HIP GPUs|no ROCm-capable device|hipErrorNoDevice|No GPU detected")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("before").add_argument("note", type=Path)
    after = commands.add_parser("after")
    after.add_argument("note", type=Path)
    after.add_argument("--arch", required=True, metavar="gfx942|gfx950")
    after.add_argument("--rebuilt", action="append", default=[], metavar="NAME")
    commands.add_parser("gpu")
    given = parser.parse_args()
    if given.command == "before":
        given.note.write_text(json.dumps(installed(), indent=1))
        return
    if given.command == "after":
        unchanged(noted(given.note), given.rebuilt)
        found()
        compiled()
        os.environ["GPU_ARCHS"] = given.arch
        needed(gpu=Path("/dev/kfd").exists())
    else:
        needed(gpu=True)
        patched()
    reported()
    print(f"{given.command}: as it should be, seen from {Path.cwd()}")


def installed() -> dict[str, str]:
    """Of two of a name, the first on the path, which is the one that is imported."""
    packages = reversed(list(importlib.metadata.distributions()))
    return {package.metadata["Name"]: package.version for package in packages}


def noted(note: Path) -> dict[str, str]:
    try:
        return dict(json.loads(note.read_text()))
    except (OSError, ValueError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not what `before` wrote"
        fail(f"{note}: {why}; `smoke.py before {note}`, run ahead of the layer, notes the packages")


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


def needed(gpu: bool) -> None:
    """Import the packages; without a GPU, one that asks for it is said to be left out."""
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except Exception as error:
            if gpu or not NO_GPU.search(str(error)):
                fail(f"`import {name}` in {Path.cwd()} fails", traceback.format_exc())
            print(f"not imported: {name} needs a GPU, which is not here ({error}); on one, run")
            print(f"  python3 {Path(__file__).resolve()} gpu")


def patched() -> None:
    for path in patched_files():
        name = ".".join(path.relative_to(tree().parent).with_suffix("").parts)
        name = name.removesuffix(".__init__")
        if name.endswith("__main__"):
            continue
        try:
            importlib.import_module(name)
        except Exception:
            fail(f"`import {name}` fails", traceback.format_exc())


def reported() -> None:
    """What the patches say of themselves is what the tool finds in the tree."""
    from sglang.srt import rocm_patches

    state, report = status(), rocm_patches.report()
    on = {slug for slug, value in state["state"].items() if value == "on"}
    applied = {slug for slug, said in report["slugs"].items() if said["state"] != "not applied"}
    if (report["digest"], applied) != (state["digest"], on):
        fail("the patches report something else than is in the tree", rocm_patches.summary())
    print(rocm_patches.summary())


def tree() -> Path:
    return Path(importlib.util.find_spec("sglang").origin).parent


@functools.cache
def status() -> dict:
    # -S: a named tree needs no packages, and what these start with Python may take seconds.
    command = [sys.executable, "-S", HOME / "apply.py", "status", "--json", "--tree", tree()]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        fail("apply.py status refuses this tree", done.stdout or done.stderr)
    return json.loads(done.stdout)


def patched_files() -> list[Path]:
    paths = [file["path"] for file in status()["files"]]
    return [tree().parent / path for path in paths if path.endswith(".py")]


def fail(*lines: str) -> NoReturn:
    sys.exit("\n  ".join(["smoke.py: " + lines[0], *lines[1:]]))


if __name__ == "__main__":
    # As `python3 -m` and -c have it: this file's folder is not where users start.
    sys.path[0] = ""
    main()
