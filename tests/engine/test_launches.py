"""Catches a decode step that launches more than upstream's, and counts on record that are old."""

import pytest

from evidence import store
from tests.engine.cases import CASES, params
from tests.engine.launches import EVIDENCE, of_a_decode_step, row

pytestmark = pytest.mark.slow


def key_of(row: dict) -> tuple[str, str]:
    return row["case"], row["arch"]


def differences(kept: dict, found: dict) -> str:
    """The columns, and the kernels by name, whose counts are not those on record."""
    lines = [
        f"{name}: on record {kept.get(name)}, counted {found[name]}"
        for name in found
        if name != "changed" and kept.get(name) != found[name]
    ]
    before, now = kept.get("changed", {}), found["changed"]
    lines += [
        f"{kernel} [pristine, patched]: on record {before.get(kernel)}, counted {now.get(kernel)}"
        for kernel in sorted(before.keys() | now.keys())
        if before.get(kernel) != now.get(kernel)
    ]
    return "\n".join(lines)


@pytest.mark.parametrize("name", params(CASES))
def test_a_decode_step_launches_what_is_on_record_and_no_more_than_upstreams(
    name, platform, runs_here
):
    runs_here(CASES[name].archs, CASES[name].release)
    if platform.name != "cpu":
        pytest.skip("counted on the CPU")
    found = row(name, platform.arch)
    kept = next((r for r in store.rows_of(EVIDENCE) if key_of(r) == key_of(found)), {})
    assert found == kept, f"{differences(kept, found)}\nto record: python3 -m tests.engine.launches"
    if not (CASES[name].upstream_fault or CASES[name].upstream_refuses):
        assert found["patched"] <= found["pristine"], found["changed"]


@pytest.mark.parametrize("name", params({n: c for n, c in CASES.items() if "indexer" in c.slugs}))
def test_a_toy_of_glm_5_projects_its_head_gates_as_glm_5_does(name, platform, runs_here):
    runs_here(CASES[name].archs, CASES[name].release)
    launched = of_a_decode_step(CASES[name], "patched", platform)
    assert launched["_project_kernel"] == launched["_add_parts_kernel"] == 2  # layers
    assert "_scale_head_gates_kernel" not in launched, "the projection was upstream's"
