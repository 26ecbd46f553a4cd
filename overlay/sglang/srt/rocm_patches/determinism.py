"""sglang's deterministic inference: the bits of a token must not depend on its batch.

Most of our kernels meet this in any case. Some kernels choose the number of partial sums by the
number of tokens, so that a small batch fills the GPU as well. Those kernels call `by_batch` and
decline under deterministic inference.
"""


def by_batch() -> str | None:
    """The reason why this server forbids sums that are split by the batch size, or None."""
    from sglang.srt.server_args import get_global_server_args

    try:
        server = get_global_server_args()
    except ValueError:  # no server arguments are set: a module is used without a server
        return None
    if server.enable_deterministic_inference:
        return "deterministic inference wants sums that are not split by the size of the batch"
    return None
