"""The ops of ``sgrad``: adjoints of the ``spike`` ops, as explicit ops of the training graph."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from xdsl.dialects.builtin import (
    DenseArrayBase,
    FloatAttr,
    IntegerAttr,
    LocationAttr,
    StringAttr,
    TensorType,
    f32,
    i1,
)
from xdsl.ir import Dialect, SSAValue
from xdsl.irdl import (
    AttrSizedOperandSegments,
    ParsePropInAttrDict,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    prop_def,
    result_def,
)
from xdsl.utils.exceptions import VerifyException

from h2learn.backends.reference.neuron import LEARNED_ROWS, Neuron
from h2learn.backends.reference.training import Loss

from ..spike.base import (
    POOL_KINDS,
    READOUT_KINDS,
    SCALARS,
    FiringOp,
    InferredOp,
    IntegratingOp,
    Properties,
    Tensor,
    choice,
    conv_shape,
    expect_element,
    expect_rank,
    expect_type,
    float_value,
    int_value,
    int_values,
    integer,
    integrator_of,
    integrator_properties,
    ints,
    loss_properties,
    neuron_of,
    neuron_properties,
    number,
    real,
    tensor_type,
)
from ..spike.normalisation import BatchNormTrainOp
from ..spike.ops import ReadoutOp as ReadoutForwardOp
from ..spike.ops import check_learned, check_loss, check_neuron, fired, pool_properties, pooled_shape
from ..spike.scan import check_delay


class UnaryOp(InferredOp, abc.ABC):
    """One gradient in, one gradient out."""

    gradient = operand_def(TensorType)
    result = result_def(TensorType)

    assembly_format = "$gradient attr-dict `:` functional-type(operands, results)"


class InputGradientOp(InferredOp, abc.ABC):
    """The gradient of a synapse with respect to what goes in."""

    gradient = operand_def(TensorType)
    weight = operand_def(TensorType)
    result = result_def(TensorType)

    assembly_format = "$gradient `,` $weight attr-dict `:` functional-type(operands, results)"


class WeightGradientOp(InferredOp, abc.ABC):
    """The gradient of a synapse with respect to its weights, summed over time and samples."""

    x = operand_def(TensorType)
    gradient = operand_def(TensorType)
    result = result_def(TensorType)

    assembly_format = "$x `,` $gradient attr-dict `:` functional-type(operands, results)"


@irdl_op_definition
class LossOp(InferredOp):
    """Gradient of ``spike.loss`` with respect to the logits, times ``scale``; invalid samples get 0."""

    name = "sgrad.loss"

    logits = operand_def(TensorType)
    label = operand_def(TensorType)
    scalars = operand_def(TensorType)
    result = result_def(TensorType)
    kind = prop_def(StringAttr)
    hit = prop_def(FloatAttr)
    miss = prop_def(FloatAttr)
    share = prop_def(FloatAttr)
    scale = prop_def(FloatAttr)

    assembly_format = "$logits `,` $label `,` $scalars attr-dict `:` functional-type(operands, results)"

    def __init__(
        self,
        logits: SSAValue,
        label: SSAValue,
        scalars: SSAValue,
        loss: Loss,
        *,
        scale: float = 1.0,
        location: LocationAttr,
    ) -> None:
        super().__init__([logits, label, scalars], {**loss_properties(loss), "scale": number(scale)}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Give the type of the logits."""
        if float_value(properties, "scale") <= 0:
            raise VerifyException(f"expected a positive scale, found {float_value(properties, 'scale')}")
        return [check_loss(operands, properties)]


@irdl_op_definition
class ReadoutOp(InferredOp):
    """Adjoint of ``spike.readout``: ``[N,K]`` to ``[T,N,K]``.

    g / T at every step (for counts: g), for last: g at T-1, for max: g at the first step with the maximum of ``x``,
    which no other kind reads.
    """

    name = "sgrad.readout"

    gradient = operand_def(TensorType)
    x = opt_operand_def(TensorType)
    result = result_def(TensorType)
    kind = prop_def(StringAttr)
    time_steps = prop_def(IntegerAttr)

    assembly_format = "$gradient (`of` $x^)? attr-dict `:` functional-type(operands, results)"

    def __init__(self, gradient: SSAValue, readout: ReadoutForwardOp) -> None:
        steps = tensor_type(readout.x.type).get_shape()[0]
        read = [readout.x] if readout.kind.data == "membrane_max" else []
        super().__init__([gradient, read], {"kind": readout.kind, "time_steps": integer(steps)}, readout.location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Prefix the time steps."""
        gradient, *read = operands
        kind = choice(properties, "kind", READOUT_KINDS)
        expect_element("gradient", gradient, f32)
        result = real((int_value(properties, "time_steps", 1), *expect_rank("gradient", gradient, 2)))
        wanted = int(kind == "membrane_max")
        if len(read) != wanted:
            raise VerifyException(f"expected {wanted} values that were read out for {kind}, found {len(read)}")
        for x in read:
            expect_type("x", x, result)
        return [result]


class LifGradientOp(FiringOp, abc.ABC):
    """What flows back through spiking neurons; learned constants as in ``spike.lif``."""

    gradient = operand_def(TensorType)
    u = operand_def(TensorType)
    s = operand_def(TensorType)
    decay = opt_operand_def(TensorType)
    threshold = opt_operand_def(TensorType)

    irdl_options = (ParsePropInAttrDict(), AttrSizedOperandSegments(as_property=True))
    assembly_format = (
        "$gradient `,` $u `,` $s (`decay` $decay^ `:` type($decay))? (`threshold` $threshold^ `:` type($threshold))? "
        "attr-dict `:` type($gradient) `,` type($u) `,` type($s) `->` type(results)"
    )

    def __init__(
        self,
        gradient: SSAValue,
        u: SSAValue,
        s: SSAValue,
        neuron: Neuron,
        decay: SSAValue | None = None,
        threshold: SSAValue | None = None,
        *,
        location: LocationAttr,
    ) -> None:
        rows = [[] if row is None else [row] for row in (decay, threshold)]
        super().__init__([gradient, u, s, *rows], neuron_properties(neuron), location)

    @classmethod
    def channels(cls, operands: Sequence[Tensor], properties: Properties) -> int:
        """Return the channels; raises VerifyException unless the operands fit together."""
        gradient, u, s, *rows = operands
        shape = expect_rank("gradient", gradient, 3, 5)
        expect_element("gradient", gradient, f32)
        expect_type("u", u, real(shape))
        neuron = neuron_of(properties)
        expect_type("s", s, fired(neuron, shape))
        check_neuron(neuron, shape[-1])
        check_learned(rows, properties, shape[-1])
        return shape[-1]


@irdl_op_definition
class LifOp(LifGradientOp):
    """Adjoint of ``spike.lif``, backwards in time: gradient of the spikes to gradient of the current.

    With the surrogate sg[t] and gn = gu[t+1] (0 at the end)::

        hard:         gu[t] = sg[t] * (gs[t] - alpha * (u[t] - v_reset) * gn) + alpha * (1 - s[t]) * gn
        soft:         gu[t] = sg[t] * (gs[t] - alpha * theta * gn)            + alpha * gn
        soft_delayed: gu[t] = sg[t] * (gs[t] - theta * gn)                    + alpha * gn
        none:         gu[t] = sg[t] * gs[t]                                   + alpha * gn

    There is none for hard_delayed: its gradient is that of hard with ``detach_reset``, gated by the spikes before.
    ``detach_reset`` leaves the term with gn in the bracket out. Where ``v_min`` holds the potential after the reset, no
    term with gn is there but that of soft_delayed in the bracket. Where s is a number, hard takes 1 for all above 0.
    The gradient of the current is ``gain * gu[t]``; with a synapse ``gi[t] = gain * gu[t] + beta * gi[t+1]`` (delayed:
    ``gain * gu[t+1] + beta * gi[t+1]``).
    """

    name = "sgrad.lif"

    result = result_def(TensorType)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Give the type of the gradient."""
        cls.channels(operands, properties)
        return [operands[0]]


@irdl_op_definition
class LifConstantsOp(LifGradientOp):
    """Gradients ``[K]`` of decay and threshold of ``spike.lif`` from that of its currents, which are the potentials'.

    With gn = gu[t+1] and r[t] the potential after the reset: ``decay = sum gn * r[t]`` and ``threshold = sum p - gu[t]
    - q``, where p is the second term of gu[t] in :class:`LifOp` (soft: ``alpha * (1 - s[t]) * gn``), and q is ``s[t] *
    gn`` for soft_delayed, else 0.
    """

    name = "sgrad.lif_constants"

    of_decay = result_def(TensorType)
    of_threshold = result_def(TensorType)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Give two rows."""
        row = real((cls.channels(operands, properties),))
        return [row, row]


@irdl_op_definition
class NeuronRowOp(InferredOp):
    """Adjoint of ``spike.neuron_row``: the gradient of its parameter ``w``."""

    name = "sgrad.neuron_row"

    gradient = operand_def(TensorType)
    w = operand_def(TensorType)
    result = result_def(TensorType)
    kind = prop_def(StringAttr)

    assembly_format = "$gradient `,` $w attr-dict `:` functional-type(operands, results)"

    def __init__(self, gradient: SSAValue, w: SSAValue, kind: str, *, location: LocationAttr) -> None:
        super().__init__([gradient, w], {"kind": StringAttr(kind)}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Give the type of the parameter."""
        gradient, w = operands
        expect_element("w", w, f32)
        expect_element("gradient", gradient, f32)
        choice(properties, "kind", LEARNED_ROWS)
        (channels,), (found,) = expect_rank("gradient", gradient, 1), expect_rank("w", w, 1)
        if found not in (1, channels):
            raise VerifyException(f"expected a parameter of 1 or {channels} numbers, found {found}")
        return [w]


@irdl_op_definition
class LiOp(IntegratingOp):
    """Adjoint of ``spike.li``: ``gu[t] = g[t] + alpha * gu[t+1]``, and from it the current's as in :class:`LifOp`."""

    name = "sgrad.li"

    gradient = operand_def(TensorType)
    result = result_def(TensorType)

    assembly_format = "$gradient attr-dict `:` functional-type(operands, results)"

    def __init__(self, gradient: SSAValue, neuron: Neuron, *, location: LocationAttr) -> None:
        super().__init__([gradient], integrator_properties(neuron), location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Give the type of the gradient."""
        expect_element("gradient", operands[0], f32)
        shape = expect_rank("gradient", operands[0], 3, 5)
        check_neuron(integrator_of(properties), shape[-1])
        return [operands[0]]


@irdl_op_definition
class ConvInputOp(InputGradientOp):
    """Transposed convolution of ``[(T,)N,OH,OW,K]`` to the input ``[(T,)N,H,W,C]``; ``input_shape`` is (H, W, C)."""

    name = "sgrad.conv_input"

    stride = prop_def(DenseArrayBase)
    padding = prop_def(DenseArrayBase)
    input_shape = prop_def(DenseArrayBase)

    def __init__(
        self,
        gradient: SSAValue,
        weight: SSAValue,
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        input_shape: Sequence[int],
        location: LocationAttr,
    ) -> None:
        properties = {"stride": ints(stride), "padding": ints(padding), "input_shape": ints(input_shape)}
        super().__init__([gradient, weight], properties, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Give maps of ``input_shape``."""
        gradient, weight = operands
        expect_element("gradient", gradient, f32)
        *outer, rows, columns, k = expect_rank("gradient", gradient, 4, 5)
        height, width, channels = int_values(properties, "input_shape", 3, 1)
        kh, kw = expect_rank("weight", weight, 4)[:2]
        expect_type("weight", weight, real((kh, kw, channels, k)))
        _expect_conv((height, width), (kh, kw), properties, (rows, columns))
        return [real((*outer, height, width, channels))]


@irdl_op_definition
class ConvWeightOp(WeightGradientOp):
    """Correlation of inputs ``[(T,)N,H,W,C]`` with gradients ``[(T,)N,OH,OW,K]`` to ``[kh,kw,C,K]``."""

    name = "sgrad.conv_weight"

    stride = prop_def(DenseArrayBase)
    padding = prop_def(DenseArrayBase)
    kernel = prop_def(DenseArrayBase)

    def __init__(
        self,
        x: SSAValue,
        gradient: SSAValue,
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        kernel: Sequence[int],
        location: LocationAttr,
    ) -> None:
        properties = {"stride": ints(stride), "padding": ints(padding), "kernel": ints(kernel)}
        super().__init__([x, gradient], properties, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Give weights of ``kernel``."""
        x, gradient = operands
        expect_element("x", x, f32, i1)
        *outer, height, width, channels = expect_rank("x", x, 4, 5)
        *_, rows, columns, k = expect_rank("gradient", gradient, 4, 5)
        expect_type("gradient", gradient, real((*outer, rows, columns, k)))
        kernel = int_values(properties, "kernel", 2, 1)
        _expect_conv((height, width), kernel, properties, (rows, columns))
        return [real((*kernel, channels, k))]


@irdl_op_definition
class ExtractOp(UnaryOp):
    """Adjoint of ``spike.embed``: the gradient ``[kh,kw,C/groups,K]`` of grouped or dilated weights."""

    name = "sgrad.extract"

    dilation = prop_def(DenseArrayBase)
    groups = prop_def(IntegerAttr)

    def __init__(self, gradient: SSAValue, dilation: Sequence[int], groups: int, *, location: LocationAttr) -> None:
        super().__init__([gradient], {"dilation": ints(dilation), "groups": integer(groups)}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Take every ``dilation``-th kernel place and divide the input channels."""
        expect_element("gradient", operands[0], f32)
        kh, kw, channels, k = expect_rank("gradient", operands[0], 4)
        down, across = int_values(properties, "dilation", 2, 1)
        groups = int_value(properties, "groups", 1)
        if channels % groups or k % groups or (kh - 1) % down or (kw - 1) % across:
            raise VerifyException(f"expected weights that spike.embed makes, found {operands[0]}")
        return [real(((kh - 1) // down + 1, (kw - 1) // across + 1, channels // groups, k))]


@irdl_op_definition
class LinearInputOp(InputGradientOp):
    """Gradient ``[(T,)N,K]`` times the transposed weights ``[C,K]``, to ``[(T,)N,C]``."""

    name = "sgrad.linear_input"

    def __init__(self, gradient: SSAValue, weight: SSAValue, *, location: LocationAttr) -> None:
        super().__init__([gradient, weight], {}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Replace the last dimension."""
        gradient, weight = operands
        expect_element("gradient", gradient, f32)
        *outer, k = expect_rank("gradient", gradient, 2, 3)
        channels = expect_rank("weight", weight, 2)[0]
        expect_type("weight", weight, real((channels, k)))
        return [real((*outer, channels))]


@irdl_op_definition
class LinearWeightOp(WeightGradientOp):
    """Products of inputs ``[(T,)N,C]`` and gradients ``[(T,)N,K]``, summed to ``[C,K]``."""

    name = "sgrad.linear_weight"

    def __init__(self, x: SSAValue, gradient: SSAValue, *, location: LocationAttr) -> None:
        super().__init__([x, gradient], {}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Give a matrix."""
        x, gradient = operands
        expect_element("x", x, f32, i1)
        *outer, channels = expect_rank("x", x, 2, 3)
        k = expect_rank("gradient", gradient, 2, 3)[-1]
        expect_type("gradient", gradient, real((*outer, k)))
        return [real((channels, k))]


@irdl_op_definition
class BiasOp(UnaryOp):
    """Sum of the gradients ``[..,K]`` over everything but channels, to ``[K]``."""

    name = "sgrad.bias"

    def __init__(self, gradient: SSAValue, *, location: LocationAttr) -> None:
        super().__init__([gradient], {}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Keep the last dimension."""
        expect_element("gradient", operands[0], f32)
        return [real(expect_rank("gradient", operands[0], 2, 3, 4, 5)[-1:])]


@irdl_op_definition
class PoolOp(InferredOp):
    """Adjoint of ``spike.pool``: avg spreads g / window, sum spreads g, max routes g to the window's first largest."""

    name = "sgrad.pool"

    gradient = operand_def(TensorType)
    x = operand_def(TensorType)
    result = result_def(TensorType)
    kind = prop_def(StringAttr)
    kernel = prop_def(DenseArrayBase)
    stride = prop_def(DenseArrayBase)
    padding = prop_def(DenseArrayBase)

    assembly_format = "$gradient `,` $x attr-dict `:` functional-type(operands, results)"

    def __init__(
        self,
        gradient: SSAValue,
        x: SSAValue,
        kind: str,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int] = (0, 0),
        *,
        location: LocationAttr,
    ) -> None:
        super().__init__([gradient, x], pool_properties(kind, kernel, stride, padding), location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Give a gradient of the shape of the pooled tensor's source."""
        gradient, x = operands
        choice(properties, "kind", POOL_KINDS)
        expect_element("x", x, f32, i1)
        expect_type("gradient", gradient, real(pooled_shape("x", x, properties)))
        return [real(x.get_shape())]


@irdl_op_definition
class TimeSumOp(UnaryOp):
    """Adjoint of ``spike.repeat``: the sum over time of ``[T,N,...]``."""

    name = "sgrad.time_sum"

    def __init__(self, gradient: SSAValue, *, location: LocationAttr) -> None:
        super().__init__([gradient], {}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Drop the time dimension."""
        expect_element("gradient", operands[0], f32)
        return [real(expect_rank("gradient", operands[0], 3, 5)[1:])]


@irdl_op_definition
class DelayOp(UnaryOp):
    """Adjoint of ``spike.delay``: ``result[t] = gradient[t + steps]``, 0 behind the last step."""

    name = "sgrad.delay"

    steps = prop_def(DenseArrayBase)

    def __init__(self, gradient: SSAValue, steps: Sequence[int], *, location: LocationAttr) -> None:
        super().__init__([gradient], {"steps": ints(steps)}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Keep the type."""
        expect_element("gradient", operands[0], f32)
        check_delay(properties, expect_rank("gradient", operands[0], 3, 5)[-1])
        return [operands[0]]


@irdl_op_definition
class UnflattenOp(UnaryOp):
    """Adjoint of ``spike.flatten``: features ``[(T,)N,F]`` back to maps; ``input_shape`` is (H, W, C)."""

    name = "sgrad.unflatten"

    input_shape = prop_def(DenseArrayBase)

    def __init__(self, gradient: SSAValue, input_shape: Sequence[int], *, location: LocationAttr) -> None:
        super().__init__([gradient], {"input_shape": ints(input_shape)}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Split the last dimension."""
        expect_element("gradient", operands[0], f32)
        *outer, features = expect_rank("gradient", operands[0], 2, 3)
        height, width, channels = int_values(properties, "input_shape", 3, 1)
        if features != height * width * channels:
            raise VerifyException(f"expected {height * width * channels} features, found {features}")
        return [real((*outer, height, width, channels))]


@irdl_op_definition
class SliceOp(UnaryOp):
    """Adjoint of ``spike.concat`` for one part: ``channels`` channels from ``first`` on."""

    name = "sgrad.slice"

    first = prop_def(IntegerAttr)
    channels = prop_def(IntegerAttr)

    def __init__(self, gradient: SSAValue, first: int, channels: int, *, location: LocationAttr) -> None:
        super().__init__([gradient], {"first": integer(first), "channels": integer(channels)}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Take some of the channels."""
        expect_element("gradient", operands[0], f32)
        *outer, there = expect_rank("gradient", operands[0], 2, 3, 4, 5)
        first, channels = int_value(properties, "first", 0), int_value(properties, "channels", 1)
        if first + channels > there:
            raise VerifyException(f"expected channels {first} to {first + channels - 1} of {there}")
        return [real((*outer, channels))]


@irdl_op_definition
class AddOp(InferredOp):
    """Sum of two gradients of the same value."""

    name = "sgrad.add"

    lhs = operand_def(TensorType)
    rhs = operand_def(TensorType)
    result = result_def(TensorType)

    assembly_format = "$lhs `,` $rhs attr-dict `:` functional-type(operands, results)"

    def __init__(self, lhs: SSAValue, rhs: SSAValue, *, location: LocationAttr) -> None:
        super().__init__([lhs, rhs], {}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Give the common type."""
        expect_element("lhs", operands[0], f32)
        expect_type("rhs", operands[1], operands[0])
        return [operands[0]]


@irdl_op_definition
class BatchNormOp(InferredOp):
    """Gradients of ``spike.batch_norm_train``, through mean and variance of the batch; invalid samples get 0."""

    name = "sgrad.batch_norm"

    gradient = operand_def(TensorType)
    x = operand_def(TensorType)
    weight = operand_def(TensorType)
    batch_mean = operand_def(TensorType)
    inverse = operand_def(TensorType)
    scalars = operand_def(TensorType)
    result = result_def(TensorType)
    weight_gradient = result_def(TensorType)
    shift_gradient = result_def(TensorType)

    assembly_format = (
        "$gradient `,` $x `,` $weight `,` $batch_mean `,` $inverse `,` $scalars attr-dict `:` "
        "functional-type(operands, results)"
    )

    def __init__(self, gradient: SSAValue, norm: BatchNormTrainOp) -> None:
        operands = [gradient, norm.x, norm.weight, norm.batch_mean, norm.inverse, norm.scalars]
        super().__init__(operands, {}, norm.location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Give the types of x, weight and shift."""
        gradient, x, *rows, scalars = operands
        expect_element("x", x, f32)
        expect_type("gradient", gradient, x)
        channels = expect_rank("x", x, 2, 3, 4, 5)[-1]
        for name, row in zip(("weight", "batch mean", "inverse"), rows, strict=True):
            expect_type(name, row, real((channels,)))
        expect_type("scalars", scalars, SCALARS)
        return [x, rows[0], rows[0]]


def _expect_conv(shape: tuple[int, int], kernel: Sequence[int], properties: Properties, found: tuple[int, int]) -> None:
    stride, padding = int_values(properties, "stride", 2, 1), int_values(properties, "padding", 2)
    expected = conv_shape(shape, kernel, stride, padding)
    if found != expected:
        raise VerifyException(f"expected a gradient of {expected} rows and columns, found {found}")


Sgrad = Dialect(
    "sgrad",
    [
        LossOp,
        ReadoutOp,
        LifOp,
        LifConstantsOp,
        NeuronRowOp,
        LiOp,
        ConvInputOp,
        ConvWeightOp,
        ExtractOp,
        LinearInputOp,
        LinearWeightOp,
        BiasOp,
        PoolOp,
        TimeSumOp,
        DelayOp,
        UnflattenOp,
        SliceOp,
        AddOp,
        BatchNormOp,
    ],
    [],
)
"""The dialect, for an xDSL context."""
