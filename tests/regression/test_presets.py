"""Catches a setting in which a slug is not on its model's path, or a flag that no release knows."""

import pytest

from ci.regression import presets
from ci.regression.errors import Refused
from tests.platform.trees import pristine_tree


@pytest.mark.parametrize("arch", presets.ARCHS)
@pytest.mark.parametrize(
    ("name", "version"),
    [(name, version) for version in presets.RELEASES for name in presets.comparable(version)],
)
def test_every_flag_of_a_preset_is_one_that_the_release_knows(name, version, arch):
    """Read from the release's own source: importing it needs a GPU or its stand-in."""
    known = (pristine_tree(version) / "sglang/srt/server_args.py").read_text()
    chosen = presets.preset(name, version, arch)
    for word in (*chosen.arguments, *chosen.pristine):
        if word.startswith("--"):
            assert f'"{word}"' in known or word in ("--tp", "--model-path"), word


def test_a_release_without_unified_attention_is_not_asked_for_it():
    new = presets.preset("minimax-m2.5", "0.5.10", "gfx942")
    old = presets.preset("minimax-m2.5", "0.5.9", "gfx942")
    assert "SGLANG_USE_AITER_UNIFIED_ATTN" in new.environment
    assert not old.environment
    assert "--page-size" not in old.flags


def test_gpt_oss_of_0_5_9_runs_on_triton():
    assert "aiter" not in presets.preset("gpt-oss-120b", "0.5.9", "gfx942").flags


def test_an_fp8_cache_that_0_5_9_cannot_run_is_not_asked_of_its_pristine_arm():
    assert presets.preset("deepseek-v3.2", "0.5.9", "gfx950").pristine
    assert not presets.preset("deepseek-v3.2", "0.5.9", "gfx942").pristine
    assert not presets.preset("glm-5", "0.5.10.post1", "gfx950").pristine


def test_an_nsa_model_gets_prompts_longer_than_its_selection():
    for preset in presets.PRESETS.values():
        assert (preset.shots >= 25) == bool(preset.index_topk)


def test_what_has_no_setting_is_refused():
    for wrong in (
        ("llama", "0.5.9", "gfx942"),
        ("glm-5", "0.4", "gfx942"),
        ("glm-5", "0.5.10", ""),
    ):
        with pytest.raises(Refused):
            presets.preset(*wrong)


def test_a_model_whose_pristine_arm_cannot_start_names_the_one_to_take():
    with pytest.raises(Refused, match=r"deepseek-v3\.2"):
        presets.preset("glm-5", "0.5.9", "gfx942")
