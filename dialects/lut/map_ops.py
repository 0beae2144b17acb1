"""Work position by position: pooling, random numbers, sums and changes of form."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import ClassVar

from xdsl.dialects.builtin import (
    Float64Type,
    FloatAttr,
    IntegerAttr,
    IntegerType,
    LocationAttr,
    StringAttr,
    TensorType,
    UnitAttr,
    f64,
)
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import (
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    opt_prop_def,
    opt_result_def,
    prop_def,
    result_def,
    var_operand_def,
)
from xdsl.utils.exceptions import VerifyException

from h2learn.backends.reference.coding import Dropout

from .attributes import ConvGeometry, GeometryAttr, GradsType, Shape, SpikesType, StoreType, WinnersType, shape_of
from .base import (
    PLAIN_SYNTAX,
    RUN_SCALARS,
    LutOp,
    activation_shape,
    expect,
    expect_shape,
    integer,
    optional,
    tensor,
    verify_word,
)
from .convolution_ops import convolved

POOL_KINDS = ("avg", "max", "sum")


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
        verify_word("pooling", self.kind, POOL_KINDS)
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
    assembly_format = PLAIN_SYNTAX

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
        shape = activation_shape("input", self.x.type)
        pooled = convolved(shape, self.geometry, shape[-1])
        if isinstance(self.x.type, SpikesType):
            expected: type[Attribute] = SpikesType if self.kind == "max" else StoreType
        elif isinstance(self.x.type, TensorType):
            expected = TensorType
        else:
            raise VerifyException(f"expected spikes or an fp32 tensor to pool, found {self.x.type}")
        if not isinstance(self.y.type, expected):
            raise VerifyException(f"expected {expected.name} as the {self.kind} of {self.x.type}, found {self.y.type}")
        expect_shape("result", self.y.type, pooled)
        if (self.winners is None) == (self.kind == "max"):
            raise VerifyException("expected winners for max pooling, and only there")
        if self.winners is not None:
            expect_shape("winners", self.winners.type, pooled)


@irdl_op_definition
class UnpoolOp(WindowPoolOp):
    """Gradient of a pooling: fp32 to fp32 or grads to grads; max sends each gradient to its window's winner."""

    name = "lut.unpool"
    ENGINE: ClassVar[str] = "VEC"
    g = operand_def()
    winners = opt_operand_def(WinnersType)
    result = result_def()
    assembly_format = PLAIN_SYNTAX

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
        self.construct([g, optional(winners)], [result], properties, location)

    def verify_(self) -> None:
        """Check formats and shapes."""
        self.verify_kind()
        if not isinstance(self.g.type, GradsType | TensorType):
            raise VerifyException(f"expected gradients or an fp32 tensor to unpool, found {self.g.type}")
        if type(self.g.type) is not type(self.result.type):
            raise VerifyException("expected the result in the format of the operand")
        shape = activation_shape("result", self.result.type)
        pooled = convolved(shape, self.geometry, shape[-1])
        expect_shape("gradient", self.g.type, pooled)
        if (self.winners is None) == (self.kind == "max"):
            raise VerifyException("expected winners for max pooling, and only there")
        if self.winners is not None:
            expect_shape("winners", self.winners.type, pooled)


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
    assembly_format = PLAIN_SYNTAX

    def __init__(
        self, x: SSAValue, scalars: SSAValue, stream: int, time_steps: int, location: LocationAttr | None = None
    ) -> None:
        result = SpikesType((time_steps, *shape_of(x.type)))
        self.construct([x, scalars], [result], {"stream": integer(stream), "time_steps": integer(time_steps)}, location)

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
        shape = activation_shape("probabilities", self.x.type)
        expect("rank of the probabilities", len(shape), 4)
        expect_shape("spikes", self.s.type, (self.time_steps, *shape))


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
    assembly_format = PLAIN_SYNTAX

    def __init__(
        self, x: SSAValue, scalars: SSAValue, what: Dropout, result: Attribute, location: LocationAttr | None = None
    ) -> None:
        properties: dict[str, Attribute] = {
            "probability": FloatAttr(what.probability, f64),
            "stream": integer(what.stream),
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
        shape = activation_shape("values", self.x.type)
        verify_reals(self.result.type)
        found = shape_of(self.result.type)
        repeated = self.what.every_step and len(shape) == 4
        expect("the shape of the result", list(found[1:] if repeated else found), list(shape))
        if not 0 <= self.what.probability < 1:
            raise VerifyException(f"expected a probability from 0 to below 1, found {self.what.probability}")
        if self.what.every_step and len(found) != 5:
            raise VerifyException(f"expected a result over time to draw for every step, found {self.result.type}")


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
    assembly_format = PLAIN_SYNTAX

    def __init__(self, a: SSAValue, b: SSAValue, result: Attribute, location: LocationAttr | None = None) -> None:
        self.construct([a, b], [result], {}, location)

    def verify_(self) -> None:
        """Check formats and shapes."""
        shape, second = shape_of(self.a.type), shape_of(self.b.type)
        verify_reals(self.result.type)
        expect_shape("sum", self.result.type, shape)
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
    assembly_format = PLAIN_SYNTAX

    def __init__(self, a: SSAValue, result: Attribute, location: LocationAttr | None = None) -> None:
        self.construct([a], [result], {}, location)

    def verify_(self) -> None:
        """Check formats and shapes."""
        verify_reals(self.result.type)
        expect_shape("result", self.result.type, activation_shape("operand", self.a.type))


@irdl_op_definition
class ConcatOp(LutOp):
    """Channels of several values in one format, side by side; spikes in whole bytes but for the last part."""

    name = "lut.concat"
    ENGINE: ClassVar[str] = "DMA"
    parts = var_operand_def()
    result = result_def()
    assembly_format = PLAIN_SYNTAX

    def __init__(self, parts: Sequence[SSAValue], result: Attribute, location: LocationAttr | None = None) -> None:
        self.construct([list(parts)], [result], {}, location)

    def verify_(self) -> None:
        """Check formats and channels."""
        shape = activation_shape("result", self.result.type)
        for part in self.parts:
            if type(part.type) is not type(self.result.type):
                raise VerifyException(f"expected parts in the format of {self.result.type}, found {part.type}")
            expect_shape("part", part.type, (*shape[:-1], shape_of(part.type)[-1]))
        expect("channels of the parts", sum(shape_of(part.type)[-1] for part in self.parts), shape[-1])
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
    assembly_format = PLAIN_SYNTAX

    def __init__(self, g: SSAValue, first: int, channels: int, location: LocationAttr | None = None) -> None:
        self.construct([g], [tensor((*shape_of(g.type)[:-1], channels))], {"first": integer(first)}, location)

    @property
    def first(self) -> int:
        """The first channel."""
        return self.first_attr.value.data

    def verify_(self) -> None:
        """Check shapes."""
        shape, cut = activation_shape("gradient", self.g.type), shape_of(self.result.type)
        expect_shape("slice", self.result.type, (*shape[:-1], cut[-1]))
        if self.first < 0 or self.first + cut[-1] > shape[-1]:
            raise VerifyException(f"expected channels below {shape[-1]}, found {self.first} and {cut[-1]} more")


@irdl_op_definition
class TimeSumOp(LutOp):
    """Sum of gradients ``[T,N,H,W,K]`` over time, last step first, rounded to storage: ``[N,H,W,K]``."""

    name = "lut.time_sum"
    ENGINE: ClassVar[str] = "VEC"
    g = operand_def(GradsType)
    result = result_def(GradsType)
    assembly_format = PLAIN_SYNTAX

    def __init__(self, g: SSAValue, location: LocationAttr | None = None) -> None:
        assert isinstance(g.type, GradsType)
        self.construct([g], [GradsType(g.type.shape[1:], g.type.dtype)], {}, location)

    def verify_(self) -> None:
        """Check shapes."""
        shape = shape_of(self.g.type)
        expect("rank of the gradient", len(shape), 5)
        expect_shape("sum", self.result.type, shape[1:])


def verify_reals(type_: Attribute) -> None:
    """Raise VerifyException unless a type holds numbers: fp32, stored values or gradients."""
    if not isinstance(type_, TensorType | StoreType | GradsType):
        raise VerifyException(f"expected an fp32 tensor, stored values or gradients as result, found {type_}")
