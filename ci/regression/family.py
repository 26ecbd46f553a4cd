"""One verdict over a family of comparisons: the jobs of a workflow, each the result of `run`.

A comparison of many finds a regression that is none in one of twenty. So a REGRESSION has to stand
after Holm (S. Holm, 1979) over the p values of the plan, which hold wherever a comparison stopped.
What a server's start shifts is estimated from the pristine runs of all of them together, where a
single comparison has too few. docs/accuracy.md has what this finds and misses.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .decide import Decision
from .errors import Refused
from .exits import OF_VERDICT
from .files import read_object
from .look import Look, from_json, sequential_p
from .plan import ALPHA, holm, next_look
from .starts import Starts, pooled

Name = TypeVar("Name")
WRITTEN = "give what `run --output` or `decide --json` wrote"


@dataclass(frozen=True)
class Member:
    """A comparison's own verdict, and what it rests on."""

    verdict: str
    looks: Sequence[Look]
    margin: float
    message: str = ""
    further_runs: int | None = None


@dataclass(frozen=True)
class Judged:
    verdict: str
    p: float
    holm: float


def start_noise(members: Iterable[Member]) -> Starts:
    """From the pristine runs of all members."""
    return pooled(look.starts for member in members for look in member.looks)


def judge(members: Mapping[Name, Member]) -> dict[Name, Judged]:
    """A PASS stays one unless the starts of the family are seen to shift more than it allowed for.

    A member whose start noise was given to it (`starts`) has counted with it already.
    """
    starts = start_noise(members.values())
    p_values = [sequential_p(member.looks, starts) for member in members.values()]
    judged = {}
    for (name, member), p, adjusted in zip(members.items(), p_values, holm(p_values), strict=True):
        verdict = member.verdict
        if adjusted < ALPHA:
            verdict = "REGRESSION"
        elif verdict == "REGRESSION" or (verdict == "PASS" and _undone(member, starts)):
            verdict = "INCONCLUSIVE"
        judged[name] = Judged(verdict, p, adjusted)
    return judged


def _undone(member: Member, starts: Starts) -> bool:
    return starts.seen and member.looks[-1].lower_bound(starts) <= -member.margin


def combine(results: Mapping[str, dict[str, Any]]) -> Decision:
    """The verdict over what `read` gives."""
    if not results:
        raise Refused("no result to combine")
    refuse_strangers(results)
    members = {name: _member(name, result) for name, result in results.items()}
    judged, starts = judge(members), start_noise(members.values())
    order = ("REGRESSION", "INCONCLUSIVE", "PASS")
    worst = next(v for v in order if any(each.verdict == v for each in judged.values()))
    named = [name for name in members if judged[name].verdict == worst]
    message = f"{worst} in {len(named)} of {len(members)} configurations: {', '.join(named)}"
    further = []
    for name in named:
        member, now = members[name], judged[name].verdict
        runs = member.looks[-1].runs if member.looks else 0
        look_at = next_look(runs)
        undone = member.verdict != now and look_at is not None
        further.append(look_at - runs if undone and look_at else member.further_runs)
    known = [each for each in further if each is not None]
    if starts.seen:
        message += (
            f". A server's start alone shifts some {100 * starts.deviation:.2f} points, which more "
            "starts wear down and more questions do not"
        )
    if worst == "INCONCLUSIVE" and known:
        message += ". Go on with the same commands for those"
        if starts.seen:
            message += f" and --start-noise {100 * starts.deviation:.2f}"
        message += ", keep all results, and combine once more"
    return Decision(
        worst,
        message,
        [_said(name, members[name], judged[name]) for name in named],
        max(known) if worst == "INCONCLUSIVE" and len(known) == len(named) else None,
        {
            "configurations": {
                name: {"verdict": each.verdict, "p": each.p, "p_holm": each.holm}
                for name, each in judged.items()
            },
            "start_noise": starts.deviation,
            "start_noise_seen": starts.seen,
        },
    )


def _said(name: str, member: Member, judged: Judged) -> str:
    said = f"{name}: {member.message}"
    if member.verdict == judged.verdict:
        return said
    if member.verdict == "PASS" and judged.verdict == "INCONCLUSIVE":
        return f"{said}. With what the starts of all configurations shift, this does not hold"
    return (
        f"{said}. Of so many configurations chance gives such a one in {judged.holm:.2g} of cases"
    )


def read(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Results of `run` or `decide --json`, by their paths. Raises Refused."""
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        if str(path) in found:
            raise Refused(f"{path} is given twice: one comparison counts once")
        found[str(path)] = read_object(path, WRITTEN)
    return found


def _member(name: str, result: dict[str, Any]) -> Member:
    """Raises Refused for anything that no command of this project writes."""
    try:
        found = result["statistics"]
        looks = [from_json(each) for each in found["looks"]]
        member = Member(
            result["verdict"], looks, found["margin"], result["message"], result["further_runs"]
        )
        if [each.runs for each in looks] != sorted({each.runs for each in looks}):
            raise ValueError("looks that are not in order")
        if len({each.answers.questions for each in looks}) > 1:
            raise ValueError("looks at different questions")
        if member.verdict not in OF_VERDICT or (member.verdict == "PASS" and not looks):
            raise ValueError(f"no verdict of these looks: {json.dumps(member.verdict)}")
        if not isinstance(member.message, str):
            raise TypeError(f"message is {member.message!r}")
        if type(member.margin) is not float or not 0 < member.margin < 1:
            raise ValueError(f"margin is {member.margin!r}")
        if type(member.further_runs) not in (int, type(None)):
            raise TypeError(f"further_runs is {member.further_runs!r}")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise Refused(f"{name}: no result of a comparison: {error!r}; {WRITTEN}") from None
    return member


def refuse_strangers(results: Mapping[str, dict[str, Any]]) -> None:
    """One result under two names, or two patch sets of one release: raises Refused."""
    seen: dict[str, str] = {}
    digests: dict[str, tuple[str, str]] = {}
    for name, result in results.items():
        for what in _identities(name, result):
            if first := seen.get(what):
                raise Refused(
                    f"{name} and {first} are made of the same runs: one comparison counts once; "
                    "give each result once"
                )
            seen[what] = name
        setting = result.get("configuration") or {}
        try:
            release, digest = str(setting.get("release")), str(setting.get("digest"))
            before, first = digests.setdefault(release, (digest, name))
        except (AttributeError, TypeError):
            raise Refused(f"{name}: `configuration` is {setting!r}; {WRITTEN}") from None
        if before != digest:
            raise Refused(
                f"{name} is of patch set {digest[:12]}, {first} of {before[:12]}, both "
                f"for {release}: one verdict is of one patch set; combine results of one checkout"
            )


def _identities(name: str, result: dict[str, Any]) -> list[str]:
    """Of the folder of its runs; of saved logs, these."""
    try:
        if ledger := result.get("ledger"):
            return [f"folder {ledger['folder']}"]
        if logs := result.get("logs"):
            return [f"logs {sorted(logs.values())}"]
    except (LookupError, TypeError, AttributeError) as error:
        raise Refused(f"{name}: no result of a comparison: {error!r}; {WRITTEN}") from None
    return []
