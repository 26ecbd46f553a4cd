"""Throughput, pristine against patched: sglang's own bench_serving with random token ids.

Both servers in turn, A B A B A B; median ratios with 95 % intervals; nothing is said of a
difference below the noise. The verdict is on output tokens a second.
"""

import argparse
import sys
from pathlib import Path

from . import exits, report, speed
from .accuracy_cli import positive
from .errors import Refused, RunFailed


def parser() -> argparse.ArgumentParser:
    from . import comparison
    from .throughput import CONCURRENCIES, LENGTHS, PROMPTS_PER_CLIENT

    top = argparse.ArgumentParser(
        prog="ci/throughput.py", description=__doc__, epilog=exits.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run", help="drive both servers and compare", description="Drive both servers and compare.",
        epilog=exits.HELP, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    comparison.add_arguments(run)
    asked = run.add_argument_group("the workload")
    asked.add_argument(
        "--lengths", type=_lengths, default=LENGTHS, metavar="IN/OUT,...",
        help=f"tokens (default: {','.join(f'{i}/{o}' for i, o in LENGTHS)})",
    )  # fmt: skip
    asked.add_argument(
        "--concurrency", type=_numbers, default=CONCURRENCIES, metavar="N,...",
        help=f"clients (default: {','.join(map(str, CONCURRENCIES))})",
    )  # fmt: skip
    asked.add_argument(
        "--prompts", type=positive, help=f"a point (default: {PROMPTS_PER_CLIENT} for each client)"
    )
    asked.add_argument(
        "--repeats", type=positive, default=speed.FEWEST_REPEATS,
        help=f"of both arms (default and fewest: {speed.FEWEST_REPEATS})",
    )  # fmt: skip
    result = run.add_argument_group("the result")
    result.add_argument(
        "--output", type=Path, default=Path("throughput.json"),
        help="JSON; Markdown beside it as .md",
    )  # fmt: skip
    result.add_argument("--work", type=Path, help="folder of runs; default: OUTPUT without .json")
    result.add_argument(
        "--evidence", action="store_true", help="also evidence/throughput.<model>.<device>.json"
    )
    result.add_argument("--dry-run", action="store_true", help="show the commands and the points")
    return top


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(positive(each) for each in text.split(","))


def _lengths(text: str) -> tuple[tuple[int, int], ...]:
    pairs = [each.split("/") for each in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text}: written like 1024/1024,8192/1024")
    return tuple((positive(before), positive(after)) for before, after in pairs)


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    try:
        return _run(given)
    except Refused as refusal:
        print(f"throughput: refused: {refusal}", file=sys.stderr)
        return exits.REFUSED
    except RunFailed as failure:
        print(f"throughput: the run failed: {failure}", file=sys.stderr)
        return exits.RUN_FAILED
    except KeyboardInterrupt:
        print("throughput: interrupted; whole runs are kept", file=sys.stderr)
        return exits.INTERRUPTED


def _run(given: argparse.Namespace) -> int:
    from . import comparison, evidence, servers, throughput

    compared = comparison.from_arguments(given)
    points = [
        throughput.Point(
            before, after, clients, given.prompts or throughput.PROMPTS_PER_CLIENT * clients
        )
        for before, after in given.lengths
        for clients in given.concurrency
    ]
    if given.dry_run:
        print(compared.shown())
        print("points:", ", ".join(point.name for point in points))
        return exits.PASS
    work = given.work or given.output.with_suffix("")
    with servers.terminated_like_interrupted():
        decision, beside = throughput.run(compared, points, given.repeats, work)
    result = {**decision.as_json(), **beside}
    report.write(given.output, result, report.throughput(result))
    if given.evidence:
        evidence.write("throughput", compared, result)
    print(f"{decision.verdict}: {decision.message}\n{given.output}")
    return exits.OF_VERDICT[decision.verdict]
