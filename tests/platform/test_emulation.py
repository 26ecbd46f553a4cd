"""Catches an arm with a wrong device, a wrong device name, or a launch that is not counted."""

import subprocess
import sys
import types

import pytest
import torch

from tests.platform import recorder
from tests.platform.arm import Arm
from tests.platform.process import ROOT, WorkerError
from tests.tolerances import assert_bitwise

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def arm(platform, tmp_path_factory):
    arm = Arm(tmp_path_factory.mktemp("tree"), platform)
    yield arm
    arm.close()


@pytest.fixture
def emulated(platform):
    if platform.name == "rocm":
        pytest.skip("nothing is replaced there")


def test_the_process_and_its_children_have_an_amd_gpu(arm, platform):
    seen = arm.run("tests.platform.probes:device").outputs
    assert seen["arch"] == platform.arch
    assert seen["hip"]
    assert {seen["device"], seen["like"], seen["thread"]} == {"cuda:0"}
    assert seen["is_cuda"]
    assert platform.arch in seen["child"]
    assert seen["values"].tolist() == [0, 1, 2, 3]


def test_every_way_to_name_a_device_names_the_gpu(arm):
    seen = arm.run("tests.platform.probes:devices", alone=True).outputs
    assert set(seen["devices"].values()) == {"cuda:0"}, seen["devices"]
    assert (seen["sum"], seen["default"]) == (16.0, "cuda:0")


@pytest.mark.usefixtures("emulated")
def test_a_name_that_nothing_provides_raises_by_name_when_it_is_called(arm, platform):
    seen = arm.run("tests.platform.probes:names").outputs
    assert seen["provided"]
    assert seen["dtype"] == str(platform.fp8_dtype)
    assert seen["operator"].startswith("NotEmulatedError: aiter.some_new_operator was called")
    assert seen["module"].startswith("NotEmulatedError: sgl_kernel.somewhere.other_operator")


@pytest.mark.usefixtures("emulated")
def test_an_older_aiter_lacks_a_name(arm, platform, tmp_path):
    assert arm.run("tests.platform.probes:absent").outputs["error"] == ""
    older = Arm(tmp_path, platform, absent=("aiter.ops.cache.indexer_k_quant_and_cache",))
    assert (
        "indexer_k_quant" in older.run("tests.platform.probes:absent", alone=True).outputs["error"]
    )


@pytest.mark.usefixtures("emulated")
def test_every_launch_of_the_measured_part_is_counted_once(arm):
    result = arm.run("tests.platform.probes:launches", x=torch.randn(4, 16).bfloat16())
    assert result.operators == {"aiter.rmsnorm2d_fwd": 1}
    assert result.kernels == {"_double": 1}
    assert result.tensor_operations == {"aten::add": 1}
    assert result.launches == 3


@pytest.mark.usefixtures("emulated")
def test_a_graph_replays_what_it_captured_on_new_values(arm, platform):
    if platform.name != "cpu":
        pytest.skip("a real GPU has real graphs")
    first, second = torch.randn(2, 4, 16).bfloat16()
    seen = arm.run("tests.platform.probes:graph", first=first, second=second).outputs
    assert_bitwise(seen["replayed"], seen["eager"])


def test_an_error_of_the_scenario_comes_back_with_its_traceback(arm):
    with pytest.raises(WorkerError, match=r"in failing\n(.*\n)*LookupError: the scenario's own"):
        arm.run("tests.platform.probes:failing")
    assert arm.run("tests.platform.probes:device").outputs["is_cuda"]


def test_calls_of_real_operators_are_counted_by_each_of_their_names(monkeypatch):
    package, module = types.ModuleType("aiter_here"), types.ModuleType("aiter_here.gemm")
    package.norm = lambda x: x + 1
    module.tuned = types.SimpleNamespace(mm=lambda x: x * 2)
    monkeypatch.setitem(sys.modules, "aiter_here", package)
    monkeypatch.setitem(sys.modules, "aiter_here.gemm", module)
    names = ["aiter_here.norm", "aiter_here.gemm.tuned.mm", "aiter_here.newer", "not_here.at.all"]
    recorder.watch({name: f"counted {name}" for name in names})
    with recorder.record() as run:
        assert package.norm(1) + module.tuned.mm(2) == 6
    assert run.operators == {f"counted {name}": 1 for name in names[:2]}


def test_a_script_runs_as_if_there_were_an_amd_gpu(platform, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys, os, torch; print(torch.version.hip, sys.argv[1], sys.path[2])")
    command = ["--tree", tmp_path / "tree", "--platform", platform.name, "--arch", platform.arch]
    done = subprocess.run(
        [sys.executable, "-m", "tests.platform.run", *command, script, "given"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    hip, argument, path = done.stdout.split()
    assert hip != "None"
    assert argument == "given"
    assert path == str(tmp_path / "tree")
