#!/usr/bin/env python3
"""Run the same texts pristine and patched in sglang's engine: equal tokens, except at near ties.

    ci/parity.py --preset glm-5 --release 0.5.10.post1 --output parity.json
    ci/parity.py --preset qwen3-moe --release 0.5.9 --model /models/small --tp 1

Four arms run one after the other on one checkpoint: the release, twice in one server; the patched
tree with every slug off; and the patched tree. The two runs of the release show how far the release
reproduces itself. The arm with every slug off must not differ by more than that.

Greedy tokens may differ only where the release itself has a near tie between two tokens. Up to that
token, two bounds hold: per token (rounding may move single tokens far) and on average (a bug in a
flat distribution moves all tokens slightly). The result is INCONCLUSIVE if the release does not
reproduce itself up to rounding, or if the arms diverge after a few tokens.

Exit codes: 0 alike, 1 apart, 2 wrong usage or refused, 3 inconclusive, 4 an arm did not run.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HOME))

from ci import entry  # noqa: E402  # the folder above is put on the path first
from ci.regression.errors import Refused  # noqa: E402
from ci.regression.options import positive, words  # noqa: E402
from ci.regression.presets import ALSO, ARCHS, PRESETS, RELEASES, Preset, preset  # noqa: E402
from tests.platform.process import WorkerError  # noqa: E402

ALIKE, APART, INCONCLUSIVE = entry.DONE, entry.WRONG, entry.INCONCLUSIVE
OF_VERDICT = {"PASS": ALIKE, "FAIL": APART, "INCONCLUSIVE": INCONCLUSIVE}
# The share of all tokens that must be compared before the arms part.
FEWEST = 0.5
# Characters of each text: one of some 4000 tokens, since up to index_topk (2048) tokens the indexer
# is never asked which ones matter.
LENGTHS = (200, 1200, 5000, 16000)


def main() -> int:
    given = parser().parse_args()
    release = ALSO.get(given.release, given.release)
    slugs = given.slugs.split(",") if given.slugs else None
    from tests.platform import trees, value

    try:
        platform = value.available(given.platform or value.choose(), given.arch)[0]
        chosen = preset(given.preset, release, platform.arch)
        if unknown := sorted(set(slugs or ()) - set(trees.slugs(release))):
            raise Refused(f"--slugs: {', '.join(map(repr, unknown))} in no patch of {release}")
    except (Refused, ValueError) as refusal:
        raise entry.Stop(f"refused: {refusal}") from refusal
    except (RuntimeError, AssertionError) as missing:  # as torch tells of it
        said = f"no GPU for --platform {given.platform}: {missing}; --platform cpu emulates one"
        raise entry.Stop(f"refused: {said}") from missing
    expected = [slug for slug in chosen.slugs if slugs is None or slug in slugs]
    if not expected:
        raise entry.Stop(f"refused: {chosen.name} does not run {given.slugs}")
    flags = flags_of(chosen, given)
    if given.dry_run:
        print(shlex.join(["sglang.Engine", *flags]))
        return ALIKE
    check_paths(given)
    pristine = trees.pristine_tree(release)
    patched = given.patched_tree or trees.patched_tree(release)
    asked = given.prompts or prompts(pristine, given.longest)
    arms = {
        "pristine": (pristine, {}, (*flags, *chosen.pristine), 2),
        "off": (patched, {"SGLANG_ROCM_PATCHES": "0"}, (*flags, *chosen.pristine), 1),
        "patched": (patched, {}, flags, 1),
    }
    found = {}
    for name, (tree, switches, arguments, rounds) in arms.items():
        print(f"parity: {name}, {tree}", file=sys.stderr, flush=True)
        try:
            found[name] = run(
                tree, platform, trees.packages(release), chosen.environment | switches,
                flags=list(arguments), prompts=asked, steps=given.steps, rounds=rounds,
            )  # fmt: skip
        except WorkerError as error:
            raise entry.Stop(f"the {name} arm did not run\n{error}", entry.FAILED) from error
    result = {
        "preset": chosen.name,
        "model": given.model or chosen.model,
        "release": release,
        "arch": platform.arch,
        "pristine_differs": chosen.pristine_because or None,
        **compare(found, expected),
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join([result["verdict"], *result["reasons"], str(given.output)]))
    return OF_VERDICT[result["verdict"]]


def check_paths(given: argparse.Namespace) -> None:
    """Before hours of arms, whose result would have nowhere to go."""
    if given.patched_tree and not (given.patched_tree / "sglang").is_dir():
        raise entry.Stop(f"refused: --patched-tree {given.patched_tree}: no sglang lies in it")
    try:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        there = given.output.exists()
        with given.output.open("a"):
            pass
        if not there:
            given.output.unlink()
    except OSError as error:
        raise entry.Stop(f"refused: --output {given.output}: {error.strerror}") from error


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="ci/parity.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--preset", required=True, choices=PRESETS)
    made.add_argument("--release", required=True, choices=(*RELEASES, *ALSO))
    made.add_argument("--slugs", help="patches on in the tree, comma-separated; default: all")
    made.add_argument("--model", help="another path or name of the model's weights")
    made.add_argument("--tp", type=positive, metavar="N", help="another number of GPUs")
    made.add_argument(
        "--server-args", type=words, default=[], metavar="ARGS", help="further flags, one word"
    )
    made.add_argument("--patched-tree", type=Path, help="default: the series on a copy")
    made.add_argument("--platform", choices=("rocm", "cuda", "cpu"), help="default: the machine's")
    made.add_argument("--arch", choices=ARCHS, help="default: the GPU's")
    made.add_argument("--steps", type=positive, default=64, help="tokens to generate")
    made.add_argument(
        "--longest", type=positive, default=max(LENGTHS), help="characters of a prompt"
    )
    made.add_argument(
        "--prompts", type=texts, metavar="F", help="a JSON list of texts; default: sglang's source"
    )
    made.add_argument("--output", type=Path, default=Path("parity.json"))
    made.add_argument("--dry-run", action="store_true", help="show the server's flags")
    return made


def texts(path: str) -> list[str]:
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}") from None
    if not (isinstance(found, list) and found and all(isinstance(each, str) for each in found)):
        raise argparse.ArgumentTypeError(f'{path}: no JSON list of texts, as ["one", "another"]')
    return found


def flags_of(chosen: Preset, given: argparse.Namespace) -> list[str]:
    flags = list(chosen.arguments)
    if given.model:
        flags += ["--model-path", given.model]
    if given.tp:
        flags += ["--tp", str(given.tp)]
    return flags + given.server_args


def prompts(pristine: Path, longest: int) -> list[str]:
    """Texts of a kind that models know well, so near ties are few: the release's own source."""
    text = (pristine / "sglang/srt/server_args.py").read_text()
    lengths = [length for length in LENGTHS if length <= longest] or [longest]
    return [text[start * 1000 :][:length] for start, length in enumerate(lengths)]


def run(tree, platform, packages, environment, **inputs) -> dict:
    from tests.platform.arm import Arm

    arm = Arm(tree, platform, packages=packages, **environment)
    return arm.run("tests.engine.scenarios.parity:generate", alone=True, **inputs).outputs


def compare(found: dict[str, dict], expected: list[str]) -> dict:
    """The verdict over what the arms gave, with every reason against it."""
    from tests.tolerances import LOGPROB, LOGPROB_ON_AVERAGE

    first, again = ((found["pristine"], i) for i in range(2))
    noise, differences = departures(first, again, LOGPROB, LOGPROB_ON_AVERAGE)
    measured = {"repeated": measures(differences)}
    # What repeating the release changes is no fault of a patch; without that, LOGPROB is allowed.
    repeated = [2 * measured["repeated"][name] for name in ("largest", "average")]
    bounds = [max(LOGPROB, repeated[0]), max(LOGPROB_ON_AVERAGE, repeated[1])]
    compared, apart = {}, []
    for arm, allowed in (("off", repeated), ("patched", bounds)):
        departed, differences = departures(first, (found[arm], 0), *allowed)
        measured[arm], compared[arm] = measures(differences), len(differences)
        apart += [f"{arm}: {each}" for each in departed]
    slugs = states(found["patched"]["slugs"])
    inactive = {slug: slugs.get(slug) for slug in expected}
    wrong = [f"{s} is {state}" for s, state in inactive.items() if state != "active"]
    unsure = [f"the release, repeated: {each}" for each in noise]
    # Where the release does not repeat itself, nothing is known of what sets another arm apart.
    wrong += [] if unsure else apart
    tokens = sum(map(len, found["pristine"]["tokens"][0]))
    unsure += [
        f"{arm}: parted after {count} of {tokens} tokens, fewer than {FEWEST:.0%}: too few to judge"
        for arm, count in compared.items()
        if count < FEWEST * tokens
    ]
    verdict = "FAIL" if wrong else "INCONCLUSIVE" if unsure else "PASS"
    return {
        "verdict": verdict,
        "reasons": wrong or unsure,
        "bounds": dict(zip(("largest", "average"), bounds, strict=True)),
        "differences": measured,
        "compared": compared,
        "tokens": tokens,
        "prompts": len(found["patched"]["tokens"][0]),
        "slugs": slugs,
    }


def states(reported: object) -> dict[str, str]:
    """Each slug's state, as a server reports it; another report is no verdict."""
    try:
        found = {slug: said["state"] for slug, said in (reported or {}).items()}
    except (AttributeError, LookupError, TypeError):
        found = {"": None}
    if not all(isinstance(state, str) for state in found.values()):
        said = f"the server's rocm_patches.slugs name no states: {str(reported)[:200]}"
        raise entry.Stop(said, entry.FAILED)
    return found


def measures(differences: list[float]) -> dict[str, float]:
    average = sum(differences) / len(differences) if differences else 0.0
    return {"largest": max(differences, default=0.0), "average": average}


def departures(
    one: tuple[dict, int], other: tuple[dict, int], bound: float, on_average: float
) -> tuple[list[str], list[float]]:
    """Where `other` is farther from `one` than rounding explains, in words; the difference of each
    token that was compared and for which it may.

    Each is an arm's result and the round of it. Up to the first other token the log-probabilities
    must agree; there, `one` must have been undecided: its two likeliest no farther apart than what
    both arms' roundings together may move.
    """
    reasons, differences = [], []
    (left, i), (right, j) = one, other
    for prompt, (a, b) in enumerate(zip(left["tokens"][i], right["tokens"][j], strict=True)):
        for step, (x, y) in enumerate(zip(a, b, strict=True)):
            (best, _), (second, _) = left["likeliest"][i][prompt][step]
            if x != y:
                if not best - second <= 2 * bound:
                    gap = f"a gap of {best - second:.3g} nats is no near tie"
                    reasons.append(f"prompt {prompt}, token {step}: {y}, not {x}; {gap}")
                break
            difference = abs(best - right["likeliest"][j][prompt][step][0][0])
            if not difference <= bound:
                where = f"prompt {prompt}, token {step}"
                reasons.append(f"{where}: {difference:.3g} nats apart, {bound:.3g} allowed")
                break
            differences.append(difference)
    if not (average := measures(differences)["average"]) <= on_average:
        over = f"on average over {len(differences)} tokens"
        reasons.append(f"{average:.3g} nats apart {over}, {on_average:.3g} allowed")
    return reasons, differences


if __name__ == "__main__":
    sys.exit(entry.run("parity", main))
