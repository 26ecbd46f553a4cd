"""Catches a logged reason that breaks a traced graph, or that is not logged during tracing."""

import pytest
import torch
from sglang.srt.rocm_patches import layernorm, rope_kv_store


@pytest.mark.parametrize(
    ("slug", "say"),
    [
        (layernorm.SLUG, lambda: layernorm.say_native()),
        (rope_kv_store.SLUG, lambda: rope_kv_store._say_native()),
    ],
    ids=["layernorm", "rope-kv-store"],
)
def test_a_native_form_says_so_once_as_it_is_traced(slug, say, monkeypatch):
    monkeypatch.setattr(slug, "declined", [])

    def forward(x):
        say()
        return x + 1

    compiled = torch.compile(forward, backend="eager", fullgraph=True)
    for size in (2, 3):
        assert torch.equal(compiled(torch.zeros(size)), torch.ones(size))
    assert len(slug.declined) == 1
