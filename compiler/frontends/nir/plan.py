"""Shapes of a chain of layers, and what the ``spike`` level has no layer for taken into the weights.

A factor on a signal (``Scale``, the area of ``SumPool2d``) travels on until a layer takes it into its weights, a neuron
into its gain, or the output is reached: then the weights before it take it in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.errors import H2LearnError

from ..neuron_description import NeuronDescription, spike_neuron, summary
from .discrete import aligned_with, constant_fields, delay_steps, describe
from .graph import Problems
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


Step: TypeAlias = Conv | Linear | Pool | Flatten | Neurons | Delayed | Store | Output


@dataclass(frozen=True)
class Plan:
    """A chain as layers of the ``spike`` level. ``shape`` is that of one sample of the input."""

    name: str
    options: NirOptions
    input: Record
    shape: Shape
    steps: tuple[Step, ...]
    shapes: tuple[Shape, ...]
    folds: Mapping[str, Fold]
    notes: tuple[str, ...]


def plan_chain(name: str, chain: Sequence[Layer], options: NirOptions, problems: Problems) -> Plan | None:
    """Return the plan of a chain from Input to Output; what does not fit is added to ``problems``, with None."""
    start = chain[0]
    assert isinstance(start, Port)
    try:
        shape = _input_shape(start, chain[1:])
    except H2LearnError as error:
        problems.add(error)
        return None
    walk = _Walk(options, shape)
    for layer in chain[1:]:
        try:
            walk.add(layer)
        except H2LearnError as error:
            problems.add(error)
            if not isinstance(layer, Cell | Scale):
                return None
    if problems.errors:
        return None
    folds = walk.folds()
    notes = [*options.notes(), *walk.notes, *_fold_notes(folds)]
    return Plan(name, options, start.record, shape, tuple(walk.steps), tuple(walk.shapes), folds, tuple(notes))


@dataclass
class _Weights:
    """A layer with weights, and the factors it takes in: of its inputs, and of its outputs."""

    layer: Conv | Linear
    inputs: Factor
    outputs: Factor


class _Walk:
    """Goes along a chain; ``shape`` is the signal's, ``factor`` what it still has to be multiplied by."""

    def __init__(self, options: NirOptions, shape: Shape) -> None:
        self.options = options
        self.shape = shape
        self.signal = "an input"
        self.factor: Factor = np.ones(())
        self.scaled_by: Record | None = None
        self.before: _Weights | None = None
        self.weights: list[_Weights] = []
        self.steps: list[Step] = []
        self.shapes: list[Shape] = []
        self.notes: list[str] = []

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
                self.factor = self.factor * (aligned.reshape(()) if aligned.size == 1 else aligned)
                self.scaled_by = layer.record
            case Delay():
                self._store(layer.record)
                steps = delay_steps(layer.record, layer.seconds, self.shape, self.options.rule.dt)
                self._step(Delayed(layer.record, steps), self.shape, self.signal)
            case Cell():
                self._neurons(layer)
            case Port():
                self._output(layer)

    def folds(self) -> dict[str, Fold]:
        """Return all parameters by name."""
        found: dict[str, Fold] = {}
        for w in self.weights:
            name, ones = w.layer.record.name, (1,) * (w.layer.weight.ndim - 2)
            rows = w.outputs.reshape(-1, 1, *ones)
            found[f"{name}.weight"] = Fold(w.layer.weight, rows * w.inputs.reshape(1, -1, *ones))
            if w.layer.bias is not None:
                found[f"{name}.bias"] = Fold(w.layer.bias, w.outputs.reshape(-1))
        return found

    def _conv(self, layer: Conv) -> None:
        record, (channels, inner, *kernel) = layer.record, layer.weight.shape
        self._expect_maps(record)
        if self.shape[0] != inner:
            raise record.error(f"expected weights for {self.shape[0]} input channels, found {inner}", "weight")
        if layer.maps is not None and layer.maps != self.shape[1:]:
            raise record.error(f"expected {list(self.shape[1:])}, found {list(layer.maps)}", "input_shape")
        padded = [size + 2 * pad for size, pad in zip(self.shape[1:], layer.padding, strict=True)]
        if padded[0] < kernel[0] or padded[1] < kernel[1]:
            raise record.error(f"expected a kernel of at most {padded}, found {kernel}", "weight")
        rows, columns = ((p - k) // s + 1 for p, k, s in zip(padded, kernel, layer.stride, strict=True))
        self._take_weights(layer, (channels, rows, columns))

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
        self.before = _Weights(layer, inputs, np.ones(()))
        self.weights.append(self.before)
        self.factor = np.ones(())
        self._step(layer, shape, "currents")

    def _pool(self, layer: Pool) -> None:
        self._expect_maps(layer.record)
        sizes = [size + 2 * pad for size, pad in zip(self.shape[1:], layer.padding, strict=True)]
        if any(k > size for k, size in zip(layer.kernel, sizes, strict=True)):
            raise layer.record.error(f"expected at most {sizes}, found {list(layer.kernel)}", "kernel_size")
        factor = self._channels() * layer.area
        self.factor = factor.reshape(-1, 1, 1) if factor.ndim else factor
        rows, columns = ((size - k) // s + 1 for size, k, s in zip(sizes, layer.kernel, layer.stride, strict=True))
        signal = "averages" if self.signal == "spikes" else "currents"
        self._step(layer, (self.shape[0], rows, columns), signal)

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
            self.factor = np.broadcast_to(self.factor, self.shape).reshape(-1)
        self._step(layer, (math.prod(self.shape),), self.signal)

    def _neurons(self, layer: Cell) -> None:
        record = layer.record
        if self.signal == "spikes":
            raise record.error("expected currents, found the spikes of the neurons before it", "type")
        if layer.feedback is not None:
            self._give_back(record, self._channels())
            self.factor = np.ones(())
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
        self.before, self.factor = None, np.ones(())
        step = Neurons(record, described, layer.feedback)
        self._step(step, self.shape, "spikes" if described.fires else "potentials")

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
        self._step(Output(layer.record), self.shape, self.signal)

    def _give_back(self, record: Record, factor: Factor) -> None:
        """Take a factor, one or one per channel, into the weights before."""
        if (factor == 1).all():
            return
        if self.before is None:
            raise record.error("expected a layer with weights before it that takes in the scale, found none", "type")
        self.before.outputs = self.before.outputs * factor

    def _channels(self) -> Factor:
        """Return the signal's factor as one number or one per channel; raises H2LearnError when it is neither."""
        if self.factor.ndim < 2:
            return self.factor
        rows = self.factor.reshape(self.factor.shape[0], -1)
        if not (rows == rows[:, :1]).all():
            assert self.scaled_by is not None
            raise self.scaled_by.error("expected one value per channel, found several", "scale")
        return rows[:, 0] if rows.shape[0] > 1 else rows[0, 0].reshape(())

    def _expect_maps(self, record: Record) -> None:
        if len(self.shape) != 3:
            raise record.error(f"expected maps, found {self.shape[0]} features", "type")

    def _store(self, record: Record) -> None:
        if self.signal == "currents":
            self._step(Store(record), self.shape, "potentials")

    def _step(self, step: Step, shape: Shape, signal: str) -> None:
        self.steps.append(step)
        self.shapes.append(shape)
        self.shape, self.signal = shape, signal


def _input_shape(start: Port, layers: Sequence[Layer]) -> Shape:
    first = next((layer for layer in layers if not isinstance(layer, Scale)), None)
    record, shape = start.record, start.shape
    if shape is None:
        if isinstance(first, Linear):
            return (first.weight.shape[1],)
        if isinstance(first, Conv) and first.maps is not None:
            return (first.weight.shape[1], *first.maps)
        raise record.error("expected a shape, found none, and the layer behind it does not tell", "shape")
    rank = 3 if len(shape) > 2 else 1
    if isinstance(first, Conv | Pool):
        rank = 3
    elif isinstance(first, Linear):
        rank = 1
    elif isinstance(first, Cell) and first.record.real(_shaping(first)).size > 1:
        rank = max(1, min(first.record.real(_shaping(first)).ndim, rank))
    short = shape
    while len(short) > rank and short[0] == 1:
        short = short[1:]
    if len(short) != rank:
        wanted = "features" if rank == 1 else "maps [C, H, W]"
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
