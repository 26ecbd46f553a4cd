"""A pytest plugin for dry runs: with `--platform rocm` the process finds an AMD GPU even here.

Of the emulation only what choosing a platform asks for, as nothing is run.
"""

import os
from types import SimpleNamespace

import torch

torch.version.hip = "7.0.51831"
torch.cuda.is_available = lambda: True
torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(gcnArchName="gfx942:xnack-")
# The stand-in interprets Triton; the run that it stands in for is refused with that setting.
del os.environ["TRITON_INTERPRET"]
