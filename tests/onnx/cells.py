"""Neurons that the exported networks of several tests have."""

from __future__ import annotations


def lif(v, x):
    """Return the spikes of a time step and the potentials that the next one starts from."""
    u = 0.5 * v + x
    s = (u >= 1).float()
    return s, u * (1 - s)
