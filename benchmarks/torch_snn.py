"""The network of a ``.snn`` file in plain PyTorch: layer by layer, time folded into the batch, a loop for neurons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.reference.neuron import Neuron
from h2learn.compiler.autodiff.spec import SGD, Train
from h2learn.compiler.frontends.dsl.reader import read
from h2learn.compiler.frontends.dsl.syntax import (
    Add,
    BatchNorm,
    Concat,
    Conv,
    Description,
    Flatten,
    Layer,
    Li,
    Lif,
    Linear,
    Pool,
    Readout,
    Recurrent,
)

Tensor = torch.Tensor
Floats = npt.NDArray[np.float32]


class Spike(torch.autograd.Function):
    """``s = u >= theta`` (or ``>``) forward, the surrogate derivative at ``u`` backward."""

    @staticmethod
    def forward(context: Any, u: Tensor, neuron: Neuron) -> Tensor:
        """Return spikes, 0 or 1, in the type of ``u``."""
        context.save_for_backward(u)
        context.neuron = neuron
        theta = neuron.theta[0]
        return (u >= theta if neuron.compare == "ge" else u > theta).to(u.dtype)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of ``u``."""
        (u,), neuron = context.saved_tensors, context.neuron
        distance = (u - neuron.theta[0]).abs()
        inside = gradients[0] * (distance < neuron.width)
        if neuron.surrogate == "triangular":
            inside = inside * (1 - distance / neuron.width)
        return inside * neuron.height, None


def integrate_and_fire(
    currents: Tensor, neuron: Neuron, feedback: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Return spikes and membrane potentials of ``currents`` ``[T,N,...]``.

    ``feedback`` gives what the spikes of a step add to the current of the next one.
    """
    spikes: list[Tensor] = []
    potentials = []
    rest: Tensor | None = None
    synapse = torch.zeros_like(currents[0])
    for outside in currents:
        before = spikes[-1] if spikes else torch.zeros_like(outside)
        current = outside if feedback is None else outside + feedback(before)
        if neuron.synapse != "none":
            earlier, synapse = synapse, neuron.beta[0] * synapse + current
            current = synapse if neuron.synapse == "immediate" else earlier
        u = current if rest is None else neuron.alpha[0] * rest + current
        s = Spike.apply(u, neuron)  # type: ignore[no-untyped-call]
        held = s.detach() if neuron.detach_reset else s
        rest = u
        if neuron.reset == "hard":
            rest = u * (1 - held)
            if neuron.v_reset[0]:
                rest = rest + neuron.v_reset[0] * held
        elif neuron.reset == "soft":
            rest = u - neuron.theta[0] * held
        spikes.append(s)
        potentials.append(u)
    return torch.stack(spikes), torch.stack(potentials)


def integrate(currents: Tensor, decay: float) -> Tensor:
    """Return the potentials of integrators that never spike, ``[T,N,K]``."""
    potentials = [currents[0]]
    for current in currents[1:]:
        potentials.append(decay * potentials[-1] + current)
    return torch.stack(potentials)


@dataclass(frozen=True)
class Signal:
    """A value between layers: ``[T,N,...]`` when ``over_time``, else ``[N,...]``, the same at every step."""

    value: Tensor
    over_time: bool

    def repeated(self, time_steps: int) -> Signal:
        """Return the value over time."""
        return self if self.over_time else Signal(self.value.expand(time_steps, *self.value.shape), over_time=True)

    def folded(self, function: Callable[[Tensor], Tensor]) -> Signal:
        """Apply a function of ``[N,...]`` with time folded into the batch."""
        if not self.over_time:
            return replace(self, value=function(self.value))
        result = function(self.value.flatten(0, 1))
        return replace(self, value=result.reshape(*self.value.shape[:2], *result.shape[1:]))


@dataclass
class TorchNetwork:
    """A network of frames over time or directly encoded images, with its parameters and optimizer.

    ``recorded``: neuron layer -> (spikes, potentials). ``spiking``: neuron layers that others compute, currents to
    spikes over time.

    What depends on the constant input alone is computed once, not at every time step, as the compiled program does.
    """

    description: Description
    parameters: dict[str, Tensor]
    recorded: dict[str, tuple[Tensor, Tensor]] | None = None
    spiking: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        chosen, parameters = self.recipe.optimizer, list(self.parameters.values())
        self.optimizer: torch.optim.Optimizer
        if isinstance(chosen, SGD):
            self.optimizer = torch.optim.SGD(parameters, lr=chosen.lr, momentum=chosen.momentum)
        else:
            self.optimizer = torch.optim.Adam(parameters, lr=chosen.lr, betas=chosen.betas, eps=chosen.eps)

    @property
    def recipe(self) -> Train:
        """The recipe that the file states."""
        return self.description.train or Train()

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``[N,K]`` of images ``[N,C,H,W]`` or ``[N,F]``, or of frames with time in front."""
        value = Signal(x, self.description.encode is None)
        named = {self.description.input.name: value}
        for layer in self.description.layers:
            if isinstance(layer, Add | Concat):
                value = self._join(layer, [named[term] for term in layer.terms])
            else:
                value = self._apply(layer, named[layer.source] if layer.source else value)
            named[layer.name] = value
        return value.value

    def _apply(self, layer: Layer, x: Signal) -> Signal:
        if isinstance(layer, Lif | Li | Recurrent):
            x = x.repeated(self.description.time_steps)
        value = x.value
        if isinstance(layer, Conv):
            weight, bias = self._weights(layer.name)
            conv = partial(functional.conv2d, weight=weight, bias=bias, stride=layer.stride, padding=layer.padding)
            return x.folded(conv)
        if isinstance(layer, Linear):
            return replace(x, value=functional.linear(value, *self._weights(layer.name)))
        if isinstance(layer, BatchNorm):
            weight, bias = self._weights(layer.name)
            return x.folded(partial(_batch_norm, weight=weight, bias=bias, eps=layer.eps))
        if isinstance(layer, Pool):
            pool = functional.max_pool2d if layer.kind == "max" else functional.avg_pool2d
            kernel = layer.kernel or tuple(value.shape[-2:])
            return x.folded(partial(pool, kernel_size=kernel, stride=layer.stride))
        if isinstance(layer, Flatten):
            return replace(x, value=value.flatten(2 if x.over_time else 1))
        if isinstance(layer, Lif):
            value, potentials = integrate_and_fire(value, self.neuron(layer))
            if self.recorded is not None:
                self.recorded[layer.name] = (value.detach(), potentials.detach())
        elif isinstance(layer, Recurrent):
            weight, bias = self._weights(layer.name)
            value, _ = integrate_and_fire(
                value, self.neuron(layer), partial(functional.linear, weight=weight, bias=bias)
            )
        elif isinstance(layer, Li):
            value = integrate(value, layer.membrane.alpha[0])
        elif isinstance(layer, Readout):
            value = _read_out(value, layer)
        else:
            raise H2LearnError(f"expected a layer with a twin in PyTorch, found {type(layer).__name__.lower()}")
        return replace(x, value=value)

    def _join(self, layer: Add | Concat, terms: Sequence[Signal]) -> Signal:
        if any(term.over_time for term in terms):
            terms = [term.repeated(self.description.time_steps) for term in terms]
        values = [term.value for term in terms]
        joined = (
            reduce(torch.add, values)
            if isinstance(layer, Add)
            else torch.cat(values, dim=2 if terms[0].over_time else 1)
        )
        return replace(terms[0], value=joined)

    def step(self, x: Tensor, label: Tensor) -> float:
        """Take one optimizer step and return the loss before it."""
        logits = self.forward(x)
        if self.recipe.loss == "cross_entropy":
            loss = functional.cross_entropy(logits, label)
        else:
            loss = functional.mse_loss(logits, functional.one_hot(label, logits.shape[1]).to(logits.dtype))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.item())

    def _weights(self, name: str) -> tuple[Tensor, Tensor | None]:
        return self.parameters[f"{name}.weight"], self.parameters.get(f"{name}.bias")

    def neuron(self, layer: Lif | Recurrent) -> Neuron:
        """Return a layer's neuron with what the recipe changes."""
        recipe = self.recipe
        neuron = layer.neuron if recipe.surrogate is None else recipe.surrogate.apply(layer.neuron)
        return replace(neuron, detach_reset=neuron.detach_reset or recipe.detach_reset)


def torch_network(path: Path, parameters: Mapping[str, Floats], *, record: bool = False) -> TorchNetwork:
    """Return the network of a ``.snn`` file with copies of ``parameters`` (PyTorch's layout)."""
    description = read(path.read_text(encoding="utf-8"), str(path))
    norms = [layer.name for layer in description.layers if isinstance(layer, BatchNorm)]
    statistics = {f"{name}.{kind}" for name in norms for kind in ("running_mean", "running_var")}
    tensors = {
        name: torch.tensor(value, requires_grad=True) for name, value in parameters.items() if name not in statistics
    }
    return TorchNetwork(description, tensors, {} if record else None)


def _batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise by the statistics of the batch; running statistics do not matter to training."""
    return functional.batch_norm(x, None, None, weight, bias, training=True, eps=eps)


def _read_out(value: Tensor, layer: Readout) -> Tensor:
    return value[-1] if layer.kind == "membrane_last" else value.mean(0)
