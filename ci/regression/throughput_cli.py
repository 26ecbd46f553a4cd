"""Throughput, pristine against patched: sglang's own bench_serving with random token ids.

Both servers in turn, A B A B A B; median ratios with 95 % intervals; nothing is said of a
difference below the noise. The verdict is on output tokens a second.
"""

import argparse

from . import exits, report
from .alone import alone
from .commands import add_result, answered, finish, work_of
from .errors import Refused
from .options import positive
from .workload import CONCURRENCIES, FEWEST_REPEATS, LENGTHS, PROMPTS_PER_CLIENT

NAME = "throughput"


def parser() -> argparse.ArgumentParser:
    from . import comparison

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
        "--repeats", type=positive, default=FEWEST_REPEATS,
        help=f"of both arms (default and fewest: {FEWEST_REPEATS})",
    )  # fmt: skip
    add_result(run, NAME, planned="the commands and the points")
    return top


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(positive(each) for each in text.split(","))


def _lengths(text: str) -> tuple[tuple[int, int], ...]:
    pairs = [each.split("/") for each in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text}: written like 1024/1024,8192/1024")
    return tuple((positive(before), positive(after)) for before, after in pairs)


def main(arguments: list[str] | None = None) -> int:
    # The defaults are those of modules that need scipy, so it may lack even for these.
    return answered(NAME, lambda: _run(parser().parse_args(arguments)))


def _run(given: argparse.Namespace) -> int:
    from . import comparison, servers, throughput

    compared = comparison.from_arguments(given)
    points = [
        throughput.Point(before, after, clients, given.prompts or PROMPTS_PER_CLIENT * clients)
        for before, after in given.lengths
        for clients in given.concurrency
    ]
    if given.repeats < FEWEST_REPEATS:
        raise Refused(f"{given.repeats} repeats show no spread; {FEWEST_REPEATS} are the fewest")
    if twice := sorted({p.name for p in points if points.count(p) > 1}):
        raise Refused(f"{', '.join(twice)}: twice in --lengths and --concurrency; once is measured")
    if given.dry_run:
        print(compared.shown())
        print("points:", ", ".join(point.name for point in points))
        return exits.PASS
    work = work_of(given)
    with alone(given.output, work), servers.terminated_like_interrupted():
        decision, beside = throughput.run(compared, points, given.repeats, work, given.output)
        return finish(NAME, given, compared, decision, beside, report.throughput)
