"""Families at the ``tile`` level: which member of a stack, or of a tensor made of members, a copy touches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from xdsl.ir import Operation, SSAValue

from h2learn.compiler.passes.tile_layout import layer_loop, root_tensor, stack_of
from h2learn.dialects import tile


@dataclass(frozen=True)
class Member:
    """Member ``offset + step * layer`` of the family that lies in ``space``."""

    space: SSAValue
    offset: int
    step: int = 0


@dataclass(frozen=True)
class Families:
    """Tensors whose leading dimension counts members: every copy touches one, a function of loops over layers alone."""

    spaces: frozenset[SSAValue]

    @classmethod
    def of(cls, operations: Iterable[Operation]) -> Families:
        """Return the families among the tensors that these operations copy."""
        found: dict[SSAValue, bool] = {}
        for op in operations:
            if isinstance(op, tile.CopyOp):
                root = root_tensor(op.tensor)
                found[root] = found.get(root, True) and _single(op)
        return cls(frozenset(root for root, single in found.items() if single))

    def member(self, op: tile.CopyOp) -> Member | None:
        """Return what a copy touches, None where it may be more than one member."""
        root = root_tensor(op.tensor)
        space, number = stack_of(root)
        if space is not root:
            return Member(space, number)
        if root not in self.spaces:
            return None if isinstance(root.owner, tile.StackOp) else Member(root, 0)
        offset, coeffs = op.window.data[leading(op)]
        return Member(root, offset, sum(coeffs))


def leading(op: tile.CopyOp) -> int:
    """Return which dimension of the window is the leading one of the tensor behind it."""
    return 1 if isinstance(op.tensor.owner, tile.RepeatOp) else 0


def _single(op: tile.CopyOp) -> bool:
    at = leading(op)
    if len(op.sizes.data) <= at or op.sizes.data[at] != 1:
        return False
    loop = layer_loop(_stage_of(op))
    moving = [iv for iv, coeff in zip(op.ivs, op.window.data[at][1], strict=False) if coeff]
    return all(loop is not None and iv is loop.counter for iv in moving)


def _stage_of(op: Operation) -> tile.StageOp:
    parent = op.parent_op()
    while not isinstance(parent, tile.StageOp):
        assert parent is not None
        parent = parent.parent_op()
    return parent
