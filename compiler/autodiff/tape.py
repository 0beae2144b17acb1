"""What gradient rules share: the tape that they emit on, and their signature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from xdsl.ir import Block, Operation, SSAValue

from h2learn.dialects.spike.base import tensor_type

Gradient: TypeAlias = SSAValue | None


class Tape:
    """Emits gradient ops at the end of a block and knows which values need a gradient."""

    def __init__(self, block: Block, needed: set[SSAValue]) -> None:
        self.block = block
        self._needed = needed

    def emit(self, op: Operation) -> SSAValue:
        """Append ``op`` and return its first result."""
        self.block.add_op(op)
        return op.results[0]

    def needs(self, value: SSAValue) -> bool:
        """Return whether a parameter influences ``value``."""
        return value in self._needed


Rule: TypeAlias = Callable[[Operation, Sequence[Gradient], Tape], Sequence[Gradient]]


def shape_of(value: SSAValue) -> tuple[int, ...]:
    """Return the shape of a tensor value."""
    return tuple(tensor_type(value.type).get_shape())
