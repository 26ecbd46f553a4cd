"""Upstream's kernels for comparison, imported from a pristine release without the rest of sglang.

A kernel module of a release needs only a few facts about the platform from sglang. This module
provides these facts; all other code is the published file. No other code of sglang runs, so its
requirements need not be installed, and an installed sglang does not matter.
"""

import functools
import importlib
import importlib.util
import sys
import types
from pathlib import Path

import torch

from tests.platform import trees
from tests.platform.value import Platform

RELEASE = "0.5.10.post1"
PACKAGES = ("layers", "layers.quantization", "layers.rotary_embedding", "mem_cache")


@functools.cache
def install(platform: Platform) -> None:
    """Make `sglang.srt` the overlay and the pristine release's modules, on this platform."""
    overlay, pristine = trees.ROOT / "overlay" / "sglang", trees.pristine_tree(RELEASE) / "sglang"
    _package("sglang", overlay)
    _package("sglang.srt", overlay / "srt")
    for name in PACKAGES:
        _package(f"sglang.srt.{name}", pristine / "srt" / name.replace(".", "/"))
    _module(
        "sglang.srt.utils",
        is_cuda=lambda: False,
        is_hip=lambda: True,
        is_gfx95_supported=lambda: platform.arch == "gfx950",
    )
    _module("sglang.srt.environ", envs=None)
    _module(
        "sglang.srt.layers.quantization.fp8_kernel",
        is_fp8_fnuz=lambda: platform.fp8_dtype == torch.float8_e4m3fnuz,
    )


def _package(name: str, folder: Path) -> None:
    _module(name, __path__=[str(folder)])


def _module(name: str, **contents) -> None:
    module = types.ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


def kernel(module: str, name: str):
    """A function of a pristine module, such as "mem_cache.utils"."""
    return getattr(importlib.import_module(f"sglang.srt.{module}"), name)


@functools.cache
def installed(module: str, name: str):
    """A function of a compiled package such as aiter, None where this machine has none.

    A package that is there and fails at import, or lacks the function, is said once: its column
    stays empty, the others are measured.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return None
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as problem:  # what a compiled package raises at import is its own affair
        print(f"{module}.{name} is left out: {type(problem).__name__}: {problem}", flush=True)
        return None
