"""Brings time back: from the nodes of all steps to layers with time as one dimension.

A value over time is its sequence of nodes, one per step. Where all of them are the same layer with the same weights,
that is a layer of the sequence of their inputs; where they are pointwise, they are a neuron.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from h2learn.backends.reference.gate import GATES
from h2learn.compiler.frontends.neuron_description import NeuronDescription

from .filters import spikes_within
from .forms import Feedback, pointwise_order
from .gates import gates_of
from .recognise import Recognised, factor_of, recognise
from .steps import StepNode
from .values import RefusalError

RANDOM = "random numbers inside the graph"
RANDOM_HINT = "export the network without its encoder or its noise"

Sequence_ = tuple[StepNode, ...]
REGROUPING = ("flatten", "reshape")


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer of the network: ``node`` is the one of a step that shows its attributes.

    ``kind`` is ``input``, the operator of a layer, ``neuron``, or a readout over time. ``inputs`` are layers;
    ``feedback`` is the layer through which a neuron receives its own spikes of the step before.
    """

    kind: str
    node: StepNode
    inputs: tuple[Layer, ...] = ()
    neuron: Recognised | None = None
    feedback: Layer | None = None

    @property
    def name(self) -> str:
        """How messages call the layer."""
        return self.node.source


@dataclass
class Roller:
    """Finds layers; ``refuse(node name, operator, reason, hint)`` is told about everything that is none."""

    refuse: Callable[[str, str, str, str], None]
    activation: NeuronDescription | None = None
    """What the activations (ReLU) of a network without time become."""
    layers: list[Layer] = field(default_factory=list)
    whole: Sequence[Sequence_] = ()
    """Values over all time steps of which a delay reads the first ones."""
    longer: list[Sequence_] = field(default_factory=list)
    """Such values that were found too late: rolling again with them as ``whole`` makes one layer of both."""
    left_out: list[str] = field(default_factory=list)
    """Outputs that are states behind the last step."""
    _known: dict[tuple[int, ...], Layer | None] = field(default_factory=dict)
    _open: list[tuple[int, ...]] = field(default_factory=list)
    _feedback: dict[int, Layer] = field(default_factory=dict)

    def roll(self, nodes: Sequence_) -> Layer | None:
        """Return the layer whose results, one per step, ``nodes`` are; None after a refusal."""
        nodes = next((whole for whole in self.whole if len(nodes) < len(whole) and whole[: len(nodes)] == nodes), nodes)
        key = tuple(node.number for node in nodes)
        longer = [layer for other, layer in self._known.items() if len(other) > len(key) and other[: len(key)] == key]
        if longer and longer[0] is not None and key not in self._known:
            return longer[0]
        if any(key == other[: len(key)] for other in self._open):
            raise RefusalError(
                f"a recurrent synapse ({nodes[-1].source}) that is more than a linear layer of the neuron's own spikes "
                "of the step before is not supported yet"
            )
        if key not in self._known:
            self._note_longer(nodes, key)
            self._open.append(key)
            self._known[key] = None
            try:
                layer = self._find(nodes)
            except RefusalError as error:
                shown = next((node for node in nodes if node.op != "const"), nodes[-1])
                name, operator = split_source(shown.source)
                self.refuse(name, operator, str(error), error.hint)
                layer = None
            finally:
                self._open.pop()
            self._known[key] = layer
            if layer is not None and layer not in self.layers:  # a factor of 1 is the layer it is applied to
                self.layers.append(layer)
        return self._known[key]

    def _note_longer(self, nodes: Sequence_, key: tuple[int, ...]) -> None:
        """Remember a layer of which a shorter one, that a delay reads, was found first: those are one layer."""
        if any(layer is not None and key[: len(shorter)] == shorter for shorter, layer in self._known.items()):
            self.longer.append(nodes)

    def attempt(self, nodes: Sequence_) -> Layer | None:
        """Return the layer as :meth:`roll` does; None, with nothing refused, where there is none."""
        refuse, known, count = self.refuse, dict(self._known), len(self.layers)
        self.refuse = _ignore
        try:
            layer = self.roll(nodes)
        finally:
            self.refuse = refuse
        if layer is None:
            self._known = known
            del self.layers[count:]
        return layer

    def _find(self, nodes: Sequence_) -> Layer | None:
        last = nodes[-1]
        silent = next((step for step, node in enumerate(nodes) if not _is_zero(node)), 0)
        if silent:
            source = self.roll(nodes[silent:])
            shown = StepNode(-1, "delay", (last,), (silent,), last.shape, last.source)
            return None if source is None else Layer("delay", shown, (source,))
        if all(node.op == "input" for node in nodes):
            return self._input(nodes)
        if last.op == "random":
            raise RefusalError(RANDOM, RANDOM_HINT)
        if last.pointwise:
            return self._neuron(nodes)
        for step, node in enumerate(nodes):
            if (node.op, node.key, node.shape) != (last.op, last.key, last.shape):
                reason = "weights or attributes" if node.op == last.op else "an operation"
                raise RefusalError(
                    f"time step {step} has other {reason} ({node.source}) than time step {len(nodes) - 1}",
                    "all time steps must be the same cell",
                )
        inputs = [self.roll(tuple(node.args[k] for node in nodes)) for k in range(len(last.args))]
        found = [layer for layer in inputs if layer is not None]
        return Layer(last.op, nodes[0], tuple(found)) if len(found) == len(inputs) else None

    def _input(self, nodes: Sequence_) -> Layer:
        first = nodes[0]
        expected = [(first.key[0], None if first.key[1] is None else step) for step in range(len(nodes))]
        if [node.key for node in nodes] != expected:
            raise RefusalError("a time step that does not use its own step of the input")
        return Layer("input", first)

    def _neuron(self, nodes: Sequence_) -> Layer | None:
        activated = _activated(nodes[0])
        if self.activation is not None and activated is not None and set(nodes) == {nodes[0]}:
            source = self.roll((activated,) * len(nodes))
            neuron = Recognised(self.activation, "spikes", assumed=True)
            return Layer("neuron", nodes[0], (source,), neuron) if source is not None else None
        groups = _new_leaves(nodes)
        if any(leaf.op == "random" for group in groups for leaf in group):
            raise RefusalError(RANDOM, RANDOM_HINT)
        fed = _feedback_of(groups)
        if fed is not None:
            groups = [[leaf for leaf in group if leaf is not back] for group, back in zip(groups, fed, strict=True)]
        sizes = [len(group) for group in groups]
        static = sizes[0] == 1 and not any(sizes[1:]) and len(nodes) > 1
        if static or set(sizes) == {1}:
            currents = tuple(group[0] for group in groups if group)
            source = self.roll(currents * len(nodes) if static else currents)
            feedback = None if fed is None else Feedback(fed, _bias(fed[-1]))
            factor = factor_of(nodes, currents) if feedback is None and not static else None
            if factor == 1.0:
                return source
            if factor is not None:
                found = Recognised(NeuronDescription(alpha=(0.0,), gain=(factor,), fires=False), "potentials")
            else:
                try:
                    found = recognise(nodes, currents, feedback)
                except RefusalError as error:
                    filtered = self._filter(nodes, currents, feedback)
                    if filtered is not None:
                        return filtered
                    found = _falling(nodes, currents, feedback, error)
            if feedback is not None and feedback.starts_late and any(found.neuron.initial):
                raise RefusalError(
                    "the first time step lacks the bias of the feedback", "feed zeros back in the first step"
                )
            shown = next((node for node in nodes if node.op != "const"), nodes[-1])
            back = None if fed is None else self._layer_of(fed[-1])
            return Layer("neuron", shown, (source,), found, back) if source is not None else None
        if fed is None:
            for gate in gates_of(nodes):
                terms = [self.attempt(part) for part in (gate.first, gate.second)]
                layers = tuple(term for term in terms if term is not None and is_spikes(term))
                if len(layers) == 2:
                    shown = StepNode(
                        -1, "gate", nodes[:1], (gate.kind, gate.polynomial), nodes[0].shape, nodes[0].source
                    )
                    return Layer("gate", shown, layers)
        sums = _sums(nodes, groups)
        if sums is not None and sums != nodes:
            source = self.roll(sums if len(sums) == len(nodes) else sums * len(nodes))
            shown = next((node for node in nodes if node.op != "const"), nodes[-1])
            try:
                found = recognise(nodes, sums)
            except RefusalError as error:
                found = _falling(nodes, sums, None, error)
            return Layer("neuron", shown, (source,), found) if source is not None else None
        if sums is not None:
            terms = [self.roll(tuple(node.args[k] for node in nodes)) for k in range(2)]
            return Layer("add", nodes[0], tuple(t for t in terms if t is not None)) if None not in terms else None
        for k in range(max(sizes)):
            column = tuple(group[k] for group in groups if len(group) > k)
            if len(column) == len(nodes):
                self.roll(column)
        raise RefusalError(*_why_not_one_current(nodes, groups))

    def _filter(self, nodes: Sequence_, currents: Sequence_, feedback: Feedback | None) -> Layer | None:
        """Return integrators (or a factor) of the spikes inside a computation, None where it is something else."""
        inner = spikes_within(nodes, currents, feedback)
        if inner is None or inner == nodes:
            return None
        try:
            found = recognise(nodes, inner)
        except RefusalError:
            return None
        source = self.attempt(inner)
        shown = next((node for node in nodes if node.op != "const"), nodes[-1])
        return None if source is None else Layer("neuron", shown, (source,), found)

    def _layer_of(self, node: StepNode | None) -> Layer:
        """Return the layer that feeds back; spikes and potentials of one neuron share it."""
        assert node is not None
        return self._feedback.setdefault(node.number, Layer(node.op, node))


def counts_spikes(layer: Layer) -> bool:
    """Whether the values of a layer are the spikes of neurons, one or several per step."""
    return is_spikes(layer) or (layer.neuron is not None and layer.neuron.output == "spikes")


def is_spikes(layer: Layer) -> bool:
    """Whether the values of a layer are 0 and 1, as spikes."""
    if layer.neuron is not None:
        return layer.neuron.output == "spikes" and not layer.neuron.neuron.counts
    if layer.kind == "gate" and layer.node.key[0] not in GATES:
        return False
    return layer.kind in ("maxpool", "concat", "delay", "gate", *REGROUPING) and all(map(is_spikes, layer.inputs))


def _ignore(node: str, operator: str, reason: str, hint: str) -> None:
    pass


def _falling(nodes: Sequence_, currents: Sequence_, feedback: Feedback | None, refused: RefusalError) -> Recognised:
    """Return the neuron whose currents enter with a negative gain; raises ``refused`` where there is none."""
    try:
        return recognise(nodes, currents, feedback, falling=True)
    except RefusalError:
        raise refused from None


def _activated(node: StepNode) -> StepNode | None:
    """Return what a ReLU is applied to (also one that is cut off above, and a maximum with 0); None for other nodes."""
    if node.op == "min":
        cut = [_activated(a) for a, b in (node.args, node.args[::-1]) if (b.scalar or 0.0) > 0]
        return cut[0] if cut else None
    if node.op == "relu":
        return node.args[0]
    if node.op == "max" and 0.0 in (numbers := [a.scalar for a in node.args]):
        return node.args[1 - numbers.index(0.0)]
    return None


def split_source(source: str) -> tuple[str, str]:
    """Return name and operator of ``name (operator)``."""
    name, _, operator = source.rpartition(" (")
    return name, operator.rstrip(")")


def _new_leaves(nodes: Sequence_) -> list[list[StepNode]]:
    """Return, per step, what the pointwise computation starts from that no earlier step starts from."""
    seen: set[int] = set()
    groups = []
    for node in nodes:
        leaves, waiting = [], [node]
        while waiting:
            current = waiting.pop()
            if current.number in seen:
                continue
            seen.add(current.number)
            if current.pointwise:
                waiting += current.args
            else:
                leaves.append(current)
        groups.append(sorted(leaves, key=lambda leaf: leaf.number))
    return groups


def _sums(nodes: Sequence_, groups: Sequence[Sequence[StepNode]]) -> Sequence_ | None:
    """Return, per step, the innermost addition that joins everything new of the step (one for all, if that is static).

    None where a step joins what is new in another way. Spikes of an earlier layer may be among the terms.
    """
    seen: set[int] = set()
    found: list[StepNode] = []
    for node, group in zip(nodes, groups, strict=True):
        fresh = [n for n in pointwise_order([node]) if n.number not in seen]
        seen.update(n.number for n in fresh)
        if not group:
            continue
        reached: dict[int, frozenset[int]] = {leaf.number: frozenset({leaf.number}) for leaf in group}
        for n in fresh:
            if n.number not in reached:
                reached[n.number] = frozenset().union(*(reached.get(a.number, frozenset()) for a in n.args))
        joined = [n for n in fresh if n.op == "add" and len(reached[n.number]) == len(group)]
        if not joined or (not found and len(group) < 2):
            return None
        found.append(joined[0])
    if found and found[0] is nodes[0] and any(len(group) < len(groups[0]) for group in groups):
        found = list(nodes)  # a static current enters the first step only: the later ones do not show what joins it
    known = len(found) in (1, len(nodes)) and all(node.op == "add" for node in found)
    return tuple(found) if known else None


def _feedback_of(groups: Sequence[Sequence[StepNode]]) -> tuple[StepNode | None, ...] | None:
    """Return, per step, the linear layer of spikes of the step before; None when there is no such layer in every step.

    In the first step it is the layer of no spikes, or missing.
    """
    earlier: set[int] = {leaf.number for leaf in groups[0]}
    found: list[StepNode | None] = []
    for before, group in itertools.pairwise(groups):
        last = {leaf.number for leaf in before}
        fed = [leaf for leaf in group if leaf.op == "linear" and _starts_from(leaf.args[0], earlier, last)]
        if len(fed) != 1 or (found and not _same_layer(fed[0], found[-1])):
            return None
        found.append(fed[0])
        earlier.update(leaf.number for leaf in group)
    if not found:
        return None
    silent = [leaf for leaf in groups[0] if _same_layer(leaf, found[0]) and _is_zero(leaf.args[0])]
    return (silent[0] if silent else None, *found)


def _same_layer(a: StepNode, b: StepNode | None) -> bool:
    return b is not None and (a.op, a.key, a.shape) == (b.op, b.key, b.shape)


def _is_zero(node: StepNode) -> bool:
    return node.value is not None and not node.value.any()


def _starts_from(node: StepNode, leaves: set[int], last: set[int]) -> bool:
    """Return whether a pointwise value is computed from some of ``leaves``, of ``last`` too, and nothing else."""
    reached = {start.number for start in _new_leaves((node,))[0]}
    return node.pointwise and bool(reached & last) and reached <= leaves


def _bias(node: StepNode | None) -> npt.NDArray[np.float64]:
    bias = None if node is None or node.synapse is None else node.synapse.bias
    return np.zeros(1) if bias is None else bias.array.astype(np.float64)


def _why_not_one_current(nodes: Sequence_, groups: Sequence[Sequence[StepNode]]) -> tuple[str, str]:
    sizes = [len(group) for group in groups]
    if not any(sizes):
        return "it does not depend on the network's input", ""
    last = groups[-1]
    earlier = {node.number for node in nodes[:-1]}
    recurrent = [leaf for leaf in last if any(_reaches(arg, earlier) for arg in leaf.args)]
    if len(nodes) > 1 and recurrent:
        return f"a recurrent synapse ({recurrent[0].source}) is not supported yet", ""
    if sizes[0] == 0 or len(set(sizes)) > 1:
        return "its time steps start from different numbers of currents", "a delay starts with steps of zeros"
    sources = ", ".join(leaf.source for leaf in last)
    return f"a sum of several currents ({sources}) is not supported yet", ""


def _reaches(node: StepNode, targets: set[int]) -> bool:
    """Return whether ``node`` is, or is computed from, one of ``targets``."""
    waiting, seen = [node], set()
    while waiting:
        current = waiting.pop()
        if current.number in targets:
            return True
        if current.number not in seen:
            seen.add(current.number)
            waiting += current.args
    return False
