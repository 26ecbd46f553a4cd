"""The journal's plan: which files change from what to what, as it is written and read again."""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from patchset.staging import Owner, Step
from patchset.tree import Tree, is_inside

PLAN = "plan.json"
# Of the plan's form. Another one is refused: its words might mean something else.
VERSION = 2

_BLOB = re.compile(r"[0-9a-f]{40}")
_RECORD = re.compile(r"[^/]+\.dist-info/RECORD")


class Plan(NamedTuple):
    purpose: str  # the command
    steps: list[Step]


class UnreadableError(ValueError):
    """Not a plan of this tool, or not of this version of it."""


def packed(purpose: str, steps: Sequence[tuple[str, Step]]) -> bytes:
    """The plan with the steps' paths in the tree."""
    rows = [
        {"path": path, "before": step.before, "after": step.after, "owner": step.owner}
        for path, step in steps
    ]
    return json.dumps({"version": VERSION, "purpose": purpose, "steps": rows}).encode()


def parsed(data: bytes, tree: Tree) -> Plan:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError) as fault:
        raise UnreadableError("its plan.json is torn, or not JSON") from fault
    if not isinstance(said, dict) or said.get("version") != VERSION:
        raise UnreadableError("its plan.json is of another version of this tool")
    purpose, rows = said.get("purpose"), said.get("steps")
    if not (isinstance(purpose, str) and purpose.isprintable() and isinstance(rows, list)):
        raise UnreadableError("its plan.json does not say what was to be done")
    return Plan(purpose, [_step(row, tree) for row in rows])


def _step(row: Any, tree: Tree) -> Step:
    try:
        path, before, after, (mode, uid, gid) = (
            row[key] for key in ("path", "before", "after", "owner")
        )
        if not _is_path(path):
            raise UnreadableError(f"its plan.json names {path!r}, which is no file of this tree")
        right = all(blob is None or _BLOB.fullmatch(blob) for blob in (before, after))
        right = right and all(type(number) is int and number >= 0 for number in (mode, uid, gid))
        if not right or mode > 0o7777:
            raise ValueError(row)
        return Step(tree.file(path), before, after, Owner(mode, uid, gid))
    except UnreadableError:
        raise
    except (ValueError, TypeError, KeyError, IndexError) as fault:
        raise UnreadableError("a step in its plan.json has not the form of one") from fault


def _is_path(path: Any) -> bool:
    if not isinstance(path, str) or not is_inside(path):
        return False
    return path.startswith("sglang/") or _RECORD.fullmatch(path) is not None
