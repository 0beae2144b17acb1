"""``.onnx`` files to models."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import onnx

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.frontends.neuron_description import NeuronDescription
from h2learn.compiler.model import Model

from .emit import Output, Plan, is_a_name, prepare
from .executor import MAX_STEPS, Executor, Problem
from .graph import Constant, Dimension, Graph, GraphInput, read_graph
from .initial_states import acts_later
from .operators import new_executor
from .outputs import NotedError, roll_reduction
from .roll import Layer, Roller
from .step_graph import weight_inputs
from .steps import StepNode
from .training_step import load_step
from .values import BATCH_FOLDED, TIME_FOLDED, RefusalError, Refused, Series, Value, series, time_place

RESETS = ("hard", "soft", "soft-delayed")
NEURONS = {
    "lif": NeuronDescription(compare="gt"),
    "if": NeuronDescription(alpha=(1.0,), reset="soft", compare="gt"),
}
UNKNOWN_BATCH = 2
MAX_PAIRINGS = 24
MAX_DELAYED = 64
SHOWN_NODES = 8
MAX_INPUT_ELEMENTS = 1 << 32
STEPS_HINT = "give the option time_steps (--time-steps T)"
NEURONS_HINT = "for a network without time, give neurons='lif' and time_steps"


def load_onnx(
    path: str | PathLike[str],
    *,
    time_steps: int | None = None,
    reset: str | None = None,
    neurons: str | None = None,
) -> Model:
    """Return the model of an ``.onnx`` file, for the batch of the file (1 where it leaves the batch open).

    ``time_steps``: for files that leave the number of time steps open (loops over a dynamic input, single-step cells).
    ``reset``: what the neurons' reset is expected to be; the file says it, so another one is an error.
    ``neurons``: turns the activations (ReLU) of a network without time into neurons (needs ``time_steps``): ``"lif"``
    with decay 0.5 and hard reset, for training; ``"if"`` without decay and with soft reset, whose rates follow the
    activations once thresholds are calibrated (:func:`h2learn.calibrate`).
    Raises H2LearnError when the file cannot be read, or lists every node that cannot be imported, with the reason.
    """
    file = str(path)
    _check_options(file, time_steps, reset, neurons)
    graph = read_graph(path)
    if weight_inputs(graph) and len(graph.outputs) > 1:
        return load_step(file, graph, lambda forward, given: _network(file, forward, time_steps, reset, None, given))
    return _network(file, graph, time_steps, reset, neurons, {})


def _network(
    file: str,
    graph: Graph,
    time_steps: int | None,
    reset: str | None,
    neurons: str | None,
    given: Mapping[str, Constant],
) -> Model:
    """Return the model of a forward graph whose parameters are in the file, or ``given``."""
    best: _Attempt | None = None
    fits = False
    forms = _forms(file, graph, time_steps)
    for form in forms:  # grows while it runs
        if fits and not form.usual and form.folded is None:
            break  # a wrong pairing of states with outputs may be a network, too
        attempt = _attempt(file, graph, form, time_steps, neurons, given)
        if best is None or _rank(attempt) < _rank(best):
            best = attempt
        if not best.problems and best.plan is not None:
            break
        fits |= form.usual and attempt.fits
        if form == _Form(None):
            forms += _folded_forms(attempt.unfolded)
    assert best is not None
    if best.problems or best.plan is None:
        raise _refusal(file, best.problems)
    _check_reset(file, best.plan, reset)
    plan = best.plan
    plan.notes += _constants_with_names(graph, plan)
    model = Model(Path(file).stem, plan.build(best.batch), plan.parameters, None, plan.build, tuple(plan.notes))
    return model.with_parameters(plan.parameters)


def _constants_with_names(graph: Graph, plan: Plan) -> list[str]:
    """Return a note on tensors of the file that may have been trained and are no parameters: decays and thresholds."""
    read = {name for node in graph.nodes for name in node.inputs}
    found = [
        name
        for name, constant in graph.initializers.items()
        if name in read and name not in plan.parameters and constant.array.dtype.kind == "f" and is_a_name(name)
    ]
    return [f"{', '.join(found)}: constants here, which training leaves as they are"] if found else []


@dataclass(frozen=True)
class _Form:
    """A way to read the inputs: ``time_axis`` of those over time (None: none), or a single step with states."""

    time_axis: int | None
    states: tuple[int, ...] = ()
    """For a single step: the output that is the next value of each further input."""
    usual: bool = False
    """For a single step: names say so, or states are the last outputs, or the first ones, in their order."""
    folded: tuple[int, int] | None = None
    """With a ``time_axis`` below 0: the two sizes that are one in the file, -1 for one that is not known."""
    initial: tuple[str, ...] = ()
    """Inputs that are states in front of the first step; all others are over time."""


@dataclass
class _Attempt:
    problems: list[Problem]
    plan: Plan | None
    batch: int
    understood: int
    """How many layers were found."""
    unfolded: tuple[tuple[int, int], ...] = ()
    """What reshapes made of the first dimension."""
    fits: bool = True
    """Whether the states have the shapes of the outputs that are their next values."""


def _rank(attempt: _Attempt) -> tuple[bool, int, int]:
    return attempt.plan is None, -attempt.understood, len(attempt.problems)


def _check_options(file: str, time_steps: int | None, reset: str | None, neurons: str | None) -> None:
    if time_steps is not None and (isinstance(time_steps, bool) or not isinstance(time_steps, int)):
        raise H2LearnError(f"expected a number of time steps, found {time_steps!r}", location=file)
    if time_steps is not None and not 1 <= time_steps <= MAX_STEPS:
        raise H2LearnError(f"expected 1 to {MAX_STEPS} time steps, found {time_steps}", location=file)
    if reset is not None and reset not in RESETS:
        raise H2LearnError(f"expected reset {', '.join(RESETS)}, found {reset!r}", location=file)
    if neurons is not None and neurons not in NEURONS:
        raise H2LearnError(f"expected neurons {', '.join(NEURONS)}, found {neurons!r}", location=file)
    if neurons is not None and time_steps is None:
        raise H2LearnError(
            "expected a number of time steps for new neurons, found none", location=file, hint=STEPS_HINT
        )


def _check_reset(file: str, plan: Plan, reset: str | None) -> None:
    for layer in plan.neurons:
        assert layer.neuron is not None
        found = layer.neuron.neuron.reset.replace("_", "-")
        if reset is not None and layer.neuron.neuron.fires and found not in (reset, "none"):
            raise H2LearnError(
                f"expected reset {reset}, found reset {found} in {layer.name}",
                location=file,
                hint="leave the option out: the graph says how its neurons are reset",
            )


def _forms(file: str, graph: Graph, time_steps: int | None) -> list[_Form]:
    """Return the ways to read the inputs, the most likely first; raises H2LearnError when there is none."""
    if not graph.inputs or not graph.outputs:
        raise H2LearnError("expected a graph with an input and an output, found none", location=file)
    for entry in graph.inputs:
        if entry.kind not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE) or entry.shape is None:
            half = entry.kind in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
            raise H2LearnError(
                f"expected a float tensor of known rank as input {entry.name}",
                location=file,
                hint="export in float32 and compile with precision='fp16'" if half else "",
            )
    first = graph.inputs[0]
    assert first.shape is not None
    weights = weight_inputs(graph)
    if weights:
        raise H2LearnError(
            f"expected weights inside the file, found the inputs {', '.join(weights)}",
            location=file,
            hint="export the network with its parameters, or the whole training step with the new parameters",
        )
    rank = len(first.shape)
    axes: dict[int, tuple[int | None, ...]] = {2: (None,), 3: (0, 1, 2, None), 4: (None, 0, 1, 3), 5: (0, 1, 4)}
    if rank not in axes:
        raise H2LearnError(f"expected an input of 2 to 5 dimensions, found {first.name} of {rank}", location=file)
    if len(graph.inputs) == 1:
        return [_Form(axis) for axis in axes[rank]]
    whole = _several_inputs(graph, [axis for axis in axes[rank] if axis is not None])
    if time_steps is None and whole:
        return whole
    return [*_single_steps(file, graph, time_steps), *whole]


def _folded_forms(unfolded: Sequence[tuple[int, int]]) -> list[_Form]:
    """Return the ways to read an input whose first dimension is both time and batch, as reshapes say."""
    axes = (BATCH_FOLDED, TIME_FOLDED)
    return [_Form(axis, folded=sizes) for sizes in unfolded for axis in axes]


def _several_inputs(graph: Graph, axes: Sequence[int]) -> list[_Form]:
    """Return the ways to read several inputs that are over time, or states in front of the first step."""
    first, *others = graph.inputs
    assert first.shape is not None
    found = []
    for axis in axes:
        steps = first.shape[axis]
        over_time = [len(o.shape or ()) > max(axis, 2) and (o.shape or ())[axis] == steps for o in others]
        batches = {entry.shape[0 if axis else 1] for entry in graph.inputs if entry.shape and len(entry.shape) > 1}
        if all(over_time) and len(batches) == 1:
            found.append(_Form(axis))
        batch = first.shape[0 if axis else 1]
        if all(o.shape and len(o.shape) < len(first.shape) and o.shape[0] in (batch, None) for o in others):
            found.append(_Form(axis, initial=tuple(o.name for o in others)))
    return found


def _single_steps(file: str, graph: Graph, time_steps: int | None) -> list[_Form]:
    """Return the ways to feed the outputs of a step back as its states."""
    states = graph.inputs[1:]
    if len(graph.outputs) < len(states):
        raise H2LearnError(
            f"expected an output for each of the {len(states)} states {', '.join(s.name for s in states)}, "
            f"found {len(graph.outputs)} outputs",
            location=file,
        )
    if time_steps is None:
        raise H2LearnError(
            f"expected a number of time steps for a single step with the states {', '.join(s.name for s in states)}",
            location=file,
            hint=STEPS_HINT,
        )
    count, known = len(states), len(graph.outputs)
    usual = (tuple(range(known - count, known)), tuple(range(count)))

    def unlikely(order: tuple[int, ...]) -> tuple[int, int]:
        return -_affinity(graph, order), usual.index(order) if order in usual else len(usual)

    choices = itertools.islice(itertools.permutations(range(known), count), 5040)
    ranked = sorted(dict.fromkeys((*usual, *choices)), key=unlikely)[:MAX_PAIRINGS]
    return [_Form(None, order, usual=order in usual or _affinity(graph, order) == count) for order in ranked]


def _affinity(graph: Graph, order: Sequence[int]) -> int:
    """Return how many states have the name of the output that is their next value."""
    pairs = zip(graph.inputs[1:], order, strict=True)
    return sum(_stem(state.name) == _stem(graph.outputs[index]) for state, index in pairs)


def _stem(name: str) -> str:
    words = [word for word in re.split(r"[._/:]+", name.lower()) if word]
    return "_".join(word for word in words if word not in ("in", "out", "prev", "next", "new", "old", "state", "t"))


def _attempt(
    file: str,
    graph: Graph,
    form: _Form,
    time_steps: int | None,
    neurons: str | None,
    given: Mapping[str, Constant],
) -> _Attempt:
    executor = new_executor(graph.opset)
    first = graph.inputs[0]
    try:
        sizes = _sizes(first, form, time_steps)
        if form.states:
            values = _run_steps(executor, graph, form, sizes)
        else:
            _check_initial(graph, form, sizes, time_steps, given)
            values = executor.run(graph, {**_arguments(executor, graph, form, sizes, time_steps), **given})
    except RefusalError as error:
        executor.refuse(first.name, "input", str(error), error.hint)
        return _Attempt(executor.problems, None, 1, 0, fits=not isinstance(error, _ShapeError))
    outputs = _outputs(executor, graph, form, values)
    told = list(executor.problems)
    delayed: list[tuple[StepNode, ...]] = []
    while True:
        roller = Roller(executor.refuse, NEURONS[neurons] if neurons is not None else None, whole=delayed)
        found = _layers(executor, roller, outputs, sizes.steps)
        if not roller.longer or len(delayed) > MAX_DELAYED:
            break
        delayed += roller.longer
        executor.forget(told)
    whole = len(found) + len(roller.left_out) == len(outputs)
    plan = _plan(file, executor, roller, first.name, form, found) if found and whole else None
    if plan is not None and form.time_axis is not None and plan.time_steps != sizes.steps:
        executor.refuse(
            first.name, "input", f"the outputs need {plan.time_steps} of its {sizes.steps} time steps", "cut it before"
        )
    if plan is not None:
        plan.given = frozenset(given)
        prepare(plan, executor.refuse)
        plan.notes += [
            f"state {state.name} is fed from output {graph.outputs[index]}"
            for state, index in zip(graph.inputs[1:], form.states, strict=False)
        ]
    if plan is not None and not executor.problems:
        _try_build(executor, plan, sizes.batch)
    unfolded = tuple(executor.steps.unfolded)
    return _Attempt(executor.problems, plan, sizes.batch if sizes.known else 1, len(roller.layers), unfolded)


@dataclass(frozen=True)
class _Sizes:
    """Sizes of the first input: time, batch (``known``: the file says it) and features."""

    steps: int
    batch: int
    known: bool
    features: tuple[int, ...]


def _sizes(entry: GraphInput, form: _Form, time_steps: int | None) -> _Sizes:
    assert entry.shape is not None
    shape = list(entry.shape)
    steps: object = time_steps or 1
    if form.folded is not None:
        shape[:1] = _apart(shape[0], form, time_steps)
    if form.time_axis is not None:
        steps = shape.pop(time_place(form.time_axis)[0])
        if not isinstance(steps, int):
            steps = time_steps
        if steps is None:
            raise RefusalError(
                "expected a number of time steps, the file leaves it open",
                STEPS_HINT,
            )
        if time_steps is not None and steps != time_steps:
            raise RefusalError(f"expected {time_steps} time steps, found {steps} in the file")
    batch, *features = shape
    known = isinstance(batch, int)
    if any(not isinstance(size, int) for size in features):
        raise RefusalError(f"expected known sizes of features, found {list(entry.shape)}")
    whole = tuple(size for size in features if isinstance(size, int))
    count = batch if isinstance(batch, int) else UNKNOWN_BATCH
    assert isinstance(steps, int)
    if min(steps, count, *whole) < 1 or steps > MAX_STEPS or math.prod(whole) * count > MAX_INPUT_ELEMENTS:
        raise RefusalError(f"expected positive sizes, found {list(entry.shape)}")
    return _Sizes(steps, count, known, whole)


def _apart(size: Dimension, form: _Form, time_steps: int | None) -> list[Dimension]:
    """Return the two sizes that are one in the file, None where nothing tells one."""
    assert form.folded is not None and form.time_axis is not None
    sizes: list[Dimension] = [None if n == -1 else n for n in form.folded]
    axis = time_place(form.time_axis)[0]
    if not isinstance(size, int):
        sizes[axis] = time_steps if sizes[axis] is None else sizes[axis]
        return sizes
    known = math.prod(n for n in sizes if isinstance(n, int))
    if size % known or (None not in sizes and size != known):
        raise RefusalError(f"a first dimension of {size} cannot be {form.folded[0]} x {form.folded[1]}")
    return [size // known if n is None else n for n in sizes]


def _arguments(
    executor: Executor, graph: Graph, form: _Form, sizes: _Sizes, time_steps: int | None
) -> dict[str, Value]:
    """Return the inputs of a whole run; states start from 0."""
    found: dict[str, Value] = {}
    for entry in graph.inputs:
        if entry.name in form.initial:
            found[entry.name] = _zeros(entry, sizes.batch)
            executor.note(f"input {entry.name} is left out: a state that starts at 0")
            continue
        own = sizes if not found else _sizes(entry, form, time_steps)
        if (own.steps, own.batch) != (sizes.steps, sizes.batch):
            raise RefusalError(f"expected {sizes.batch} samples and {sizes.steps} time steps of {entry.name} as well")
        found[entry.name] = _input(executor, entry, form, own)
    return found


def _check_initial(
    graph: Graph, form: _Form, sizes: _Sizes, time_steps: int | None, given: Mapping[str, Constant]
) -> None:
    """Raise RefusalError where an input that is taken for an initial state acts in later steps, too."""
    if not form.initial:
        return
    executor = new_executor(graph.opset)
    arguments = _arguments(executor, graph, form, sizes, time_steps)
    for entry in graph.inputs:
        if entry.name in form.initial:
            shape = tuple(size if isinstance(size, int) else sizes.batch for size in entry.shape or ())
            arguments[entry.name] = executor.steps.node("input", [], shape, entry.name, key=(entry.name, None))
    values = executor.run(graph, {**arguments, **given})
    for name in form.initial:
        later = acts_later(values, name, graph.inputs[0].name)
        if later is not None:
            raise RefusalError(
                f"the input {name} acts in later steps, too ({later.source}): it is no initial state",
                "repeat it for every time step",
            )


def _input(executor: Executor, entry: GraphInput, form: _Form, sizes: _Sizes) -> Value:
    shape = (sizes.batch, *sizes.features)
    if form.time_axis is None:
        return executor.steps.node("input", [], shape, f"{entry.name} (input)", key=(entry.name, None))
    return series([_input_step(executor, entry, shape, step) for step in range(sizes.steps)], form.time_axis)


def _input_step(executor: Executor, entry: GraphInput, shape: tuple[int, ...], step: int) -> StepNode:
    return executor.steps.node("input", [], shape, f"{entry.name} (input)", key=(entry.name, step))


def _run_steps(executor: Executor, graph: Graph, form: _Form, sizes: _Sizes) -> list[Value]:
    """Run a single step again and again, from states of zero; return its outputs over time."""
    first, *states = graph.inputs
    current: list[Value] = [_zeros(state, sizes.batch) for state in states]
    rows = []
    for step in range(sizes.steps):
        x = _input_step(executor, first, (sizes.batch, *sizes.features), step)
        values = executor.run(graph, {first.name: x, **dict(zip((s.name for s in states), current, strict=True))})
        current = [
            _next(values[index], state, value) for index, state, value in zip(form.states, states, current, strict=True)
        ]
        rows.append(values)
    return [_over_time(column) for column in zip(*rows, strict=True)]


class _ShapeError(RefusalError):
    """An output is no next value of a state."""


def _next(value: Value, state: GraphInput, before: Value) -> Value:
    """Return the next value of a state, which must have its shape."""
    known = (StepNode, Constant)
    if isinstance(value, known) and isinstance(before, known) and value.shape != before.shape:
        raise _ShapeError(f"the next value of {state.name} would have another shape")
    return value


def _zeros(state: GraphInput, batch: int) -> Constant:
    assert state.shape is not None
    shape = [size if isinstance(size, int) else batch for size in state.shape]
    if min(shape, default=1) < 0 or math.prod(shape) > MAX_INPUT_ELEMENTS:
        raise RefusalError(f"the state {state.name} has no usable shape")
    return Constant(np.zeros(shape, dtype=np.float32))


def _over_time(column: Sequence[Value]) -> Value:
    nodes = [value for value in column if isinstance(value, StepNode)]
    return series(nodes, 0) if len(nodes) == len(column) else Refused()


def _outputs(executor: Executor, graph: Graph, form: _Form, values: Sequence[Value]) -> list[tuple[str, Value]]:
    named = list(zip(graph.outputs, values, strict=True))
    if not form.states:
        return named
    others = [pair for index, pair in enumerate(named) if index not in form.states]
    return others or named[:1]


@dataclass(frozen=True)
class _Found:
    """An output, and how many time steps it stands for."""

    output: Output
    steps: int


def _layers(executor: Executor, roller: Roller, outputs: Sequence[tuple[str, Value]], steps: int) -> list[_Found]:
    """Return the outputs whose layers were found; the others are refused."""
    found: list[_Found] = []
    for name, value in outputs:
        if isinstance(value, Refused):
            continue
        told = len(executor.problems)
        try:
            one = _found(executor, roller, name, value, steps)
        except NotedError:
            one = None
        except RefusalError as error:
            executor.refuse(name, "output", str(error), error.hint)
            one = None
        if one is not None:
            found.append(one)
        elif found and not _is_over_time(value) and len(executor.problems) > told:
            del executor.problems[told:]
            roller.left_out.append(name)
    return found


def _is_over_time(value: Value) -> bool:
    return isinstance(value, Series) or (isinstance(value, StepNode) and value.op.startswith("time_"))


def _plan(
    file: str, executor: Executor, roller: Roller, input_name: str, form: _Form, found: Sequence[_Found]
) -> Plan | None:
    counts = {entry.steps for entry in found}
    outputs = [entry.output for entry in found]
    layers = _used(roller.layers, outputs)
    inputs = [layer.node.key[1] for layer in layers if layer.kind == "input"]
    if len(counts) != 1 or not inputs:
        executor.refuse(outputs[0].name, "output", "the outputs have different numbers of time steps, or no input")
        return None
    names = [layer.node.key[0] for layer in layers if layer.kind == "input"]
    if len(names) > len(set(names)):
        executor.refuse(str(names[0]), "input", "its time steps are used in different ways side by side")
        return None
    if counts == {1} and None in inputs:
        executor.refuse(input_name, "input", "a network without time", NEURONS_HINT)
    plan = Plan(file, Path(file).stem, form.time_axis or 0, counts.pop(), layers, outputs)
    plan.notes += executor.notes
    if form.folded is not None:
        product, order = (
            ("N*T", "steps of a sample") if form.time_axis == BATCH_FOLDED else ("T*N", "samples of a step")
        )
        plan.notes.append(
            f"the first dimension of {input_name} is {product}, the {order} next to each other; T = {plan.time_steps}"
        )
    plan.notes += [f"output {name} is left out: a state behind the last time step" for name in roller.left_out]
    return plan


def _found(executor: Executor, roller: Roller, name: str, value: Value, steps: int) -> _Found | None:
    """Return an output as a layer over time, or as a readout; raises RefusalError, None when reasons were told."""
    kept = None
    if isinstance(value, Series) and len(value.nodes) == 1 and steps > 1 and value.axis >= 0:
        kept, value = value.axis, value.nodes[0]
    elif isinstance(value, Series):
        layer = roller.roll(value.nodes)
        return None if layer is None else _Found(Output(name, layer, value.axis), len(value.nodes))
    if not isinstance(value, StepNode):
        raise RefusalError("it does not depend on the network's input")
    if roller.activation is not None:
        shown = StepNode(-1, "time_mean", (value,) * steps, (), value.shape, value.source)
        inner = roller.roll(shown.args)
        if inner is None:
            return None
        roller.layers.append(Layer(shown.op, shown, (inner,)))
        return _Found(Output(name, roller.layers[-1], kept_axis=kept), steps)
    readout, count = roll_reduction(executor.steps, roller, value)
    return _Found(Output(name, readout, kept_axis=kept), count)


def _used(layers: Sequence[Layer], outputs: Sequence[Output]) -> list[Layer]:
    used, waiting = set(), [output.layer for output in outputs]
    while waiting:
        layer = waiting.pop()
        if layer not in used:
            used.add(layer)
            waiting += layer.inputs
    return [layer for layer in layers if layer in used]


def _try_build(executor: Executor, plan: Plan, batch: int) -> None:
    """Build once, to learn what the layers say about each other."""
    try:
        plan.build(batch)
    except H2LearnError as error:
        place = str(error.location).removeprefix(f"{plan.file}:")
        executor.refuse(place, "layer", error.message, error.hint)


def _refusal(file: str, problems: Sequence[Problem]) -> H2LearnError:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for p in problems:
        groups.setdefault((p.op, p.reason, p.hint), []).append(p.node)
    lines = []
    for (op, reason, hint), nodes in groups.items():
        more = f" and {len(nodes) - SHOWN_NODES} more" if len(nodes) > SHOWN_NODES else ""
        lines.append(f"  {', '.join(nodes[:SHOWN_NODES])}{more} ({op}): {reason}" + (f"; {hint}" if hint else ""))
    count = "1 node" if len(problems) == 1 else f"{len(problems)} nodes"
    return H2LearnError(
        f"expected a spiking network, found {count} that cannot be imported",
        location=file,
        excerpt="\n".join(lines) or "  no output was recognised",
    )
