"""What the lowerings from the training graph to ``lut`` share: values, pending biases, formats, tile shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import Any

from xdsl.dialects.builtin import ArrayAttr, FusedLoc, LocationAttr, NoneAttr, TensorType, UnknownLoc
from xdsl.ir import Attribute, Block, Operation, SSAValue

from h2learn.backends.h2learn.machine import Machine
from h2learn.backends.reference.neuron import Neuron
from h2learn.compiler.mapping.limits import TileLimits
from h2learn.compiler.mapping.streams import BACKWARD, Jobs, jobs_of, share
from h2learn.compiler.mapping.tiles import ConvShape
from h2learn.compiler.mapping.vector_tiling import plan_sums
from h2learn.dialects import lut
from h2learn.dialects.lut import attributes as lut_types
from h2learn.dialects.lut.attributes import ConvGeometry, GradsType, Shape, SpikesType, StoreType, shape_of
from h2learn.dialects.sgrad import ops as sgrad
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import int_values

from .fixed_point import Known


class NoLoweringError(Exception):
    """An op that ``lut`` has no form for; the text says what was expected and found."""


@dataclass(frozen=True)
class PendingBias:
    """The bias that the neuron behind a layer will add, and where that layer comes from."""

    bias: SSAValue
    location: LocationAttr


@dataclass
class LutContext:
    """State of one lowering.

    ``values`` maps values of the training graph to ``lut`` values. ``biases`` holds, for currents, the bias that the
    neuron above will add; ``winners``, for results of ``spike.pool``, where their maxima came from; ``masks``, for
    spikes of a neuron, where the surrogate is not 0; ``gs_time``, for gradients of logits, how they reach the time
    steps. ``steps`` is T for what is computed once for all time steps. ``joined`` maps a sum of the training graph to
    the convolution that computes it by going on from the other operand; ``formats`` keeps what was converted,
    ``numbers`` which values of the training graph are fixed-point numbers.
    ``looped`` is set inside a scan, where the loop over time steps is outside the layers. ``groups`` are the numbers of
    samples that go through a training step together (nothing: inference). ``head`` holds the weights (of the training
    graph) of the linear layers that are a part of their own; ``looks_up`` tells that a layer before uses tables,
    ``apart`` which of entry and head are parts, ``short_jobs`` that backward and update work gives way to other streams
    soon.
    """

    block: Block
    machine: Machine
    limits: TileLimits
    dtype: str
    steps: int
    groups: tuple[int, ...] = ()
    values: dict[SSAValue, SSAValue] = field(default_factory=dict)
    biases: dict[SSAValue, PendingBias] = field(default_factory=dict)
    winners: dict[SSAValue, SSAValue] = field(default_factory=dict)
    masks: dict[SSAValue, SSAValue] = field(default_factory=dict)
    gs_time: dict[SSAValue, str] = field(default_factory=dict)
    copies: dict[SSAValue, SSAValue] = field(default_factory=dict)
    losses: dict[SSAValue, lut.LossOp] = field(default_factory=dict)
    joined: dict[SSAValue, SSAValue] = field(default_factory=dict)
    formats: dict[tuple[SSAValue, Attribute], SSAValue] = field(default_factory=dict)
    numbers: Known = field(default_factory=dict)
    looped: bool = False
    head: frozenset[SSAValue] = frozenset()
    looks_up: bool = False
    short_jobs: bool = False
    apart: tuple[str, ...] = ()

    def emit(self, op: lut.LutOp) -> None:
        """Append ``op``."""
        self.block.add_op(op)

    def of(self, value: SSAValue) -> SSAValue:
        """Return the ``lut`` value of ``value``, which must not be a current that still waits for its bias."""
        found = self.values[value]
        if found in self.biases:
            raise NoLoweringError("expected a neuron (or pooling and a neuron) behind a layer with bias")
        return found

    def goes_onto(self, value: SSAValue, result: Shape) -> bool:
        """Whether sums of the shape ``result`` can go on from ``value``; one without time serves a loop over time."""
        if value not in self.values:
            return False
        found = shape(self.values[value])
        return found == result or (self.looped and found == result[1:])

    def plain(self, value: SSAValue) -> SSAValue:
        """Return the ``lut`` value of ``value`` in fp32; a bias that it waits for stays pending."""
        return self.single(self.values[value], parameter_location(value))

    def single(self, found: SSAValue, location: LocationAttr) -> SSAValue:
        """Return a ``lut`` value in fp32."""
        return found if is_tensor(found) else self._converted(found, lut.tensor(shape(found)), location)

    def stored(self, value: SSAValue) -> SSAValue:
        """Return what a convolution reads: spikes or reals in storage type, a current with its bias rounded to it."""
        found = self.values[value]
        if not is_tensor(found):
            return self.of(value)
        pending = self.biases.get(found)
        bias = None if pending is None else pending.bias
        return self._converted(found, StoreType(shape(found), self.dtype), parameter_location(value), bias)

    def real(self, value: SSAValue) -> SSAValue:
        """Return spikes or stored values as reals in storage type."""
        found = self.of(value)
        if is_real(found):
            return found
        return self._converted(found, StoreType(shape(found), self.dtype), parameter_location(value))

    def biased(self, value: SSAValue) -> SSAValue:
        """Return a current with the bias that it waits for."""
        found, pending = self.values[value], self.biases[self.values[value]]
        return self._converted(found, lut.tensor(shape(found)), parameter_location(value), pending.bias)

    def slots(self, gradient: SSAValue) -> SSAValue:
        """Return a gradient as the engines read it: bitmap and live values in storage type."""
        found = self.of(gradient)
        if isinstance(found.type, GradsType):
            return found
        return self._converted(found, GradsType(shape(found), self.dtype), parameter_location(gradient))

    def join_biases(self, first: PendingBias | None, second: PendingBias | None) -> PendingBias | None:
        """Return the sum of what two currents wait for."""
        if first is None or second is None:
            return first or second
        location = fused(first.location, second.location)
        total = lut.AddOp(first.bias, second.bias, first.bias.type, location)
        self.emit(total)
        return PendingBias(total.result, location)

    def _converted(
        self, value: SSAValue, type_: Attribute, location: LocationAttr, bias: SSAValue | None = None
    ) -> SSAValue:
        key = (value, type_)
        if key not in self.formats:
            op = lut.ConvertOp(value, type_, location) if bias is None else lut.AddOp(value, bias, type_, location)
            self.emit(op)
            self.formats[key] = op.result
        return self.formats[key]

    def weight(self, parameter: SSAValue) -> SSAValue:
        """Return the weights as a convolution reads them: the parameter itself, its fp16 copy, or what holds them."""
        master = self.values[parameter]
        if self.dtype == "f32" or isinstance(parameter.owner, spike.EmbedOp):
            return master
        if master not in self.copies:
            cast = lut.CastOp(master, self.dtype, parameter_location(parameter))
            self.emit(cast)
            self.copies[master] = cast.w
        return self.copies[master]

    def sum_block(self, value: SSAValue) -> lut.Block:
        """Return the (steps, samples, rows, columns) in which sums per channel over ``value`` are split."""
        sizes = shape_of(value.type)
        item = 4 if self.dtype == "f32" else 2
        planned = plan_sums(sizes if len(sizes) == 5 else (1, *sizes), item, self.chip(BACKWARD), self.limits)
        return planned.reduce_block

    @property
    def group(self) -> int | None:
        """The samples of the largest group (None: inference)."""
        return max(self.groups, default=None)

    @property
    def common(self) -> int | None:
        """The most samples that every group has a multiple of (None: inference)."""
        return gcd(*self.groups) if self.groups else None

    def chip(self, part: str) -> Machine:
        """Return the machine with the memory that ``part`` of a training step has; inference has all of it."""
        return share(self.machine, None if self.group is None else part, self.apart)

    def jobs(self, part: str) -> Jobs:
        """Return how the jobs of ``part`` stand to those of other streams."""
        return jobs_of(part, short=self.short_jobs)

    def conv_shape(
        self,
        inputs: Shape,
        geometry: ConvGeometry,
        k: int,
        *,
        real: bool,
        onto: SSAValue | None = None,
        whole: bool = False,
    ) -> ConvShape:
        """Return what the mapper needs to know of a convolution of ``inputs`` ``[(T,)N,H,W,C]`` to ``k`` channels.

        It sees a group of samples, or the ``whole`` batch.
        """
        n, height, width, channels = inputs[-4:]
        out_h, out_w = geometry.extent(height, width)
        return ConvShape(
            steps=inputs[0] if len(inputs) == 5 else self.steps,
            batch=n if self.group is None or whole else self.group,
            in_h=height,
            in_w=width,
            c=channels,
            out_h=out_h,
            out_w=out_w,
            k=k,
            kernel=geometry.kernel,
            stride=geometry.stride,
            padding=geometry.padding,
            real=real,
            static=len(inputs) == 4,
            item=4 if self.dtype == "f32" else 2,
            onto="" if onto is None else format_name(onto),
        )


Lowering = Callable[[LutContext, Operation], Sequence[SSAValue]]
"""Emits ``lut`` ops for one op and returns the ``lut`` value of each of its results; raises NoLoweringError."""


def neuron_constants(neuron: Neuron, *, fires: bool) -> lut_types.Neuron:
    """Return the constants as the vector unit takes them: the leak as an offset, the drive in one word."""
    drive = {"none": "scaled", "immediate": "synapse", "delayed": "delayed"}[neuron.synapse]
    driven: dict[str, Any] = {}
    if not neuron.is_driven_plainly:
        names = ("gain", "offset", "initial", "beta")
        driven = {"drive": drive, **{name: getattr(neuron, name) for name in names}}
    if not fires:
        return lut_types.Neuron(neuron.alpha, **driven)
    return lut_types.Neuron(
        neuron.alpha,
        neuron.theta,
        neuron.v_reset,
        neuron.reset,
        neuron.compare,
        neuron.surrogate,
        neuron.width,
        neuron.height,
        neuron.detach_reset,
        most=neuron.max_spikes if neuron.counts else None,
        lowest=neuron.v_min,
        periodic=neuron.periodic,
        **driven,
    )


def lifted(shape: Sequence[int]) -> Shape:
    """Return a shape of the training graph with H and W: features ``[(T,)N,C]`` become ``[(T,)N,1,1,C]``."""
    return tuple(shape) if len(shape) > 3 else (*shape[:-1], 1, 1, shape[-1])


def window_of(op: Operation, kernel: Sequence[int]) -> ConvGeometry:
    """Return the geometry of an op with ``stride`` and perhaps ``padding``."""
    padding = int_values(op.properties, "padding", 2) if "padding" in op.properties else (0, 0)
    return ConvGeometry(pair(kernel), pair(int_values(op.properties, "stride", 2)), pair(padding))


def pair(values: Sequence[int]) -> tuple[int, int]:
    """Return two numbers as a pair."""
    first, second = values
    return first, second


def is_real(value: SSAValue) -> bool:
    """Whether a ``lut`` value goes to the multipliers rather than the look-up tables."""
    return isinstance(value.type, StoreType)


def is_tensor(value: SSAValue) -> bool:
    """Whether a ``lut`` value is a plain fp32 tensor."""
    return isinstance(value.type, TensorType)


def format_name(value: SSAValue) -> str:
    """Return what the mapper calls the format of a ``lut`` value."""
    if isinstance(value.type, SpikesType):
        return "bits"
    if isinstance(value.type, GradsType):
        return f"slots.{value.type.dtype}"
    return value.type.dtype if isinstance(value.type, StoreType) else "f32"


def parameter_location(value: SSAValue) -> LocationAttr:
    """Return where a value of the training graph comes from."""
    owner = value.owner
    if isinstance(owner, Operation):
        return owner.location
    return next(argument.location for argument in owner.args if argument is value)


def only_user(value: SSAValue) -> Operation | None:
    """Return the op that alone reads a value of the training graph, None when there are several or none."""
    users = [use.operation for use in value.uses]
    return users[0] if len(users) == 1 else None


def other_term(op: spike.AddOp | sgrad.AddOp, term: SSAValue) -> SSAValue:
    """Return the operand of a sum that is not ``term``."""
    return op.rhs if op.lhs is term else op.lhs


def fused(*locations: LocationAttr) -> LocationAttr:
    """Return one location for an op that several ops merge into."""
    known = list(dict.fromkeys(place for place in locations if not isinstance(place, UnknownLoc)))
    if len(known) < 2:
        return known[0] if known else UnknownLoc()
    return FusedLoc(ArrayAttr(known), NoneAttr())


def shape(value: SSAValue) -> Shape:
    """Return the shape of a value."""
    return shape_of(value.type)
