"""The code that decides a measurement: a hash of each top-level definition that it can reach.

A definition is a function, a class or an assignment at the top level of a module. Its hash is taken
of its syntax tree without comments, docstrings and formatting, so that only a change of what runs
changes the hash. Names carry no folder: a definition that moves to another file stays the same.

    reached(["bench/layernorm.py"], house)    {"layernorm": "1f0c...", "_build": "77ab...", ...}
"""

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

# Packages whose definitions are followed from what uses them, and the folders that hold them.
FOLLOWED = {
    "sglang.srt.rocm_patches": "overlay/sglang/srt/rocm_patches",
    "bench": "bench",
    "tests.kernels": "tests/kernels",
}
WHOLE = "*"  # every definition of a file
DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Definition(NamedTuple):
    hash: str
    # Each name that it reads, with the attribute that is asked of the name.
    used: tuple[tuple[str, str | None], ...]


class Module(NamedTuple):
    definitions: dict[str, Definition]
    imports: dict[str, tuple[str, str | None]]  # local name: dotted module, and the name in it
    rest: Definition | None  # what else runs at the top level


def reached(starts: Iterable[str], house: Path, skipped: tuple[str, ...] = ()) -> dict[str, str]:
    """{name: hash} of the definitions ``starts`` and of all that these use.

    A start is a file, which stands for all of its definitions, or one of them: ``FILE::NAME``.
    Packages outside FOLLOWED, and files below the folders ``skipped``, are not followed.
    Definitions of one name in several files share an entry: their hashes, joined by spaces.
    A patch is one definition: its hunks, without the header above them.
    """
    found: dict[str, set[str]] = {}
    parts = [start.partition("::") for start in starts]
    todo, done = [(path, name or WHOLE) for path, _, name in parts], set[tuple[str, str]]()
    while todo:
        path, name = todo.pop()
        if (path, name) in done or path.startswith(skipped) or not (house / path).is_file():
            continue
        done.add((path, name))
        text = (house / path).read_text()
        if not path.endswith(".py"):
            found.setdefault(path, set()).add(_hash(text.partition("\ndiff --git")[2] or text))
            continue
        module = _module(text)
        if name == WHOLE:
            todo += [(path, each) for each in module.definitions]
            definition = module.rest
            name = f"{Path(path).stem} (top level)"
        else:
            definition = module.definitions.get(name)
        if definition is None:
            if name in module.imports:  # a name that this module only hands on
                todo += _place(house, module.imports[name], None)
            continue
        found.setdefault(name, set()).add(definition.hash)
        for used, attribute in definition.used:
            if used in module.definitions:
                todo.append((path, used))
            elif used in module.imports:
                todo += _place(house, module.imports[used], attribute)
    return {name: " ".join(sorted(hashes)) for name, hashes in sorted(found.items())}


def merged(*codes: dict[str, str]) -> dict[str, str]:
    """All that several calls of ``reached`` found."""
    names = sorted(set().union(*codes))
    every = {name: " ".join(code.get(name, "") for code in codes).split() for name in names}
    return {name: " ".join(sorted(set(hashes))) for name, hashes in every.items()}


def _place(
    house: Path, imported: tuple[str, str | None], attribute: str | None
) -> Iterator[tuple[str, str]]:
    """The file and the definition that an imported name, or its attribute, stands for."""
    dotted, name = imported
    if name and (path := _file(house, f"{dotted}.{name}")):
        yield path, attribute or WHOLE
    elif path := _file(house, dotted):
        yield path, name or attribute or WHOLE


def _file(house: Path, dotted: str) -> str | None:
    for package, folder in FOLLOWED.items():
        if dotted == package or dotted.startswith(f"{package}."):
            stem = folder + dotted.removeprefix(package).replace(".", "/")
            places = (f"{stem}.py", f"{stem}/__init__.py")
            return next((place for place in places if (house / place).is_file()), None)
    return None


# A module's syntax -----------------------------------------------------------------------------


@functools.cache  # a release check asks for every slug and file of evidence
def _module(source: str) -> Module:
    tree = ast.parse(source)
    imports: dict[str, tuple[str, str | None]] = {}
    statements: dict[str, list[ast.stmt]] = {}
    rest: list[ast.stmt] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                imports[alias.asname or alias.name] = node.module, alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    imports[alias.asname] = alias.name, None
    for statement in _flat(tree.body):
        names = list(_defined(statement))
        for name in names:
            statements.setdefault(name, []).append(statement)
        if not (names or _runs_nothing(statement)):
            rest.append(statement)
    definitions = {name: _definition(parts) for name, parts in statements.items()}
    return Module(definitions, imports, _definition(rest) if rest else None)


def _definition(statements: list[ast.stmt]) -> Definition:
    text = "".join(map(_syntax, statements))
    return Definition(_hash(text), tuple(dict.fromkeys(_used(statements))))


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those under a condition or a `try` among them."""
    for statement in body:
        if isinstance(statement, ast.If) and not _asks_for_main(statement):
            yield from _flat([*statement.body, *statement.orelse])
        elif isinstance(statement, ast.Try):
            handlers = [each for handler in statement.handlers for each in handler.body]
            yield from _flat([*statement.body, *handlers, *statement.orelse])
        else:
            yield statement


def _asks_for_main(statement: ast.If) -> bool:
    return "__name__" in {n.id for n in ast.walk(statement.test) if isinstance(n, ast.Name)}


def _defined(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, DOCUMENTED):
        yield statement.name
    elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for node in (node for target in targets for node in ast.walk(target)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id


def _runs_nothing(statement: ast.stmt) -> bool:
    is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return is_text or isinstance(statement, ast.Import | ast.ImportFrom | ast.Pass)


def _used(statements: Iterable[ast.stmt]) -> Iterator[tuple[str, str | None]]:
    """The names that are read, each with the attribute that is asked of it, if one is."""
    todo: list[ast.AST] = [*statements]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.value.id, node.attr
        elif isinstance(node, ast.Name):
            yield node.id, None
        else:
            todo += ast.iter_child_nodes(node)


def _syntax(node: object) -> str:
    """A tree as text, the same in every version of Python: empty fields and docstrings left out."""
    if isinstance(node, list):
        return f"[{','.join(map(_syntax, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
    for unread in ("ctx", "type_comment", "kind"):
        fields.pop(unread, None)
    if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = node.body[1:]
    inner = ",".join(f"{name}={_syntax(value)}" for name, value in fields.items())
    return f"{type(node).__name__}({inner})"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
