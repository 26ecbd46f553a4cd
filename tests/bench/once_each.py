"""Call every side of one case of each work, on the CPU that says it is a gfx950."""

import torch

from tests.platform import emulation
from tests.platform.value import Platform

# aiter's operator has no reference: no path that sglang takes here reaches it.
UNREFERENCED = {"rope and write": "upstream"}


def main() -> None:
    platform = Platform("cpu", "gfx950")
    emulation.install(platform)
    torch.set_num_threads(1)
    from bench import harness, rotation, run, shapes, upstream

    harness.SLOTS, shapes.TOKENS = 64, (2,)
    shapes.TENSOR_PARALLEL = (4,)  # few heads, as each takes an interpreter time, and two of KV
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
            sides = case.build().all()
            for side, call in sides.items():
                if UNREFERENCED.get(case.work) != side:
                    call(0)
            print(f"{case.work}: {', '.join(sides)}")
    check_rotation(rotation)


def check_rotation(rotation) -> None:
    """Whatever the heads' rotated part, and pairs."""
    positions = torch.tensor([5, 0, 7])
    for rotary, neox in ((64, True), (32, True), (64, False)):
        cos_sin = torch.rand(8, rotary).bfloat16()
        q, k = torch.randn(2, 3, 6, 64).bfloat16().unbind()
        k = k[:, :1]
        others = [x.clone().flatten(1) for x in (q, k)]
        rotation.rotation(q, k, positions, cos_sin, neox)()
        rotation.three_axes(*others, positions, cos_sin, 64, neox)()
        for x, other in zip((q, k), others, strict=True):
            torch.testing.assert_close(other.view_as(x), x, rtol=2e-2, atol=2e-2)
    print("the stand-in rotates as the operator does")


if __name__ == "__main__":
    main()
