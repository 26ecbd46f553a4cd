"""A folder of finished runs of both arms, which the same command goes on from.

`ARM-N.json` is written last and in one step: a run counts as whole by that file.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .comparison import ARMS, FIRST_SERVER, say
from .errors import Refused


def begin(work: Path, key: dict[str, Any]) -> dict[str, Any]:
    """Make `work` the folder of runs of the setting `key`, which is returned as JSON holds it.

    Raises Refused where runs of another setting lie there.
    """
    key = json.loads(json.dumps(key))
    work.mkdir(parents=True, exist_ok=True)
    settings = work / "settings.json"
    # What was begun and gave no whole run, as one without its data, is nothing to be pooled with.
    if not any(kept(work).values()):
        (work / FIRST_SERVER).unlink(missing_ok=True)
    elif json.loads(settings.read_text()) != key:
        raise Refused(
            f"{work} holds runs of another setting, and runs of two settings cannot be pooled; "
            "choose another --work, or remove that folder"
        )
    settings.write_text(json.dumps(key, indent=1))
    return key


def missing(work: Path, rounds: int) -> Iterator[tuple[str, int]]:
    """Arm and number of each run that is not there yet, A B A B; says how far it has come."""
    plan = [(arm, number) for number in range(1, rounds + 1) for arm in ARMS]
    for step, (arm, number) in enumerate(plan, 1):
        title = f"== run {step} of {len(plan)}: {arm} {number}"
        if _summary(work, arm, number).exists():
            say(f"{title}: kept from before")
            continue
        say(title)
        yield arm, number


def keep(work: Path, arm: str, number: int, summary: dict[str, Any]) -> None:
    """This run is whole."""
    target = _summary(work, arm, number)
    unfinished = target.with_suffix(".json.unfinished")
    unfinished.write_text(json.dumps(summary, indent=1))
    unfinished.replace(target)


def kept(work: Path) -> dict[str, list[dict[str, Any]]]:
    """{arm: summaries of all whole runs, by number}, those of earlier commands too."""
    return {
        arm: [
            json.loads(path.read_text())
            for path in sorted(
                work.glob(f"{arm}-*.json"), key=lambda path: int(path.stem.rpartition("-")[2])
            )
        ]
        for arm in ARMS
    }


def declined(kept: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Why calls of the patched arm took the pristine path, each reason once."""
    return sorted({line for run in kept["patched"] for line in run["declined"]})


def _summary(work: Path, arm: str, number: int) -> Path:
    return work / f"{arm}-{number}.json"
