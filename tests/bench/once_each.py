"""Call every side of one case of each work, on the CPU that says it is a gfx950."""

import torch

from tests.platform import emulation
from tests.platform.value import Platform

SIDES = ("ours", "upstream", "eager")
# aiter's operator has no reference: no path that sglang takes here reaches it.
UNREFERENCED = {"rope and write": "upstream"}


def main() -> None:
    platform = Platform("cpu", "gfx950")
    emulation.install(platform)
    torch.set_num_threads(1)
    from bench import harness, run, shapes, upstream

    harness.SLOTS, shapes.TOKENS = 64, (2,)
    shapes.TENSOR_PARALLEL = (1,)
    for name in ("DeepSeek-V3.2", "Qwen3-MoE", "MiniMax-M2.5"):  # the same work as the others'
        del shapes.MODELS[name]
    upstream.install(platform)
    seen = set()
    for subject in run.SUBJECTS:
        if subject in run.NEEDS:
            continue
        for case in run.cases(subject, platform, False):
            if (subject, case.work, case.cache_dtype) in seen:
                continue
            seen.add((subject, case.work, case.cache_dtype))
            sides = case.build()
            called = [side for side in SIDES if getattr(sides, side)]
            for side in called:
                if UNREFERENCED.get(case.work) != side:
                    getattr(sides, side)(0)
            print(f"{case.work}: {', '.join(called)}")


if __name__ == "__main__":
    main()
