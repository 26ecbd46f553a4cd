"""A CPU in place of an AMD GPU: torch.cuda answers like ROCm's, and tensors are in host memory.

Every tensor reports the device cuda:0, and a tensor requested on "cuda" is allocated on the CPU.
This cannot detect a missing copy to the device, a race, or a missing synchronization.
A function of torch.cuda that is not listed here fails as in any torch without CUDA.
"""

import contextlib
import os
import threading
import time
import types

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext, _device_constructors

from .value import Platform

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)

_DEVICE = torch.Tensor.device.__get__
_CONSTANT_PROPERTIES = {torch.Tensor.is_cuda.__get__: True, torch.Tensor.is_cpu.__get__: False}
# Methods that are about the device alone.
_STAYS = {torch.Tensor.cuda, torch.Tensor.pin_memory}
_CONSTANT_METHODS = {
    torch.Tensor.is_pinned: False,
    torch.Tensor.record_stream: None,
    torch.Tensor.get_device: 0,
}


def _is_gpu(device) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.partition(":")[0] == "cuda"


def _made_by_default(context, function, types, args=(), kwargs=None):
    """``with torch.device("cuda")`` and torch.set_default_device: torch's own mode.

    It may lie below this one, and then nobody looks at what it adds to a call.
    """
    kwargs = dict(kwargs or {})
    if function in _device_constructors() and kwargs.get("device") is None:
        kwargs["device"] = CPU if _is_gpu(context.device) else context.device
    return function(*args, **kwargs)


class OnTheCpu(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        # Getters are new objects at each look-up: compare, do not look up by identity.
        if function == _DEVICE:
            device = function(*args)
            return GPU if device == CPU else device
        for getter, value in _CONSTANT_PROPERTIES.items():
            if function == getter:
                return value
        if function in _STAYS:
            return args[0]
        if function in _CONSTANT_METHODS:
            return _CONSTANT_METHODS[function]
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if _is_gpu(device) or type(device) is int:
            kwargs["device"] = CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        if function is torch.Tensor.to and len(args) > 1 and type(args[1]) is int:
            args = (args[0], CPU, *args[2:])
        args = args[:1] + tuple(CPU if _is_gpu(arg) else arg for arg in args[1:])
        return function(*args, **kwargs)


class Stream:
    """Everything runs in order on the one CPU, so a stream has nothing to do."""

    device, device_index, cuda_stream, stream_id = GPU, 0, 0, 0

    def __init__(self, device=None, priority=0, **_):
        self.priority = priority

    def wait_stream(self, stream):
        pass

    def wait_event(self, event):
        pass

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self):
        pass

    def query(self):
        return True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    @staticmethod
    def priority_range():
        return (0, -1)


class Event:
    def __init__(self, enable_timing=False, blocking=False, interprocess=False, **_):
        self.time = None

    def record(self, stream=None):
        self.time = time.perf_counter()

    def wait(self, stream=None):
        pass

    def synchronize(self):
        pass

    def query(self):
        return True

    def elapsed_time(self, later):
        return (later.time - self.time) * 1e3


class _DeviceContext:
    def __init__(self, device=None):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def properties(arch: str, memory: int):
    return types.SimpleNamespace(
        name={"gfx942": "AMD Instinct MI300X", "gfx950": "AMD Instinct MI355X"}[arch],
        gcnArchName=f"{arch}:sramecc+:xnack-",
        total_memory=memory,
        multi_processor_count={"gfx942": 304, "gfx950": 256}[arch],
        major=9,
        minor={"gfx942": 4, "gfx950": 5}[arch],
        warp_size=64,
        shared_memory_per_block=Platform("rocm", arch).lds_bytes,
        max_threads_per_multi_processor=2048,
        L2_cache_size=4 << 20,
        is_integrated=False,
        uuid="0",
    )


def _always(value):
    return lambda *args, **kwargs: value


def install(arch: str, memory: int = 2 << 30) -> None:
    import torch._dynamo
    import torch._inductor.utils

    gpu = properties(arch, memory)
    stream = Stream()
    torch.version.hip, torch.version.cuda = "7.0.51831", None
    nothing = _always(None)
    replacements = {
        "is_available": _always(True),
        "is_initialized": _always(True),
        "init": nothing,
        "_lazy_init": nothing,
        "device_count": lambda: int(os.environ.get("SGLANG_TEST_GPUS", "1")),
        "current_device": _always(0),
        "set_device": nothing,
        "device": _DeviceContext,
        "device_of": _DeviceContext,
        "_exchange_device": _always(0),
        "_maybe_exchange_device": _always(0),
        "get_device_properties": _always(gpu),
        "get_device_name": _always(gpu.name),
        "get_device_capability": _always((gpu.major, gpu.minor)),
        "get_arch_list": _always([arch]),
        "can_device_access_peer": _always(True),
        "is_bf16_supported": _always(True),
        "mem_get_info": _always((memory, memory)),
        "memory_allocated": _always(0),
        "memory_reserved": _always(0),
        "max_memory_allocated": _always(0),
        "max_memory_reserved": _always(0),
        "memory_stats": _always({}),
        "reset_peak_memory_stats": nothing,
        "reset_max_memory_allocated": nothing,
        "empty_cache": nothing,
        "ipc_collect": nothing,
        "synchronize": nothing,
        "Stream": Stream,
        "Event": Event,
        "stream": contextlib.nullcontext,
        "current_stream": _always(stream),
        "default_stream": _always(stream),
        "set_stream": nothing,
        "manual_seed": nothing,
        "manual_seed_all": nothing,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": nothing,
        "cudart": _always(
            types.SimpleNamespace(cudaProfilerStart=nothing, cudaProfilerStop=nothing)
        ),
    }
    for name, replacement in replacements.items():
        setattr(torch.cuda, name, replacement)
    torch.Stream = torch.cuda.streams.Stream = Stream
    torch.Event = torch.cuda.streams.Event = Event
    for name in ("range_push", "range_pop", "mark"):
        setattr(torch.cuda.nvtx, name, nothing)
    torch._C._cuda_getCurrentRawStream = _always(0)
    torch._C._cuda_getDeviceCount = torch.cuda.device_count
    accelerator = {
        "is_available": _always(True),
        "device_count": torch.cuda.device_count,
        "current_accelerator": _always(torch.device("cuda")),
        "current_device_index": _always(0),
        "set_device_index": nothing,
        "synchronize": nothing,
        "current_stream": _always(stream),
    }
    for name, replacement in accelerator.items():
        setattr(torch.accelerator, name, replacement)
    DeviceContext.__torch_function__ = _made_by_default
    torch.nn.Module.cuda = lambda self, device=None: self
    torch.Generator = _Generator
    _kernels_of_cuda_serve_the_cpu()
    _enter_in_every_thread()


class _Generator(torch.Generator):
    def __new__(cls, device=None):
        return super().__new__(cls, device="cpu")


def _kernels_of_cuda_serve_the_cpu() -> None:
    register = torch.library.Library.impl

    def impl(self, op_name, fn, dispatch_key="", **kwargs):
        if dispatch_key == "CUDA":
            dispatch_key = "CPU"
        return register(self, op_name, fn, dispatch_key, **kwargs)

    torch.library.Library.impl = impl


def _enter_in_every_thread() -> None:
    OnTheCpu().__enter__()
    bootstrap = threading.Thread._bootstrap_inner

    def _bootstrap_inner(self):
        with OnTheCpu():
            bootstrap(self)

    threading.Thread._bootstrap_inner = _bootstrap_inner
