"""A pytest plugin for dry runs: with `--platform rocm` the process finds an AMD GPU even here."""

import os

from tests.platform import emulation
from tests.platform.value import Platform

emulation.install(Platform("cpu", "gfx942"))
# The stand-in interprets Triton; the run that it stands in for is refused with that setting.
del os.environ["TRITON_INTERPRET"]
