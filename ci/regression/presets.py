"""The models of the five optimisations: server flags and environment with which each slug is used.

Upstream's own nightly tests do not run them: none passes an FP8 KV cache to these models, gpt-oss
runs on the triton backend, nothing sets unified attention, and GSM8K with 5 shots (some 650 tokens)
is shorter than index_topk, where the indexer's scores are never asked for.
"""

from dataclasses import dataclass, field, replace

from .errors import Refused

RELEASES = ("0.5.9", "0.5.10.post1")
ALSO = {"0.5.10": "0.5.10.post1"}  # the same series serves both
ARCHS = ("gfx942", "gfx950")
INDEX_TOPK = 2048
NSA_SHOTS, OTHER_SHOTS = 25, 5
NSA_SLUGS = ("layernorm", "indexer", "nsa-fp8-kv")


@dataclass(frozen=True)
class Preset:
    """What both arms get; `pristine` alone what upstream needs to run at all."""

    name: str
    model: str
    tp: int
    flags: tuple[str, ...]
    slugs: tuple[str, ...]  # those that serve this model; the patched arm must report them active
    environment: dict[str, str] = field(default_factory=dict)
    pristine: tuple[str, ...] = ()  # flags that replace the same ones in the pristine arm
    pristine_because: str = ""
    shots: int = OTHER_SHOTS
    index_topk: int = 0  # the prompt must be longer, or sparse selection selects everything
    max_tokens: int = 512
    chat_max_tokens: int = 8192  # most of these models think before they answer
    floor: float = 0.90  # a pristine arm below this is a broken setting, not a baseline

    @property
    def arguments(self) -> list[str]:
        return ["--model-path", self.model, "--tp", str(self.tp), *self.flags]


COMMON = ("--trust-remote-code", "--watchdog-timeout", "1200")
FP8_KV = ("--kv-cache-dtype", "fp8_e4m3")
NSA_FLAGS = (
    *COMMON,
    *("--nsa-prefill-backend", "tilelang", "--nsa-decode-backend", "tilelang"),
    *("--chunked-prefill-size", "131072", "--mem-fraction-static", "0.85"),
    "--disable-radix-cache",
    *FP8_KV,
)
GLM_FLAGS = (
    *("--tool-call-parser", "glm47", "--reasoning-parser", "glm45"),
    "--model-loader-extra-config",
    '{"enable_multithread_load": true, "num_threads": 8}',
)
GLM_ENVIRONMENT = {
    "SGLANG_ROCM_FUSED_DECODE_MLA": "0",
    "ROCM_QUICK_REDUCE_QUANTIZATION": "INT4",
    "SAFETENSORS_FAST_GPU": "1",
}
GPT_OSS_FLAGS = (
    *("--chunked-prefill-size", "131072", "--max-running-requests", "128"),
    *("--mem-fraction-static", "0.85"),
    "--disable-radix-cache",
    *FP8_KV,
)
MINIMAX_FLAGS = (
    *COMMON,
    *("--attention-backend", "aiter", "--mem-fraction-static", "0.85"),
    "--disable-radix-cache",
    *FP8_KV,
)
UNIFIED = {"SGLANG_USE_AITER_UNIFIED_ATTN": "1"}

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "glm-5", "zai-org/GLM-5-FP8", 8, (*NSA_FLAGS, *GLM_FLAGS), NSA_SLUGS,
            GLM_ENVIRONMENT, shots=NSA_SHOTS, index_topk=INDEX_TOPK, floor=0.92,
        ),
        Preset(
            "deepseek-v3.2", "deepseek-ai/DeepSeek-V3.2", 8, NSA_FLAGS, NSA_SLUGS,
            shots=NSA_SHOTS, index_topk=INDEX_TOPK, floor=0.92,
        ),
        Preset(
            "gpt-oss-120b", "openai/gpt-oss-120b", 8,
            (
                *("--prefill-attention-backend", "aiter", "--decode-attention-backend", "aiter"),
                *("--page-size", "64"),
                *GPT_OSS_FLAGS,
            ),
            ("rope-kv-store",),
            floor=0.75,
        ),
        Preset(
            # Pages of 16: of one token, unified attention has no page table in a HIP graph.
            "minimax-m2.5", "MiniMaxAI/MiniMax-M2.5", 4, (*MINIMAX_FLAGS, "--page-size", "16"),
            ("fp8-kv-write",), UNIFIED,
        ),
        Preset(
            "qwen3-moe", "Qwen/Qwen3-235B-A22B-Instruct-2507", 8, MINIMAX_FLAGS,
            ("rope-kv-store", "fp8-kv-write"),
        ),
    )
}  # fmt: skip

# 0.5.9 has no unified attention, and its gpt-oss refuses aiter.
IN_0_5_9 = {
    "gpt-oss-120b": {"flags": ("--attention-backend", "triton", *GPT_OSS_FLAGS)},
    "minimax-m2.5": {"flags": MINIMAX_FLAGS, "environment": {}},
}
# {release: {preset: (why its pristine arm cannot start, what to compare instead)}}
NOT_COMPARABLE = {
    "0.5.9": {
        "glm-5": (
            "its transformers 4.57.1 refuses glm_moe_dsa; only an active nsa-fp8-kv registers it, "
            "so no pristine server starts",
            "deepseek-v3.2",
        )
    }
}
NO_FP8_IN_0_5_9 = (
    "0.5.9 lays an FP8 latent cache out in rows of 656 bytes on gfx950, its TileLang path reads 576"
)


def comparable(release: str) -> list[str]:
    """The presets of which a release can start both arms."""
    return [name for name in PRESETS if name not in NOT_COMPARABLE.get(release, {})]


def preset(name: str, release: str, arch: str) -> Preset:
    """Raises Refused for what has no setting, naming those that do."""
    release = ALSO.get(release, release)
    if name not in PRESETS:
        raise Refused(f"no preset {name}: {', '.join(PRESETS)}")
    if release not in RELEASES:
        raise Refused(f"no settings for sglang {release}: {', '.join((*RELEASES, *ALSO))}")
    if arch not in ARCHS:
        raise Refused(f"no settings for {arch}: {', '.join(ARCHS)}")
    if name in NOT_COMPARABLE.get(release, {}):
        why, instead = NOT_COMPARABLE[release][name]
        raise Refused(
            f"{name} cannot be compared on {release}: {why}; {instead} runs the same slugs"
        )
    found = PRESETS[name]
    if release == "0.5.9":
        found = replace(found, **IN_0_5_9.get(name, {}))  # type: ignore[arg-type]
        if found.index_topk and arch == "gfx950":
            found = replace(
                found, pristine=("--kv-cache-dtype", "auto"), pristine_because=NO_FP8_IN_0_5_9
            )
    return found
