"""Products of spikes, found by what they are for spikes of 0 and 1, whatever the spelling."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .steps import StepNode

MOST_SPIKES = 8
"""Comparisons that a value may depend on."""
_COMPARISONS = frozenset({"gt", "ge", "eq", "ne"})
_FUNCTIONS: dict[str, Callable[..., object]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "neg": np.negative,
    "not": np.logical_not,
    "and": np.logical_and,
    "or": np.logical_or,
    "ne": np.not_equal,
    "eq": np.equal,
    "max": np.maximum,
    "min": np.minimum,
    "where": np.where,
}
_POLYNOMIAL = frozenset({"add", "sub", "mul", "neg"})
_KINDS: dict[tuple[float, ...], str] = {
    (0, 0, 0, 1): "keep",
    (0, 0, 1, 0): "drop",
    (0, 1, 1, 1): "or",
    (0, 1, 1, 0): "xor",
}
"""Values for the spikes (0, 0), (0, 1), (1, 0), (1, 1) of two layers -> what combines them."""


@dataclass(frozen=True)
class Gate:
    """Two values of 0 and 1 per time step, and what combines them.

    ``keep``: a b; ``drop``: a (1 - b); ``or``, ``xor``.

    ``polynomial``: the file computes it by sums and products, which say what the gradients are.
    """

    first: tuple[StepNode, ...]
    second: tuple[StepNode, ...]
    kind: str
    polynomial: bool


def gates_of(nodes: Sequence[StepNode]) -> Iterator[Gate]:
    """Yield what two layers of spikes the values of all steps may be: ``1 - b`` is no spike of its own, or it is."""
    for unwrap in (True, False):
        steps = [_step(node, unwrap) for node in nodes]
        found = [step for step in steps if step is not None]
        if len(found) == len(nodes) and len({step[2:] for step in found}) == 1:
            firsts, seconds, (kind, *_), (polynomial, *_) = zip(*found, strict=True)
            yield Gate(firsts, seconds, kind, polynomial)


def _step(node: StepNode, unwrap: bool) -> tuple[StepNode, StepNode, str, bool] | None:
    """Return two values of 0 and 1 of one step, and what combines them; ``unwrap``: neither is one less the other."""
    atoms = _atoms(node)
    if atoms is None or not 2 <= len(atoms) <= MOST_SPIKES:
        return None
    ends = [node]
    while True:
        inner = [end for end in ends if end.op not in _COMPARISONS]
        if not inner:
            return None
        negated = [end for end in inner if unwrap and _is_negation(end)]
        opened = max(negated or inner, key=lambda end: end.number)
        ends = [*dict.fromkeys(end for end in (*ends, *_operands(opened)) if end is not opened)]
        if len(ends) != 2 or not all(map(_is_binary, ends)) or (unwrap and any(map(_is_negation, ends))):
            continue
        older, newer = sorted(ends, key=lambda end: end.number)
        for pair in ((older, newer), (newer, older)):
            kind = _KINDS.get(_table(node, pair))
            if kind is not None:
                return (*pair, kind, _is_polynomial(node, pair))


def _operands(node: StepNode) -> list[StepNode]:
    return [] if node.op in _COMPARISONS else [arg for arg in node.args if arg.op != "const"]


def _atoms(node: StepNode) -> list[StepNode] | None:
    """Return the comparisons that a value is a function of, None where it depends on more."""
    found: list[StepNode] = []
    waiting, seen = [node], set()
    while waiting:
        current = waiting.pop()
        if current.number in seen:
            continue
        seen.add(current.number)
        if current.op in _COMPARISONS:
            found.append(current)
        elif current.op not in _FUNCTIONS or any(a.op == "const" and a.scalar is None for a in current.args):
            return None
        else:
            waiting += _operands(current)
        if len(found) > MOST_SPIKES:
            return None
    return found


def _table(node: StepNode, ends: Sequence[StepNode]) -> tuple[float, ...]:
    """Return a value for all values of the ``ends`` that it is a function of, counted up with the last one fastest."""
    return tuple(_value(node, dict(zip(ends, row, strict=True))) for row in itertools.product((0, 1), repeat=len(ends)))


def _value(node: StepNode, known: Mapping[StepNode, float]) -> float:
    """Return a value, NaN where it depends on more than what is known."""
    if node in known:
        return known[node]
    if node.scalar is not None:
        return node.scalar
    if node.op in _COMPARISONS or node.op not in _FUNCTIONS:
        return float("nan")
    return float(np.asarray(_FUNCTIONS[node.op](*(_value(arg, known) for arg in node.args))))


def _is_binary(node: StepNode) -> bool:
    return set(_table(node, _atoms(node) or ())) <= {0.0, 1.0}


def _is_negation(node: StepNode) -> bool:
    """Whether a value is ``1 - b``."""
    inner = _operands(node)
    return len(inner) == 1 and _table(node, inner) == (1.0, 0.0)


def _is_polynomial(node: StepNode, ends: Sequence[StepNode]) -> bool:
    if node in ends or node.op == "const":
        return True
    return node.op in _POLYNOMIAL and all(_is_polynomial(arg, ends) for arg in node.args)
