"""Arms: upstream's modules pristine, patched, and patched with every switch off.

arms        .pristine, .patched and .off: each a tests.platform.arm.Arm on the test's platform;
            .patched_with(SGLANG_...="...") one with other settings
            .without("slug") one with that slug switched off alone
            .patched_without("aiter.name", ..) one on an aiter that lacks these operators
            .used names those that a test has asked for
either_arm  the pristine one, then the patched one
off         the patched one with every slug switched off, then with the slug alone that the file is
            about: its SLUG, or its name
"""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.engine.arms import switch
from tests.platform.arm import Arm
from tests.platform.trees import (
    RELEASES,
    packages,
    patched_tree,
    pristine_tree,
    slug_of,
    slugs,
)
from tests.platform.value import Platform

SLUGS = {slug for release in RELEASES for slug in slugs(release)}


@dataclass(frozen=True)
class Arms:
    release: str
    platform: Platform
    used: list[str] = field(default_factory=list, compare=False)

    @property
    def pristine(self) -> Arm:
        self.used.append("pristine")
        return _arm(self.release, pristine_tree(self.release), self.platform)

    @property
    def patched(self) -> Arm:
        return self.patched_with()

    @property
    def off(self) -> Arm:
        return self.patched_with(SGLANG_ROCM_PATCHES="0")

    def without(self, slug: str) -> Arm:
        return self.patched_with(**{switch(slug): "0"})

    def patched_with(self, **switches: str) -> Arm:
        self.used.append(" ".join(["patched", *(f"{k}={v}" for k, v in switches.items())]))
        return _arm(self.release, patched_tree(self.release), self.platform, **switches)

    def patched_without(self, *operators: str) -> Arm:
        self.used.append(f"patched without {', '.join(operators)}")
        return _arm(self.release, patched_tree(self.release), self.platform, absent=operators)


# Processes that a GPU's memory is asked to hold at a time: each has a context of its own there.
ON_A_GPU = 8
_arms: dict[tuple, Arm] = {}  # the one asked for last is last


def _arm(release: str, tree: Path, platform: Platform, **settings) -> Arm:
    """Each process serves the whole session, or on a GPU until others have been asked for."""
    asked = release, tree, platform, *sorted(settings.items())
    _arms[asked] = _arms.pop(asked, None) or Arm(
        tree, platform, packages=packages(release), **settings
    )
    if platform.name != "cpu" and len(_arms) > ON_A_GPU:
        _arms.pop(next(iter(_arms))).close()
    return _arms[asked]


@pytest.fixture
def arms(request, release, platform) -> Arms:
    slug = slug_of(request.module)
    if slug in SLUGS and slug not in slugs(release):
        pytest.skip(f"the series of {release} has no {slug}")
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("sglang's own requirements are not installed: ci/requirements.txt")
    return Arms(release, platform)


@pytest.fixture(params=["pristine", "patched"])
def either_arm(request, arms) -> Arm:
    return getattr(arms, request.param)


@pytest.fixture(params=["all", pytest.param("its own slug", marks=pytest.mark.slow)])
def off(request, arms) -> Arm:
    return arms.off if request.param == "all" else arms.without(slug_of(request.module))
