"""Makes ``spike`` modules from layer calls in PyTorch's order of dimensions.

Every frontend describes its layers to a :class:`NetworkBuilder`, which makes the channels-last ops and the io entries
that translate between the two layouts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from xdsl.dialects import builtin, func
from xdsl.ir import Attribute, Block, BlockArgument, Operation, Region, SSAValue

from h2learn.backends.h2learn.errors import H2LearnError, Location
from h2learn.backends.reference.coding import Dropout
from h2learn.backends.reference.neuron import Neuron
from h2learn.compiler.model import Network, TensorSpec
from h2learn.dialects.common import PRECISION_ATTRIBUTE, IoEntry, file_location, set_io
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import SCALARS, SPIKE_READOUTS, InferredOp, real, spikes, tensor_type
from h2learn.dialects.spike.scan import scans, without_unused_values

MAX_ELEMENTS = 1 << 40
MAX_PARAMETERS = 1 << 28


@dataclass(frozen=True)
class Signal:
    """A value between layers; ``maps`` is (C, H, W) when its features are flattened maps."""

    value: SSAValue
    maps: tuple[int, int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Device shape, channels last."""
        return tuple(tensor_type(self.value.type).get_shape())

    @property
    def is_spikes(self) -> bool:
        """Whether the elements are spikes, at most one per step."""
        return tensor_type(self.value.type).element_type == builtin.i1

    @property
    def counts_spikes(self) -> bool:
        """Whether the elements are the spikes of neurons that may have several per step."""
        owner, value = self.value.owner, self.value
        while isinstance(owner, spike.FlattenOp | spike.DelayOp | spike.ScanOp):
            value = owner.yielded[owner.outputs.index(value)] if isinstance(owner, spike.ScanOp) else owner.operands[0]
            owner = value.owner
        return isinstance(owner, spike.LifOp) and value is owner.s

    def describe(self) -> str:
        """Return one sample's shape as the user writes it."""
        shape = self.shape[2:] if len(self.shape) in (3, 5) else self.shape[1:]
        return " x ".join(map(str, (shape[-1], *shape[:-1]))) + (" spikes" if self.is_spikes else " reals")


@dataclass(frozen=True)
class Learned:
    """Which constants of neurons are parameters, and how these give them: kinds of ``spike.neuron_row``, or nothing.

    ``per_channel``: ``"decay"``, ``"threshold"`` where there is a parameter for each channel.
    """

    decay: str = ""
    threshold: str = ""
    per_channel: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.decay or self.threshold)


class NetworkBuilder:
    """Collects layers; every method takes the place in the source and raises H2LearnError there."""

    def __init__(self, batch: int) -> None:
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise H2LearnError(f"expected a batch of at least 1 sample, found {batch!r}")
        self._batch = batch
        self._main = Block()
        self._block = self._main
        self._entries: dict[str, list[IoEntry]] = {"input": [], "parameter": [], "scalars": [], "output": []}
        self._inputs: dict[str, TensorSpec] = {}
        self._outputs: dict[str, TensorSpec] = {}
        self._parameters: dict[str, TensorSpec] = {}
        self._constants: dict[str, float] = {}
        self._results: list[SSAValue] = []
        self._streams = 0
        self._rows: set[SSAValue] = set()

    def input(
        self,
        name: str,
        shape: Sequence[int],
        location: Location,
        *,
        time_steps: int | None = None,
        binary: bool = False,
        time_axis: int = 0,
        folded: bool = False,
        bits: int = 0,
    ) -> Signal:
        """Add an input of one sample's ``shape`` (F), (C, L) or (C, H, W).

        With ``time_steps`` it is ``[T,N,...]``, or ``[N,...]`` with time inserted at ``time_axis``; where it is
        ``folded``, those two are one dimension. (C, L) are maps of one row, on which windows have one row, too.
        ``bits``: values are multiples of ``2^-bits`` from 0 to below 1.
        """
        if len(shape) not in (1, 2, 3):
            raise H2LearnError(
                f"expected an input F, C x L or C x H x W, found {len(shape)} dimensions", location=location
            )
        outer = [self._batch] if time_steps is None else [time_steps, self._batch]
        row = len(shape) == 2
        if row and time_axis and not folded:
            raise H2LearnError(f"expected time as first dimension of the rows {name}, found another order")
        maps = (shape[0], 1, shape[1]) if row else tuple(shape)
        device = (*outer, *maps[1:], maps[0])
        _check_size(f"input {name}", device, location)
        order = _channels_last(len(outer)) if len(maps) == 3 else ()
        source, view = (*outer, *shape), (*outer, *maps) if row else ()
        if time_axis and time_steps is not None:
            order = _time_moved(order or tuple(range(len(device))), time_axis)
            source = (*source[1 : time_axis + 1], source[0], *source[time_axis + 1 :])
        lead: tuple[int, ...] = ()
        if folded and time_steps is not None:
            lead = _folded(time_steps, time_axis)
            source, view = (source[0] * source[1], *shape), (*lead, *maps)
        entry = IoEntry(name, "input", view, order, bits)
        value = self._argument(entry, spikes(device) if binary else real(device), location)
        self._rows |= {value} if row else set()
        self._inputs[name] = TensorSpec(source, "bool" if binary else "float32", bits, lead)
        return Signal(value)

    def is_row(self, x: Signal) -> bool:
        """Whether a signal has maps (C, L) rather than (C, H, W)."""
        return x.value in self._rows

    def encode(self, x: Signal, kind: str, time_steps: int, location: Location) -> Signal:
        """Present reals ``[N,...]`` for ``time_steps`` steps, ``direct`` or as ``bernoulli`` spikes."""
        _check_size("the encoded input", (time_steps, *x.shape), location)
        if kind == "direct":
            return self._add(spike.EncodeOp(x.value, kind, time_steps, location=_mark(location)), location)
        if not self._entries["scalars"]:
            self._argument(IoEntry("scalars", "scalars"), SCALARS, location)
        scalars, stream = self._main.args[-1], self._next_stream()
        op = spike.EncodeOp(x.value, kind, time_steps, scalars=scalars, stream=stream, location=_mark(location))
        return self._add(op, location)

    def conv(
        self,
        x: Signal,
        name: str,
        channels: int,
        location: Location,
        *,
        kernel: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        bias: bool = True,
        names: tuple[str, str] | None = None,
    ) -> Signal:
        """Add a convolution with parameters ``name.weight`` ``[K,C/groups,kh,kw]`` and ``name.bias`` ``[K]``.

        On maps of one row (:meth:`is_row`) windows have one row and weights are ``[K,C/groups,kw]``. ``names`` are
        those of the two parameters, where they are others.
        """
        _expect_maps(x, f"conv {name}", location)
        assert not self.is_row(x) or (kernel[0], stride[0], padding[0]) == (1, 1, 0)
        rows, columns, channels_in = x.shape[-3:]
        span = ((kernel[0] - 1) * dilation[0] + 1, (kernel[1] - 1) * dilation[1] + 1)
        if rows + 2 * padding[0] < span[0] or columns + 2 * padding[1] < span[1]:
            raise H2LearnError(
                f"expected an input of conv {name} of at least {span[0]} x {span[1]} after padding, "
                f"found {rows + 2 * padding[0]} x {columns + 2 * padding[1]}",
                location=location,
            )
        if channels_in % groups or channels % groups:
            raise H2LearnError(
                f"expected channels of conv {name} that {groups} groups divide, found {channels_in} to {channels}",
                location=location,
            )
        inner = channels_in // groups
        weight_name, bias_name = names or (f"{name}.weight", f"{name}.bias")
        source: tuple[int, ...] = (channels, inner, *kernel)
        view: tuple[int, ...] = ()
        if self.is_row(x):
            source, view = (channels, inner, kernel[1]), source
        weight = self._parameter(weight_name, source, (*kernel, inner, channels), view, (2, 3, 1, 0), location)
        if groups > 1 or dilation != (1, 1):
            weight = self._add(spike.EmbedOp(weight, dilation, groups, location=_mark(location)), location).value
        offset = self._bias(bias_name, channels, location) if bias else None
        result = spike.ConvOp(x.value, weight, offset, stride=stride, padding=padding, location=_mark(location))
        return self._add(result, location, name)

    def linear(
        self,
        x: Signal,
        name: str,
        features: int,
        location: Location,
        *,
        bias: bool = True,
        names: tuple[str, str] | None = None,
        inputs_first: bool = False,
    ) -> Signal:
        """Add a fully connected layer with parameters ``name.weight`` ``[out,in]`` and ``name.bias`` ``[out]``.

        The weights of flattened maps keep PyTorch's order of the inputs (channel, row, column). ``names`` are those of
        the two parameters, where they are others; with ``inputs_first`` the weights are ``[in,out]``.
        """
        _expect_features(x, f"linear {name}", location)
        inner = x.shape[-1]
        view: tuple[int, ...] = (features, *x.maps) if x.maps else ()
        perm: tuple[int, ...] = (2, 3, 1, 0) if x.maps else (1, 0)
        source = (features, inner)
        if inputs_first:
            view, perm = ((*x.maps, features), (1, 2, 0, 3)) if x.maps else ((), ())
            source = (inner, features)
        weight_name, bias_name = names or (f"{name}.weight", f"{name}.bias")
        weight = self._parameter(weight_name, source, (inner, features), view, perm, location)
        offset = self._bias(bias_name, features, location) if bias else None
        return self._add(spike.LinearOp(x.value, weight, offset, location=_mark(location)), location, name)

    def pool(
        self,
        x: Signal,
        kind: str,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        location: Location,
        *,
        padding: tuple[int, int] = (0, 0),
    ) -> Signal:
        """Add ``max``, ``avg`` or ``sum`` pooling; sizes round down.

        Padding counts as zeros in averages and sums; in a maximum it takes no part.
        """
        _expect_maps(x, "pool", location)
        rows, columns = x.shape[-3:-1]
        if 2 * padding[0] > kernel[0] or 2 * padding[1] > kernel[1]:
            raise H2LearnError(
                f"expected a padding of pool of at most half the window {kernel[0]} x {kernel[1]}, "
                f"found {padding[0]} x {padding[1]}",
                location=location,
            )
        if rows + 2 * padding[0] < kernel[0] or columns + 2 * padding[1] < kernel[1]:
            raise H2LearnError(
                f"expected an input of pool of at least {kernel[0]} x {kernel[1]}"
                f"{' after padding' if any(padding) else ''}, "
                f"found {rows + 2 * padding[0]} x {columns + 2 * padding[1]}",
                location=location,
            )
        return self._add(spike.PoolOp(x.value, kind, kernel, stride, padding, location=_mark(location)), location)

    def whole_map(self, x: Signal, location: Location) -> tuple[int, int]:
        """Return the rows and columns of maps, the window of global pooling."""
        _expect_maps(x, "pool", location)
        rows, columns = x.shape[-3:-1]
        return rows, columns

    def add(self, terms: Sequence[Signal], location: Location, name: str = "") -> Signal:
        """Add values of one shape from left to right: currents in front of a neuron, or spikes, which count 1."""
        total, *others = terms
        for term in others:
            if (term.shape, term.maps) != (total.shape, total.maps):
                raise H2LearnError(
                    f"expected values of one shape to add, found {total.describe()} and {term.describe()}",
                    location=location,
                    hint="a 1 x 1 conv with a stride fits the shape of a shortcut",
                )
            op = spike.AddOp(total.value, term.value, location=_mark(location))
            total = replace(self._add(op, location, name), maps=total.maps)
        return total

    def concat(self, parts: Sequence[Signal], location: Location, name: str = "") -> Signal:
        """Put the channels of maps, or features, side by side."""
        shapes = {part.shape[:-1] for part in parts}
        if len(shapes) > 1 or any(part.maps for part in parts):
            raise H2LearnError(
                f"expected values that differ in channels only, found {' and '.join(p.describe() for p in parts)}",
                location=location,
                hint="concatenate maps before `flatten`" if any(part.maps for part in parts) else "",
            )
        return self._add(spike.ConcatOp([part.value for part in parts], location=_mark(location)), location, name)

    def gate(self, x: Signal, by: Signal, kind: str, location: Location, name: str = "") -> Signal:
        """Let values through where the spikes ``by`` of one shape are (``keep``), or are not (``drop``); others are 0.

        Gradients pass to both where ``x`` are spikes, else to ``x`` alone.
        """
        if not by.is_spikes:
            raise H2LearnError(
                f"expected spikes as the second value of a gate, found {by.describe()}", location=location
            )
        if (x.shape, x.maps) != (by.shape, by.maps):
            raise H2LearnError(
                f"expected spikes of the shape of {x.describe()} for a gate, found {by.describe()}", location=location
            )
        op = spike.GateOp(x.value, by.value, kind, location=_mark(location))
        return replace(self._add(op, location, name), maps=x.maps)

    def batch_norm(
        self,
        x: Signal,
        name: str,
        location: Location,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        gain: float = 1.0,
        names: tuple[str, str, str, str] | None = None,
    ) -> Signal:
        """Add batch normalisation with parameters and running statistics ``[C]``.

        They are called ``name.weight``, ``name.bias``, ``name.running_mean`` and ``name.running_var``, or ``names``. A
        fresh model has the weights ``gain``.
        """
        _expect_currents(x, f"batchnorm {name}", location)
        called = names or tuple(f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))
        rows = [self._bias(one, x.shape[-1], location) for one in called]
        self._constants |= {called[0]: gain, called[3]: 1.0}
        weight, shift, mean, variance = rows
        mark = _mark(location)
        op = spike.BatchNormOp(x.value, weight, shift, mean, variance, eps=eps, momentum=momentum, location=mark)
        return replace(self._add(op, location, name), maps=x.maps)

    def dropout(
        self, x: Signal, probability: float, location: Location, *, every_step: bool = False, name: str = ""
    ) -> Signal:
        """Set values to 0 with a ``probability`` in training and scale the others, for all time steps alike.

        ``every_step``: drawn anew at each step. Spikes become reals.
        """
        if not 0 <= probability < 1:
            raise H2LearnError(
                f"expected a probability of dropout from 0 to below 1, found {probability:g}", location=location
            )
        if every_step and len(x.shape) not in (3, 5):
            raise H2LearnError(
                f"expected a value over time for a dropout drawn at every step, found {x.describe()}", location=location
            )
        what = Dropout(probability, self._next_stream(), every_step)
        return replace(self._add(spike.DropoutOp(x.value, what, location=_mark(location)), location, name), maps=x.maps)

    def flatten(self, x: Signal, location: Location) -> Signal:
        """Turn maps into features."""
        _expect_maps(x, "flatten", location)
        height, width, channels = x.shape[-3:]
        flat = self._add(spike.FlattenOp(x.value, location=_mark(location)), location)
        return replace(flat, maps=(channels, height, width))

    def unflattened(self, x: Signal) -> Signal:
        """Return the maps that :meth:`flatten` turned into features."""
        owner = x.value.owner
        assert isinstance(owner, spike.FlattenOp)
        return Signal(owner.operands[0])

    def potentials(self, spikes: Signal) -> Signal:
        """Return the membrane potentials of neurons, before the reset, from the spikes that :meth:`lif` returned."""
        op = spikes.value.owner
        if isinstance(op, spike.ScanOp):
            inner = op.yielded[op.outputs.index(spikes.value)].owner
            assert isinstance(inner, spike.LifOp)
            return replace(spikes, value=op.outputs[op.yielded.index(inner.u)])
        assert isinstance(op, spike.LifOp)
        return replace(spikes, value=op.u)

    def lif(
        self, x: Signal, neuron: Neuron, location: Location, name: str = "", learned: Learned | None = None
    ) -> Signal:
        """Add spiking neurons and return their spikes, as reals where a step may have several.

        A hard reset of such neurons is detached: no gradient of a number of spikes goes through it.
        What is ``learned`` becomes the parameters ``name.decay`` and ``name.threshold`` ``[1]``, or ``[K]`` per
        channel, which a fresh model has as the neuron says.
        """
        _expect_currents(x, f"lif {name}".rstrip(), location)
        if neuron.counts and neuron.reset == "hard":
            neuron = replace(neuron, detach_reset=True)
        reason = neuron.reason_against()
        if reason:
            raise H2LearnError(f"{reason}{f' of {name}' * bool(name)}", location=location)
        rows = self._learned_rows(x, neuron, name, learned, location) if learned else (None, None)
        op = spike.LifOp(x.value, neuron, *rows, location=_mark(location))
        return replace(self._add(op, location, name), maps=x.maps)

    def _learned_rows(
        self, x: Signal, neuron: Neuron, name: str, learned: Learned, location: Location
    ) -> tuple[SSAValue | None, SSAValue | None]:
        if not name:
            raise H2LearnError("expected a name of neurons whose constants are learned, found none", location=location)
        if not neuron.is_driven_plainly:
            raise H2LearnError(
                f"expected no gain, leak, initial potential or synapse of {name}, whose constants are learned",
                location=location,
            )
        if not neuron.may_learn:
            raise H2LearnError(
                f"expected one spike per step and no lower bound of {name}, whose constants are learned",
                location=location,
            )
        channels, found = x.shape[-1], list[SSAValue | None]()
        for constant, values in (("decay", neuron.alpha), ("threshold", neuron.theta)):
            kind, per_channel = getattr(learned, constant), constant in learned.per_channel
            if not kind:
                found.append(None)
                continue
            if len(values) > 1:
                raise H2LearnError(
                    f"expected one initial {constant} of the neurons {name}, found several", location=location
                )
            parameter = self._bias(f"{name}.{constant}", channels if per_channel else 1, location)
            self._constants[f"{name}.{constant}"] = _parameter_value(values[0], kind, name, location)
            row = spike.NeuronRowOp(parameter, kind, channels, location=_mark(location))
            found.append(self._add(row, location, f"{name}_{constant}").value)
        decay, threshold = found
        return decay, threshold

    def li(self, x: Signal, membrane: Neuron | float, location: Location, name: str = "") -> Signal:
        """Add leaky integrators of currents or spikes and return their potentials; a number is a plain decay."""
        neuron = membrane if isinstance(membrane, Neuron) else Neuron(alpha=(float(membrane),))
        return replace(self._add(spike.LiOp(x.value, neuron, location=_mark(location)), location, name), maps=x.maps)

    def recurrent(
        self,
        x: Signal,
        name: str,
        neurons: Callable[[Signal], Signal],
        location: Location,
        *,
        bias: bool = False,
        names: tuple[str, str] | None = None,
        inputs_first: bool = False,
        counted: bool = False,
    ) -> Signal:
        """Add neurons that also read their own spikes of the step before, all of them through weights.

        ``neurons`` adds them to the current ``x[t] + V s[t-1]`` and returns their spikes, bits or ``counted`` ones.
        Parameters are those of :meth:`linear` with as many inputs as outputs: ``name.weight`` ``[K,K]`` and, with
        ``bias``, ``name.bias``.
        """
        _expect_features(x, f"recurrent {name}", location)
        _expect_currents(x, f"recurrent {name}", location)
        if x.maps:
            raise H2LearnError(
                f"expected features as input of recurrent {name}, found flattened maps {x.describe()}",
                location=location,
                hint="add `linear` before it",
            )
        outer, mark = self._block, _mark(location)
        body = Block()
        current = body.insert_arg(x.value.type, 0, mark)
        before = body.insert_arg(real(x.shape) if counted else spikes(x.shape), 1, mark)
        self._block = body
        try:
            fed = self.linear(
                Signal(before), name, x.shape[-1], location, bias=bias, names=names, inputs_first=inputs_first
            )
            result = neurons(self._add(spike.AddOp(current, fed.value, location=mark), location))
        finally:
            self._block = outer
        owner = result.value.owner
        others = owner.results if isinstance(owner, Operation) else ()
        body.add_op(spike.YieldOp(list(dict.fromkeys((result.value, *others))), location=mark))
        scan = spike.ScanOp([x.value], body, location=mark)
        outer.add_op(scan)
        scan.outputs[0].name_hint = result.value.name_hint
        return Signal(scan.outputs[0])

    def delay(self, x: Signal, steps: Sequence[int], location: Location) -> Signal:
        """Delay spikes or reals by a number of time steps, or by one per channel; 0 before the first step."""
        if len(x.shape) not in (3, 5):
            raise H2LearnError(f"expected a value over time to delay, found {x.describe()}", location=location)
        return replace(self._add(spike.DelayOp(x.value, steps, location=_mark(location)), location), maps=x.maps)

    def readout(self, x: Signal, kind: str, location: Location) -> Signal:
        """Reduce features over time to logits ``[N,K]``."""
        _expect_features(x, "readout", location)
        of_spikes, counted = kind in SPIKE_READOUTS, x.counts_spikes
        if (x.is_spikes or counted) != of_spikes:
            wanted = "spikes" if of_spikes else "membrane potentials"
            hint = "use `readout membrane mean`" if of_spikes else "use `readout rate`, or `li` as last layer"
            raise H2LearnError(
                f"expected {wanted} as input of readout {kind.replace('_', ' ')}, found {x.describe()}",
                location=location,
                hint=hint,
            )
        return replace(self._add(spike.ReadoutOp(x.value, kind, location=_mark(location)), location), maps=x.maps)

    def output(
        self, name: str, x: Signal, time_axis: int = 0, kept_axis: int | None = None, *, folded: bool = False
    ) -> None:
        """Make ``x`` the output ``name``, in the source's order of dimensions, with time at ``time_axis``.

        ``folded``: time and samples are one dimension of the source. ``kept_axis``: where logits ``[N,K]`` have a
        dimension of 1 in the source.
        """
        shape = x.shape
        rank = len(shape)
        time = rank in (3, 5)
        outer = shape[:2] if time else shape[:1]
        view: tuple[int, ...] = ()
        perm: tuple[int, ...] = ()
        source = shape
        if self.is_row(x):
            source, view = (*outer, shape[-1], shape[-2]), (*outer[:-1], -1, shape[-1], 1, shape[-2])
            perm = _channels_last(len(outer))
        elif rank >= 4:
            source, perm = (*outer, shape[-1], *shape[-3:-1]), _channels_last(len(outer))
        elif x.maps:
            view, perm = (*outer[:-1], -1, *x.maps), _channels_last(len(outer))
        if time_axis and time and view and not folded:
            kind = "rows" if self.is_row(x) else "flattened maps"
            raise H2LearnError(f"expected time as first dimension of the {kind} {name}, found another order")
        if time_axis and time:
            perm = _time_moved(perm or tuple(range(rank)), time_axis)
            source = (*source[1 : time_axis + 1], source[0], *source[time_axis + 1 :])
        lead: tuple[int, ...] = ()
        if folded and time:
            lead = _folded(outer[0], time_axis)
            source, view = (source[0] * source[1], *source[2:]), (*lead, *(view[2:] or source[2:]))
        if kept_axis is not None:
            assert rank == 2
            view, source = source, (*source[:kept_axis], 1, *source[kept_axis:])
        self._entries["output"].append(IoEntry(name, "output", view, perm))
        self._outputs[name] = TensorSpec(tuple(source), "bool" if x.is_spikes else "float32", folded=lead)
        self._results.append(x.value)

    def finish(self, name: str, location: Location) -> Network:
        """Return the network; the builder must not be used afterwards."""
        mark = _mark(location)
        end = func.ReturnOp(*self._results)
        end.location = mark
        self._block.add_op(end)
        for scan in scans(self._block):
            without_unused_values(scan)
        types = [a.type for a in self._block.args], [r.type for r in self._results]
        main = func.FuncOp("main", types, Region(self._block))
        main.location = mark
        module = builtin.ModuleOp([main], sym_name=builtin.StringAttr(name))
        module.location = mark
        module.attributes[PRECISION_ATTRIBUTE] = builtin.StringAttr("fp32")
        set_io(module, [entry for entries in self._entries.values() for entry in entries])
        module.verify()
        return Network(module, self._inputs, self._outputs, self._parameters, self._constants)

    def _next_stream(self) -> int:
        stream, self._streams = self._streams, self._streams + 1
        return stream

    def _bias(self, name: str, channels: int, location: Location) -> SSAValue:
        return self._parameter(name, (channels,), (channels,), (), (), location)

    def _parameter(
        self,
        name: str,
        source: tuple[int, ...],
        device: tuple[int, ...],
        view: tuple[int, ...],
        perm: tuple[int, ...],
        location: Location,
    ) -> SSAValue:
        if name in self._parameters:
            raise H2LearnError(f"expected one parameter {name}, found two", location=location)
        total = sum(math.prod(p.shape) for p in self._parameters.values()) + math.prod(source)
        if total > MAX_PARAMETERS:
            raise H2LearnError(
                f"expected at most {MAX_PARAMETERS} parameters, found {total} with {name}", location=location
            )
        self._parameters[name] = TensorSpec(source)
        return self._argument(IoEntry(name, "parameter", view, perm), real(device), location)

    def _argument(self, entry: IoEntry, kind: Attribute, location: Location) -> BlockArgument:
        """Insert an argument behind those of its role."""
        roles = list(self._entries)[: list(self._entries).index(entry.role) + 1]
        position = sum(len(self._entries[role]) for role in roles)
        argument = self._main.insert_arg(kind, position, _mark(location))
        argument.name_hint = _hint(entry.name)
        self._entries[entry.role].append(entry)
        return argument

    def _add(self, op: InferredOp, location: Location, name: str = "") -> Signal:
        self._block.add_op(op)
        result = op.results[0]
        if name:
            result.name_hint = _hint(name)
        signal = Signal(result)
        _check_size(name or op.name, signal.shape, location)
        if len(signal.shape) >= 4 and not self._rows.isdisjoint(op.operands):
            self._rows.update(op.results)
        return signal


def _parameter_value(value: float, kind: str, name: str, location: Location) -> float:
    """Return the parameter whose constant is ``value``."""
    if kind not in ("sigmoid", "falling"):
        return value
    if not 0 < value < 1:
        raise H2LearnError(
            f"expected an initial decay between 0 and 1 of the neurons {name}, found {value:g}",
            location=location,
            hint="a sigmoid is never 0 or 1",
        )
    return math.log(value / (1 - value)) * (1 if kind == "sigmoid" else -1)


def initial_parameters(network: Network, gain: float, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """Return normal(0, gain / sqrt(fan_in)) weights, the network's constants and zeros, the same for one ``seed``."""
    result = {}
    for index, (name, spec) in enumerate(network.parameters.items()):
        if len(spec.shape) == 1:
            result[name] = np.full(spec.shape, network.constants.get(name, 0.0), dtype=np.float32)
            continue
        deviation = gain / math.sqrt(math.prod(spec.shape[1:]))
        generator = np.random.default_rng([seed, index])
        result[name] = (generator.standard_normal(spec.shape) * deviation).astype(np.float32)
    return result


def _hint(name: str) -> str:
    """Return a name that the IR's text allows."""
    word = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return word if word[:1].isalpha() else f"n{word}"


def _mark(location: Location) -> builtin.FileLineColLoc:
    return file_location(location.file, location.line, location.column)


def _channels_last(outer: int) -> tuple[int, ...]:
    return (*range(outer), outer + 1, outer + 2, outer)


def _time_moved(order: tuple[int, ...], time_axis: int) -> tuple[int, ...]:
    """Return the order of a source whose time stands at ``time_axis`` instead of first."""
    places = [time_axis, *range(time_axis), *range(time_axis + 1, len(order))]
    return tuple(places[axis] for axis in order)


def _folded(time_steps: int, time_axis: int) -> tuple[int, int]:
    """Return what a first dimension is made of that holds time and samples; -1 are the samples."""
    return (-1, time_steps) if time_axis else (time_steps, -1)


def _check_size(what: str, shape: Sequence[int], location: Location) -> None:
    if min(shape) < 1 or math.prod(shape) > MAX_ELEMENTS:
        raise H2LearnError(
            f"expected {what} of 1 to {MAX_ELEMENTS} numbers, found {' x '.join(map(str, shape))}", location=location
        )


def _expect_maps(x: Signal, layer: str, location: Location) -> None:
    if len(x.shape) < 4:
        raise H2LearnError(
            f"expected maps C x H x W as input of {layer}, found {x.describe()}",
            location=location,
            hint="layers on maps come before `flatten`",
        )


def _expect_features(x: Signal, layer: str, location: Location) -> None:
    if len(x.shape) > 3:
        raise H2LearnError(
            f"expected features as input of {layer}, found maps {x.describe()}",
            location=location,
            hint="add `flatten` before it",
        )


def _expect_currents(x: Signal, layer: str, location: Location) -> None:
    if x.is_spikes:
        raise H2LearnError(
            f"expected currents as input of {layer}, found {x.describe()}",
            location=location,
            hint="put a conv, linear or average pooling layer between neurons",
        )
