"""The optimizer's step: on a tile of a weight gradient that is still on chip, or as a stage of its own."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from xdsl.dialects import func
from xdsl.ir import SSAValue

from h2learn.compiler.mapping.tiling import StepBytes
from h2learn.compiler.mapping.vector_tiling import plan_channels, plan_rows
from h2learn.compiler.passes.stage_builder import Affine, Place, Start
from h2learn.compiler.passes.tile_context import TileContext, load_scalars, trips
from h2learn.dialects import lut, tile
from h2learn.dialects.lut.attributes import shape_of

STEP_LATENCIES = 8
"""Latencies of DRAM that the bytes of an optimizer's tiles (both slots) take to move: longer tiles end later."""


class OptimizerStep:
    """The part of a weight-gradient stage that updates parameter, buffers and storage copy where they lie.

    ``slots``: of each of its buffers; ``by_tap``: they hold one kernel position.
    """

    def __init__(self, ctx: TileContext, op: lut.OptOp, slots: int, *, by_tap: bool) -> None:
        self.ctx, self.op, self.slots, self.by_tap = ctx, op, slots, by_tap
        self.scal = load_scalars(ctx, ctx.values[op.scalars])
        self.tensors = {"p": ctx.values[op.p], **_buffers(ctx, op)}
        if op.w is not None:
            self.tensors["w"] = ctx.values[op.w]

    def tile(self, gradient: SSAValue, starts: Sequence[Start], sizes: Sequence[int]) -> None:
        """Update the window of the parameters whose whole gradient ``gradient`` holds."""
        if not self.by_tap:
            self._update(gradient, starts, sizes)
            return
        first, *inner = starts
        taps, *rows = sizes
        with self.ctx.builder.loop("tap", taps) as tap:
            self._update((gradient, tap), (Affine() + tap + first, *inner), (1, *rows))

    def _update(self, gradient: Place, starts: Sequence[Start], sizes: Sequence[int]) -> None:
        b = self.ctx.builder
        buffers: dict[str, SSAValue] = {}
        for role, tensor in self.tensors.items():
            memory, form = ("W", "f16") if role == "w" else ("A", "f32")
            buffers[role] = b.alloc(role, memory, form, sizes, slots=self.slots)
            if role != "w":
                b.load(tensor, buffers[role], starts, sizes)
        places: dict[str, Place] = {role: (buffer, 0) if self.by_tap else buffer for role, buffer in buffers.items()}
        b.job(tile.OptOp, places | {"g": gradient, "scal": self.scal}, optimizer_params(self.op, prod(sizes)))
        for role, tensor in self.tensors.items():
            b.store(tensor, buffers[role], starts, sizes)


def lower_optimizer(ctx: TileContext, op: lut.OptOp) -> None:
    """Lower an optimizer step: parameter, buffers and storage copy are updated where they lie."""
    shape = shape_of(op.p.type)
    count = prod(shape)
    places = {"p": op.p, "g": op.g, **dict(zip(("mom", "sq"), op.states, strict=False))}
    item = 4 * len(places)
    dram = ctx.machine.dram
    room = min(
        ctx.chip.memory_bytes("A") - 4096,
        (ctx.chip.memory_bytes("W") - 4096) * item // 2,  # a copy has 2 bytes
        int(STEP_LATENCIES * dram.latency_cycles * dram.bytes_per_cycle),
    )
    if op.w is None:
        per_row, rows = plan_rows(shape, item, room, ctx.limits)
        whole = per_row
    else:
        places["w"] = op.w
        whole = shape[-1]
        per_row, rows = plan_channels(shape, item, room, ctx.limits, ctx.machine.dram.burst_bytes)
    b, label = ctx.builder, f"optimizer {ctx.names[op.p]}"
    tensors = {role: b.view(ctx.values[value], (count // whole, whole)) for role, value in places.items()}
    params = optimizer_params(op, rows * per_row)
    with b.stage(label, op.location):
        scal = load_scalars(ctx, ctx.values[op.scalars])
        with b.loop("e", trips(count // whole, rows)) as e, b.loop("k", trips(whole, per_row)) as k:
            starts: list[Start] = [e * rows, k * per_row]
            sizes = (rows, per_row)
            buffers: dict[str, SSAValue] = {}
            for role, tensor in tensors.items():
                buffers[role] = b.alloc(role, *(("W", "f16") if role == "w" else ("A", "f32")), sizes)
                if role != "w":
                    b.load(tensor, buffers[role], starts, sizes)
            b.job(tile.OptOp, {**buffers, "scal": scal}, params)
            for role, tensor in tensors.items():
                if role != "g":
                    b.store(tensor, buffers[role], starts, sizes)


def step_behind(gradient: SSAValue) -> lut.OptOp | None:
    """Return the optimizer step that alone reads a gradient, which may also be a result of the program."""
    users = [use.operation for use in gradient.uses if not isinstance(use.operation, func.ReturnOp)]
    return users[0] if len(users) == 1 and isinstance(users[0], lut.OptOp) else None


def is_returned(gradient: SSAValue) -> bool:
    """Whether a gradient is a result of the program."""
    return any(isinstance(use.operation, func.ReturnOp) for use in gradient.uses)


def step_bytes(op: lut.OptOp | None) -> StepBytes:
    """Return what a step takes on chip for each weight, beside its gradient."""
    if op is None:
        return StepBytes()
    return StepBytes(4 * (1 + len(op.states)), 0 if op.w is None else 2)


def optimizer_params(op: lut.OptOp, count: int) -> dict[str, tile.Param]:
    """Return the parameters of a job that updates ``count`` weights."""
    update = op.update
    return {
        "n": count,
        "kind": update.kind,
        "dtype": "f16" if op.w is not None else "f32",
        "scale": update.grad_scale,
        "decay": update.weight_decay,
        "momentum": update.momentum,
        "rate1": 1 - update.beta1,
        "rate2": 1 - update.beta2,
        "eps": update.eps,
    }


def _buffers(ctx: TileContext, op: lut.OptOp) -> dict[str, SSAValue]:
    return {role: ctx.values[state] for role, state in zip(("mom", "sq"), op.states, strict=False)}
