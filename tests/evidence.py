"""`--evidence=FOLDER`: what a green run has shown, on which device, with which versions.

Writes `tests.<device>.json`: the key (evidence_key.py, with every patch and overlay module, and
what judges real servers) and rows of `layer, subject, release, arch, passed, skipped, selection`,
one for each test file, release and architecture. A run with a failure writes nothing: there is
nothing to cite. ci/test and ci/test --long are two halves of one suite: either keeps the other's.
"""

import collections
import json
import re
from pathlib import Path

import pytest

from tests import evidence_key

OTHER_HALF = {"long": "not long", "not long": "long"}


def without_group(nodeid: str) -> str:
    """A test's id without what pytest-xdist puts behind it."""
    return nodeid.partition("@")[0]


class Evidence:
    def __init__(self, config: pytest.Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.counts: dict[tuple[str, str, str, str], collections.Counter] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.skipped:
            path, _, parameters = without_group(report.nodeid).partition("::")
            layer, subject = Path(path).parts[1], Path(path).stem.removeprefix("test_")
            release, arch = (
                found[0] if (found := re.search(form, parameters)) else "any"
                for form in (r"(?<=[\[-])\d+\.\d+\.\d+[\w.]*", r"gfx\d+")
            )
            row = layer, subject, release, arch
            self.counts.setdefault(row, collections.Counter())[report.outcome] += 1

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.testsfailed or not self.counts:
            return
        device = _device(self.config.platforms[0].name)
        selection = self.config.option.markexpr or "all"
        rows = [
            {"layer": layer, "subject": subject, "release": release, "arch": arch}
            | {outcome: count[outcome] for outcome in ("passed", "skipped")}
            | {"selection": selection}
            for (layer, subject, release, arch), count in sorted(self.counts.items())
        ]
        key = evidence_key.key(device, evidence_key.everything() | evidence_key.of_served())
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / evidence_key.file_name("tests", device)
        rows += _kept(path, key, OTHER_HALF.get(selection))
        path.write_text(json.dumps({"key": key, "rows": rows}, indent=1) + "\n")


def _kept(path: Path, key: dict, selection: str | None) -> list[dict]:
    """The rows of another selection, if they were of the same files and versions."""
    if not path.exists():
        return []
    before = json.loads(path.read_text())
    if before["key"] != key:
        return []
    return [row for row in before["rows"] if row["selection"] == selection]


def _device(name: str) -> str:
    if name == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name(0)
