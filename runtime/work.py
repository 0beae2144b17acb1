"""How much work an executed instruction was: the counts that timing and energy are computed from."""

from __future__ import annotations

from heapq import heapreplace

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.machine import LANES

from .operation import ADAM_KINDS, Operation, Work, has_synapse
from .regions import groups, planes, taps
from .timing import forward_lanes

F32 = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

BACKWARD_MODES = ("dense", "in", "out", "dual")


def backward_work(
    op: Operation,
    mode: str,
    live: npt.NDArray[np.integer],
    dense: npt.NDArray[np.integer],
    outputs: npt.NDArray[np.integer],
    width: int,
    not_finite: int,
) -> Work:
    """Count the work of the backward engine: per position ``live`` and ``dense`` inputs and live ``outputs``.

    ``width`` is the number of output channels. Each row of live outputs of a position goes to the lane (a quarter
    of a processing element) that is free first.
    """
    live, dense, outputs = (np.asarray(v, np.int64).reshape(-1) for v in (live, dense, outputs))
    totals = [int(v.sum()) for v in (live, outputs, live * outputs, dense * width)]
    modes = []
    for ins, outs in ((dense, 0 * outputs + width), (live, 0 * outputs + width), (dense, outputs), (live, outputs)):
        rows = -(-outs // issue_width(op))
        slowest = _slowest(unit_count(op), np.repeat(ins, rows))
        modes.append([int((ins * outs).sum()), int((ins * rows).sum()), slowest])
    return products_work(op, mode, live.size, totals, modes, not_finite)


def products_work(
    op: Operation, mode: str, positions: int, totals: list[int], modes: list[list[int]], not_finite: int
) -> Work:
    """Name the counts of the backward engine.

    ``totals``: live inputs, live outputs, live products, dense products; ``modes`` for dense, in, out, dual: products
    not skipped, cycles, cycles of the slowest processing element.
    """
    names = ("live_inputs", "live_outputs", "products", "dense_products")
    counts = {"positions": positions, **dict(zip(names, totals, strict=True)), "nonfinite": not_finite}
    width = op.number("c" if op.mnemonic == "be.run" else "k")
    counts |= {"dense_inputs": totals[3] // width if width else 0, "dense_outputs": positions * width}
    counts |= dict(zip(("macs", "issue_cycles", "pe_cycles"), modes[BACKWARD_MODES.index(mode)], strict=True))
    if op.mnemonic == "be.run":
        counts |= {f"pe_cycles_{name}": work[2] for name, work in zip(BACKWARD_MODES, modes, strict=True)}
    return Work(counts)


def weight_work(
    op: Operation, positions: int, live_outputs: int, rows: tuple[Counts, Counts, Counts], not_finite: int
) -> Work:
    """Count the work of ``be.wgt``: ``rows`` are the live inputs, cycles and products of each (tap, input channel).

    Each row goes to the lane that is free first.
    """
    live, cycles, products = rows
    total = int(products.sum())
    return Work(
        {
            "positions": positions,
            "live_inputs": int(live.sum()),
            "dense_inputs": positions * live.size,
            "live_outputs": live_outputs,
            "dense_outputs": positions * op.number("k"),
            "products": total,
            "dense_products": positions * live.size * op.number("k"),
            "macs": total,
            "issue_cycles": int(cycles.sum()),
            "pe_cycles": _slowest(unit_count(op), cycles),
            "nonfinite": not_finite,
        }
    )


def lookup_work(
    patterns: int, zero_patterns: int, k: int, spikes: int, inputs: int, not_finite: int, depth: int = 1
) -> Work:
    """Count look-ups: ``patterns`` rows of ``k`` outputs, of which the zero patterns are not added.

    ``inputs``: how many bits the patterns hold, padding left out; ``spikes`` of them are 1; ``depth`` bits are a value.
    """
    return Work(
        {
            "patterns": patterns,
            "zero_patterns": zero_patterns,
            "lookups": patterns * k,
            "adds": (patterns - zero_patterns) * k,
            "spikes": spikes,
            "inputs": inputs,
            "synaptic_operations": spikes * k,
            "dense_products": inputs // depth * k,
            "nonfinite": not_finite,
        }
    )


SEARCHED = 64
"""Patterns of one position in which a lane of FE finds the next one that is not zero, per cycle."""


def skips_zero_patterns(op: Operation) -> bool:
    """Return whether the lanes of FE take only the patterns that hold a spike."""
    return "skipping_lanes" in op.fields


def lane_passes(op: Operation) -> tuple[int, int, int]:
    """Return passes over output channels, lanes for positions, and the least cycles of a position (its search)."""
    lanes_k, lanes_p = forward_lanes(op.fields["shape"], op.fields["skipping_lanes"])
    patterns = groups(op.number("c"), op.number("fan")) * planes(op.desc)
    return groups(op.number("k"), lanes_k), lanes_p, taps(op.desc) * groups(patterns, SEARCHED)


def lane_cycles(op: Operation, nonzero: npt.NDArray[np.integer]) -> int:
    """Return the cycles of FE when zero patterns are skipped; ``nonzero``: patterns of each position that hold a spike.

    Each position goes to the lane that is free first; a lane searches ahead of its look-ups.
    """
    passes, lanes, least = lane_passes(op)
    return passes * _slowest(lanes, np.maximum(np.asarray(nonzero, np.int64).reshape(-1), least))


def neuron_counts(op: Operation) -> dict[str, int]:
    """Return the elements of a neuron instruction, and in how many of them there is more to do than in plain ones."""
    elements = op.number("n") * op.number("k")
    counts = {"elements": elements}
    if op.choice("drive") != "plain":
        counts["scaled"] = elements
    if has_synapse(op):
        counts["synaptic"] = elements
    if op.choice("counted") == "yes":
        counts["counted"] = elements
    curved = op.choice("surrogate") not in ("rectangular", "triangular") and op.choice("spike") != "never"
    if op.mnemonic == "v.grad" and curved:
        counts["curved"] = elements
    return counts


def issue_width(op: Operation) -> int:
    """Return how many multipliers a lane of the backward engine has: a quarter of a processing element's."""
    return max(1, op.fields.get("width", 64) // LANES)


def unit_count(op: Operation) -> int:
    """Return the lanes of the backward engine: four in a processing element."""
    return LANES * op.fields.get("elements", 32)


def update_elements(op: Operation) -> int:
    """Return the elements that a step of an optimizer counts for: a parameter of Adam as much as four others."""
    return op.number("n") * (4 if op.choice("kind") in ADAM_KINDS else 1)


def nonfinite(values: F32) -> int:
    """Return how many values are infinite or NaN."""
    return int(values.size - np.count_nonzero(np.isfinite(values)))


def _slowest(units: int, cycles: npt.NDArray[np.int64]) -> int:
    """Return when the last of ``units`` is done if each piece of work goes to the one that is free first."""
    free = [0] * units
    for piece in cycles.tolist():
        heapreplace(free, free[0] + piece)
    return max(free)
