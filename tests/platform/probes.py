"""Scenarios that look at the emulation itself; no sglang tree is needed."""

import subprocess
import sys
import threading

import torch
import triton
import triton.language as tl

from . import recorder


def device(platform):
    x = torch.arange(4, device="cuda")
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.ones(2, device="cuda:0").device))
    thread.start()
    thread.join()
    properties = torch.cuda.get_device_properties(0)
    code = "import torch; print(torch.version.hip, torch.cuda.get_device_properties(0).gcnArchName)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {
        "device": str(x.device),
        "is_cuda": x.is_cuda,
        "like": str(torch.empty_like(x).to("cuda", non_blocking=True).device),
        "thread": str(seen[0]),
        "hip": torch.version.hip,
        "arch": properties.gcnArchName.split(":")[0],
        "child": child.stdout,
        "values": x,
    }


def devices(platform):
    """Each way to say which device a tensor is to be made on or moved to."""
    host = torch.arange(4, device="cpu")
    found = {"to an ordinal": host.to(0), "to an ordinal and a type": host.to(0, torch.float32)}
    found["by ordinal"] = torch.ones(2, device=0)
    found["cuda of an ordinal"] = host.cuda(0)
    with torch.device("cuda"):
        found["a context"] = torch.zeros(3)
        with torch.device("cuda:0"):
            found["a context in a context"] = torch.empty(2, 2)
        found["a random one"] = torch.randn(3)
        found["a module"] = torch.nn.Linear(2, 2).weight
        found["a tensor of numbers"] = torch.tensor([1.0])
    torch.set_default_device("cuda")
    try:
        found["the default"] = torch.full((2,), 5.0)
        default = str(torch.get_default_device())
    finally:
        torch.set_default_device(None)
    return {
        "devices": {name: str(x.device) for name, x in found.items()},
        "sum": sum(float(x.double().sum()) for x in (found["to an ordinal"], found["the default"])),
        "default": default,
    }


def names(platform):
    import aiter
    from aiter import layernorm2d_fwd, some_new_operator
    from sgl_kernel.somewhere import other_operator

    def refusal(call):
        try:
            call()
        except NotImplementedError as error:
            return f"{type(error).__name__}: {error}"
        return "nothing raised"

    return {
        "provided": callable(layernorm2d_fwd),
        "dtype": str(aiter.dtypes.fp8),
        "operator": refusal(lambda: some_new_operator(1)),
        "module": refusal(other_operator),
    }


def absent(platform):
    try:
        from aiter.ops.cache import indexer_k_quant_and_cache  # noqa: F401
    except ImportError as error:
        return {"error": str(error)}
    return {"error": ""}


@triton.jit
def _double(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n, other=0.0) * 2, mask=i < n)


def launches(platform, x):
    from aiter import rmsnorm2d_fwd

    weight, out = torch.ones(x.shape[-1], dtype=x.dtype, device=x.device), torch.empty_like(x)
    x = x + 0
    with recorder.measured():
        y = rmsnorm2d_fwd(x, weight, 1e-6)
        _double[(1,)](x, out, x.numel(), BLOCK=64)
        z = (y.view(-1) + 1).view(y.shape)
    return {"y": z + 1}


@torch.library.custom_op("rocm_patches_probes::double_in_place", mutates_args={"x"})
def _double_in_place(x: torch.Tensor) -> None:
    _double[(1,)](x, x, x.numel(), BLOCK=64)


def graph(platform, first, second):
    """Captured on `first`, replayed on `second`: a tensor operation, a kernel and operators.

    One is registered with torch and works in place, by a kernel that must not run twice.
    """
    from aiter import rmsnorm2d_fwd

    weight = torch.ones(first.shape[-1], dtype=first.dtype, device=first.device)
    held, doubled = first.clone(), torch.empty_like(first)

    def step():
        _double[(1,)](held, doubled, held.numel(), BLOCK=64)
        _double_in_place(doubled)
        normed = rmsnorm2d_fwd(doubled + 1, weight, 1e-6)
        return normed.view(-1)[2:] * 3

    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        result = step()
    held.copy_(second)
    captured.replay()
    replayed = result.clone()
    return {"replayed": replayed, "eager": step()}


def failing(platform):
    raise LookupError("the scenario's own error")
