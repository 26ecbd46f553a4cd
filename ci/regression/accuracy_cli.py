"""GSM8K accuracy, pristine against patched.

run      drive both servers, A B A B, look after 2, 4 and 12 runs of each arm, stop at a verdict
decide   the verdict from saved per-question logs alone
combine  one verdict over the results of a family of comparisons (Holm)
power    what a number of questions and runs can show
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import exits, report
from .alone import alone
from .commands import add_result, answered, finish, work_of
from .ledger import file_digest
from .options import at_least, points, positive, seconds
from .plan import LOOKS
from .questions import GSM8K

if TYPE_CHECKING:
    from .decide import Rule

NAME = "gsm8k"
FAMILY = "comparisons that `combine` will judge together (default: 1)"
LOGS = (
    "per-question logs: JSON lines, one object a question, with at least `doc_id` (integer or "
    "text) and `correct` (true/false or 1/0); all logs must hold the same questions"
)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="ci/gsm8k.py", description=__doc__, epilog=exits.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    decide = _command(commands, "decide", "the verdict from saved per-question logs", LOGS)
    for arm in ("pristine", "patched"):
        decide.add_argument(
            f"--{arm}", type=Path, action="append", required=True, metavar="F",
            help=f"the log of one {arm} run; repeat for each run",
        )  # fmt: skip
    _add_rule(decide)
    decide.add_argument(
        "--floor", type=points, metavar="POINTS", help="a pristine arm below this is no baseline"
    )
    decide.add_argument("--json", action="store_true", help="one JSON object on stdout")
    combine = _command(commands, "combine", "one verdict over several configurations", "")
    combine.add_argument("results", nargs="+", type=Path, metavar="F", help="results of run")
    combine.add_argument("--json", action="store_true")
    power = _command(commands, "power", "what a number of questions can show", "")
    power.add_argument("--questions", type=positive, default=GSM8K)
    power.add_argument("--runs", type=int, choices=LOOKS, default=LOOKS[0], help="of each arm")
    power.add_argument("--family", type=positive, default=1, metavar="N", help=FAMILY)
    return top


def _add_rule(command: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Fixed before the first run."""
    command.add_argument(
        "--margin", type=points, metavar="POINTS", default=0.01,
        help="of accuracy: the loss that a PASS excludes (default: 1)",
    )  # fmt: skip
    command.add_argument("--family", type=positive, default=1, metavar="N", help=FAMILY)
    command.add_argument(
        "--start-noise", type=points, metavar="POINTS",
        help="of accuracy: what a server's start alone shifts, as `combine` found it; default: "
        "what the pristine runs of this comparison show",
    )  # fmt: skip


def _add_run(commands: Any) -> None:
    from . import comparison

    run = _command(commands, "run", "drive both servers and decide", "")
    comparison.add_arguments(run)
    asked = run.add_argument_group("the evaluation")
    asked.add_argument("--limit", type=positive, help="only the first N questions")
    asked.add_argument(
        "--runs", type=positive, default=LOOKS[-1], metavar="N",
        help=f"the most of each arm (default: {LOOKS[-1]}). Looked at after "
        f"{', '.join(map(str, LOOKS))}; further runs are made only if they may settle what is open",
    )  # fmt: skip
    asked.add_argument(
        "--data", type=Path, help="folder with train.jsonl and test.jsonl; default: the hub"
    )
    asked.add_argument(
        "--shots", type=functools.partial(at_least, 0), metavar="N",
        help="default: the preset's; 25 for NSA models. Too few for their index_topk are refused: "
        "of the hub's questions at once, of --data before a server is started if the model's "
        "tokenizer is on this machine, else (and in a chat) by the first answer",
    )  # fmt: skip
    asked.add_argument("--protocol", choices=("completions", "chat"), default="completions")
    asked.add_argument(
        "--max-tokens", type=positive,
        help="of an answer, thoughts included; default: the preset's, more for chat",
    )  # fmt: skip
    asked.add_argument("--concurrency", type=positive, default=64)
    asked.add_argument("--request-timeout", type=seconds, default=1800, metavar="SECONDS")
    _add_rule(asked)
    add_result(run, NAME, planned="the commands and the power")


def _command(commands: Any, name: str, what: str, about: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(
        name, help=what, description=f"{what}. {about}".rstrip(), epilog=exits.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    return made


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    does = {"run": _run, "decide": _decide, "combine": _combine, "power": _power}
    as_json = getattr(given, "json", False)
    return answered(NAME, functools.partial(does[given.command], given), as_json)


def _run(given: argparse.Namespace) -> int:
    from . import accuracy, comparison, evaluate, servers

    compared = comparison.from_arguments(given)
    chosen = compared.preset
    settings = evaluate.Settings(
        model=given.model or chosen.model,
        data=given.data,
        shots=chosen.shots if given.shots is None else given.shots,
        limit=given.limit,
        protocol=given.protocol,
        max_tokens=given.max_tokens
        or (chosen.chat_max_tokens if given.protocol == "chat" else chosen.max_tokens),
        concurrency=given.concurrency,
        request_seconds=given.request_timeout,
        index_topk=chosen.index_topk,
    )
    accuracy.refuse_few_shots(settings)
    if given.dry_run:
        from . import power

        print(compared.shown())
        print(power.text(evaluate.count(settings), LOOKS[0], given.family))
        return exits.PASS
    work = work_of(given)
    with alone(given.output, work), servers.terminated_like_interrupted():
        decision, beside = accuracy.run(
            compared, settings, given.runs, work, _rule(given, chosen.floor), given.output
        )
        return finish(NAME, given, compared, decision, beside, report.accuracy)


def _rule(given: argparse.Namespace, floor: float) -> Rule:
    from .decide import Rule
    from .starts import known

    starts = None if given.start_noise is None else known(given.start_noise)
    return Rule(given.margin, floor, given.family, starts)


def _decide(given: argparse.Namespace) -> int:
    from . import decide, questions

    logs = [*given.pristine, *given.patched]
    questions.refuse_twice(logs)
    decision = decide.decide(
        [questions.read(path) for path in given.pristine],
        [questions.read(path) for path in given.patched],
        _rule(given, decide.FLOOR if given.floor is None else given.floor),
    )
    said = {**decision.as_json(), "logs": {str(path): file_digest(path) for path in logs}}
    print(json.dumps(said, indent=1) if given.json else report.accuracy(said))
    return exits.OF_VERDICT[decision.verdict]


def _combine(given: argparse.Namespace) -> int:
    from . import family

    decision = family.combine(family.read(given.results))
    said = "\n".join([f"{decision.verdict}: {decision.message}", *decision.reasons])
    print(json.dumps(decision.as_json(), indent=1) if given.json else said)
    return exits.OF_VERDICT[decision.verdict]


def _power(given: argparse.Namespace) -> int:
    from . import power

    print(power.text(given.questions, given.runs, given.family))
    return exits.PASS
