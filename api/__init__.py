"""Train spiking neural networks on an H2Learn-style accelerator: compiler, simulator, and the jobs around them.

>>> model = h2learn.load_model("net.snn")
>>> step = h2learn.compile(model, train=h2learn.Train(optimizer=h2learn.SGD(lr=0.1)))
>>> result = step.run({"image": x, "label": y})
>>> result.loss, result.gradients["c1.weight"], result.cycles

Names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from h2learn.backends.h2learn.errors import H2LearnError
    from h2learn.backends.h2learn.machine import Machine, load_machine
    from h2learn.compiler.autodiff.spec import (
        BPTT,
        SGD,
        Adam,
        AdamW,
        ATan,
        Exponential,
        FastSigmoid,
        Gaussian,
        MSECount,
        Rectangular,
        Sigmoid,
        Train,
        Triangular,
    )
    from h2learn.compiler.calibration import calibrate
    from h2learn.compiler.frontends.nir import from_nir, to_nir
    from h2learn.compiler.model import Model, TensorSpec
    from h2learn.data import Binning, DataSet, Events, load_data, load_digits, load_events, load_npz
    from h2learn.models import load_model
    from h2learn.program import Program, Result, Session, compile, load_program
    from h2learn.schedules import Cosine, Schedule, StepDecay
    from h2learn.torch_bridge import from_torch
    from h2learn.training import Epoch, History, train

_HOMES = {
    "H2LearnError": "h2learn.backends.h2learn.errors",
    "Machine": "h2learn.backends.h2learn.machine",
    "load_machine": "h2learn.backends.h2learn.machine",
    "BPTT": "h2learn.compiler.autodiff.spec",
    "SGD": "h2learn.compiler.autodiff.spec",
    "Adam": "h2learn.compiler.autodiff.spec",
    "AdamW": "h2learn.compiler.autodiff.spec",
    "MSECount": "h2learn.compiler.autodiff.spec",
    "Rectangular": "h2learn.compiler.autodiff.spec",
    "Train": "h2learn.compiler.autodiff.spec",
    "Triangular": "h2learn.compiler.autodiff.spec",
    "calibrate": "h2learn.compiler.calibration",
    "ATan": "h2learn.compiler.autodiff.spec",
    "Sigmoid": "h2learn.compiler.autodiff.spec",
    "FastSigmoid": "h2learn.compiler.autodiff.spec",
    "Exponential": "h2learn.compiler.autodiff.spec",
    "Gaussian": "h2learn.compiler.autodiff.spec",
    "from_nir": "h2learn.compiler.frontends.nir",
    "to_nir": "h2learn.compiler.frontends.nir",
    "Model": "h2learn.compiler.model",
    "TensorSpec": "h2learn.compiler.model",
    "Binning": "h2learn.data",
    "DataSet": "h2learn.data",
    "Events": "h2learn.data",
    "load_data": "h2learn.data",
    "load_events": "h2learn.data",
    "load_digits": "h2learn.data",
    "load_npz": "h2learn.data",
    "load_model": "h2learn.models",
    "Program": "h2learn.program",
    "Result": "h2learn.program",
    "Session": "h2learn.program",
    "compile": "h2learn.program",
    "load_program": "h2learn.program",
    "from_torch": "h2learn.torch_bridge",
    "Epoch": "h2learn.training",
    "History": "h2learn.training",
    "Cosine": "h2learn.schedules",
    "Schedule": "h2learn.schedules",
    "StepDecay": "h2learn.schedules",
    "train": "h2learn.training",
}

__all__ = [
    "BPTT",
    "SGD",
    "ATan",
    "Adam",
    "AdamW",
    "Binning",
    "Cosine",
    "DataSet",
    "Epoch",
    "Events",
    "Exponential",
    "FastSigmoid",
    "Gaussian",
    "H2LearnError",
    "History",
    "MSECount",
    "Machine",
    "Model",
    "Program",
    "Rectangular",
    "Result",
    "Schedule",
    "Session",
    "Sigmoid",
    "StepDecay",
    "TensorSpec",
    "Train",
    "Triangular",
    "calibrate",
    "compile",
    "from_nir",
    "from_torch",
    "load_data",
    "load_digits",
    "load_events",
    "load_machine",
    "load_model",
    "load_npz",
    "load_program",
    "to_nir",
    "train",
]


def __getattr__(name: str) -> object:
    """Import a public name on its first use."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'h2learn' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
