"""Our own TileLang programs: the code that chooses, builds and calls a program stays real. A
reference of the same name replaces the code that TileLang would compile.

The reference knows the signature of the program. It checks the shapes and dtypes of the arguments,
as TileLang's host code does. Each dynamic dimension must have the same value in all arguments.
"""

import inspect
from dataclasses import dataclass

import torch

from .. import recorder
from . import chip, need, need_inside, provided

BELOW_ALL = -(2.0**30)  # log2 of a sum without a term

_references: dict[str, object] = {}


def _reference(function):
    _references[function.__name__] = function
    return function


@dataclass(frozen=True)
class Dynamic:
    name: str


@dataclass(frozen=True)
class Spec:
    shape: list
    dtype: str


@dataclass(frozen=True)
class Program:
    name: str
    signature: dict[str, Spec]
    constants: dict[str, object]  # what the program's body takes from the function that built it


def _program(function) -> Program:
    constants = inspect.getclosurevars(function).nonlocals
    return Program(function.__name__, dict(inspect.get_annotations(function)), dict(constants))


def _bind(program: Program, arguments) -> None:
    """TypeError where the arguments are not those of the program's signature."""
    if len(arguments) != len(program.signature):
        raise TypeError(f"{program.name}: {len(arguments)} arguments")
    dimensions: dict[str, int] = {}
    for (name, spec), x in zip(program.signature.items(), arguments, strict=True):
        if not isinstance(spec, Spec):
            need(isinstance(x, float), f"{program.name}: {name} is {x!r}")
            continue
        expected = [
            dimensions.setdefault(size.name, found) if isinstance(size, Dynamic) else size
            for size, found in zip(spec.shape, x.shape, strict=True)
        ]
        if list(x.shape) != expected or x.dtype is not getattr(torch, spec.dtype):
            raise TypeError(
                f"{program.name}: {name} is {list(x.shape)} {x.dtype}, "
                f"expected {expected} {spec.dtype}"
            )
        need(x.is_contiguous(), f"{program.name}: strides of {name}")


def _compile(program, target=None, pass_configs=None):
    need(target == {"kind": "hip", "mcpu": chip().arch}, f"tilelang.compile: target {target}")
    need(bool(pass_configs), "tilelang.compile: no pass_configs")
    reference = _references[program.name]

    @recorder.recorded(f"tilelang.{program.name}")
    def kernel(*arguments):
        _bind(program, arguments)
        reference(program.constants, *arguments)

    return kernel


provided["tilelang.__version__"] = "0.1.7.post3+rocm.gita55a8230"
provided["tilelang.compile"] = _compile
provided["tilelang.tvm.target.Target"] = lambda description: description
provided["tilelang.language.Tensor"] = Spec
provided["tilelang.language.dynamic"] = Dynamic
provided["tilelang.language.macro"] = lambda function: function
provided["tilelang.language.prim_func"] = _program


@_reference
def sparse_mla_partial(constants, q, kv, indices, out, lse, score_scale, value_scale):
    """fp16 arithmetic over e4m3 rows, bf16 over bf16 ones; probabilities rounded to that."""
    wide = getattr(torch, constants["wide"])
    stored = {torch.float16: chip().fp8_dtype, torch.bfloat16: torch.bfloat16}[wide]
    rows = kv.view(-1).view(torch.uint8).view(stored).view(-1, q.shape[2])
    splits, d_v = out.shape[1], out.shape[3]
    need_inside("sparse_mla_partial", len(rows), indices=indices[indices >= 0])
    out.zero_()
    lse.fill_(BELOW_ALL)
    for token in range(q.shape[0]):
        query = q[token].to(wide).float()
        for split, slots in enumerate(indices[token].view(splits, -1)):
            slots = slots[slots >= 0].long()
            if not len(slots):
                continue
            key = rows[slots].float()
            scores = query @ key.T * score_scale
            top = scores.amax(-1, keepdim=True).clamp(min=BELOW_ALL)
            weights = torch.exp2(scores - top)
            total = weights.sum(-1)
            value = weights.to(wide).float() @ key[:, :d_v]
            out[token, split] = (value * (value_scale / total)[:, None]).to(torch.bfloat16)
            lse[token, split] = torch.log2(total) + top[:, 0]


@_reference
def sparse_mla_combine(constants, part, lse, out):
    weights = torch.exp2(lse - lse.amax(1, keepdim=True))
    total = weights.sum(1)[..., None]
    out.copy_((part.float() * weights[..., None]).sum(1) / total)
