"""``h2l-lay-out-tensors``: the layout of every DRAM tensor that only copies see, from all copies of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod
from typing import ClassVar

from xdsl.context import Context
from xdsl.dialects import builtin
from xdsl.passes import ModulePass

from h2learn.backends.h2learn.machine import load_machine
from h2learn.compiler.mapping.dram_layout import Copied, Extent, TensorFormat, choose_layout
from h2learn.compiler.passes.tile_layout import base_form, enclosing_loops
from h2learn.dialects import tile


@dataclass(frozen=True)
class LayOutTensorsPass(ModulePass):
    """Lay tensors out for the bursts of machine ``arch``; what is viewed, returned or written by the host stays."""

    name: ClassVar[str] = "h2l-lay-out-tensors"
    arch: str = "h2l-v0"

    def apply(self, ctx: Context, op: builtin.ModuleOp) -> None:
        """Set the layout of ``tile.dram`` ops."""
        del ctx
        burst = load_machine(self.arch).dram.burst_bytes
        for tensor in op.walk():
            if not isinstance(tensor, tile.TensorOp) or tensor.rows is not None or tensor.shadow is not None:
                continue
            users = [use.operation for use in tensor.result.uses]
            copies = [user for user in users if isinstance(user, tile.LoadOp | tile.StoreOp)]
            if not copies or len(copies) < len(users):
                continue
            placed = tile.placed_of(tensor.result)
            kind = TensorFormat(base_form(placed), placed.shape, placed.gblk)
            plane, pack = choose_layout(kind, [_copied(copy) for copy in copies], burst)
            if (plane, pack) != (placed.shape[-1], 1):
                tensor.layout = tile.LayoutAttr(tile.Layout(plane, pack))


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
    return Copied(prod(trips.values()), tuple(extents))
