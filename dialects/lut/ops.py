"""The operations of ``lut``: each belongs to one engine, and carries every choice that decides rounding.

The exact arithmetic is in ``docs/semantics.md``, the order of blocked sums in ``docs/levels.md``. An activation has the
shape ``[T, N, H, W, C]`` or, when it is the same at every time step, ``[N, H, W, C]``. Weights and their gradients are
``[kh*kw, C, K]``; weights are an fp32 parameter itself or its storage copy (fp16).
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeAlias

from xdsl.dialects.builtin import (
    DenseArrayBase,
    Float64Type,
    FloatAttr,
    IntegerAttr,
    IntegerType,
    LocationAttr,
    StringAttr,
    TensorType,
    UnitAttr,
    f32,
    f64,
    i32,
    i64,
)
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import (
    AttrSizedOperandSegments,
    AttrSizedResultSegments,
    BaseAttr,
    IRDLOperation,
    IRDLOption,
    ParsePropInAttrDict,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    opt_prop_def,
    opt_result_def,
    prop_def,
    result_def,
    traits_def,
    var_operand_def,
    var_result_def,
)
from xdsl.traits import Pure
from xdsl.utils.exceptions import VerifyException

from h2learn.backends.reference.coding import Dropout
from h2learn.backends.reference.neuron import LEARNED_ROWS
from h2learn.backends.reference.training import Loss

from ..feedback import FeedbackOp
from .attributes import (
    ConvGeometry,
    GeometryAttr,
    GradsType,
    InsideType,
    MaskType,
    Neuron,
    NeuronAttr,
    Planes,
    PlanesAttr,
    Shape,
    SpikesType,
    StoreType,
    Update,
    UpdateAttr,
    WinnersType,
    shape_of,
)

Tensor: TypeAlias = TensorType[Attribute]
Block: TypeAlias = tuple[int, int, int, int]

ENGINES = ("FE", "BE", "WUE", "VEC", "DMA")
MODES = ("dense", "in", "out", "dual")
POOL_KINDS = ("avg", "max", "sum")
READOUT_KINDS = ("rate", "count", "membrane_mean", "membrane_last", "membrane_max")
SPIKE_READOUTS = ("rate", "count")
LOSS_KINDS = ("cross_entropy", "mse")
GS_TIMES = ("all", "broadcast", "last")

RUN_SCALARS = TensorType(i32, [8])
_PLAIN = "operands attr-dict `:` functional-type(operands, results)"
_LEARNED = "(`decay` $decay^ `:` type($decay))? (`threshold` $threshold^ `:` type($threshold))?"

LearnedRows: TypeAlias = tuple[SSAValue | None, SSAValue | None]
"""Decay and threshold of neurons as rows ``[K]``, where they are learned."""


def tensor(shape: Sequence[int]) -> Tensor:
    """Return the fp32 tensor type of ``shape``."""
    return TensorType(f32, shape)


class LutOp(IRDLOperation, ABC):
    """An operation of one engine; it has no side effects."""

    ENGINE: ClassVar[str]
    irdl_options: tuple[IRDLOption, ...] = (ParsePropInAttrDict(),)
    traits = traits_def(Pure())

    @property
    def engine(self) -> str:
        """The engine that executes the operation, one of :data:`ENGINES`."""
        return self.ENGINE

    def construct(
        self,
        operands: Sequence[SSAValue | Sequence[SSAValue]],
        result_types: Sequence[Attribute | Sequence[Attribute]],
        properties: Mapping[str, Attribute | None],
        location: LocationAttr | None,
    ) -> None:
        """Initialise the operation with its operands, result types, properties and place in the source."""
        super().__init__(operands=operands, result_types=result_types, properties=properties)
        if location is not None:
            self.location = location


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
        shape = _activation("input", x)
        taps, c, k = _weights(self.w.type)
        _expect("kernel positions of the weights", taps, self.geometry.taps)
        _expect("input channels of the weights", c, shape[-1])
        _expect_shape("current", self.current.type, convolved(shape, self.geometry, k))
        _verify_onto(self, "current", shape_of(self.current.type), TensorType, SpikesType, StoreType)
        _verify_block("reduce_block", self.reduce_block)


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
    assembly_format = _PLAIN

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
            "fan_in": _int(fan_in),
            "reduce_block": _int(reduce_block),
            "operand_form": None if planes is None else PlanesAttr(planes),
        }
        self.construct([s, w, _optional(onto)], [result], properties, location)

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
        _verify_fan(self.fan_in)


@irdl_op_definition
class BeConvOp(ForwardConvolutionOp):
    """Convolution of reals on the multipliers; zero inputs are skipped."""

    name = "lut.be_conv"
    ENGINE: ClassVar[str] = "BE"
    x = operand_def(StoreType)
    w = operand_def()
    onto = opt_operand_def()
    current = result_def(TensorType)
    assembly_format = _PLAIN

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
        properties = {"geometry": GeometryAttr(geometry), "reduce_block": _int(reduce_block)}
        self.construct([x, w, _optional(onto)], [result], properties, location)

    def verify_(self) -> None:
        """Check shapes and block."""
        self.verify_window(self.x.type)


@irdl_op_definition
class LifOp(LutOp):
    """Leaky integrate-and-fire neurons over all time steps, the bias of the layer below added to the current.

    Spikes are bits, or numbers in storage type where the neuron counts them.
    ``decay`` and ``threshold`` ``[K]``, where they are given, stand for those of the neuron. Current ``[T,..,K]`` or,
    the same at every step, ``[N,..,K]``; gives spikes, membrane potentials (storage type, or only those ``inside`` the
    surrogate's window) and the mask of the window (all ones for a surrogate without window), all ``[T,N,H,W,K]``.
    """

    name = "lut.lif"
    ENGINE: ClassVar[str] = "VEC"
    current = operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    decay = opt_operand_def(TensorType)
    threshold = opt_operand_def(TensorType)
    s = result_def()
    u = result_def(BaseAttr(StoreType) | BaseAttr(InsideType))
    m = result_def(MaskType)
    neuron_attr = prop_def(NeuronAttr, prop_name="neuron")
    steps_attr = prop_def(IntegerAttr[IntegerType], prop_name="time_steps")
    irdl_options = (ParsePropInAttrDict(), AttrSizedOperandSegments(as_property=True))
    assembly_format = (
        f"$current (`bias` $bias^ `:` type($bias))? {_LEARNED} attr-dict `:` functional-type($current, results)"
    )

    def __init__(
        self,
        current: SSAValue,
        bias: SSAValue | None,
        neuron: Neuron,
        time_steps: int,
        dtype: str,
        location: LocationAttr | None = None,
        *,
        learned: LearnedRows = (None, None),
        inside: bool = False,
    ) -> None:
        shape = (time_steps, *shape_of(current.type)[-4:])
        potentials = InsideType(shape, dtype) if inside else StoreType(shape, dtype)
        self.construct(
            [current, _optional(bias), *map(_optional, learned)],
            [fired(neuron, shape, dtype), potentials, MaskType(shape)],
            {"neuron": NeuronAttr(neuron), "time_steps": _int(time_steps)},
            location,
        )

    @property
    def neuron(self) -> Neuron:
        """Constants of the neuron equation and its surrogate."""
        return self.neuron_attr.data

    @property
    def time_steps(self) -> int:
        """T."""
        return self.steps_attr.value.data

    def verify_(self) -> None:
        """Check shapes and constants."""
        shape = _steps_of_current(self.current.type, self.time_steps)
        for what, value in (("spikes", self.s), ("membrane potentials", self.u), ("mask", self.m)):
            _expect_shape(what, value.type, shape)
        _verify_spikes(self.s, self.neuron)
        _verify_bias(self.bias, shape[-1])
        _verify_neuron(self.neuron, shape[-1], fires=True)
        _verify_learned((self.decay, self.threshold), self.neuron, shape[-1])


@irdl_op_definition
class LiOp(LutOp):
    """Leaky integrators: neurons that never fire; shapes as for :class:`LifOp`."""

    name = "lut.li"
    ENGINE: ClassVar[str] = "VEC"
    current = operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    u = result_def(StoreType)
    neuron_attr = prop_def(NeuronAttr, prop_name="neuron")
    steps_attr = prop_def(IntegerAttr[IntegerType], prop_name="time_steps")
    assembly_format = _PLAIN

    def __init__(
        self,
        current: SSAValue,
        bias: SSAValue | None,
        neuron: Neuron,
        time_steps: int,
        dtype: str,
        location: LocationAttr | None = None,
    ) -> None:
        shape = (time_steps, *shape_of(current.type)[-4:])
        self.construct(
            [current, _optional(bias)],
            [StoreType(shape, dtype)],
            {"neuron": NeuronAttr(neuron), "time_steps": _int(time_steps)},
            location,
        )

    @property
    def neuron(self) -> Neuron:
        """The integrator as a neuron that never fires."""
        return self.neuron_attr.data

    @property
    def time_steps(self) -> int:
        """T."""
        return self.steps_attr.value.data

    def verify_(self) -> None:
        """Check shapes and the decay."""
        shape = _steps_of_current(self.current.type, self.time_steps)
        _expect_shape("membrane potentials", self.u.type, shape)
        _verify_bias(self.bias, shape[-1])
        _verify_neuron(self.neuron, shape[-1], fires=False)


class WindowPoolOp(LutOp, ABC):
    """Pooling windows; padding counts as zeros in averages and sums, and takes no part in a maximum."""

    geometry_attr = prop_def(GeometryAttr, prop_name="geometry")
    kind_attr = prop_def(StringAttr, prop_name="kind")

    @property
    def geometry(self) -> ConvGeometry:
        """Kernel, stride and padding as (rows, columns)."""
        return self.geometry_attr.data

    @property
    def kind(self) -> str:
        """``"avg"``, ``"max"`` or ``"sum"``."""
        return self.kind_attr.data

    @property
    def keeps_constants(self) -> bool:
        """Whether adding a constant to what is pooled adds it to the result."""
        return self.kind == "max" or (self.kind == "avg" and not any(self.geometry.padding))

    def verify_kind(self) -> None:
        """Check the kind, and that there is an element in every window."""
        _verify_word("pooling", self.kind, POOL_KINDS)
        if any(2 * pad > size for pad, size in zip(self.geometry.padding, self.geometry.kernel, strict=True)):
            raise VerifyException(f"expected a padding of at most half the window, found {self.geometry}")


@irdl_op_definition
class PoolOp(WindowPoolOp):
    """Pooling: spikes to spikes and winners (max) or to reals (avg, sum), fp32 to fp32 (max: and winners)."""

    name = "lut.pool"
    ENGINE: ClassVar[str] = "VEC"
    x = operand_def()
    y = result_def()
    winners = opt_result_def(WinnersType)
    assembly_format = _PLAIN

    def __init__(
        self, x: SSAValue, kind: str, geometry: ConvGeometry, dtype: str, location: LocationAttr | None = None
    ) -> None:
        shape = convolved(shape_of(x.type), geometry, shape_of(x.type)[-1])
        y: Attribute = tensor(shape)
        if isinstance(x.type, SpikesType):
            y = SpikesType(shape) if kind == "max" else StoreType(shape, dtype)
        winners = [WinnersType(shape)] if kind == "max" else []
        self.construct([x], [y, winners], {"kind": StringAttr(kind), "geometry": GeometryAttr(geometry)}, location)

    def verify_(self) -> None:
        """Check formats and shapes."""
        self.verify_kind()
        shape = _activation("input", self.x.type)
        pooled = convolved(shape, self.geometry, shape[-1])
        if isinstance(self.x.type, SpikesType):
            expected: type[Attribute] = SpikesType if self.kind == "max" else StoreType
        elif isinstance(self.x.type, TensorType):
            expected = TensorType
        else:
            raise VerifyException(f"expected spikes or an fp32 tensor to pool, found {self.x.type}")
        if not isinstance(self.y.type, expected):
            raise VerifyException(f"expected {expected.name} as the {self.kind} of {self.x.type}, found {self.y.type}")
        _expect_shape("result", self.y.type, pooled)
        if (self.winners is None) == (self.kind == "max"):
            raise VerifyException("expected winners for max pooling, and only there")
        if self.winners is not None:
            _expect_shape("winners", self.winners.type, pooled)


@irdl_op_definition
class UnpoolOp(WindowPoolOp):
    """Gradient of a pooling: fp32 to fp32 or grads to grads; max sends each gradient to its window's winner."""

    name = "lut.unpool"
    ENGINE: ClassVar[str] = "VEC"
    g = operand_def()
    winners = opt_operand_def(WinnersType)
    result = result_def()
    assembly_format = _PLAIN

    def __init__(
        self,
        g: SSAValue,
        winners: SSAValue | None,
        kind: str,
        geometry: ConvGeometry,
        shape: Shape,
        location: LocationAttr | None = None,
    ) -> None:
        result: Attribute = GradsType(shape, g.type.dtype) if isinstance(g.type, GradsType) else tensor(shape)
        properties = {"kind": StringAttr(kind), "geometry": GeometryAttr(geometry)}
        self.construct([g, _optional(winners)], [result], properties, location)

    def verify_(self) -> None:
        """Check formats and shapes."""
        self.verify_kind()
        if not isinstance(self.g.type, GradsType | TensorType):
            raise VerifyException(f"expected gradients or an fp32 tensor to unpool, found {self.g.type}")
        if type(self.g.type) is not type(self.result.type):
            raise VerifyException("expected the result in the format of the operand")
        shape = _activation("result", self.result.type)
        pooled = convolved(shape, self.geometry, shape[-1])
        _expect_shape("gradient", self.g.type, pooled)
        if (self.winners is None) == (self.kind == "max"):
            raise VerifyException("expected winners for max pooling, and only there")
        if self.winners is not None:
            _expect_shape("winners", self.winners.type, pooled)


@irdl_op_definition
class RngOp(LutOp):
    """Random spikes with probability ``x[n,h,w,c]`` at every step, keyed by seed, sample number, neuron and step."""

    name = "lut.rng"
    ENGINE: ClassVar[str] = "VEC"
    x = operand_def(TensorType)
    scalars = operand_def(RUN_SCALARS)
    s = result_def(SpikesType)
    stream_attr = prop_def(IntegerAttr[IntegerType], prop_name="stream")
    steps_attr = prop_def(IntegerAttr[IntegerType], prop_name="time_steps")
    assembly_format = _PLAIN

    def __init__(
        self, x: SSAValue, scalars: SSAValue, stream: int, time_steps: int, location: LocationAttr | None = None
    ) -> None:
        result = SpikesType((time_steps, *shape_of(x.type)))
        self.construct([x, scalars], [result], {"stream": _int(stream), "time_steps": _int(time_steps)}, location)

    @property
    def stream(self) -> int:
        """Number of the random stream."""
        return self.stream_attr.value.data

    @property
    def time_steps(self) -> int:
        """T."""
        return self.steps_attr.value.data

    def verify_(self) -> None:
        """Check shapes."""
        shape = _activation("probabilities", self.x.type)
        _expect("rank of the probabilities", len(shape), 4)
        _expect_shape("spikes", self.s.type, (self.time_steps, *shape))


@irdl_op_definition
class DropoutOp(LutOp):
    """Values ``x[(t,)n,h,w,c]`` of which some are 0 and the others ``f32(x * factor)``, keyed like :class:`RngOp`.

    The result has any format for reals. Without ``every_step`` the step that keys the numbers is 0; with it a value
    that is the same at all steps gives a result ``[T,N,H,W,C]``.
    """

    name = "lut.dropout"
    ENGINE: ClassVar[str] = "VEC"
    x = operand_def()
    scalars = operand_def(RUN_SCALARS)
    result = result_def()
    probability_attr = prop_def(FloatAttr[Float64Type], prop_name="probability")
    stream_attr = prop_def(IntegerAttr[IntegerType], prop_name="stream")
    every_step_attr = opt_prop_def(UnitAttr, prop_name="every_step")
    assembly_format = _PLAIN

    def __init__(
        self, x: SSAValue, scalars: SSAValue, what: Dropout, result: Attribute, location: LocationAttr | None = None
    ) -> None:
        properties: dict[str, Attribute] = {
            "probability": FloatAttr(what.probability, f64),
            "stream": _int(what.stream),
        }
        if what.every_step:
            properties["every_step"] = UnitAttr()
        self.construct([x, scalars], [result], properties, location)

    @property
    def what(self) -> Dropout:
        """What is dropped."""
        every_step = self.every_step_attr is not None
        return Dropout(self.probability_attr.value.data, self.stream_attr.value.data, every_step)

    def verify_(self) -> None:
        """Check formats and shapes."""
        shape = _activation("values", self.x.type)
        _verify_reals(self.result.type)
        found = shape_of(self.result.type)
        repeated = self.what.every_step and len(shape) == 4
        _expect("the shape of the result", list(found[1:] if repeated else found), list(shape))
        if not 0 <= self.what.probability < 1:
            raise VerifyException(f"expected a probability from 0 to below 1, found {self.what.probability}")
        if self.what.every_step and len(found) != 5:
            raise VerifyException(f"expected a result over time to draw for every step, found {self.result.type}")


@irdl_op_definition
class CastOp(LutOp):
    """The storage copy of an fp32 parameter, which the weight update of the step before has already written."""

    name = "lut.cast"
    ENGINE: ClassVar[str] = "VEC"
    p = operand_def(TensorType)
    w = result_def(StoreType)
    assembly_format = _PLAIN

    def __init__(self, p: SSAValue, dtype: str, location: LocationAttr | None = None) -> None:
        self.construct([p], [StoreType(shape_of(p.type), dtype)], {}, location)

    def verify_(self) -> None:
        """Check shapes."""
        _expect_shape("storage copy", self.w.type, shape_of(self.p.type))


@irdl_op_definition
class ReadoutOp(LutOp):
    """Logits ``[N,1,1,K]`` from ``[T,N,1,1,K]``: rate or count of spikes (bits or numbers), membrane potentials."""

    name = "lut.readout"
    ENGINE: ClassVar[str] = "VEC"
    x = operand_def()
    logits = result_def(TensorType)
    kind_attr = prop_def(StringAttr, prop_name="kind")
    assembly_format = _PLAIN

    def __init__(self, x: SSAValue, kind: str, location: LocationAttr | None = None) -> None:
        self.construct([x], [tensor(shape_of(x.type)[1:])], {"kind": StringAttr(kind)}, location)

    @property
    def kind(self) -> str:
        """``"rate"``, ``"count"``, ``"membrane_mean"``, ``"membrane_last"`` or ``"membrane_max"``."""
        return self.kind_attr.data

    def verify_(self) -> None:
        """Check the format and shapes."""
        _verify_word("readout", self.kind, READOUT_KINDS)
        expected = (SpikesType, StoreType) if self.kind in SPIKE_READOUTS else (StoreType,)
        if not isinstance(self.x.type, expected):
            names = " or ".join(kind.name for kind in expected)
            raise VerifyException(f"expected {names} for the readout {self.kind}, found {self.x.type}")
        shape = shape_of(self.x.type)
        _expect("rank of the readout's input", len(shape), 5)
        _expect_shape("logits", self.logits.type, shape[1:])


@irdl_op_definition
class SpreadOp(LutOp):
    """Gradient ``[T,N,1,1,K]`` of a maximum over time: ``g`` at the first step with the maximum of ``x``, else +0."""

    name = "lut.spread"
    ENGINE: ClassVar[str] = "VEC"
    g = operand_def(TensorType)
    x = operand_def(StoreType)
    gs = result_def(TensorType)
    assembly_format = _PLAIN

    def __init__(self, g: SSAValue, x: SSAValue, location: LocationAttr | None = None) -> None:
        self.construct([g, x], [tensor(shape_of(x.type))], {}, location)

    def verify_(self) -> None:
        """Check shapes."""
        shape = shape_of(self.x.type)
        _expect("rank of what was read out", len(shape), 5)
        _expect_shape("gradient", self.g.type, shape[1:])
        _expect_shape("result", self.gs.type, shape)


@irdl_op_definition
class LossOp(LutOp):
    """Mean loss of the valid samples, and its gradient with respect to the logits times ``scale``."""

    name = "lut.loss"
    ENGINE: ClassVar[str] = "VEC"
    logits = operand_def(TensorType)
    label = operand_def(TensorType)
    scalars = operand_def(RUN_SCALARS)
    loss = result_def(TensorType)
    dlogits = result_def(TensorType)
    kind_attr = prop_def(StringAttr, prop_name="kind")
    hit_attr = prop_def(FloatAttr[Float64Type], prop_name="hit")
    miss_attr = prop_def(FloatAttr[Float64Type], prop_name="miss")
    share_attr = prop_def(FloatAttr[Float64Type], prop_name="share")
    scale_attr = prop_def(FloatAttr[Float64Type], prop_name="scale")
    assembly_format = _PLAIN

    def __init__(
        self,
        logits: SSAValue,
        label: SSAValue,
        scalars: SSAValue,
        what: Loss,
        scale: float,
        location: LocationAttr | None = None,
    ) -> None:
        self.construct(
            [logits, label, scalars],
            [tensor(()), logits.type],
            {
                "kind": StringAttr(what.kind),
                "hit": FloatAttr(what.hit, f64),
                "miss": FloatAttr(what.miss, f64),
                "share": FloatAttr(what.share, f64),
                "scale": FloatAttr(scale, f64),
            },
            location,
        )

    @property
    def what(self) -> Loss:
        """The loss of one sample."""
        numbers = (attribute.value.data for attribute in (self.hit_attr, self.miss_attr, self.share_attr))
        return Loss(self.kind_attr.data, *numbers)

    @property
    def scale(self) -> float:
        """Factor of the gradient: loss scale and share, divided by T where the readout averages over time."""
        return self.scale_attr.value.data

    def verify_(self) -> None:
        """Check shapes."""
        _verify_word("loss", self.what.kind, LOSS_KINDS)
        shape = shape_of(self.logits.type)
        _expect("rank of the logits", len(shape), 4)
        _expect_shape("logits", self.logits.type, (shape[0], 1, 1, shape[-1]))
        _expect_shape("labels", self.label.type, (shape[0],))
        _expect_shape("gradient", self.dlogits.type, shape)
        _expect_shape("loss", self.loss.type, ())


@irdl_op_definition
class GradOp(LutOp):
    """Gradient of membrane potentials, time backwards.

    ``gs_time`` says how ``gs`` reaches the time steps: ``all`` has one per step (``[T,N,H,W,K]``), ``broadcast`` the
    same at every step, ``last`` only at the last one (both ``[N,H,W,K]``). A leaky integrator takes neither u nor s.
    u are potentials, or where nothing else of them is needed those inside the surrogate's window, or their mask.
    """

    name = "lut.grad"
    ENGINE: ClassVar[str] = "VEC"
    gs = operand_def(TensorType)
    u = opt_operand_def()
    s = opt_operand_def()
    decay = opt_operand_def(TensorType)
    threshold = opt_operand_def(TensorType)
    gu = result_def(GradsType)
    neuron_attr = prop_def(NeuronAttr, prop_name="neuron")
    steps_attr = prop_def(IntegerAttr[IntegerType], prop_name="time_steps")
    gs_time_attr = prop_def(StringAttr, prop_name="gs_time")
    irdl_options = (ParsePropInAttrDict(), AttrSizedOperandSegments(as_property=True))
    assembly_format = (
        f"$gs (`state` $u^ `,` $s)? {_LEARNED} attr-dict `:` type($gs) (`,` type($u)^ `,` type($s))? `->` type($gu)"
    )

    def __init__(
        self,
        gs: SSAValue,
        u: SSAValue | None,
        s: SSAValue | None,
        neuron: Neuron,
        gs_time: str,
        time_steps: int,
        dtype: str,
        location: LocationAttr | None = None,
        *,
        learned: LearnedRows = (None, None),
    ) -> None:
        shape = (time_steps, *shape_of(gs.type)[-4:])
        self.construct(
            [gs, _optional(u), _optional(s), *map(_optional, learned)],
            [GradsType(shape, dtype)],
            {"neuron": NeuronAttr(neuron), "time_steps": _int(time_steps), "gs_time": StringAttr(gs_time)},
            location,
        )

    @property
    def neuron(self) -> Neuron:
        """Constants of the forward neuron."""
        return self.neuron_attr.data

    @property
    def kind(self) -> str:
        """``"lif"``, or ``"li"`` for a leaky integrator."""
        return "lif" if self.neuron.fires else "li"

    @property
    def gs_time(self) -> str:
        """``"all"``, ``"broadcast"`` or ``"last"``."""
        return self.gs_time_attr.data

    @property
    def time_steps(self) -> int:
        """T."""
        return self.steps_attr.value.data

    def verify_(self) -> None:
        """Check shapes and constants."""
        _verify_word("gs_time", self.gs_time, GS_TIMES)
        shape = _activation("gradient", self.gu.type)
        _expect("time steps of the gradient", (self.time_steps, len(shape)), (shape[0], 5))
        _expect_shape("incoming gradient", self.gs.type, shape if self.gs_time == "all" else shape[1:])
        _verify_neuron(self.neuron, shape[-1], fires=self.neuron.fires)
        _verify_gradient(self.neuron)
        _verify_learned((self.decay, self.threshold), self.neuron, shape[-1])
        for what, value in (("membrane potentials", self.u), ("spikes", self.s)):
            if (value is None) == self.neuron.fires:
                raise VerifyException(f"expected {what} as operand for a neuron that fires, and only there")
            if value is not None:
                _expect_shape(what, value.type, shape)
        if self.s is not None:
            _verify_spikes(self.s, self.neuron)
        if self.u is None or isinstance(self.u.type, StoreType):
            return
        if not isinstance(self.u.type, MaskType | InsideType):
            raise VerifyException(f"expected membrane potentials or their mask, found {self.u.type}")
        if not self.neuron.needs_inside_only:
            raise VerifyException("expected membrane potentials, which this gradient needs outside the window too")
        if isinstance(self.u.type, MaskType) and not self.neuron.needs_window_only:
            raise VerifyException("expected membrane potentials, of which this gradient needs more than the mask")


@irdl_op_definition
class LifConstantsOp(LutOp):
    """Gradients ``[K]`` of decay and threshold, summed block by block as in :class:`BiasGradOp`.

    ``later`` is the gradient ``gu`` of the next step; both are those of the potentials, ``[T,N,H,W,K]`` like u and s.
    """

    name = "lut.lif_constants"
    ENGINE: ClassVar[str] = "VEC"
    gu = operand_def(GradsType)
    later = operand_def(GradsType)
    u = operand_def(StoreType)
    s = operand_def(SpikesType)
    decay = opt_operand_def(TensorType)
    threshold = opt_operand_def(TensorType)
    of_decay = result_def(TensorType)
    of_threshold = result_def(TensorType)
    neuron_attr = prop_def(NeuronAttr, prop_name="neuron")
    reduce_attr = prop_def(DenseArrayBase, prop_name="reduce_block")
    irdl_options = (ParsePropInAttrDict(), AttrSizedOperandSegments(as_property=True))
    assembly_format = (
        f"$gu `,` $later `state` $u `,` $s {_LEARNED} attr-dict `:` type($gu) `,` type($later) `,` type($u) `,` "
        "type($s) `->` type($of_decay) `,` type($of_threshold)"
    )

    def __init__(
        self,
        gradients: tuple[SSAValue, SSAValue],
        u: SSAValue,
        s: SSAValue,
        neuron: Neuron,
        reduce_block: Block,
        learned: LearnedRows,
        location: LocationAttr | None = None,
    ) -> None:
        row = tensor(shape_of(u.type)[-1:])
        block = DenseArrayBase.from_list(i64, reduce_block)
        properties = {"neuron": NeuronAttr(neuron), "reduce_block": block}
        self.construct([*gradients, u, s, *map(_optional, learned)], [row, row], properties, location)

    @property
    def neuron(self) -> Neuron:
        """Constants of the neuron."""
        return self.neuron_attr.data

    @property
    def reduce_block(self) -> Block:
        """(steps, samples, rows, columns) of positions that form one block."""
        steps, samples, rows, columns = self.reduce_attr.get_values()
        return steps, samples, rows, columns

    def verify_(self) -> None:
        """Check shapes and constants."""
        shape = _activation("gradient", self.gu.type)
        _expect("rank of the gradient", len(shape), 5)
        for what, value in (("later gradient", self.later), ("membrane potentials", self.u), ("spikes", self.s)):
            _expect_shape(what, value.type, shape)
        _verify_gradient(self.neuron)
        _verify_neuron(self.neuron, shape[-1], fires=True)
        _verify_learned((self.decay, self.threshold), self.neuron, shape[-1])
        _verify_spikes(self.s, self.neuron)
        for result in self.results:
            _expect_shape("gradient of a constant", result.type, shape[-1:])


class _RowOp(LutOp, ABC):
    """An op on a learned constant of neurons and its parameter ``w``, one number or one per channel."""

    ENGINE: ClassVar[str] = "VEC"
    kind_attr = prop_def(StringAttr, prop_name="kind")
    assembly_format = _PLAIN

    @property
    def kind(self) -> str:
        """One of :data:`h2learn.backends.reference.neuron.LEARNED_ROWS`."""
        return self.kind_attr.data

    def verify_row(self, row: SSAValue, w: SSAValue) -> None:
        """Check kind and shapes."""
        _verify_word("kind of a learned constant", self.kind, LEARNED_ROWS)
        channels, found = shape_of(row.type), shape_of(w.type)
        if len(channels) != 1 or found not in ((1,), channels):
            raise VerifyException(f"expected a parameter of 1 number, or of those of {row.type}, found {w.type}")


@irdl_op_definition
class NeuronRowOp(_RowOp):
    """The values ``[K]`` of a learned constant from its parameter."""

    name = "lut.neuron_row"
    w = operand_def(TensorType)
    result = result_def(TensorType)

    def __init__(self, w: SSAValue, kind: str, channels: int, location: LocationAttr | None = None) -> None:
        self.construct([w], [tensor((channels,))], {"kind": StringAttr(kind)}, location)

    def verify_(self) -> None:
        """Check kind and shapes."""
        self.verify_row(self.result, self.w)


@irdl_op_definition
class NeuronRowGradOp(_RowOp):
    """The gradient of the parameter of a learned constant; where it is one number, channels add up ascending."""

    name = "lut.neuron_row_grad"
    g = operand_def(TensorType)
    w = operand_def(TensorType)
    result = result_def(TensorType)

    def __init__(self, g: SSAValue, w: SSAValue, kind: str, location: LocationAttr | None = None) -> None:
        self.construct([g, w], [w.type], {"kind": StringAttr(kind)}, location)

    def verify_(self) -> None:
        """Check kind and shapes."""
        self.verify_row(self.g, self.w)
        _expect_shape("gradient", self.result.type, shape_of(self.w.type))


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
            [gu, w, _optional(m), _optional(onto)],
            [tensor(shape)],
            {"geometry": GeometryAttr(geometry), "reduce_block": _int(reduce_block), "mode": StringAttr(mode)},
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
        _verify_word("mode", self.mode, MODES)
        shape = _activation("input gradient", self.gs.type)
        taps, c, k = _weights(self.w.type)
        _expect("kernel positions of the weights", taps, self.geometry.taps)
        _expect("input channels of the weights", c, shape[-1])
        _expect_shape("gradient", self.gu.type, convolved(shape, self.geometry, k))
        _verify_block("reduce_block", self.reduce_block)
        if self.m is not None:
            _expect_shape("mask", self.m.type, shape)
        _verify_onto(self, "gradient", shape, TensorType, GradsType)
        if self.m is None and self.mode in ("out", "dual"):
            raise VerifyException(f"mode {self.mode} needs a mask")


@irdl_op_definition
class AddOp(LutOp):
    """Sum of two values element by element: ``f32(a + b)``, rounded where the result is in storage type.

    Spikes count 1, dead gradients +0. ``b`` has the shape of ``a``, or is the same at every step (``a`` without T) or
    at every position (``[K]``).
    """

    name = "lut.add"
    ENGINE: ClassVar[str] = "VEC"
    a = operand_def()
    b = operand_def()
    result = result_def()
    assembly_format = _PLAIN

    def __init__(self, a: SSAValue, b: SSAValue, result: Attribute, location: LocationAttr | None = None) -> None:
        self.construct([a, b], [result], {}, location)

    def verify_(self) -> None:
        """Check formats and shapes."""
        shape, second = shape_of(self.a.type), shape_of(self.b.type)
        _verify_reals(self.result.type)
        _expect_shape("sum", self.result.type, shape)
        allowed = [shape, shape[-1:], *([shape[1:]] if len(shape) == 5 else [])]
        if second not in allowed:
            raise VerifyException(f"expected an operand of shape {list(shape)} to add, found {list(second)}")
        if second != shape and len(second) == 1 and not isinstance(self.b.type, TensorType):
            raise VerifyException(f"expected an fp32 tensor to add at every position, found {self.b.type}")


@irdl_op_definition
class ConvertOp(LutOp):
    """The same values in another format: fp32, storage type, or gradients as bitmap and live values."""

    name = "lut.convert"
    ENGINE: ClassVar[str] = "VEC"
    a = operand_def()
    result = result_def()
    assembly_format = _PLAIN

    def __init__(self, a: SSAValue, result: Attribute, location: LocationAttr | None = None) -> None:
        self.construct([a], [result], {}, location)

    def verify_(self) -> None:
        """Check formats and shapes."""
        _verify_reals(self.result.type)
        _expect_shape("result", self.result.type, _activation("operand", self.a.type))


@irdl_op_definition
class ConcatOp(LutOp):
    """Channels of several values in one format, side by side; spikes in whole bytes but for the last part."""

    name = "lut.concat"
    ENGINE: ClassVar[str] = "DMA"
    parts = var_operand_def()
    result = result_def()
    assembly_format = _PLAIN

    def __init__(self, parts: Sequence[SSAValue], result: Attribute, location: LocationAttr | None = None) -> None:
        self.construct([list(parts)], [result], {}, location)

    def verify_(self) -> None:
        """Check formats and channels."""
        shape = _activation("result", self.result.type)
        for part in self.parts:
            if type(part.type) is not type(self.result.type):
                raise VerifyException(f"expected parts in the format of {self.result.type}, found {part.type}")
            _expect_shape("part", part.type, (*shape[:-1], shape_of(part.type)[-1]))
        _expect("channels of the parts", sum(shape_of(part.type)[-1] for part in self.parts), shape[-1])
        if isinstance(self.result.type, SpikesType) and any(shape_of(p.type)[-1] % 8 for p in self.parts[:-1]):
            raise VerifyException("expected spikes of a multiple of 8 channels in all parts but the last")


@irdl_op_definition
class SliceOp(LutOp):
    """``channels`` channels of values ``[(T,)N,H,W,C]`` in fp32, from ``first`` on."""

    name = "lut.slice"
    ENGINE: ClassVar[str] = "DMA"
    g = operand_def(TensorType)
    result = result_def(TensorType)
    first_attr = prop_def(IntegerAttr[IntegerType], prop_name="first")
    assembly_format = _PLAIN

    def __init__(self, g: SSAValue, first: int, channels: int, location: LocationAttr | None = None) -> None:
        self.construct([g], [tensor((*shape_of(g.type)[:-1], channels))], {"first": _int(first)}, location)

    @property
    def first(self) -> int:
        """The first channel."""
        return self.first_attr.value.data

    def verify_(self) -> None:
        """Check shapes."""
        shape, cut = _activation("gradient", self.g.type), shape_of(self.result.type)
        _expect_shape("slice", self.result.type, (*shape[:-1], cut[-1]))
        if self.first < 0 or self.first + cut[-1] > shape[-1]:
            raise VerifyException(f"expected channels below {shape[-1]}, found {self.first} and {cut[-1]} more")


class SparseWeightsOp(LutOp, ABC):
    """Weights of a grouped or dilated convolution inside those of a plain one; only moved, never computed with."""

    kernel_attr = prop_def(DenseArrayBase[IntegerType], prop_name="kernel")
    dilation_attr = prop_def(DenseArrayBase[IntegerType], prop_name="dilation")
    groups_attr = prop_def(IntegerAttr[IntegerType], prop_name="groups")

    @property
    def kernel(self) -> tuple[int, int]:
        """Kernel rows and columns of the grouped or dilated weights."""
        return _pair(self.kernel_attr)

    @property
    def dilation(self) -> tuple[int, int]:
        """Distance of kernel places in the plain weights."""
        return _pair(self.dilation_attr)

    @property
    def groups(self) -> int:
        """Groups of channels."""
        return self.groups_attr.value.data

    def verify_sizes(self, inner: Attribute, outer: Attribute) -> None:
        """Check grouped or dilated weights against plain ones."""
        taps, c, k = _weights(inner)
        _verify_block("kernel, dilation and groups", *self.kernel, *self.dilation, self.groups)
        _expect("kernel positions of the weights", taps, self.kernel[0] * self.kernel[1])
        if k % self.groups:
            raise VerifyException(f"expected output channels of {self.groups} groups of one size, found {k}")
        _expect_shape("plain weights", outer, embedded((taps, c, k), self.kernel, self.dilation, self.groups))


@irdl_op_definition
class EmbedOp(SparseWeightsOp):
    """Grouped or dilated weights ``[kh*kw,C/groups,K]`` as plain ones, zeros in between."""

    name = "lut.embed"
    ENGINE: ClassVar[str] = "DMA"
    w = operand_def()
    result = result_def()
    assembly_format = _PLAIN

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
        properties = {"kernel": _ints(kernel), "dilation": _ints(dilation), "groups": _int(groups)}
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
    assembly_format = _PLAIN

    def __init__(
        self,
        g: SSAValue,
        kernel: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        location: LocationAttr | None = None,
    ) -> None:
        _, c, k = shape_of(g.type)
        properties = {"kernel": _ints(kernel), "dilation": _ints(dilation), "groups": _int(groups)}
        self.construct([g], [tensor((kernel[0] * kernel[1], c // groups, k))], properties, location)

    def verify_(self) -> None:
        """Check shapes."""
        self.verify_sizes(self.result.type, self.g.type)


@irdl_op_definition
class TimeSumOp(LutOp):
    """Sum of gradients ``[T,N,H,W,K]`` over time, last step first, rounded to storage: ``[N,H,W,K]``."""

    name = "lut.time_sum"
    ENGINE: ClassVar[str] = "VEC"
    g = operand_def(GradsType)
    result = result_def(GradsType)
    assembly_format = _PLAIN

    def __init__(self, g: SSAValue, location: LocationAttr | None = None) -> None:
        assert isinstance(g.type, GradsType)
        self.construct([g], [GradsType(g.type.shape[1:], g.type.dtype)], {}, location)

    def verify_(self) -> None:
        """Check shapes."""
        shape = shape_of(self.g.type)
        _expect("rank of the gradient", len(shape), 5)
        _expect_shape("sum", self.result.type, shape[1:])


class WeightGradientOp(ConvolutionOp, ABC):
    """Input ``[(T,)N,H,W,C]`` and gradient ``[(T,)N,OH,OW,K]`` give ``[kh*kw,C,K]`` in fp32."""

    gu = operand_def(GradsType)
    gw = result_def(TensorType)
    reduce_attr = prop_def(DenseArrayBase[IntegerType], prop_name="reduce_block")

    @property
    def reduce_block(self) -> Block:
        """(steps, samples, rows, columns) of positions that form one flat block."""
        return _block(self.reduce_attr)

    def verify_window(self, x: Attribute) -> None:
        """Check shapes and blocks against input type ``x``."""
        shape = _activation("input", x)
        k = shape_of(self.gu.type)[-1]
        _expect_shape("gradient", self.gu.type, convolved(shape, self.geometry, k))
        _expect_shape("weight gradient", self.gw.type, (self.geometry.taps, shape[-1], k))
        _verify_block("reduce_block", *self.reduce_block)


@irdl_op_definition
class WuOp(WeightGradientOp):
    """Weight gradient of spikes by table look-up: groups of ``fan_in`` positions, restarting at every block."""

    name = "lut.wu"
    ENGINE: ClassVar[str] = "WUE"
    s = operand_def(SpikesType)
    gu = operand_def(GradsType)
    gw = result_def(TensorType)
    fan_attr = prop_def(IntegerAttr[IntegerType], prop_name="fan_in")
    assembly_format = _PLAIN

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
        properties = {"geometry": GeometryAttr(geometry), "fan_in": _int(fan_in), "reduce_block": _ints(reduce_block)}
        self.construct([s, gu], [result], properties, location)

    @property
    def fan_in(self) -> int:
        """Positions per look-up."""
        return self.fan_attr.value.data

    def verify_(self) -> None:
        """Check shapes, fan-in and blocks."""
        self.verify_window(self.s.type)
        _verify_fan(self.fan_in)


@irdl_op_definition
class BeWgtOp(WeightGradientOp):
    """Weight gradient of a real input on the multipliers."""

    name = "lut.be_wgt"
    ENGINE: ClassVar[str] = "BE"
    x = operand_def(StoreType)
    gu = operand_def(GradsType)
    gw = result_def(TensorType)
    assembly_format = _PLAIN

    def __init__(
        self,
        x: SSAValue,
        gu: SSAValue,
        geometry: ConvGeometry,
        reduce_block: Block,
        location: LocationAttr | None = None,
    ) -> None:
        result = tensor((geometry.taps, shape_of(x.type)[-1], shape_of(gu.type)[-1]))
        properties = {"geometry": GeometryAttr(geometry), "reduce_block": _ints(reduce_block)}
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
    assembly_format = _PLAIN

    def __init__(self, gu: SSAValue, reduce_block: Block, location: LocationAttr | None = None) -> None:
        self.construct([gu], [tensor(shape_of(gu.type)[-1:])], {"reduce_block": _ints(reduce_block)}, location)

    @property
    def reduce_block(self) -> Block:
        """(steps, samples, rows, columns) of positions that form one flat block."""
        return _block(self.reduce_attr)

    def verify_(self) -> None:
        """Check shapes and blocks."""
        shape = _activation("gradient", self.gu.type)
        _expect_shape("bias gradient", self.gb.type, shape[-1:])
        _verify_block("reduce_block", *self.reduce_block)


@irdl_op_definition
class OptOp(LutOp):
    """An optimizer's step on one parameter: its buffers are operands and results.

    The new storage copy ``w`` exists for fp16 weights only.
    """

    name = "lut.opt"
    ENGINE: ClassVar[str] = "VEC"
    p = operand_def(TensorType)
    g = operand_def(TensorType)
    states = var_operand_def(TensorType)
    scalars = operand_def(RUN_SCALARS)
    new_p = result_def(TensorType)
    new_states = var_result_def(TensorType)
    w = opt_result_def(StoreType)
    update_attr = prop_def(UpdateAttr, prop_name="update")
    irdl_options = (ParsePropInAttrDict(), AttrSizedResultSegments(as_property=True))
    assembly_format = (
        "$p `,` $g (`states` `(` $states^ `)`)? `,` $scalars attr-dict `:` type($p) `,` type($g) "
        "(`states` `(` type($states)^ `)`)? `->` type($new_p) (`states` `(` type($new_states)^ `)`)? "
        "(`copy` type($w)^)?"
    )

    def __init__(
        self,
        p: SSAValue,
        g: SSAValue,
        states: Sequence[SSAValue],
        scalars: SSAValue,
        update: Update,
        copy_dtype: str | None = None,
        location: LocationAttr | None = None,
    ) -> None:
        """``copy_dtype``: storage type of the copy ``w``, None for no copy."""
        copy = [StoreType(shape_of(p.type), copy_dtype)] if copy_dtype else []
        self.construct(
            [p, g, list(states), scalars],
            [p.type, [p.type for _ in states], copy],
            {"update": UpdateAttr(update)},
            location,
        )

    @property
    def update(self) -> Update:
        """What is computed."""
        return self.update_attr.data

    def verify_(self) -> None:
        """Check shapes and the number of buffers."""
        shape = shape_of(self.p.type)
        _expect_shape("gradient", self.g.type, shape)
        _expect_shape("new parameter", self.new_p.type, shape)
        for value in (*self.states, *self.new_states):
            _expect_shape("buffer", value.type, shape)
        if self.w is not None:
            _expect_shape("storage copy", self.w.type, shape)
        if not len(self.states) == len(self.new_states) == self.update.states:
            raise VerifyException(f"expected {self.update.states} buffers as operands and results")


def fired(neuron: Neuron, shape: Shape, dtype: str) -> SpikesType | StoreType:
    """Return the type of a neuron's spikes: bits, or numbers in storage type where they are counted."""
    return StoreType(shape, dtype) if neuron.counts else SpikesType(shape)


def convolved(shape: Sequence[int], geometry: ConvGeometry, k: int) -> Shape:
    """Return the output shape for an input ``[(T,)N,H,W,C]`` and ``k`` output channels."""
    return (*shape[:-3], *geometry.extent(shape[-3], shape[-2]), k)


def embedded(shape: Sequence[int], kernel: Sequence[int], dilation: Sequence[int], groups: int) -> Shape:
    """Return the shape of plain weights that hold grouped or dilated ones of ``shape`` ``[kh*kw,C/groups,K]``."""
    _, c, k = shape
    taps = [(count - 1) * step + 1 for count, step in zip(kernel, dilation, strict=True)]
    return taps[0] * taps[1], c * groups, k


def _pair(attribute: DenseArrayBase[IntegerType]) -> tuple[int, int]:
    first, second = attribute.get_values()
    return first, second


def _int(value: int) -> IntegerAttr[IntegerType]:
    return IntegerAttr(value, i64)


def _ints(values: Sequence[int]) -> DenseArrayBase[IntegerType]:
    return DenseArrayBase.from_list(i64, list(values))


def _optional(value: SSAValue | None) -> list[SSAValue]:
    return [] if value is None else [value]


def _block(attribute: DenseArrayBase[IntegerType]) -> Block:
    steps, samples, rows, columns = attribute.get_values()
    return steps, samples, rows, columns


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise VerifyException(f"expected {what} to be {expected}, found {found}")


def _expect_shape(what: str, type_: Attribute, expected: Shape) -> None:
    if min(expected, default=1) < 1:
        raise VerifyException(f"the window does not fit its input: {what} would have the shape {list(expected)}")
    _expect(f"the shape of the {what}", list(shape_of(type_)), list(expected))


def _activation(what: str, type_: Attribute) -> Shape:
    shape = shape_of(type_)
    if len(shape) not in (4, 5):
        raise VerifyException(f"expected {what} as [T,N,H,W,C] or [N,H,W,C], found {type_}")
    return shape


def _weights(type_: Attribute) -> tuple[int, int, int]:
    if not isinstance(type_, TensorType | StoreType) or len(shape_of(type_)) != 3:
        raise VerifyException(f"expected weights [kh*kw, C, K] as fp32 tensor or store, found {type_}")
    taps, c, k = shape_of(type_)
    return taps, c, k


def _steps_of_current(type_: Attribute, time_steps: int) -> Shape:
    shape = _activation("current", type_)
    if len(shape) == 5:
        _expect("time_steps", time_steps, shape[0])
    return (time_steps, *shape[-4:])


def _verify_bias(bias: SSAValue | None, channels: int) -> None:
    if bias is not None:
        _expect_shape("bias", bias.type, (channels,))


def _verify_gradient(neuron: Neuron) -> None:
    if neuron.reset == "hard_delayed":
        raise VerifyException("a hard-delayed reset has no gradient of its own: it is that of hard, gated by spikes")


def _verify_neuron(neuron: Neuron, channels: int, *, fires: bool) -> None:
    _expect("the neuron to fire", neuron.fires, fires)
    for name in ("alpha", "theta", "v_reset", "gain", "offset", "initial", "beta"):
        count = len(getattr(neuron, name))
        if count not in (1, channels):
            raise VerifyException(f"expected 1 or {channels} values of {name}, found {count}")


def _verify_spikes(spikes: SSAValue, neuron: Neuron) -> None:
    if not isinstance(spikes.type, StoreType if neuron.counts else SpikesType):
        form = "stored numbers" if neuron.counts else "bits"
        raise VerifyException(f"expected spikes as {form}, found {spikes.type}")


def _verify_word(what: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise VerifyException(f"expected a {what} of {', '.join(known)}, found {word!r}")


def _verify_onto(op: ForwardConvolutionOp | BeGradOp, what: str, shape: Shape, *formats: type[Attribute]) -> None:
    if op.onto is None:
        return
    if not isinstance(op.onto.type, formats):
        raise VerifyException(f"expected a {what} to go on from, found {op.onto.type}")
    repeated = isinstance(op.parent_op(), FeedbackOp) and shape_of(op.onto.type) == shape[1:]
    _expect_shape(f"{what} to go on from", op.onto.type, shape[1:] if repeated else shape)


def _verify_learned(rows: LearnedRows, neuron: Neuron, channels: int) -> None:
    for row in rows:
        if row is not None:
            _expect_shape("learned constant", row.type, (channels,))
    if all(row is None for row in rows):
        return
    if not (neuron.fires and neuron.drive == "plain"):
        raise VerifyException("expected plainly driven neurons that fire where constants are learned")
    if neuron.counts or neuron.lowest is not None:
        raise VerifyException("expected one spike per step and no lowest potential where constants are learned")


def _verify_reals(type_: Attribute) -> None:
    if not isinstance(type_, TensorType | StoreType | GradsType):
        raise VerifyException(f"expected an fp32 tensor, stored values or gradients as result, found {type_}")


def _verify_fan(fan_in: int) -> None:
    if not 1 <= fan_in <= 8:
        raise VerifyException(f"expected fan_in between 1 and 8, found {fan_in}")


def _verify_block(what: str, *sizes: int) -> None:
    if min(sizes) < 1:
        raise VerifyException(f"expected {what} to be positive, found {', '.join(map(str, sizes))}")
