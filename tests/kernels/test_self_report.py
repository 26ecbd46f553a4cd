"""Catches: a switch that is not obeyed, a slug active where it cannot work, a false report."""

import json
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from sglang.srt import rocm_patches
from sglang.srt.rocm_patches import Slug


@pytest.fixture
def gpu(monkeypatch):
    """Make torch look like a HIP build on the named chip (None: not HIP at all)."""

    def become(name):
        monkeypatch.setattr(torch.version, "hip", "7.0" if name else None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(name))
        properties = SimpleNamespace(gcnArchName=f"{name}:sramecc+:xnack-")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        rocm_patches.arch.cache_clear()

    for variable in ("SGLANG_ROCM_PATCHES", "SGLANG_ROCM_PATCH_FP8_KV_WRITE"):
        monkeypatch.delenv(variable, raising=False)
    yield become
    rocm_patches.arch.cache_clear()


@pytest.mark.parametrize("chip", rocm_patches.ARCHS)
def test_a_slug_is_active_on_a_known_chip(gpu, chip):
    gpu(chip)
    assert Slug("fp8-kv-write").state == "active"
    assert Slug("fp8-kv-write").active


def test_a_slug_is_inactive_where_torch_is_no_hip_build(gpu):
    gpu(None)
    assert Slug("fp8-kv-write").state == "inactive: this torch is no HIP build"
    assert not Slug("fp8-kv-write").active


def test_a_slug_is_inactive_on_an_unknown_chip_and_names_it(gpu):
    gpu("gfx90a")
    assert Slug("fp8-kv-write").state == "inactive: gfx90a is none of gfx942, gfx950"


def test_an_unavailable_slug_says_why(gpu):
    gpu("gfx942")
    slug = Slug("fp8-kv-write", unavailable=lambda: "aiter has no such operator")
    assert slug.state == "inactive: aiter has no such operator"


@pytest.mark.parametrize("variable", ["SGLANG_ROCM_PATCHES", "SGLANG_ROCM_PATCH_FP8_KV_WRITE"])
@pytest.mark.parametrize("value", ["0", "false", "OFF"])
def test_each_switch_turns_the_slug_off_before_anything_else_is_asked(
    gpu, monkeypatch, variable, value
):
    gpu("gfx942")
    monkeypatch.setenv(variable, value)
    asked = []
    slug = Slug("fp8-kv-write", unavailable=lambda: asked.append(1))
    assert slug.state == f"off: {variable}=0"
    assert not slug.active
    assert not asked


def test_the_switch_of_another_slug_changes_nothing(gpu, monkeypatch):
    gpu("gfx942")
    monkeypatch.setenv("SGLANG_ROCM_PATCH_FP8_KV_WRITE", "0")
    assert Slug("layernorm").active


def test_a_switch_that_is_neither_on_nor_off_counts_as_off_and_is_told_once(
    gpu, monkeypatch, caplog
):
    gpu("gfx942")
    monkeypatch.setenv("SGLANG_ROCM_PATCHES", "maybe")
    with caplog.at_level(logging.WARNING):
        states = {Slug(name).state for name in rocm_patches.SLUGS}
    assert states == {"off: SGLANG_ROCM_PATCHES='maybe'"}
    (record,) = caplog.records
    assert "SGLANG_ROCM_PATCHES='maybe' counts as off: write 1 (on) or 0 (off)" in record.message


def imported(**environment):
    """What the package says on stderr when a process with these variables imports it."""
    code = "from sglang.srt import rocm_patches"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in done.stderr.splitlines() if "SGLANG_ROCM_PATCH" in line]


def test_an_unknown_switch_is_named_with_those_that_there_are():
    (line,) = imported(SGLANG_ROCM_PATCH_NSA="0", SGLANG_ROCM_PATCH_LAYERNORM="1")
    assert line.startswith("SGLANG_ROCM_PATCH_NSA is no switch of the rocm patches: ")
    for variable in (rocm_patches.ALL_OFF, *map(rocm_patches.switch_of, rocm_patches.SLUGS)):
        assert variable in line


def test_known_switches_are_not_named():
    known = [rocm_patches.ALL_OFF, *map(rocm_patches.switch_of, rocm_patches.SLUGS)]
    assert imported(**dict.fromkeys([*known, *rocm_patches.OPTIONS], "1")) == []


def test_a_declined_call_is_logged_once_for_each_reason(gpu, caplog):
    gpu("gfx942")
    slug = Slug("layernorm")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            slug.decline("weight is float32")
        slug.decline("x is float64")
    assert [record.getMessage() for record in caplog.records] == [
        "rocm patch layernorm: pristine path taken: weight is float32",
        "rocm patch layernorm: pristine path taken: x is float64",
    ]
    assert slug.declined == ["weight is float32", "x is float64"]


def test_the_report_names_every_slug_and_is_plain_json():
    report = rocm_patches.report()
    assert list(report["slugs"]) == list(rocm_patches.SLUGS)
    assert json.loads(json.dumps(report)) == report
    for name in rocm_patches.SLUGS:
        assert name in rocm_patches.summary()


@pytest.mark.parametrize(
    ("laid", "says"),
    [
        ({"release": "0.5.10.post1"}, "0.5.10.post1"),
        ({"release": "0.5.10.post1", "near": True}, "near 0.5.10.post1"),
    ],
)
def test_the_report_says_whether_the_tree_is_a_release_or_near_one(
    laid, says, monkeypatch, tmp_path
):
    (tmp_path / "provenance.json").write_text(json.dumps({**laid, "digest": "d" * 64}))
    monkeypatch.setattr(rocm_patches, "__file__", str(tmp_path / "__init__.py"))
    assert rocm_patches.report()["release"] == says
    assert rocm_patches.summary().startswith(f"rocm patches {'d' * 12} for sglang {says}: ")
