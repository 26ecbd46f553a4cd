"""Run at the start of every Python process of an arm: see tests/platform/emulation.py."""

import os
import sys

# multiprocessing's own helper processes import no torch; neither do we there.
_HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")

if not any(helper in argument for argument in sys.orig_argv for helper in _HELPERS):
    from tests.platform import emulation
    from tests.platform.value import Platform

    emulation.install(
        Platform(os.environ["SGLANG_TEST_PLATFORM"], os.environ["SGLANG_TEST_ARCH"]),
        tuple(filter(None, os.environ.get("SGLANG_TEST_ABSENT", "").split(","))),
    )
