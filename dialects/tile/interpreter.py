"""Runs the ``tile`` level: tensors and buffers are dense NumPy arrays, ops execute in program order.

Tokens are ignored: the sequential order is the meaning, tokens only say what must be kept of it. Fresh buffers hold
poison (NaN, all ones), so that a read of something never written shows. The arithmetic follows ``docs/semantics.md``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from xdsl.dialects import builtin, func
from xdsl.ir import Block, Operation, SSAValue

from h2learn.backends.h2learn import numerics
from h2learn.dialects import tile
from h2learn.dialects.common import Array, get_io

from .semantics import JOBS
from .semantics.job import OUTSIDE, Buffers


def interpret(module: builtin.ModuleOp, arguments: Sequence[Array]) -> list[Array]:
    """Run ``@main`` on dense device arrays in io order and return its results; the arguments are not changed."""
    main = next(op for op in module.body.block.ops if isinstance(op, func.FuncOp))
    machine = _Machine()
    for argument, entry, array in zip(main.args, get_io(module), arguments, strict=False):
        assert isinstance(argument.type, tile.TensorType)
        placed = argument.type.placed
        dense = np.array(array, dtype=_dtype(placed.form)).reshape(placed.shape)
        machine.values[argument] = numerics.round_to_storage(dense, "f16") if placed.form == "f16" else dense
        machine.named[entry.name] = machine.values[argument]
    with np.errstate(all="ignore"):
        machine.run(main.body.block)
    return machine.results


class _Machine:
    """Values by SSA name and the counters of the open loops."""

    def __init__(self) -> None:
        self.values: dict[SSAValue, Array] = {}
        self.named: dict[str, Array] = {}
        self.counters: dict[SSAValue, int] = {}
        self.results: list[Array] = []

    def run(self, block: Block) -> None:
        for op in block.ops:
            self.step(op)

    def step(self, op: Operation) -> None:
        if isinstance(op, tile.StreamOp | tile.StageOp):
            self.run(op.body.block)
        elif isinstance(op, tile.ForOp):
            for count in range(op.trips.data):
                self.counters[op.counter] = count
                self.run(op.body.block)
        elif isinstance(op, tile.TensorOp):
            self.values[op.result] = self.initial(op)
        elif isinstance(op, tile.ViewOp):
            assert isinstance(op.result.type, tile.TensorType)
            self.values[op.result] = self.values[op.source].reshape(op.result.type.shape)
        elif isinstance(op, tile.RepeatOp):
            assert isinstance(op.result.type, tile.TensorType)
            self.values[op.result] = np.broadcast_to(self.values[op.source], op.result.type.placed.shape)
        elif isinstance(op, tile.StackOp):
            self.values[op.result] = np.stack([self.values[member] for member in op.members])
            self.values.update(zip(op.members, self.values[op.result], strict=True))
        elif isinstance(op, tile.AllocOp):
            assert isinstance(op.result.type, tile.BufferType)
            self.values[op.result] = _poison(op.result.type.placed)
        elif isinstance(op, tile.LoadOp):
            self.load(op)
        elif isinstance(op, tile.StoreOp):
            self.store(op)
        elif isinstance(op, tile.JobOp):
            self.job(op)
        elif isinstance(op, func.ReturnOp):
            self.results = [self.values[value].copy() for value in op.arguments]
        elif not isinstance(op, tile.SignalOp | tile.WaitOp | tile.FenceOp):
            raise ValueError(f"{op.name} has no meaning at the tile level")

    def initial(self, op: tile.TensorOp) -> Array:
        assert isinstance(op.result.type, tile.TensorType)
        placed = op.result.type.placed
        if op.shadow is not None:
            parameter = self.named[op.shadow.data].astype(np.float32)
            return numerics.round_to_storage(parameter, placed.form).reshape(placed.shape)
        array = np.zeros(placed.shape, dtype=_dtype(placed.form))
        if op.rows is not None:
            for row, values in zip(array, op.rows.data, strict=True):
                row[...] = values
        return array

    def load(self, op: tile.LoadOp) -> None:
        tensor, part = self.values[op.tensor], self.part(op)
        nothing = OUTSIDE if tile.placed_of(op.tensor).form.startswith("inside.") else 0
        window = np.full(op.sizes.data, nothing, dtype=tensor.dtype)
        inside, outside = self.overlap(op, tensor.shape)
        window[inside] = tensor[outside]
        part[...] = window.reshape(part.shape)

    def store(self, op: tile.StoreOp) -> None:
        tensor, part = self.values[op.tensor], self.part(op)
        inside, outside = self.overlap(op, tensor.shape)
        tensor[outside] = part.reshape(op.sizes.data)[inside]

    def part(self, op: tile.LoadOp | tile.StoreOp) -> Array:
        buffer = self.values[op.buffer]
        if op.at is None:
            return buffer
        return np.asarray(buffer[tile.evaluate(op.at.data[0], self.counts(op.ivs))])

    def overlap(
        self, op: tile.LoadOp | tile.StoreOp, shape: tuple[int, ...]
    ) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Return the part of the window inside the tensor, and the same part of the tensor."""
        counts = self.counts(op.ivs)
        inside, outside = [], []
        for index, size, limit in zip(op.window.data, op.sizes.data, shape, strict=True):
            start = tile.evaluate(index, counts)
            low, high = min(max(start, 0), limit), min(max(start + size, 0), limit)
            inside.append(slice(low - start, max(high, low) - start))
            outside.append(slice(low, max(high, low)))
        return tuple(inside), tuple(outside)

    def counts(self, ivs: Sequence[SSAValue]) -> list[int]:
        return [self.counters[iv] for iv in ivs]

    def job(self, op: tile.JobOp) -> None:
        counts = self.counts(op.ivs)
        buffers: Buffers = {}
        for role, (buffer, index) in op.places().items():
            whole = self.values[buffer]
            buffers[role] = whole if index is None else whole[tile.evaluate(index, counts)]
        params = op.parameters()
        for name, index in zip(op.facts.coords, op.coords.data, strict=True):
            params[name] = tile.evaluate(index, counts)
        fresh = op.carry is None and all(self.counters[iv] == 0 for iv in op.first)
        JOBS[op.name](buffers, params, fresh)


def _dtype(form: str) -> np.dtype[np.generic]:
    return np.dtype({"bits": np.bool_, "u8": np.uint8, "i32": np.int32}.get(form, np.float32))


def _poison(placed: tile.Placed) -> Array:
    dtype = _dtype(placed.form)
    fill: float = np.nan if dtype == np.float32 else 1
    return np.full(placed.shape, fill, dtype=dtype)
