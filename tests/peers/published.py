"""The test files that sglang publishes, run in an arm: what each of their tests came to.

A release's wheel carries some, `sglang/test/test_*.py`; its git repository carries more, which
`--sglang-tests PATH` names: a checkout, or any folder of such files. None of them is part of this
project. A file that starts a server or loads a published model is left out.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from tests.platform.emulation import environment

SECONDS = 3600  # a file's, in one arm
SERVES = re.compile(
    r"popen_launch_server|run_bench_serving|\bEngine\(|\bDEFAULT_\w*(MODEL|URL)|from_pretrained"
)
# What the patches change.
ABOUT = re.compile(
    r"layernorm|rotary_embedding|memory_pool|attention|nsa|indexer|quantization", re.I
)


def files(folder: Path) -> Iterator[Path]:
    """The test files below the folder that need no server and touch what the patches change."""
    for path in sorted(folder.rglob("test_*.py")):
        text = path.read_text(errors="replace")
        if "sglang" in text and ABOUT.search(text) and not SERVES.search(text):
            yield path


def outcomes(file: Path, platform, tree: Path, packages, **switches: str) -> dict[str, str]:
    """{test: "passed", "failed", "error" or "skipped", with the message's first line}."""
    with tempfile.TemporaryDirectory() as folder:
        report, copy = Path(folder, "report.xml"), Path(folder, file.name)
        shutil.copy(file, copy)  # where it lies, pytest would put its own sglang before the arm's
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
        command += ["--rootdir", folder, "-c", "/dev/null", f"--junitxml={report}", str(copy)]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment(platform, tree, packages, **switches),
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return {"the file": f"ran longer than {SECONDS} s"}
        if not report.exists():
            return {"the file": f"no report: {done.stdout[-400:]}{done.stderr[-400:]}"}
        found = {}
        for case in ElementTree.parse(report).iter("testcase"):
            name = f"{case.get('classname')}::{case.get('name')}"
            said = [each for each in case if each.tag in ("failure", "error", "skipped")]
            # Subtests of one test are cases of one name.
            lines = [f"{each.tag}: {(each.get('message') or '').splitlines()[:1]}" for each in said]
            found[name] = "; ".join(filter(None, [found.get(name), *lines]))
        return {name: told or "passed" for name, told in found.items()}


def differences(pristine: dict[str, str], patched: dict[str, str]) -> list[str]:
    """What a test came to where the arms differ; numbers in a failure's message may."""

    def kind(told: str | None) -> list[str]:
        return re.findall(r"passed|failure|error|skipped|the file|ran longer|no report", told or "")

    return [
        f"{name}: pristine {pristine.get(name)}, patched {patched.get(name)}"
        for name in sorted(pristine.keys() | patched.keys())
        if kind(pristine.get(name)) != kind(patched.get(name))
    ]
