"""The training recipe: what the user chooses beside the model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.reference.neuron import Neuron

LOSSES = ("cross_entropy", "mse_rate")
METHODS = ("bptt",)
FP16_LOSS_SCALE = 1024.0


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent: ``m = momentum * m + g``, ``p = p - lr * m``; ``lr`` can change from run to run.

    Raises H2LearnError unless ``lr >= 0`` and ``0 <= momentum < 1``.
    """

    lr: float = 0.1
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr >= 0):
            raise H2LearnError(f"expected a learning rate >= 0, found {self.lr}")
        if not 0 <= self.momentum < 1:
            raise H2LearnError(f"expected a momentum in [0, 1), found {self.momentum}")


@dataclass(frozen=True)
class Surrogate:
    """A derivative of the spike that is not zero where ``|u - theta| < half_width``, at most ``height``.

    Raises H2LearnError unless both are positive and finite.
    """

    half_width: float = 0.5
    height: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("half_width", self.half_width), ("height", self.height)):
            if not (math.isfinite(value) and value > 0):
                raise H2LearnError(f"expected a positive surrogate {name}, found {value}")

    def apply(self, neuron: Neuron, potential_scale: float = 1.0) -> Neuron:
        """Return ``neuron`` with this surrogate; the neuron counts potentials ``potential_scale`` times as large."""
        kind = type(self).__name__.lower()
        width, height = self.half_width * potential_scale, self.height / potential_scale
        return replace(neuron, surrogate=kind, width=width, height=height)


@dataclass(frozen=True)
class Rectangular(Surrogate):
    """``height`` inside the window."""


@dataclass(frozen=True)
class Triangular(Surrogate):
    """``height * (1 - |u - theta| / half_width)`` inside the window."""


@dataclass(frozen=True)
class BPTT:
    """Backpropagation through all time steps."""


Method: TypeAlias = str | BPTT


@dataclass(frozen=True)
class Train:
    """How to train: method, loss, optimizer, and the derivative of the spike.

    ``surrogate=None`` keeps what the model says. ``detach_reset`` leaves the reset out of the gradient (a layer of the
    model may already ask for it). ``keep_gradients`` makes the gradients results. ``loss_scale`` multiplies the
    gradients on the way (None: 1 in fp32, 1024 in fp16) and is divided out before the update.
    Raises H2LearnError when a choice does not exist.
    """

    method: Method = "bptt"
    loss: str = "cross_entropy"
    optimizer: SGD = field(default_factory=SGD)
    surrogate: Surrogate | None = None
    detach_reset: bool = False
    keep_gradients: bool = True
    loss_scale: float | None = None

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise H2LearnError(f"expected loss {' or '.join(LOSSES)}, found {self.loss!r}")
        if not isinstance(self.method, BPTT) and self.method not in METHODS:
            raise H2LearnError(f"expected method {' or '.join(METHODS)}, found {self.method!r}")
        if self.loss_scale is not None and not (math.isfinite(self.loss_scale) and self.loss_scale > 0):
            raise H2LearnError(f"expected a positive loss scale, found {self.loss_scale}")

    def scale_for(self, precision: str) -> float:
        """Return the factor of the gradients for storage type ``"f32"`` or ``"f16"``."""
        if self.loss_scale is not None:
            return self.loss_scale
        return FP16_LOSS_SCALE if precision == "f16" else 1.0
