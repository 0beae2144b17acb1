"""The training recipe: what the user chooses beside the model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self, TypeAlias

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.reference.neuron import Neuron

LOSSES = ("cross_entropy", "mse_rate", "mse_count")
METHODS = ("bptt",)
FP16_LOSS_SCALE = 1024.0


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent as ``torch.optim.SGD`` (without dampening); ``lr`` can change from run to run.

    ``g = g + weight_decay * p``, ``m = momentum * m + g``, ``p = p - lr * m``; with ``nesterov``
    ``p = p - lr * (g + momentum * m)``.
    Raises H2LearnError unless ``lr`` and ``weight_decay`` are >= 0, ``0 <= momentum < 1``, and momentum is there for
    Nesterov's variant.
    """

    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        _check_not_negative("learning rate", self.lr)
        _check_not_negative("weight decay", self.weight_decay)
        _check_share("momentum", self.momentum)
        if self.nesterov and not self.momentum:
            raise H2LearnError("expected a momentum above 0 with nesterov, found 0")

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the buffers that every parameter needs."""
        return ("momentum",) if self.momentum else ()


@dataclass(frozen=True)
class Adam:
    """Adam with bias correction (Kingma & Ba, ICLR 2015), in the form of ``torch.optim.Adam``.

    ``g = g + weight_decay * p``, ``m = m + (1 - b1) * (g - m)``, ``v = b2 * v + (1 - b2) * g^2``,
    ``p = p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)`` in step ``t`` = 1, 2, ...; ``betas`` = (b1, b2).
    Raises H2LearnError unless ``lr``, ``eps`` and ``weight_decay`` are >= 0 and the betas in [0, 1).
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("learning rate", self.lr), ("eps", self.eps), ("weight decay", self.weight_decay)):
            _check_not_negative(name, value)
        for beta in self.betas:
            _check_share("beta", beta)

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the buffers that every parameter needs."""
        return ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019), in the form of ``torch.optim.AdamW``.

    First ``p = p * (1 - lr * weight_decay)``; the gradient is not changed.
    """

    weight_decay: float = 1e-2


Optimizer: TypeAlias = SGD | Adam

OPTIMIZERS: dict[str, type[SGD] | type[Adam]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
"""Name in model files and pass options -> optimizer."""


@dataclass(frozen=True)
class Surrogate:
    """A derivative of the spike by ``x = u - theta`` that is ``height`` at the threshold and falls beside it.

    ``periodic``: where neurons have several spikes per step, it does so at every multiple of the threshold: above theta
    x is ``2 * (u - n*theta)``, n*theta the nearest multiple.
    Raises H2LearnError unless ``half_width`` and ``height`` are positive and finite.
    """

    kind: ClassVar[str]
    half_width: float = 0.5
    height: float = 1.0
    periodic: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        for name, value in (("half_width", self.half_width), ("height", self.height)):
            if not (math.isfinite(value) and value > 0):
                raise H2LearnError(f"expected a positive surrogate {name}, found {value}")

    def apply(self, neuron: Neuron) -> Neuron:
        """Return ``neuron`` with this surrogate."""
        periodic = self.periodic and neuron.counts
        return replace(neuron, surrogate=self.kind, width=self.half_width, height=self.height, periodic=periodic)


@dataclass(frozen=True)
class Rectangular(Surrogate):
    """``height`` where ``|x| < half_width``, else 0."""

    kind = "rectangular"


@dataclass(frozen=True)
class Triangular(Surrogate):
    """``height * (1 - |x| / half_width)`` where ``|x| < half_width``, else 0."""

    kind = "triangular"


@dataclass(frozen=True)
class ATan(Surrogate):
    """``height / (1 + (x / half_width)**2)``, 0 nowhere; the default is that of snnTorch and SpikingJelly (alpha 2)."""

    kind = "atan"
    half_width: float = 1 / math.pi

    @classmethod
    def with_alpha(cls, alpha: float) -> Self:
        """Return ``(alpha/2) / (1 + (pi/2 * alpha * x)**2)``, as frameworks write it."""
        return cls(2 / (math.pi * _positive("alpha", alpha)), alpha / 2)


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """``4 * height * sigmoid(x/half_width) * (1 - sigmoid(x/half_width))``; the default is SpikingJelly's (slope 4)."""

    kind = "sigmoid"
    half_width: float = 0.25

    @classmethod
    def with_slope(cls, slope: float) -> Self:
        """Return ``slope * sigmoid(slope*x) * (1 - sigmoid(slope*x))``, as frameworks write it."""
        return cls(1 / _positive("slope", slope), slope / 4)


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """``height / (1 + |x| / half_width)**2``, 0 nowhere; the default is snnTorch's (slope 25)."""

    kind = "fast_sigmoid"
    half_width: float = 0.04

    @classmethod
    def with_slope(cls, slope: float) -> Self:
        """Return ``1 / (slope*|x| + 1)**2``, as frameworks write it."""
        return cls(1 / _positive("slope", slope))


@dataclass(frozen=True)
class Exponential(Surrogate):
    """``height * exp(-|x| / half_width)``, 0 nowhere (Shrestha and Orchard, NeurIPS 2018).

    Sinabs' ``SingleExponential(w, c)`` for the threshold θ has half_width θ w and height c / (θ w); its
    ``PeriodicExponential(w, c)`` is periodic, with half_width w and height c.
    """

    kind = "exponential"


@dataclass(frozen=True)
class Gaussian(Surrogate):
    """``height * exp(-(x / half_width)**2)``, 0 nowhere.

    Sinabs' ``Gaussian(sigma=s)`` has half_width √2 s and height 1 / (√(2π) s).
    """

    kind = "gaussian"


SURROGATES: dict[str, type[Surrogate]] = {
    cls.kind: cls for cls in (Rectangular, Triangular, ATan, Sigmoid, FastSigmoid, Exponential, Gaussian)
}
"""The surrogates by their names in files and options."""


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise H2LearnError(f"expected a positive surrogate {name}, found {value}")
    return value


@dataclass(frozen=True)
class BPTT:
    """Backpropagation through all time steps."""


Method: TypeAlias = str | BPTT


@dataclass(frozen=True)
class MSECount:
    """Mean square distance of spike counts to target counts, divided by the time steps T (snnTorch's mse_count_loss).

    The neuron of the label shall spike in ``correct * T`` steps, the others in ``incorrect * T``, rounded down.
    Raises H2LearnError unless both lie between 0 and 1.
    """

    correct: float = 1.0
    incorrect: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("correct", self.correct), ("incorrect", self.incorrect)):
            if not 0 <= value <= 1:
                raise H2LearnError(f"expected a share of steps from 0 to 1 as {name}, found {value}")


@dataclass(frozen=True)
class Train:
    """How to train: method, loss (a name or ``MSECount``), optimizer, and the derivative of the spike.

    ``surrogate=None`` keeps what the model says. ``detach_reset`` leaves the reset out of the gradient (a layer of the
    model may already ask for it). ``keep_gradients`` makes the gradients results. ``loss_scale`` multiplies the
    gradients on the way (None: 1 in fp32, 1024 in fp16) and is divided out before the update.
    Raises H2LearnError when a choice does not exist.
    """

    method: Method = "bptt"
    loss: str | MSECount = "cross_entropy"
    optimizer: Optimizer = field(default_factory=SGD)
    surrogate: Surrogate | None = None
    detach_reset: bool = False
    keep_gradients: bool = True
    loss_scale: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.loss, MSECount) and self.loss not in LOSSES:
            raise H2LearnError(f"expected loss {' or '.join(LOSSES)}, found {self.loss!r}")
        if not isinstance(self.method, BPTT) and self.method not in METHODS:
            raise H2LearnError(f"expected method {' or '.join(METHODS)}, found {self.method!r}")
        if self.loss_scale is not None and not (math.isfinite(self.loss_scale) and self.loss_scale > 0):
            raise H2LearnError(f"expected a positive loss scale, found {self.loss_scale}")

    @property
    def loss_name(self) -> str:
        """The name of the loss."""
        return "mse_count" if isinstance(self.loss, MSECount) else self.loss

    @property
    def targets(self) -> MSECount:
        """The target counts of the loss on counts."""
        return self.loss if isinstance(self.loss, MSECount) else MSECount()

    def scale_for(self, precision: str) -> float:
        """Return the factor of the gradients for storage type ``"f32"`` or ``"f16"``."""
        if self.loss_scale is not None:
            return self.loss_scale
        return FP16_LOSS_SCALE if precision == "f16" else 1.0


def _check_not_negative(what: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise H2LearnError(f"expected a {what} >= 0, found {value}")


def _check_share(what: str, value: float) -> None:
    if not 0 <= value < 1:
        raise H2LearnError(f"expected a {what} in [0, 1), found {value}")
