"""What is made once and kept under build/, whichever process asks first."""

import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINTS = (ROOT / "build" / "checkpoints").resolve()
DECISIVE = ("torch", "triton", "transformers", "numpy", "tilelang")


@functools.cache
def versions() -> str:
    """Of Python and of the packages that a result depends on."""
    found = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    return " ".join([sys.version, *(f"{name} {found.get(name)}" for name in DECISIVE)])


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time, for pytest-xdist's workers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def checkpoint(kept_as: str, module: str, name: str, recipe: object) -> Path:
    """What ``python -m MODULE NAME FOLDER`` writes, kept by the module's text, recipe and versions.

    Raises RuntimeError with what the process said where it fails.
    """
    source = (ROOT / module.replace(".", "/")).with_suffix(".py")
    told = json.dumps(recipe).encode() + source.read_bytes() + versions().encode()
    path = CHECKPOINTS / f"{kept_as}-{hashlib.sha256(told).hexdigest()[:12]}"
    with locked(CHECKPOINTS / f"{kept_as}.lock"):
        if not path.exists():
            unfinished = path.with_suffix(".unfinished")
            command = [sys.executable, "-m", module, name, str(unfinished)]
            made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if made.returncode:
                raise RuntimeError(f"{kept_as} was not made: {made.stdout}{made.stderr}")
            unfinished.rename(path)
    return path
