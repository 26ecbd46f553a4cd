"""A published release, downloaded once through pip and unpacked as it lies in the wheel."""

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from patchset.errors import Refused, WrongUsage
from patchset.record import mismatched


def fetched(release: str, build: Path) -> Path:
    """The folder with the unpacked wheel of sglang `release`."""
    if not re.fullmatch(r"\d[0-9A-Za-z.]*", release):
        raise WrongUsage(f"{release!r} is no release; it looks like 0.5.10.post1")
    home = build / f"sglang-{release}"
    if home.exists():
        return home
    try:
        build.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=build) as scratch:
            unpacked = Path(scratch) / "tree"
            with zipfile.ZipFile(_download(release, Path(scratch))) as wheel:
                wheel.extractall(unpacked)
            _check(unpacked, release)
            try:
                unpacked.rename(home)
            except OSError:
                if not home.exists():  # it does where another run fetched the same
                    raise
    except OSError as fault:
        raise Refused(
            f"cannot unpack sglang {release} below {build}: {fault.strerror}\n"
            "make room or rights there, or unpack the wheel elsewhere and name it with --tree"
        ) from fault
    return home


def _download(release: str, folder: Path) -> Path:
    # No dependencies: the tree is patched, not run. No source distribution: it would be built.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", ".", f"sglang=={release}"]
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = done.stderr.splitlines()
        raise Refused(
            f"{_why_not(release, said)}\n"
            f"see why with: {sys.executable} -m pip download --no-deps sglang=={release}"
        )
    return wheels[0]


def _why_not(release: str, said: Sequence[str]) -> str:
    """What pip's words mean: without a network it too ends with `No matching distribution`."""
    unreachable = [line for line in said if "Retrying (" in line or "Could not fetch URL" in line]
    if unreachable:
        why = unreachable[-1].removeprefix("WARNING: ").strip()
        return f"pip could not reach the package index for sglang {release}: {why}"
    if any("No matching distribution" in line for line in said):
        return f"the package index has no wheel of sglang {release} that this Python's pip takes"
    last = next((line for line in reversed(said) if "WARNING" not in line), "it fetched nothing")
    return f"pip could not download sglang {release}: {last}"


def _check(unpacked: Path, release: str) -> None:
    """Refuse a wheel that is not what its own RECORD says."""
    records = sorted(unpacked.glob("*sglang*.dist-info/RECORD"))
    if not records:
        raise Refused(f"the wheel of sglang {release} holds no RECORD; it cannot be checked")
    wrong = mismatched(records[0].read_bytes(), unpacked)
    if wrong:
        raise Refused(
            f"the wheel of sglang {release} is damaged: {wrong[0]} is not what its RECORD says\n"
            f"empty pip's cache and try again: {sys.executable} -m pip cache remove sglang"
        )
