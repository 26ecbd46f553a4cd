"""A published release, downloaded once through pip and unpacked as it lies in the wheel.

What the wheel must be is pinned by its sha256 in `release.json`, so no index can serve another
one. The wheel stays beside its tree: by it, every use proves the whole tree again.
"""

import hashlib
import io
import stat
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from patchset import folder, provenance
from patchset.diff import blob_id, split
from patchset.errors import Refused
from patchset.folder import Folder
from patchset.journal import FOLDER
from patchset.record import Proof, path_of, proof_of
from patchset.series import OVERLAY, PatchSet
from patchset.tree import STAGED, Tree, is_inside


def fetched(name: str, patchset: PatchSet, build: Path) -> Path:
    """The folder with the unpacked wheel of sglang `name`, proven."""
    release = patchset.release(name)
    pinned = release.info.get("wheels", {}).get(name)
    if not pinned:
        raise Refused(f"the wheel of sglang {name} is not pinned, so it could not be proven")
    build = build.resolve()
    home = build / f"sglang-{name}"
    try:
        data = _kept(build, name, pinned) or _downloaded(build, name, pinned)
        with zipfile.ZipFile(io.BytesIO(data)) as wheel:
            if not _exists(home):
                _unpack(wheel, home)
            else:
                _prove(Tree(home / "sglang"), wheel, release.pristine_ids())
    except OSError as fault:
        raise Refused(
            f"cannot unpack sglang {name} below {build}: {fault.strerror}\n"
            "make room or rights there, or unpack the wheel elsewhere and name it with --tree"
        ) from fault
    return home


# The wheel ------------------------------------------------------------------------------------


def _kept(build: Path, name: str, pinned: str) -> bytes | None:
    try:
        data = folder.read(build / f"sglang-{name}.whl")
    except (FileNotFoundError, NotADirectoryError):
        return None
    return data if hashlib.sha256(data).hexdigest() == pinned else None


def _downloaded(build: Path, name: str, pinned: str) -> bytes:
    with folder.scratch(build, ".fetch-") as place:
        file = _download(name, place)
        data = folder.read(file)
        found = hashlib.sha256(data).hexdigest()
        if found != pinned:
            raise Refused(
                f"the package index served another wheel of sglang {name}: its sha256 is {found}, "
                f"and the published one has {pinned}; nothing was kept\n"
                f"see where it came from: {sys.executable} -m pip download -v --no-deps "
                f"--no-cache-dir sglang=={name}"
            )
        with Folder.at(place) as here, Folder.at(build) as there:
            here.rename(file.name, f"sglang-{name}.whl", there)
    return data


def digest(name: str, build: Path) -> str:
    """The sha256 of the wheel that the package index serves, for a release that is pinned anew."""
    with folder.scratch(build.resolve(), ".fetch-") as place:
        return hashlib.sha256(folder.read(_download(name, place))).hexdigest()


def _download(release: str, place: Path) -> Path:
    # No dependencies: the tree is patched, not run. No source distribution: it would be built.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", ".", f"sglang=={release}"]
    done = subprocess.run(
        command, cwd=place, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    with Folder.at(place) as here:
        wheels = [name for name in here.names() if name.endswith(".whl")]
    if done.returncode or not wheels:
        said = done.stderr.splitlines()
        raise Refused(
            f"{_why_not(release, said)}\n"
            f"see why with: {sys.executable} -m pip download --no-deps sglang=={release}"
        )
    return place / wheels[0]


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


# The tree -------------------------------------------------------------------------------------


def _unpack(wheel: zipfile.ZipFile, home: Path) -> None:
    files = _proven_members(wheel)
    with folder.scratch(home.parent, ".fetch-") as place:
        with Folder.at(place) as here:
            here.make("tree", sync=False)
        for path, data in files.items():
            with folder.made(place / "tree", path.split("/")[:-1]) as target:
                target.create(path.rpartition("/")[2], data, mode=0o644, sync=False)
        with Folder.at(place) as here, Folder.at(home.parent) as there:
            try:
                here.rename("tree", home.name, there)
            except OSError:
                if not there.stat(home.name):  # it is there where another run fetched the same
                    raise


def _proven_members(wheel: zipfile.ZipFile) -> dict[str, bytes]:
    """The files of a wheel that is exactly what its RECORD says."""
    record, proofs = _record(wheel)
    files = dict[str, bytes]()
    for member in wheel.infolist():
        path = member.filename
        if member.is_dir():
            continue
        if not is_inside(path) or path in files or stat.S_ISLNK(member.external_attr >> 16):
            raise _damaged(path, "is no plain file")
        if path not in proofs:
            raise _damaged(path, "is not named in its RECORD")
        files[path], proof = wheel.read(member), proofs[path]
        if path != record and not (proof and proof.holds(files[path])):
            raise _damaged(path, "is not what its RECORD says")
    for path in proofs.keys() - files.keys():
        raise _damaged(path, "is missing")
    return files


def _prove(tree: Tree, wheel: zipfile.ZipFile, touched: Mapping[str, str]) -> None:
    """Refuse a tree whose files are not the wheel's; what patches touch, `state` judges."""
    record, proofs = _record(wheel)
    left, earlier = {*proofs}, provenance.read(tree)
    for place, name in folder.walk(tree.root):
        path = (place.path / name).relative_to(tree.root).as_posix()
        left.discard(path)
        if name.endswith(STAGED) or path.startswith((f"{FOLDER}/", f"{OVERLAY}/")):
            continue
        if path in touched:
            continue
        if place.path.name == "__pycache__" and name.endswith(".pyc") and place.is_file(name):
            continue
        data, proof = place.read(name), proofs.get(path)
        if path == record:
            right = _same_rows(data, wheel.read(record), touched)
        else:
            kept = earlier.original(tree, path, blob_id(data))
            right = bool(proof and proof.holds(data if kept is None else kept))
        if not right:
            raise _changed(tree, path)
    for path in left - touched.keys():
        raise _changed(tree, path)


def _same_rows(found: bytes, expected: bytes, touched: Mapping[str, str]) -> bool:
    def rows(record: bytes) -> list[bytes]:
        lines = [(path_of(line), line) for line in split(record)]
        return [n for p, n in lines if p not in touched and not p.startswith(OVERLAY + "/")]

    return rows(found) == rows(expected)


def _record(wheel: zipfile.ZipFile) -> tuple[str, dict[str, Proof | None]]:
    """The path of the wheel's RECORD, and what it proves each file with."""
    for name in wheel.namelist():
        if name.endswith(".dist-info/RECORD") and name.count("/") == 1:
            return name, {path_of(row): proof_of(row) for row in split(wheel.read(name))}
    raise Refused("the wheel holds no RECORD; it cannot be checked")


def _exists(home: Path) -> bool:
    with Folder.at(home.parent) as build:
        return build.stat(home.name) is not None


def _damaged(path: str, how: str) -> Refused:
    return Refused(
        f"the wheel of sglang is damaged: {path} {how}\n"
        f"empty pip's cache and try again: {sys.executable} -m pip cache remove sglang"
    )


def _changed(tree: Tree, path: str) -> Refused:
    return Refused(
        f"{tree.root / path} is not as the wheel has it, and no patch touches it; nothing was "
        f"written\nto fetch the release anew: rm -r {tree.root}"
    )
