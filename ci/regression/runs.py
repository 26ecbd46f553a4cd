"""A folder of finished runs of both arms, which the same command goes on from.

`ARM-N.json` is the summary of a run. It is written last and in one step, and the ledger has it: a
run counts as whole by both.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import ledger
from .comparison import ARMS, FIRST_SERVER, say
from .errors import Refused, RunFailed
from .files import read_object, write_object


def begin(work: Path, key: dict[str, Any], result: Path | None = None) -> dict[str, Any]:
    """Make `work` the folder of runs of the setting `key`, which is returned as JSON holds it.

    Raises Refused where runs of another setting lie there, where runs are not those of the ledger,
    or where `result` was made of others.
    """
    key = json.loads(json.dumps(key))
    work.mkdir(parents=True, exist_ok=True)
    if result is not None:
        ledger.follows(work, result)
    settings = work / "settings.json"
    # What was begun and gave no whole run, as one without its data, is nothing to be pooled with.
    if not any(kept(work).values()):
        (work / FIRST_SERVER).unlink(missing_ok=True)
    elif read_object(settings, ledger.ANEW) != key:
        raise Refused(
            f"{work} holds runs of another setting, and runs of two settings cannot be pooled; "
            "choose another --output"
        )
    write_object(settings, key)
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


@contextlib.contextmanager
def attempt(work: Path, arm: str, number: int) -> Iterator[None]:
    """The ledger tells that this run was begun, and how it ended if it did not become whole."""
    run = f"{arm}-{number}"
    ledger.add(work, run, ledger.BEGUN)
    try:
        yield
    except KeyboardInterrupt:
        ledger.add(work, run, "interrupted")
        raise
    except (Refused, RunFailed) as error:
        kind = "refused" if isinstance(error, Refused) else "failed"
        said = str(error).partition("\n")[0]
        ledger.add(work, run, f"{kind}: {said}")
        raise
    except Exception as error:
        ledger.add(work, run, f"failed: {error!r}")
        raise


def keep(work: Path, arm: str, number: int, summary: dict[str, Any]) -> None:
    """This run is whole."""
    target = _summary(work, arm, number)
    unfinished = write_object(_unfinished(target), summary)
    files = {target.name: ledger.file_digest(unfinished)}
    if log := summary.get("log"):
        files[log] = ledger.file_digest(work / log)
    ledger.add(work, target.stem, ledger.WHOLE, files=files)
    unfinished.replace(target)


def kept(work: Path) -> dict[str, list[dict[str, Any]]]:
    """{arm: summaries of all whole runs, by number}, those of earlier commands too.

    Raises Refused where one is not as it was, or is none of the ledger's.
    """
    entries = ledger.read(work)
    known = ledger.whole(entries)
    for run, files in known.items():  # killed between the ledger and the last step
        target = work / f"{run}.json"
        unfinished = _unfinished(target)
        if unfinished.exists() and ledger.file_digest(unfinished) == files[target.name]:
            unfinished.replace(target)
    ledger.prove(work, entries)
    found: dict[str, list[dict[str, Any]]] = {}
    for arm in ARMS:
        if strange := [path for path in work.glob(f"{arm}-*.json") if path.stem not in known]:
            raise Refused(
                f"{strange[0]} is of no run that {work / ledger.NAME} tells of: a run is made "
                "here, never copied here; take the file away"
            )
        numbers = sorted(int(run.rpartition("-")[2]) for run in known if run.startswith(f"{arm}-"))
        found[arm] = [read_object(_summary(work, arm, number), ledger.ANEW) for number in numbers]
    return found


def declined(kept: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Why calls of the patched arm took the pristine path, in any run, each reason once."""
    return sorted({line for run in kept["patched"] for line in run["declined"]})


def _summary(work: Path, arm: str, number: int) -> Path:
    return work / f"{arm}-{number}.json"


def _unfinished(target: Path) -> Path:
    return target.with_suffix(".json.unfinished")
