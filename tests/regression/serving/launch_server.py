"""sglang.launch_server under the emulation; its worker processes import this file, too."""

import os
import runpy

from tests.engine.scenarios import hardware
from tests.platform.value import Platform

hardware.grant(Platform(os.environ["SGLANG_TEST_PLATFORM"], os.environ["SGLANG_TEST_ARCH"]))

if __name__ == "__main__":
    runpy.run_module("sglang.launch_server", run_name="__main__")
