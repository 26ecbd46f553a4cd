"""runs_here    called with the architectures and release that a case is for; skips all others"""

from collections.abc import Callable, Collection

import pytest


@pytest.fixture
def runs_here(request, platform) -> Callable[[Collection[str], str], None]:
    chosen = request.config.option.release

    def check(archs: Collection[str], release: str) -> None:
        if platform.arch not in archs:
            pytest.skip(f"runs on {', '.join(archs)}")
        if chosen not in (None, release):
            pytest.skip(f"runs {release}")

    return check
