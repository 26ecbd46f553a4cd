"""Arms: upstream's modules pristine, patched, and patched with every switch off.

arms        .pristine, .patched and .off: each a tests.platform.arm.Arm on the test's platform;
            .patched_with(SGLANG_...="...") one with other settings
            .patched_without("aiter.name", ..) one on an aiter that lacks these operators
either_arm  the pristine one, then the patched one
"""

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.platform.arm import Arm
from tests.platform.trees import RELEASES, packages, patched_tree, pristine_tree, slugs
from tests.platform.value import Platform

SLUGS = {slug for release in RELEASES for slug in slugs(release)}


@dataclass(frozen=True)
class Arms:
    release: str
    platform: Platform

    @property
    def pristine(self) -> Arm:
        return _arm(self.release, pristine_tree(self.release), self.platform)

    @property
    def patched(self) -> Arm:
        return self.patched_with()

    @property
    def off(self) -> Arm:
        return self.patched_with(SGLANG_ROCM_PATCHES="0")

    def patched_with(self, **switches: str) -> Arm:
        return _arm(self.release, patched_tree(self.release), self.platform, **switches)

    def patched_without(self, *operators: str) -> Arm:
        return _arm(self.release, patched_tree(self.release), self.platform, absent=operators)


@functools.cache
def _arm(release: str, tree: Path, platform: Platform, **settings) -> Arm:
    """Each process serves the whole session; it ends with it."""
    return Arm(tree, platform, packages=packages(release), **settings)


@pytest.fixture
def arms(request, release, platform) -> Arms:
    slug = request.module.__name__.rpartition(".test_")[2].replace("_", "-")
    if slug in SLUGS and slug not in slugs(release):
        pytest.skip(f"the series of {release} has no {slug}")
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("sglang's own requirements are not installed: ci/requirements.txt")
    return Arms(release, platform)


@pytest.fixture(params=["pristine", "patched"])
def either_arm(request, arms) -> Arm:
    return getattr(arms, request.param)
