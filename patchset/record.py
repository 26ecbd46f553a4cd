"""Wheel metadata: a distribution's RECORD rows for the files that this tool changes and lays."""

import csv
import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from patchset.diff import split
from patchset.series import OVERLAY


class Proof(NamedTuple):
    """The second and third column of a row."""

    algorithm: str
    sized: bool
    encoded: bytes = b""

    def of(self, data: bytes) -> bytes:
        size = b"%d" % len(data) if self.sized else b""
        return b"%s=%s,%s" % (self.algorithm.encode(), self._digest(data), size)

    def holds(self, data: bytes) -> bool:
        return self._digest(data) == self.encoded

    def _digest(self, data: bytes) -> bytes:
        digest = hashlib.new(self.algorithm, data).digest()
        return urlsafe_b64encode(digest).rstrip(b"=")


def repaired(record: bytes, touched: Collection[str], files: Mapping[str, bytes]) -> bytes:
    """`record` for a tree in which the touched and the overlay files are exactly `files`.

    A pure function of the rows and the bytes, so going back to the pristine bytes gives the
    pristine RECORD: order, quoting, line ends and absent hashes stay, and new rows go above a
    touched one, so that a last line without a newline stays the last.
    """
    lines = split(record)
    paths = [path_of(line) for line in lines]
    if not set(touched) & set(paths):
        return record  # an editable install, or a distribution that does not own the tree
    out, laid = list[bytes](), False
    for path, line in zip(paths, lines, strict=True):
        if path.startswith(OVERLAY + "/"):
            continue
        if path in touched and not laid:
            laid = True
            end = b"\r\n" if line.endswith(b"\r\n") else b"\n"
            for new in sorted(set(files) - set(touched)):
                proof = Proof("sha256", sized=True).of(files[new])
                out.append(b"%s,%s%s" % (new.encode(), proof, end))
        out.append(_updated(line, files[path]) if path in touched and path in files else line)
    return b"".join(out)


def holds(record: bytes, path: str, contents: Iterable[bytes]) -> bool:
    """Whether the row of `path`, if there is one, is that of one of `contents`."""
    line = next((line for line in split(record) if path_of(line) == path), None)
    return line is None or any(_updated(line, data) == line for data in contents)


def path_of(line: bytes) -> str:
    """The path of a row, empty where it has none that could be read."""
    try:
        if line.startswith(b'"'):
            return next(csv.reader([line.decode()]), [""])[0]
        return line.rstrip(b"\r\n").partition(b",")[0].decode()
    except (ValueError, csv.Error):  # not UTF-8, or a huge cell
        return ""


def proof_of(line: bytes) -> Proof | None:
    """What a row proves a file with, None where it has no hash that could be checked."""
    cells = line.rstrip(b"\r\n").rsplit(b",", 2)
    name, _, encoded = cells[1].partition(b"=") if len(cells) == 3 else (b"", b"", b"")
    algorithm = name.decode(errors="replace")
    if not encoded or algorithm not in hashlib.algorithms_guaranteed - _OF_ANY_LENGTH:
        return None
    return Proof(algorithm, sized=cells[2] != b"", encoded=encoded)


def _updated(line: bytes, data: bytes) -> bytes:
    proof = proof_of(line)
    if not proof:
        return line
    body = line.rstrip(b"\r\n")
    return b"%s,%s%s" % (body.rsplit(b",", 2)[0], proof.of(data), line[len(body) :])


_OF_ANY_LENGTH = {"shake_128", "shake_256"}
