"""How far two arms are apart, and where they part."""

import torch

from tests.engine.cases import Case
from tests.engine.checkpoints import checkpoint
from tests.platform.trees import slugs
from tests.tolerances import LOGITS_BETWEEN_ARMS, assert_bitwise


def distance(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """For each row, L2, relative to the true row."""
    return (logits - truth).norm(dim=-1) / truth.norm(dim=-1)


def oracle(case_checkpoint, forward: int) -> torch.Tensor:
    return torch.stack([rows[forward] for rows in case_checkpoint.oracle["logits"]])


def from_transformers(case: Case, result: dict) -> list[torch.Tensor]:
    """How far the logits of a result lie from transformers', forward by forward."""
    truths = (oracle(checkpoint(case.checkpoint), i) for i in range(len(result["logits"])))
    return [
        distance(logits[:, : truth.shape[1]], truth)
        for logits, truth in zip(result["logits"], truths, strict=True)
    ]


def between_arms(case: Case, platform) -> float:
    """How far patched logits may be from upstream's."""
    return 0 if platform.arch in case.bitwise else LOGITS_BETWEEN_ARMS[case.kv]


def assert_same_logits(one: dict, other: dict) -> None:
    for forward, (ours, theirs) in enumerate(zip(one["logits"], other["logits"], strict=True)):
        assert_bitwise(ours, theirs, f"logits of forward {forward}")


def parting(case: Case, platform, arms: tuple[str, str], bound: float) -> str:
    """Where two arms first are farther apart than `bound`: forward, module, index, both values."""
    left, right = (case.result(arm, platform, trace=True) for arm in arms)
    for forward, (a, b) in enumerate(zip(left["trace"], right["trace"], strict=True)):
        for module in a:
            if module not in b or a[module].shape != b[module].shape:
                return f"forward {forward}, {module}: {arms[0]} alone has an output of this shape"
            x, y = a[module].float(), b[module].float()
            if (x - y).norm() > bound * y.norm() or not torch.equal(x.isnan(), y.isnan()):
                # The first that is farther off than its row may be, or that differs at all.
                excess = (x - y).abs() > bound * y.abs().amax(-1, keepdim=True)
                excess |= x.isnan() != y.isnan()
                places = excess.nonzero() if excess.any() else (x != y).nonzero()
                index = tuple(places[0].tolist())
                return (
                    f"forward {forward}, {module}, first at {list(index)}: "
                    f"{arms[0]} {x[index].item()!r}, {arms[1]} {y[index].item()!r}"
                )
    return "no module's output"


def culprits(case: Case, platform, bound: float) -> list[str]:
    """The slugs that, on alone, take the logits farther than `bound` from upstream's."""
    pristine = case.result("pristine", platform)["logits"]
    return [
        slug
        for slug in slugs(case.release)
        if apart(case.result(slug, platform)["logits"], pristine, bound)
    ]


def apart(one: list[torch.Tensor], other: list[torch.Tensor], bound: float) -> bool:
    return any(not bool((distance(a, b) <= bound).all()) for a, b in zip(one, other, strict=True))
