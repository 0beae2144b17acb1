"""Graphs of a whole training step: forward, backward and update, as functional autograd exports them.

The forward part is recognised as any network. Loss, surrogate gradient and optimizer are read off the rest by what
they compute. Then the step found is proven: the graph and our own backpropagation through time of the recovered network
run on the same random numbers and must give the same loss and gradients.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
from xdsl.dialects import builtin

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.reference import training as reference
from h2learn.compiler.autodiff import differentiate
from h2learn.compiler.autodiff.spec import SGD, Train
from h2learn.compiler.model import Model, StepInterface
from h2learn.dialects.common import get_io
from h2learn.dialects.spike.interpreter import interpret, main_block

from .graph import Array, Constant, Graph, GraphInput
from .step_graph import StepGraph
from .surrogates import find_windows
from .values import RefusalError

Floats = npt.NDArray[np.float32]
Recogniser = Callable[[Graph, Mapping[str, Constant]], Model]

GAINS = (2.0, 3.0, 1.5, 4.0, 2.5, 6.0)
"""How strong the random weights of each attempt are: neurons must fire, and not always."""
TOLERANCE = 1e-5
LOSSES = {"cross_entropy": reference.Loss(), "mse_rate": reference.Loss("mse")}
"""Losses that are recognised, by the name that a recipe gives them."""


def load_step(file: str, graph: Graph, recognise: Recogniser) -> Model:
    """Return the model of a training step: the network of its forward part, and the recipe of the rest.

    ``recognise`` makes a model of a forward graph, given its parameters. Raises H2LearnError when a part is not
    recognised, or when our own training step gives other numbers than the graph; the differences are listed.
    """
    try:
        return _load(file, graph, recognise)
    except RefusalError as error:
        raise H2LearnError(
            f"expected a training step (forward, backward, update), found one that cannot be imported: {error}",
            location=file,
            hint=error.hint or "export the forward pass alone; h2learn derives the training step itself",
        ) from None


@dataclass(frozen=True)
class _Trial:
    """Random inputs of the graph, and all values it computes from them."""

    feeds: Mapping[str, Array]
    label: npt.NDArray[np.int32]
    values: Mapping[str, Array]


@dataclass(frozen=True)
class _Comparison:
    """The largest difference of each result, relative to its largest value; None where it is zero on both sides."""

    differences: Mapping[str, float | None]

    @property
    def worst(self) -> float:
        """The largest difference of all."""
        return max((d for d in self.differences.values() if d is not None), default=math.inf)

    @property
    def tells(self) -> bool:
        """Whether nothing is zero for lack of activity."""
        return None not in self.differences.values()


def _load(file: str, graph: Graph, recognise: Recogniser) -> Model:
    step = StepGraph(graph)
    trials = [_trial(step, seed, gain) for seed, gain in enumerate(GAINS)]
    loss, logits = _find_loss(step, trials)
    parameters = {name: Constant(trials[0].feeds[name], name) for name in step.roles.parameters}
    data = next(entry for entry in graph.inputs if entry.name == step.roles.data)
    needed = step.ancestors([logits])
    nodes = tuple(node for node in graph.nodes if needed.intersection(node.outputs))
    forward = recognise(Graph((data,), (logits,), graph.initializers, nodes, graph.opset), parameters)
    if set(forward.parameters) != set(parameters):
        strange = sorted(set(forward.parameters) ^ set(parameters))
        raise RefusalError(f"{', '.join(strange)} is not both a parameter of the forward part and updated")
    gradients, optimizer = _find_optimizer(step, trials[0].values)
    windows = find_windows(step, trials[0].values)
    if len({(w.kind, w.half_width) for w in windows}) > 1:
        raise RefusalError("its neurons have different surrogate gradients")
    heights = dict.fromkeys(s for w in windows for s in w.surrogates())
    recipes = [
        Train(loss=loss, optimizer=optimizer, surrogate=surrogate, detach_reset=detached)
        for surrogate, detached in itertools.product(heights, (False, True))
    ]
    recipe, comparison = _prove(file, forward, step, trials, gradients, recipes)
    note = (
        f"training step: loss {loss}, {optimizer}, {recipe.surrogate}, "
        f"{'reset detached' if recipe.detach_reset else 'gradient through the reset'}; loss and gradients equal those "
        f"of the graph within {comparison.worst:.1e}"
    )
    blank = {name: np.zeros_like(value) for name, value in forward.parameters.items()}
    return replace(
        forward, parameters=blank, train=recipe, notes=(*forward.notes, note), step=_interface(step, trials[0])
    )


def _interface(step: StepGraph, trial: _Trial) -> StepInterface:
    roles = step.roles
    return StepInterface(
        inputs=tuple(entry.name for entry in step.graph.inputs),
        target=roles.target,
        one_hot=trial.feeds[roles.target].ndim == 2,
        loss=roles.loss,
        parameters=roles.parameters,
        rate=roles.rate or "",
    )


def _trial(step: StepGraph, seed: int, gain: float) -> _Trial:
    """Run the graph on random numbers that are short in binary, so that sums are mostly exact."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    label = np.zeros(0, dtype=np.int32)
    for entry in step.graph.inputs:
        shape = _sizes(entry)
        if entry.name == step.roles.target:
            label, feeds[entry.name] = _target(rng, entry, shape)
        elif entry.name == step.roles.data:
            feeds[entry.name] = (rng.integers(0, 9, shape) / 8).astype(np.float32)
        elif entry.name == step.roles.rate:
            feeds[entry.name] = np.full(shape, 0.125, dtype=np.float32)
        else:
            fan_in = math.prod(shape[1:]) if len(shape) > 1 else 64
            values = gain * (rng.standard_normal(shape) + 0.1) / math.sqrt(max(fan_in, 1))
            feeds[entry.name] = (np.round(values * 64) / 64).astype(np.float32)
    return _Trial(feeds, label, step.run(feeds))


def _sizes(entry: GraphInput) -> tuple[int, ...]:
    if entry.shape is None or not all(isinstance(size, int) and size > 0 for size in entry.shape):
        raise RefusalError(f"the input {entry.name} has sizes that the file does not say")
    return tuple(int(size) for size in entry.shape if size is not None)


def _target(rng: np.random.Generator, entry: GraphInput, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.int32], Array]:
    if entry.kind in (onnx.TensorProto.INT64, onnx.TensorProto.INT32) and len(shape) == 1:
        label = rng.integers(0, 2, shape).astype(np.int32)
        return label, label.astype(np.int64 if entry.kind == onnx.TensorProto.INT64 else np.int32)
    if len(shape) != 2:
        raise RefusalError(f"the target {entry.name} is neither classes [N] nor one-hot [N, K]")
    label = rng.integers(0, shape[1], shape[0]).astype(np.int32)
    return label, np.eye(shape[1], dtype=np.float32)[label]


def _find_loss(step: StepGraph, trials: Sequence[_Trial]) -> tuple[str, str]:
    """Return the loss by name, and the tensor that it reads.

    That is the first one of which the loss is that function, or the last one that holds the same numbers.
    """
    behind = step.descendants(step.roles.data) & step.forward - step.descendants(step.roles.target)
    names = [name for node in step.graph.nodes for name in node.outputs if name in behind]
    for kind, name in itertools.product(LOSSES, names):
        if all(_is_loss(kind, trial, trial.values[name], step.roles.loss) for trial in trials):
            same = [n for n in names if all(np.array_equal(t.values[n], t.values[name]) for t in trials)]
            return kind, same[-1]
    raise RefusalError(f"{step.roles.loss} is no loss that is known", f"known losses: {', '.join(LOSSES)}")


def _is_loss(kind: str, trial: _Trial, logits: Array, loss: str) -> bool:
    if logits.ndim != 2 or logits.shape[0] != len(trial.label) or logits.shape[1] <= int(trial.label.max()):
        return False
    expected = float(reference.loss(logits.astype(np.float64), trial.label, len(trial.label), LOSSES[kind]))
    return math.isclose(expected, float(trial.values[loss].ravel()[0]), rel_tol=1e-4, abs_tol=1e-6)


def _find_optimizer(step: StepGraph, values: Mapping[str, Array]) -> tuple[dict[str, str], SGD]:
    """Return the gradient of each parameter, and the optimizer, from the sums that the new parameters are."""
    if step.roles.states:
        raise RefusalError(f"the optimizer has a state ({', '.join(step.roles.states)})", "plain SGD has none")
    gradients, rules = {}, set()
    for parameter, output in step.roles.parameters.items():
        terms = step.linear_terms(output, values)
        others = {name: factor for name, factor in terms.items() if name != parameter}
        if len(others) != 1 or not min(others.values()) < 0:
            raise RefusalError(f"{output} is not {parameter} minus a rate times one gradient")
        [(gradients[parameter], factor)] = others.items()
        decay = (1 - terms.get(parameter, 0.0)) / -factor
        rules.add((float(f"{-factor:.7g}"), float(f"{decay:.6g}") + 0.0))
    if len(rules) != 1:
        shown = ", ".join(f"rate {rate:g} with weight decay {decay:g}" for rate, decay in sorted(rules))
        raise RefusalError(f"the parameters are updated by different rules: {shown}")
    [(rate, decay)] = rules
    return gradients, SGD(lr=rate, weight_decay=decay)


def _prove(
    file: str,
    forward: Model,
    step: StepGraph,
    trials: Sequence[_Trial],
    gradients: Mapping[str, str],
    recipes: Sequence[Train],
) -> tuple[Train, _Comparison]:
    """Return the recipe that gives the graph's loss and gradients; raises H2LearnError with the differences.

    It must do so in most trials that tell something, two at least: in a few a spike may flip by rounding.
    """
    nearest: tuple[Train, _Comparison] | None = None
    for recipe in recipes:
        module = differentiate(forward.module, recipe)
        found = [_compare(_own_results(module, forward, trial), step, trial, gradients) for trial in trials]
        telling = sorted((c for c in found if c.tells), key=lambda c: c.worst)
        equal = [c for c in telling if c.worst <= TOLERANCE]
        if len(equal) >= 2 and 2 * len(equal) > len(telling):
            return recipe, equal[-1]
        middle = (telling or found)[len(telling) // 2]
        if nearest is None or middle.worst < nearest[1].worst:
            nearest = recipe, middle
    assert nearest is not None
    lines = [
        f"  {name}: {'zero on both sides' if value is None else f'differs by {value:.2g} of its largest value'}"
        for name, value in nearest[1].differences.items()
    ]
    raise H2LearnError(
        f"expected a training step that is backpropagation through time of its forward part, found other numbers than "
        f"those of {nearest[0].loss}, {nearest[0].optimizer}, {nearest[0].surrogate}",
        location=file,
        excerpt="\n".join(lines),
        hint="export the forward pass alone; h2learn derives the training step itself",
    )


def _own_results(module: builtin.ModuleOp, forward: Model, trial: _Trial) -> dict[str, Array]:
    """Return our loss, and the gradients by parameter in the file's layout."""
    entries, count = get_io(module), len(main_block(module).args)
    scalars = reference.RunScalars(valid=len(trial.label)).to_array()
    given = {"label": trial.label, "scalars": scalars}
    arguments = [
        given[entry.role] if entry.role in given else entry.to_device(trial.feeds[entry.name])
        for entry in entries[:count]
    ]
    found: dict[str, Array] = {}
    for entry, value in zip(entries[count:], interpret(module, arguments), strict=True):
        if entry.role == "loss":
            found["loss"] = value
        elif entry.role == "gradient":
            found[entry.name] = entry.to_source(value, forward.parameters[entry.name].shape)
    return found


def _compare(own: Mapping[str, Array], step: StepGraph, trial: _Trial, gradients: Mapping[str, str]) -> _Comparison:
    theirs = {"loss": step.roles.loss, **gradients}
    found: dict[str, float | None] = {}
    for name, tensor in theirs.items():
        expected = trial.values[tensor].astype(np.float64)
        actual = own[name].astype(np.float64).reshape(expected.shape)
        scale = float(np.abs(expected).max())
        difference = float(np.abs(actual - expected).max())
        found["loss" if name == "loss" else f"gradient of {name}"] = difference / scale if scale else difference or None
    return _Comparison(found)
