"""What each release has of a slug by itself, read from its sources: faults as yes-or-no questions.

A question looks into one function of the release for a text. Where the function is gone, or says
neither what the fault is nor what mends it, the answer is `MovedError`: a person has to look again.

    missing      the release has no version of the slug
    incomplete   it has one, and at least one of the faults
    superseded   it has one, and none of them
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tools import place

MISSING, INCOMPLETE, SUPERSEDED = "missing", "incomplete", "superseded"


class MovedError(ValueError):
    """What a question asks about is not where it was, and nowhere else by its name."""


class Fault(NamedTuple):
    says: str  # as the patch's Upstream-Status has it
    function: str  # qualified name; one of these, with | between
    there: str  # a pattern of the function's text while the fault is there
    mended: str  # a pattern of the text once it is not


class Slug(NamedTuple):
    has: Fault  # "there" while the release lacks the slug, "mended" from where it has it
    by: str  # upstream's pull request
    faults: tuple[Fault, ...] = ()


class State(NamedTuple):
    name: str  # MISSING, INCOMPLETE or SUPERSEDED
    by: str
    faults: tuple[str, ...]

    @property
    def trailer(self) -> str:
        """The patch's Upstream-Status."""
        if self.name == INCOMPLETE:
            return f"upstream-incomplete: {', '.join(self.faults)}"
        return {MISSING: "missing", SUPERSEDED: "upstream"}[self.name]


POOL = "MHATokenToKVPool.set_kv_buffer"
MLA_POOL = "MLATokenToKVPool._write_mla_kv_buffer|MLATokenToKVPool.set_mla_kv_buffer"
ROPE_KERNEL = "_fused_qk_rope_reshape_and_cache_kernel"
ROPE_LAUNCH = "fused_qk_rope_reshape_and_cache"
ROWS_KERNEL = "set_mla_kv_buffer_fp8_quant_kernel"
EXTEND, DECODE = "AiterAttnBackend.forward_extend", "AiterAttnBackend.forward_decode"
CLAMP = r"tl\.clamp\(|tl\.minimum\(|tl\.maximum\("
ABSENT = r"\Z"  # of a function that is not there at all, whose text counts as empty

TABLE: Mapping[str, Slug] = {
    "layernorm": Slug(
        Fault("", "LayerNorm.forward_hip", r"forward_native", r"\blayer_norm\("),
        "#22424, since 0.5.11",
    ),
    "indexer": Slug(
        Fault(
            "",
            "Indexer._store_index_k_cache",
            rf"{ABSENT}|set_index_k_scale_buffer",
            r"indexer_k_quant_and_cache\(",
        ),
        "#22850, since 0.5.11",
    ),
    "nsa-fp8-kv": Slug(
        Fault("", MLA_POOL, r"set_mla_kv_buffer_triton\(", r"set_mla_kv_buffer_triton_fp8_quant\("),
        "#21511",
        (
            Fault(
                "its fused write is unreachable on HIP",
                MLA_POOL,
                r"if self\.nsa_kv_cache_store_fp8:\s+if _is_hip:",
                r"if _is_hip and self\.use_[nd]sa",
            ),
            Fault(
                "its fused rope can run twice",
                "DeepseekMLAForwardMixin.forward_absorb_prepare",
                r"_skip_rope_for_nsa_tilelang_fused",
                r"_skip_rope_for_aiter_fused_mla",
            ),
            Fault(
                "its fused rope is of gfx950 alone",
                "DeepseekMLAForwardMixin._skip_rope_for_nsa_tilelang_fused"
                "|DeepseekMLAForwardMixin._skip_rope_for_dsa_tilelang_fused",
                r"_use_aiter_gfx95",
                r"\A(?s:(?!_use_aiter_gfx95).)+\Z",
            ),
            Fault(
                "its fused rope gathers K unrotated under prefill context parallel",
                "DeepseekMLAForwardMixin.forward_absorb_prepare",
                r"not skip_rope_for_[nd]sa_tilelang_fused(?s:.)*rebuild_cp_kv_cache",
                r"cp_skips_rope",
            ),
            Fault("its write overflows to NaN", ROWS_KERNEL, rf"\A(?s:(?!{CLAMP}).)+\Z", CLAMP),
        ),
    ),
    "rope-kv-store": Slug(
        Fault("", ROPE_LAUNCH, ABSENT, r"_fused_qk_rope_reshape_and_cache_kernel\["),
        "#21315",
        (
            Fault(
                "crashes on a plain pool for sliding-window layers",
                "create_fused_set_kv_buffer_arg",
                r"slot_mapping_swa = \w+(\.token_to_kv_pool)?\.full_to_swa_index_mapping"
                r"|\.full_to_swa_index_mapping\.long\(\)",
                r"isinstance\(token_to_kv_pool, SWAKVPool\)",
            ),
            Fault(
                "power-of-two heads and full rotary only",
                ROPE_LAUNCH,
                r"assert d == triton\.next_power_of_2\(d\)",
                r"rotary_dim",
            ),
            Fault("no saturation", ROPE_KERNEL, rf"\A(?s:(?!{CLAMP}).)+\Z", CLAMP),
            Fault(
                "one program for each query head",
                ROPE_LAUNCH,
                r"n_pid = t \* qh",
                r"n_pid = t \* kh",
            ),
        ),
    ),
    "fp8-kv-write": Slug(
        Fault(
            "", DECODE, r"set_kv_buffer\(", r"kv_cache_dtype == fp8_dtype:\s+# \[PATCH\]|fused_fp8"
        ),
        "#23620",
        (
            Fault(
                "decode writes without the scales",
                DECODE,
                r"forward_batch\.out_cache_loc,\s+\)\s+else:",
                r"_use_fused_fp8_kv_write\(",
            ),
            Fault(
                "paged_attention_ragged reads without them",
                DECODE,
                r"self\.k_scale,\s+self\.v_scale,\s+None",
                r"k_descale,\s+v_descale,\s+None",
            ),
            Fault(
                "prefill descales an unscaled q by k_scale",
                EXTEND,
                r"q_descale = layer\.k_scale",
                r"q_descale = self\.\w+",
            ),
            Fault(
                "verify reads its prefix without the scales",
                EXTEND,
                r"1\.0,  # k_scale",
                r"layer\.k_scale_float",
            ),
            Fault(
                "divides the live k and v in place",
                POOL,
                r"cache_k\.div_\(",
                r"cache_k = cache_k / ",
            ),
            Fault(
                "no saturation",
                "reshape_and_cache_shuffle_kernel|_reshape_and_cache_flash|reshape_and_cache_flash",
                rf"\A(?s:(?!{CLAMP}).)+\Z",
                CLAMP,
            ),
        ),
    ),
}


def state(slug: str, tree: Path) -> State:
    """The state of a slug in a release's tree; raises MovedError."""
    asked, release = TABLE[slug], place.Release(tree)
    if _holds(slug, asked.has, release):
        return State(MISSING, asked.by, ())
    left = tuple(fault.says for fault in asked.faults if _holds(slug, fault, release))
    return State(INCOMPLETE if left else SUPERSEDED, asked.by, left)


def _holds(slug: str, fault: Fault, release: place.Release) -> bool:
    texts = _texts(fault.function, release) or [""]
    if any(re.search(fault.mended, text, re.M) for text in texts):
        return False
    if any(re.search(fault.there, text, re.M) for text in texts):
        return True
    raise MovedError(
        f"{slug}, {fault.says or 'whether the release has it'}: {fault.function} says neither "
        f"`{fault.there}` nor `{fault.mended}`"
    )


def _texts(names: str, release: place.Release) -> list[str]:
    """The text of the first of these functions that the release has, wherever it is."""
    for name in names.split("|"):
        found = [text.decode() for _, _, text in release.functions(name)]
        if found:
            return found
    return []
