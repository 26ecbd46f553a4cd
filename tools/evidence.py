#!/usr/bin/env python3
"""Say which evidence is still valid for this checkout.

    python3 tools/evidence.py           each file and slug: fresh, or what has changed since
    python3 tools/evidence.py --json    the same for machines

Evidence is stale for a slug when the code that decided it has changed, or the pinned compiler of
machine code: see evidence/key.py. A comparison of servers is stale when the patch set of its
release has changed; a fault behind real servers, also when the code that judges it has changed.
A file without a key cannot be judged and counts as stale.
Exit codes: 0 all fresh, 1 some stale, 2 wrong usage or the patch set is not whole.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

HOUSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOUSE))  # before this folder, whose evidence.py is not the package

from ci.entry import run  # noqa: E402  # the folder above is put on the path first
from evidence import key as keys  # noqa: E402
from evidence import store  # noqa: E402
from patchset import series  # noqa: E402

HOW = {
    "tests": "ci/test -- --evidence=evidence, then ci/test --long with the same",
    "aot": "python3 -m tests.kernels.machine_code",
    "tilelang": "python3 -m tests.kernels.hip_source",
    "launches": "python3 -m tests.engine.launches",
    "seeded-faults": "python3 -m tests.faults",
    "regression-faults": "python3 -m tests.regression",
    "gsm8k": "ci/gsm8k.py run --evidence",
    "throughput": "ci/throughput.py run --evidence",
}
BY_ROW = ("seeded-faults", "regression-faults")  # a digest in each row, of its slugs
COMPARISONS = ("gsm8k", "throughput")
COMPILERS = {"aot": "triton", "tilelang": "tilelang"}  # pinned in ci/requirements*.txt


@dataclass(frozen=True)
class Evidence:
    """One file of evidence/, named as evidence/store.py says."""

    path: Path
    house: Path

    @property
    def subject(self) -> str:
        return self.path.name.split(".")[0]

    @property
    def device(self) -> str:
        parts = self.path.name.split(".")[1:-1]
        # A comparison's names model, release and slugs before it: ci/regression/evidence.py
        return parts[-1] if parts and self.subject in COMPARISONS else ".".join(parts)

    @cached_property
    def kept(self) -> store.Kept:
        if self.subject in COMPARISONS:
            return store.Kept(json.loads(self.path.read_text()), [])
        return store.read(self.path)

    @property
    def content(self) -> dict:
        return self.kept.header

    @property
    def key(self) -> dict | None:
        return self.content.get("key")

    @property
    def rows(self) -> list[dict]:
        return self.kept.rows

    @property
    def renew(self) -> str:
        return HOW.get(self.subject, f"python3 bench/run.py {self.subject.replace('_', '-')}")

    def changed(self, slug: str, release: str = "*") -> list[str]:
        """What decided this evidence about a slug and is another now; empty: fresh."""
        asked = (slug, release)
        if asked not in self._judged:  # a page asks for every row
            self._judged[asked] = self._changed(slug, release)
        return self._judged[asked]

    @cached_property
    def _judged(self) -> dict[tuple[str, str], list[str]]:
        return {}

    def _changed(self, slug: str, release: str) -> list[str]:
        if self.subject in BY_ROW:
            kept = {
                (slugs_of(row), row.get("digest")) for row in self.rows if slug in slugs_of(row)
            }
            fresh = all(keys.digest_of(slugs, self.house) == then for slugs, then in kept)
            return [f"digest of {slug}"] * (not fresh) + self._judge()
        if self.subject in COMPARISONS:
            compared = self.content["configuration"]
            now = series.load(self.house).releases.get(compared["release"])
            same = now is not None and now.digest == compared["digest"]
            return [] if same else [f"patch set of {compared['release']}"]
        if self.key is None:
            return ["no key"]
        changed = keys.changed(self.key, self._code(slug, release))
        compiler = COMPILERS.get(self.subject)
        return changed + (keys.outdated(self.key, compiler, self.house) if compiler else [])

    def _judge(self) -> list[str]:
        """What judged rows of real servers and is another now; a fault is judged by any test."""
        if self.subject != "regression-faults":
            return []
        now = keys.digest(keys.of_served(self.house))
        same = all(row.get("judged_by") == now for row in self.rows)
        return [] if same else ["what judges real servers"]

    def _code(self, slug: str, release: str) -> keys.Code:
        """The code that decides this evidence about a slug."""
        if self.subject == "tests":
            return keys.of_slug(slug, self.house, release)
        if self.subject == "aot":
            return keys.of_machine_code(slug, self.house)
        if self.subject == "tilelang":
            return keys.of_hip_source(self.house)
        if self.subject == "launches":
            return keys.of_launches([slug], self.house, release)
        return keys.of_bench(self.subject, self.house)

    def slugs(self, known: list[str]) -> list[str]:
        """The slugs that it is about."""
        if self.subject in ("tests", "aot"):
            return known
        about = [self.content["configuration"]] if self.subject in COMPARISONS else self.rows
        named = {slug for each in about for slug in slugs_of(each)}
        longest = sorted(known, key=len, reverse=True)
        stem = next((s for s in longest if self.subject.startswith(s.replace("-", "_"))), None)
        return [slug for slug in known if slug in named | {stem}]


def slugs_of(row: dict) -> tuple[str, ...]:
    return tuple(row.get("slugs") or [row.get("slug")])


def load(house: Path = HOUSE, pattern: str = "*.json*") -> list[Evidence]:
    return [Evidence(path, house) for path in sorted((house / "evidence").glob(pattern))]


def benches(house: Path, slugs: list[str]) -> list[Evidence]:
    """The measured speeds: one file for a slug, or a part of one, and a device."""
    stems = tuple(slug.replace("-", "_") for slug in slugs)
    return [e for e in load(house) if e.device and e.subject.startswith(stems)]


def judgements(house: Path) -> Iterator[dict]:
    known = series.load(house).slugs
    for evidence in load(house):
        for slug in evidence.slugs(known):
            changed = evidence.changed(slug)
            yield {
                "file": evidence.path.name,
                "slug": slug,
                "fresh": not changed,
                "changed": changed,
                "renew": evidence.renew,
            }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one list of objects")
    args = parser.parse_args()
    found = list(judgements(HOUSE))
    if args.json:
        print(json.dumps(found, indent=1))
    for each in [] if args.json else found:
        some = [*each["changed"][:3], *["..."][: len(each["changed"]) > 3]]
        state = "fresh" if each["fresh"] else f"STALE: {', '.join(some)}"
        print(f"{each['file']:42} {each['slug']:14} {state}")
        if not each["fresh"]:
            print(f"{'':57} renew: {each['renew']}")
    return 0 if all(each["fresh"] for each in found) else 1


if __name__ == "__main__":
    sys.exit(run("evidence", main))
