"""pytest's option `--evidence=FOLDER`: what a green run has shown, on which device.

Writes `tests.<device>.jsonl`: the key (`key.of_tests`) and rows of
`layer, subject, release, arch, passed, skipped, selection`, one for each test file, release and
architecture. A run with a failure writes nothing. `ci/test` and `ci/test --long` are two halves of
one suite: each half keeps the rows of the other.
"""

import collections
import re
from pathlib import Path

import pytest

from evidence import key as keys
from evidence import store

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
        header = {"subject": "tests", "key": keys.key(device, keys.of_tests())}
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / store.file_name("tests", device)
        rows += _kept(path, header, OTHER_HALF.get(selection))
        store.write(path, header, rows)


def _kept(path: Path, header: dict, selection: str | None) -> list[dict]:
    """The rows of another selection, if they were of the same code and versions."""
    if not path.exists():
        return []
    before = store.read(path)
    if before.header != header:
        return []
    return [row for row in before.rows if row["selection"] == selection]


def _device(name: str) -> str:
    if name == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name(0)
