"""Tiny random checkpoints of the models that the slugs serve, and what transformers makes of them.

    checkpoint("gpt-oss") -> Checkpoint: .path for sglang, .oracle for the logits of transformers

One process of its own (this file as a module) builds a model with fixed seeds, saves it and runs it
in fp32 over fixed token sequences. Both are kept under build/, under a name that holds everything
they depend on.

Sizes are the smallest that sglang's HIP paths take: index_topk 2048 is asserted by
tilelang_sparse_fwd, MLA rows are 512 + 64, index heads 128 wide and at least 16, as the projection
of head gates takes them, query heads a multiple of 16 (and of 2, for two ranks). Every expert takes
every token: rounding cannot send one elsewhere.
"""

import functools
import json
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.engine import kept

VOCABULARY = 256
STEPS = 3  # decode steps after each prompt

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "tie_word_embeddings": False,
}
GLM_5 = COMMON | {
    "model_type": "glm_moe_dsa",
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 64,
    "q_lora_rank": 64,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "index_topk": 2048,
    "index_head_dim": 128,
    "index_n_heads": 32,
    "indexer_rope_interleave": False,
    "rope_interleave": False,
    "mlp_layer_types": ["dense", "sparse"],
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "max_position_embeddings": 512,
}
CONFIGS = {
    "glm-5": GLM_5,
    # One dense layer: sparse selection over a context longer than index_topk, at its cheapest.
    "glm-5-long": GLM_5
    | {
        "num_hidden_layers": 1,
        "mlp_layer_types": ["dense"],
        "max_position_embeddings": 4096,
        "index_n_heads": 16,
    },
    # Layer 0 slides over 8 keys, layer 1 sees all of them; every head has a sink.
    "gpt-oss": COMMON
    | {
        "model_type": "gpt_oss",
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_local_experts": 2,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "swiglu_limit": 7.0,
        "max_position_embeddings": 512,
    },
    "minimax-m2": COMMON
    | {
        "model_type": "minimax_m2",
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "rotary_dim": 64,
        "use_qk_norm": True,
        "qk_norm_type": "per_layer",
        "num_local_experts": 4,
        "num_experts_per_tok": 4,
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
        "num_mtp_modules": 0,
        "max_position_embeddings": 512,
    },
    "qwen3-moe": COMMON
    | {
        "model_type": "qwen3_moe",
        "intermediate_size": 256,
        "moe_intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_experts": 4,
        "num_experts_per_tok": 4,
        "norm_topk_prob": True,
        "max_position_embeddings": 512,
    },
}
# On both sides of gpt-oss's window; decoding after the longest begins another page of 16.
LENGTHS = dict.fromkeys(CONFIGS, (4, 9, 16)) | {"glm-5-long": (2300,)}
# Prompts for free-running generation: the clearest of many, so that rounding turns no token.
CANDIDATES, CHOSEN, GREEDY_LENGTH = 128, 3, 37


@dataclass(frozen=True)
class Checkpoint:
    name: str
    path: Path

    @property
    def prompts(self) -> tuple[int, ...]:
        """The length of each request's prompt."""
        return LENGTHS[self.name]

    @property
    def requests(self) -> list[list[int]]:
        """Each request's tokens: the prompt, then STEPS that decoding is made to take."""
        return requests(self.name)

    @functools.cached_property
    def oracle(self) -> dict:
        """What transformers makes of it, in fp32:
        logits    for each request [STEPS + 1, vocabulary], the first after the prompt
        selected  for each request and NSA layer [STEPS + 1, at most index_topk] positions
        greedy    for each of CHOSEN prompts its tokens and the STEPS that follow, one list"""
        import torch

        return torch.load(self.path / "oracle.pt", weights_only=True)


def requests(name: str) -> list[list[int]]:
    tokens = random.Random(name)
    return [
        [tokens.randrange(1, VOCABULARY) for _ in range(length + STEPS)] for length in LENGTHS[name]
    ]


@functools.cache
def checkpoint(name: str) -> Checkpoint:
    recipe = [CONFIGS[name], requests(name)]
    return Checkpoint(name, kept.checkpoint(name, "tests.engine.checkpoints", name, recipe))


def with_kv_scales(name: str, k: float, v: float) -> Checkpoint:
    """The same weights as a checkpoint that holds scales of its KV cache, and nothing quantised.

    MiniMax's loader is the one that finds them, under the names that quantisers give them.
    """
    plain = checkpoint(name)
    path = plain.path.with_name(f"{plain.path.name}-k{k}-v{v}".replace(".", "_"))
    with kept.locked(path.with_suffix(".lock")):
        if not path.exists():
            unfinished = path.with_suffix(".unfinished")
            shutil.copytree(plain.path, unfinished, dirs_exist_ok=True)
            add_kv_scales(unfinished, k, v)
            unfinished.rename(path)
    return Checkpoint(name, path)


def add_kv_scales(path: Path, k: float, v: float) -> None:
    """Make the checkpoint one whose FP8 KV cache has these scales, and nothing else quantised."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "ignored_layers": ["model.layers"],
    }
    (path / "config.json").write_text(json.dumps(config))
    scales = {
        f"model.layers.{layer}.self_attn.{side}_proj.{side}_scale": torch.tensor(scale)
        for layer in range(config["num_hidden_layers"])
        for side, scale in (("k", k), ("v", v))
    }
    save_file(scales, path / "scales.safetensors")


def build(name: str, path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = AutoConfig.for_model(dtype=torch.bfloat16, **CONFIGS[name])
    # sdpa is not causal in the prefill of glm_moe_dsa in transformers 5.3.0.
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomise(model)
    model.to(torch.bfloat16).save_pretrained(path)
    as_older_readers_expect(path / "config.json")
    model.float()
    with torch.no_grad():
        oracle = forced(model, requests(name), LENGTHS[name])
        if name != "glm-5-long":
            oracle["greedy"] = clearest(model)
    torch.save(oracle, path / "oracle.pt")


def randomise(model) -> None:
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.dim() == 1 and "norm" in name and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if is_norm else 0.08 * noise)


def as_older_readers_expect(config: Path) -> None:
    """The keys under which sglang looks for what transformers now calls otherwise."""
    written = json.loads(config.read_text())
    rope = written.get("rope_parameters", {})
    written.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
    written.setdefault("torch_dtype", "bfloat16")
    if rope.get("rope_type", "default") != "default":
        written["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    if "num_local_experts" in written:
        written.setdefault("num_experts", written["num_local_experts"])
    config.write_text(json.dumps(written, indent=1))


def forced(model, tokens: list[list[int]], prompts: tuple[int, ...]) -> dict:
    """One pass over each whole sequence: row p holds the logits after p + 1 tokens."""
    import torch

    selected: list[torch.Tensor] = []
    for name, module in model.named_modules():
        if name.endswith("self_attn.indexer"):
            module.register_forward_hook(lambda _module, _inputs, out: selected.append(out))
    oracle = {"logits": [], "selected": []}
    for sequence, length in zip(tokens, prompts, strict=True):
        rows = slice(length - 1, length + STEPS)
        selected.clear()
        logits = model(torch.tensor([sequence]), use_cache=False).logits
        oracle["logits"].append(logits[0, rows].clone())
        oracle["selected"].append([layer[0, rows].clone() for layer in selected])
    return oracle


def clearest(model) -> list[list[int]]:
    """Of many prompts, with their greedy tokens, those whose tokens lead the runners-up by most.

    A prompt that makes the model repeat itself would hide a lost context: it does not count.
    """
    import torch

    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(1, VOCABULARY, (CANDIDATES, GREEDY_LENGTH), generator=generator)
    lead = torch.full((CANDIDATES,), torch.inf)
    for _ in range(STEPS):
        best = model(tokens, use_cache=False).logits[:, -1].topk(2)
        lead = lead.minimum(best.values[:, 0] - best.values[:, 1])
        repeats = (tokens[:, GREEDY_LENGTH - 1 :] == best.indices[:, :1]).any(1)
        lead = lead.where(~repeats, -torch.inf)
        tokens = torch.cat([tokens, best.indices[:, :1]], dim=1)
    return tokens[lead.topk(CHOSEN).indices].tolist()


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]))
