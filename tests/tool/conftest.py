import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

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


@pytest.fixture
def house(tmp_path: Path) -> synthetic.House:
    return synthetic.house(tmp_path / "house")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return synthetic.synthetic_tree(tmp_path / "tree")
