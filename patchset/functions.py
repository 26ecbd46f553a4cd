"""Functions of a Python file by qualified name: where each lies, and where its names come from.

A hook is proven by the file that it is made for, or by the function that it enters. This module
only reads: it says which function a line lies in, what its exact text hashes to, and which import
binds a name. Nothing is executed, and a file that this Python cannot parse has no functions.
"""

import ast
import bisect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from patchset.diff import blob_id, split

_Function = ast.FunctionDef | ast.AsyncFunctionDef


class Function(NamedTuple):
    name: str  # qualified: `Indexer.forward_cuda`; a function inside a function is part of it
    start: int  # index of its first line, decorators included
    end: int  # index behind its last line
    node: _Function

    def text(self, lines: Sequence[bytes]) -> bytes:
        return b"".join(lines[self.start : self.end])

    def blob(self, lines: Sequence[bytes]) -> str:
        """The blob id of its exact text."""
        return blob_id(self.text(lines))

    def holds(self, start: int, end: int) -> bool:
        """Whether lines from `start` up to `end` can change, or come in, within this function."""
        return self.start < start < self.end and end <= self.end

    def names(self) -> set[str]:
        """Every plain name in it: its own variables and whatever it takes from the module."""
        return {node.id for node in ast.walk(self.node) if isinstance(node, ast.Name)}


class Import(NamedTuple):
    """An import statement of the module, not one inside a function."""

    start: int
    end: int
    names: Mapping[str, str]  # the name that it binds -> the origin, such as `typing.Optional`
    indented: bool  # within an `if` or a `try`


class Module(NamedTuple):
    lines: Sequence[bytes]
    functions: Sequence[Function]  # in the order of the file
    imports: Sequence[Import]

    def named(self, name: str) -> list[Function]:
        """Several where branches define one name each."""
        return [function for function in self.functions if function.name == name]

    def function_at(self, start: int, end: int | None = None) -> Function | None:
        """The function that holds the lines from `start` up to `end`, None where there is none."""
        at = bisect.bisect_right(self.functions, start, key=lambda f: f.start) - 1
        found = self.functions[at] if at >= 0 else None
        return found if found and found.holds(start, start if end is None else end) else None

    def origins(self, names: Iterable[str]) -> dict[str, str]:
        """Where those of `names` that an import binds come from; branches are joined by ` | `."""
        wanted, found = set(names), dict[str, list[str]]()
        for statement in self.imports:
            for name in wanted & statement.names.keys():
                origins = found.setdefault(name, [])
                if statement.names[name] not in origins:
                    origins.append(statement.names[name])
        return {name: " | ".join(found[name]) for name in sorted(found)}


class Known(NamedTuple):
    """A function that a patch enters, as the release has it."""

    start: int  # as in Function
    end: int
    before: str  # blob ids of its text
    after: str  # with that patch alone


class Entered(NamedTuple):
    """What a patch enters in one file; its other edits add imports."""

    diff: str  # the blob ids of the diff that this was derived from
    functions: Mapping[str, Known]
    imports: Mapping[str, str]  # the origins of the imported names that these functions use


def entered(text: str) -> dict[str, dict[str, Entered]]:
    """What a functions.json says, by slug and path."""
    return {
        slug: {
            path: Entered(
                file["diff"],
                {name: Known(*known) for name, known in file["functions"].items()},
                file["imports"],
            )
            for path, file in files.items()
        }
        for slug, files in json.loads(text).items()
    }


@lru_cache(maxsize=64)
def module(data: bytes) -> Module | None:
    """`data` as a module, None where this Python cannot parse it or it has CRLF line ends."""
    if b"\r" in data:
        return None  # Python would count other lines than the diffs do
    try:
        tree = ast.parse(data)
    except (SyntaxError, ValueError):
        return None
    return Module(split(data), [*_functions(tree.body, "")], [*_imports(tree.body, indented=False)])


def _functions(body: Iterable[ast.stmt], prefix: str) -> Iterator[Function]:
    for node in body:
        if isinstance(node, _Function):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            assert node.end_lineno
            yield Function(prefix + node.name, first - 1, node.end_lineno, node)
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}{node.name}.")
        else:
            yield from _functions(_branches(node), prefix)


def _imports(body: Iterable[ast.stmt], indented: bool) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert node.end_lineno
            names = dict(_bound(node))
            yield Import(node.lineno - 1, node.end_lineno, names, indented)
        else:
            yield from _imports(_branches(node), indented=True)


def _bound(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
    for alias in node.names:
        if isinstance(node, ast.Import):
            # `import a.b` binds `a`.
            top = alias.name.partition(".")[0]
            yield (alias.asname, alias.name) if alias.asname else (top, top)
        else:
            source = "." * node.level + (node.module or "")
            yield alias.asname or alias.name, f"{source}.{alias.name}"


def _branches(node: ast.stmt) -> list[ast.stmt]:
    """The statements inside an `if`, `try`, `with` or loop, which are the module's own too."""
    if not isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
        return []
    handlers = [statement for h in getattr(node, "handlers", ()) for statement in h.body]
    rest = [*getattr(node, "orelse", ()), *getattr(node, "finalbody", ())]
    return [*node.body, *handlers, *rest]
