"""From layers to a network of the ``spike`` level: what it can express today, and under which names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.errors import H2LearnError, Location
from h2learn.backends.reference.neuron import Neuron
from h2learn.compiler.frontends.builder import NetworkBuilder, Signal
from h2learn.compiler.frontends.neuron_description import NeuronDescription, add_neuron, spike_neuron, summary
from h2learn.compiler.model import Network

from .graph import Constant
from .recognise import Recognised
from .roll import Layer, split_source
from .steps import StepNode, Synapse
from .values import RefusalError, time_place

Floats = npt.NDArray[np.float32]

READOUTS: dict[str, tuple[str, str]] = {
    "time_mean": ("rate", "membrane_mean"),
    "time_sum": ("count", ""),
    "time_last": ("", "membrane_last"),
    "time_max": ("", "membrane_max"),
}
"""Readout layer -> the readout of spikes (none: not possible), and of reals."""

STATISTICS = ("running_mean", "running_var")

_LOST_NAME = re.compile(r"(val_\d+.*|onnx::.*|.*::.*|/.*|.*_output_\d+|t(_\d+)?|p_?\d*|\d+|_.*|)$")


@dataclass(frozen=True)
class Output:
    """An output of the network."""

    name: str
    layer: Layer
    time_axis: int = 0
    kept_axis: int | None = None
    """Where a reduction over time has left a dimension of 1."""


@dataclass(frozen=True)
class Parameters:
    """Names of a layer's parameters; ``base`` names the layer, ``statistics`` are those of a normalization."""

    base: str
    weight: str
    bias: str
    statistics: tuple[str, ...] = ()


@dataclass
class Plan:
    """A network that can be built for any batch: layers in order, parameters, and what is to be said about them."""

    file: str
    name: str
    input_axis: int
    time_steps: int
    layers: list[Layer]
    outputs: list[Output]
    parameters: dict[str, Floats] = field(default_factory=dict)
    names: dict[Layer, Parameters] = field(default_factory=dict)
    neurons: dict[Layer, NeuronDescription] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    given: frozenset[str] = frozenset()
    """Parameters that are inputs of the file's graph: their names are the file's, whatever they look like."""

    def build(self, batch: int) -> Network:
        """Return the network for ``batch`` samples; raises H2LearnError."""
        builder = NetworkBuilder(batch)
        signals: dict[Layer, Signal] = {}
        neurons: dict[tuple[Layer, NeuronDescription, Layer | None], Signal] = {}
        for layer in self.layers:
            inputs = [signals[i] for i in layer.inputs]
            if layer.kind == "neuron":
                signals[layer] = self._neuron(builder, layer, inputs[0], neurons)
            else:
                signals[layer] = _EMIT[layer.kind](self, builder, layer, inputs)
        for output in self.outputs:
            signal = signals[output.layer]
            if output.layer.kind not in ("neuron", *READOUTS):
                signal = builder.li(signal, 0.0, self.location(output.layer), output.name)
            axis, is_folded = time_place(output.time_axis)
            builder.output(output.name, signal, axis, output.kept_axis, folded=is_folded)
        return builder.finish(self.name, Location(self.file))

    def _neuron(
        self,
        builder: NetworkBuilder,
        layer: Layer,
        x: Signal,
        known: dict[tuple[Layer, NeuronDescription, Layer | None], Signal],
    ) -> Signal:
        """Return spikes or potentials of a neuron; both of the same neuron come from one operation."""
        form = self.neurons[layer]
        key = (layer.inputs[0], form, layer.feedback)
        if key not in known:
            known[key] = self._cell(builder, layer, x, form, f"neuron{len(known) + 1}")
        assert layer.neuron is not None
        if not form.fires or layer.neuron.output == "spikes":
            return known[key]
        potentials = builder.potentials(known[key])
        return potentials if layer.neuron.output == "potentials" else self._rest(builder, layer, potentials, known[key])

    def _rest(self, builder: NetworkBuilder, layer: Layer, potentials: Signal, spikes: Signal) -> Signal:
        """Return the potentials after the reset: less what a spike takes off, or the level where there is one."""
        form, place = self.neurons[layer], self.location(layer)
        kept, level = potentials, tuple(-theta for theta in form.theta)
        if form.reset == "hard":
            kept, level = builder.gate(potentials, spikes, "drop", place), form.v_reset
        if not any(level):
            return builder.li(kept, 0.0, place)
        taken = builder.li(spikes, Neuron(alpha=(0.0,), reset="none", gain=level), place)
        return builder.li(builder.add([kept, taken], place), 0.0, place)

    def _cell(self, builder: NetworkBuilder, layer: Layer, x: Signal, form: NeuronDescription, name: str) -> Signal:
        def neurons(current: Signal) -> Signal:
            return add_neuron(builder, current, form, self.location(layer), name)

        if layer.feedback is None:
            return neurons(x)
        names, synapse = self.names[layer.feedback], layer.feedback.node.synapse
        assert synapse is not None
        return builder.recurrent(
            x,
            names.base,
            neurons,
            self.location(layer.feedback),
            bias=synapse.bias is not None,
            names=(names.weight, names.bias),
            inputs_first=synapse.inputs_first,
            counted=form.counts,
        )

    def location(self, layer: Layer) -> Location:
        """Return where a layer stands in the file: the name of its node in the first time step it occurs in."""
        return Location(f"{self.file}:{split_source(layer.node.source)[0]}")


def prepare(plan: Plan, refuse: Callable[[str, str, str, str], None]) -> None:
    """Name the parameters and choose the neurons of a plan; ``refuse`` is told what the ``spike`` level lacks."""
    for layer in plan.layers:
        try:
            if layer.kind not in (*_EMIT, "neuron"):
                raise RefusalError(_LACKING.get(layer.kind, "this layer is not supported yet"))
            _PREPARE.get(layer.kind, _nothing)(plan, layer)
        except RefusalError as error:
            name, operator = split_source(layer.node.source)
            refuse(name, operator, str(error), error.hint)


def _nothing(plan: Plan, layer: Layer) -> None:
    pass


def _prepare_synapse(plan: Plan, layer: Layer) -> None:
    node, synapse = layer.node, layer.node.synapse
    assert synapse is not None
    if layer.kind == "linear" and len(node.shape) != 2:
        raise RefusalError("a matrix product of maps is not supported", "flatten before it")
    if layer.kind == "conv":
        _check_window(node)
    names = _parameter_names(plan, layer, synapse)
    weight = _float(synapse.weight)
    if weight.ndim not in (2, 3, 4):
        raise RefusalError("only 1-D and 2-D convolutions are supported")
    plan.parameters[names.weight] = weight
    if synapse.bias is not None:
        plan.parameters[names.bias] = _float(synapse.bias)
    plan.names[layer] = names


def _prepare_norm(plan: Plan, layer: Layer) -> None:
    synapse = layer.node.synapse
    assert synapse is not None and synapse.bias is not None and synapse.statistics is not None
    names = _parameter_names(plan, layer, synapse)
    constants = (synapse.weight, synapse.bias, *synapse.statistics)
    for name, constant in zip((names.weight, names.bias, *names.statistics), constants, strict=True):
        plan.parameters[name] = _float(constant)
    plan.names[layer] = names


def _float(constant: Constant) -> Floats:
    array = constant.array.astype(np.float32)
    if not np.isfinite(array).all():
        raise RefusalError("its parameters hold values that are not finite")
    return np.ascontiguousarray(array)


def _parameter_names(plan: Plan, layer: Layer, synapse: Synapse) -> Parameters:
    """Keep the file's names; where the exporter lost one, or two layers share it, make one from the layer's."""
    parts = {"weight": synapse.weight, "bias": synapse.bias}
    if synapse.statistics is not None:
        parts |= dict(zip(STATISTICS, synapse.statistics, strict=True))
    known = [c.name for c in parts.values() if c is not None and not _is_lost(plan, c.name)]
    base = known[0].rpartition(".")[0] if known else ""
    base = base or layer.node.scope or _scope_of(split_source(layer.node.source)[0]) or f"layer{len(plan.names)}"
    found: dict[str, str] = {}
    for kind, constant in parts.items():
        name = constant.name if constant is not None else ""
        taken = {*plan.parameters, *found.values()}
        if _is_lost(plan, name) or name in taken:
            new = _free(f"{base}.{kind}", taken)
            if constant is not None and name in taken:
                plan.notes.append(f"{name} is shared by several layers: {new} is a parameter of its own")
            elif constant is not None:
                plan.notes.append(f"the exporter lost the name of {new} (it is called {name or 'nothing'})")
            name = new
        found[kind] = name
    return Parameters(base, found["weight"], found["bias"], tuple(found[k] for k in STATISTICS if k in found))


def is_a_name(name: str) -> bool:
    """Whether an initializer has a name of its model (``lif1.beta``), not one that an exporter gave it."""
    return "." in name and _LOST_NAME.match(name) is None and "lifted_tensor" not in name


def _is_lost(plan: Plan, name: str) -> bool:
    return name not in plan.given and _LOST_NAME.match(name) is not None


def _scope_of(node_name: str) -> str:
    """Return ``7`` of ``/7/MatMul``, the legacy exporter's name of a node."""
    parts = [part for part in node_name.split("/") if part]
    return parts[-2] if node_name.startswith("/") and len(parts) > 1 else ""


def _free(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        candidate, count = f"{name}_{count}", count + 1
    return candidate


def _check_window(node: StepNode) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return kernel, stride and padding of a window over maps; over rows it has one row."""
    kernel, stride, pads = [part for part in node.key if isinstance(part, tuple)][:3]
    rank = len(kernel)
    if rank > 2:
        raise RefusalError("only 1-D and 2-D windows are supported")
    if pads[:rank] != pads[rank:]:
        raise RefusalError("a padding that differs between the two sides is not supported yet")
    return _pair(kernel, 1), _pair(stride, 1), _pair(pads[:rank], 0)


def _dilation(node: StepNode) -> tuple[int, int]:
    """Return the dilation of a window."""
    return _pair([part for part in node.key if isinstance(part, tuple)][3], 1)


def _pair(sizes: Sequence[int], down: int) -> tuple[int, int]:
    """Return sizes down and across; rows have ``down`` down."""
    return (sizes[0], sizes[1]) if len(sizes) == 2 else (down, sizes[0])


def _groups(node: StepNode) -> int:
    """Return the groups of channels of a convolution."""
    groups = node.key[-1]
    assert isinstance(groups, int)
    return groups


def _prepare_pool(plan: Plan, layer: Layer) -> None:
    kernel, _, padding = _check_window(layer.node)
    if _dilation(layer.node) != (1, 1):
        raise RefusalError("a dilated pooling is not supported yet")
    if any(2 * pad > size for pad, size in zip(padding, kernel, strict=True)):
        raise RefusalError("a padding of more than half the window is not supported")


def _prepare_neuron(plan: Plan, layer: Layer) -> None:
    found = layer.neuron
    assert found is not None
    if layer.feedback is not None and layer.feedback not in plan.names:
        _prepare_synapse(plan, layer.feedback)
    try:
        spike_neuron(found.neuron)
    except H2LearnError as error:
        raise RefusalError(f"{error.message} (found {summary(found.neuron)})", error.hint) from None
    plan.neurons[layer] = _with_surrogate(found)
    known = (
        "assumed" if found.assumed else "exact up to half a spike exactly at the threshold" if found.half else "exact"
    )
    plan.notes.append(f"{layer.name}: {known}: {summary(found.neuron)}")


def _with_surrogate(found: Recognised) -> NeuronDescription:
    if found.surrogate is None:
        return found.neuron
    kind, width = found.surrogate
    return replace(found.neuron, surrogate=kind, width=width, height=1.0)


def _prepare_readout(plan: Plan, layer: Layer) -> None:
    if len(layer.node.shape) != 2:
        raise RefusalError("a readout of maps is not supported", "flatten before it")


def _prepare_flatten(plan: Plan, layer: Layer) -> None:
    if len(layer.node.args[0].shape) not in (3, 4):
        raise RefusalError("only maps C x H x W and rows C x L can be flattened")


def _emit_input(plan: Plan, builder: NetworkBuilder, layer: Layer, inputs: Sequence[Signal]) -> Signal:
    name, step = layer.node.key
    assert isinstance(name, str)
    location, shape = Location(f"{plan.file}:{name}"), layer.node.shape[1:]
    if step is not None:
        axis, is_folded = time_place(plan.input_axis)
        return builder.input(name, shape, location, time_steps=plan.time_steps, time_axis=axis, folded=is_folded)
    return builder.encode(builder.input(name, shape, location), "direct", plan.time_steps, location)


def _emit_conv(plan: Plan, builder: NetworkBuilder, layer: Layer, inputs: Sequence[Signal]) -> Signal:
    kernel, stride, padding = _check_window(layer.node)
    names, synapse = plan.names[layer], layer.node.synapse
    assert synapse is not None
    return builder.conv(
        inputs[0],
        names.base,
        layer.node.shape[1],
        plan.location(layer),
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=_dilation(layer.node),
        groups=_groups(layer.node),
        bias=synapse.bias is not None,
        names=(names.weight, names.bias),
    )


def _emit_linear(plan: Plan, builder: NetworkBuilder, layer: Layer, inputs: Sequence[Signal]) -> Signal:
    names, synapse = plan.names[layer], layer.node.synapse
    assert synapse is not None
    return builder.linear(
        inputs[0],
        names.base,
        layer.node.shape[1],
        plan.location(layer),
        bias=synapse.bias is not None,
        names=(names.weight, names.bias),
        inputs_first=synapse.inputs_first,
    )


def _emit_norm(plan: Plan, builder: NetworkBuilder, layer: Layer, inputs: Sequence[Signal]) -> Signal:
    names, (eps, kept) = plan.names[layer], layer.node.key[-2:]
    assert isinstance(eps, float) and isinstance(kept, float)
    mean, variance = names.statistics
    called = (names.weight, names.bias, mean, variance)
    place = plan.location(layer)
    return builder.batch_norm(inputs[0], names.base, place, eps=eps, momentum=1 - kept, names=called)


def _emit_pool(plan: Plan, builder: NetworkBuilder, layer: Layer, inputs: Sequence[Signal]) -> Signal:
    kernel, stride, padding = _check_window(layer.node)
    kind = layer.kind.removesuffix("pool")
    return builder.pool(inputs[0], kind, kernel, stride, plan.location(layer), padding=padding)


def _emit_add(plan: Plan, builder: NetworkBuilder, layer: Layer, inputs: Sequence[Signal]) -> Signal:
    return builder.add(inputs, plan.location(layer))


def _prepare_gate(plan: Plan, layer: Layer) -> None:
    kind, polynomial = layer.node.key
    if not polynomial:
        plan.notes.append(f"{layer.name}: {kind} of spikes; in training its gradients are those of sums and products")


def _emit_gate(plan: Plan, builder: NetworkBuilder, layer: Layer, inputs: Sequence[Signal]) -> Signal:
    """An OR of spikes is the sum of ``a`` and what ``b`` has beside it."""
    (a, b), place, kind = inputs, plan.location(layer), layer.node.key[0]
    if kind in ("or", "xor"):
        own = a if kind == "or" else builder.gate(a, b, "drop", place)
        return builder.add([own, builder.gate(b, a, "drop", place)], place)
    assert isinstance(kind, str)
    return builder.gate(a, b, kind, place)


def _prepare_concat(plan: Plan, layer: Layer) -> None:
    if layer.node.key != (1,):
        raise RefusalError("it joins other dimensions than channels")


def _emit_concat(plan: Plan, builder: NetworkBuilder, layer: Layer, inputs: Sequence[Signal]) -> Signal:
    """Put channels side by side; those of flattened maps before they are flattened, which is the same."""
    place = plan.location(layer)
    if all(inner.kind == "flatten" for inner in layer.inputs) and len({x.maps[1:] for x in inputs if x.maps}) == 1:
        return builder.flatten(builder.concat([builder.unflattened(x) for x in inputs], place), place)
    return builder.concat(inputs, place)


def _emit_delay(plan: Plan, builder: NetworkBuilder, layer: Layer, inputs: Sequence[Signal]) -> Signal:
    (steps,) = layer.node.key
    assert isinstance(steps, int)
    x = inputs[0] if inputs[0].is_spikes else builder.li(inputs[0], 0.0, plan.location(layer))
    return builder.delay(x, (steps,), plan.location(layer))


def _emit_dropout(plan: Plan, builder: NetworkBuilder, layer: Layer, inputs: Sequence[Signal]) -> Signal:
    (probability,) = layer.node.key
    assert isinstance(probability, float)
    return builder.dropout(inputs[0], probability, plan.location(layer), every_step=True)


def _emit_flatten(plan: Plan, builder: NetworkBuilder, layer: Layer, inputs: Sequence[Signal]) -> Signal:
    return builder.flatten(inputs[0], plan.location(layer))


def _emit_readout(plan: Plan, builder: NetworkBuilder, layer: Layer, inputs: Sequence[Signal]) -> Signal:
    x, place = inputs[0], plan.location(layer)
    summed = layer.kind in ("time_mean", "time_sum")
    fires = x.is_spikes or (x.counts_spikes and summed)
    if layer.kind == "time_last" if fires else layer.inputs[0].kind != "neuron" or x.counts_spikes:
        x, fires = builder.li(x, 0.0, place), False
    kind = READOUTS[layer.kind][0 if fires else 1]
    if not kind:
        what = f"{layer.kind.removeprefix('time_')} over time of {'spikes' if fires else 'potentials'}"
        raise H2LearnError(f"the {what} is no output yet", location=place, hint="average over time")
    return builder.readout(x, kind, place)


_PREPARE: dict[str, Callable[[Plan, Layer], None]] = {
    "conv": _prepare_synapse,
    "linear": _prepare_synapse,
    "batchnorm": _prepare_norm,
    "avgpool": _prepare_pool,
    "maxpool": _prepare_pool,
    "sumpool": _prepare_pool,
    "concat": _prepare_concat,
    "flatten": _prepare_flatten,
    "gate": _prepare_gate,
    "neuron": _prepare_neuron,
    **dict.fromkeys(READOUTS, _prepare_readout),
}
_EMIT: dict[str, Callable[[Plan, NetworkBuilder, Layer, Sequence[Signal]], Signal]] = {
    "input": _emit_input,
    "conv": _emit_conv,
    "linear": _emit_linear,
    "batchnorm": _emit_norm,
    "avgpool": _emit_pool,
    "maxpool": _emit_pool,
    "sumpool": _emit_pool,
    "add": _emit_add,
    "concat": _emit_concat,
    "delay": _emit_delay,
    "dropout": _emit_dropout,
    "flatten": _emit_flatten,
    "gate": _emit_gate,
    **dict.fromkeys(READOUTS, _emit_readout),
}
_LACKING = {
    "pad": "zeros around maps that neither a convolution nor an average takes in",
    "reshape": "a reshape of features that is no flattening is not supported",
}
