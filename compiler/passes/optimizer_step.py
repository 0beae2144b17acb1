"""The optimizer's step on a tile of a weight gradient that is still on chip: the gradient itself need not be stored."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from xdsl.dialects import func
from xdsl.ir import SSAValue

from h2learn.compiler.mapping.tiling import StepBytes
from h2learn.compiler.passes.stage_builder import Affine, Place, Start
from h2learn.compiler.passes.tile_context import TileContext, load_scalars
from h2learn.dialects import lut, tile


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
