"""Per-question logs: what one run of one arm answered, as JSON lines.

Each line holds at least `doc_id` (an integer or a text) and `correct` (true/false or 1/0). Known
beside them, on every line or on none: `invalid` (no number in the answer), `finish_reason` ("stop",
or "length": cut off), and what has to be the same in all logs that are compared: `prompt_hash`,
`target` and `model`. A request that failed is no wrong answer: a log with an `error` or
another `finish_reason` (sglang answers 200 with "abort") is refused.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import Refused

GSM8K = 1319  # questions of the test set
FINISHED = ("stop", "length")  # the finish reasons of a whole answer
SHOWN = 3  # question ids named in a message
ALIKE = ("prompt_hash", "target", "model")
LINE = 'one object like {"doc_id": 7, "correct": true}'


@dataclass(frozen=True)
class Run:
    """One run of one arm. `invalid` and `truncated` are None where the log does not tell."""

    name: str
    correct: dict[str, bool]
    invalid: dict[str, bool] | None = None
    truncated: dict[str, bool] | None = None
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)  # {one of ALIKE: {question: it}}

    @property
    def accuracy(self) -> float:
        return sum(self.correct.values()) / len(self.correct)


@dataclass
class _Columns:
    correct: dict[str, bool] = field(default_factory=dict)
    invalid: dict[str, bool] = field(default_factory=dict)
    truncated: dict[str, bool] = field(default_factory=dict)
    asked: dict[str, dict[str, Any]] = field(default_factory=lambda: {key: {} for key in ALIKE})


def read(path: Path) -> Run:
    """Raises Refused, naming the file and line, for anything that is no whole log of a run."""
    found = _Columns()
    for where, row in _rows(path):
        doc = _doc_id(row, where)
        if doc in found.correct:
            raise Refused(f"{where}: question {doc} is there twice; a log holds one run of one arm")
        if row.get("error"):
            raise Refused(
                f"{where}: the request of question {doc} failed ({row['error']}); that is no wrong "
                "answer: repeat the run"
            )
        found.correct[doc] = _truth(row, "correct", where)
        if "invalid" in row:
            found.invalid[doc] = _truth(row, "invalid", where)
        if (reason := row.get("finish_reason")) is not None:
            if reason not in FINISHED:
                raise Refused(
                    f"{where}: question {doc} ended by {json.dumps(reason)}, not by "
                    f"{' or '.join(FINISHED)}: it was not answered, which is no wrong answer; "
                    "repeat the run"
                )
            found.truncated[doc] = reason == "length"
        for key, told in found.asked.items():
            if row.get(key) is not None:
                told[doc] = row[key]
    if not found.correct:
        raise Refused(f"{path}: holds no question")
    return Run(
        str(path),
        found.correct,
        _all_or_none("invalid", found.invalid, found.correct, path),
        _all_or_none("finish_reason", found.truncated, found.correct, path),
        {
            key: column
            for key, told in found.asked.items()
            if (column := _all_or_none(key, told, found.correct, path))
        },
    )


def _all_or_none(
    key: str, column: dict[str, Any], all_of: dict[str, bool], path: Path
) -> dict[str, Any] | None:
    if column and (lacking := all_of.keys() - column.keys()):
        raise Refused(
            f"{path}: {len(lacking)} of {len(all_of)} questions are without `{key}` "
            f"({_named(lacking)}), so it could not be compared; give it for all or for none"
        )
    return column or None


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows begins a file with a mark of it
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise Refused(
            f"{path}: cannot be read: {why}; give the log of one run, as FOLDER/pristine-1.jsonl "
            "of `ci/gsm8k.py run --output FOLDER.json`"
        ) from None
    # Not splitlines: a JSON text may hold U+2028 and other ends of lines as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            said = str(error).partition("; use ")[0]  # not what Python advises its programs
            raise Refused(f"{where}: no JSON: {said}; a line is {LINE}") from None
        if not isinstance(row, dict):
            raise Refused(f"{where}: not a JSON object; a line is {LINE}")
        yield where, row


def _doc_id(row: dict[str, Any], where: str) -> str:
    doc = row.get("doc_id")
    if isinstance(doc, bool) or not isinstance(doc, (int, str)) or doc == "":
        raise Refused(f"{where}: `doc_id` is {json.dumps(doc)}, not an integer or a text")
    return str(doc)


def _truth(row: dict[str, Any], key: str, where: str) -> bool:
    value = row.get(key)
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    raise Refused(f"{where}: `{key}` is {json.dumps(value)}, not true, false, 1 or 0")


def refuse_twice(paths: Iterable[Path]) -> None:
    """A run beside itself has no noise, and a patched one no loss: raises Refused.

    Logs of the same content are another matter: servers that repeat themselves write such.
    """
    seen: dict[Path, Path] = {}
    for path in paths:
        if first := seen.get(path.resolve()):
            raise Refused(
                f"{path} is the same file as {first}: compared with itself a run differs in "
                "nothing; give the log of each run once"
            )
        seen[path.resolve()] = path


def same_questions(runs: Iterable[Run]) -> None:
    """Pairing needs each question in each run, asked alike of one model: raises Refused."""
    first, *others = runs
    for other in others:
        lacking = first.correct.keys() - other.correct.keys()
        beyond = other.correct.keys() - first.correct.keys()
        if lacking or beyond:
            parts = [
                f"{len(ids)} only in {name} ({_named(ids)})"
                for ids, name in ((lacking, first.name), (beyond, other.name))
                if ids
            ]
            raise Refused(
                f"{first.name} and {other.name} hold different questions: {'; '.join(parts)}; "
                "they are compared in pairs, so give runs of one --limit over one --data"
            )
        for key in first.asked.keys() & other.asked.keys():
            _same(key, first, other)


def _same(key: str, first: Run, other: Run) -> None:
    before, after = first.asked[key], other.asked[key]
    if differing := [doc for doc in before if before[doc] != after[doc]]:
        doc = sorted(differing)[0]
        raise Refused(
            f"{first.name} and {other.name} differ in `{key}` of {len(differing)} questions "
            f"({doc}: {json.dumps(before[doc])} and {json.dumps(after[doc])}): not the same was "
            "asked, so the answers cannot be compared; give runs of one setting"
        )


def _named(ids: Iterable[str]) -> str:
    first = sorted(ids)
    return ", ".join(first[:SHOWN] + ["..."] * (len(first) > SHOWN))


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """All of it or nothing: a log that is there is a whole run."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    unfinished.replace(path)
