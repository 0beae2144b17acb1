"""Bytes of the tensors and buffers of the ``tile`` level."""

from __future__ import annotations

from xdsl.ir import Operation, SSAValue

from h2learn.compiler.mapping.layout import row_bytes, tensor_bytes
from h2learn.compiler.mapping.placement import aligned
from h2learn.dialects import tile


def base_form(placed: tile.Placed) -> str:
    """Return the format in which the elements lie (tables are plain storage)."""
    return placed.form.removeprefix("lut.")


def placed_bytes(placed: tile.Placed) -> int:
    """Return the bytes of a whole tensor or of one slot of a buffer."""
    return tensor_bytes(base_form(placed), placed.shape, placed.gblk)


def buffer_of(value: SSAValue) -> tuple[tile.AllocOp, tile.Placed]:
    """Return the allocation behind a buffer value, and its format and shape."""
    alloc = value.owner
    assert isinstance(alloc, tile.AllocOp) and isinstance(value.type, tile.BufferType)
    return alloc, value.type.placed


def root_tensor(value: SSAValue) -> SSAValue:
    """Return the tensor behind views and repetitions."""
    while isinstance(value.owner, tile.ViewOp | tile.RepeatOp):
        value = value.owner.source
    return value


def slot_stride(alloc: tile.AllocOp) -> int:
    """Return the bytes from one slot of a buffer to the next."""
    assert isinstance(alloc.result.type, tile.BufferType)
    return aligned(placed_bytes(alloc.result.type.placed))


def dimension_bytes(placed: tile.Placed, plane: int | None = None) -> list[int]:
    """Return the byte stride of every dimension but the last, outermost first, in planes of ``plane`` channels."""
    strides: list[int] = []
    step = row_bytes(base_form(placed), plane or placed.shape[-1], placed.gblk)
    for size in reversed(placed.shape[:-1]):
        strides.insert(0, step)
        step *= size
    return strides


def layout_of(value: SSAValue) -> tile.Layout:
    """Return the layout of the tensor behind a value; where none was chosen all channels are one plane."""
    layout = value.owner.layout if isinstance(value.owner, tile.TensorOp) else None
    return tile.Layout(tile.placed_of(value).shape[-1]) if layout is None else layout.data


def tensor_strides(tensor: SSAValue, plane: int | None = None) -> list[int]:
    """Return the byte stride of every dimension of a DRAM tensor but the last; repetitions lie on one another.

    ``plane``: channels per plane (None: all of them, as they are numbered where bytes do not matter).
    """
    assert isinstance(tensor.type, tile.TensorType)
    strides = dimension_bytes(tensor.type.placed, plane)
    if isinstance(tensor.owner, tile.RepeatOp):
        strides[0] = 0
    return strides


def channel_bytes(placed: tile.Placed, channels: int) -> int:
    """Return the bytes of the first ``channels`` channels of a row (a whole number of bytes or slots)."""
    return row_bytes(base_form(placed), channels, placed.gblk)


def enclosing_loops(op: Operation) -> list[tile.ForOp]:
    """Return the loops around an op, outermost first."""
    loops: list[tile.ForOp] = []
    parent = op.parent_op()
    while parent is not None:
        if isinstance(parent, tile.ForOp):
            loops.insert(0, parent)
        parent = parent.parent_op()
    return loops


def stage_loops(op: Operation) -> list[tile.ForOp]:
    """Return the loops around an op inside its stage, outermost first."""
    return [loop for loop in enclosing_loops(op) if not isinstance(loop.parent_op(), tile.StreamOp)]


def insert_after(op: Operation, new: Operation) -> None:
    """Put ``new`` behind ``op``."""
    assert op.parent is not None
    op.parent.insert_op_after(new, op)


def insert_before(op: Operation, new: Operation) -> None:
    """Put ``new`` in front of ``op``."""
    assert op.parent is not None
    op.parent.insert_op_before(new, op)
