"""Triton's view of the device: a HIP target, where its own driver finds no AMD GPU."""

import functools

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from .value import Platform

# Options of Triton's AMD backend; the NVIDIA backend refuses what it does not know.
AMD_OPTIONS = ("waves_per_eu", "matrix_instr_nonkdim", "kpack")


class HipDriver:
    """Of a machine without a GPU: nothing is compiled, the interpreter runs all kernels."""

    def __init__(self, arch: str):
        self.target = GPUTarget("hip", arch, 64)
        self.lds = Platform("rocm", arch).lds_bytes

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=0):
        return 0

    def get_device_interface(self):
        return torch.cuda

    def get_active_torch_device(self):
        return torch.device("cuda", 0)

    @property
    def utils(self):
        return self

    def get_device_properties(self, device):
        compute_units = torch.cuda.get_device_properties(device).multi_processor_count
        return {"multiprocessor_count": compute_units, "max_shared_mem": self.lds, "warpSize": 64}


def install(platform: Platform) -> None:
    if platform.name == "cpu":
        driver.set_active(HipDriver(platform.arch))
        return
    assert driver.active is not None  # found now: later torch.version.hip hides NVIDIA's
    launch = JITFunction.run

    @functools.wraps(launch)
    def run(self, *args, **kwargs):
        for option in AMD_OPTIONS:
            if option not in self.arg_names:
                kwargs.pop(option, None)
        return launch(self, *args, **kwargs)

    JITFunction.run = run
