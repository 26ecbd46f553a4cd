"""What both commands that drive servers share: options of a result, and how a run is answered."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import evidence, exits, report
from .errors import Refused, RunFailed
from .options import result as result_path

if TYPE_CHECKING:  # what these need of the environment, --help does not
    from .comparison import Comparison
    from .decide import Decision


def add_result(run: argparse.ArgumentParser, name: str, planned: str) -> None:
    """The options of where a run's result goes; `planned`: what --dry-run shows."""
    result = run.add_argument_group("the result")
    result.add_argument(
        "--output", type=result_path, default=Path(f"{name}.json"), metavar="F.json",
        help="JSON; Markdown beside it as .md",
    )  # fmt: skip
    result.add_argument("--work", type=Path, help="folder of runs; default: OUTPUT without .json")
    result.add_argument(
        "--evidence", action="store_true", help=f"also evidence/{evidence.name(name)}"
    )
    result.add_argument("--dry-run", action="store_true", help=f"show {planned}")


def work_of(given: argparse.Namespace) -> Path:
    """The folder that keeps finished runs."""
    return Path(given.work or given.output.with_suffix(""))


def finish(
    name: str,
    given: argparse.Namespace,
    compared: Comparison,
    decision: Decision,
    beside: dict[str, Any],
    markdown: Callable[[dict[str, Any]], str],
) -> int:
    """Write the result where it was asked for, say the verdict, and give its exit code."""
    result = {
        **decision.as_json(),
        "measured_on": evidence.measured_on(compared),
        "written_by": {
            "process": os.getpid(),
            "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        },
        **beside,
    }
    report.write(given.output, result, markdown(result))
    if given.evidence:
        evidence.write(name, compared, result)
    print(f"{decision.verdict}: {decision.message}\n{given.output}")
    return exits.OF_VERDICT[decision.verdict]


def answered(name: str, does: Callable[[], int], as_json: bool = False) -> int:
    """The exit code of `does`; what stops it is said in a sentence.

    Only a fault of this program gives a traceback. It is no verdict either, so not exit code 1,
    which is Python's own for one.
    """
    try:
        return _with_packages(does)
    except Refused as refusal:
        if as_json:
            print(json.dumps({"verdict": "REFUSED", "message": str(refusal)}))
        print(f"{name}: refused: {refusal}", file=sys.stderr)
        return exits.REFUSED
    except RunFailed as failure:
        print(f"{name}: the run failed: {failure}", file=sys.stderr)
        return exits.RUN_FAILED
    except OSError as error:  # no place to write, no memory: the machine's, and no verdict either
        print(f"{name}: the run failed: {error}", file=sys.stderr)
        return exits.RUN_FAILED
    except KeyboardInterrupt:
        print(f"{name}: interrupted; whole runs are kept", file=sys.stderr)
        return exits.INTERRUPTED
    except Exception:
        traceback.print_exc()
        print(f"{name}: the run failed by a fault of this program, see above", file=sys.stderr)
        return exits.RUN_FAILED


def _with_packages(does: Callable[[], int]) -> int:
    try:
        return does()
    except ModuleNotFoundError as missing:
        raise Refused(
            f"{sys.executable} has no {missing.name}: source ci/environment.sh rocm accuracy (or "
            "cpu), or python3 -m pip install --no-deps -r ci/requirements-accuracy.txt"
        ) from None
    except ImportError as misfit:
        raise Refused(
            f"{sys.executable} has packages that do not fit each other: {misfit}; python3 -m pip "
            "install --no-deps -r ci/requirements-accuracy.txt, and nothing newer"
        ) from None
