"""Runs of both arms in turn, A B A B, each kept as soon as it is whole, up to the plan's verdict.

Kept runs are never repeated and never left out: the same command goes on after the last whole run,
and a look takes all runs up to its number, so nobody retries until it is green. A run that was cut
off begins anew, since a server keeps nothing of it; the ledger tells of it.
"""

import hashlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import evaluate, ledger, power, questions, runs, self_report
from .comparison import ARMS, Comparison, say
from .decide import Decision, Rule, decide, off_path
from .errors import Refused
from .plan import LOOKS
from .servers import serving

# The fewest shots of GSM8K whose prompts (12,256 characters and more) pass 2048 tokens.
FEWEST_NSA_SHOTS = 20


def run(
    comparison: Comparison,
    settings: evaluate.Settings,
    most: int,
    work: Path,
    rule: Rule,
    result: Path | None = None,
) -> tuple[Decision, dict[str, Any]]:
    """The decision, and what a result file says beside it. Raises Refused, RunFailed.

    `most`: runs of each arm. They are made up to the plan's next look, and on to the one after it
    only if that may settle what is open.
    """
    key = runs.begin(work, _key(comparison, settings, rule), result)
    say(comparison.shown())
    say(power.text(evaluate.count(settings), LOOKS[0], rule.family))
    for rounds in [*(look for look in LOOKS if look < most), most]:
        for arm, number in runs.missing(work, rounds):
            with runs.attempt(work, arm, number):
                _one(comparison, settings, arm, number, work)
        arms = runs.kept(work)
        pristine, patched = (
            [questions.read(work / each["log"]) for each in arms[arm]] for arm in ARMS
        )
        decision = decide(pristine, patched, rule)
        decision = off_path(decision, runs.declined(arms))
        if decision.further_runs is None:
            break
        say(f"{decision.verdict} after {rounds} runs of each arm: {decision.message}")
    return decision, {"configuration": key, "arms": arms, "ledger": ledger.seal(work)}


def refuse_few_shots(settings: evaluate.Settings) -> None:
    """Before anything is begun; other questions than GSM8K's show their length to a tokenizer."""
    if settings.index_topk and settings.data is None and settings.shots < FEWEST_NSA_SHOTS:
        raise Refused(
            f"{settings.shots} shots are shorter than index_topk ({settings.index_topk} tokens): "
            "sparse selection would take every token, and neither layernorm nor indexer would be "
            f"tested; give --shots {FEWEST_NSA_SHOTS} or more, 25 to 30 are usual"
        )


def _one(
    comparison: Comparison, settings: evaluate.Settings, arm: str, number: int, work: Path
) -> None:
    log = work / f"{arm}-{number}.server.log"
    task = evaluate.load(settings, work)
    evaluate.refuse_few_shots(settings, task)
    start = time.monotonic()
    with serving(comparison.arms[arm], comparison.launcher, work, log,
                 comparison.start_seconds) as url:  # fmt: skip
        started = time.monotonic()
        how, before = comparison.check(arm, url, work)
        say(f"   {how}, at {url}")
        rows = evaluate.questions(settings, task, url)
        after = self_report.read(url)
    self_report.check_same(before, after, url)
    declined = after.declined(comparison.slugs if arm == "patched" else ())
    for line in declined:
        say(f"   warning: pristine path taken in the patched arm: {line}")
    path = work / f"{arm}-{number}.jsonl"
    questions.write(path, rows)
    n = len(rows)
    summary = {
        "log": path.name,
        "server": how,
        "sglang": after.sglang,
        "report": after.patches,
        "declined": declined,
        "questions": n,
        "accuracy": sum(row["correct"] for row in rows) / n,
        "invalid": sum(row["invalid"] for row in rows) / n,
        "truncated": sum(row["finish_reason"] == "length" for row in rows) / n,
        "shortest_prompt_tokens": min(row["prompt_tokens"] for row in rows),
        "start_seconds": round(started - start, 1),
        "seconds": round(time.monotonic() - started, 1),
    }
    runs.keep(work, arm, number, summary)
    say(f"   accuracy {summary['accuracy']:.2%} of {n}, invalid {summary['invalid']:.2%}, cut off "
        f"{summary['truncated']:.2%}, {summary['seconds']} s")  # fmt: skip


def _key(comparison: Comparison, settings: evaluate.Settings, rule: Rule) -> dict[str, Any]:
    """All that a run's answers depend on, and the rule that was fixed before the first."""
    said = asdict(settings)
    said["data"] = evaluate.HUB
    if settings.data is not None:
        try:
            content = [(settings.data / name).read_bytes() for name in evaluate.SPLITS.values()]
        except OSError as error:
            raise Refused(evaluate.no_data(settings.data, error)) from None
        said["data"] = {
            name: hashlib.sha256(text).hexdigest()
            for name, text in zip(evaluate.SPLITS.values(), content, strict=True)
        }
    return {
        **comparison.as_json(),
        "settings": said,
        "rule": {"margin": rule.margin, "floor": rule.floor, "family": rule.family},
    }
