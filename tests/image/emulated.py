"""A pytest plugin for dry runs: with `--platform rocm` the process finds an AMD GPU even here."""

from tests.platform import emulation
from tests.platform.value import Platform

emulation.install(Platform("cpu", "gfx942"))
