"""The process of an arm: runs scenarios with the platform that sitecustomize installed."""

import importlib
import os
import sys

import torch

from . import recorder
from .process import serve, stdout_for_answers
from .value import Platform


def run(scenario: str, source: str, target: str) -> dict:
    platform = Platform(os.environ["SGLANG_TEST_PLATFORM"], os.environ["SGLANG_TEST_ARCH"])
    module, function = scenario.split(":")
    inputs = _plainly(torch.load, source)
    inputs = {name: _on_device(platform.device, value) for name, value in inputs.items()}
    with torch.no_grad(), recorder.record() as run:
        outputs = getattr(importlib.import_module(module), function)(platform, **inputs)
    _plainly(torch.save, {name: _on_cpu(value) for name, value in outputs.items()}, target)
    return {
        "operators": run.operators,
        "kernels": run.kernels,
        "tensor_operations": run.tensor_operations,
    }


def _on_cpu(value):
    return value.cpu() if isinstance(value, torch.Tensor) else value


def _on_device(device, value):
    """A tensor on the device, with its strides and with what lies between its rows."""
    if not isinstance(value, torch.Tensor):
        return value
    size = value.untyped_storage().nbytes() // value.element_size()
    memory = value.as_strided((size,), (1,), 0).to(device)
    return memory.as_strided(value.shape, value.stride(), value.storage_offset())


def _plainly(function, *arguments):
    """Without the mode that says of every tensor that it is on a GPU."""
    with torch._C.DisableTorchFunction():
        return function(*arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(run, sys.stdin, stdout_for_answers())
