"""Small NIR graphs and the equations of NIR, written once more, in float64."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np


def chain(*nodes: tuple[str, Any]) -> Any:
    """Return a graph of nodes in a row."""
    names = [name for name, _ in nodes]
    return nir.NIRGraph(dict(nodes), list(pairwise(names)), type_check=False)


def ports(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> tuple[tuple[str, Any], tuple[str, Any]]:
    return ("input", nir.Input(np.array(inputs))), ("output", nir.Output(np.array(outputs)))


def affine(seed: int, outputs: int, inputs: int, gain: float = 1.0) -> Any:
    random = np.random.default_rng(seed)
    weight = random.normal(0, gain / np.sqrt(inputs), (outputs, inputs)).astype(np.float32)
    return nir.Affine(weight, random.normal(0, 0.1, outputs).astype(np.float32))


def lif(shape: tuple[int, ...], tau: float = 2e-4, r: float = 2.0, **constants: float) -> Any:
    values = {"v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0, **constants}
    return nir.LIF(np.full(shape, tau), np.full(shape, r), **{k: np.full(shape, v) for k, v in values.items()})


def cuba(shape: tuple[int, ...], **constants: float) -> Any:
    values = {
        "tau_syn": 4e-4,
        "tau_mem": 2e-4,
        "r": 2.0,
        "v_leak": 0.0,
        "v_threshold": 1.0,
        "v_reset": 0.0,
        "w_in": 1.0,
    }
    return nir.CubaLIF(**{name: np.full(shape, value) for name, value in {**values, **constants}.items()})


def write(path: Path, graph: Any) -> str:
    nir.write(str(path), graph)
    return str(path)


def euler(node: Any, currents: np.ndarray, dt: float, *, soft: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return spikes and potentials before reset of a LIF or IF by forward Euler, v starting at rest."""
    leaky = isinstance(node, nir.LIF)
    v = np.zeros(currents.shape[1:]) + (node.v_leak if leaky else 0.0)
    spikes, potentials = [], []
    for current in currents.astype(np.float64):
        slope = ((node.v_leak - v) + node.r * current) / node.tau if leaky else node.r * current
        v = v + dt * slope
        fired = v > node.v_threshold
        spikes.append(fired)
        potentials.append(v)
        v = v - node.v_threshold * fired if soft else np.where(fired, node.v_reset, v)
    return np.array(spikes), np.array(potentials)
