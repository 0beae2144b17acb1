"""The neuron as numbers: what the ops carry as attributes and the arithmetic reads."""

from __future__ import annotations

from dataclasses import dataclass

RESETS = ("hard", "soft", "none")
COMPARES = ("gt", "ge")
SURROGATES = ("rectangular", "triangular")


@dataclass(frozen=True)
class Neuron:
    """A leaky integrate-and-fire neuron with its surrogate gradient.

    With the current x[t] and ``r[t]`` the membrane potential after the reset of step t (``r[-1] = 0``)::

        u[t] = alpha * r[t-1] + x[t]
        s[t] = u[t] >= theta                     (compare "gt": u[t] > theta)
        r[t] = s[t] ? v_reset : u[t]             (reset "hard")
        r[t] = u[t] - theta * s[t]               (reset "soft")
        r[t] = u[t]                              (reset "none")

    The surrogate of ds/du is ``height`` where ``|u - theta| < width`` (rectangular), or
    ``height * (1 - |u - theta| / width)`` there (triangular), and 0 elsewhere. ``detach_reset`` leaves the dependence
    of the reset on the spike out of the gradient. ``alpha``, ``theta`` and ``v_reset`` hold one number, or one per
    channel (last axis).
    """

    alpha: tuple[float, ...] = (0.5,)
    theta: tuple[float, ...] = (1.0,)
    v_reset: tuple[float, ...] = (0.0,)
    reset: str = "hard"
    compare: str = "ge"
    surrogate: str = "rectangular"
    width: float = 0.5
    height: float = 1.0
    detach_reset: bool = False
