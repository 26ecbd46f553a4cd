"""Triton's block types and shapes, made once.

Triton's interpreter creates a type, a shape and a broadcast for each value of each program. That
takes nearly half of the time of an interpreted kernel. These objects are never changed, so this
module creates each of them once and shares it.
"""

import functools
import math

import triton.language as tl
from triton.language.semantic import TritonSemantic

_make_block = tl.block_type.__init__
_made: dict[tuple, tl.block_type] = {}


def _block(cls, element_ty, shape):
    shape = tuple([each.value if isinstance(each, tl.constexpr) else each for each in shape])
    key = element_ty.name, getattr(element_ty, "address_space", None), shape
    if key not in _made:
        block = _made[key] = object.__new__(cls)
        _make_block(block, element_ty, list(shape))
        block.of_a_tensor = _of_a_tensor(shape)
    return _made[key]


@functools.cache
def _of_a_tensor(shape):
    return tl.core.tuple([tl.constexpr(each) for each in shape]), tl.constexpr(math.prod(shape))


def _tensor(self, handle, type):
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = type.of_a_tensor if type.is_block() else _of_a_tensor(())


class Semantic(TritonSemantic):
    def broadcast_impl_value(self, lhs, rhs):
        if lhs.type.is_block() and rhs.type.is_block() and lhs.shape is rhs.shape:
            return lhs, rhs
        return super().broadcast_impl_value(lhs, rhs)


def share(semantic: TritonSemantic) -> None:
    tl.block_type.__new__ = _block
    tl.block_type.__init__ = lambda self, element_ty, shape: None
    tl.tensor.__init__ = _tensor
    semantic.__class__ = Semantic
