"""Published releases of sglang by content; most of them are covered by no series.

`patches/published.json` (tools/published.py) has the blob ids of a few files that tell every
release from every other; no patch touches them. `patches/upstream.json` says since which release
upstream has a slug, in whole or in part.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from patchset.diff import blob_id
from patchset.folder import read
from patchset.tree import Tree


class Published(NamedTuple):
    files: Sequence[str]
    releases: Mapping[str, Sequence[str]]  # the blob ids of `files`, by release, oldest first
    since: Mapping[str, Mapping[str, str]]  # slug -> {"whole" or "part": release}

    def of(self, tree: Tree) -> str | None:
        """The release whose files these are."""
        found = [blob_id(data) if data is not None else "" for data in map(tree.read, self.files)]
        return next((name for name, ids in self.releases.items() if [*ids] == found), None)

    def upstream(self, release: str, how: str) -> list[str]:
        """The slugs that upstream has in `release`: "whole", or only in "part"."""
        has = [slug for slug, since in self.since.items() if _reached(since, "whole", release)]
        if how == "whole":
            return has
        return [
            s for s, since in self.since.items() if _reached(since, how, release) and s not in has
        ]

    def nearest(self, release: str, series: Mapping[str, str]) -> str:
        """The series, by covered release, that the fewest published releases lie away from."""
        order = sorted({*self.releases, *series, release}, key=version)
        away = {name: abs(order.index(name) - order.index(release)) for name in series}
        return series[min(series, key=lambda name: (away[name], version(name)))]


def load(folder: Path) -> Published:
    """From `folder`, the patch set's `patches`; without a table nothing is recognised."""
    table, since = folder / "published.json", folder / "upstream.json"
    known = json.loads(read(table)) if table.exists() else {"files": [], "releases": {}}
    known["since"] = json.loads(read(since)) if since.exists() else {}
    return Published(**known)


def version(release: str) -> list[int]:
    """0.5.9 is older than 0.5.10, and 0.5.10 than 0.5.10.post1."""
    return [int(number) for number in re.findall(r"\d+", release)]


def _reached(since: Mapping[str, str], how: str, release: str) -> bool:
    return how in since and version(since[how]) <= version(release)
