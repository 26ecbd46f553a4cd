import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from patchset import series
from tests.image import layout
from tests.image.layout import Built, Image, build, build_arguments, light
from tests.tool.conftest import MEMORY


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """A folder in memory where there is some: an image has thousands of files."""
    place = MEMORY if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def untouched(memory) -> Image:
    """A released image for tests of refusals, which leave it as it is."""
    return layout.image(memory / "untouched", "0.5.10.post1")


@pytest.fixture(scope="session")
def rebuilt(memory) -> tuple[Image, float, Built]:
    """A released image with the Dockerfile's other target, one slug alone, and when it began."""
    made = layout.image(memory / "source", "0.5.10.post1")
    layout.give_sources(made)
    began = time.time()
    arguments = build_arguments("0.5.10.post1", ["indexer"])
    return made, began, build(made, arguments, "source", **light(memory / "light"))


@pytest.fixture(scope="session")
def built(memory, release) -> tuple[Image, dict[str, bytes], Built]:
    """A released image with rocm.Dockerfile's layer, its files before, what the build said."""
    if "aiter" not in series.load(layout.ROOT).release(release).info:
        pytest.skip(f"nobody has said which aiter the image of {release} has")
    image = layout.image(memory / release, release)
    before = image.files()
    return image, before, build(image, build_arguments(release), "layered")
