#!/usr/bin/env python3
"""Write patches/<release>/functions.json: the functions that each patch enters, by their text.

    python3 tools/functions.py [RELEASE...]      all series, if none is named

For each patch and file: the functions that its edits lie in (first and last line in the release,
blob id of the text before and after that patch), and from where the names in them are imported. A
tree that is no release, but has these functions, takes the patch with `apply.py apply --near`. The
pristine release is fetched into build/pristine/ once.
Exit codes: 0 written, 1 a hook lies in no function and is no import, or no pristine tree, 2 usage.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).resolve().parent.parent
if str(HOUSE) not in sys.path:
    sys.path.insert(0, str(HOUSE))

from patchset import manifest, series  # noqa: E402  # the folder above is put on the path first
from patchset.diff import Edit, FileDiff, patched  # noqa: E402
from patchset.errors import Refused, WrongUsage  # noqa: E402
from patchset.fetch import fetched  # noqa: E402
from patchset.functions import module  # noqa: E402


def text_of(release: series.Release, read: Callable[[str], bytes]) -> str:
    """What functions.json of the release says; `read` gives its pristine files."""
    shown = {
        patch.slug: {path: _entered(diff, read(path)) for path, diff in patch.diffs.items()}
        for patch in release.every
    }
    return json.dumps(shown, indent=1) + "\n"


def _entered(diff: FileDiff, pristine: bytes) -> dict[str, Any]:
    before, after = module(pristine), module(patched(pristine, [diff]))
    if not (before and after):
        raise ValueError(f"{diff.path} is no Python that {sys.executable} can parse")
    functions: dict[str, list[Any]] = {}
    names = set[str]()
    for edit in diff.edits():
        function = before.function_at(edit.start, edit.end)
        if function is None:
            _require_import(diff.path, edit)
            continue
        changed = after.named(function.name)
        if len(changed) != 1 or len(before.named(function.name)) != 1:
            raise ValueError(f"{diff.path}: there is more than one {function.name}")
        ids = [function.blob(before.lines), changed[0].blob(after.lines)]
        functions[function.name] = [function.start, function.end, *ids]
        names |= function.names() | changed[0].names()
    ids_of_diff = f"{diff.old_id}..{diff.new_id}"
    return {"diff": ids_of_diff, "functions": functions, "imports": before.origins(names)}


def _require_import(path: str, edit: Edit) -> None:
    """An edit outside of functions may only add whole imports of one line each."""
    for line in edit.new:
        read = module(line)
        if edit.old or not read or not read.imports or read.imports[0].indented:
            raise ValueError(f"{path}:{edit.start + 1}: a hook lies in no function, {line!r}")


def fresh(house: Path, release: series.Release, pristine: Path) -> bool:
    """Whether functions.json is what this would write."""
    said = house / "patches" / release.name / "functions.json"
    made = text_of(release, lambda path: (pristine / path).read_bytes())
    return said.is_file() and said.read_text() == made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("releases", nargs="*", metavar="RELEASE", help="all, if none is named")
    names = parser.parse_args().releases
    try:
        patchset = series.load(HOUSE)
        for name in names or patchset.releases:
            release = patchset.release(name)
            pristine = fetched(release.name, patchset, HOUSE / "build/pristine")
            text = text_of(release, lambda path, tree=pristine: (tree / path).read_bytes())
            (HOUSE / "patches" / release.name / "functions.json").write_text(text)
            print(f"patches/{release.name}/functions.json: {len(release.every)} patches")
    except (Refused, WrongUsage, ValueError) as fault:
        raise SystemExit(f"functions: {fault}") from fault
    manifest.write(HOUSE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
