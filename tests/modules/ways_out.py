"""The ways out of the overlay: every return by which a call may be left to the pristine path.

`ways_out` finds them in the syntax trees, so that a new one is asked about as well: in a function
that answers yes or no, each return that is not True; in one that answers with a reason or nothing,
each reason; in one that answers with something or None, each None; and in a slug's own module each
return of a function that has several.
"""

import ast
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class WayOut:
    module: str
    function: str
    lines: tuple[int, int]
    kind: str  # "bool", "reason", "none" or "other"
    text: str

    def __str__(self) -> str:
        return f"{self.module}.{self.function}: {self.text}"


def ways_out(overlay: Path) -> list[WayOut]:
    found = []
    for path in sorted(overlay.rglob("*.py")):
        tree = ast.parse(path.read_text())
        is_slugs = any(
            isinstance(node, ast.Assign) and ast.unparse(node).startswith("SLUG = Slug(")
            for node in tree.body
        )
        module = ".".join(path.relative_to(overlay).with_suffix("").parts)
        module = module.removesuffix(".__init__")
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef) and not _is_kernel(function):
                found += _of_function(module, function, is_slugs)
    return found


def _is_kernel(function: ast.FunctionDef) -> bool:
    return any("jit" in ast.unparse(each) for each in function.decorator_list)


def _of_function(module: str, function: ast.FunctionDef, is_slugs: bool) -> list[WayOut]:
    annotation = ast.unparse(function.returns) if function.returns else ""
    returns = list(_returns(function, ()))
    found = []
    for node, conditions in returns:
        value = node.value
        is_none = value is None or (isinstance(value, ast.Constant) and value.value is None)
        if annotation == "bool":
            kind = None if isinstance(value, ast.Constant) and value.value is True else "bool"
        elif annotation == "str | None":
            kind = None if is_none else "reason"
        elif annotation.endswith("| None") and is_none:
            kind = "none"
        else:
            kind = "other" if is_slugs and len(returns) > 1 else None
        if kind is not None:
            text = "".join(f"if {each}: " for each in conditions[-1:]) + ast.unparse(node)
            lines = (node.lineno, node.end_lineno)
            found.append(WayOut(module, function.name, lines, kind, text))
    return found


def _returns(node: ast.AST, conditions: tuple[str, ...]):
    """Each return below a node, not of functions inside it, and what it stands under."""
    for name, value in ast.iter_fields(node):
        under = conditions
        if isinstance(node, ast.If) and name in ("body", "orelse"):
            test = ast.unparse(node.test)
            under = (*conditions, test if name == "body" else f"not ({test})")
        elif isinstance(node, ast.ExceptHandler):
            under = (*conditions, ast.unparse(node.type))
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.Return):
                yield child, under
            elif isinstance(child, ast.AST) and not isinstance(child, ast.FunctionDef):
                yield from _returns(child, under)
