"""One arm of a comparison: a process with one sglang tree, one platform and one set of switches.

    pristine = Arm(tree, platform)
    result = pristine.run("tests.modules.norms:layernorm", x=x, dtype="bfloat16")
    result.outputs["y"]; result.operators; result.kernels; result.launches

A scenario is a function of a module that is imported in the arm. It is called with the platform and
the inputs (tensors are on the platform's device) and returns a dict of tensors and plain values.
Several scenarios may share the process. A scenario that leaves state behind runs with `alone=True`.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .emulation import environment
from .nursery import fork
from .process import Process, Worker
from .value import Platform


@dataclass(frozen=True)
class Result:
    outputs: dict = field(repr=False)
    operators: dict[str, int]
    kernels: dict[str, int]
    tensor_operations: dict[str, int]

    @property
    def launches(self) -> int:
        counters = (self.operators, self.kernels, self.tensor_operations)
        return sum(sum(counter.values()) for counter in counters)


class Arm:
    def __init__(
        self,
        tree: Path,
        platform: Platform,
        absent=(),
        packages=None,
        imports: tuple[str, ...] = (),
        **switches: str,
    ):
        """`absent`: operators that an older aiter lacks; `packages`: see emulation.environment;
        `imports`: what all scenarios need of the tree, worth importing once for many such arms."""
        self.platform, self.packages, self.imports = platform, packages, imports
        self.environment = environment(platform, tree, packages, **switches)
        self.environment["SGLANG_TEST_ABSENT"] = ",".join(absent)
        self._worker: Worker | None = None

    def run(self, scenario: str, alone: bool = False, **inputs) -> Result:
        if alone:
            worker = self._start()
            try:
                return self._ask(worker, scenario, inputs)
            finally:
                worker.close()
        if self._worker is None or self._worker.ended:
            self._worker = self._start()
        return self._ask(self._worker, scenario, inputs)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()

    def _start(self) -> Worker:
        if self.platform.name == "cpu":
            return fork(self.platform, self.packages, self.imports, self.environment)
        return Process("tests.platform.worker", self.environment)

    def _ask(self, worker: Worker, scenario: str, inputs: dict) -> Result:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "inputs.pt"), Path(folder, "outputs.pt")
            torch.save(inputs, source)
            answer = worker.ask(
                {"scenario": scenario, "source": str(source), "target": str(target)}
            )
            return Result(outputs=torch.load(target), **answer)
