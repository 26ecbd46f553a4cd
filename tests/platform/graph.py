"""HIP graphs on a CPU: a capture records the operations, a replay runs them on the same memory.

Host code is frozen at capture, as on a GPU: numbers, shapes and branches are those of the capture.
This cannot detect a synchronization that a GPU refuses during capture.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten

from . import recorder

_POOL = (0, 0)


def _tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Capture(TorchDispatchMode):
    def __init__(self, graph: "CUDAGraph"):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # A registered operator of torch's is replayed as a whole, and not what it launches as well.
        with recorder.captured_by(None):
            result = function(*args, **kwargs)
        if not recorder.inside_a_launch() and not function.is_view:
            self.graph.add(function, args, kwargs, result)
        return result


class CUDAGraph:
    capturing = False

    def __init__(self, keep_graph: bool = False):
        self.steps: list = []

    def add(self, function, args, kwargs, result) -> None:
        inputs = {_memory(tensor) for tensor in _tensors((args, kwargs))}
        made = [(i, t) for i, t in enumerate(_tensors(result)) if _memory(t) not in inputs]
        self.steps.append((function, args, kwargs, made))

    def capture_begin(self, pool=None, capture_error_mode="global") -> None:
        if CUDAGraph.capturing:
            raise RuntimeError("a capture is under way")
        CUDAGraph.capturing = True
        self.steps = []
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(recorder.captured_by(self.add))
        self._stack.enter_context(_Capture(self))

    def capture_end(self) -> None:
        self._stack.close()
        CUDAGraph.capturing = False

    def replay(self) -> None:
        with torch.no_grad(), _disable_current_modes():
            for function, args, kwargs, made in self.steps:
                result = _tensors(function(*args, **kwargs))
                for index, output in made:
                    output.copy_(result[index])

    def reset(self) -> None:
        self.steps = []

    def pool(self):
        return _POOL


class graph:  # noqa: N801  torch's name
    def __init__(self, cuda_graph, pool=None, stream=None, capture_error_mode="global"):
        self.cuda_graph = cuda_graph

    def __enter__(self):
        self.cuda_graph.capture_begin()

    def __exit__(self, *_):
        self.cuda_graph.capture_end()
        return False


def install() -> None:
    torch.cuda.CUDAGraph = torch.cuda.graphs.CUDAGraph = CUDAGraph
    torch.cuda.graph = torch.cuda.graphs.graph = graph
    torch.cuda.graph_pool_handle = lambda: _POOL
    torch.cuda.is_current_stream_capturing = lambda: CUDAGraph.capturing
