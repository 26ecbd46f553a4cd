"""sglang's deterministic inference: the bits of a token must not depend on its batch.

Most kernels here keep that by themselves. Those that split a sum by the number of tokens, so that a
small batch keeps a GPU busy too, ask here and decline.
"""


def by_batch() -> str | None:
    """Why a kernel that splits its sums by the batch must not run in this server, or None."""
    from sglang.srt.server_args import get_global_server_args

    try:
        server = get_global_server_args()
    except ValueError:  # none is set: a module by itself, without a server
        return None
    if server.enable_deterministic_inference:
        return "deterministic inference wants sums that are not split by the size of the batch"
    return None
