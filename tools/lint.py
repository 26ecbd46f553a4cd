#!/usr/bin/env python3
"""Check what apply.py does not: headers, thin hooks, one name for one thing, generated tables.

    python3 tools/lint.py              all problems, one a line
    python3 tools/lint.py --write      write the generated tables first
    python3 tools/lint.py --release    also stale evidence and a stale table are problems, where
                                       they are warnings otherwise: an edit makes evidence stale
                                       that only another machine can renew

Exit codes: 0 nothing wrong, 1 something is, 2 wrong usage.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

HOUSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOUSE))

from ci.entry import DONE, WRONG, Stop, run  # noqa: E402  # the folder above is on the path
from patchset import manifest, series  # noqa: E402
from patchset.diff import FileDiff  # noqa: E402
from patchset.errors import Refused  # noqa: E402
from tools import evidence, functions, models, picture, tables  # noqa: E402

# Each trailer and what it may say; https://github.com/sgl-project/sglang/pull/N is written #N.
NUMERICS = r"bitwise|ulp<=\d+|rel<=[0-9.e-]+ vs fp64|overlap>=[0-9.]+ of .+?"
PULL_REQUESTS = r"#\d+(, #\d+)*"
TRAILERS = {
    "Subject": r"[A-Z].{10,}[^.]",
    "Slug": r"[a-z0-9]+(-[a-z0-9]+)*",
    "Upstream-PR": rf"{PULL_REQUESTS}|none",
    "Upstream-Status": r"missing|upstream-incomplete: .{10,}|upstream",
    "Numerics": rf"({NUMERICS})(; attention l2<=[0-9.e-]+ vs fp64)?",
    "Switch": r"SGLANG_ROCM_PATCH_[A-Z0-9_]+|none",
    "Requires": r"([a-z0-9-]+(, [a-z0-9-]+)*)?",
    "Hardware": r"(gfx942|gfx950|gfx942, gfx950|all)",
    "Fixes": rf"{PULL_REQUESTS}|none",
}
CHANGED_LINES = 40  # an upstream file and a slug: hooks only, logic lives in the overlay

# What every slug has, by name, so that one grep finds all of it.
ROOMS = (
    "overlay/" + series.OVERLAY + "/{module}.py",
    "tests/references/{module}.py",
    "tests/kernels/test_{module}.py",
)


def headers(patch: series.Patch) -> Iterator[str]:
    for key, form in TRAILERS.items():
        value = patch.trailers.get(key)
        if value is None:
            yield f"no trailer `{key}:`"
        elif not re.fullmatch(form, value):
            yield f"`{key}: {value}` is not of the form {form}"
    for key in sorted(set(patch.trailers) - set(TRAILERS)):
        yield f"unknown trailer `{key}:`"
    expected = {"Slug": patch.slug}
    if patch.slug != series.SELF_REPORT:
        expected["Switch"] = "SGLANG_ROCM_PATCH_" + patch.slug.upper().replace("-", "_")
    for key, value in expected.items():
        if patch.trailers.get(key) != value:
            yield f"`{key}:` must be {value}"


def thin(patch: series.Patch) -> Iterator[str]:
    for path, diff in patch.diffs.items():
        changed = changed_lines(diff)
        if changed > CHANGED_LINES:
            yield f"{changed} changed lines in {path}, {CHANGED_LINES} allowed: use overlay/"
        for edit in diff.edits():
            for line in edit.new:
                if line != line.rstrip() + b"\n":
                    yield f"white space at the end of an added line in {path}: {line!r}"


def changed_lines(diff: FileDiff) -> int:
    return sum(len(edit.old) + len(edit.new) for edit in diff.edits())


def rooms(house: Path, slug: str) -> Iterator[str]:
    for room in ROOMS:
        path = room.format(module=slug.replace("-", "_"))
        if not (house / path).is_file():
            yield f"{path} is missing"


def published(patches: series.PatchSet) -> Iterator[str]:
    """The tables of published releases, against the series."""
    known = patches.published
    for release in patches.releases.values():
        where = f"patches/{release.name}"
        for path in sorted(release.pristine_ids().keys() & {*known.files}):
            yield f"{where} touches {path}, which tells releases apart in patches/published.json"
        for name in (release.name, *release.also):
            if name not in known.releases:
                yield f"{where}: {name} is not in patches/published.json; tools/published.py {name}"
        for slug in sorted({*release.upstream} ^ {*known.upstream(release.name, "whole")}):
            yield f"{where}: patches/upstream.json and release.json disagree about {slug}"


def entered(house: Path, release: series.Release) -> Iterator[str]:
    """functions.json against the diffs, and against the release where its files are here."""
    again = f"python3 tools/functions.py {release.name}"
    where = f"patches/{release.name}/functions.json"
    made = {
        (patch.slug, path): f"{diff.old_id}..{diff.new_id}"
        for patch in release.every
        for path, diff in patch.diffs.items()
    }
    said = {
        (slug, path): file.diff
        for slug, files in release.entered.items()
        for path, file in files.items()
    }
    for slug, path in sorted(made.keys() | said.keys()):
        if made.get((slug, path)) != said.get((slug, path)):
            yield f"{where} is stale for {slug} in {path}: {again}"
    pristine = house / "build/pristine" / f"sglang-{release.name}"
    if made == said and pristine.is_dir():
        try:
            if not functions.fresh(house, release, pristine):
                yield f"{where} is not what the release's functions say: {again}"
        except ValueError as fault:
            yield f"patches/{release.name}: {fault}"


# The generated tables ---------------------------------------------------------------


def generated(house: Path, patches: series.PatchSet) -> dict[str, str]:
    """Each document with generated parts, as it should be now."""
    blocks = tables.all_of(house, patches) | {"docs/models.md": models.all_of(house, patches)}
    texts = {document: renewed(house, document, made) for document, made in blocks.items()}
    return texts | {"docs/decode-step.svg": picture.picture(house)}


def renewed(house: Path, document: str, blocks: dict[str, str]) -> str:
    """A document with its generated tables as they should be."""
    text = (house / document).read_text()
    for name, table in blocks.items():
        form = rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)"
        text, found = re.subn(form, lambda m, t=table: m[1] + t + "\n" + m[2], text, flags=re.S)
        if found != 1:
            raise Stop(f"{document} has no one `<!-- generated: {name} -->` block", WRONG)
    for name in sorted(set(re.findall(r"<!-- generated: (.*?) -->", text)) - blocks.keys()):
        raise Stop(f"{document}: nothing generates the block `{name}`", WRONG)
    return text


def documents(house: Path, texts: dict[str, str]) -> Iterator[str]:
    for document, text in texts.items():
        if (house / document).read_text() != text:
            yield Stale(f"{document}: a generated part is stale; python3 tools/lint.py --write")


class Stale(str):
    """A problem of a release, and of no single change."""


def aged(house: Path) -> Iterator[Stale]:
    files: dict[str, list[str]] = {}
    for each in evidence.judgements(house):
        if not each["fresh"]:
            files.setdefault(f"{each['file']}|{each['renew']}", []).append(each["slug"])
    for file, slugs in files.items():
        name, renew = file.split("|")
        yield Stale(f"evidence/{name} is stale for {', '.join(slugs)}; {renew}")


def problems_of(house: Path, write: bool = False, strict: bool = False) -> list[str]:
    """All that is wrong with the checkout at ``house``, its tables written first or not;
    strictly, as for a release, also which evidence is stale."""
    patches = series.load(house)
    texts = generated(house, patches)
    if write:
        manifest.write(house)
        for document, text in texts.items():
            (house / document).write_text(text)
    problems = [f"{slug}: {problem}" for slug in patches.slugs for problem in rooms(house, slug)]
    for release in patches.releases.values():
        for patch in release.every:
            where = f"patches/{release.name}/{patch.slug}.patch"
            problems += [f"{where}: {problem}" for problem in (*headers(patch), *thin(patch))]
        problems += entered(house, release)
    problems += published(patches)
    stale = manifest.wrong(house)
    problems += [f"{stale[0]}: python3 tools/manifest.py"] if stale else []
    problems += documents(house, texts)
    return [*problems, *(aged(house) if strict else ())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the generated tables first")
    parser.add_argument("--release", action="store_true", help="nothing may be stale")
    args = parser.parse_args()
    try:
        problems = problems_of(HOUSE, args.write, args.release)
    except Refused as refusal:
        raise Stop(str(refusal), WRONG) from refusal
    warnings = [] if args.release else [each for each in problems if isinstance(each, Stale)]
    for problem in problems:
        print(f"lint: {'warning: ' * (problem in warnings)}{problem}")
    return WRONG if len(problems) > len(warnings) else DONE


if __name__ == "__main__":
    sys.exit(run("lint", main))
