"""Sums over a convolution window: currents, input gradients, weight gradients, and the weights they read."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import ClassVar

from xdsl.dialects.builtin import DenseArrayBase, IntegerAttr, IntegerType, LocationAttr, StringAttr, TensorType
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import (
    AttrSizedOperandSegments,
    ParsePropInAttrDict,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    opt_prop_def,
    prop_def,
    result_def,
)
from xdsl.utils.exceptions import VerifyException

from h2learn.backends.h2learn.machine import MOST_FAN_IN

from ..feedback import FeedbackOp
from .attributes import (
    ConvGeometry,
    GeometryAttr,
    GradsType,
    MaskType,
    Planes,
    PlanesAttr,
    Shape,
    SpikesType,
    StoreType,
    shape_of,
)
from .base import (
    PLAIN_SYNTAX,
    Block,
    LutOp,
    activation_shape,
    block_of,
    expect,
    expect_shape,
    integer,
    integers,
    optional,
    pair,
    tensor,
    verify_block,
    verify_word,
)

MODES = ("dense", "in", "out", "dual")


class ConvolutionOp(LutOp, ABC):
    """A sum over a convolution window."""

    geometry_attr = prop_def(GeometryAttr, prop_name="geometry")

    @property
    def geometry(self) -> ConvGeometry:
        """Kernel, stride and padding as (rows, columns)."""
        return self.geometry_attr.data


class ForwardConvolutionOp(ConvolutionOp, ABC):
    """Input ``[(T,)N,H,W,C]`` and weights ``[kh*kw,C,K]`` give the current ``[(T,)N,OH,OW,K]`` in fp32.

    The sums start at 0, or at ``onto`` of the same shape: another current, spikes (which count 1) or stored reals. In a
    scan it may lack T: the same at every step.
    """

    w = operand_def()
    onto = opt_operand_def()
    current = result_def(TensorType)
    reduce_attr = prop_def(IntegerAttr[IntegerType], prop_name="reduce_block")

    @property
    def reduce_block(self) -> int:
        """Input channels that are summed (over all taps) before the next block of channels starts."""
        return self.reduce_attr.value.data

    def verify_window(self, x: Attribute) -> None:
        """Check shapes and the block size against input type ``x``."""
        shape = activation_shape("input", x)
        taps, c, k = weights_shape(self.w.type)
        expect("kernel positions of the weights", taps, self.geometry.taps)
        expect("input channels of the weights", c, shape[-1])
        expect_shape("current", self.current.type, convolved(shape, self.geometry, k))
        verify_onto(self, "current", shape_of(self.current.type), TensorType, SpikesType, StoreType)
        verify_block("reduce_block", self.reduce_block)


@irdl_op_definition
class FeConvOp(ForwardConvolutionOp):
    """Convolution by table look-up, of spikes or of stored numbers as bit-planes.

    For each block of ``reduce_block`` channels, tap and group of ``fan_in`` channels, adds the table entry of the
    group's spike pattern; entries are rounded to the weights' storage type. Of numbers, it adds for each plane of the
    ``operand_form`` ascending what the entry counts there.
    """

    name = "lut.fe_conv"
    ENGINE: ClassVar[str] = "FE"
    s = operand_def()
    w = operand_def()
    onto = opt_operand_def()
    current = result_def(TensorType)
    form_attr = opt_prop_def(PlanesAttr, prop_name="operand_form")
    fan_attr = prop_def(IntegerAttr[IntegerType], prop_name="fan_in")
    assembly_format = PLAIN_SYNTAX

    def __init__(
        self,
        s: SSAValue,
        w: SSAValue,
        geometry: ConvGeometry,
        fan_in: int,
        reduce_block: int,
        location: LocationAttr | None = None,
        *,
        onto: SSAValue | None = None,
        planes: Planes | None = None,
    ) -> None:
        result = tensor(convolved(shape_of(s.type), geometry, shape_of(w.type)[-1]))
        properties: dict[str, Attribute | None] = {
            "geometry": GeometryAttr(geometry),
            "fan_in": integer(fan_in),
            "reduce_block": integer(reduce_block),
            "operand_form": None if planes is None else PlanesAttr(planes),
        }
        self.construct([s, w, optional(onto)], [result], properties, location)

    @property
    def fan_in(self) -> int:
        """Channels per look-up."""
        return self.fan_attr.value.data

    @property
    def planes(self) -> Planes | None:
        """The bit-planes of stored numbers, None for spikes."""
        return None if self.form_attr is None else self.form_attr.data

    def verify_(self) -> None:
        """Check shapes, fan-in, block, and that stored numbers alone have bit-planes."""
        wanted = SpikesType if self.planes is None else StoreType
        if not isinstance(self.s.type, wanted):
            form = "spikes" if self.planes is None else "stored numbers as bit-planes"
            raise VerifyException(f"expected {form}, found {self.s.type}")
        self.verify_window(self.s.type)
        verify_fan(self.fan_in)


@irdl_op_definition
class BeConvOp(ForwardConvolutionOp):
    """Convolution of reals on the multipliers; zero inputs are skipped."""

    name = "lut.be_conv"
    ENGINE: ClassVar[str] = "BE"
    x = operand_def(StoreType)
    w = operand_def()
    onto = opt_operand_def()
    current = result_def(TensorType)
    assembly_format = PLAIN_SYNTAX

    def __init__(
        self,
        x: SSAValue,
        w: SSAValue,
        geometry: ConvGeometry,
        reduce_block: int,
        location: LocationAttr | None = None,
        *,
        onto: SSAValue | None = None,
    ) -> None:
        result = tensor(convolved(shape_of(x.type), geometry, shape_of(w.type)[-1]))
        properties = {"geometry": GeometryAttr(geometry), "reduce_block": integer(reduce_block)}
        self.construct([x, w, optional(onto)], [result], properties, location)

    def verify_(self) -> None:
        """Check shapes and block."""
        self.verify_window(self.x.type)


@irdl_op_definition
class CastOp(LutOp):
    """The storage copy of an fp32 parameter, which the weight update of the step before has already written."""

    name = "lut.cast"
    ENGINE: ClassVar[str] = "VEC"
    p = operand_def(TensorType)
    w = result_def(StoreType)
    assembly_format = PLAIN_SYNTAX

    def __init__(self, p: SSAValue, dtype: str, location: LocationAttr | None = None) -> None:
        self.construct([p], [StoreType(shape_of(p.type), dtype)], {}, location)

    def verify_(self) -> None:
        """Check shapes."""
        expect_shape("storage copy", self.w.type, shape_of(self.p.type))


@irdl_op_definition
class BeGradOp(ConvolutionOp):
    """Gradient with respect to a convolution's input (transposed convolution); +0 where the mask is 0.

    The sums start at 0, or at the gradient ``onto`` of the same input through another layer, in either format.
    """

    name = "lut.be_grad"
    ENGINE: ClassVar[str] = "BE"
    gu = operand_def(GradsType)
    w = operand_def()
    m = opt_operand_def(MaskType)
    onto = opt_operand_def()
    gs = result_def(TensorType)
    reduce_attr = prop_def(IntegerAttr[IntegerType], prop_name="reduce_block")
    mode_attr = prop_def(StringAttr, prop_name="mode")
    irdl_options = (ParsePropInAttrDict(), AttrSizedOperandSegments(as_property=True))
    assembly_format = (
        "$gu `,` $w (`mask` $m^)? (`onto` $onto^)? attr-dict"
        " `:` type($gu) `,` type($w) (`mask` type($m)^)? (`onto` type($onto)^)? `->` type($gs)"
    )

    def __init__(
        self,
        gu: SSAValue,
        w: SSAValue,
        m: SSAValue | None,
        geometry: ConvGeometry,
        reduce_block: int,
        mode: str,
        shape: Shape,
        location: LocationAttr | None = None,
        *,
        onto: SSAValue | None = None,
    ) -> None:
        self.construct(
            [gu, w, optional(m), optional(onto)],
            [tensor(shape)],
            {"geometry": GeometryAttr(geometry), "reduce_block": integer(reduce_block), "mode": StringAttr(mode)},
            location,
        )

    @property
    def reduce_block(self) -> int:
        """Output channels that are summed (over all taps) before the next block starts."""
        return self.reduce_attr.value.data

    @property
    def mode(self) -> str:
        """Which zeros save cycles: ``dense``, ``in`` (gradients), ``out`` (mask) or ``dual``; never changes bits."""
        return self.mode_attr.data

    def verify_(self) -> None:
        """Check shapes, block and mode."""
        verify_word("mode", self.mode, MODES)
        shape = activation_shape("input gradient", self.gs.type)
        taps, c, k = weights_shape(self.w.type)
        expect("kernel positions of the weights", taps, self.geometry.taps)
        expect("input channels of the weights", c, shape[-1])
        expect_shape("gradient", self.gu.type, convolved(shape, self.geometry, k))
        verify_block("reduce_block", self.reduce_block)
        if self.m is not None:
            expect_shape("mask", self.m.type, shape)
        verify_onto(self, "gradient", shape, TensorType, GradsType)
        if self.m is None and self.mode in ("out", "dual"):
            raise VerifyException(f"mode {self.mode} needs a mask")


class SparseWeightsOp(LutOp, ABC):
    """Weights of a grouped or dilated convolution inside those of a plain one; only moved, never computed with."""

    kernel_attr = prop_def(DenseArrayBase[IntegerType], prop_name="kernel")
    dilation_attr = prop_def(DenseArrayBase[IntegerType], prop_name="dilation")
    groups_attr = prop_def(IntegerAttr[IntegerType], prop_name="groups")

    @property
    def kernel(self) -> tuple[int, int]:
        """Kernel rows and columns of the grouped or dilated weights."""
        return pair(self.kernel_attr)

    @property
    def dilation(self) -> tuple[int, int]:
        """Distance of kernel places in the plain weights."""
        return pair(self.dilation_attr)

    @property
    def groups(self) -> int:
        """Groups of channels."""
        return self.groups_attr.value.data

    def verify_sizes(self, inner: Attribute, outer: Attribute) -> None:
        """Check grouped or dilated weights against plain ones."""
        taps, c, k = weights_shape(inner)
        verify_block("kernel, dilation and groups", *self.kernel, *self.dilation, self.groups)
        expect("kernel positions of the weights", taps, self.kernel[0] * self.kernel[1])
        if k % self.groups:
            raise VerifyException(f"expected output channels of {self.groups} groups of one size, found {k}")
        expect_shape("plain weights", outer, embedded((taps, c, k), self.kernel, self.dilation, self.groups))


@irdl_op_definition
class EmbedOp(SparseWeightsOp):
    """Grouped or dilated weights ``[kh*kw,C/groups,K]`` as plain ones, zeros in between."""

    name = "lut.embed"
    ENGINE: ClassVar[str] = "DMA"
    w = operand_def()
    result = result_def()
    assembly_format = PLAIN_SYNTAX

    def __init__(
        self,
        w: SSAValue,
        kernel: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        location: LocationAttr | None = None,
    ) -> None:
        shape = embedded(shape_of(w.type), kernel, dilation, groups)
        type_ = StoreType(shape, w.type.dtype) if isinstance(w.type, StoreType) else tensor(shape)
        properties = {"kernel": integers(kernel), "dilation": integers(dilation), "groups": integer(groups)}
        self.construct([w], [type_], properties, location)

    def verify_(self) -> None:
        """Check shapes."""
        self.verify_sizes(self.w.type, self.result.type)


@irdl_op_definition
class ExtractOp(SparseWeightsOp):
    """Gradient ``[kh*kw,C/groups,K]`` of grouped or dilated weights out of that of plain ones."""

    name = "lut.extract"
    ENGINE: ClassVar[str] = "DMA"
    g = operand_def(TensorType)
    result = result_def(TensorType)
    assembly_format = PLAIN_SYNTAX

    def __init__(
        self,
        g: SSAValue,
        kernel: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        location: LocationAttr | None = None,
    ) -> None:
        _, c, k = shape_of(g.type)
        properties = {"kernel": integers(kernel), "dilation": integers(dilation), "groups": integer(groups)}
        self.construct([g], [tensor((kernel[0] * kernel[1], c // groups, k))], properties, location)

    def verify_(self) -> None:
        """Check shapes."""
        self.verify_sizes(self.result.type, self.g.type)


class WeightGradientOp(ConvolutionOp, ABC):
    """Input ``[(T,)N,H,W,C]`` and gradient ``[(T,)N,OH,OW,K]`` give ``[kh*kw,C,K]`` in fp32."""

    gu = operand_def(GradsType)
    gw = result_def(TensorType)
    reduce_attr = prop_def(DenseArrayBase[IntegerType], prop_name="reduce_block")

    @property
    def reduce_block(self) -> Block:
        """(steps, samples, rows, columns) of positions that form one flat block."""
        return block_of(self.reduce_attr)

    def verify_window(self, x: Attribute) -> None:
        """Check shapes and blocks against input type ``x``."""
        shape = activation_shape("input", x)
        k = shape_of(self.gu.type)[-1]
        expect_shape("gradient", self.gu.type, convolved(shape, self.geometry, k))
        expect_shape("weight gradient", self.gw.type, (self.geometry.taps, shape[-1], k))
        verify_block("reduce_block", *self.reduce_block)


@irdl_op_definition
class WuOp(WeightGradientOp):
    """Weight gradient of spikes by table look-up: groups of ``fan_in`` positions, restarting at every block."""

    name = "lut.wu"
    ENGINE: ClassVar[str] = "WUE"
    s = operand_def(SpikesType)
    gu = operand_def(GradsType)
    gw = result_def(TensorType)
    fan_attr = prop_def(IntegerAttr[IntegerType], prop_name="fan_in")
    assembly_format = PLAIN_SYNTAX

    def __init__(
        self,
        s: SSAValue,
        gu: SSAValue,
        geometry: ConvGeometry,
        fan_in: int,
        reduce_block: Block,
        location: LocationAttr | None = None,
    ) -> None:
        result = tensor((geometry.taps, shape_of(s.type)[-1], shape_of(gu.type)[-1]))
        properties = {
            "geometry": GeometryAttr(geometry),
            "fan_in": integer(fan_in),
            "reduce_block": integers(reduce_block),
        }
        self.construct([s, gu], [result], properties, location)

    @property
    def fan_in(self) -> int:
        """Positions per look-up."""
        return self.fan_attr.value.data

    def verify_(self) -> None:
        """Check shapes, fan-in and blocks."""
        self.verify_window(self.s.type)
        verify_fan(self.fan_in)


@irdl_op_definition
class BeWgtOp(WeightGradientOp):
    """Weight gradient of a real input on the multipliers."""

    name = "lut.be_wgt"
    ENGINE: ClassVar[str] = "BE"
    x = operand_def(StoreType)
    gu = operand_def(GradsType)
    gw = result_def(TensorType)
    assembly_format = PLAIN_SYNTAX

    def __init__(
        self,
        x: SSAValue,
        gu: SSAValue,
        geometry: ConvGeometry,
        reduce_block: Block,
        location: LocationAttr | None = None,
    ) -> None:
        result = tensor((geometry.taps, shape_of(x.type)[-1], shape_of(gu.type)[-1]))
        properties = {"geometry": GeometryAttr(geometry), "reduce_block": integers(reduce_block)}
        self.construct([x, gu], [result], properties, location)

    def verify_(self) -> None:
        """Check shapes and blocks."""
        self.verify_window(self.x.type)


@irdl_op_definition
class BiasGradOp(LutOp):
    """Bias gradient ``[K]``: sum of the gradients ``[(T,)N,H,W,K]`` over all positions, block by block."""

    name = "lut.bias_grad"
    ENGINE: ClassVar[str] = "VEC"
    gu = operand_def(GradsType)
    gb = result_def(TensorType)
    reduce_attr = prop_def(DenseArrayBase[IntegerType], prop_name="reduce_block")
    assembly_format = PLAIN_SYNTAX

    def __init__(self, gu: SSAValue, reduce_block: Block, location: LocationAttr | None = None) -> None:
        self.construct([gu], [tensor(shape_of(gu.type)[-1:])], {"reduce_block": integers(reduce_block)}, location)

    @property
    def reduce_block(self) -> Block:
        """(steps, samples, rows, columns) of positions that form one flat block."""
        return block_of(self.reduce_attr)

    def verify_(self) -> None:
        """Check shapes and blocks."""
        shape = activation_shape("gradient", self.gu.type)
        expect_shape("bias gradient", self.gb.type, shape[-1:])
        verify_block("reduce_block", *self.reduce_block)


def convolved(shape: Sequence[int], geometry: ConvGeometry, k: int) -> Shape:
    """Return the output shape for an input ``[(T,)N,H,W,C]`` and ``k`` output channels."""
    return (*shape[:-3], *geometry.extent(shape[-3], shape[-2]), k)


def embedded(shape: Sequence[int], kernel: Sequence[int], dilation: Sequence[int], groups: int) -> Shape:
    """Return the shape of plain weights that hold grouped or dilated ones of ``shape`` ``[kh*kw,C/groups,K]``."""
    _, c, k = shape
    taps = [(count - 1) * step + 1 for count, step in zip(kernel, dilation, strict=True)]
    return taps[0] * taps[1], c * groups, k


def weights_shape(type_: Attribute) -> tuple[int, int, int]:
    """Return (kernel positions, C, K) of weights; raises VerifyException for other types."""
    if not isinstance(type_, TensorType | StoreType) or len(shape_of(type_)) != 3:
        raise VerifyException(f"expected weights [kh*kw, C, K] as fp32 tensor or store, found {type_}")
    taps, c, k = shape_of(type_)
    return taps, c, k


def verify_onto(op: ForwardConvolutionOp | BeGradOp, what: str, shape: Shape, *formats: type[Attribute]) -> None:
    """Check what the sums of ``op`` go on from, of ``shape`` and in one of ``formats``; in a scan it may lack T."""
    if op.onto is None:
        return
    if not isinstance(op.onto.type, formats):
        raise VerifyException(f"expected a {what} to go on from, found {op.onto.type}")
    repeated = isinstance(op.parent_op(), FeedbackOp) and shape_of(op.onto.type) == shape[1:]
    expect_shape(f"{what} to go on from", op.onto.type, shape[1:] if repeated else shape)


def verify_fan(fan_in: int) -> None:
    """Raise VerifyException unless tables of ``fan_in`` inputs exist."""
    if not 1 <= fan_in <= MOST_FAN_IN:
        raise VerifyException(f"expected fan_in between 1 and {MOST_FAN_IN}, found {fan_in}")
