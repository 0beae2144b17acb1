"""Ops of the ``tile`` dialect: loops over tiles, buffers in named memories, copies between DRAM and chip, engine jobs.

A buffer is allocated where its contents start to live: each time ``tile.alloc`` runs it names fresh, undefined
contents, and ``slots`` says over how many physical copies successive allocations rotate. All other ops refer to tensors
and buffers by affine functions of loop counters, which pick a window of a tensor or the leading index of a buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Self, TypeVar

from xdsl.dialects.builtin import IndexType, IntAttr, StringAttr, UnitAttr
from xdsl.ir import Block, Dialect, Operation, Region, SSAValue
from xdsl.irdl import (
    AttrSizedOperandSegments,
    IRDLOperation,
    irdl_op_definition,
    operand_def,
    opt_prop_def,
    prop_def,
    region_def,
    result_def,
    traits_def,
    var_operand_def,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import NoTerminator
from xdsl.utils.exceptions import VerifyException

from h2learn.backends.h2learn import isa

from .attributes import (
    BufferType,
    Index,
    IndicesAttr,
    Layout,
    LayoutAttr,
    Param,
    ParamsAttr,
    Placed,
    PlacesAttr,
    Rows,
    RowsAttr,
    ShapeAttr,
    TensorType,
    parse_params,
    parse_placed,
    tensor_type,
)
from .syntax import (
    Terms,
    in_scope,
    name_hint,
    number_counters,
    parse_expression,
    parse_expressions,
    parse_optional_index,
    parse_optional_values,
    parse_value,
    print_body,
    print_index,
    print_indices,
)

MEMORIES = isa.MEMORIES[1:]

_XFER = isa.DESCRIPTOR_BY_NAME["xfer"]
MAX_PACK = _XFER.fields[_XFER.field_index("pack")].maximum

Op = TypeVar("Op", bound=Operation)


@irdl_op_definition
class StreamOp(IRDLOperation):
    """Stages with an instruction stream of their own: it runs beside other streams as far as tokens allow.

    The meaning is that of one stream after the other. Text: ``tile.stream "backward" {...}``.
    """

    name = "tile.stream"
    label = prop_def(StringAttr)
    body = region_def("single_block")
    traits = traits_def(NoTerminator())

    def __init__(self, label: str, body: Region) -> None:
        super().__init__(regions=[body], properties={"label": StringAttr(label)})

    def print(self, printer: Printer) -> None:
        """Print label and body."""
        printer.print_string(" ")
        printer.print_string_literal(self.label.data)
        in_scope(printer, lambda: print_body(printer, self.body))
        printer.print_op_attributes(self.attributes, print_keyword=True)

    @classmethod
    def parse(cls, parser: Parser) -> StreamOp:
        """Parse label and body."""
        return _with_attributes(cls(parser.parse_str_literal(), _with_block(parser.parse_region())), parser)


@irdl_op_definition
class FenceOp(IRDLOperation):
    """The stream goes on when all of its engines have finished. Stages in a loop end with one. Text: ``tile.fence``."""

    name = "tile.fence"
    assembly_format = "attr-dict"

    def __init__(self) -> None:
        super().__init__()


@irdl_op_definition
class StageOp(IRDLOperation):
    """One loop nest with buffers of its own; the stages of a stream run one after another.

    ``part`` is the part of a training step whose share of the on-chip memories the stage has (none: all of them).
    Text: ``tile.stage "forward c1" in forward {...}``.
    """

    name = "tile.stage"
    label = prop_def(StringAttr)
    part = opt_prop_def(StringAttr)
    body = region_def("single_block")
    traits = traits_def(NoTerminator())

    def __init__(self, label: str, body: Region, part: str | None = None) -> None:
        properties = {"label": StringAttr(label), "part": None if part is None else StringAttr(part)}
        super().__init__(regions=[body], properties=properties)

    def print(self, printer: Printer) -> None:
        """Print label, part and body."""
        printer.print_string(" ")
        printer.print_string_literal(self.label.data)
        if self.part is not None:
            printer.print_string(f" in {self.part.data}")
        in_scope(printer, lambda: print_body(printer, self.body))
        printer.print_op_attributes(self.attributes, print_keyword=True)

    @classmethod
    def parse(cls, parser: Parser) -> StageOp:
        """Parse label, part and body."""
        label = parser.parse_str_literal()
        part = parser.parse_identifier() if parser.parse_optional_keyword("in") is not None else None
        return _with_attributes(cls(label, _with_block(parser.parse_region()), part), parser)


@irdl_op_definition
class ForOp(IRDLOperation):
    """Run the body ``trips`` times; the counter counts from 0. Text: ``tile.for "t" %t to 8 { ... }``."""

    name = "tile.for"
    label = prop_def(StringAttr)
    trips = prop_def(IntAttr)
    body = region_def("single_block")
    traits = traits_def(NoTerminator())

    def __init__(self, label: str, trips: int, body: Region | None = None) -> None:
        if body is None:
            body = Region(Block(arg_types=[IndexType()]))
            body.block.args[0].name_hint = name_hint(label)
        super().__init__(regions=[body], properties={"label": StringAttr(label), "trips": IntAttr(trips)})

    @property
    def counter(self) -> SSAValue:
        """The loop counter."""
        return self.body.block.args[0]

    def verify_(self) -> None:
        """Check the counter and the trip count."""
        if len(self.body.block.args) != 1 or self.body.block.args[0].type != IndexType():
            raise VerifyException("tile.for expects one index argument, its counter")
        if self.trips.data < 1:
            raise VerifyException(f"tile.for expects at least one trip, found {self.trips.data}")

    def print(self, printer: Printer) -> None:
        """Print label, counter, trips and body."""
        printer.print_string(" ")
        printer.print_string_literal(self.label.data)

        def scoped() -> None:
            printer.print_string(" ")
            printer.print_ssa_value(self.counter)
            printer.print_string(f" to {self.trips.data}")
            print_body(printer, self.body)

        in_scope(printer, scoped)
        printer.print_op_attributes(self.attributes, print_keyword=True)

    @classmethod
    def parse(cls, parser: Parser) -> ForOp:
        """Parse label, counter, trips and body."""
        label = parser.parse_str_literal()
        counter = parser.parse_argument(expect_type=False).resolve(IndexType())
        parser.parse_keyword("to")
        trips = parser.parse_integer(allow_boolean=False)
        return _with_attributes(cls(label, trips, parser.parse_region([counter])), parser)


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
        return _with_attributes(cls(members), parser)


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
        return _with_attributes(op, parser)


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
        _check_counters(self, len(self.ivs), (*self.window.data, *(self.at.data if self.at is not None else ())))

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
        return _with_attributes(cls(tensor, buffer, counters, indices[: len(window)], sizes, at), parser)


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


@dataclass(frozen=True)
class JobFacts:
    """Engine, buffer roles, which of them are read and written, parameters and coordinates of one kind of job."""

    engine: str
    roles: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    params: tuple[str, ...]
    coords: tuple[str, ...] = ()


_GEOMETRY = ("imgs", "oh", "ow", "kh", "kw", "sh", "sw", "c", "k", "dtype")
_GRADIENT = ("gh", "gw", "py", "px")
_NEURON = (
    *("n", "k", "dtype", "reset", "spike", "surrogate", "width", "height", "drive"),
    *("counted", "most", "bounded", "lowest", "periodic"),
)
_WITHOUT_SYNAPSE = ("plain", "scaled")
_POOL = ("imgs", "oh", "ow", "kh", "kw", "sh", "sw", "k", "kind", "dtype", "gblk", "src", "dst")
_PLANES = ("planes", "frac", "signed")
_NORM = ("steps", "n", "positions", "k", "kind", "dtype", "gblk", "count")

FACTS: dict[str, JobFacts] = {
    "tile.fe_fill": JobFacts("FE", ("lut", "w"), ("w",), ("lut",), ("kh", "kw", "c", "k", "fan", "dtype")),
    "tile.fe_run": JobFacts("FE", ("acc", "s", "lut"), ("acc", "s", "lut"), ("acc",), (*_GEOMETRY, "fan", "shape")),
    "tile.fe_planes": JobFacts(
        "FE", ("acc", "s", "lut"), ("acc", "s", "lut"), ("acc",), (*_GEOMETRY, "fan", "shape", *_PLANES)
    ),
    "tile.be_fwd": JobFacts("BE", ("acc", "x", "w"), ("acc", "x", "w"), ("acc",), _GEOMETRY),
    "tile.be_run": JobFacts(
        "BE",
        ("acc", "g", "w", "m"),
        ("acc", "g", "w", "m"),
        ("acc",),
        (*_GEOMETRY, *_GRADIENT, "gblk", "mode", "masked"),
    ),
    "tile.be_wgt": JobFacts("BE", ("acc", "x", "g"), ("acc", "x", "g"), ("acc",), (*_GEOMETRY, "gblk")),
    "tile.wu_run": JobFacts("WUE", ("acc", "s", "g"), ("acc", "s", "g"), ("acc",), (*_GEOMETRY, "fan", "gblk")),
    "tile.lif": JobFacts(
        "VEC",
        ("acc", "par", "us", "ss", "so", "uo", "mo", "cs"),
        ("acc", "par", "us", "ss", "cs"),
        ("us", "ss", "so", "uo", "mo", "cs"),
        (*_NEURON, "save_u", "save_m", "ublk"),
    ),
    "tile.grad": JobFacts(
        "VEC",
        ("gs", "u", "s", "par", "gc", "go", "gi"),
        ("gs", "u", "s", "par", "gc", "gi"),
        ("gc", "go", "gi"),
        (*_NEURON, "detach", "gblk", "seen", "ublk"),
    ),
    "tile.tune": JobFacts(
        "VEC",
        ("dst", "g", "later", "u", "s", "par"),
        ("dst", "g", "later", "u", "s", "par"),
        ("dst",),
        ("n", "k", "reset", "dtype", "gblk"),
    ),
    "tile.pool": JobFacts("VEC", ("dst", "src", "idx"), ("src",), ("dst", "idx"), (*_POOL, "ylim", "xlim"), ("y", "x")),
    "tile.unpool": JobFacts("VEC", ("dst", "src", "idx"), ("src", "idx"), ("dst",), (*_POOL, *_GRADIENT)),
    "tile.rng": JobFacts(
        "VEC",
        ("dst", "src", "scal"),
        ("src", "scal"),
        ("dst",),
        ("n", "positions", "k", "stream"),
        ("pos", "neu", "tick"),
    ),
    "tile.drop": JobFacts(
        "VEC",
        ("dst", "a", "scal"),
        ("a", "scal"),
        ("dst",),
        ("n", "positions", "k", "stream", "share", "factor", "dtype", "gblk", "a", "dst"),
        ("pos", "neu", "tick"),
    ),
    "tile.reduce": JobFacts(
        "VEC", ("dst", "src"), ("src", "dst"), ("dst",), ("n", "k", "steps", "kind", "dtype", "gblk")
    ),
    "tile.spread": JobFacts("VEC", ("dst", "src", "x"), ("src", "x"), ("dst",), ("n", "k", "steps", "dtype")),
    "tile.map": JobFacts(
        "VEC", ("dst", "a", "b"), ("a", "b"), ("dst",), ("n", "k", "kind", "dtype", "gblk", "a", "b", "dst")
    ),
    "tile.pack": JobFacts("VEC", ("dst", "src"), ("src",), ("dst",), ("n", "k", "dtype", *_PLANES)),
    "tile.stat": JobFacts(
        "VEC",
        ("dst", "x", "g", "par", "scal"),
        ("dst", "x", "g", "par", "scal"),
        ("dst",),
        _NORM,
        ("pos",),
    ),
    "tile.fold": JobFacts(
        "VEC",
        ("dst", "src", "run", "scal"),
        ("src", "run", "scal"),
        ("dst", "run"),
        ("k", "kind", "count", "repeats", "eps", "momentum"),
    ),
    "tile.norm": JobFacts(
        "VEC",
        ("dst", "x", "g", "par", "scal"),
        ("x", "g", "par", "scal"),
        ("dst",),
        _NORM,
        ("pos",),
    ),
    "tile.loss": JobFacts(
        "VEC",
        ("loss", "grad", "logits", "label", "scal"),
        ("loss", "logits", "label", "scal"),
        ("loss", "grad"),
        ("n", "k", "kind", "hit", "miss", "share", "scale"),
        ("pos",),
    ),
    "tile.opt": JobFacts(
        "VEC",
        ("p", "g", "mom", "sq", "w", "scal"),
        ("p", "g", "mom", "sq", "scal"),
        ("p", "mom", "sq", "w"),
        ("n", "kind", "dtype", "scale", "decay", "momentum", "rate1", "rate2", "eps"),
    ),
}


class JobOp(IRDLOperation):
    """One job of a compute engine on buffers.

    ``buffers`` follow the roles in :data:`FACTS`, without those that the parameters switch off; ``at`` holds, per
    buffer, the leading index or nothing when the whole buffer is meant. ``coords`` are further indices (sample, neuron,
    tick coordinates). ``first`` are the loop counters that must all be 0 for a fresh start (none: always fresh, or
    never with ``carry``, which goes on from what the buffers hold).
    Text: ``tile.lif acc=%current[%step], par=%par, ... first(%t, %step) {k=32, ...}``; coordinates stand before
    ``first``: ``coords(pos=16*%n, neu=0, tick=%t)``; ``carry`` in its place.
    """

    buffers = var_operand_def(BufferType)
    ivs = var_operand_def(IndexType())
    first = var_operand_def(IndexType())
    at = prop_def(PlacesAttr)
    coords = prop_def(IndicesAttr)
    params = prop_def(ParamsAttr)
    carry = opt_prop_def(UnitAttr)
    irdl_options = (AttrSizedOperandSegments(as_property=True),)

    def __init__(
        self,
        buffers: dict[str, SSAValue],
        params: dict[str, Param],
        *,
        ivs: Sequence[SSAValue] = (),
        at: dict[str, Index] | None = None,
        first: Sequence[SSAValue] = (),
        coords: Sequence[Index] = (),
        carry: bool = False,
    ) -> None:
        roles = [role for role in FACTS[self.name].roles if role in buffers]
        places = at or {}
        super().__init__(
            operands=[[buffers[role] for role in roles], list(ivs), list(first)],
            properties={
                "at": PlacesAttr(tuple(places.get(role) for role in roles)),
                "coords": IndicesAttr(tuple(coords)),
                "params": ParamsAttr(tuple(sorted(params.items()))),
                "carry": UnitAttr() if carry else None,
            },
        )

    @property
    def facts(self) -> JobFacts:
        """What is known about this kind of job."""
        return FACTS[self.name]

    def parameters(self) -> dict[str, Param]:
        """Return the named parameters."""
        return dict(self.params.data)

    def roles(self) -> tuple[str, ...]:
        """Return the roles of the buffers: those of the facts that the parameters do not switch off."""
        unused = _unused_roles(self.name, self.parameters())
        return tuple(role for role in self.facts.roles if role not in unused)

    def buffer(self, role: str) -> SSAValue:
        """Return the buffer in ``role``."""
        return self.buffers[self.roles().index(role)]

    def index(self, role: str) -> Index | None:
        """Return the leading index of the buffer in ``role``, None for the whole buffer."""
        return self.at.data[self.roles().index(role)]

    def places(self) -> dict[str, tuple[SSAValue, Index | None]]:
        """Return role -> (buffer, leading index or None for the whole buffer)."""
        return dict(zip(self.roles(), zip(self.buffers, self.at.data, strict=True), strict=True))

    def verify_(self) -> None:
        """Check parameters, buffers, coordinates and counters."""
        names = {name for name, _ in self.params.data}
        if names != set(self.facts.params):
            raise VerifyException(f"{self.name} expects parameters {sorted(self.facts.params)}, found {sorted(names)}")
        roles = self.roles()
        if len(self.buffers) != len(roles) or len(self.at.data) != len(roles):
            raise VerifyException(f"{self.name} expects buffers {', '.join(roles)}, found {len(self.buffers)}")
        if len(self.coords.data) != len(self.facts.coords):
            raise VerifyException(f"{self.name} expects coordinates {self.facts.coords}, found {len(self.coords.data)}")
        if self.carry is not None and self.first:
            raise VerifyException(f"{self.name} expects loop counters of a fresh start or carry, found both")
        at = [index for index in self.at.data if index is not None]
        _check_counters(self, len(self.ivs), (*at, *self.coords.data))

    def print(self, printer: Printer) -> None:
        """Print buffers by role, coordinates, counters of the fresh start, parameters."""

        def place(named: tuple[str, tuple[SSAValue, Index | None]]) -> None:
            role, (buffer, index) = named
            printer.print_string(f"{role}=")
            printer.print_ssa_value(buffer)
            if index is not None:
                print_indices(printer, [index], self.ivs)

        def coordinate(named: tuple[str, Index]) -> None:
            printer.print_string(f"{named[0]}=")
            print_index(printer, named[1], self.ivs)

        printer.print_string(" ")
        printer.print_list(self.places().items(), place)
        if self.coords.data:
            printer.print_string(" coords")
            with printer.in_parens():
                printer.print_list(zip(self.facts.coords, self.coords.data, strict=True), coordinate)
        if self.first:
            printer.print_string(" first")
            with printer.in_parens():
                printer.print_list(self.first, printer.print_ssa_value)
        if self.carry is not None:
            printer.print_string(" carry")
        printer.print_string(f" {self.params}")
        printer.print_op_attributes(self.attributes, print_keyword=True)

    @classmethod
    def parse(cls, parser: Parser) -> Self:
        """Parse what ``print`` prints."""

        def place() -> tuple[str, SSAValue, Terms | None]:
            role = parser.parse_keyword_in(FACTS[cls.name].roles, " as role of a buffer")
            parser.parse_punctuation("=")
            return role, parse_value(parser, BufferType), parse_optional_index(parser)

        def coordinate(name: str) -> Terms:
            parser.parse_keyword(name)
            parser.parse_punctuation("=")
            return parse_expression(parser)

        places = parser.parse_comma_separated_list(parser.Delimiter.NONE, place)
        coords: list[Terms] = []
        if FACTS[cls.name].coords:
            parser.parse_keyword("coords")
            names = iter(FACTS[cls.name].coords)
            coords = parser.parse_comma_separated_list(parser.Delimiter.PAREN, lambda: coordinate(next(names)))
        first = parse_optional_values(parser, "first", IndexType)
        carry = parser.parse_optional_keyword("carry") is not None
        indexed = {role: index for role, _, index in places if index is not None}
        counters, indices = number_counters([*indexed.values(), *coords])
        op = cls(
            {role: buffer for role, buffer, _ in places},
            dict(parse_params(parser)),
            ivs=counters,
            at=dict(zip(indexed, indices, strict=False)),
            first=first,
            coords=indices[len(indexed) :],
            carry=carry,
        )
        return _with_attributes(op, parser)


@irdl_op_definition
class FeFillOp(JobOp):
    """Build the look-up tables of a weight tile."""

    name = "tile.fe_fill"


@irdl_op_definition
class FeRunOp(JobOp):
    """Forward convolution of spikes by look-up."""

    name = "tile.fe_run"


@irdl_op_definition
class FePlanesOp(JobOp):
    """Forward convolution by look-up of numbers as bit-planes, ``[image][row][column][plane][channel]``."""

    name = "tile.fe_planes"


@irdl_op_definition
class BeFwdOp(JobOp):
    """Forward convolution of a real input on the multipliers."""

    name = "tile.be_fwd"


@irdl_op_definition
class BeRunOp(JobOp):
    """Input gradient; no role ``m`` when ``masked`` is ``no``."""

    name = "tile.be_run"


@irdl_op_definition
class BeWgtOp(JobOp):
    """Weight gradient of a layer with real input."""

    name = "tile.be_wgt"


@irdl_op_definition
class WuRunOp(JobOp):
    """Weight gradient by look-up."""

    name = "tile.wu_run"


@irdl_op_definition
class LifOp(JobOp):
    """One time step of a neuron tile.

    No role ``uo``, ``mo`` when not saved, no ``ss``, ``so`` without spikes, no ``cs`` without a synapse; counted spikes
    are in storage type and have no role ``ss``.
    """

    name = "tile.lif"


@irdl_op_definition
class GradOp(JobOp):
    """One time step, backwards, of a neuron tile; no roles ``u``, ``s`` without spikes, no ``gi`` without a synapse.

    Counted spikes have no role ``s``: the potentials say where there are any.
    """

    name = "tile.grad"


@irdl_op_definition
class TuneOp(JobOp):
    """Gradients of decay and threshold of a neuron tile, added up over its positions."""

    name = "tile.tune"


@irdl_op_definition
class PoolOp(JobOp):
    """Pooling; no role ``idx`` unless ``kind`` is ``max``.

    Elements outside rows ``0 .. ylim-1`` and columns ``0 .. xlim-1`` (0: everywhere) take no part in a maximum; the
    coordinates are the first row and column of the tile.
    """

    name = "tile.pool"


@irdl_op_definition
class UnpoolOp(JobOp):
    """Gradient of pooling; no role ``idx`` unless ``kind`` is ``max``."""

    name = "tile.unpool"


@irdl_op_definition
class RngOp(JobOp):
    """Bernoulli encoding of ``n`` samples (or positions) of ``k`` neurons."""

    name = "tile.rng"


@irdl_op_definition
class DropOp(JobOp):
    """Dropout of ``n`` samples of ``positions`` positions; ``share`` of the values stay, times ``factor``."""

    name = "tile.drop"


@irdl_op_definition
class ReduceOp(JobOp):
    """Reduction over time or positions."""

    name = "tile.reduce"


@irdl_op_definition
class SpreadOp(JobOp):
    """Gradient of a maximum over time."""

    name = "tile.spread"


@irdl_op_definition
class MapOp(JobOp):
    """Sum of two values element by element, or a change of format; no role ``b`` when ``kind`` is ``copy``."""

    name = "tile.map"


@irdl_op_definition
class PackOp(JobOp):
    """Bit-planes of fixed-point numbers."""

    name = "tile.pack"


@irdl_op_definition
class StatOp(JobOp):
    """Sums of batch normalisation; role ``g`` for ``kind`` product only."""

    name = "tile.stat"


@irdl_op_definition
class FoldOp(JobOp):
    """A batch statistic from its sum."""

    name = "tile.fold"


@irdl_op_definition
class NormOp(JobOp):
    """Batch normalisation of a tile; roles ``g`` and ``scal`` for ``kind`` backward only."""

    name = "tile.norm"


@irdl_op_definition
class LossOp(JobOp):
    """Loss of ``n`` samples and its gradient times ``scale``."""

    name = "tile.loss"


@irdl_op_definition
class OptOp(JobOp):
    """Optimizer step; no role ``mom`` without momentum, ``sq`` for Adam only, no ``w`` without a storage copy."""

    name = "tile.opt"


class TokenOp(IRDLOperation):
    """What an engine does with the tokens of one dependence. Text: ``tile.wait VEC, 3`` (``count 2`` when not one)."""

    engine = prop_def(StringAttr)
    token = prop_def(IntAttr)
    count = prop_def(IntAttr)

    def __init__(self, engine: str, token: int, count: int = 1) -> None:
        super().__init__(properties={"engine": StringAttr(engine), "token": IntAttr(token), "count": IntAttr(count)})

    def verify_(self) -> None:
        """Check engine, token and count."""
        if self.engine.data not in isa.ENGINES:
            raise VerifyException(
                f"{self.name} expects an engine of {', '.join(isa.ENGINES)}, found {self.engine.data!r}"
            )
        if self.token.data < 0 or self.count.data < 1:
            raise VerifyException(f"{self.name} expects a token from 0 and a count from 1")

    def print(self, printer: Printer) -> None:
        """Print engine, token and count."""
        count = f" count {self.count.data}" if self.count.data != 1 else ""
        printer.print_string(f" {self.engine.data}, {self.token.data}{count}")
        printer.print_op_attributes(self.attributes, print_keyword=True)

    @classmethod
    def parse(cls, parser: Parser) -> Self:
        """Parse engine, token and count."""
        engine = parser.parse_identifier()
        parser.parse_punctuation(",")
        token = parser.parse_integer(allow_boolean=False)
        count = parser.parse_integer(allow_boolean=False) if parser.parse_optional_keyword("count") else 1
        return _with_attributes(cls(engine, token, count), parser)


@irdl_op_definition
class SignalOp(TokenOp):
    """Post ``count`` tokens of ``token`` when all earlier work of ``engine`` is done."""

    name = "tile.signal"


@irdl_op_definition
class WaitOp(TokenOp):
    """Hold ``engine`` until ``count`` tokens of ``token`` are there, and take them."""

    name = "tile.wait"


JOBS: tuple[type[JobOp], ...] = (
    FeFillOp,
    FeRunOp,
    FePlanesOp,
    BeFwdOp,
    BeRunOp,
    BeWgtOp,
    WuRunOp,
    LifOp,
    GradOp,
    TuneOp,
    PoolOp,
    UnpoolOp,
    RngOp,
    DropOp,
    ReduceOp,
    SpreadOp,
    MapOp,
    PackOp,
    StatOp,
    FoldOp,
    NormOp,
    LossOp,
    OptOp,
)

Tile = Dialect(
    "tile",
    [
        StreamOp,
        FenceOp,
        StageOp,
        ForOp,
        TensorOp,
        ViewOp,
        RepeatOp,
        StackOp,
        AllocOp,
        LoadOp,
        StoreOp,
        *JOBS,
        SignalOp,
        WaitOp,
    ],
    [ShapeAttr, IndicesAttr, LayoutAttr, PlacesAttr, ParamsAttr, RowsAttr, TensorType, BufferType],
)


def engine_of(op: Operation) -> str | None:
    """Return the engine that runs an op (None for loops and declarations)."""
    if isinstance(op, LoadOp):
        return "DMAIN"
    if isinstance(op, StoreOp):
        return "DMAOUT"
    if isinstance(op, TokenOp):
        return op.engine.data
    return op.facts.engine if isinstance(op, JobOp) else None


def touched(op: Operation) -> list[tuple[SSAValue, Index | None, bool, bool]]:
    """Return (buffer or tensor, leading index, read, written) for everything a job or copy touches.

    For the tensor of a copy the index is None; the copy's own window says which part.
    """
    if isinstance(op, CopyOp):
        load = isinstance(op, LoadOp)
        return [(op.tensor, None, load, not load), (op.buffer, op.index, not load, load)]
    if not isinstance(op, JobOp):
        return []
    facts = op.facts
    return [(buffer, index, role in facts.reads, role in facts.writes) for role, (buffer, index) in op.places().items()]


def unused_roles(op: JobOp) -> frozenset[str]:
    """Return the roles that the parameters of a job switch off."""
    return _unused_roles(op.name, op.parameters())


def placed_of(value: SSAValue) -> Placed:
    """Return format and shape of a tensor or buffer value."""
    assert isinstance(value.type, TensorType | BufferType)
    return value.type.placed


def _unused_roles(name: str, p: dict[str, Param]) -> frozenset[str]:
    """Return the roles that the parameters of a job switch off."""
    unused: set[str] = set()
    if name == "tile.lif":
        unused |= {"uo"} if p["save_u"] == "no" else set()
        unused |= {"mo"} if p["save_m"] == "no" else set()
        unused |= {"ss", "so"} if p["spike"] == "never" else {"ss"} if p["counted"] == "yes" else set()
        unused |= {"cs"} if p["drive"] in _WITHOUT_SYNAPSE else set()
    elif name == "tile.grad":
        unused |= {"u", "s"} if p["spike"] == "never" else {"s"} if p["counted"] == "yes" else set()
        unused |= {"gi"} if p["drive"] in _WITHOUT_SYNAPSE else set()
    elif name == "tile.be_run":
        unused |= {"m"} if p["masked"] == "no" else set()
    elif name in ("tile.pool", "tile.unpool"):
        unused |= {"idx"} if p["kind"] != "max" else set()
    elif name == "tile.map":
        unused |= set() if p["kind"] in isa.BINARY_MAPS else {"b"}
    elif name == "tile.stat":
        unused |= set() if p["kind"] == "product" else {"g"}
    elif name == "tile.norm":
        unused |= set() if p["kind"] == "backward" else {"g", "scal"}
    elif name == "tile.opt":
        adam = p["kind"] in ("adam", "adamw")
        unused |= {"mom"} if p["momentum"] == 0 and not adam else set()
        unused |= set() if adam else {"sq"}
        unused |= {"w"} if p["dtype"] == "f32" else set()
    return frozenset(unused)


def _check_counters(op: Operation, count: int, indices: Sequence[Index]) -> None:
    """Check that the coefficients of the indices belong to counters, and every counter to an index."""
    if any(len(coeffs) > count for _, coeffs in indices):
        raise VerifyException(f"{op.name} has an index over more than its {count} loop counters")
    if any(not any(coeffs[n : n + 1] != (0,) for _, coeffs in indices if len(coeffs) > n) for n in range(count)):
        raise VerifyException(f"{op.name} has a loop counter that no index uses")


def _with_attributes(op: Op, parser: Parser) -> Op:
    """Add the attributes that follow in the text."""
    attributes = parser.parse_optional_attr_dict_with_keyword()
    if attributes is not None:
        op.attributes.update(attributes.data)
    return op


def _with_block(region: Region) -> Region:
    """Give an empty region the block that its text leaves out."""
    if region.first_block is None:
        region.add_block(Block())
    return region
