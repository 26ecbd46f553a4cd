#!/usr/bin/env python3
"""The results of a job as Markdown, for the job's summary page on GitHub.

    ci/amd/summary.py FOLDER TITLE "STEP STEP..." >> "$GITHUB_STEP_SUMMARY"

FOLDER has the files of the steps: tests.xml, long.xml, parity.json, gsm8k.json, throughput.json. An
absent file is reported as missing: a step that did not run did not pass. A file that is incomplete,
or has other content than its step writes, is reported as broken and has no verdict.
"""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

NAMES = {
    "tests": "tests",
    "long": "long tests",
    "parity": "parity",
    "gsm8k": "GSM8K",
    "throughput": "throughput",
}
TESTS = ("tests", "long")
VERDICTS = ("PASS", "FAIL", "REGRESSION", "INCONCLUSIVE")


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(f"{__doc__}STEP is one of {', '.join(NAMES)}.")
        return
    if len(sys.argv) != 4 or not set(sys.argv[3].split()) <= set(NAMES):
        print(f"{__doc__}STEP is one of {', '.join(NAMES)}.", file=sys.stderr)
        sys.exit(2)
    folder, title, steps = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split()
    print(f"### {title}\n\n| step | verdict | in short |\n|---|---|---|")
    for step in steps:
        suite = step in TESTS
        said = tests(folder / f"{step}.xml") if suite else verdict(folder / f"{step}.json")
        row = (NAMES[step], *said)
        print("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |")
    print()


def tests(path: Path) -> tuple[str, str]:
    if not path.is_file():
        return "not run", ""
    try:
        suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    except ElementTree.ParseError as error:
        return "**broken**", f"{path.name}: {error}"
    try:
        count = {
            name: sum(int(suite.get(name, 0)) for suite in suites)
            for name in ("tests", "failures", "errors", "skipped")
        }
    except ValueError as error:
        return "**broken**", f"{path.name}: a count is no number: {error}"
    red = count["failures"] + count["errors"]
    passed = count["tests"] - red - count["skipped"]
    in_short = f"{passed} passed, {red} failed, {count['skipped']} skipped"
    return ("**FAIL**" if red or not passed else "PASS"), in_short


def verdict(path: Path) -> tuple[str, str]:
    if not path.is_file():
        return "not run", ""
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        return "**broken**", f"{path.name}: {error}"
    if not isinstance(result, dict):
        return "**broken**", f"{path.name}: no JSON object"
    said, message = result.get("verdict"), result.get("message", "")
    reasons = result.get("reasons", [])
    if said not in VERDICTS:
        return "**broken**", f"{path.name}: its verdict is {said!r}, none of {', '.join(VERDICTS)}"
    if not isinstance(message, str) or not texts(reasons):
        return "**broken**", f"{path.name}: its message or reasons are no text"
    return (said if said == "PASS" else f"**{said}**"), message or "; ".join(reasons)


def texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


if __name__ == "__main__":
    main()
