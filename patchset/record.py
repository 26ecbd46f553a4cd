"""Wheel metadata: a distribution's RECORD rows for the files that this tool changes and lays."""

import csv
import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Collection, Mapping
from pathlib import Path

from patchset.diff import split
from patchset.series import OVERLAY


def repaired(record: bytes, touched: Collection[str], files: Mapping[str, bytes]) -> bytes:
    """`record` for a tree in which the touched and the overlay files are exactly `files`.

    A pure function of the rows and the bytes, so going back to the pristine bytes gives the
    pristine RECORD: order, quoting, line ends and absent hashes stay, and new rows go above a
    touched one, so that a last line without a newline stays the last.
    """
    rows = split(record)
    paths = [_path(row) for row in rows]
    if not set(touched) & set(paths):
        return record  # an editable install, or a distribution that does not own the tree
    out, laid = list[bytes](), False
    for path, row in zip(paths, rows, strict=True):
        if path.startswith(OVERLAY + "/"):
            continue
        if path in touched and not laid:
            laid = True
            end = b"\r\n" if row.endswith(b"\r\n") else b"\n"
            for new in sorted(set(files) - set(touched)):
                out.append(b"%s,%s%s" % (new.encode(), _proof(files[new], b"sha256", True), end))
        out.append(_updated(row, files[path]) if path in touched and path in files else row)
    return b"".join(out)


def mismatched(record: bytes, root: Path) -> list[str]:
    """The paths below `root` whose bytes are absent or not what their row says."""
    rows = {_path(row): row for row in split(record)}
    files = {path: root / path for path in rows}
    return [
        path
        for path, file in files.items()
        if not file.is_file() or _updated(rows[path], file.read_bytes()) != rows[path]
    ]


def _path(row: bytes) -> str:
    text = row.decode()
    return next(csv.reader([text]), [""])[0] if text.startswith('"') else text.partition(",")[0]


def _updated(row: bytes, data: bytes) -> bytes:
    body = row.rstrip(b"\r\n")
    path, proof, size = body.rsplit(b",", 2)
    algorithm = proof.partition(b"=")[0]
    if not proof or algorithm.decode() not in hashlib.algorithms_available:
        return row
    return b"%s,%s%s" % (path, _proof(data, algorithm, bool(size)), row[len(body) :])


def _proof(data: bytes, algorithm: bytes, sized: bool) -> bytes:
    digest = hashlib.new(algorithm.decode(), data).digest()
    encoded = urlsafe_b64encode(digest).rstrip(b"=")
    return b"%s=%s,%s" % (algorithm, encoded, b"%d" % len(data) if sized else b"")
