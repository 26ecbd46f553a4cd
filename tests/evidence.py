"""`--evidence FOLDER`: what a green run has shown, on which device, with which versions.

Writes `tests.<device>.json`: the key (patch digest of each release, device, versions) and rows of
`layer, subject, arch, passed, skipped`, one for each test file and architecture. A run with a
failure writes nothing: there is nothing to cite.
"""

import collections
import importlib.metadata
import json
import platform
import re
from pathlib import Path

import pytest

from patchset import series

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "transformers", "aiter", "tilelang", "pytest")


class Evidence:
    def __init__(self, config: pytest.Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.counts: dict[tuple[str, str, str], collections.Counter] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.skipped:
            path, _, parameters = report.nodeid.partition("::")
            layer, subject = Path(path).parts[1], Path(path).stem.removeprefix("test_")
            arch = re.search(r"gfx\d+", parameters)
            row = layer, subject, arch[0] if arch else "any"
            self.counts.setdefault(row, collections.Counter())[report.outcome] += 1

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.testsfailed or not self.counts:
            return
        device = _device(self.config.platforms[0].name)
        rows = [
            {"layer": layer, "subject": subject, "arch": arch}
            | {outcome: count[outcome] for outcome in ("passed", "skipped")}
            for (layer, subject, arch), count in sorted(self.counts.items())
        ]
        key = {
            "digests": {name: r.digest for name, r in series.load(ROOT).releases.items()},
            "device": device,
            "versions": {"python": platform.python_version()} | _versions(),
            "selection": self.config.option.markexpr or "all",
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"tests.{device.replace(' ', '-')}.json"
        path.write_text(json.dumps({"key": key, "rows": rows}, indent=1) + "\n")


def _device(name: str) -> str:
    if name == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name(0)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
