"""The network of a ``.snn`` file with SpikingJelly's multi-step neurons, for its speed.

Layers and readout are those of ``torch_snn``, which also folds time into the batch; the surrogate is SpikingJelly's
rectangle of the same width, whose height is another, so only times can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch_snn import Floats, Tensor, TorchNetwork, torch_network

from h2learn.compiler.frontends.dsl.syntax import Lif


def spikingjelly_network(path: Path, parameters: Mapping[str, Floats]) -> TorchNetwork | None:
    """Return the network with copies of ``parameters``, or None where SpikingJelly is not installed."""
    try:
        from spikingjelly.activation_based import neuron, surrogate
    except ImportError:
        return None
    network = torch_network(path, parameters)
    for layer in network.description.layers:
        if not isinstance(layer, Lif):
            continue
        wanted = network.neuron(layer)
        node = neuron.LIFNode(
            tau=1 / (1 - wanted.alpha[0]),
            decay_input=False,
            v_threshold=wanted.theta[0],
            v_reset=wanted.v_reset[0] if wanted.reset == "hard" else None,
            surrogate_function=surrogate.Rect(alpha=1 / (2 * wanted.width)),
            detach_reset=wanted.detach_reset,
            step_mode="m",
        )

        def fire(currents: Tensor, node: neuron.LIFNode = node) -> Tensor:
            node.reset()
            spikes: Tensor = node(currents.contiguous())
            return spikes

        network.spiking[layer.name] = fire
    return network
