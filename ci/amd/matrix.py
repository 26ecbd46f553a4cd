#!/usr/bin/env python3
"""The jobs of .github/workflows/amd.yml, as one line of JSON for `strategy: matrix`.

    ci/amd/matrix.py --releases 0.5.9,0.5.10.post1 --archs gfx942,gfx950 --rocms 7.2 --sets all,each

A job is one release on one chip with one set of slugs (all, or one alone) and one model whose path
has them and which the release can start without them. Each is two jobs, as hours of servers are
more than one has: tokens and accuracy in the first, throughput in the second. The whole suite runs
once for each image with all slugs on, beside its first model.
"""

import argparse
import json
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOME))

from ci.regression.presets import ARCHS, PRESETS, comparable  # noqa: E402
from patchset import series  # noqa: E402

ROCMS = ("7.0", "7.2")
SETS = ("all", "each")
MOST = 256  # jobs that a matrix may have


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    patchset = series.load(HOME)
    choices = {
        "releases": tuple(patchset.releases),
        "archs": ARCHS,
        "rocms": ROCMS,
        "sets": SETS,
        "presets": tuple(PRESETS),
    }
    for name, known in choices.items():
        parser.add_argument(f"--{name}", default=",".join(known), metavar="A,B", help="all")
    for arch in ARCHS:
        help_text = f"labels of a runner with {arch}, a JSON list"
        parser.add_argument(f"--{arch}-runner", type=labels, required=True, help=help_text)
    given = vars(parser.parse_args())
    chosen = {}
    for name, known in choices.items():
        chosen[name] = list(dict.fromkeys(value.strip() for value in given[name].split(",")))
        for value in chosen[name]:
            if value not in known:
                parser.error(f"--{name}: {value!r} is none of {', '.join(known)}")
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
    print(json.dumps({"include": rows}))


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
            found.append(
                image | {"slug": slug, "preset": preset.name, "steps": steps, "name": name}
            )
    return found


def labels(text: str) -> list[str]:
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
