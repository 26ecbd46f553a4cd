"""Catches a comparison of real servers that fails patches that are right, or passes broken ones."""

import pytest

pytest.importorskip("lm_eval")

from tests.regression.served import FAULTS, MODELS, both, judge, run

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(1800)]
BROKEN = [
    pytest.param(name, fault, id=f"{name}-{fault.name}")
    for name, faults in FAULTS.items()
    for fault in faults
]


@pytest.fixture(scope="module")
def model(request):
    return MODELS[request.param]


@pytest.fixture(scope="module")
def urls(model, tmp_path_factory):
    with both(model, tmp_path_factory.mktemp("servers")) as found:
        yield found


@pytest.mark.parametrize("model", MODELS, indirect=True, scope="module")
def test_patches_that_are_right_pass(model, urls, tmp_path):
    code, result = judge(model, urls, None, tmp_path / "r.json")
    assert (code, result["verdict"]) == (0, "PASS"), result["message"]
    assert min(result["statistics"]["accuracy"]["pristine"]) > 0.95
    assert result["arms"]["pristine"][0]["server"] == "pristine tree"
    slugs = result["arms"]["patched"][0]["report"]["slugs"]
    assert {slugs[slug]["state"] for slug in model.slugs} == {"active"}


@pytest.mark.parametrize(("model", "fault"), BROKEN, indirect=["model"], scope="module")
def test_a_fault_is_a_regression(model, fault, urls, tmp_path):
    code, result = judge(model, urls, fault, tmp_path / "r.json")
    assert (code, result["verdict"]) == (1, "REGRESSION"), result["message"]


@pytest.mark.parametrize("model", ["minimax-m2"], indirect=True, scope="module")
def test_throughput_of_real_servers_is_measured_and_judged(model, urls, tmp_path):
    """What is measured means nothing on an emulated platform; that it is, and how it is kept."""
    code, result = run(
        "throughput.py", model, tmp_path / "t.json", "--lengths", "16/4", "--concurrency", "2",
        "--prompts", "2", "--pristine-url", urls["pristine"], "--patched-url", urls["patched"],
    )  # fmt: skip
    assert code in (0, 1, 3)
    [point] = result["values"].values()
    assert [len(values) for arm in point.values() for values in arm.values()] == [3] * 6
    assert "16/4 c2 output_throughput" in (tmp_path / "t.md").read_text()
