"""Catches an arm that is not what it says: another device, a faked name, a launch not counted."""

import pytest
import torch

from tests.platform.arm import Arm
from tests.platform.process import WorkerError
from tests.tolerances import assert_bitwise


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
