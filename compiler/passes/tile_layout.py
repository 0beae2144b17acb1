"""Bytes of the tensors and buffers of the ``tile`` level."""

from __future__ import annotations

from xdsl.ir import Operation, SSAValue

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.mapping.dram_layout import dram_order, plane_bytes
from h2learn.compiler.mapping.layout import row_bytes, tensor_bytes
from h2learn.compiler.mapping.placement import aligned
from h2learn.dialects import tile
from h2learn.dialects.common import source_of


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
    """Return the tensor behind views and repetitions: a stack where it is that of a stack."""
    while isinstance(value.owner, tile.ViewOp | tile.RepeatOp):
        value = value.owner.source
    return value


def stack_of(tensor: SSAValue) -> tuple[SSAValue, int]:
    """Return the stack in which a tensor is and its number there, or the tensor itself and 0."""
    for use in tensor.uses:
        if isinstance(use.operation, tile.StackOp):
            return use.operation.result, use.index
    return tensor, 0


def first_tensor(value: SSAValue) -> SSAValue:
    """Return the tensor with whose first byte a tensor begins: in a stack its first member."""
    root = root_tensor(value)
    return root.owner.members[0] if isinstance(root.owner, tile.StackOp) else root


def slot_stride(alloc: tile.AllocOp) -> int:
    """Return the bytes from one slot of a buffer to the next."""
    assert isinstance(alloc.result.type, tile.BufferType)
    return aligned(placed_bytes(alloc.result.type.placed))


def dimension_bytes(placed: tile.Placed, plane: int | None = None, *, apart: bool = False) -> list[int]:
    """Return the byte stride of every dimension but the last, in planes of ``plane`` channels.

    ``apart``: positions come before images, see ``dram_order``.
    """
    sizes = placed.shape[:-1]
    strides = [0] * len(sizes)
    step = row_bytes(base_form(placed), plane or placed.shape[-1], placed.gblk)
    for dimension in reversed(dram_order(len(sizes), apart=apart)):
        strides[dimension] = step
        step *= sizes[dimension]
    return strides


def plane_stride(value: SSAValue, plane: int) -> int:
    """Return the bytes from one plane of ``plane`` channels to the next; in a stack every member has its own planes."""
    placed = tile.placed_of(first_tensor(value))
    return plane_bytes(base_form(placed), placed.shape, plane, placed.gblk)


def tensor_strides(tensor: SSAValue, plane: int | None = None, *, apart: bool = False) -> list[int]:
    """Return the byte stride of every dimension of a DRAM tensor but the last.

    Repetitions lie on one another, the members of a stack side by side. ``plane``: channels per plane (None: all of
    them, as they are numbered where bytes do not matter). ``apart``: positions come before images.
    """
    assert isinstance(tensor.type, tile.TensorType)
    owner = tensor.owner
    if isinstance(owner, tile.RepeatOp):
        return [0, *tensor_strides(owner.source, plane, apart=apart)]
    if isinstance(owner, tile.StackOp):
        return [stack_stride(tensor), *dimension_bytes(tile.placed_of(owner.members[0]), plane, apart=apart)]
    strides = dimension_bytes(tensor.type.placed, plane, apart=apart)
    if isinstance(root_tensor(tensor).owner, tile.StackOp):
        strides[0] = stack_stride(root_tensor(tensor))
    return strides


def stack_stride(stack: SSAValue) -> int:
    """Return the bytes from one member of a stack to the next."""
    return aligned(placed_bytes(tile.placed_of(first_tensor(stack))))


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


def is_section(loop: tile.ForOp) -> bool:
    """Whether a loop around stages is fenced off: nothing inside reaches from one iteration into the next."""
    return isinstance(loop.body.block.last_op, tile.FenceOp)


def stages_of(unit: Operation) -> list[Operation]:
    """Return the stages of a unit: a stage, or a loop over layers."""
    if isinstance(unit, tile.StageOp):
        return [unit]
    return [op for op in unit.regions[0].block.ops if isinstance(op, tile.StageOp)]


def is_unit(op: Operation) -> bool:
    """Whether an op is a stage or a loop over layers."""
    return isinstance(op, tile.StageOp) or (isinstance(op, tile.ForOp) and not is_section(op))


def section_loop(op: Operation) -> tile.ForOp | None:
    """Return the loop of the section in which an op stands, that over groups (None: it stands in no such loop)."""
    return next((loop for loop in enclosing_loops(op) if is_section(loop)), None)


def layer_loop(stage: tile.StageOp) -> tile.ForOp | None:
    """Return the loop over equal layers around a stage (None: the stage stands alone)."""
    parent = stage.parent_op()
    return parent if isinstance(parent, tile.ForOp) and not is_section(parent) else None


def unit_nest(op: Operation) -> list[tile.ForOp | tile.StageOp]:
    """Return what stands around an op within its section, outermost first, without a stage that stands alone."""
    nest: list[tile.ForOp | tile.StageOp] = []
    parent = op.parent_op()
    while isinstance(parent, tile.ForOp | tile.StageOp) and not (isinstance(parent, tile.ForOp) and is_section(parent)):
        nest.insert(0, parent)
        parent = parent.parent_op()
    return nest[1:] if nest and isinstance(nest[0], tile.StageOp) else nest


def stage_loops(op: Operation) -> list[tile.ForOp]:
    """Return the loops around an op within its section, outermost first."""
    return [loop for loop in enclosing_loops(op) if not is_section(loop)]


def placed_address(alloc: tile.AllocOp) -> int:
    """Return where a buffer lies in its memory; raises H2LearnError where that is not decided yet."""
    if alloc.address is None:
        raise H2LearnError(
            "expected buffers with addresses, found one without",
            location=source_of(alloc) or None,
            hint="run h2l-place-buffers first",
        )
    return int(alloc.address.data)


def insert_after(op: Operation, new: Operation) -> None:
    """Put ``new`` behind ``op``."""
    assert op.parent is not None
    op.parent.insert_op_after(new, op)


def insert_before(op: Operation, new: Operation) -> None:
    """Put ``new`` in front of ``op``."""
    assert op.parent is not None
    op.parent.insert_op_before(new, op)
