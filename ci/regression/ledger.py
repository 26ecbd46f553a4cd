"""What became of every run that was begun in a folder: never retried until it is green.

`ledger.jsonl` is only ever added to. Each line has the hash of the line before it, so that no line
can be taken out or changed. The line of a whole run has the hashes of its files, so that no run can
be taken out, changed, or stand in for another. A result keeps the ledger's last hash, so that a
folder begun anew beside it is seen. Who removes both begins anew, and nobody can tell.
"""

import hashlib
import json
import os
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .errors import Refused

NAME = "ledger.jsonl"
OPENED, BEGUN, WHOLE = "opened", "begun", "whole"
ANEW = "begin anew with another --output"


def read(work: Path) -> list[dict[str, Any]]:
    """All entries, proven against each other; raises Refused."""
    path = work / NAME
    if not path.exists():
        return []
    try:
        *lines, rest = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path}: cannot be read: {error}; {ANEW}") from None
    if rest or not lines:
        raise Refused(f"{path} ends in half a line, so it does not tell all runs; {ANEW}")
    entries, before = [], ""
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
            known = entry["entry"] == number and entry["before"] == before
            known = known and isinstance(entry["outcome"], str) and isinstance(entry["run"], str)
        except (ValueError, LookupError, TypeError):
            known = False
        if not known:
            raise Refused(
                f"{path}:{number + 1} does not follow the line before it: the ledger is only ever "
                f"added to, and here it was changed; {ANEW}"
            )
        entries.append(entry)
        before = _hash(line.encode())
    return entries


def add(work: Path, run: str, outcome: str, **further: Any) -> None:
    """One more entry, on disk when this returns."""
    path = work / NAME
    lines = path.read_text().splitlines() if path.exists() else []
    if not lines and outcome != OPENED:
        add(work, "", OPENED, folder=uuid.uuid4().hex)
        lines = path.read_text().splitlines()
    entry = {
        "entry": len(lines),
        "run": run,
        "outcome": outcome,
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "process": os.getpid(),
        **further,
        "before": _hash(lines[-1].encode()) if lines else "",
    }
    with open(path, "a") as ledger:
        ledger.write(json.dumps(entry) + "\n")
        ledger.flush()
        os.fsync(ledger.fileno())


def whole(entries: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """{run: {file: sha256}} of the whole runs."""
    return {entry["run"]: entry["files"] for entry in entries if entry["outcome"] == WHOLE}


def prove(work: Path, entries: list[dict[str, Any]]) -> None:
    """Each whole run is there as it was; raises Refused."""
    for run, files in whole(entries).items():
        for name, digest in files.items():
            try:
                found = file_digest(work / name)
            except OSError as error:
                raise Refused(
                    f"{work / name}: {error.strerror}; {NAME} has it as a file of {run}, a whole "
                    f"run, and no run is ever left out: put it back, or {ANEW}"
                ) from None
            if found != digest:
                raise Refused(
                    f"{work / name} is not what {run} wrote (sha256 {found[:12]}, the ledger has "
                    f"{digest[:12]}): put it back, or {ANEW}"
                )


def seal(work: Path) -> dict[str, Any]:
    """What a result keeps of it."""
    entries = read(work)
    attempts: dict[str, int] = {}
    for entry in entries:
        if entry["outcome"] != OPENED:
            outcome = entry["outcome"].partition(":")[0]
            attempts[outcome] = attempts.get(outcome, 0) + 1
    head = _hash(json.dumps(entries[-1]).encode()) if entries else ""
    folder = entries[0]["folder"] if entries else ""
    return {"folder": folder, "entries": len(entries), "head": head, "outcomes": attempts}


def follows(work: Path, result: Path) -> None:
    """The ledger goes on from what `result` keeps of it, if that is there; raises Refused."""
    try:
        sealed = json.loads(result.read_text())["ledger"]
        count, head = int(sealed["entries"]), sealed["head"]
    except (OSError, ValueError, LookupError, TypeError):
        return
    entries = read(work)
    if not 0 < count <= len(entries) or _hash(json.dumps(entries[count - 1]).encode()) != head:
        raise Refused(
            f"{result} was made of runs that {work / NAME} does not have: a result is never made "
            f"again from other runs; {ANEW}, or put the folder back"
        )


def file_digest(path: Path) -> str:
    return _hash(path.read_bytes())


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
