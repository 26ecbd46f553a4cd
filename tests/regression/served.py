"""The toys as pairs of real sglang servers on the emulated platform, compared by ci/gsm8k.py.

`both` starts a pair side by side; `judge` gives the result for it, or for a server with a fault in
the patched one's place, which is started once for both runs.
"""

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from ci.regression.comparison import HOUSE, Comparison, add_arguments, from_arguments
from ci.regression.presets import PRESETS
from ci.regression.servers import serving
from tests.faults import table
from tests.faults.fault import Fault, house_with
from tests.platform.trees import ROOT, packages, patched_tree, pristine_tree
from tests.regression.toy import NSA_SHOTS, toy

ARCH = Fault.arch
SMALL = (
    "--disable-cuda-graph --sampling-backend pytorch --grammar-backend none --dtype bfloat16 "
    "--max-running-requests 32 --max-total-tokens 8192 --mem-fraction-static 0.5 "
    "--chunked-prefill-size 4096 --skip-server-warmup --sleep-on-idle"
)
START_SECONDS = 900
FEW = 24  # questions that a fault gets wrong by far more than chance
# None of MANY lost, twice, excludes a loss of MARGIN points.
MANY, MARGIN = 100, 5


@dataclass(frozen=True)
class Model:
    name: str
    toy: str
    preset: str
    context: int = 512
    shots: int = 5
    pristine: str = ""  # flags of the pristine server alone
    release: str = Fault.release

    @property
    def launcher(self) -> str:
        older = packages(self.release)
        own = f"env PYTHONPATH={older} " if older else ""
        emulated = f"{{python}} -m tests.platform.run --tree {{tree}} --platform cpu --arch {ARCH} "
        return own + emulated + "tests/regression/serving/launch_server.py"

    @property
    def slugs(self) -> tuple[str, ...]:
        return PRESETS[self.preset].slugs


QWEN = Model("qwen3-moe", "qwen3-moe", "qwen3-moe")
MODELS = {
    model.name: model
    for model in (
        # Its FP8 cache has scales, with which upstream's decode is wrong: so the pristine arm runs
        # without FP8, as it does wherever upstream cannot run what the patches make possible.
        Model("minimax-m2", "minimax-m2", "minimax-m2.5", pristine="--kv-cache-dtype auto"),
        QWEN,
        # The one of these that the transformers of 0.5.9 knows.
        replace(QWEN, name="0.5.9-qwen3-moe", release="0.5.9"),
        Model("glm-5", "glm-5", "glm-5", 4096, NSA_SHOTS),
    )
}
KNOWN = {fault.name: fault for fault in table.FAULTS}
FAULTS = {
    "minimax-m2": [
        Fault(
            "the write drops the scales",
            "fp8-kv-write",
            "fp8_kv_write.py",
            "    write_kv(k, v, cache, slots, k_scale, v_scale)\n",
            "    write_kv(k, v, cache, slots, None, None)\n",
        )
    ],
    "qwen3-moe": [
        Fault(
            "the pristine steps rotate, and the launch once more",
            "rope-kv-store",
            "rope_kv_store.py",
            "    _launch(\n",
            "    query, key = rope.forward_cuda(positions, query, key, offsets)\n    _launch(\n",
        )
    ],
    "glm-5": [
        KNOWN["prepare and core both rotate"],
        KNOWN["index keys go to the next token's slot"],
    ],
}
FAULTS["0.5.9-qwen3-moe"] = [replace(each, release="0.5.9") for each in FAULTS["qwen3-moe"]]


def arguments(model: Model, patched: Path) -> list[str]:
    small = f"{SMALL} --context-length {model.context}"
    return [
        *("--preset", model.preset, "--release", model.release, "--arch", ARCH, "--tp", "1"),
        *("--model", str(toy(model.toy).path), "--launcher", model.launcher),
        *("--server-args", small, "--pristine-args", model.pristine),
        *("--pristine-tree", str(pristine_tree(model.release)), "--patched-tree", str(patched)),
    ]


def compared(model: Model, patched: Path) -> Comparison:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return from_arguments(parser.parse_args(arguments(model, patched)))


@contextlib.contextmanager
def both(model: Model, work: Path) -> Iterator[dict[str, str]]:
    """The URL of each arm's server, the patched one with patches that are right."""
    arms = compared(model, patched_tree(model.release)).arms
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as side_by_side:

        def start(arm):
            log = work / f"{arm.name}.log"
            return stack.enter_context(serving(arm, model.launcher, work, log, START_SECONDS))

        found = list(side_by_side.map(start, arms.values()))
        yield dict(zip(arms, found, strict=True))


def run(command: str, model: Model, output: Path, *further: str, patched: Path | None = None):
    """Exit code and result of ci/COMMAND."""
    given = arguments(model, patched or patched_tree(model.release))
    given += ["--output", str(output), *further]
    done = subprocess.run(
        [sys.executable, HOUSE / "ci" / command, "run", *given],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if not output.exists():
        raise RuntimeError(done.stderr)
    return done.returncode, json.loads(output.read_text())


def judge(model: Model, urls: dict[str, str], fault: Fault | None, output: Path):
    """Exit code and result of ci/gsm8k.py; a faulty server is started and ended by it."""
    asked = ["--data", str(toy(model.toy).data), "--shots", str(model.shots)]
    asked += ["--concurrency", "32", "--max-tokens", "2"]  # "#### 7": what follows is not asked for
    asked += ["--pristine-url", urls["pristine"]]
    if fault is None:
        asked += ["--limit", str(MANY), "--runs", "2", "--margin", str(MARGIN)]
        return run("gsm8k.py", model, output, *asked, "--patched-url", urls["patched"])
    asked += ["--limit", str(FEW), "--runs", "2"]
    with house_with(fault) as house:
        arm = compared(model, house.tree).arms["patched"]
        log = output.with_suffix(".server.log")
        with serving(arm, model.launcher, output.parent, log, START_SECONDS) as url:
            given = [*asked, "--patched-url", url]
            return run("gsm8k.py", model, output, *given, patched=house.tree)
