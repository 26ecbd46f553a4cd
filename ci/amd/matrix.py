#!/usr/bin/env python3
"""The jobs of .github/workflows/amd.yml, as one line of JSON for `strategy: matrix`.

    ci/amd/matrix.py --releases 0.5.9,0.5.10.post1 --archs gfx942,gfx950 --rocms 7.2 --sets all,each
    ci/amd/matrix.py ... --summary "$GITHUB_STEP_SUMMARY"     and what that costs, as Markdown

A combination is one release, one chip, one set of slugs (all, or a single one) and one model. The
model uses these slugs, and the release can start the model without them. Each combination makes two
jobs, because one job has no time for all servers: the first compares tokens and accuracy, the
second throughput. The whole test suite runs once per image, with all slugs on, in the job of the
first model.
"""

import argparse
import json
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOME))

from ci.regression.presets import ARCHS, PRESETS, RELEASES, comparable  # noqa: E402
from patchset import series  # noqa: E402

ROCMS = ("7.0", "7.2")
SETS = ("all", "each")
MOST = 256  # jobs that a matrix may have
GPUS = 8  # of a job's machine
# What each step of a job may take. Cut off, a second attempt goes on from whole runs.
MINUTES = {
    "image": 60,
    "gpus": 15,
    "smoke": 15,
    "tests": 120,
    "parity": 120,
    "gsm8k": 360,  # two runs of each arm; four or twelve where the servers are noisy
    "throughput": 540,  # six servers, an hour of requests each
}
ALWAYS = ("image", "gpus", "smoke")
SPARE = 30  # to clean up and to send results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    patchset = series.load(HOME)
    choices = {
        "releases": RELEASES,
        "archs": ARCHS,
        "rocms": ROCMS,
        "sets": SETS,
        "presets": tuple(PRESETS),
    }
    for name, known in choices.items():
        parser.add_argument(f"--{name}", default=",".join(known), metavar="A,B", help="all")
    for arch in ARCHS:
        help_text = f"labels of a runner with {arch}, a JSON list; needed if {arch} is asked for"
        parser.add_argument(f"--{arch}-runner", type=labels, default="", help=help_text)
    parser.add_argument("--summary", type=Path, help="a file to append to")
    given = vars(parser.parse_args())
    chosen = {}
    for name, known in choices.items():
        chosen[name] = list(dict.fromkeys(value.strip() for value in given[name].split(",")))
        for value in chosen[name]:
            if value not in known:
                parser.error(f"--{name}: {value!r} is none of {', '.join(known)}")
    if unset := [arch for arch in chosen["archs"] if not given[f"{arch}_runner"]]:
        names = ", ".join(f"{arch.upper()}_RUNNER" for arch in unset)
        parser.error(
            f"no runner for {', '.join(unset)}: set {names} (repository settings, Actions, "
            'Variables) to its labels, a JSON list like ["self-hosted", "mi300x"], '
            "or choose other archs"
        )
    rows = [
        row | {"runner": given[f"{row['arch']}_runner"]}
        for release in chosen["releases"]
        for arch in chosen["archs"]
        for rocm in chosen["rocms"]
        for row in jobs(release, arch, rocm, tuple(patchset.releases[release].patches), chosen)
    ]
    if not rows:
        parser.error("no model of --presets runs a slug of these releases: nothing would be shown")
    if len(rows) > MOST:
        parser.error(f"{len(rows)} jobs; a matrix has {MOST} at most: choose fewer")
    if given["summary"]:
        with given["summary"].open("a") as summary:
            summary.write(cost(rows))
    print(json.dumps({"include": rows}))


def cost(rows: list[dict]) -> str:
    """What the jobs may take at most: nobody has measured what they do take."""
    hours = sum(row["minutes"]["job"] for row in rows) * GPUS / 60
    lines = [
        f"### {len(rows)} jobs, at most {hours:.0f} GPU hours",
        "",
        f"Each holds a machine with {GPUS} GPUs until it ends, or its limit ends it.",
        "",
        "| job | runner | limit, hours |",
        "|---|---|---|",
    ]
    for row in rows:
        hours = row["minutes"]["job"] / 60
        lines.append(f"| {row['name']} | {', '.join(row['runner'])} | {hours:.1f} |")
    return "\n".join(lines) + "\n"


def minutes(steps: str) -> dict[str, int]:
    """The limits of a job's steps and of the whole job."""
    limits = {name: MINUTES[name] for name in (*ALWAYS, *steps.split())}
    return limits | {"job": sum(limits.values()) + SPARE}


def jobs(release: str, arch: str, rocm: str, slugs: tuple[str, ...], chosen: dict) -> list[dict]:
    presets = [PRESETS[name] for name in chosen["presets"] if name in comparable(release)]
    pairs = []
    if "all" in chosen["sets"]:
        pairs += [("", preset) for preset in presets if set(preset.slugs) & set(slugs)]
    if "each" in chosen["sets"]:
        for slug in slugs:
            pairs += [(slug, preset) for preset in presets if slug in preset.slugs][:1]
    image = {"release": release, "arch": arch, "rocm": rocm}
    found = []
    for number, (slug, preset) in enumerate(pairs):
        suite = "tests " if number == 0 and not slug else ""
        for steps in (f"{suite}parity gsm8k", "throughput"):
            name = f"{release}-{arch}-rocm{rocm}-{slug or 'all'}-{preset.name}-{steps.split()[-1]}"
            row = {"slug": slug, "preset": preset.name, "steps": steps, "name": name}
            found.append(image | row | {"minutes": minutes(steps)})
    return found


def labels(text: str) -> list[str]:
    if not text:  # of a variable that is not set
        return []
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
        raise argparse.ArgumentTypeError(
            f'{text!r} is no list of labels: written like ["self-hosted", "mi300x"]'
        )
    return value


if __name__ == "__main__":
    main()
