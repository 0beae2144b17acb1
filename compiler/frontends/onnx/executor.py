"""Executes a graph on time steps: constants are computed, everything else becomes nodes of :mod:`steps`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .constants import constant_of, fold
from .graph import Constant, Graph, GraphNode
from .steps import Steps
from .values import RefusalError, Refused, Series, Value, shape_of

MAX_STEPS = 4096
Inputs = list[Value | None]

_RANDOM = {"Bernoulli", "RandomUniform", "RandomUniformLike", "RandomNormal", "RandomNormalLike", "Multinomial"}
_NOT_FOLDED = ("Sequence", "SplitToSequence", "ConcatFromSequence", "snn::")


@dataclass(frozen=True)
class Problem:
    """A node that cannot be imported, and why."""

    node: str
    op: str
    reason: str
    hint: str = ""


@dataclass
class Scope:
    """Values by name; the body of a loop sees what is around it."""

    values: dict[str, Value]
    outer: Scope | None = None

    def get(self, name: str) -> Value:
        """Return a value; raises ValueError when nothing has that name."""
        if name in self.values:
            return self.values[name]
        if self.outer is None:
            raise ValueError(f"no node gives {name!r}")
        return self.outer.get(name)


@dataclass
class Executor:
    """One execution: ``steps`` collects the nodes, ``problems`` what is refused.

    ``operators`` handle operators by name, ``bodies`` those with a graph inside.
    """

    opset: int
    operators: Mapping[str, Handler]
    bodies: Mapping[str, BodyHandler]
    steps: Steps = field(default_factory=Steps)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _noted: set[Problem] = field(default_factory=set)
    _draws: Iterator[int] = field(default_factory=itertools.count)

    def run(self, graph: Graph, arguments: Mapping[str, Value], outer: Scope | None = None) -> list[Value]:
        """Return the values of the graph's outputs."""
        scope = Scope({**graph.initializers, **arguments}, outer)
        for node in graph.nodes:
            scope.values.update(zip(node.outputs, self._results(node, scope), strict=False))
        return [scope.get(name) for name in graph.outputs]

    def refuse(self, node: str, op: str, reason: str, hint: str = "") -> None:
        """Note a refusal once."""
        problem = Problem(node, op, reason, hint)
        if problem not in self._noted:
            self._noted.add(problem)
            self.problems.append(problem)

    def forget(self, told: Sequence[Problem]) -> None:
        """Take back all refusals but those that were ``told``."""
        self.problems[:] = told
        self._noted = set(told)

    def note(self, what: str) -> None:
        """Note what the model does differently from the file, once."""
        if what not in self.notes:
            self.notes.append(what)

    def _results(self, node: GraphNode, scope: Scope) -> Sequence[Value]:
        refused = [Refused()] * len(node.outputs)
        try:
            inputs: Inputs = [scope.get(name) if name else None for name in node.inputs]
            if any(isinstance(value, Refused) for value in inputs):
                return refused
            return self._apply(node, inputs, scope)
        except RefusalError as error:
            self.refuse(node.label, node.op, str(error), error.hint)
        except RecursionError:
            self.refuse(node.label, node.op, "its inputs are nested too deeply")
        except Exception as error:  # wrong attributes and shapes show as any type of error
            self.refuse(node.label, node.op, f"its inputs or attributes do not fit ({_sentence(error)})")
        return refused

    def _random(self, node: GraphNode, inputs: Inputs) -> Value:
        """Return a value that is refused later, unless it is multiplied by 0."""
        like = inputs[0] if inputs else None
        shape = shape_of(like) if like is not None else node.integers("shape", ())
        nodes = like.nodes if isinstance(like, Series) else [None]
        shape = like.nodes[0].shape if isinstance(like, Series) else shape
        made = [
            self.steps.node("random", [], tuple(shape), f"{node.label} ({node.op})", key=(next(self._draws),))
            for _ in nodes
        ]
        return Series(tuple(made), like.axis) if isinstance(like, Series) else made[0]

    def _apply(self, node: GraphNode, inputs: Inputs, scope: Scope) -> Sequence[Value]:
        if node.op in self.bodies:
            return self.bodies[node.op](self, node, inputs, scope)
        if node.op == "Constant":
            return [constant_of(node)]
        if node.op in _RANDOM:
            return [self._random(node, inputs)]
        handler = self.operators.get(node.op)
        if (
            not node.op.startswith(_NOT_FOLDED)
            and not (handler is not None and _is_layer_of_zeros(node, inputs))
            and all(value is None or isinstance(value, Constant) for value in inputs)
        ):
            constants = [value for value in inputs if value is None or isinstance(value, Constant)]
            return fold(node, constants, self.opset)
        if handler is None:
            hint = "export the operator's own computation instead" if "::" in node.op else ""
            raise RefusalError("this operator is not supported", hint)
        return handler(self, node, inputs)


def _is_layer_of_zeros(node: GraphNode, inputs: Inputs) -> bool:
    """Whether a layer reads zeros: spikes or currents in front of the first time step."""
    x, weight = (inputs[0], inputs[1]) if len(inputs) > 1 else (None, None)
    wide = isinstance(x, Constant) and x.array.ndim > 1 and x.uniform == 0.0
    return node.op in ("Gemm", "MatMul", "Conv") and wide and isinstance(weight, Constant) and weight.uniform is None


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


Handler = Callable[[Executor, GraphNode, Inputs], Sequence[Value]]
BodyHandler = Callable[[Executor, GraphNode, Inputs, Scope], Sequence[Value]]
