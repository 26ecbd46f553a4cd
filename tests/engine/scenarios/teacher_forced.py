"""The logits of the real ModelRunner over given tokens: one prefill, then decode steps."""

import array
import importlib
import importlib.util
import inspect

import torch

from tests.engine.scenarios import hardware
from tests.platform import recorder

SERVER = {
    "skip_tokenizer_init": True,
    "dtype": "bfloat16",
    "disable_cuda_graph": True,
    "disable_radix_cache": True,
    "disable_overlap_schedule": True,
    "sampling_backend": "pytorch",
    "max_running_requests": 4,
    "max_total_tokens": 512,
    "context_length": 256,
    "mem_fraction_static": 0.5,
    "random_seed": 0,
    "log_level": "warning",
}


def logits(
    platform, path, requests, prompts, server, scales=None, trace=False, wider_in_decode=0
) -> dict:
    """path      a checkpoint
    requests  for each its tokens: the prompt, then what decoding is made to take
    prompts   for each the length of its prompt
    server    what ServerArgs gets
    scales    {"k": float, "v": float} of the KV cache
    trace     keep the output of every module
    wider_in_decode  so many keys more in each sliding window, once the prompts are prefilled

    Returns, each for the prefill and then every decode step:
    logits    [request, vocabulary]
    selected  [NSA layer][request], the positions that the indexer chose, sorted
    launches  {"operators", "kernels", "tensor_operations": {name: count}}
    trace     {module: output}
    and slugs, what the patch set says of itself (None in a pristine tree).
    """
    bench_one_batch = one_batch()

    hardware.grant(platform)
    know_models()
    runner = model_runner(path, server, scales)
    watch = Watch(runner.model, trace)
    forwards = {"logits": [], "selected": [], "launches": [], "trace": []}

    def keep(logits, batch, run):
        forwards["logits"].append(logits.float().clone().cpu())
        forwards["selected"].append(watch.positions(runner, batch))
        forwards["launches"].append(
            {
                "operators": dict(run.operators),
                "kernels": dict(run.kernels),
                "tensor_operations": dict(run.tensor_operations),
            }
        )
        forwards["trace"].append(watch.outputs)
        watch.clear()

    asked = [
        request(i, tokens[:length])
        for i, (tokens, length) in enumerate(zip(requests, prompts, strict=True))
    ]
    with recorder.record() as run:
        _, logits, batch = bench_one_batch.extend(asked, runner)
    keep(logits, batch, run)
    widen(runner, wider_in_decode)
    for step in range(len(requests[0]) - prompts[0]):
        taken = [tokens[length + step] for tokens, length in zip(requests, prompts, strict=True)]
        taken = torch.tensor(taken, device=runner.device)
        with recorder.record() as run:
            _, logits = bench_one_batch.decode(taken, batch, runner)
        keep(logits, batch, run)
    return forwards | {"slugs": slugs()}


def one_batch():
    """sglang's own driver of a runner, which lies elsewhere from 0.5.13 on."""
    moved = importlib.util.find_spec("sglang.benchmark")
    return importlib.import_module(
        "sglang.benchmark.one_batch"
        if moved and importlib.util.find_spec("sglang.benchmark.one_batch")
        else "sglang.bench_one_batch"
    )


def model_runner(path: str, server: dict, scales: dict | None):
    bench_one_batch = one_batch()
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.model_executor.model_runner import ModelRunner
    from sglang.srt.server_args import PortArgs, ServerArgs, set_global_server_args_for_scheduler

    arguments = ServerArgs(model_path=path, **(SERVER | server))
    set_global_server_args_for_scheduler(arguments)
    bench_one_batch._set_envs_and_config(arguments)
    bench_one_batch.initialize_moe_config(arguments)
    bench_one_batch.initialize_fp8_gemm_config(arguments)
    bench_one_batch.initialize_fp4_gemm_config(arguments)
    if scales is not None:
        load = ModelRunner.load_model
        ModelRunner.load_model = lambda self: (load(self), set_scales(self, scales))
    common = {
        "model_config": ModelConfig.from_server_args(arguments),
        "mem_fraction_static": arguments.mem_fraction_static,
        "gpu_id": 0,
        "nccl_port": PortArgs.init_new(arguments).nccl_port,
        "server_args": arguments,
    }
    if "ps" not in inspect.signature(ModelRunner).parameters:
        one = dict.fromkeys(("tp_size", "moe_ep_size", "pp_size"), 1)
        return ModelRunner(
            **common, **one, **dict.fromkeys(("tp_rank", "moe_ep_rank", "pp_rank"), 0)
        )
    # Later releases name the ranks in one object, and start a runner step by step.
    runner = ModelRunner(**common, ps=bench_one_batch.ParallelState(**_one_rank()))
    runner.alloc_memory_pool()
    runner.init_attention_backends()
    runner.init_cuda_graphs()
    return runner


def _one_rank() -> dict:
    sizes = ("tp", "pp", "dp", "attn_tp", "attn_cp", "attn_dp", "moe_ep", "moe_dp")
    ranks = {f"{name}_rank": 0 for name in sizes} | {"dp_rank": None, "moe_dp_rank": None}
    return {f"{name}_size": 1 for name in (*sizes, "dcp")} | ranks | {"gpu_id": 0}


def set_scales(runner, scales: dict[str, float]) -> None:
    """As sglang's BaseKVCacheMethod leaves an attention layer whose checkpoint holds KV scales.

    The loaders of Qwen3-MoE and gpt-oss give their attention no quantisation method to hold them.
    """
    from sglang.srt.layers.radix_attention import RadixAttention

    for module in runner.model.modules():
        if isinstance(module, RadixAttention):
            for side, scale in scales.items():
                value = torch.nn.Parameter(torch.tensor(scale), requires_grad=False)
                setattr(module, f"{side}_scale", value.to(runner.device))
                setattr(module, f"{side}_scale_float", scale)


def widen(runner, keys: int) -> None:
    """Layers say how long their window is; the triton backend has a copy of its own."""
    from sglang.srt.layers.radix_attention import RadixAttention

    layers = [each for each in runner.model.modules() if isinstance(each, RadixAttention)]
    backend = runner.attn_backend
    halves = [getattr(backend, f"{phase}_backend", backend) for phase in ("prefill", "decode")]
    for each in (*layers, *dict.fromkeys(halves)):
        if (getattr(each, "sliding_window_size", None) or -1) > -1:
            each.sliding_window_size += keys


def request(index: int, prompt: list[int]):
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    by_range = hasattr(Req, "set_extend_range")
    made = Req(
        rid=str(index),
        origin_input_text="",
        origin_input_ids=array.array("q", prompt) if by_range else prompt,
        sampling_params=SamplingParams(temperature=0, max_new_tokens=16),
    )
    made.logprob_start_len = -1
    if by_range:
        made.full_untruncated_fill_ids = made.origin_input_ids
        made.set_extend_range(0, len(prompt))
    else:
        made.fill_ids = made.origin_input_ids
        made.set_extend_input_len(len(made.fill_ids))
    return made


class Watch:
    """What the modules gave out in a forward pass: the indexers' choices; traced, all of them."""

    def __init__(self, model, trace: bool) -> None:
        self.clear()
        for name, module in model.named_modules():
            if type(module).__name__ == "Indexer":
                module.register_forward_hook(self._keep_choice)
            if trace and name:
                module.register_forward_hook(self._keep_output(name))

    def clear(self) -> None:
        self.outputs: dict[str, torch.Tensor] = {}
        self.choices: list[torch.Tensor] = []

    def _keep_choice(self, _module, _inputs, choice) -> None:
        self.choices.append(choice)

    def _keep_output(self, name):
        def keep(_module, _inputs, output):
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, torch.Tensor):
                self.outputs[name] = first.clone().cpu()

        return keep

    def positions(self, runner, batch) -> list[list[torch.Tensor]]:
        """The choices for each request's last token; the indexers give cache slots, -1 unused."""
        lengths = batch.seq_lens.tolist()
        rows = list(range(len(lengths)))
        if self.choices and len(self.choices[0]) != len(rows):  # a prefill: a row for every token
            rows = [end - 1 for end in torch.tensor(lengths).cumsum(0).tolist()]
        pools = batch.req_pool_indices.tolist()
        tables = [
            runner.req_to_token_pool.req_to_token[pool, :length].cpu()
            for pool, length in zip(pools, lengths, strict=True)
        ]
        return [
            [positions(choice[row].cpu(), table) for row, table in zip(rows, tables, strict=True)]
            for choice in self.choices
        ]


def positions(slots: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Where in a request's table of slots the chosen ones are, sorted."""
    chosen = torch.isin(table, slots[slots >= 0])
    if int(chosen.sum()) != int((slots >= 0).sum()):
        raise AssertionError("the indexer chose a slot twice, or one of another request")
    return chosen.nonzero().flatten()


def know_models() -> None:
    """As a user does whose transformers, such as 0.5.9's, is older than these; the patch may."""
    from transformers import AutoConfig, PretrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    patched = (slugs() or {}).get("nsa-fp8-kv", {}).get("state") == "active"
    for name in ("minimax_m2", *([] if patched else ["glm_moe_dsa"])):
        if name not in CONFIG_MAPPING:
            fields = {"model_type": name, "rope_scaling": None}
            AutoConfig.register(name, type("OtherConfig", (PretrainedConfig,), fields))


def slugs() -> dict | None:
    if importlib.util.find_spec("sglang.srt.rocm_patches") is None:
        return None
    from sglang.srt import rocm_patches

    return rocm_patches.report()["slugs"]
