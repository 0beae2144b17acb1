"""Values that spikes let through or hold back."""

from __future__ import annotations

import numpy as np

from .arrays import Real, Spikes

GATES = ("keep", "drop", "negate")
"""``keep``: x where the spike is, else 0; ``drop``: x where it is not, else 0; ``negate``: -x where it is, else 0."""


def gate(x: Real | Spikes, s: Spikes, kind: str) -> Real | Spikes:
    """Return what the spikes ``s`` let through of ``x``, of one shape; see :data:`GATES`."""
    nothing = np.zeros((), dtype=x.dtype)
    if kind == "drop":
        return np.where(s, nothing, x)
    return np.where(s, np.negative(x) if kind == "negate" else x, nothing)
