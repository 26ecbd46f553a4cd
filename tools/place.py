"""A patch of one release, placed in the functions of another.

For each hunk the function that it enters is looked for in the other release: by its exact text
first, then by its name, in whatever file it lies now. Where the text is the same, the patched
function is taken as it is; where it is not, git merges the two three ways, and what it cannot
decide stays in the file between conflict markers. An import goes among the other imports, in order.
"""

import difflib
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from patchset.diff import FileDiff, patched, split
from patchset.functions import Function, Module, module

SAME, MERGED, CONFLICT, LOST = "same text", "merged", "conflict", "nowhere"
MARKER = b"<<<<<<< "
# What upstream renamed as a whole: native sparse attention became DeepSeek sparse attention.
RENAMED = (("nsa", "dsa"), ("NSA", "DSA"), ("NativeSparse", "DeepseekSparse"))


class Home(NamedTuple):
    """Where a function lies in the other release."""

    path: str
    function: Function
    text: bytes
    alike: float  # 1.0: the same bytes


class Placed(NamedTuple):
    """What became of the hunks that enter one function."""

    path: str
    function: str
    how: str
    to: str  # the file in which it lies now
    conflicts: int


class Release(NamedTuple):
    """The Python files of a tree, read when they are asked for."""

    root: Path

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def functions(self, *names: str) -> Iterator[tuple[str, Function, bytes]]:
        """Every function of one of these names: the file, where in it, and its text."""
        for path in sorted({path for name in names for path in self._defining(name)}):
            source = module(self.read(path))
            for function in source.functions if source else ():
                if function.name in names:
                    yield path, function, function.text(source.lines)

    def _defining(self, name: str) -> list[str]:
        """The files that may define this function, or the class that it is a method of."""
        outer, _, method = name.partition(".")
        said = rf"^\s*class {outer}\b" if method else rf"^\s*(async )?def {outer}\("
        command = ["grep", "-rlP", "--include=*.py", said, "sglang"]
        found = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False)
        return [path for path in found.stdout.split() if "rocm_patches" not in path]


def module_of(data: bytes, path: str) -> Module:
    found = module(data)
    if found is None:
        raise ValueError(f"{path} is no module that this Python can parse")
    return found


# Where things are now --------------------------------------------------------------------------


def renamed(text: bytes, other: bytes) -> bytes:
    """`text` with the identifiers renamed that `other` has under upstream's new names alone."""
    words = set(re.findall(rb"\w+", other))

    def new(match: re.Match[bytes]) -> bytes:
        word = match[0]
        for old, now in RENAMED:
            changed = word.replace(old.encode(), now.encode())
            if changed != word and word not in words and changed in words:
                return changed
        return word

    return re.sub(rb"\w+", new, text)


def find(release: Release, path: str, name: str, text: bytes) -> Home | None:
    """The function `name` of `path` in another release, None where it has none of that name."""
    names = {name, *(name.replace(old, now) for old, now in RENAMED)}
    homes = [
        Home(where, function, found, _alike(renamed(text, found), found))
        for where, function, found in release.functions(*names)
    ]
    return max(homes, key=lambda home: _rank(home, path), default=None)


def _alike(one: bytes, other: bytes) -> float:
    if one == other:
        return 1.0
    # Which lines there are, not their order: a function of a thousand lines takes no time.
    return difflib.SequenceMatcher(None, split(one), split(other)).quick_ratio()


def _rank(home: Home, path: str) -> tuple[bool, bool, float]:
    """A file that is AMD's alone first, where there are two; then the same file; then likeness.

    From 0.5.18 on HIP runs forward_mla_rocm.py and forward_mla.py is CUDA's.
    """
    return home.path.endswith("_rocm.py"), home.path == path, home.alike


# Placing ---------------------------------------------------------------------------------------


def place(
    diffs: Mapping[str, FileDiff], old: Release, new: Release, taken: Mapping[str, set[int]]
) -> tuple[dict[str, bytes], list[Placed]]:
    """The new release's files with a patch in them, and how each function's hunks came there.

    taken: the lines of each file, from 0, before which patches put something; this one's imports
    are added.
    """
    placed: list[Placed] = []
    functions: dict[str, dict[tuple[int, int], bytes]] = {}
    imports: dict[str, list[bytes]] = {}
    for path, diff in diffs.items():
        entered, outside = _entered(path, diff, old)
        for name, (text, ours) in entered.items():
            home = find(new, path, name, text)
            if home is None:
                placed.append(Placed(path, name, LOST, "", 1))
                continue
            merged, conflicts = merge(text, ours, home.text)
            how = CONFLICT if conflicts else SAME if home.alike == 1.0 else MERGED
            placed.append(Placed(path, name, how, home.path, conflicts))
            span = home.function.start, home.function.end
            functions.setdefault(home.path, {})[span] = merged
            imports[home.path] = outside
    files = {}
    for path, spans in functions.items():
        data, lines = new.read(path), taken.setdefault(path, set())
        at = import_place(module_of(data, path), imports[path], lines)
        lines.add(at)
        files[path] = _rebuilt(data, {**spans, (at, at): b"".join(imports[path])})
    return files, placed


def _entered(
    path: str, diff: FileDiff, old: Release
) -> tuple[dict[str, tuple[bytes, bytes]], list[bytes]]:
    """Each function that a diff enters, pristine and patched, and the imports that it adds."""
    pristine = old.read(path)
    source, made = module_of(pristine, path), module_of(patched(pristine, [diff]), path)
    functions: dict[str, tuple[bytes, bytes]] = {}
    imports: list[bytes] = []
    for edit in diff.edits():
        function = source.function_at(edit.start, edit.end)
        if function:
            [ours] = made.named(function.name)
            functions[function.name] = function.text(source.lines), ours.text(made.lines)
        else:
            imports += edit.new
    return functions, imports


def merge(base: bytes, ours: bytes, theirs: bytes) -> tuple[bytes, int]:
    """`theirs` with what leads from `base` to `ours`, and how many conflicts are marked in it."""
    base, ours = renamed(base, theirs), renamed(ours, theirs)
    if base == theirs:
        return ours, 0
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("patched", ours), ("old", base), ("new", theirs)):
            Path(folder, name).write_bytes(text)
        command = ["git", "merge-file", "-p", "--diff3", "-L", "patched", "-L", "old", "-L", "new"]
        done = subprocess.run(
            [*command, "patched", "old", "new"], cwd=folder, capture_output=True, check=False
        )
    if done.returncode < 0 or done.returncode > 127:
        raise ValueError(f"git merge-file: {done.stderr.decode()}")
    return done.stdout, done.stdout.count(MARKER)


def _rebuilt(data: bytes, texts: Mapping[tuple[int, int], bytes]) -> bytes:
    """`data` with other texts at these spans of its lines."""
    lines = split(data)
    for (start, end), text in sorted(texts.items(), reverse=True):
        lines[start:end] = [text]
    return b"".join(lines)


def import_place(source: Module, imports: list[bytes], taken: set[int]) -> int:
    """The line before which imports go: in order among sglang's, and beside no other patch's."""
    top = [each for each in source.imports if not each.indented]
    mine = [each for each in top if source.lines[each.start].startswith(b"from sglang.")] or top
    first = imports[0]
    after = [each.end for each in mine if source.lines[each.start] < first]
    wanted = after[-1] if after else mine[0].start
    free = [each.end for each in mine if not {each.end - 1, each.end, each.end + 1} & taken]
    return min(free, key=lambda line: abs(line - wanted), default=wanted)
