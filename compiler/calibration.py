"""Thresholds from data: a network trained with ReLU keeps its weights when its activations become neurons.

P. U. Diehl et al., "Fast-classifying, high-accuracy spiking deep networks through weight and threshold balancing",
IJCNN 2015, in the form of N. Rathi et al., "Enabling deep spiking neural networks with hybrid conversion and spike
timing dependent backpropagation", ICLR 2020: layer by layer, with the thresholds before it set, a neuron's threshold
becomes a percentile of its weighted input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from xdsl.ir import Operation, SSAValue

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.reference.neuron import drive
from h2learn.backends.reference.training import RunScalars
from h2learn.dialects.common import Array, get_io, source_of
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import neuron_of, neuron_properties
from h2learn.dialects.spike.interpreter import interpret, main_block

from .model import Model, Network

PERCENTILE = 99.7


def calibrate(
    model: Model, inputs: Mapping[str, npt.ArrayLike], *, percentile: float = PERCENTILE, scale: float = 1.0
) -> Model:
    """Return ``model`` with the thresholds that its weighted inputs on a batch of ``inputs`` ask for.

    In the order of the layers, with the thresholds before it set, a layer's threshold becomes ``scale`` times the
    ``percentile`` of the currents of its neurons in one time step, the largest over time. A spike then stands for as
    much as the product of the thresholds up to it, and biases are divided by that. Inputs are named and shaped like the
    model's. Raises H2LearnError for other inputs, numbers out of range, a model without neurons, a layer that no
    current excites, and sums of values that stand for different amounts.
    """
    if not 0 < percentile <= 100 or not scale > 0:
        raise H2LearnError(f"expected a percentile in (0, 100] and a scale > 0, found {percentile} and {scale}")
    samples = _samples(model, inputs)
    sized = model.build(samples)
    thresholds: list[float] = []

    def before(op: Operation, operands: Sequence[Array]) -> None:
        if isinstance(op, spike.LifOp):
            if op.threshold is not None:
                raise H2LearnError(
                    "expected thresholds to calibrate, found learned ones", location=source_of(op) or None
                )
            thresholds.append(scale * _excitation(op, drive(operands[0].astype(np.float64), neuron_of(op)), percentile))
            _set_threshold(op, thresholds[-1])

    interpret(sized.module, _arguments(model, sized, inputs, samples), before=before)
    if not thresholds:
        raise H2LearnError(f"expected a model with spiking neurons, {model.name!r} has none")

    def with_thresholds(network: Network) -> Network:
        neurons = [op for op in main_block(network.module).ops if isinstance(op, spike.LifOp)]
        for op, threshold in zip(neurons, thresholds, strict=True):
            _set_threshold(op, threshold)
        return network

    divisors = _bias_divisors(sized)
    parameters = {n: v / np.float32(divisors[n]) if n in divisors else v for n, v in model.parameters.items()}
    shown = ", ".join(f"{threshold:.4g}" for threshold in thresholds)
    return replace(
        model,
        network=with_thresholds(replace(model.network, module=model.network.module.clone())),
        build=lambda batch: with_thresholds(model.build(batch)),
        notes=(*model.notes, f"thresholds from data ({percentile:g} percentile, scale {scale:g}): {shown}"),
    ).with_parameters(parameters)


def _samples(model: Model, inputs: Mapping[str, npt.ArrayLike]) -> int:
    """Return how many samples are given; raises H2LearnError unless all inputs fit the model."""
    one, two = model.build(1).inputs, model.build(2).inputs
    if set(inputs) != set(one):
        raise H2LearnError(f"expected the inputs {', '.join(one)}, found {', '.join(inputs) or 'none'}")
    counts = set()
    for name, spec in one.items():
        shape, expected = spec.unfolded(np.shape(inputs[name])), spec.unfolded()
        axis = next(k for k, (n, m) in enumerate(zip(expected, two[name].unfolded(), strict=True)) if n != m)
        if len(shape) != len(expected) or shape[:axis] + shape[axis + 1 :] != expected[:axis] + expected[axis + 1 :]:
            raise H2LearnError(f"expected samples like {list(spec.shape)} as {name}, found {list(shape)}")
        counts.add(shape[axis])
    if len(counts) != 1 or counts == {0}:
        raise H2LearnError("expected the same number of samples, 1 at least, in every input")
    return int(counts.pop())


def _arguments(model: Model, sized: Network, inputs: Mapping[str, npt.ArrayLike], samples: int) -> list[Array]:
    block = main_block(sized.module)
    values: dict[str, Array] = {**model.parameters, **{n: np.asarray(v, np.float32) for n, v in inputs.items()}}
    scalars = RunScalars(valid=samples).to_array()
    entries = get_io(sized.module)[: len(block.args)]
    return [scalars if e.role == "scalars" else e.to_device(values[e.name]) for e in entries]


def _excitation(op: spike.LifOp, current: Array, percentile: float) -> float:
    """Return the percentile of the currents of a step, the largest over time; raises H2LearnError when none is > 0."""
    steps = current.reshape(current.shape[0], -1).astype(np.float64)
    found = float(np.percentile(steps, percentile, axis=1).max())
    if not (np.isfinite(found) and found > 0):
        raise H2LearnError(
            f"expected currents above 0 for a threshold, found {found:g} at the {percentile:g} percentile",
            location=source_of(op) or None,
            hint="give other samples, or a higher percentile",
        )
    return found


def _set_threshold(op: spike.LifOp, threshold: float) -> None:
    op.properties.update(neuron_properties(replace(neuron_of(op), theta=(threshold,))))


def _bias_divisors(network: Network) -> dict[str, float]:
    """Return, for every bias, what a spike of its layer's input stands for: the product of the thresholds before.

    The shift and the running mean of a normalization are biases too.
    """
    block = main_block(network.module)
    names: dict[SSAValue, str] = {v: e.name for e, v in zip(get_io(network.module), block.args, strict=False)}
    amounts: dict[SSAValue, float] = dict.fromkeys(block.args, 1.0)
    divisors: dict[str, float] = {}
    for op in block.ops:
        streams = [value for value in op.operands if names.get(value) not in network.parameters]
        found = {amounts[value] for value in streams}
        if len(found) > 1:
            raise H2LearnError(
                "expected values of equal weight, found a sum of spikes behind different thresholds",
                location=source_of(op) or None,
                hint="calibration knows chains of layers only",
            )
        amount = found.pop() if found else 1.0
        if isinstance(op, spike.ConvOp | spike.LinearOp) and len(op.operands) > 2:
            divisors[names[op.operands[2]]] = amount
        if isinstance(op, spike.BatchNormOp):
            divisors |= {names[op.operands[k]]: amount for k in (2, 3)}
        if isinstance(op, spike.LifOp):
            amount *= neuron_of(op).theta[0]
        amounts.update(dict.fromkeys(op.results, amount))
    return divisors
