"""A fork server for arms: it has imported everything that an arm needs except sglang.

Importing torch, Triton and sglang's requirements takes most of the start of an arm. On the CPU
platform, one server per architecture and set of packages imports them once. If all arms of one tree
and environment import the same modules of sglang, a child of the server imports these modules once,
and the arms are forked from that child. A process that uses a GPU cannot be forked.
"""

import functools
import gc
import importlib
import multiprocessing.util
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from .process import Process, Worker, serve, stdout_for_answers
from .value import Platform

# Stands in sys.path for the tree of an arm to come.
NO_TREE = "/no-sglang-tree"
# What sglang imports and no switch or tree has a say in.
IMPORTED = (
    "PIL.Image",
    "aiohttp",
    "compressed_tensors.quantization",
    "einops",
    "fastapi",
    "gguf",
    "huggingface_hub",
    "openai.types.responses",
    "requests",
    "rich",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.processing_auto",
    "transformers.tokenization_utils_base",
    "zmq.asyncio",
)


# What this process and its parent hear each other by.
_ends: list = []


class Fork(Worker):
    """A child of a nursery, with the environment of an arm, or of another child."""

    def __init__(self, parent: Worker, environment: dict[str, str] | None = None):
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            address = str(Path(folder, "arm"))
            listener.bind(address)
            listener.listen()
            parent.ask({"address": address, "environment": environment})
            self.connection = listener.accept()[0]
        super().__init__(self.connection.makefile("w"), self.connection.makefile("r"))

    def finish(self) -> str:
        self.connection.close()
        return "the worker ended"


@functools.cache
def nursery(platform: Platform, packages: Path | None) -> Worker:
    from .emulation import environment

    worker = Process("tests.platform.nursery", environment(platform, NO_TREE, packages))
    worker.ask({"imports": IMPORTED})
    return worker


@functools.cache
def _importer(
    platform: Platform,
    packages: Path | None,
    imports: tuple[str, ...],
    environment: tuple[tuple[str, str], ...],
) -> Worker:
    worker = Fork(nursery(platform, packages), dict(environment))
    worker.ask({"imports": imports})
    return worker


def fork(
    platform: Platform,
    packages: Path | None,
    imports: tuple[str, ...],
    environment: dict[str, str],
) -> Worker:
    """A process of an arm; `imports`, modules of its tree, were imported once for all such."""
    if not imports:
        return Fork(nursery(platform, packages), environment)
    return Fork(_importer(platform, packages, imports, tuple(environment.items())))


def _answer(**question) -> dict:
    if "address" in question:
        return _fork(**question)
    if "imports" in question:
        return _import(**question)
    from .worker import run

    return run(**question)


def _import(imports: list[str]) -> dict:
    gc.disable()
    for name in imports:
        importlib.import_module(name)
    gc.freeze()  # or each child would walk all of this again and again
    gc.enable()
    return {}


def _fork(address: str, environment: dict[str, str] | None) -> dict:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    if not os.fork():
        _be_a_child(address, environment)
    return {}


def _be_a_child(address: str, environment: dict[str, str] | None) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for end in _ends:  # or a parent that died would seem to be busy
        end.close()
    if environment is not None:
        _become(environment)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        _ends[:] = connection.makefile("w"), connection.makefile("r"), connection
        serve(_answer, _ends[1], _ends[0])
    _leave()


def _leave() -> NoReturn:
    """Without taking thousands of modules down, which is a second of a core and more."""
    multiprocessing.util._exit_function()  # its semaphores outlive a process
    sys.stderr.flush()
    os._exit(0)


def _become(environment: dict[str, str]) -> None:
    """This process as if it had been started with that environment."""
    from . import imports

    os.environ.clear()
    os.environ.update(environment)
    tree = environment["PYTHONPATH"].split(os.pathsep)[1]
    sys.path[sys.path.index(NO_TREE)] = tree
    sys.pycache_prefix = environment.get("PYTHONPYCACHEPREFIX")
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    imports.leave_out(filter(None, environment["SGLANG_TEST_ABSENT"].split(",")))


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    _ends[:] = [stdout_for_answers()]
    serve(_answer, sys.stdin, _ends[0])
    _leave()
