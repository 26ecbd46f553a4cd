"""What is made once and kept under build/, whichever process asks first."""

import contextlib
import fcntl
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINTS = (ROOT / "build" / "checkpoints").resolve()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time, for pytest-xdist's workers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def checkpoint(kept_as: str, module: str, name: str, recipe: object) -> Path:
    """What ``python -m MODULE NAME FOLDER`` writes, kept by the module's text and `recipe`.

    Raises RuntimeError with what the process said where it fails.
    """
    source = (ROOT / module.replace(".", "/")).with_suffix(".py")
    told = json.dumps(recipe).encode() + source.read_bytes()
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
