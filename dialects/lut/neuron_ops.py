"""Neurons over time and their gradients, and the constants that are learned."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar, TypeAlias

from xdsl.dialects.builtin import DenseArrayBase, IntegerAttr, IntegerType, LocationAttr, StringAttr, TensorType, i64
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import (
    AttrSizedOperandSegments,
    BaseAttr,
    ParsePropInAttrDict,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    prop_def,
    result_def,
)
from xdsl.utils.exceptions import VerifyException

from h2learn.backends.reference.neuron import LEARNED_ROWS

from .attributes import GradsType, InsideType, MaskType, Neuron, NeuronAttr, Shape, SpikesType, StoreType, shape_of
from .base import (
    PLAIN_SYNTAX,
    Block,
    LutOp,
    activation_shape,
    expect,
    expect_shape,
    integer,
    optional,
    tensor,
    verify_word,
)

GS_TIMES = ("all", "broadcast", "last")
_LEARNED = "(`decay` $decay^ `:` type($decay))? (`threshold` $threshold^ `:` type($threshold))?"
LearnedRows: TypeAlias = tuple[SSAValue | None, SSAValue | None]
"""Decay and threshold of neurons as rows ``[K]``, where they are learned."""


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
            [current, optional(bias), *map(optional, learned)],
            [fired(neuron, shape, dtype), potentials, MaskType(shape)],
            {"neuron": NeuronAttr(neuron), "time_steps": integer(time_steps)},
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
        shape = current_shape(self.current.type, self.time_steps)
        for what, value in (("spikes", self.s), ("membrane potentials", self.u), ("mask", self.m)):
            expect_shape(what, value.type, shape)
        verify_spikes(self.s, self.neuron)
        verify_bias(self.bias, shape[-1])
        verify_neuron(self.neuron, shape[-1], fires=True)
        verify_learned((self.decay, self.threshold), self.neuron, shape[-1])


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
    assembly_format = PLAIN_SYNTAX

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
            [current, optional(bias)],
            [StoreType(shape, dtype)],
            {"neuron": NeuronAttr(neuron), "time_steps": integer(time_steps)},
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
        shape = current_shape(self.current.type, self.time_steps)
        expect_shape("membrane potentials", self.u.type, shape)
        verify_bias(self.bias, shape[-1])
        verify_neuron(self.neuron, shape[-1], fires=False)


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
            [gs, optional(u), optional(s), *map(optional, learned)],
            [GradsType(shape, dtype)],
            {"neuron": NeuronAttr(neuron), "time_steps": integer(time_steps), "gs_time": StringAttr(gs_time)},
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
        verify_word("gs_time", self.gs_time, GS_TIMES)
        shape = activation_shape("gradient", self.gu.type)
        expect("time steps of the gradient", (self.time_steps, len(shape)), (shape[0], 5))
        expect_shape("incoming gradient", self.gs.type, shape if self.gs_time == "all" else shape[1:])
        verify_neuron(self.neuron, shape[-1], fires=self.neuron.fires)
        verify_gradient(self.neuron)
        verify_learned((self.decay, self.threshold), self.neuron, shape[-1])
        for what, value in (("membrane potentials", self.u), ("spikes", self.s)):
            if (value is None) == self.neuron.fires:
                raise VerifyException(f"expected {what} as operand for a neuron that fires, and only there")
            if value is not None:
                expect_shape(what, value.type, shape)
        if self.s is not None:
            verify_spikes(self.s, self.neuron)
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
        self.construct([*gradients, u, s, *map(optional, learned)], [row, row], properties, location)

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
        shape = activation_shape("gradient", self.gu.type)
        expect("rank of the gradient", len(shape), 5)
        for what, value in (("later gradient", self.later), ("membrane potentials", self.u), ("spikes", self.s)):
            expect_shape(what, value.type, shape)
        verify_gradient(self.neuron)
        verify_neuron(self.neuron, shape[-1], fires=True)
        verify_learned((self.decay, self.threshold), self.neuron, shape[-1])
        verify_spikes(self.s, self.neuron)
        for result in self.results:
            expect_shape("gradient of a constant", result.type, shape[-1:])


class _RowOp(LutOp, ABC):
    """An op on a learned constant of neurons and its parameter ``w``, one number or one per channel."""

    ENGINE: ClassVar[str] = "VEC"
    kind_attr = prop_def(StringAttr, prop_name="kind")
    assembly_format = PLAIN_SYNTAX

    @property
    def kind(self) -> str:
        """One of :data:`h2learn.backends.reference.neuron.LEARNED_ROWS`."""
        return self.kind_attr.data

    def verify_row(self, row: SSAValue, w: SSAValue) -> None:
        """Check kind and shapes."""
        verify_word("kind of a learned constant", self.kind, LEARNED_ROWS)
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
        expect_shape("gradient", self.result.type, shape_of(self.w.type))


def fired(neuron: Neuron, shape: Shape, dtype: str) -> SpikesType | StoreType:
    """Return the type of a neuron's spikes: bits, or numbers in storage type where they are counted."""
    return StoreType(shape, dtype) if neuron.counts else SpikesType(shape)


def current_shape(type_: Attribute, time_steps: int) -> Shape:
    """Return ``[T,N,H,W,C]`` of a current, which may be the same at every one of ``time_steps``."""
    shape = activation_shape("current", type_)
    if len(shape) == 5:
        expect("time_steps", time_steps, shape[0])
    return (time_steps, *shape[-4:])


def verify_bias(bias: SSAValue | None, channels: int) -> None:
    """Check that a bias, where there is one, has a number per channel."""
    if bias is not None:
        expect_shape("bias", bias.type, (channels,))


def verify_gradient(neuron: Neuron) -> None:
    """Raise VerifyException where a neuron's gradient is written as that of another one."""
    if neuron.reset == "hard_delayed":
        raise VerifyException("a hard-delayed reset has no gradient of its own: it is that of hard, gated by spikes")


def verify_neuron(neuron: Neuron, channels: int, *, fires: bool) -> None:
    """Check that a neuron fires or not, and that its constants are one number or one per channel."""
    expect("the neuron to fire", neuron.fires, fires)
    for name in ("alpha", "theta", "v_reset", "gain", "offset", "initial", "beta"):
        count = len(getattr(neuron, name))
        if count not in (1, channels):
            raise VerifyException(f"expected 1 or {channels} values of {name}, found {count}")


def verify_spikes(spikes: SSAValue, neuron: Neuron) -> None:
    """Check that spikes are bits, or numbers where they are counted."""
    if not isinstance(spikes.type, StoreType if neuron.counts else SpikesType):
        form = "stored numbers" if neuron.counts else "bits"
        raise VerifyException(f"expected spikes as {form}, found {spikes.type}")


def verify_learned(rows: LearnedRows, neuron: Neuron, channels: int) -> None:
    """Check the rows of learned constants, and that the neuron may have any."""
    for row in rows:
        if row is not None:
            expect_shape("learned constant", row.type, (channels,))
    if all(row is None for row in rows):
        return
    if not (neuron.fires and neuron.drive == "plain"):
        raise VerifyException("expected plainly driven neurons that fire where constants are learned")
    if neuron.counts or neuron.lowest is not None:
        raise VerifyException("expected one spike per step and no lowest potential where constants are learned")
