"""The parts of a graph that is a whole training step, and its values: which tensor is what, found by dataflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .executor import Executor
from .graph import Array, Constant, Graph, GraphNode
from .operators import new_executor
from .values import RefusalError, Value

Numbers = npt.NDArray[np.float64]

LAYERS = ("Gemm", "MatMul", "Conv")
_SUMS = ("Add", "Sub", "Sum", "Identity", "Neg")


@dataclass(frozen=True)
class Roles:
    """Names: ``parameters`` maps an input to the output that is its new value; ``rate`` is a learning rate input."""

    data: str
    target: str
    loss: str
    parameters: Mapping[str, str]
    states: Mapping[str, str]
    rate: str | None


class StepGraph:
    """Dataflow of a training step's graph. Raises RefusalError when the roles of its tensors cannot be told."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producers = {name: node for node in graph.nodes for name in node.outputs if name}
        self.inputs = {entry.name: entry for entry in graph.inputs}
        self.roles = self._find_roles()

    @cached_property
    def consumers(self) -> Mapping[str, list[GraphNode]]:
        """The nodes that read each tensor."""
        found: dict[str, list[GraphNode]] = {}
        for node in self.graph.nodes:
            for name in dict.fromkeys(node.inputs):
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def forward(self) -> frozenset[str]:
        """What the loss is computed from."""
        return frozenset(self.ancestors([self.roles.loss]))

    def ancestors(self, names: Iterable[str]) -> set[str]:
        """Return ``names`` and all tensors they are computed from."""
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name in found:
                continue
            found.add(name)
            if name in self.producers:
                waiting += [i for i in self.producers[name].inputs if i]
        return found

    def descendants(self, name: str) -> set[str]:
        """Return ``name`` and all tensors computed from it."""
        found = {name}
        for node in self.graph.nodes:
            if found.intersection(node.inputs):
                found.update(node.outputs)
        return found

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every tensor's value; raises RefusalError for an operator that cannot be computed."""
        names = tuple(name for node in self.graph.nodes for name in node.outputs if name)
        constants = {name: Constant(value) for name, value in feeds.items()}
        values = _evaluate(replace(self.graph, outputs=names), constants)
        given = {name: entry.array for name, entry in self.graph.initializers.items()}
        return {**given, **feeds, **dict(zip(names, values, strict=True))}

    def function(self, root: str, result: str, values: Mapping[str, Array], x: Numbers) -> Numbers:
        """Return ``result`` as a function of the elements of ``root``, at ``x``, all else as in ``values``."""
        between = self.descendants(root) & self.ancestors([result])
        nodes = tuple(n for n in self.graph.nodes if between.intersection(n.outputs) and root not in n.outputs)
        like = values[root]
        points = np.resize(x, (-(-x.size // like.size), *like.shape)).astype(like.dtype)
        known = {name: Constant(value) for name, value in values.items()} | {root: Constant(points)}
        [found] = _evaluate(Graph((), (result,), {}, nodes, self.graph.opset), known)
        return np.broadcast_to(found, points.shape).ravel()[: x.size].astype(np.float64)

    def linear_terms(self, name: str, values: Mapping[str, Array]) -> dict[str, float]:
        """Return the terms that ``name`` is a sum of, and how often each counts; only numbers multiply."""
        terms: dict[str, float] = {}
        waiting = [(name, 1.0)]
        while waiting:
            current, factor = waiting.pop()
            node = self.producers.get(current)
            if node is None or node.op not in (*_SUMS, "Mul", "Div"):
                terms[current] = terms.get(current, 0.0) + factor
            elif node.op in _SUMS:
                signs = (1, -1) if node.op == "Sub" else ((-1,) if node.op == "Neg" else (1,) * len(node.inputs))
                waiting += [(i, factor * sign) for i, sign in zip(node.inputs, signs, strict=True)]
            elif (scaled := self.scaled(node, values)) is not None:
                waiting.append((scaled[0], factor * scaled[1]))
            else:
                terms[current] = terms.get(current, 0.0) + factor
        return terms

    def scaled(self, node: GraphNode, values: Mapping[str, Array]) -> tuple[str, float] | None:
        """Return what a node multiplies by a number known before the run, and the number; None when it does not."""
        if node.op not in ("Mul", "Div"):
            return None
        for place in (1, 0)[: 2 if node.op == "Mul" else 1]:
            name = node.inputs[place]
            if self._is_number(name):
                number = float(np.asarray(values[name]).ravel()[0])
                return node.inputs[1 - place], number if node.op == "Mul" else 1 / number
        return None

    def _is_number(self, name: str) -> bool:
        sources = self.ancestors([name]) & self.inputs.keys()
        known = name in self.producers or name in self.graph.initializers or name in self.inputs
        return known and all(self.inputs[s].shape in ((), (1,)) for s in sources) and self._size_is_one(name)

    def _size_is_one(self, name: str) -> bool:
        if name in self.graph.initializers:
            return self.graph.initializers[name].array.size == 1
        return name in self.inputs or all(self._size_is_one(i) for i in self.producers[name].inputs)

    def _find_roles(self) -> Roles:
        reached = {output: self._summed_inputs(output) for output in self.graph.outputs}
        others = [output for output in self.graph.outputs if not reached[output]]
        if not others:
            raise RefusalError("no output is a loss")
        loss = max(others, key=lambda name: len(self.ancestors([name])))
        forward = self.ancestors([loss])
        parameters: dict[str, str] = {}
        states: dict[str, str] = {}
        for output, names in ((output, names) for output, names in reached.items() if names):
            used = [name for name in names if name in forward]
            if len(used) > 1 or (not used and len(names) != 1):
                raise RefusalError(f"the output {output} is the new value of several inputs: {', '.join(names)}")
            (parameters if used else states)[(used or names)[0]] = output
        rest = [name for name in self.inputs if name in forward and name not in parameters]
        into = [node.inputs[0] for node in self.graph.nodes if node.op in LAYERS and node.outputs[0] in forward]
        behind = self.ancestors(into)
        data, target = [n for n in rest if n in behind], [n for n in rest if n not in behind]
        if len(data) != 1 or len(target) != 1:
            raise RefusalError(
                f"expected one input and one target beside the parameters, found {', '.join(rest) or 'none'}"
            )
        unused = [name for name in self.inputs if name not in (*parameters, *states, *rest)]
        if len(unused) > 1 or any(self.inputs[name].shape not in ((), (1,)) for name in unused):
            raise RefusalError(f"the inputs {', '.join(unused)} are neither parameters nor a learning rate")
        return Roles(data[0], target[0], loss, parameters, states, unused[0] if unused else None)

    def _summed_inputs(self, output: str) -> list[str]:
        """Return the graph inputs (not single numbers) that ``output`` is a sum of."""
        found, waiting = [], [output]
        while waiting:
            node = self.producers.get(waiting.pop())
            for name in node.inputs if node is not None and node.op in (*_SUMS, "Mul", "Div") else ():
                if name in self.inputs and self.inputs[name].shape not in ((), (1,)):
                    found.append(name)
                else:
                    waiting.append(name)
        return list(dict.fromkeys(found))


def weight_inputs(graph: Graph) -> list[str]:
    """Return the inputs that are weights of a layer, directly or transposed."""
    transposed = {n.outputs[0]: n.inputs[0] for n in graph.nodes if n.op == "Transpose" and n.inputs and n.outputs}
    used = [n.inputs[1] for n in graph.nodes if n.op in LAYERS and len(n.inputs) > 1]
    sources = {transposed.get(name, name) for name in used}
    return [entry.name for entry in graph.inputs if entry.name in sources]


def _evaluate(graph: Graph, arguments: Mapping[str, Value]) -> Sequence[Array]:
    blank = new_executor(graph.opset)
    executor = Executor(graph.opset, {}, blank.bodies)
    values = executor.run(graph, arguments)
    if executor.problems:
        first = executor.problems[0]
        raise RefusalError(f"{first.node} ({first.op}) cannot be computed: {first.reason}", first.hint)
    return [value.array if isinstance(value, Constant) else np.zeros(()) for value in values]
