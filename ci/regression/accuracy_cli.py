"""GSM8K accuracy, pristine against patched.

run      drive both servers, A B A B, evaluate by lm-eval, decide, write the result
decide   the verdict from saved per-question logs alone
combine  one verdict over the results of several configurations (Holm)
power    what a number of questions and runs can show
"""

import argparse
import functools
import json
from pathlib import Path
from typing import Any

from . import exits, report
from .commands import add_result, answered, finish, work_of
from .errors import Refused
from .options import at_least, points, positive, seconds
from .questions import GSM8K

NAME = "gsm8k"
MARGIN = "points of accuracy; default: from A/A noise"
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
    decide.add_argument("--margin", type=points, metavar="POINTS", help=MARGIN)
    decide.add_argument(
        "--floor", type=points, metavar="POINTS", help="a pristine arm below this is no baseline"
    )
    decide.add_argument("--json", action="store_true", help="one JSON object on stdout")
    combine = _command(commands, "combine", "one verdict over several configurations", "")
    combine.add_argument("results", nargs="+", type=Path, metavar="F", help="results of run")
    combine.add_argument("--json", action="store_true")
    power = _command(commands, "power", "what a number of questions can show", "")
    power.add_argument("--questions", type=positive, default=GSM8K)
    power.add_argument("--runs", type=positive, default=1)
    return top


def _add_run(commands: Any) -> None:
    from . import comparison

    run = _command(commands, "run", "drive both servers and decide", "")
    comparison.add_arguments(run)
    asked = run.add_argument_group("the evaluation")
    asked.add_argument("--limit", type=positive, help="only the first N questions")
    asked.add_argument("--runs", type=positive, default=2, help="of each arm (default: 2)")
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
    asked.add_argument("--margin", type=points, metavar="POINTS", help=MARGIN)
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
        print(power.text(evaluate.count(settings), given.runs))
        return exits.PASS
    with servers.terminated_like_interrupted():
        decision, beside = accuracy.run(
            compared, settings, given.runs, work_of(given), given.margin
        )
    return finish(NAME, given, compared, decision, beside, report.accuracy)


def _decide(given: argparse.Namespace) -> int:
    from . import decide, questions

    questions.refuse_twice([*given.pristine, *given.patched])
    decision = decide.decide(
        [questions.read(path) for path in given.pristine],
        [questions.read(path) for path in given.patched],
        margin=given.margin,
        floor=decide.FLOOR if given.floor is None else given.floor,
    )
    said = decision.as_json()
    print(json.dumps(said, indent=1) if given.json else report.accuracy(said))
    return exits.OF_VERDICT[decision.verdict]


def _combine(given: argparse.Namespace) -> int:
    from . import decide

    decision = decide.combine({str(path): _result(path) for path in given.results})
    said = "\n".join([f"{decision.verdict}: {decision.message}", *decision.reasons])
    print(json.dumps(decision.as_json(), indent=1) if given.json else said)
    return exits.OF_VERDICT[decision.verdict]


def _result(path: Path) -> dict[str, Any]:
    """A result of `run` or `decide --json`, with all that `combine` reads of it."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise Refused(
            f"{path}: cannot be read: {why}; give what `run --output` or `decide --json` wrote"
        ) from None
    try:
        result: dict[str, Any] = json.loads(text)
        found = result["statistics"]
        rates = [found[name] for name in ("invalid", "truncated") if found.get(name)]
        shares = [found["mcnemar_p"]]
        shares += [rate[key] for rate in rates for key in ("pristine", "patched", "p")]
        known = result["verdict"] in exits.OF_VERDICT and isinstance(result["message"], str)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{path}: no result of `run` or `decide --json`: {error!r}") from None
    if not known:
        raise Refused(f"{path}: no verdict in it that `run` or `decide --json` gives")
    for share in shares:
        if type(share) not in (int, float) or not 0 <= share <= 1:
            raise Refused(f"{path}: {json.dumps(share)} where its statistics have a number 0 to 1")
    if not isinstance(result.get("further_runs"), (int, type(None))):
        raise Refused(f"{path}: `further_runs` is {result['further_runs']!r}, not a number or null")
    return result


def _power(given: argparse.Namespace) -> int:
    from . import power

    print(power.text(given.questions, given.runs))
    return exits.PASS
