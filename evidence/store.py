"""Files of evidence: JSON Lines, first a header, then one row a line.

``<subject>.<device>.jsonl`` or ``<subject>.jsonl`` in this folder. The header holds what all rows
share, above all the ``key``. Results of ci/gsm8k.py and ci/throughput.py have no rows: they are
``<kind>.<model>.<release>.<slugs>.<device>.json``, one object each.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]


class Kept(NamedTuple):
    header: Row
    rows: list[Row]


def read(path: Path) -> Kept:
    first, *rest = path.read_text().splitlines()
    return Kept(json.loads(first), [json.loads(line) for line in rest])


def rows_of(path: Path) -> list[Row]:
    """The rows of a file; none where there is no such file."""
    return read(path).rows if path.exists() else []


def write(path: Path, header: Row, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *rows)))


def file_name(subject: str, device: str = "") -> str:
    return ".".join(part for part in (subject, device.replace(" ", "-"), "jsonl") if part)
