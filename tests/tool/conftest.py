import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import evidence_key
from tests.tool import synthetic

MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is some: on a disk, most of the time would go to fsync."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


@pytest.fixture(scope="session", autouse=True)
def _each_source_is_parsed_once() -> Iterator[None]:
    """What a text imports is asked for by every slug and file of evidence, and follows from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence_key, "_imported", functools.cache(evidence_key._imported))
        yield


@pytest.fixture
def house(tmp_path: Path) -> synthetic.House:
    return synthetic.house(tmp_path / "house")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return synthetic.synthetic_tree(tmp_path / "tree")
