"""The real Engine: tokenizer manager, scheduler and detokenizer processes, and what they share."""

SERVER = {
    "skip_tokenizer_init": True,
    "skip_server_warmup": True,
    "grammar_backend": "none",
    "sampling_backend": "pytorch",
    "dtype": "bfloat16",
    "disable_cuda_graph": True,
    "max_running_requests": 4,
    "max_total_tokens": 512,
    "context_length": 256,
    "mem_fraction_static": 0.5,
    "random_seed": 0,
    "log_level": "error",
}


def generate(platform, path, rounds, steps, server) -> dict:
    """Greedy tokens for each round of prompts, one after the other, so that prefixes are reused.

    Returns for every round and request: tokens, logprobs (of these tokens) and cached (how many
    tokens of the prompt were taken from the radix cache); and slugs, as the server reports them.
    """
    import sglang

    engine = sglang.Engine(model_path=path, **(SERVER | server))
    try:
        answers = [
            engine.generate(
                input_ids=prompts,
                sampling_params={"temperature": 0, "max_new_tokens": steps, "ignore_eos": True},
                return_logprob=True,
            )
            for prompts in rounds
        ]
        state = engine.get_server_info()["internal_states"][0]
    finally:
        engine.shutdown()
    meta = [[answer["meta_info"] for answer in answered] for answered in answers]
    return {
        "tokens": [[answer["output_ids"] for answer in answered] for answered in answers],
        "logprobs": [
            [[step[0] for step in each["output_token_logprobs"]] for each in answered]
            for answered in meta
        ],
        "cached": [[each["cached_tokens"] for each in answered] for answered in meta],
        "slugs": state.get("rocm_patches", {}).get("slugs"),
    }
