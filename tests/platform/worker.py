"""The process of an arm: runs scenarios with the platform that sitecustomize installed."""

import importlib
import os

import torch

from . import recorder
from .process import serve
from .value import Platform


def _run(scenario: str, source: str, target: str) -> dict:
    platform = Platform(os.environ["SGLANG_TEST_PLATFORM"], os.environ["SGLANG_TEST_ARCH"])
    module, function = scenario.split(":")
    inputs = _moved(_plainly(torch.load, source), platform.device)
    with torch.no_grad(), recorder.record() as run:
        outputs = getattr(importlib.import_module(module), function)(platform, **inputs)
    _plainly(torch.save, _moved(outputs, "cpu"), target)
    return {
        "operators": run.operators,
        "kernels": run.kernels,
        "tensor_operations": run.tensor_operations,
    }


def _moved(values: dict, device) -> dict:
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
    }


def _plainly(function, *arguments):
    """Without the mode that says of every tensor that it is on a GPU."""
    with torch._C.DisableTorchFunction():
        return function(*arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(_run)
