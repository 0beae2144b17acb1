"""The ``tile`` dialect: loops over tiles, buffers in named memories, copies between DRAM and chip, one op per engine job.

A buffer is allocated where its contents start to live: each time ``tile.alloc`` runs it names fresh, undefined contents,
and ``slots`` says over how many physical copies successive allocations rotate. All other ops refer to tensors and
buffers by :class:`Ref`: an affine function of loop counters picks a window of a tensor or the leading index of a buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xdsl.dialects.builtin import IndexType, IntAttr, StringAttr
from xdsl.ir import Block, Data, Dialect, Operation, ParametrizedAttribute, Region, SSAValue, TypeAttribute
from xdsl.irdl import (
    AttrSizedOperandSegments,
    IRDLOperation,
    irdl_attr_definition,
    irdl_op_definition,
    operand_def,
    opt_prop_def,
    prop_def,
    region_def,
    result_def,
    traits_def,
    var_operand_def,
)
from xdsl.parser import AttrParser
from xdsl.printer import Printer
from xdsl.traits import NoTerminator
from xdsl.utils.exceptions import VerifyException

Index = tuple[int, tuple[int, ...]]
"""Affine index: a constant and one coefficient per loop counter among the op's ``ivs`` operands."""

Param = int | float | str

FORMATS = ("bits", "u8", "i32", "f16", "f32", "slots.f16", "slots.f32", "lut.f16", "lut.f32")
MEMORIES = ("W", "S", "U", "G", "M", "A", "L")


@irdl_attr_definition
class ShapeAttr(Data[tuple[int, ...]]):
    """A tuple of positive sizes, printed ``<2x3>``; the empty tuple is a scalar."""

    name = "tile.shape"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> tuple[int, ...]:
        """Parse ``<"2x3">``."""
        with parser.in_angle_brackets():
            text = parser.parse_str_literal()
        return tuple(int(n) for n in text.split("x")) if text else ()

    def print_parameter(self, printer: Printer) -> None:
        """Print ``<"2x3">``."""
        printer.print_string(f'<"{"x".join(map(str, self.data))}">')


@dataclass(frozen=True)
class Placed:
    """What tensor and buffer types have in common: format, shape and channels per gradient slot."""

    form: str
    shape: tuple[int, ...]
    gblk: int


class _PlacedType(ParametrizedAttribute, TypeAttribute):
    form: StringAttr
    dims: ShapeAttr
    slot_channels: IntAttr

    @property
    def placed(self) -> Placed:
        """Format, shape and channels per slot as plain data."""
        return Placed(self.form.data, self.dims.data, self.slot_channels.data)

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical sizes."""
        return self.dims.data


@irdl_attr_definition
class TensorType(_PlacedType):
    """A tensor in DRAM, contiguous in its format."""

    name = "tile.tensor"


@irdl_attr_definition
class BufferType(_PlacedType):
    """A buffer in an on-chip memory."""

    name = "tile.buffer"


def tensor_type(form: str, shape: Sequence[int], gblk: int = 0) -> TensorType:
    """Return the type of a DRAM tensor."""
    return TensorType(StringAttr(form), ShapeAttr(tuple(shape)), IntAttr(gblk))


def buffer_type(form: str, shape: Sequence[int], gblk: int = 0) -> BufferType:
    """Return the type of an on-chip buffer."""
    return BufferType(StringAttr(form), ShapeAttr(tuple(shape)), IntAttr(gblk))


@irdl_attr_definition
class IndicesAttr(Data[tuple[Index, ...]]):
    """Affine indices, printed as ``<"4*i0+1*i2-1, 0">`` (``iN``: the op's N-th loop counter operand)."""

    name = "tile.indices"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> tuple[Index, ...]:
        """Parse what ``print_parameter`` prints; the number of counters is taken from the widest index."""
        with parser.in_angle_brackets():
            text = parser.parse_str_literal()
        return tuple(_parse_index(part) for part in text.split(",")) if text else ()

    def print_parameter(self, printer: Printer) -> None:
        """Print the indices in quotes."""
        printer.print_string(f'<"{", ".join(_print_index(index) for index in self.data)}">')


@irdl_attr_definition
class ParamsAttr(Data[tuple[tuple[str, Param], ...]]):
    """Named integers, floats and words, printed ``<"imgs=4, dtype='f32'">``, sorted by name."""

    name = "tile.params"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> tuple[tuple[str, Param], ...]:
        """Parse what ``print_parameter`` prints."""
        with parser.in_angle_brackets():
            text = parser.parse_str_literal()
        pairs = (part.strip().split("=") for part in text.split(",")) if text else ()
        return tuple((name, _parse_param(value)) for name, value in pairs)

    def print_parameter(self, printer: Printer) -> None:
        """Print the parameters in quotes."""
        printer.print_string(f'<"{", ".join(f"{name}={value!r}" for name, value in self.data)}">')


Rows = tuple[tuple[float, ...], ...]


@irdl_attr_definition
class RowsAttr(Data[Rows]):
    """Constant rows of a parameter tensor; a row of one value stands for all channels."""

    name = "tile.rows"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> Rows:
        """Parse ``<"0.5; 1.0; 0.0">``."""
        with parser.in_angle_brackets():
            text = parser.parse_str_literal()
        return tuple(tuple(float(v) for v in row.split()) for row in text.split(";"))

    def print_parameter(self, printer: Printer) -> None:
        """Print the rows separated by semicolons."""
        printer.print_string(f'<"{"; ".join(" ".join(map(repr, row)) for row in self.data)}">')


def _print_index(index: Index) -> str:
    offset, coeffs = index
    terms = [f"{coeff}*i{n}" for n, coeff in enumerate(coeffs) if coeff]
    return " + ".join([*terms, str(offset)] if offset or not terms else terms)


def _parse_index(text: str) -> Index:
    offset = 0
    coeffs: dict[int, int] = {}
    for term in text.split("+"):
        value, star, counter = term.strip().partition("*i")
        if star:
            coeffs[int(counter)] = int(value)
        else:
            offset = int(value)
    return offset, tuple(coeffs.get(n, 0) for n in range(max(coeffs, default=-1) + 1))


def _parse_param(text: str) -> Param:
    if text.startswith("'"):
        return text.strip("'")
    try:
        return int(text)
    except ValueError:
        return float(text)


def evaluate(index: Index, counters: Sequence[int]) -> int:
    """Return the value of an affine index for given loop counters."""
    return index[0] + sum(coeff * counter for coeff, counter in zip(index[1], counters, strict=False))


@irdl_op_definition
class StageOp(IRDLOperation):
    """One loop nest with buffers of its own; stages run one after the other."""

    name = "tile.stage"
    label = prop_def(StringAttr)
    body = region_def("single_block")
    traits = traits_def(NoTerminator())
    assembly_format = "$label $body attr-dict"

    def __init__(self, label: str, body: Region) -> None:
        super().__init__(regions=[body], properties={"label": StringAttr(label)})


@irdl_op_definition
class ForOp(IRDLOperation):
    """Run the body ``trips`` times; the block argument counts from 0."""

    name = "tile.for"
    label = prop_def(StringAttr)
    trips = prop_def(IntAttr)
    body = region_def("single_block")
    traits = traits_def(NoTerminator())

    def __init__(self, label: str, trips: int, body: Region | None = None) -> None:
        region = body if body is not None else Region(Block(arg_types=[IndexType()]))
        super().__init__(regions=[region], properties={"label": StringAttr(label), "trips": IntAttr(trips)})

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


@irdl_op_definition
class TensorOp(IRDLOperation):
    """A DRAM tensor that belongs to the program: constant ``rows``, the storage copy of argument ``shadow``, or zeros."""

    name = "tile.dram"
    label = prop_def(StringAttr)
    shadow = opt_prop_def(StringAttr)
    rows = opt_prop_def(RowsAttr)
    result = result_def(TensorType)
    assembly_format = "$label (`rows` $rows^)? (`shadow` $shadow^)? `:` type($result) attr-dict"

    def __init__(self, label: str, kind: TensorType, *, rows: Rows | None = None, shadow: str | None = None) -> None:
        super().__init__(
            properties={
                "label": StringAttr(label),
                "rows": None if rows is None else RowsAttr(rows),
                "shadow": None if shadow is None else StringAttr(shadow),
            },
            result_types=[kind],
        )


@irdl_op_definition
class ViewOp(IRDLOperation):
    """The same tensor with other sizes."""

    name = "tile.view"
    source = operand_def(TensorType)
    result = result_def(TensorType)
    assembly_format = "$source `:` type($source) `to` type($result) attr-dict"

    def __init__(self, source: SSAValue, shape: Sequence[int]) -> None:
        assert isinstance(source.type, TensorType)
        super().__init__(operands=[source], result_types=[tensor_type(source.type.placed.form, shape)])

    def verify_(self) -> None:
        """Check that the volume stays and that channels are not packed."""
        before, after = self.source.type, self.result.type
        assert isinstance(before, TensorType) and isinstance(after, TensorType)
        if before.placed.form != after.placed.form or before.placed.form not in ("f32", "f16", "i32"):
            raise VerifyException(f"tile.view expects plain numbers, found {before.placed.form}")
        if _volume(before.shape) != _volume(after.shape):
            raise VerifyException(f"tile.view expects equal volumes, found {before.shape} and {after.shape}")


@irdl_op_definition
class AllocOp(IRDLOperation):
    """A buffer with fresh contents in memory ``memory``, rotating over ``slots`` physical copies."""

    name = "tile.alloc"
    label = prop_def(StringAttr)
    memory = prop_def(StringAttr)
    slots = prop_def(IntAttr)
    address = opt_prop_def(IntAttr)
    result = result_def(BufferType)
    assembly_format = "$label `in` $memory `slots` $slots (`at` $address^)? `:` type($result) attr-dict"

    def __init__(self, label: str, memory: str, slots: int, kind: BufferType) -> None:
        super().__init__(
            properties={"label": StringAttr(label), "memory": StringAttr(memory), "slots": IntAttr(slots)},
            result_types=[kind],
        )

    def verify_(self) -> None:
        """Check the memory's name and the slots."""
        if self.memory.data not in MEMORIES:
            raise VerifyException(f"tile.alloc expects a memory of {MEMORIES}, found {self.memory.data!r}")
        if self.slots.data < 1:
            raise VerifyException(f"tile.alloc expects at least one slot, found {self.slots.data}")


class _CopyOp(IRDLOperation):
    """Copy between a window of a DRAM tensor and (part of) a buffer.

    ``window`` has one index per tensor dimension (where it starts) and ``sizes`` its extent; ``at`` is the leading index
    of the buffer (``whole`` = 1: the window is the whole buffer). Parts of the window that lie outside the tensor read
    as zero and are not written.
    """

    tensor = operand_def(TensorType)
    buffer = operand_def(BufferType)
    ivs = var_operand_def(IndexType())
    window = prop_def(IndicesAttr)
    sizes = prop_def(ShapeAttr)
    at = opt_prop_def(IndicesAttr)
    assembly_format = (
        "$tensor `window` $window `sizes` $sizes `buffer` $buffer (`at` $at^)? `(` $ivs `)` `:` "
        "type($tensor) `,` type($buffer) attr-dict"
    )

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
        tensor, buffer = self.tensor.type, self.buffer.type
        assert isinstance(tensor, TensorType) and isinstance(buffer, BufferType)
        return tensor.placed, buffer.placed

    def verify_(self) -> None:
        """Check that window, tensor and buffer have one shape and format."""
        tensor, buffer = self.placed
        inner = buffer.shape[1:] if self.at is not None else buffer.shape
        if len(self.window.data) != len(tensor.shape) or len(self.sizes.data) != len(tensor.shape):
            raise VerifyException(f"expected {len(tensor.shape)} window dimensions, found {len(self.window.data)}")
        if (tensor.form, tensor.gblk) != (buffer.form, buffer.gblk):
            raise VerifyException(f"expected a buffer of format {tensor.form}, found {buffer.form}")
        if _volume(self.sizes.data) != _volume(inner) or self.sizes.data[-1:] != inner[-1:]:
            raise VerifyException(f"expected a buffer of shape {self.sizes.data}, found {inner}")
        if any(len(index[1]) > len(self.ivs) for index in self.window.data):
            raise VerifyException("an index uses a loop counter that is not an operand")


@irdl_op_definition
class LoadOp(_CopyOp):
    """DRAM to chip (engine DMAIN)."""

    name = "tile.load"


@irdl_op_definition
class StoreOp(_CopyOp):
    """Chip to DRAM (engine DMAOUT)."""

    name = "tile.store"


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
_NEURON = ("n", "k", "dtype", "reset", "spike", "surrogate", "width", "height")
_POOL = ("imgs", "oh", "ow", "kh", "kw", "sh", "sw", "k", "kind", "dtype", "gblk", "src", "dst")

FACTS: dict[str, JobFacts] = {
    "tile.fe_fill": JobFacts("FE", ("lut", "w"), ("w",), ("lut",), ("kh", "kw", "c", "k", "fan", "dtype")),
    "tile.fe_run": JobFacts("FE", ("acc", "s", "lut"), ("acc", "s", "lut"), ("acc",), (*_GEOMETRY, "fan", "shape")),
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
        ("acc", "par", "us", "ss", "so", "uo", "mo"),
        ("acc", "par", "us", "ss"),
        ("us", "ss", "so", "uo", "mo"),
        (*_NEURON, "save_u", "save_m"),
    ),
    "tile.grad": JobFacts(
        "VEC",
        ("gs", "u", "s", "par", "gc", "go"),
        ("gs", "u", "s", "par", "gc"),
        ("gc", "go"),
        (*_NEURON, "detach", "gblk"),
    ),
    "tile.pool": JobFacts("VEC", ("dst", "src", "idx"), ("src",), ("dst", "idx"), _POOL),
    "tile.unpool": JobFacts("VEC", ("dst", "src", "idx"), ("src", "idx"), ("dst",), (*_POOL, *_GRADIENT)),
    "tile.rng": JobFacts(
        "VEC",
        ("dst", "src", "scal"),
        ("src", "scal"),
        ("dst",),
        ("n", "positions", "k", "stream"),
        ("pos", "neu", "tick"),
    ),
    "tile.reduce": JobFacts(
        "VEC", ("dst", "src"), ("src", "dst"), ("dst",), ("n", "k", "steps", "kind", "dtype", "gblk")
    ),
    "tile.loss": JobFacts(
        "VEC",
        ("loss", "grad", "logits", "label", "scal"),
        ("loss", "logits", "label", "scal"),
        ("loss", "grad"),
        ("n", "k", "kind", "scale"),
        ("pos",),
    ),
    "tile.opt": JobFacts(
        "VEC",
        ("p", "g", "mom", "w", "scal"),
        ("p", "g", "mom", "scal"),
        ("p", "mom", "w"),
        ("n", "kind", "dtype", "momentum", "grad_scale"),
    ),
}


class JobOp(IRDLOperation):
    """One job of a compute engine on buffers.

    ``buffers`` follow the roles in :data:`FACTS`; ``at`` holds, per buffer, the leading index as a one-element tuple or nothing when the
    whole buffer is meant. ``first`` are the loop counters that must all be 0 for a fresh start (none: always fresh).
    ``coords`` are further indices (sample, neuron, tick coordinates).
    """

    buffers = var_operand_def(BufferType)
    ivs = var_operand_def(IndexType())
    first = var_operand_def(IndexType())
    at = prop_def(IndicesAttr)
    whole = prop_def(ShapeAttr)
    coords = prop_def(IndicesAttr)
    params = prop_def(ParamsAttr)
    irdl_options = (AttrSizedOperandSegments(as_property=True),)
    assembly_format = (
        "`(` $buffers `)` `at` $at `whole` $whole `coords` $coords `ivs` `(` $ivs `)` `first` `(` $first `)` "
        "$params `:` type($buffers) attr-dict"
    )

    def __init__(
        self,
        buffers: Sequence[SSAValue],
        params: dict[str, Param],
        *,
        ivs: Sequence[SSAValue] = (),
        at: dict[str, Index] | None = None,
        first: Sequence[SSAValue] = (),
        coords: Sequence[Index] = (),
    ) -> None:
        places = at or {}
        super().__init__(
            operands=[list(buffers), list(ivs), list(first)],
            properties={
                "at": IndicesAttr(tuple(places.get(role, (0, ())) for role in self.facts.roles)),
                "whole": ShapeAttr(tuple(int(role not in places) for role in self.facts.roles)),
                "coords": IndicesAttr(tuple(coords)),
                "params": ParamsAttr(tuple(sorted(params.items()))),
            },
        )

    @property
    def facts(self) -> JobFacts:
        """What is known about this kind of job."""
        return FACTS[self.name]

    def parameters(self) -> dict[str, Param]:
        """Return the named parameters."""
        return dict(self.params.data)

    def buffer(self, role: str) -> SSAValue:
        """Return the buffer in ``role``."""
        return self.buffers[self.facts.roles.index(role)]

    def index(self, role: str) -> Index | None:
        """Return the leading index of the buffer in ``role``, None for the whole buffer."""
        n = self.facts.roles.index(role)
        return None if self.whole.data[n] else self.at.data[n]

    def verify_(self) -> None:
        """Check roles, coordinates and parameters."""
        if len(self.buffers) != len(self.facts.roles):
            raise VerifyException(f"{self.name} expects buffers {self.facts.roles}, found {len(self.buffers)}")
        if len(self.coords.data) != len(self.facts.coords):
            raise VerifyException(f"{self.name} expects coordinates {self.facts.coords}, found {len(self.coords.data)}")
        names = {name for name, _ in self.params.data}
        if names != set(self.facts.params):
            raise VerifyException(f"{self.name} expects parameters {sorted(self.facts.params)}, found {sorted(names)}")


@irdl_op_definition
class FeFillOp(JobOp):
    """Build the look-up tables of a weight tile."""

    name = "tile.fe_fill"


@irdl_op_definition
class FeRunOp(JobOp):
    """Forward convolution of spikes by look-up."""

    name = "tile.fe_run"


@irdl_op_definition
class BeFwdOp(JobOp):
    """Forward convolution of a real input on the multipliers."""

    name = "tile.be_fwd"


@irdl_op_definition
class BeRunOp(JobOp):
    """Input gradient; role ``m`` repeats ``g`` when ``masked`` is ``no``."""

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
    """One time step of a neuron tile; roles ``uo``/``mo`` repeat ``us``/``ss`` when nothing is saved."""

    name = "tile.lif"


@irdl_op_definition
class GradOp(JobOp):
    """One time step, backwards, of a neuron tile."""

    name = "tile.grad"


@irdl_op_definition
class PoolOp(JobOp):
    """Pooling; role ``idx`` repeats ``dst`` when ``kind`` is ``avg``."""

    name = "tile.pool"


@irdl_op_definition
class UnpoolOp(JobOp):
    """Gradient of pooling; role ``idx`` repeats ``src`` when ``kind`` is ``avg``."""

    name = "tile.unpool"


@irdl_op_definition
class RngOp(JobOp):
    """Bernoulli encoding of ``n`` samples (or positions) of ``k`` neurons."""

    name = "tile.rng"


@irdl_op_definition
class ReduceOp(JobOp):
    """Reduction over time or positions."""

    name = "tile.reduce"


@irdl_op_definition
class LossOp(JobOp):
    """Loss of ``n`` samples and its gradient times ``scale``."""

    name = "tile.loss"


@irdl_op_definition
class OptOp(JobOp):
    """Optimizer step; roles ``mom``/``w`` repeat ``g`` where there is no momentum or no storage copy."""

    name = "tile.opt"


@irdl_op_definition
class SignalOp(IRDLOperation):
    """Post ``count`` tokens of ``token`` when all earlier work of ``engine`` is done."""

    name = "tile.signal"
    engine = prop_def(StringAttr)
    token = prop_def(IntAttr)
    count = prop_def(IntAttr)
    assembly_format = "$engine `token` $token `count` $count attr-dict"

    def __init__(self, engine: str, token: int, count: int = 1) -> None:
        super().__init__(properties={"engine": StringAttr(engine), "token": IntAttr(token), "count": IntAttr(count)})


@irdl_op_definition
class WaitOp(IRDLOperation):
    """Hold ``engine`` until ``count`` tokens of ``token`` are there, and take them."""

    name = "tile.wait"
    engine = prop_def(StringAttr)
    token = prop_def(IntAttr)
    count = prop_def(IntAttr)
    assembly_format = "$engine `token` $token `count` $count attr-dict"

    def __init__(self, engine: str, token: int, count: int = 1) -> None:
        super().__init__(properties={"engine": StringAttr(engine), "token": IntAttr(token), "count": IntAttr(count)})


JOBS: tuple[type[JobOp], ...] = (
    FeFillOp,
    FeRunOp,
    BeFwdOp,
    BeRunOp,
    BeWgtOp,
    WuRunOp,
    LifOp,
    GradOp,
    PoolOp,
    UnpoolOp,
    RngOp,
    ReduceOp,
    LossOp,
    OptOp,
)

Tile = Dialect(
    "tile",
    [StageOp, ForOp, TensorOp, ViewOp, AllocOp, LoadOp, StoreOp, *JOBS, SignalOp, WaitOp],
    [ShapeAttr, IndicesAttr, ParamsAttr, RowsAttr, TensorType, BufferType],
)


def engine_of(op: Operation) -> str | None:
    """Return the engine that runs an op (None for loops and declarations)."""
    if isinstance(op, LoadOp):
        return "DMAIN"
    if isinstance(op, StoreOp):
        return "DMAOUT"
    if isinstance(op, SignalOp | WaitOp):
        return op.engine.data
    return op.facts.engine if isinstance(op, JobOp) else None


def touched(op: Operation) -> list[tuple[SSAValue, Index | None, bool, bool]]:
    """Return (buffer or tensor, leading index, read, written) for everything a job or copy touches.

    For the tensor of a copy the index is None; the copy's own window says which part.
    """
    if isinstance(op, LoadOp | StoreOp):
        load = isinstance(op, LoadOp)
        at = op.at.data[0] if op.at is not None else None
        return [(op.tensor, None, load, not load), (op.buffer, at, not load, load)]
    if not isinstance(op, JobOp):
        return []
    result: list[tuple[SSAValue, Index | None, bool, bool]] = []
    for role in op.facts.roles:
        if role in unused_roles(op):
            continue
        result.append((op.buffer(role), op.index(role), role in op.facts.reads, role in op.facts.writes))
    return result


def unused_roles(op: JobOp) -> frozenset[str]:
    """Return the roles that the parameters of a job switch off."""
    p = op.parameters()
    unused: set[str] = set()
    if isinstance(op, LifOp):
        unused |= {"uo"} if p["save_u"] == "no" else set()
        unused |= {"mo"} if p["save_m"] == "no" else set()
        unused |= {"ss", "so"} if p["spike"] == "never" else set()
    elif isinstance(op, GradOp) and p["spike"] == "never":
        unused |= {"u", "s"}
    elif isinstance(op, BeRunOp) and p["masked"] == "no":
        unused |= {"m"}
    elif isinstance(op, PoolOp | UnpoolOp) and p["kind"] == "avg":
        unused |= {"idx"}
    elif isinstance(op, OptOp):
        unused |= {"mom"} if p["momentum"] == 0 else set()
        unused |= {"w"} if p["dtype"] == "f32" else set()
    return frozenset(unused)


def _volume(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
