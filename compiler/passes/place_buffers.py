"""``h2l-place-buffers``: every buffer gets a byte address in its on-chip memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xdsl.context import Context
from xdsl.dialects import builtin
from xdsl.passes import ModulePass

from h2learn.backends.h2learn.machine import Machine, load_machine
from h2learn.compiler.mapping.placement import Request, place
from h2learn.compiler.mapping.streams import ENTRY, HEAD, share, share_base
from h2learn.compiler.passes.tile_layout import slot_stride
from h2learn.dialects import tile


@dataclass(frozen=True)
class PlaceBuffersPass(ModulePass):
    """Place the buffers of all stages in the memories of machine ``arch``."""

    name: ClassVar[str] = "h2l-place-buffers"
    arch: str = "h2l-v0"

    def apply(self, ctx: Context, op: builtin.ModuleOp) -> None:
        """Set the address of every ``tile.alloc``; raises H2LearnError when a stage does not fit."""
        del ctx
        machine = load_machine(self.arch)
        stages: dict[str | None, list[tile.StageOp]] = {}
        for nest in op.walk():
            if isinstance(nest, tile.StageOp):
                stages.setdefault(nest.part.data if nest.part is not None else None, []).append(nest)
        apart = [part for part in (ENTRY, HEAD) if part in stages]
        for part, nests in stages.items():
            _place(nests, share(machine, part, apart), share_base(machine, part, apart))


def _place(nests: list[tile.StageOp], chip: Machine, base: dict[str, int]) -> None:
    """Place the buffers of stages that follow each other in the memories of ``chip``, which start at ``base``."""
    stages = [[alloc for alloc in nest.walk() if isinstance(alloc, tile.AllocOp)] for nest in nests]
    requests = [[Request(a.memory.data, a.slots.data * slot_stride(a)) for a in stage] for stage in stages]
    capacity = {memory: chip.memory_bytes(memory) for memory in tile.MEMORIES}
    labels = [nest.label.data for nest in nests]
    for allocs, addresses in zip(stages, place(requests, capacity, labels), strict=True):
        for alloc, address in zip(allocs, addresses, strict=True):
            alloc.address = builtin.IntAttr(base[alloc.memory.data] + address)
