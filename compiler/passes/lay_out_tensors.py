"""``h2l-lay-out-tensors``: the layout of every DRAM tensor that only copies see, from all copies of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd, prod
from typing import ClassVar

from xdsl.context import Context
from xdsl.dialects import builtin
from xdsl.ir import Operation, SSAValue
from xdsl.passes import ModulePass

from h2learn.backends.h2learn.machine import load_machine
from h2learn.compiler.mapping.dram_layout import Copied, Extent, TensorFormat, choose_layout
from h2learn.compiler.passes.h2_transfer import is_transfer
from h2learn.compiler.passes.tile_layout import base_form, enclosing_loops, stack_of
from h2learn.dialects import tile


@dataclass(frozen=True)
class LayOutTensorsPass(ModulePass):
    """Lay tensors out for the bursts of machine ``arch``; what is seen with other channels, or returned, stays."""

    name: ClassVar[str] = "h2l-lay-out-tensors"
    arch: str = "h2l-v0"

    def apply(self, ctx: Context, op: builtin.ModuleOp) -> None:
        """Set the layout of ``tile.dram`` ops: one layout for all members of a stack."""
        del ctx
        burst = load_machine(self.arch).dram.burst_bytes
        for family in _families(op):
            users = list(dict.fromkeys(user for tensor in family for user in _users(tensor.result)))
            copies = [user for user in users if isinstance(user, tile.LoadOp | tile.StoreOp)]
            if not copies or len(copies) < len(users):
                continue
            placed = tile.placed_of(family[0].result)
            kind = TensorFormat(base_form(placed), placed.shape, placed.gblk)
            windows = [_copied(copy) for copy in copies]
            for may_be_apart in (True, False):
                layout = tile.Layout(*choose_layout(kind, windows, burst, may_be_apart=may_be_apart))
                for tensor in family:
                    tensor.layout = None if layout == tile.Layout(placed.shape[-1]) else tile.LayoutAttr(layout)
                if not layout.apart or all(is_transfer(copy) for copy in copies):
                    break


def _families(module: builtin.ModuleOp) -> Iterator[list[tile.TensorOp]]:
    """Yield the tensors that must lie alike: the members of a stack, and every other one by itself."""
    for op in module.walk():
        if isinstance(op, tile.TensorOp) and op.rows is None and stack_of(op.result)[0] is op.result:
            yield [op]
        elif isinstance(op, tile.StackOp):
            members = [member.owner for member in op.members]
            tensors = [member for member in members if isinstance(member, tile.TensorOp) and member.rows is None]
            if len(tensors) == len(members):
                yield tensors


def _users(tensor: SSAValue) -> Iterator[Operation]:
    """Yield who uses a tensor, a stack or views of it that keep its channels: copies, and whatever else does."""
    for use in tensor.uses:
        user = use.operation
        channels = tile.placed_of(tensor).shape[-1]
        if isinstance(user, tile.StackOp) or (
            isinstance(user, tile.ViewOp) and tile.placed_of(user.result).shape[-1] == channels
        ):
            yield from _users(user.result)
        else:
            yield user


def _copied(op: tile.LoadOp | tile.StoreOp) -> Copied:
    """Return how often a copy runs and what it covers of every dimension."""
    trips = {loop.counter: loop.trips.data for loop in enclosing_loops(op)}
    extents: list[Extent] = []
    for (offset, factors), size in zip(op.window.data, op.sizes.data, strict=True):
        reach = [factor * (trips[iv] - 1) for iv, factor in zip(op.ivs, factors, strict=False)]
        moving = [factor for iv, factor in zip(op.ivs, factors, strict=False) if trips[iv] > 1]
        low = offset + sum(min(0, one) for one in reach)
        high = offset + sum(max(0, one) for one in reach) + size
        extents.append(Extent(size, low, high, gcd(size, offset, *moving)))
    return Copied(prod(trips.values()), tuple(extents), tile.placed_of(op.tensor).shape[:-1])
