"""Arms: upstream's modules pristine, patched, and patched with every switch off.

arms        .pristine, .patched and .off: each a tests.platform.arm.Arm on the test's platform;
            .patched_with(SGLANG_...="...") one with other settings
either_arm  the pristine one, then the patched one
"""

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.platform.arm import Arm
from tests.platform.trees import patched_tree, pristine_tree
from tests.platform.value import Platform

RELEASES = ["0.5.10.post1"]


@dataclass(frozen=True)
class Arms:
    release: str
    platform: Platform

    @property
    def pristine(self) -> Arm:
        return _arm(pristine_tree(self.release), self.platform)

    @property
    def patched(self) -> Arm:
        return self.patched_with()

    @property
    def off(self) -> Arm:
        return self.patched_with(SGLANG_ROCM_PATCHES="0")

    def patched_with(self, **switches: str) -> Arm:
        return _arm(patched_tree(self.release), self.platform, **switches)


@functools.cache
def _arm(tree: Path, platform: Platform, **switches: str) -> Arm:
    """Each process serves the whole session; it ends with it."""
    return Arm(tree, platform, **switches)


@pytest.fixture(params=RELEASES)
def arms(request, platform) -> Arms:
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("sglang's own requirements are not installed: ci/requirements.txt")
    return Arms(request.param, platform)


@pytest.fixture(params=["pristine", "patched"])
def either_arm(request, arms) -> Arm:
    return getattr(arms, request.param)
