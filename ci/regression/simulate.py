"""How often the plan is wrong, and what it costs: whole families of comparisons, drawn and judged.

    python3 -m ci.regression.simulate [--families N]    the table of docs/accuracy.md

Drawn: JOBS comparisons of GSM8K. A share `noise` of the questions differs between two runs of one
server (twice as many are coins), and each start shifts the chance of these coins so that the
accuracy moves by `starts` points (one standard deviation). In the second of two families LOST
questions of one job, 1 point, are lost for good: the hardest loss to see, since further runs repeat
it and do not multiply it. A job goes on by itself as `run` does, and once more by what `combine`
says. Judged by the functions that judge real runs.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ci.entry import needs_first, run


def asked() -> argparse.Namespace:
    """What is asked for. --help needs no package, and a lacking one is named."""
    parser = argparse.ArgumentParser(
        prog="python3 -m ci.regression.simulate", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--families", type=int, default=200)
    given = parser.parse_args()
    needs_first("simulate", "numpy", "scipy")
    return given


if __name__ == "__main__":
    given = asked()

import numpy as np  # noqa: E402

from .decide import MARGIN  # noqa: E402
from .family import Member, judge, start_noise  # noqa: E402
from .look import Look, sequential_p  # noqa: E402
from .look import start_noise as shown  # noqa: E402
from .paired import Paired  # noqa: E402
from .plan import ALPHA, LOOKS  # noqa: E402
from .questions import GSM8K  # noqa: E402
from .report import table  # noqa: E402
from .starts import Starts, known, of_answers  # noqa: E402

JOBS = 38
LOST = 13
ROUNDS = 3  # of `combine`, and then of further runs


@dataclass(frozen=True)
class World:
    noise: float
    starts: float = 0.0  # points


WORLDS = (
    World(0.01), World(0.02), World(0.05), World(0.13),
    World(0.02, 0.2), World(0.02, 0.5), World(0.05, 0.5),
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """`right`: [arm, run, coin], all runs that the plan may ask for."""

    right: np.ndarray
    lost: int

    def look(self, runs: int) -> Look:
        pristine, patched = self.right[:, :runs]
        fell = patched.sum(axis=0, dtype=int) - pristine.sum(axis=0, dtype=int)
        sizes, counts = np.unique(fell, return_counts=True)
        found = dict(zip(sizes.tolist(), counts.tolist(), strict=True))
        alike = GSM8K - len(fell)
        found[0] = found.get(0, 0) + alike - self.lost
        if self.lost:
            found[-runs] = found.get(-runs, 0) + self.lost
        since = ([0, *LOOKS])[LOOKS.index(runs)]
        return Look(runs, Paired(found, runs), of_answers(pristine[since:], alike))

    def member(self, starts: Starts | None = None, before: Sequence[Look] = ()) -> Member:
        """Up to its own verdict, or to the plan's end."""
        looks = list(before)
        while (verdict := _verdict(looks, starts)) == "INCONCLUSIVE" and len(looks) < len(LOOKS):
            looks.append(self.look(LOOKS[len(looks)]))
        return Member(verdict, looks, MARGIN)


def _verdict(looks: Sequence[Look], starts: Starts | None) -> str:
    if sequential_p(looks, starts) < ALPHA / JOBS:
        return "REGRESSION"
    if looks and looks[-1].lower_bound(starts or shown(looks)) > -MARGIN:
        return "PASS"
    return "INCONCLUSIVE"


def drawn(numbers: np.random.Generator, world: World, lost: int = 0) -> Job:
    coins = round(2 * world.noise * GSM8K)
    shift = numbers.normal(0, world.starts / 100 / (2 * world.noise), (2, LOOKS[-1], 1))
    return Job(numbers.random((2, LOOKS[-1], coins)) < np.clip(0.5 + shift, 0, 1), lost)


def family(jobs: Sequence[Job], members: Sequence[Member]) -> tuple[list[str], Sequence[Member]]:
    """The verdicts once the jobs that are open have gone on, and all members then."""
    members = list(members)
    for _ in range(ROUNDS):
        verdicts = [each.verdict for each in judge(dict(enumerate(members))).values()]
        still_open = [
            number
            for number, verdict in enumerate(verdicts)
            if verdict == "INCONCLUSIVE" and len(members[number].looks) < len(LOOKS)
        ]
        if not still_open:
            break
        starts = known(start_noise(members).deviation)
        for number in still_open:
            members[number] = jobs[number].member(starts, members[number].looks)
    return verdicts, members


def row(world: World, families: int) -> list[str]:
    numbers = np.random.default_rng(14)
    alarms = clear = found = passed = runs = 0
    for _ in range(families):
        jobs = [drawn(numbers, world) for _ in range(JOBS)]
        first = [job.member() for job in jobs]
        verdicts, members = family(jobs, first)
        alarms += "REGRESSION" in verdicts
        clear += set(verdicts) == {"PASS"}
        runs += sum(2 * member.looks[-1].runs for member in members)
        jobs[0] = drawn(numbers, world, LOST)
        [verdict, *_], _ = family(jobs, [jobs[0].member(), *first[1:]])
        found += verdict == "REGRESSION"
        passed += verdict == "PASS"
    shares = [f"{count / families:.1%}" for count in (alarms, found, passed, clear)]
    return [f"{world.noise:.0%}", f"{world.starts:g}", *shares, f"{runs / families / JOBS:.1f}"]


def main(families: int) -> int:
    header = ["noise", "starts, points", "false alarm", "1 point found", "1 point passed",
              "all clear", "runs a job, both arms"]  # fmt: skip
    rows = []
    for world in WORLDS:
        rows.append(row(world, families))
        print(rows[-1], flush=True)
    print("\n".join(table(header, rows)))
    return 0


if __name__ == "__main__":
    sys.exit(run("simulate", lambda: main(given.families)))
