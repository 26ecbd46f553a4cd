#!/usr/bin/env python3
"""One verdict over the accuracy of all jobs of .github/workflows/amd.yml, as Markdown.

    ci/amd/verdict.py FOLDER MATRIX >> "$GITHUB_STEP_SUMMARY"

A single comparison reports a false regression in one of twenty runs. `ci/gsm8k.py combine` corrects
for many comparisons (Holm). FOLDER has the artifacts of the jobs, `results-<name>/gsm8k.json`.
MATRIX is the output of ci/amd/matrix.py. The verdict names each job without a result: a job that
did not run did not pass.

Exit codes: those of ci/gsm8k.py; 4 if all that ran pass and a job has no result.
"""

import json
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
RUN_FAILED = 4


def main() -> int:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    try:
        rows = json.loads(sys.argv[2])["include"]
        asked = [row["name"] for row in rows if "gsm8k" in row["steps"]]
    except (ValueError, LookupError, TypeError) as error:
        print(f"verdict.py: MATRIX is not what ci/amd/matrix.py says: {error!r}", file=sys.stderr)
        return 2
    found = {f"results-{name}/gsm8k.json": name for name in asked}
    missing = [name for file, name in found.items() if not (folder / file).is_file()]
    files = [file for file, name in found.items() if name not in missing]
    print("### GSM8K, all configurations together\n")
    code = judged(folder, files, found) if files else 0
    for name in missing:
        print(f"- **no result**: {name}")
    return code or (RUN_FAILED if missing else 0)


def judged(folder: Path, files: list[str], names: dict[str, str]) -> int:
    """Print what combine says of `files`, each by its name; its exit code."""
    command = [sys.executable, HOME / "ci/gsm8k.py", "combine", "--json", *files]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    if not done.stdout:
        return done.returncode
    said = json.loads(done.stdout)
    message = said["message"]
    for file, name in names.items():
        message = message.replace(file, name)
    print(f"**{said['verdict']}**: {message}\n")
    rows = said.get("statistics", {}).get("configurations", {})
    if rows:
        print("| configuration | verdict | p of the plan, after Holm |\n|---|---|---|")
    for file, row in rows.items():
        print(f"| {names[file]} | {row['verdict']} | {row['p_holm']:.3g} |")
    print()
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
