"""Record every operator, every Triton kernel and every tensor operation that a path runs.

    with recorder.record() as run:
        ...
    run.operators["aiter.layernorm2d_fwd"]     # calls
    run.kernels["_layernorm_kernel"]           # launches
    run.launches                               # all of them, torch's own included

The operations inside a reference count as the one operator that the reference replaces.
A scenario of an arm marks the part to be counted, without the preparations:

    with recorder.measured():
        ...
"""

import collections
import contextlib
import functools
import importlib
from dataclasses import dataclass, field

from torch.utils._python_dispatch import TorchDispatchMode


@dataclass
class Run:
    operators: collections.Counter = field(default_factory=collections.Counter)
    kernels: collections.Counter = field(default_factory=collections.Counter)
    tensor_operations: collections.Counter = field(default_factory=collections.Counter)
    finished: bool = False

    def count(self, kind: str, name: str) -> None:
        if not self.finished:
            getattr(self, kind)[name] += 1

    @property
    def launches(self) -> int:
        counters = (self.operators, self.kernels, self.tensor_operations)
        return sum(counter.total() for counter in counters)


_runs: list[Run] = []
_capture = None  # of a graph: called with each launch
_depth = 0


def inside_a_launch() -> bool:
    return _depth > 0


def launch(kind: str, name: str, function, args, kwargs):
    """Run `function` as one launch of an operator or of a kernel."""
    global _depth
    outermost = _depth == 0
    _depth += 1
    try:
        result = function(*args, **kwargs)
    finally:
        _depth -= 1
    if outermost:
        for run in _runs:
            run.count(kind, name)
        if _capture is not None:
            _capture(function, args, kwargs, result)
    return result


@contextlib.contextmanager
def captured_by(capture):
    global _capture
    before, _capture = _capture, capture
    try:
        yield
    finally:
        _capture = before


def recorded(name: str):
    """Decorate an operator: its calls are counted under `name`."""

    def decorate(function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            return launch("operators", name, function, args, kwargs)

        return call

    return decorate


def watch(names: dict[str, str]) -> None:
    """Count the calls of real functions: their qualified names, and what each counts under.

    A name that this release of its package does not have is left out.
    """
    for qualified, counted in names.items():
        owner, attribute = _owner(qualified.split("."))
        if callable(getattr(owner, attribute, None)):
            setattr(owner, attribute, recorded(counted)(getattr(owner, attribute)))


def _owner(parts: list[str]):
    """The module or object that holds the last part, or None."""
    for depth in range(len(parts) - 1, 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            found = importlib.import_module(".".join(parts[:depth]))
            for part in parts[depth:-1]:
                found = getattr(found, part, None)
            return found, parts[-1]
    return None, parts[-1]


class _TensorOperations(TorchDispatchMode):
    """Counts what would launch something: neither views nor bare allocations."""

    ALLOCATIONS = frozenset({"aten::empty", "aten::empty_strided", "aten::empty_like"})

    def __init__(self, run: Run):
        super().__init__()
        self.run = run

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name
        if not inside_a_launch() and not function.is_view and name not in self.ALLOCATIONS:
            self.run.count("tensor_operations", name)
        return result


@contextlib.contextmanager
def record():
    run = Run()
    _runs.append(run)
    try:
        with _TensorOperations(run):
            yield run
    finally:
        _runs.remove(run)


@contextlib.contextmanager
def measured():
    """Only what runs inside counts for the runs that are being recorded."""
    for run in _runs:
        for counter in (run.operators, run.kernels, run.tensor_operations):
            counter.clear()
    yield
    for run in _runs:
        run.finished = True


def count_triton_launches() -> None:
    """From now on each Triton launch of this process is counted by the kernel's name."""
    from triton.runtime import interpreter
    from triton.runtime.jit import JITFunction

    def counted(run):
        @functools.wraps(run)
        def call(self, *args, **kwargs):
            if kwargs.get("warmup"):
                return run(self, *args, **kwargs)
            return launch("kernels", self.fn.__name__, run, (self, *args), kwargs)

        return call

    for kind in (JITFunction, interpreter.InterpretedFunction):
        kind.run = counted(kind.run)
