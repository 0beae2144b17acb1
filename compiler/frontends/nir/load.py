"""NIR graphs to models."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.model import Model, Network

from ..builder import NetworkBuilder, Signal
from ..neuron_description import add_neuron
from .graph import Problems, feedback_of, in_order, read_graph
from .layers import Cell, Conv, Flatten, Layer, Linear, Pool, read_layer
from .options import NirOptions
from .plan import Delayed, Neurons, Operation, Output, Plan, Store, Sum, plan_graph
from .tree import Tree, graph_tree, read_tree


@dataclass(frozen=True)
class NirSource:
    """What an export needs of the imported graph: its layers in order, and the plan they became."""

    layers: tuple[Layer, ...]
    plan: Plan


def load_nir(path: str | PathLike[str], **options: Any) -> Model:
    """Return the model of a NIR file, for one sample at a time; ``options`` are those of :class:`NirOptions`.

    The model's notes say what was assumed. Raises H2LearnError when the file cannot be read, an option does not exist,
    or the graph cannot be imported: then all reasons are listed, each with node and field.
    """
    chosen = NirOptions(**options)
    return _model(read_tree(Path(path)), str(path), Path(path).stem, chosen)


def from_nir(graph: object, name: str = "nir", **options: Any) -> Model:
    """Return the model of a ``nir.NIRGraph``. Raises H2LearnError as :func:`load_nir` does."""
    return _model(graph_tree(graph), name, name, NirOptions(**options))


def build(plan: Plan, batch: int) -> Network:
    """Return the network of a plan for ``batch`` samples; raises H2LearnError where it is too large."""
    builder = NetworkBuilder(batch)
    options, record = plan.options, plan.input
    steps = options.steps
    encode = options.encode
    x = builder.input(record.name, plan.shape, record.location, time_steps=None if encode else steps)
    if encode:
        x = builder.encode(x, encode, steps, record.location)
    values = [x]
    for step in plan.steps:
        values.append(_add(builder, [values[number] for number in step.inputs], step.operation))
    return builder.finish(plan.name, record.location)


def _model(tree: Tree, file: str, name: str, options: NirOptions) -> Model:
    problems = Problems(file)
    records, edges = read_graph(tree, file, problems)
    layers: dict[str, Layer] = {}
    for record in records:
        try:
            layers[record.name] = read_layer(record)
        except H2LearnError as error:
            problems.add(error)
    feedback = feedback_of(edges, [name for name, layer in layers.items() if isinstance(layer, Linear)])
    for name, weights in feedback.items():
        cell, back = layers.get(name), layers[weights]
        if isinstance(cell, Cell) and isinstance(back, Linear):
            layers[name] = replace(cell, feedback=back)
            records = [record for record in records if record.name != weights]
            edges = [edge for edge in edges if weights not in edge]
    ordered = in_order(records, edges, file, problems)
    problems.check()
    in_row = tuple(layers[record.name] for record in ordered)
    plan = plan_graph(name, in_row, edges, options, problems)
    problems.check()
    assert plan is not None
    network = build(plan, 1)
    parameters = {name: fold.to_model() for name, fold in plan.folds.items()}
    source = NirSource(in_row, plan)
    return Model(name, network, parameters, None, functools.partial(build, plan), plan.notes, source)


def _add(builder: NetworkBuilder, inputs: Sequence[Signal], step: Operation) -> Signal:
    name, location, x = step.record.name, step.record.location, inputs[0]
    match step:
        case Conv():
            return builder.conv(
                x,
                name,
                step.weight.shape[0],
                location,
                kernel=step.kernel,
                stride=step.stride,
                padding=step.padding,
                dilation=step.dilation,
                groups=step.groups,
            )
        case Sum():
            return builder.add(inputs, location)
        case Linear():
            return builder.linear(x, name, step.weight.shape[0], location, bias=step.bias is not None)
        case Pool():
            return builder.pool(x, "avg", step.kernel, step.stride, location, padding=step.padding)
        case Flatten():
            return builder.flatten(x, location)
        case Neurons():
            return _neurons(builder, x, step)
        case Delayed():
            return builder.delay(x, step.steps, location)
        case Store():
            return builder.li(x, 0.0, location)
        case Output():
            builder.output(name, x)
            return x


def _neurons(builder: NetworkBuilder, x: Signal, step: Neurons) -> Signal:
    def neurons(current: Signal) -> Signal:
        return add_neuron(builder, current, step.description, step.record.location, step.record.name)

    back = step.feedback
    if back is None:
        return neurons(x)
    counted, place = step.description.counts, back.record.location
    return builder.recurrent(x, back.record.name, neurons, place, bias=back.bias is not None, counted=counted)
