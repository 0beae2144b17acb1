"""What a ``.snn`` file says, layer by layer, with the place of every statement."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from h2learn.backends.h2learn.errors import Location
from h2learn.backends.reference.neuron import Neuron
from h2learn.compiler.autodiff.spec import Train

from ..builder import Learned

Sizes: TypeAlias = tuple[int, ...]
"""One size, or one down and one across."""


@dataclass(frozen=True)
class Statement:
    """Anything with a place in the file."""

    location: Location


@dataclass(frozen=True)
class Input(Statement):
    """The input: ``shape`` is (F) or (C, H, W); ``over_time`` inputs bring their own time dimension.

    ``bits``: values are multiples of ``2^-bits`` from 0 to below 1 (0: any reals).
    """

    name: str
    shape: tuple[int, ...]
    over_time: bool = False
    spikes: bool = False
    bits: int = 0


@dataclass(frozen=True)
class Encode(Statement):
    """How a static input becomes a sequence: ``direct`` or ``bernoulli``."""

    kind: str


@dataclass(frozen=True)
class LayerStatement(Statement):
    """A layer; ``source`` names the layer (or input) whose result it takes, empty: the one before."""

    source: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class Conv(LayerStatement):
    """A convolution; windows have one size for rows and columns alike (on rows: for columns), or one for each."""

    name: str
    channels: int
    kernel: Sizes
    stride: Sizes = (1,)
    padding: Sizes = (0,)
    bias: bool = True
    dilation: Sizes = (1,)
    groups: int = 1


@dataclass(frozen=True)
class Linear(LayerStatement):
    """A fully connected layer."""

    name: str
    features: int
    bias: bool = True


@dataclass(frozen=True)
class BatchNorm(LayerStatement):
    """Batch normalisation of currents over time, samples and positions."""

    name: str
    eps: float = 1e-5
    momentum: float = 0.1
    gain: float = 1.0


@dataclass(frozen=True)
class Add(LayerStatement):
    """The sum of the results of layers."""

    name: str
    terms: tuple[str, ...]


@dataclass(frozen=True)
class Concat(LayerStatement):
    """The channels of several layers side by side."""

    name: str
    terms: tuple[str, ...]


@dataclass(frozen=True)
class Gate(LayerStatement):
    """The first of two layers where the second one spikes (``keep``), or does not (``drop``)."""

    name: str
    kind: str
    terms: tuple[str, ...]


@dataclass(frozen=True)
class Pool(LayerStatement):
    """``max``, ``avg`` or ``sum`` pooling; without ``kernel`` of the whole map."""

    name: str
    kind: str
    kernel: Sizes | None
    stride: Sizes | None = None
    padding: Sizes = (0,)


@dataclass(frozen=True)
class Flatten(LayerStatement):
    """Maps to features."""

    name: str


@dataclass(frozen=True)
class Dropout(LayerStatement):
    """Values that training sets to 0 with a probability, for all time steps alike or anew at every step."""

    name: str
    probability: float
    every_step: bool = False


@dataclass(frozen=True)
class Lif(LayerStatement):
    """Spiking neurons."""

    name: str
    neuron: Neuron
    learned: Learned = field(default_factory=Learned)


@dataclass(frozen=True)
class Li(LayerStatement):
    """Leaky integrators without spikes."""

    name: str
    membrane: Neuron


@dataclass(frozen=True)
class Recurrent(LayerStatement):
    """Spiking neurons that also read their own spikes of the step before through weights."""

    name: str
    neuron: Neuron
    bias: bool = False


@dataclass(frozen=True)
class Delay(LayerStatement):
    """The values of ``steps`` time steps before."""

    name: str
    steps: int


@dataclass(frozen=True)
class Readout(LayerStatement):
    """``rate``, ``membrane_mean`` or ``membrane_last``."""

    name: str
    kind: str


Layer: TypeAlias = (
    Conv | Linear | BatchNorm | Add | Concat | Gate | Pool | Flatten | Dropout | Lif | Li | Recurrent | Delay | Readout
)


@dataclass(frozen=True)
class Init:
    """Initial weights are normal(0, gain / sqrt(fan_in)), biases 0."""

    gain: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Description(Statement):
    """A whole file."""

    name: str
    input: Input
    time_steps: int
    encode: Encode | None
    layers: tuple[Layer, ...]
    train: Train | None = None
    init: Init = field(default_factory=Init)
