"""Results as JSON for machines and Markdown for people and job summaries."""

import json
from pathlib import Path
from typing import Any


def write(path: Path, result: dict[str, Any], markdown: str) -> None:
    """`path`, and the same with .md; both or neither are this run's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, text in ((path.with_suffix(".md"), markdown), (path, json.dumps(result, indent=1))):
        unfinished = target.with_suffix(target.suffix + ".unfinished")
        unfinished.write_text(text.rstrip() + "\n", encoding="utf-8")
        unfinished.replace(target)


def accuracy(result: dict[str, Any]) -> str:
    """Markdown of a GSM8K result."""
    found, setting = result["statistics"], result.get("configuration")
    lines = []
    if setting:
        lines.append(
            f"### GSM8K {setting['preset']} on {setting['arch']}, sglang {setting['release']}: "
            f"{result['verdict']}"
        )
    else:
        lines.append(f"### GSM8K: {result['verdict']}")
    lines += ["", result["message"] + ".", ""]
    lines += table(
        ["", "pristine", "patched"],
        [
            ["accuracy", *(_shares(found["accuracy"][arm]) for arm in ("pristine", "patched"))],
            *(
                [name, f"{found[name]['pristine']:.2%}", f"{found[name]['patched']:.2%}"]
                for name in ("invalid", "truncated")
                if found.get(name)
            ),
            ["runs", *(str(found["runs"][arm]) for arm in ("pristine", "patched"))],
        ],
    )
    flips = found["flips"]
    noise = flips["pristine_pristine"]
    lines += ["", *table(
        ["questions", "difference", "lower bound", "margin", "lost", "gained", "p of the plan",
         "flips A/B", "flips A/A"],
        [[
            str(found["questions"]), f"{found['difference']:+.2%}",
            "none yet" if found["lower_bound"] is None else f"{found['lower_bound']:+.2%}",
            f"{found['margin']:.1%}", str(found["losses"]), str(found["gains"]),
            f"{found['p']:.3g}", f"{flips['patched_pristine']:.2%}",
            "unknown" if noise is None else f"{noise:.2%}",
        ]],
    )]  # fmt: skip
    if found["start_noise"]:
        lines += [
            "",
            f"A server's start alone shifts some {100 * found['start_noise']:.2f} points.",
        ]
    if ledger := result.get("ledger"):
        outcomes = ", ".join(f"{n} {outcome}" for outcome, n in ledger["outcomes"].items())
        lines += ["", f"Runs that the ledger tells of: {outcomes}."]
    runs = result.get("arms", {}).get("patched", [])
    declined = {line for run in runs for line in run["declined"]}
    lines += [f"\nPristine path taken in the patched arm: {line}" for line in sorted(declined)]
    if setting:
        lines += ["", f"{_tree(setting)}, {setting['settings']['shots']} shots."]
    return "\n".join(lines)


def throughput(result: dict[str, Any]) -> str:
    """Markdown of a throughput result."""
    setting = result["configuration"]
    lines = [
        f"### Throughput {setting['preset']} on {setting['arch']}, sglang {setting['release']}: "
        f"{result['verdict']}",
        *("", result["message"] + ".", "", "Speed of the patched server, pristine = 1:", ""),
    ]
    rows = [
        [
            f"{point} {metric}",
            f"{each['median']:.3f}",
            f"{each['low']:.3f} to {each['high']:.3f}",
            f"{each['noise']:.1%}",
            each["says"],
        ]
        for point, metrics in result["statistics"]["points"].items()
        for metric, each in metrics.items()
    ]
    lines += table(["point", "median ratio", "95 % interval", "noise", ""], rows)
    return "\n".join([*lines, "", f"{_tree(setting)}."])


def _tree(setting: dict[str, Any]) -> str:
    slugs = ", ".join(setting["slugs"])
    return f"`{setting['model']}`, patch set `{setting['digest'][:12]}`, slugs {slugs}"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(header)} |",
        "|---" * len(header) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _shares(values: list[float]) -> str:
    return ", ".join(f"{value:.2%}" for value in values)
