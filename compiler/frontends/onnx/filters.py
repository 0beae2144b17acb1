"""Spikes inside a pointwise computation that goes on with them: synaptic filters, graded spikes, factors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .forms import ABOVE, BELOW, Closure, Feedback, NotAffineError
from .steps import StepNode


def spikes_within(
    outputs: Sequence[StepNode], leaves: Sequence[StepNode], feedback: Feedback | None = None
) -> tuple[StepNode, ...] | None:
    """Return, per step, the oldest value that is its spike whatever the currents, None where a step has none.

    For the currents ``leaves`` (one per step, or one for all) and ``feedback`` as of :class:`Closure`.
    """
    try:
        closure = Closure(tuple(outputs), tuple(leaves), feedback)
        if not closure.decisions:
            return None
        runs = [(pattern, closure.values(pattern)) for pattern in _patterns(len(outputs))]
    except NotAffineError:
        return None
    found = []
    for step in range(len(outputs)):
        same = (
            node
            for node in closure.order
            if node.op != "const"
            and all(
                not np.any(values[node.number][:-1]) and np.all(values[node.number][-1] == (pattern[step] == ABOVE))
                for pattern, values in runs
            )
        )
        first = next(same, None)
        if first is None:
            return None
        found.append(first)
    return tuple(found) if len({node.op for node in found}) == 1 else None


def _patterns(count: int) -> Iterator[tuple[int, ...]]:
    """Yield patterns of spikes that tell the steps apart."""
    yield (BELOW,) * count
    yield (ABOVE,) * count
    for single in range(count):
        yield tuple(ABOVE if step == single else BELOW for step in range(count))
