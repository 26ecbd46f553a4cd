"""sglang.launch_server under the emulation; its worker processes import this file, too.

A preset's --disable-radix-cache is left out, which no flag of sglang's takes back: the shots with
which all prompts begin take an interpreter up to half a minute.
"""

import os
import runpy
import sys

from tests.engine.scenarios import hardware
from tests.platform.value import Platform

hardware.grant(Platform(os.environ["SGLANG_TEST_PLATFORM"], os.environ["SGLANG_TEST_ARCH"]))

if __name__ == "__main__":
    sys.argv = [word for word in sys.argv if word != "--disable-radix-cache"]
    runpy.run_module("sglang.launch_server", run_name="__main__")
