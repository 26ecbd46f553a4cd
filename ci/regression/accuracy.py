"""Runs of both arms in turn, A B A B, each kept as soon as it is whole; then the verdict.

Kept runs are never repeated and never left out: the same command goes on after the last whole run,
and further runs (--runs) are pooled with all earlier ones, so nobody retries until it is green. A
run that was cut off begins anew, since a server keeps nothing of it.
"""

import hashlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import evaluate, power, questions, runs, self_report
from .comparison import ARMS, Comparison, say
from .decide import Decision, decide, off_path
from .errors import Refused
from .servers import serving

# The fewest shots of GSM8K whose prompts (12,256 characters and more) pass 2048 tokens.
FEWEST_NSA_SHOTS = 20


def run(
    comparison: Comparison,
    settings: evaluate.Settings,
    rounds: int,
    work: Path,
    margin: float | None,
) -> tuple[Decision, dict[str, Any]]:
    """The decision, and what a result file says beside it. Raises Refused, RunFailed."""
    key = runs.begin(work, _key(comparison, settings))
    say(comparison.shown())
    say(power.text(evaluate.count(settings), rounds))
    for arm, number in runs.missing(work, rounds):
        _one(comparison, settings, arm, number, work)
    arms = runs.kept(work)
    decision = decide(
        *([questions.read(work / each["log"]) for each in arms[arm]] for arm in ARMS),
        margin=margin,
        floor=comparison.preset.floor,
    )
    return off_path(decision, runs.declined(arms)), {"configuration": key, "arms": arms}


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
    if after.digest != before.digest:
        raise Refused(f"{url} was another server at the end of the run than at its beginning")
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


def _key(comparison: Comparison, settings: evaluate.Settings) -> dict[str, Any]:
    """All that a run's answers depend on."""
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
    return {**comparison.as_json(), "settings": said}
