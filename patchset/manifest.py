"""What belongs to the patch set, by blob id: a copy that lacks a file or half of one is refused.

`patches/MANIFEST` is generated (tools/manifest.py) and checked by lint. The digest of its rows
names the patch set as a whole.
"""

import hashlib
from pathlib import Path

from patchset import folder
from patchset.diff import blob_id
from patchset.errors import Refused
from patchset.folder import Folder

MANIFEST = "patches/MANIFEST"
_OF_A_SERIES = ("patches/*/*.json", "patches/*/series", "patches/*/*.patch")
_PARTS = ("overlay/**/*", "patches/*.json", *_OF_A_SERIES)


def rows(home: Path) -> str:
    """The manifest of the checkout at `home` as it should be."""
    files = {path for part in _PARTS for path in home.glob(part) if path.is_file()}
    ids = {path.relative_to(home): blob_id(folder.read(path)) for path in files}
    wanted = sorted(path.as_posix() for path in ids if "__pycache__" not in path.parts)
    return "".join(f"{ids[Path(path)]}  {path}\n" for path in wanted)


def write(home: Path) -> bool:
    """Whether the manifest of the checkout at `home` had to be written."""
    text, file = rows(home).encode(), home / MANIFEST
    if file.is_file() and folder.read(file) == text:
        return False
    with (
        folder.scratch(file.parent, ".manifest-") as place,
        Folder.at(place) as here,
        Folder.at(file.parent) as there,
    ):
        here.create(file.name, text, mode=0o644)
        here.rename(file.name, file.name, there)
    return True


def digest(home: Path) -> str:
    return hashlib.sha256(rows(home).encode()).hexdigest()


def wrong(home: Path) -> list[str]:
    """Each file that is not as the manifest says, with what is wrong with it."""
    try:
        said = _parsed(folder.read(home / MANIFEST).decode())
    except (OSError, ValueError):
        return [f"{MANIFEST} is missing or cut"]
    found = _parsed(rows(home))
    faults = []
    for path in sorted(said.keys() | found.keys()):
        if path not in found:
            faults.append(f"{path} is missing")
        elif path not in said:
            faults.append(f"{path} is not in {MANIFEST}")
        elif said[path] != found[path]:
            faults.append(f"{path} is not what {MANIFEST} says")
    return faults


def prove(home: Path) -> None:
    """Refuse a patch set that is not whole."""
    faults = wrong(home)
    if not faults:
        return
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    lines = [f"the patch set itself is not whole: {faults[0]}{more}"]
    if (home / ".git").exists():
        lines += [f"see what differs: git -C {home} diff -- patches overlay"]
    else:
        lines += ["get a complete copy of it"]
    own = home / "tools/manifest.py"
    lines += [f"if the change is yours: python3 {own}"] if own.exists() else []
    raise Refused("\n".join(lines))


def _parsed(text: str) -> dict[str, str]:
    pairs = [line.split("  ", 1) for line in text.splitlines()]
    return {path: blob for blob, path in pairs}
