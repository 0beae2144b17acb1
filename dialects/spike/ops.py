"""The ops of ``spike``: whole tensors, time is the first dimension, channels the last."""

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
    i32,
)
from xdsl.ir import Attribute, Dialect, SSAValue
from xdsl.irdl import (
    AttrSizedOperandSegments,
    ParsePropInAttrDict,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    prop_def,
    result_def,
    var_operand_def,
)
from xdsl.utils.exceptions import VerifyException

from h2learn.backends.reference.neuron import LEARNED_ROWS, Neuron
from h2learn.backends.reference.training import Loss

from .base import (
    ENCODE_KINDS,
    POOL_KINDS,
    READOUT_KINDS,
    SCALARS,
    SPIKE_READOUTS,
    FiringOp,
    InferredOp,
    IntegratingOp,
    Properties,
    Tensor,
    check_channels,
    choice,
    conv_shape,
    expect_element,
    expect_rank,
    expect_type,
    int_value,
    int_values,
    integer,
    integrator_of,
    integrator_properties,
    ints,
    loss_of,
    loss_properties,
    neuron_of,
    neuron_properties,
    real,
    spikes,
)
from .dropout import DropoutOp as DropoutOp
from .dropout import DropoutTrainOp as DropoutTrainOp
from .gate import GateOp as GateOp
from .normalisation import BatchNormOp as BatchNormOp
from .normalisation import BatchNormTrainOp as BatchNormTrainOp
from .optimizers import AdamOp as AdamOp
from .optimizers import SgdOp as SgdOp
from .scan import DelayOp as DelayOp
from .scan import ScanOp as ScanOp
from .scan import YieldOp as YieldOp


@irdl_op_definition
class EncodeOp(InferredOp):
    """Present a real sample ``[N, ...]`` for ``time_steps`` steps.

    ``direct`` repeats the value (f32); ``bernoulli`` spikes with probability x at each step (i1), with random numbers
    keyed by (seed, stream, sample, neuron, step) from the run scalars.
    """

    name = "spike.encode"

    x = operand_def(TensorType)
    scalars = opt_operand_def(TensorType)
    result = result_def(TensorType)
    kind = prop_def(StringAttr)
    time_steps = prop_def(IntegerAttr)
    stream = prop_def(IntegerAttr)

    assembly_format = "$x (`,` $scalars^)? attr-dict `:` functional-type(operands, results)"

    def __init__(
        self,
        x: SSAValue,
        kind: str,
        time_steps: int,
        *,
        location: LocationAttr,
        scalars: SSAValue | None = None,
        stream: int = 0,
    ) -> None:
        super().__init__(
            [x, _optional(scalars)],
            {"kind": StringAttr(kind), "time_steps": integer(time_steps), "stream": integer(stream)},
            location,
        )

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Prefix the sample's shape with the time steps."""
        x, *scalars = operands
        kind = choice(properties, "kind", ENCODE_KINDS)
        int_value(properties, "stream", 0)
        expect_element("x", x, f32)
        shape = (int_value(properties, "time_steps", 1), *expect_rank("x", x, 2, 4))
        if (kind == "bernoulli") != bool(scalars):
            raise VerifyException(f"expected {int(kind == 'bernoulli')} scalars for {kind}, found {len(scalars)}")
        if scalars:
            expect_type("scalars", scalars[0], SCALARS)
        return [spikes(shape) if kind == "bernoulli" else real(shape)]


@irdl_op_definition
class RepeatOp(InferredOp):
    """Repeat ``[N, ...]`` for ``time_steps`` steps: direct encoding of something already computed."""

    name = "spike.repeat"

    x = operand_def(TensorType)
    result = result_def(TensorType)
    time_steps = prop_def(IntegerAttr)

    assembly_format = "$x attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: SSAValue, time_steps: int, *, location: LocationAttr) -> None:
        super().__init__([x], {"time_steps": integer(time_steps)}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Prefix the shape with the time steps."""
        expect_element("x", operands[0], f32)
        return [real((int_value(properties, "time_steps", 1), *expect_rank("x", operands[0], 2, 4)))]


class SynapseOp(InferredOp, abc.ABC):
    """A linear map of spikes or reals to currents, with an optional bias per output channel."""

    x = operand_def(TensorType)
    weight = operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    result = result_def(TensorType)

    assembly_format = "$x `,` $weight (`,` $bias^)? attr-dict `:` functional-type(operands, results)"


@irdl_op_definition
class ConvOp(SynapseOp):
    """2-D convolution (cross-correlation) of ``[(T,)N,H,W,C]`` with weights ``[kh,kw,C,K]``."""

    name = "spike.conv"

    stride = prop_def(DenseArrayBase)
    padding = prop_def(DenseArrayBase)

    def __init__(
        self,
        x: SSAValue,
        weight: SSAValue,
        bias: SSAValue | None = None,
        *,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        location: LocationAttr,
    ) -> None:
        super().__init__([x, weight, _optional(bias)], {"stride": ints(stride), "padding": ints(padding)}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Apply the size formula of a convolution."""
        x, weight, *bias = operands
        expect_element("x", x, f32, i1)
        *outer, height, width, channels = expect_rank("x", x, 4, 5)
        kh, kw, _, k = expect_rank("weight", weight, 4)
        expect_type("weight", weight, real((kh, kw, channels, k)))
        for b in bias:
            expect_type("bias", b, real((k,)))
        stride, padding = int_values(properties, "stride", 2, 1), int_values(properties, "padding", 2)
        return [real((*outer, *conv_shape((height, width), (kh, kw), stride, padding), k))]


@irdl_op_definition
class EmbedOp(InferredOp):
    """Weights ``[kh,kw,C/groups,K]`` of a grouped or dilated convolution as those of a plain one, zeros in between.

    Output channels ``g*K/groups ..`` read input channels ``g*C/groups ..``; kernel places lie ``dilation`` apart.
    """

    name = "spike.embed"

    weight = operand_def(TensorType)
    result = result_def(TensorType)
    dilation = prop_def(DenseArrayBase)
    groups = prop_def(IntegerAttr)

    assembly_format = "$weight attr-dict `:` functional-type(operands, results)"

    def __init__(self, weight: SSAValue, dilation: Sequence[int], groups: int, *, location: LocationAttr) -> None:
        super().__init__([weight], {"dilation": ints(dilation), "groups": integer(groups)}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Widen the kernel and multiply the input channels."""
        expect_element("weight", operands[0], f32)
        kh, kw, inner, k = expect_rank("weight", operands[0], 4)
        down, across = int_values(properties, "dilation", 2, 1)
        groups = int_value(properties, "groups", 1)
        if k % groups:
            raise VerifyException(f"expected output channels of {groups} groups of one size, found {k}")
        return [real(((kh - 1) * down + 1, (kw - 1) * across + 1, inner * groups, k))]


@irdl_op_definition
class LinearOp(SynapseOp):
    """Fully connected layer of ``[(T,)N,C]`` with weights ``[C,K]``."""

    name = "spike.linear"

    def __init__(self, x: SSAValue, weight: SSAValue, bias: SSAValue | None = None, *, location: LocationAttr) -> None:
        super().__init__([x, weight, _optional(bias)], {}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Replace the last dimension."""
        x, weight, *bias = operands
        expect_element("x", x, f32, i1)
        *outer, channels = expect_rank("x", x, 2, 3)
        k = expect_rank("weight", weight, 2)[1]
        expect_type("weight", weight, real((channels, k)))
        for b in bias:
            expect_type("bias", b, real((k,)))
        return [real((*outer, k))]


@irdl_op_definition
class FlattenOp(InferredOp):
    """Turn maps ``[(T,)N,H,W,C]`` into features ``[(T,)N,H*W*C]`` in this (channels-last) order."""

    name = "spike.flatten"

    x = operand_def(TensorType)
    result = result_def(TensorType)

    assembly_format = "$x attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: SSAValue, *, location: LocationAttr) -> None:
        super().__init__([x], {}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Merge the last three dimensions."""
        expect_element("x", operands[0], f32, i1)
        *outer, height, width, channels = expect_rank("x", operands[0], 4, 5)
        return [TensorType(operands[0].element_type, [*outer, height * width * channels])]


@irdl_op_definition
class PoolOp(InferredOp):
    """Pool windows of ``[(T,)N,H,W,C]``; ``max`` keeps spikes binary, ``avg`` and ``sum`` give f32.

    Padding counts as zeros in averages and sums, which is what PyTorch does by default; in a maximum it takes no part.
    """

    name = "spike.pool"

    x = operand_def(TensorType)
    result = result_def(TensorType)
    kind = prop_def(StringAttr)
    kernel = prop_def(DenseArrayBase)
    stride = prop_def(DenseArrayBase)
    padding = prop_def(DenseArrayBase)

    assembly_format = "$x attr-dict `:` functional-type(operands, results)"

    def __init__(
        self,
        x: SSAValue,
        kind: str,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int] = (0, 0),
        *,
        location: LocationAttr,
    ) -> None:
        super().__init__([x], pool_properties(kind, kernel, stride, padding), location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Apply the size formula of a window."""
        expect_element("x", operands[0], f32, i1)
        shape = pooled_shape("x", operands[0], properties)
        element = operands[0].element_type if choice(properties, "kind", POOL_KINDS) == "max" else f32
        return [TensorType(element, shape)]


@irdl_op_definition
class AddOp(InferredOp):
    """Sum of two values of one shape, spikes counting 1: of currents in front of a neuron, of spikes behind neurons."""

    name = "spike.add"

    lhs = operand_def(TensorType)
    rhs = operand_def(TensorType)
    result = result_def(TensorType)

    assembly_format = "$lhs `,` $rhs attr-dict `:` functional-type(operands, results)"

    def __init__(self, lhs: SSAValue, rhs: SSAValue, *, location: LocationAttr) -> None:
        super().__init__([lhs, rhs], {}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Give reals of the common shape."""
        lhs, rhs = operands
        expect_element("lhs", lhs, f32, i1)
        expect_element("rhs", rhs, f32, i1)
        if lhs.get_shape() != rhs.get_shape():
            raise VerifyException(f"expected two values of one shape to add, found {lhs} and {rhs}")
        return [real(expect_rank("lhs", lhs, 2, 3, 4, 5))]


@irdl_op_definition
class ConcatOp(InferredOp):
    """Channels of several values of otherwise one shape, side by side; spikes stay spikes if all are."""

    name = "spike.concat"

    parts = var_operand_def(TensorType)
    result = result_def(TensorType)

    assembly_format = "$parts attr-dict `:` functional-type(operands, results)"

    def __init__(self, parts: Sequence[SSAValue], *, location: LocationAttr) -> None:
        super().__init__([list(parts)], {}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Add up the channels."""
        if not operands:
            raise VerifyException("expected values to concatenate, found none")
        for part in operands:
            expect_element("part", part, f32, i1)
        *outer, _ = expect_rank("part", operands[0], 2, 3, 4, 5)
        if any([*part.get_shape()[:-1]] != outer for part in operands):
            raise VerifyException(f"expected values that differ in channels only, found {_list(operands)}")
        channels = sum(part.get_shape()[-1] for part in operands)
        binary = all(part.element_type == i1 for part in operands)
        return [TensorType(i1 if binary else f32, [*outer, channels])]


@irdl_op_definition
class LifOp(FiringOp):
    """Leaky integrate-and-fire neurons over time: currents ``[T,N,...,K]`` to spikes and membrane potentials.

    The equation and the surrogate are those of :class:`h2learn.backends.reference.neuron.Neuron`; spikes are f32
    numbers where a step may have several. ``decay`` and ``threshold`` ``[K]`` stand for ``alpha`` and ``theta`` where
    these are learned; see :class:`NeuronRowOp`.
    """

    name = "spike.lif"

    x = operand_def(TensorType)
    decay = opt_operand_def(TensorType)
    threshold = opt_operand_def(TensorType)
    s = result_def(TensorType)
    u = result_def(TensorType)

    irdl_options = (ParsePropInAttrDict(), AttrSizedOperandSegments(as_property=True))
    assembly_format = (
        "$x (`decay` $decay^ `:` type($decay))? (`threshold` $threshold^ `:` type($threshold))? attr-dict "
        "`:` functional-type($x, results)"
    )

    def __init__(
        self,
        x: SSAValue,
        neuron: Neuron,
        decay: SSAValue | None = None,
        threshold: SSAValue | None = None,
        *,
        location: LocationAttr,
    ) -> None:
        super().__init__([x, _optional(decay), _optional(threshold)], neuron_properties(neuron), location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Give spikes and potentials of the current's shape."""
        expect_element("x", operands[0], f32)
        shape = expect_rank("x", operands[0], 3, 5)
        neuron = neuron_of(properties)
        check_neuron(neuron, shape[-1])
        check_learned(operands[1:], properties, shape[-1])
        return [fired(neuron, shape), real(shape)]


@irdl_op_definition
class NeuronRowOp(InferredOp):
    """A learned constant of neurons, one number for each of ``channels``, from its parameter ``[1]`` or ``[K]``.

    ``kind`` is one of :data:`h2learn.backends.reference.neuron.LEARNED_ROWS`.
    """

    name = "spike.neuron_row"

    w = operand_def(TensorType)
    result = result_def(TensorType)
    kind = prop_def(StringAttr)
    channels = prop_def(IntegerAttr)

    assembly_format = "$w attr-dict `:` functional-type(operands, results)"

    def __init__(self, w: SSAValue, kind: str, channels: int, *, location: LocationAttr) -> None:
        super().__init__([w], {"kind": StringAttr(kind), "channels": integer(channels)}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Give a row."""
        expect_element("w", operands[0], f32)
        choice(properties, "kind", LEARNED_ROWS)
        channels = int_value(properties, "channels", 1)
        (found,) = expect_rank("w", operands[0], 1)
        if found not in (1, channels):
            raise VerifyException(f"expected a parameter of 1 or {channels} numbers, found {found}")
        return [real((channels,))]


@irdl_op_definition
class LiOp(IntegratingOp):
    """Leaky integrator that never spikes: the membrane of :class:`h2learn.backends.reference.neuron.Neuron`.

    Of spikes it is what a synaptic filter makes of them: currents of 0 and 1.
    """

    name = "spike.li"

    x = operand_def(TensorType)
    u = result_def(TensorType)

    assembly_format = "$x attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: SSAValue, neuron: Neuron, *, location: LocationAttr) -> None:
        super().__init__([x], integrator_properties(neuron), location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Give potentials of the current's shape."""
        expect_element("x", operands[0], f32, i1)
        shape = expect_rank("x", operands[0], 3, 5)
        check_neuron(integrator_of(properties), shape[-1])
        return [real(shape)]


@irdl_op_definition
class ReadoutOp(InferredOp):
    """Reduce ``[T,N,K]`` over time to logits ``[N,K]``: rate or count of spikes (bits or numbers), or potentials."""

    name = "spike.readout"

    x = operand_def(TensorType)
    result = result_def(TensorType)
    kind = prop_def(StringAttr)

    assembly_format = "$x attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: SSAValue, kind: str, *, location: LocationAttr) -> None:
        super().__init__([x], {"kind": StringAttr(kind)}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Drop the time dimension."""
        counted = choice(properties, "kind", READOUT_KINDS) in SPIKE_READOUTS
        expect_element("x", operands[0], f32, *((i1,) if counted else ()))
        return [real(expect_rank("x", operands[0], 3)[1:])]


@irdl_op_definition
class LossOp(InferredOp):
    """Mean over the valid samples of what :class:`h2learn.backends.reference.training.Loss` says."""

    name = "spike.loss"

    logits = operand_def(TensorType)
    label = operand_def(TensorType)
    scalars = operand_def(TensorType)
    result = result_def(TensorType)
    kind = prop_def(StringAttr)
    hit = prop_def(FloatAttr)
    miss = prop_def(FloatAttr)
    share = prop_def(FloatAttr)

    assembly_format = "$logits `,` $label `,` $scalars attr-dict `:` functional-type(operands, results)"

    def __init__(
        self, logits: SSAValue, label: SSAValue, scalars: SSAValue, loss: Loss, *, location: LocationAttr
    ) -> None:
        super().__init__([logits, label, scalars], loss_properties(loss), location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Give one number."""
        check_loss(operands, properties)
        return [real(())]


def parameter_of(weight: SSAValue) -> SSAValue:
    """Return the weights of a layer as the model has them, grouped or dilated ones not embedded."""
    return weight.owner.weight if isinstance(weight.owner, EmbedOp) else weight


def pool_properties(
    kind: str, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> dict[str, Attribute]:
    """Return the properties of ``spike.pool`` and ``sgrad.pool``."""
    return {"kind": StringAttr(kind), "kernel": ints(kernel), "stride": ints(stride), "padding": ints(padding)}


def pooled_shape(name: str, x: Tensor, properties: Properties) -> tuple[int, ...]:
    """Return the shape after pooling ``x``; raises VerifyException when no window fits."""
    *outer, height, width, channels = expect_rank(name, x, 4, 5)
    kernel, stride = int_values(properties, "kernel", 2, 1), int_values(properties, "stride", 2, 1)
    padding = int_values(properties, "padding", 2)
    if any(2 * pad > size for pad, size in zip(padding, kernel, strict=True)):
        raise VerifyException(f"expected a padding of at most half the window {list(kernel)}, found {list(padding)}")
    return (*outer, *conv_shape((height, width), kernel, stride, padding), channels)


def check_neuron(neuron: Neuron, channels: int) -> None:
    """Raise VerifyException unless constants are one number or one per channel each, and go together."""
    for name in ("alpha", "theta", "v_reset", "gain", "v_leak", "initial", "beta"):
        check_channels(name, getattr(neuron, name), channels)
    reason = neuron.reason_against()
    if reason:
        raise VerifyException(reason)


def fired(neuron: Neuron, shape: Sequence[int]) -> Tensor:
    """Return the type of a neuron's spikes: bits, or numbers where a step may have several."""
    return real(shape) if neuron.counts else spikes(shape)


def check_learned(rows: Sequence[Tensor], properties: Properties, channels: int) -> None:
    """Raise VerifyException unless learned constants have one number per channel and the neuron is driven plainly."""
    for row in rows:
        expect_type("learned constant", row, real((channels,)))
    if not rows:
        return
    neuron = neuron_of(properties)
    if not neuron.is_driven_plainly:
        raise VerifyException("expected no gain, leak, initial potential or synapse of neurons with learned constants")
    if not neuron.may_learn:
        raise VerifyException(
            "expected one spike per step, no lower bound and no hard-delayed reset of neurons with learned constants"
        )


def check_loss(operands: Sequence[Tensor], properties: Properties) -> Tensor:
    """Return the type of the logits; raises VerifyException unless logits, label and scalars fit a loss."""
    logits, label, scalars = operands
    loss_of(properties)
    expect_element("logits", logits, f32)
    samples = expect_rank("logits", logits, 2)[0]
    expect_type("label", label, TensorType(i32, [samples]))
    expect_type("scalars", scalars, SCALARS)
    return logits


def _list(types: Sequence[Attribute]) -> str:
    return ", ".join(map(str, types))


def _optional(value: SSAValue | None) -> list[SSAValue]:
    return [] if value is None else [value]


Spike = Dialect(
    "spike",
    [
        EncodeOp,
        RepeatOp,
        EmbedOp,
        ConvOp,
        LinearOp,
        BatchNormOp,
        BatchNormTrainOp,
        DropoutOp,
        DropoutTrainOp,
        FlattenOp,
        PoolOp,
        AddOp,
        ConcatOp,
        GateOp,
        LifOp,
        NeuronRowOp,
        LiOp,
        DelayOp,
        ScanOp,
        YieldOp,
        ReadoutOp,
        LossOp,
        SgdOp,
        AdamOp,
    ],
    [],
)
"""The dialect, for an xDSL context."""
