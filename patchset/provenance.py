"""What the tool lays in a patched tree about itself, so that a later revision can move it.

`provenance.json` says which release, patch set and slugs this is; the overlay reports it at run
time. `pristine/` keeps the original of each touched file under its blob id, and `files.json`
says what the patches made of it. A revision that no longer has those patches still proves by
hash that a file is exactly what was made from exactly that original.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from patchset.diff import blob_id
from patchset.series import OVERLAY, Release
from patchset.tree import Tree, is_inside

PROVENANCE = f"{OVERLAY}/provenance.json"
ORIGINALS = f"{OVERLAY}/pristine"
ORIGINAL_IDS = f"{ORIGINALS}/files.json"


class Record(NamedTuple):
    """What an earlier run, perhaps of another revision, says. To be believed with a hash only."""

    release: str | None
    digest: str | None
    slugs: frozenset[str]
    overlay: Mapping[str, str]  # blob by path
    files: Mapping[str, tuple[str, str]]  # (pristine blob, patched blob) by path
    near: bool  # the tree was near the release only

    def original(self, tree: Tree, path: str, found: str) -> bytes | None:
        """The kept original of `path`, if `found` is what was made of it."""
        pristine, patched = self.files.get(path, ("", ""))
        data = tree.read(f"{ORIGINALS}/{pristine}") if found == patched else None
        return data if data is not None and blob_id(data) == pristine else None


def provenance(release: Release, on: Iterable[str], overlay: Mapping[str, bytes]) -> bytes:
    return _json(
        {
            "release": release.name,
            **({"near": True} if release.near else {}),
            "digest": release.digest,
            "slugs": sorted(on),
            "overlay": {path: blob_id(data) for path, data in overlay.items()},
        }
    )


def originals(files: Mapping[str, tuple[bytes, bytes]]) -> dict[str, bytes]:
    """The kept originals, from (pristine, patched) bytes by path."""
    kept = {f"{ORIGINALS}/{blob_id(pristine)}": pristine for pristine, _ in files.values()}
    ids = {
        path: {"pristine": blob_id(pristine), "patched": blob_id(patched)}
        for path, (pristine, patched) in files.items()
    }
    return {**kept, ORIGINAL_IDS: _json(ids)}


def read(tree: Tree) -> Record:
    said, files = _said(tree.read(PROVENANCE)), _ids(tree.read(ORIGINAL_IDS))
    return Record(
        release=said.get("release"),
        digest=said.get("digest"),
        slugs=frozenset(said.get("slugs", ())),
        overlay=said.get("overlay", {}),
        files={path: (ids["pristine"], ids["patched"]) for path, ids in files.items()},
        near=said.get("near") is True,
    )


def is_own(path: str, data: bytes) -> bool:
    """Whether `path` is a file that some revision of this tool laid about itself."""
    if path == PROVENANCE:
        return bool(_said(data))
    if path == ORIGINAL_IDS:
        return bool(_ids(data))
    return path == f"{ORIGINALS}/{blob_id(data)}"


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


# Read from the tree: without the form of ours, a file is a stranger's, and says nothing ---------


def _said(data: bytes | None) -> dict[str, Any]:
    value = _object(data)
    words = [value.get("release"), value.get("digest"), *_listed(value.get("slugs"))]
    overlay = value.get("overlay")
    if not isinstance(overlay, dict) or not all(isinstance(word, str) for word in words):
        return {}
    return value if all(map(_is_pair, overlay.items())) else {}


def _ids(data: bytes | None) -> dict[str, dict[str, str]]:
    value = _object(data)
    right = all(
        isinstance(ids, dict)
        and _is_pair((path, ids.get("pristine")))
        and _is_pair((path, ids.get("patched")))
        for path, ids in value.items()
    )
    return value if right else {}


def _object(data: bytes | None) -> dict[str, Any]:
    try:
        value = json.loads(data or b"")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]


def _is_pair(pair: tuple[str, Any]) -> bool:
    """A path in the package and a blob id: nothing of them may lead out of the tree."""
    path, blob = pair
    inside = path.startswith("sglang/") and is_inside(path)
    return inside and isinstance(blob, str) and re.fullmatch("[0-9a-f]{40}", blob) is not None
