"""`--evidence=FOLDER`: what a green run has shown, on which device, with which versions.

Writes `tests.<device>.json`: the key (evidence_key.py, with every patch and overlay module) and
rows of `layer, subject, release, arch, passed, skipped`, one for each test file, release and
architecture. A run with a failure writes nothing: there is nothing to cite.
"""

import collections
import json
import re
from pathlib import Path

import pytest

from tests import evidence_key


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
        rows = [
            {"layer": layer, "subject": subject, "release": release, "arch": arch}
            | {outcome: count[outcome] for outcome in ("passed", "skipped")}
            for (layer, subject, release, arch), count in sorted(self.counts.items())
        ]
        files = evidence_key.everything()
        key = evidence_key.key(device, files) | {"selection": self.config.option.markexpr or "all"}
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / evidence_key.file_name("tests", device)
        path.write_text(json.dumps({"key": key, "rows": rows}, indent=1) + "\n")


def _device(name: str) -> str:
    if name == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name(0)
