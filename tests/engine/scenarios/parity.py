"""What an arm makes of texts with a real checkpoint, greedily, and how sure it is of each token."""

import argparse


def generate(platform, flags, prompts, steps, rounds=1) -> dict:
    """flags    the server's, as on its command line
    prompts  texts
    rounds   how often all of them are asked for, the radix cache flushed in between

    Returns for each round and prompt: tokens, and for each token the two likeliest as [logprob,
    token]; and slugs, as the server reports them (None in a pristine tree).
    """
    import sglang
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    engine = sglang.Engine(server_args=ServerArgs.from_cli_args(parser.parse_args(flags)))
    sampling = {"temperature": 0, "max_new_tokens": steps, "ignore_eos": True}
    try:
        answers = []
        for _ in range(rounds):
            answers.append(
                engine.generate(
                    prompt=prompts,
                    sampling_params=sampling,
                    return_logprob=True,
                    top_logprobs_num=2,
                )
            )
            engine.flush_cache()
        state = engine.get_server_info()["internal_states"][0]
    finally:
        engine.shutdown()
    return {
        "tokens": [[answer["output_ids"] for answer in answered] for answered in answers],
        "likeliest": [
            [
                [[[top[0], top[1]] for top in step] for step in meta["output_top_logprobs"]]
                for meta in (answer["meta_info"] for answer in answered)
            ]
            for answered in answers
        ],
        "slugs": state.get("rocm_patches", {}).get("slugs"),
    }
