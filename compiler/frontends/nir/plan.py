"""Shapes of the layers, and what the ``spike`` level has no layer for taken into the weights.

A factor on a signal (``Scale``, the area of ``SumPool2d``) travels on until a layer takes it into its weights, a neuron
into its gain, or the output is reached: then the weights before it take it in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.errors import H2LearnError

from ..neuron_description import NeuronDescription, spike_neuron, summary
from .discrete import aligned_with, constant_fields, delay_steps, describe
from .graph import Edge, Problems
from .layers import Cell, Conv, Delay, Flatten, Layer, Linear, Pool, Port, Scale
from .options import NirOptions
from .record import Real, Record

Shape = tuple[int, ...]
Factor = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fold:
    """A parameter of the model: that of the file times ``factor``, rounded to float32."""

    source: Real
    factor: Factor

    def to_model(self) -> npt.NDArray[np.float32]:
        """Return the model's parameter."""
        return np.asarray(self.source.astype(np.float64) * self.factor, dtype=np.float32)

    def to_file(self, value: npt.NDArray[np.float32]) -> Real:
        """Return the file's parameter for a parameter of the model; where nothing changed, the file's own."""
        safe = np.where(self.factor == 0, 1.0, self.factor)
        found = (value.astype(np.float64) / safe).astype(self.source.dtype)
        keep = (value == self.to_model()) | (self.factor == 0)
        return np.where(keep, self.source, found)

    @property
    def is_exact(self) -> bool:
        """Whether nothing was rounded."""
        return np.array_equal(self.to_model().astype(np.float64), self.source.astype(np.float64) * self.factor)


@dataclass(frozen=True)
class Neurons:
    """Neurons as the discretised node says, and the weights of their feedback."""

    record: Record
    description: NeuronDescription
    feedback: Linear | None = None


@dataclass(frozen=True)
class Delayed:
    """Values of some time steps before, one number or one per channel."""

    record: Record
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Store:
    """Currents become values that are stored: the potentials of integrators that forget at once."""

    record: Record


@dataclass(frozen=True)
class Output:
    """The output."""

    record: Record


@dataclass(frozen=True)
class Sum:
    """The sum of what several edges bring to a node."""

    record: Record


Operation: TypeAlias = Conv | Linear | Pool | Flatten | Neurons | Delayed | Store | Sum | Output


@dataclass(frozen=True)
class Step:
    """An operation and the numbers of the values it reads: 0 is the input, n the result of step n - 1."""

    operation: Operation
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """A graph as layers of the ``spike`` level. ``shape`` is that of one sample of the input.

    ``shapes``: what comes to each node of the file, by name. ``edges`` are those of the file, nested graphs opened.
    """

    name: str
    options: NirOptions
    input: Record
    shape: Shape
    steps: tuple[Step, ...]
    shapes: Mapping[str, Shape]
    edges: tuple[Edge, ...]
    folds: Mapping[str, Fold]
    notes: tuple[str, ...]


def plan_graph(
    name: str, layers: Sequence[Layer], edges: Sequence[Edge], options: NirOptions, problems: Problems
) -> Plan | None:
    """Return the plan of layers in order; what does not fit is added to ``problems``, with None.

    ``edges``: those between them, without the ones of feedback.
    """
    start = layers[0]
    assert isinstance(start, Port)
    before = {layer.record.name: [a for a, b in edges if b == layer.record.name] for layer in layers}
    readers = {layer.record.name: sum(a == layer.record.name for a, _ in edges) for layer in layers}
    behind = [layer for layer in layers if before[layer.record.name] == [start.record.name]]
    try:
        shape = _input_shape(start, _shaped_by(behind, layers, edges))
    except H2LearnError as error:
        problems.add(error)
        return None
    walk = _Walk(options)
    known = {start.record.name: _Signal(0, shape, "an input")}
    shapes = {start.record.name: shape}
    for layer in layers[1:]:
        place = layer.record.name
        arriving = [known[a] for a in before[place] if a in known]
        if len(arriving) < len(before[place]):
            continue  # what leads to it was refused
        joined = False
        try:
            walk.signal = walk.joined(layer.record, arriving)
            shapes[place], joined = walk.signal.shape, True
            walk.add(layer)
        except H2LearnError as error:
            problems.add(error)
            if not joined or not isinstance(layer, Cell | Scale):
                continue
        known[place] = walk.signal if readers[place] < 2 else replace(walk.signal, before=None)
    if problems.errors:
        return None
    folds = walk.folds()
    notes = [*options.notes(), *walk.notes, *_fold_notes(folds)]
    return Plan(name, options, start.record, shape, tuple(walk.steps), shapes, tuple(edges), folds, tuple(notes))


def _shaped_by(behind: Sequence[Layer], layers: Sequence[Layer], edges: Sequence[Edge]) -> list[Layer]:
    """Return the layers behind the input that may tell its shape: those that have weights first."""
    known = {layer.record.name: layer for layer in layers}
    found: list[Layer] = []
    for layer in behind:
        while isinstance(layer, Scale) and (next_ := [b for a, b in edges if a == layer.record.name]):
            layer = known[next_[0]]
        found.append(layer)
    return sorted(found, key=lambda layer: not isinstance(layer, Conv | Linear))


@dataclass
class _Weights:
    """A layer with weights, and the factors it takes in: of its inputs, and of its outputs."""

    layer: Conv | Linear
    inputs: Factor
    outputs: Factor


@dataclass(frozen=True)
class _Signal:
    """A value: its number, the shape and kind of its samples, and what it still has to be multiplied by.

    ``before``: the weights that may take that factor in, since nothing else reads what they give.
    """

    number: int
    shape: Shape
    kind: str
    factor: Factor = field(default_factory=lambda: np.ones(()))
    scaled_by: Record | None = None
    before: _Weights | None = None


class _Walk:
    """Goes from layer to layer; ``signal`` is the value that the layer reads, and then what it gives."""

    def __init__(self, options: NirOptions) -> None:
        self.options = options
        self.signal = _Signal(0, (), "")
        self.weights: list[_Weights] = []
        self.steps: list[Step] = []
        self.notes: list[str] = []

    @property
    def shape(self) -> Shape:
        """The shape of the signal."""
        return self.signal.shape

    @property
    def factor(self) -> Factor:
        """What the signal has to be multiplied by."""
        return self.signal.factor

    def joined(self, record: Record, arriving: Sequence[_Signal]) -> _Signal:
        """Return the sum of what several edges bring; raises H2LearnError when they do not fit."""
        if len(arriving) == 1:
            return arriving[0]
        for one in arriving:
            if one.shape != arriving[0].shape:
                raise record.error(
                    f"expected inputs of one shape, found {list(arriving[0].shape)} and {list(one.shape)}", "edges"
                )
            self.signal = one
            self._give_back(record, self._channels())
        self.steps.append(Step(Sum(record), tuple(one.number for one in arriving)))
        kinds = {one.kind for one in arriving}
        kind = "averages" if kinds <= {"spikes", "averages"} else "currents"
        return _Signal(len(self.steps), arriving[0].shape, kind)

    def add(self, layer: Layer) -> None:
        """Take one layer; raises H2LearnError when it does not fit."""
        match layer:
            case Conv():
                self._conv(layer)
            case Linear():
                self._linear(layer)
            case Pool():
                self._pool(layer)
            case Flatten():
                self._flatten(layer)
            case Scale():
                aligned = aligned_with(layer.record, "scale", layer.scale, self.shape)
                factor = self.factor * (aligned.reshape(()) if aligned.size == 1 else aligned)
                self.signal = replace(self.signal, factor=factor, scaled_by=layer.record)
            case Delay():
                self._store(layer.record)
                steps = delay_steps(layer.record, layer.seconds, self.shape, self.options.rule.dt)
                self._step(Delayed(layer.record, steps), self.shape, self.signal.kind)
            case Cell():
                self._neurons(layer)
            case Port():
                self._output(layer)

    def folds(self) -> dict[str, Fold]:
        """Return all parameters by name."""
        found: dict[str, Fold] = {}
        for w in self.weights:
            name, ones = w.layer.record.name, (1,) * (w.layer.weight.ndim - 2)
            outputs, inner = w.layer.weight.shape[:2]
            columns = w.inputs.reshape(1, -1)
            if isinstance(w.layer, Conv) and columns.size > 1:
                columns = np.repeat(columns.reshape(w.layer.groups, inner), outputs // w.layer.groups, axis=0)
            rows = w.outputs.reshape(-1, 1, *ones)
            found[f"{name}.weight"] = Fold(w.layer.weight, rows * columns.reshape(*columns.shape, *ones))
            if w.layer.bias is not None:
                found[f"{name}.bias"] = Fold(w.layer.bias, w.outputs.reshape(-1))
        return found

    def _conv(self, layer: Conv) -> None:
        record, (channels, inner) = layer.record, layer.weight.shape[:2]
        self._expect_maps(record, rows=layer.rows)
        if self.shape[0] != inner * layer.groups:
            grouped = f" in {layer.groups} groups" if layer.groups > 1 else ""
            raise record.error(f"expected weights for {self.shape[0]} input channels{grouped}, found {inner}", "weight")
        if layer.maps is not None and layer.maps != self.shape[1:]:
            raise record.error(f"expected {list(self.shape[1:])}, found {list(layer.maps)}", "input_shape")
        sizes = (1, *self.shape[1:]) if layer.rows else self.shape[1:]
        padded = [size + 2 * pad for size, pad in zip(sizes, layer.padding, strict=True)]
        spans = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel, strict=True)]
        if padded[0] < spans[0] or padded[1] < spans[1]:
            raise record.error(f"expected a kernel of at most {padded}, found {spans}", "weight")
        result = [(p - span) // s + 1 for p, span, s in zip(padded, spans, layer.stride, strict=True)]
        self._take_weights(layer, (channels, *(result[1:] if layer.rows else result)))

    def _linear(self, layer: Linear) -> None:
        record, (features, inner) = layer.record, layer.weight.shape
        if len(self.shape) != 1:
            raise record.error(f"expected features, found maps {list(self.shape)}", "weight", "put Flatten before it")
        if self.shape[0] != inner:
            raise record.error(f"expected weights for {self.shape[0]} inputs, found {inner}", "weight")
        self._take_weights(layer, (features,))

    def _take_weights(self, layer: Conv | Linear, shape: Shape) -> None:
        self._store(layer.record)
        inputs = self._channels() if isinstance(layer, Conv) else self.factor
        weights = _Weights(layer, inputs, np.ones(()))
        self.weights.append(weights)
        self._step(layer, shape, "currents")
        self.signal = replace(self.signal, factor=np.ones(()), before=weights)

    def _pool(self, layer: Pool) -> None:
        self._expect_maps(layer.record)
        sizes = [size + 2 * pad for size, pad in zip(self.shape[1:], layer.padding, strict=True)]
        if any(k > size for k, size in zip(layer.kernel, sizes, strict=True)):
            raise layer.record.error(f"expected at most {sizes}, found {list(layer.kernel)}", "kernel_size")
        factor = self._channels() * layer.area
        self.signal = replace(self.signal, factor=factor.reshape(-1, 1, 1) if factor.ndim else factor)
        rows, columns = ((size - k) // s + 1 for size, k, s in zip(sizes, layer.kernel, layer.stride, strict=True))
        kind = "averages" if self.signal.kind == "spikes" else "currents"
        self._step(layer, (self.shape[0], rows, columns), kind)

    def _flatten(self, layer: Flatten) -> None:
        rank = len(self.shape)
        ends = [d + rank if d < 0 else d for d in (layer.start, layer.end)]
        if rank == 1:
            return
        if math.prod(self.shape[: ends[0]]) != 1 or ends[1] < rank - 1:
            if (layer.start, layer.end) not in ((1, -1), (1, rank)):
                field = "start_dim" if ends[1] == rank - 1 else "end_dim"
                raise layer.record.error(
                    f"expected all dimensions {list(self.shape)} to be flattened, found {layer.start} to {layer.end}",
                    field,
                )
            self.notes.append(f"{layer.record.name} (Flatten): start_dim 1 is taken to count the batch")
        if self.factor.ndim:
            self.signal = replace(self.signal, factor=np.broadcast_to(self.factor, self.shape).reshape(-1))
        self._step(layer, (math.prod(self.shape),), self.signal.kind)

    def _neurons(self, layer: Cell) -> None:
        record = layer.record
        if self.signal.kind == "spikes":
            raise record.error("expected currents, found the spikes of the neurons before it", "type")
        if layer.feedback is not None:
            self._give_back(record, self._channels())
            self.signal = replace(self.signal, factor=np.ones(()))
        rule, producer = self.options.rule, self.options.producer
        described = describe(record, self.shape, rule, starts_at_reset=producer == "spikingjelly")
        gain = np.asarray(described.gain) * self._channels()
        described = replace(described, gain=tuple(float(g) for g in np.ravel(gain)))
        try:
            spike_neuron(described)
        except H2LearnError as error:
            raise record.error(error.message, "type", error.hint) from error
        self.notes.append(f"{record.name} ({record.kind}): {summary(described)}")
        if layer.feedback is not None:
            self._feed_back(layer.feedback, described)
        step = Neurons(record, described, layer.feedback)
        self._step(step, self.shape, "spikes" if described.fires else "potentials")
        self.signal = replace(self.signal, factor=np.ones(()), before=None)

    def _feed_back(self, weights: Linear, neuron: NeuronDescription) -> None:
        """Take feedback; a factor that the gain has taken in is not that of the feedback, whose weights undo it."""
        record, shape = weights.record, weights.weight.shape
        if len(self.shape) != 1 or shape != (self.shape[0], self.shape[0]):
            raise record.error(f"expected weights from {list(self.shape)} to themselves, found {list(shape)}", "weight")
        if not neuron.fires:
            raise record.error("feedback of potentials is not supported yet", "edges")
        self.weights.append(_Weights(weights, np.ones(()), 1 / self._channels()))

    def _output(self, layer: Port) -> None:
        if not self.steps:
            raise layer.record.error("expected a layer between input and output, found none", "edges")
        if layer.shape is not None and _without_ones(layer.shape) != _without_ones(self.shape):
            raise layer.record.error(f"expected {list(self.shape)}, found {list(layer.shape)}", "shape")
        self._give_back(layer.record, self._channels())
        self._store(layer.record)
        self._step(Output(layer.record), self.shape, self.signal.kind)

    def _give_back(self, record: Record, factor: Factor) -> None:
        """Take a factor, one or one per channel, into the weights before."""
        if (factor == 1).all():
            return
        before = self.signal.before
        if before is None:
            raise record.error("expected a layer with weights before it that takes in the scale, found none", "type")
        before.outputs = before.outputs * factor

    def _channels(self) -> Factor:
        """Return the signal's factor as one number or one per channel; raises H2LearnError when it is neither."""
        if self.factor.ndim < 2:
            return self.factor
        rows = self.factor.reshape(self.factor.shape[0], -1)
        if not (rows == rows[:, :1]).all():
            assert self.signal.scaled_by is not None
            raise self.signal.scaled_by.error("expected one value per channel, found several", "scale")
        return rows[:, 0] if rows.shape[0] > 1 else rows[0, 0].reshape(())

    def _expect_maps(self, record: Record, *, rows: bool = False) -> None:
        if len(self.shape) != (2 if rows else 3):
            wanted = "rows [C, L]" if rows else "maps"
            found = f"{self.shape[0]} features" if len(self.shape) == 1 else str(list(self.shape))
            raise record.error(f"expected {wanted}, found {found}", "type")

    def _store(self, record: Record) -> None:
        if self.signal.kind == "currents":
            self._step(Store(record), self.shape, "potentials")

    def _step(self, operation: Operation, shape: Shape, kind: str) -> None:
        self.steps.append(Step(operation, (self.signal.number,)))
        self.signal = replace(self.signal, number=len(self.steps), shape=shape, kind=kind)


def _input_shape(start: Port, layers: Sequence[Layer]) -> Shape:
    first = next((layer for layer in layers if not isinstance(layer, Scale)), None)
    record, shape = start.record, start.shape
    if shape is None:
        if isinstance(first, Linear):
            return (first.weight.shape[1],)
        if isinstance(first, Conv) and first.maps is not None:
            return (first.weight.shape[1] * first.groups, *first.maps)
        raise record.error("expected a shape, found none, and the layer behind it does not tell", "shape")
    rank = 3 if len(shape) > 2 else 1
    if isinstance(first, Conv | Pool):
        rank = 2 if isinstance(first, Conv) and first.rows else 3
    elif isinstance(first, Linear):
        rank = 1
    elif isinstance(first, Cell) and first.record.real(_shaping(first)).size > 1:
        rank = max(1, min(first.record.real(_shaping(first)).ndim, rank))
    short = shape
    while len(short) > rank and short[0] == 1:
        short = short[1:]
    if len(short) != rank:
        wanted = {1: "features", 2: "rows [C, L]"}.get(rank, "maps [C, H, W]")
        raise record.error(f"expected {wanted}, found {list(shape)}", "shape")
    return short


def _shaping(cell: Cell) -> str:
    """Return the field whose shape is that of the neurons."""
    return constant_fields(cell.record)[0]


def _without_ones(shape: Shape) -> Shape:
    found = tuple(shape)
    while len(found) > 1 and found[0] == 1:
        found = found[1:]
    return found


def _range(values: Sequence[Any]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _exactness(exact: bool) -> str:
    return "exact" if exact else "approximated by rounding"


def _fold_notes(folds: Mapping[str, Fold]) -> list[str]:
    return [
        f"{name} holds the file's values times {_range(fold.factor.ravel().tolist())}: {_exactness(fold.is_exact)}"
        for name, fold in folds.items()
        if (fold.factor != 1).any()
    ]
