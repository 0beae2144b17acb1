"""Tensors in DRAM and what they are seen as, buffers on chip, and copies between them.

A buffer is allocated where its contents start to live: each time ``tile.alloc`` runs it names fresh, undefined
contents, and ``slots`` says over how many physical copies successive allocations rotate. All other ops refer to tensors
and buffers by affine functions of loop counters, which pick a window of a tensor or the leading index of a buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import ClassVar, Self

from xdsl.dialects.builtin import IndexType, IntAttr, StringAttr
from xdsl.ir import SSAValue
from xdsl.irdl import (
    IRDLOperation,
    irdl_op_definition,
    operand_def,
    opt_prop_def,
    prop_def,
    result_def,
    var_operand_def,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from h2learn.backends.h2learn import isa

from .attributes import (
    BufferType,
    Index,
    IndicesAttr,
    Layout,
    LayoutAttr,
    Placed,
    Rows,
    RowsAttr,
    ShapeAttr,
    TensorType,
    parse_placed,
    tensor_type,
)
from .syntax import (
    check_counters,
    name_hint,
    number_counters,
    parse_expressions,
    parse_optional_index,
    parse_value,
    print_indices,
    with_attributes,
)

MEMORIES = isa.MEMORIES[1:]
_XFER = isa.DESCRIPTOR_BY_NAME["xfer"]
MAX_PACK = _XFER.fields[_XFER.field_index("pack")].maximum


@irdl_op_definition
class TensorOp(IRDLOperation):
    """A DRAM tensor of the program itself: constant ``rows``, the storage copy of argument ``shadow``, or zeros.

    ``layout`` says how its bytes lie (none: contiguous, channels last, slots one by one); windows mean the same in any.
    Text: ``%map = tile.dram "s" layout <planes of 16, units of 1, positions apart> : !tile.tensor<bits[6x8x7x7x64]>``.
    """

    name = "tile.dram"
    label = prop_def(StringAttr)
    shadow = opt_prop_def(StringAttr)
    rows = opt_prop_def(RowsAttr)
    layout = opt_prop_def(LayoutAttr)
    result = result_def(TensorType)
    assembly_format = "$label (`rows` $rows^)? (`shadow` $shadow^)? (`layout` $layout^)? `:` type($result) attr-dict"

    def __init__(self, label: str, kind: TensorType, *, rows: Rows | None = None, shadow: str | None = None) -> None:
        super().__init__(
            properties={
                "label": StringAttr(label),
                "rows": None if rows is None else RowsAttr(rows),
                "shadow": None if shadow is None else StringAttr(shadow),
            },
            result_types=[kind],
        )
        self.result.name_hint = name_hint(label)

    def verify_(self) -> None:
        """Check that constant rows fill the tensor, and that planes and packed units do."""
        self._verify_layout()
        if self.rows is None:
            return
        placed = placed_of(self.result)
        if placed.form != "f32" or len(placed.shape) != 2 or len(self.rows.data) != placed.shape[0]:
            raise VerifyException(f"tile.dram expects f32 with {len(self.rows.data)} rows, found {placed}")
        if any(len(row) not in (1, placed.shape[1]) for row in self.rows.data):
            raise VerifyException(f"tile.dram expects rows of 1 or {placed.shape[1]} values")

    def _verify_layout(self) -> None:
        if self.layout is None:
            return
        placed, layout = placed_of(self.result), self.layout.data
        unit = placed.gblk or (8 if placed.form == "bits" else 1)
        if self.rows is not None:
            raise VerifyException("tile.dram expects no layout of constant rows")
        if (
            layout.plane < 1
            or placed.shape[-1] % layout.plane
            or (layout.plane % unit and layout.plane != placed.shape[-1])
        ):
            raise VerifyException(
                f"tile.dram expects planes of a divisor of {placed.shape[-1]} channels in multiples of {unit}, "
                f"found {layout.plane}"
            )
        if not 1 <= layout.pack <= MAX_PACK or (layout.pack > 1 and not placed.gblk):
            raise VerifyException(
                f"tile.dram expects units of 1 to {MAX_PACK} gradient slots (1 for other formats), found {layout.pack}"
            )
        if layout.apart and (len(placed.shape) < 4 or self.shadow is not None):
            raise VerifyException(f"tile.dram expects maps where positions lie apart, found {placed}")


@irdl_op_definition
class ViewOp(IRDLOperation):
    """The same tensor with other sizes."""

    name = "tile.view"
    source = operand_def(TensorType)
    result = result_def(TensorType)
    assembly_format = "$source `:` type($source) `to` type($result) attr-dict"

    def __init__(self, source: SSAValue, shape: Sequence[int]) -> None:
        super().__init__(operands=[source], result_types=[tensor_type(placed_of(source).form, shape)])
        self.result.name_hint = source.name_hint

    def verify_(self) -> None:
        """Check that the volume stays and that channels are not packed."""
        before, after = placed_of(self.source), placed_of(self.result)
        if before.form != after.form or before.form not in ("f32", "f16", "i32"):
            raise VerifyException(f"tile.view expects plain numbers, found {before.form} and {after.form}")
        if prod(before.shape) != prod(after.shape):
            raise VerifyException(f"tile.view expects equal volumes, found {before} and {after}")
        layout = layout_of(self.source)
        if before.shape[-1] != after.shape[-1] and layout.plane < before.shape[-1]:
            raise VerifyException(f"tile.view expects the channels of planes of {layout.plane} to stay, found {after}")
        if layout.apart:
            raise VerifyException("tile.view expects a tensor whose positions do not lie apart")
        if isinstance(self.source.owner, StackOp) and before.shape[0] != after.shape[0]:
            raise VerifyException(f"tile.view expects the {before.shape[0]} tensors of a stack, found {after}")


@irdl_op_definition
class RepeatOp(IRDLOperation):
    """The same tensor ``count`` times, as a leading dimension without bytes of its own.

    A window in front of it reads as zeros: sums that go on from one group of samples to the next start so.
    """

    name = "tile.repeat"
    source = operand_def(TensorType)
    result = result_def(TensorType)
    assembly_format = "$source `:` type($source) `to` type($result) attr-dict"

    def __init__(self, source: SSAValue, count: int) -> None:
        placed = placed_of(source)
        super().__init__(operands=[source], result_types=[tensor_type(placed.form, (count, *placed.shape))])
        self.result.name_hint = source.name_hint

    def verify_(self) -> None:
        """Check that only the leading dimension is new."""
        before, after = placed_of(self.source), placed_of(self.result)
        if (before.form, before.gblk, before.shape) != (after.form, after.gblk, after.shape[1:]):
            raise VerifyException(f"tile.repeat expects {before} with one more dimension, found {after}")


@irdl_op_definition
class StackOp(IRDLOperation):
    """Tensors of one type that lie side by side in DRAM, as one with a leading dimension; a tensor is in one at most.

    Views and repetitions of the tensors, or of the whole, stand behind it.
    Text: ``%all = tile.stack %first, %second``.
    """

    name = "tile.stack"
    members = var_operand_def(TensorType)
    result = result_def(TensorType)

    def __init__(self, members: Sequence[SSAValue]) -> None:
        placed = placed_of(members[0])
        result = tensor_type(placed.form, (len(members), *placed.shape), placed.gblk)
        super().__init__(operands=[list(members)], result_types=[result])
        self.result.name_hint = members[0].name_hint

    def verify_(self) -> None:
        """Check that the members are tensors of one type, each in this stack alone."""
        before, after = placed_of(self.members[0]), placed_of(self.result)
        if any(placed_of(member) != before for member in self.members):
            raise VerifyException(f"tile.stack expects tensors like the first, {before}")
        if after != Placed(before.form, (len(self.members), *before.shape), before.gblk):
            raise VerifyException(f"tile.stack expects {len(self.members)} times {before}, found {after}")
        for member in self.members:
            if isinstance(member.owner, ViewOp | RepeatOp | StackOp):
                raise VerifyException(f"tile.stack expects whole tensors, found the result of {member.owner.name}")
            if sum(isinstance(use.operation, StackOp) for use in member.uses) > 1:
                raise VerifyException("tile.stack expects tensors that are in no other stack")
            if layout_of(member) != layout_of(self.members[0]):
                raise VerifyException("tile.stack expects tensors of one layout")

    def print(self, printer: Printer) -> None:
        """Print the members."""
        printer.print_string(" ")
        printer.print_list(self.members, printer.print_ssa_value)
        printer.print_op_attributes(self.attributes, print_keyword=True)

    @classmethod
    def parse(cls, parser: Parser) -> StackOp:
        """Parse the members."""
        members = parser.parse_comma_separated_list(parser.Delimiter.NONE, lambda: parse_value(parser, TensorType))
        return with_attributes(cls(members), parser)


def layout_of(value: SSAValue) -> Layout:
    """Return the layout of the tensor behind a value, in a stack that of each member; without one: a single plane."""
    tensor = value
    while isinstance(tensor.owner, ViewOp | RepeatOp | StackOp):
        tensor = tensor.owner.operands[0]
    layout = tensor.owner.layout if isinstance(tensor.owner, TensorOp) else None
    return Layout(placed_of(value).shape[-1]) if layout is None else layout.data


@irdl_op_definition
class AllocOp(IRDLOperation):
    """A buffer with fresh contents in memory ``memory``, rotating over ``slots`` physical copies.

    Text: ``%inputs = tile.alloc "inputs" in S : 2 x bits[8x16x16x32] at 0x400``; placement sets the address.
    """

    name = "tile.alloc"
    label = prop_def(StringAttr)
    memory = prop_def(StringAttr)
    slots = prop_def(IntAttr)
    address = opt_prop_def(IntAttr)
    result = result_def(BufferType)

    def __init__(self, label: str, memory: str, slots: int, kind: BufferType) -> None:
        super().__init__(
            properties={"label": StringAttr(label), "memory": StringAttr(memory), "slots": IntAttr(slots)},
            result_types=[kind],
        )
        self.result.name_hint = name_hint(label)

    def verify_(self) -> None:
        """Check the memory's name and the slots."""
        if self.memory.data not in MEMORIES:
            raise VerifyException(f"tile.alloc expects a memory of {', '.join(MEMORIES)}, found {self.memory.data!r}")
        if self.slots.data < 1:
            raise VerifyException(f"tile.alloc expects at least one slot, found {self.slots.data}")
        if self.address is not None and self.address.data < 0:
            raise VerifyException(f"tile.alloc expects an address from 0, found {self.address.data}")

    def print(self, printer: Printer) -> None:
        """Print label, memory, slots, format and address."""
        printer.print_string(" ")
        printer.print_string_literal(self.label.data)
        at = f" at {self.address.data:#x}" if self.address is not None else ""
        printer.print_string(f" in {self.memory.data} : {self.slots.data} x {placed_of(self.result)}{at}")
        printer.print_op_attributes(self.attributes, print_keyword=True)

    @classmethod
    def parse(cls, parser: Parser) -> AllocOp:
        """Parse label, memory, slots, format and address."""
        label = parser.parse_str_literal()
        parser.parse_keyword("in")
        memory = parser.parse_identifier()
        parser.parse_punctuation(":")
        slots = parser.parse_integer(allow_boolean=False)
        parser.parse_keyword("x")
        op = cls(label, memory, slots, BufferType(parse_placed(parser)))
        if parser.parse_optional_keyword("at") is not None:
            op.address = IntAttr(parser.parse_integer(allow_boolean=False))
        return with_attributes(op, parser)


class CopyOp(IRDLOperation):
    """Copy between a window of a DRAM tensor and (part of) a buffer.

    ``window`` has one index per tensor dimension (where it starts) and ``sizes`` its extent; ``at`` is the leading
    index of the buffer (none: the window is the whole buffer). Parts of the window that lie outside the tensor read as
    zero and are not written. Text: ``tile.load %x[8*%t, %n, %y - 1, 0] sizes 8x1x3x32 to %inputs``.
    """

    WORD: ClassVar[str]
    tensor = operand_def(TensorType)
    buffer = operand_def(BufferType)
    ivs = var_operand_def(IndexType())
    window = prop_def(IndicesAttr)
    sizes = prop_def(ShapeAttr)
    at = opt_prop_def(IndicesAttr)

    def __init__(
        self,
        tensor: SSAValue,
        buffer: SSAValue,
        ivs: Sequence[SSAValue],
        window: Sequence[Index],
        sizes: Sequence[int],
        at: Index | None = None,
    ) -> None:
        super().__init__(
            operands=[tensor, buffer, list(ivs)],
            properties={
                "window": IndicesAttr(tuple(window)),
                "sizes": ShapeAttr(tuple(sizes)),
                "at": None if at is None else IndicesAttr((at,)),
            },
        )

    @property
    def placed(self) -> tuple[Placed, Placed]:
        """Format and shape of tensor and buffer."""
        return placed_of(self.tensor), placed_of(self.buffer)

    @property
    def index(self) -> Index | None:
        """The leading index of the buffer, None for the whole buffer."""
        return None if self.at is None else self.at.data[0]

    def verify_(self) -> None:
        """Check that window, tensor and buffer have one shape and format, and that all counters are used."""
        tensor, buffer = self.placed
        inner = buffer.shape if self.at is None else buffer.shape[1:]
        sizes = self.sizes.data
        for what, found in (("starts", self.window.data), ("sizes", sizes)):
            if len(found) != len(tensor.shape):
                raise VerifyException(f"{self.name} expects {len(tensor.shape)} window {what}, found {len(found)}")
        if (tensor.form, tensor.gblk) != (buffer.form, buffer.gblk):
            raise VerifyException(f"{self.name} expects the format of its tensor, {tensor}, found {buffer}")
        if prod(sizes) != prod(inner) or sizes[-1:] != inner[-1:]:
            raise VerifyException(f"{self.name} expects a buffer of shape {sizes}, found {inner}")
        if self.at is not None and len(self.at.data) != 1:
            raise VerifyException(f"{self.name} expects one leading index, found {len(self.at.data)}")
        check_counters(self, len(self.ivs), (*self.window.data, *(self.at.data if self.at is not None else ())))

    def print(self, printer: Printer) -> None:
        """Print tensor, window and buffer."""
        printer.print_string(" ")
        printer.print_ssa_value(self.tensor)
        print_indices(printer, self.window.data, self.ivs)
        printer.print_string(f" sizes {'x'.join(map(str, self.sizes.data))} {self.WORD} ")
        printer.print_ssa_value(self.buffer)
        if self.at is not None:
            print_indices(printer, self.at.data, self.ivs)
        printer.print_op_attributes(self.attributes, print_keyword=True)

    @classmethod
    def parse(cls, parser: Parser) -> Self:
        """Parse tensor, window and buffer."""
        tensor = parse_value(parser, TensorType)
        window = parse_expressions(parser)
        parser.parse_keyword("sizes")
        sizes = parser.parse_dimension_list()
        parser.parse_keyword(cls.WORD)
        buffer = parse_value(parser, BufferType)
        place = parse_optional_index(parser)
        counters, indices = number_counters([*window, *([] if place is None else [place])])
        at = None if place is None else indices[-1]
        return with_attributes(cls(tensor, buffer, counters, indices[: len(window)], sizes, at), parser)


@irdl_op_definition
class LoadOp(CopyOp):
    """DRAM to chip (engine DMAIN)."""

    name = "tile.load"
    WORD: ClassVar[str] = "to"


@irdl_op_definition
class StoreOp(CopyOp):
    """Chip to DRAM (engine DMAOUT)."""

    name = "tile.store"
    WORD: ClassVar[str] = "from"


def placed_of(value: SSAValue) -> Placed:
    """Return format and shape of a tensor or buffer value."""
    assert isinstance(value.type, TensorType | BufferType)
    return value.type.placed
