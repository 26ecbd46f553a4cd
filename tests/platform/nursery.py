"""A process that has imported what every arm needs, all but sglang, and forks into arms.

Importing torch, Triton and sglang's own requirements is most of an arm's start. On the CPU platform
they are imported once for each architecture and set of packages. A GPU allows no fork.
"""

import functools
import importlib
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import TextIO

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


class Fork(Worker):
    """A child of a nursery, with the environment of an arm."""

    def __init__(self, nursery: Worker, environment: dict[str, str]):
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            address = str(Path(folder, "arm"))
            listener.bind(address)
            listener.listen()
            nursery.ask({"address": address, "environment": environment})
            self.connection = listener.accept()[0]
        super().__init__(self.connection.makefile("w"), self.connection.makefile("r"))

    def finish(self) -> str:
        self.connection.close()
        return "the worker ended"


@functools.cache
def nursery(platform: Platform, packages: Path | None) -> Worker:
    from .emulation import environment

    return Process("tests.platform.nursery", environment(platform, NO_TREE, packages))


def _fork(answers: TextIO, address: str, environment: dict[str, str]) -> dict:
    if os.fork():
        return {}
    answers.close()  # or a nursery that died would seem to be busy
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _become(environment)
    from .worker import run

    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        serve(run, connection.makefile("r"), connection.makefile("w"))
    raise SystemExit


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
    for name in IMPORTED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the arms
    answers = stdout_for_answers()
    serve(functools.partial(_fork, answers), sys.stdin, answers)
