"""Catches a comparison of real servers that fails patches that are right, or passes broken ones.

Two real sglang servers on the emulated platform and a model that was trained to answer. Its FP8 KV
cache has scales, with which upstream's decode is wrong: so the pristine arm runs without FP8, as it
does wherever upstream cannot run what the patches make possible.
"""

import contextlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from ci.regression.comparison import HOUSE, add_arguments, from_arguments
from ci.regression.servers import serving
from tests.faults.fault import Fault, house_with
from tests.platform.trees import BUILD, ROOT, patched_tree, pristine_tree
from tests.regression.toy import toy

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(1800)]

RELEASE = Fault.release
LAUNCHER = (
    "{python} -m tests.platform.run --tree {tree} --platform cpu --arch gfx942 "
    "tests/regression/serving/launch_server.py"
)
SMALL = (
    "--disable-cuda-graph --sampling-backend pytorch --grammar-backend none --dtype bfloat16 "
    "--max-running-requests 32 --max-total-tokens 8192 --context-length 512 "
    "--mem-fraction-static 0.5 --chunked-prefill-size 4096 --skip-server-warmup"
)
BF16 = "--kv-cache-dtype auto"
SCALES_DROPPED = Fault(
    "the write drops the scales",
    "fp8-kv-write",
    "fp8_kv_write.py",
    "    write_kv(k, v, cache, slots, k_scale, v_scale)\n",
    "    write_kv(k, v, cache, slots, None, None)\n",
)


def arguments(patched: Path) -> list[str]:
    model = str(toy("minimax-m2").path)
    return [
        *("--preset", "minimax-m2.5", "--release", RELEASE, "--arch", "gfx942", "--model", model),
        *("--tp", "1", "--launcher", LAUNCHER, "--server-args", SMALL, "--pristine-args", BF16),
        *("--pristine-tree", str(pristine_tree(RELEASE)), "--patched-tree", str(patched)),
    ]


@pytest.fixture(scope="module")
def environment():
    bytecode = {"PYTHONPYCACHEPREFIX": str(BUILD / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}
    before = dict(os.environ)
    os.environ.update(bytecode)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def urls(environment, tmp_path_factory):
    """Both servers, started side by side."""
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    compared = from_arguments(parser.parse_args(arguments(patched_tree(RELEASE))))
    work = tmp_path_factory.mktemp("servers")
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as side_by_side:

        def start(arm):
            log = work / f"{arm.name}.log"
            return stack.enter_context(serving(arm, LAUNCHER, work, log, 900))

        found = list(side_by_side.map(start, compared.arms.values()))
        yield dict(zip(compared.arms, found, strict=True))


def run(command: str, output: Path, *further: str, patched: Path | None = None):
    given = [*arguments(patched or patched_tree(RELEASE)), "--output", str(output), *further]
    done = subprocess.run(
        [sys.executable, HOUSE / "ci" / command, "run", *given],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert output.exists(), done.stderr
    return done.returncode, json.loads(output.read_text())


def asked(limit: int, runs: int) -> list[str]:
    return [
        *("--data", str(toy("minimax-m2").data), "--limit", str(limit), "--runs", str(runs)),
        *("--concurrency", "32", "--max-tokens", "4"),
    ]


def test_patches_that_are_right_pass(urls, tmp_path):
    """The margin is what 100 questions can bear: none of them lost excludes a loss of 3 points."""
    code, result = run(
        "gsm8k.py", tmp_path / "r.json", *asked(100, 2), "--margin", "3",
        "--pristine-url", urls["pristine"], "--patched-url", urls["patched"],
    )  # fmt: skip
    assert (code, result["verdict"]) == (0, "PASS"), result["message"]
    assert min(result["statistics"]["accuracy"]["pristine"]) > 0.95
    assert result["arms"]["pristine"][0]["server"] == "pristine tree"
    slugs = result["arms"]["patched"][0]["report"]["slugs"]
    assert slugs["fp8-kv-write"]["state"] == "active"


def test_dropped_kv_scales_are_a_regression(urls, tmp_path):
    """The faulty server is started and ended by the command."""
    with house_with(SCALES_DROPPED) as house:
        code, result = run(
            "gsm8k.py", tmp_path / "r.json", *asked(24, 1),
            "--pristine-url", urls["pristine"], patched=house.tree,
        )  # fmt: skip
    assert (code, result["verdict"]) == (1, "REGRESSION"), result["message"]


def test_throughput_of_real_servers_is_measured_and_judged(urls, tmp_path):
    """What is measured means nothing on an emulated platform; that it is, and how it is kept."""
    code, result = run(
        "throughput.py", tmp_path / "t.json", "--lengths", "16/4", "--concurrency", "2",
        "--prompts", "2", "--pristine-url", urls["pristine"], "--patched-url", urls["patched"],
    )  # fmt: skip
    assert code in (0, 1, 3)
    [point] = result["values"].values()
    assert [len(values) for arm in point.values() for values in arm.values()] == [3] * 6
    assert "16/4 c2 output_throughput" in (tmp_path / "t.md").read_text()
