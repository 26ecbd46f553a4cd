"""Process groups without NCCL: RCCL's calls go to gloo."""

import functools

import torch.distributed as dist


def use_gloo() -> None:
    for name in ("init_process_group", "new_group"):
        replacement = _with_gloo(getattr(dist, name))
        setattr(dist, name, replacement)
        setattr(dist.distributed_c10d, name, replacement)


def _with_gloo(function):
    @functools.wraps(function)
    def call(*args, backend=None, device_id=None, **kwargs):
        if "nccl" in args:
            raise TypeError(f"{function.__name__}: backend by position is not emulated")
        if backend is not None and "nccl" in str(backend):
            backend = "gloo"
        return function(*args, backend=backend, **kwargs)

    return call
