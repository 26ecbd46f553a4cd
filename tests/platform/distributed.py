"""Process groups without NCCL, and child processes that do not repeat the imports."""

import functools
import multiprocessing

import torch.distributed as dist


def fork_and_never_spawn() -> None:
    """sglang spawns its processes, since no GPU lives through a fork; here there is none.

    Importing torch and sglang anew is most of a server's start.
    """
    multiprocessing.set_start_method("fork", force=True)
    multiprocessing.set_start_method = lambda method, force=False: None


def use_gloo() -> None:
    """RCCL's calls go to gloo."""
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
