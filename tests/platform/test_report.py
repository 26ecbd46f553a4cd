"""Catches a failure that does not say what was compared."""

import types
from pathlib import Path

from tests.conftest import compared


def item(path, slug=None, **funcargs):
    module = types.ModuleType(path.removesuffix(".py").replace("/", "."))
    if slug:
        module.SLUG = slug
    return types.SimpleNamespace(path=Path(path), module=module, funcargs=funcargs)


def test_a_failure_names_layer_slug_and_arms():
    arms = types.SimpleNamespace(used=["pristine", "patched", "pristine"])
    told = compared(item("tests/modules/test_backend.py", "fp8-kv-write", arms=arms))
    assert told == "layer modules, fp8-kv-write; arms: pristine, patched"
    assert compared(item("tests/kernels/test_nsa_fp8_kv.py")) == "layer kernels, nsa-fp8-kv"


def test_a_whole_model_names_the_slugs_on_its_path():
    case = types.SimpleNamespace(slugs=("layernorm", "indexer"))
    told = compared(item("tests/engine/test_logits.py", case=case))
    assert told == "layer engine, layernorm, indexer"


def test_the_tools_own_tests_compare_nothing():
    assert compared(item("tests/tool/test_cli.py")) is None
