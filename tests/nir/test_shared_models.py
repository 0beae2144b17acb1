"""Exports of frameworks, with the frameworks' own outputs; skipped where the files are not there."""

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import h2learn
from h2learn.backends.reference.neuron import lif
from h2learn.compiler.frontends.nir.load import NirSource
from h2learn.compiler.frontends.nir.plan import Neurons

SHARED = Path(os.environ.get("H2LEARN_SHARED", Path(__file__).parents[3] / "shared"))
MODELS = SHARED / "models" / "nir"

pytestmark = pytest.mark.skipif(not MODELS.is_dir(), reason="the folder of shared models is absent")


@pytest.mark.parametrize(
    ("stem", "options"),
    [
        ("mlp_snntorch_zero_arrayparams", {"dt": 1e-4, "reset": "hard"}),
        ("conv_spikingjelly_hardreset_m", {"producer": "spikingjelly"}),
        ("conv_spikingjelly_hardreset_m", {"dt": 1e-4}),
        ("mlp_norse_lifbox_arrayparams", {"dt": 1e-6}),
        ("mlp_norse_lifbox_arrayparams", {"producer": "norse"}),
        ("conv_snntorch_subtract_arrayparams", {"reset": "soft-delayed"}),
        ("conv_snntorch_subtract_arrayparams", {"producer": "snntorch"}),
    ],
)
def test_outputs_are_those_of_the_framework(stem: str, options: dict[str, Any]) -> None:
    recorded = np.load(MODELS / f"{stem}_io.npz")
    x, expected = recorded["input"], recorded["output"]
    model = h2learn.load_model(MODELS / f"{stem}.nir", time_steps=len(x), **options)
    found = h2learn.compile(model, batch=x.shape[1]).run({next(iter(model.inputs)): x}).outputs["output"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("stem", "options", "words"),
    [
        ("mlp_norse_lifbox_arrayparams", {}, "field tau: forward Euler needs"),
    ],
)
def test_what_cannot_be_exact_is_refused(stem: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(h2learn.H2LearnError) as caught:
        h2learn.load_model(MODELS / f"{stem}.nir", **options)
    assert words in caught.value.render()


def _traces() -> dict[str, np.ndarray]:
    """Return input, potential and spikes ``[steps, 3]`` by platform."""
    files = sorted((MODELS / "lif_trace").glob("lif_*.csv"))
    return {
        file.stem.removeprefix("lif_"): np.array([[float(v) for v in row] for row in csv.reader(file.open())])
        for file in files
    }


def _spike_error(spikes: np.ndarray, exact: np.ndarray) -> int:
    """Return by how many steps the spikes are off in all; a spike too many or too few counts as all of them."""
    found, wanted = np.flatnonzero(spikes), np.flatnonzero(exact)
    return len(exact) if len(found) != len(wanted) else int(np.abs(found - wanted).sum())


def _potential_error(potential: np.ndarray, exact: np.ndarray) -> float:
    """Return the root mean square difference, with the potential in the units that suit it best."""
    unit = (potential @ exact) / (potential @ potential)
    return float(np.sqrt(np.mean((unit * potential - exact) ** 2)))


@pytest.mark.parametrize("discretisation", ["forward-euler", "exponential"])
def test_the_trace_of_one_neuron_is_closer_to_exact_than_the_median_platform(discretisation: str) -> None:
    traces = _traces()
    exact = traces.pop("exact")
    x = exact[:, 0].reshape(-1, 1, 1).astype(np.float32)
    model = h2learn.load_model(
        MODELS / "lif_trace" / "lif_norse.nir", dt=1e-4, time_steps=len(x), discretisation=discretisation
    )
    spikes = h2learn.compile(model).run({"input": x}).outputs["output"][:, 0, 0]
    assert isinstance(model.source, NirSource)
    operations = [step.operation for step in model.source.plan.steps]
    neuron = next(step for step in operations if isinstance(step, Neurons)).description
    same, u = lif(x, neuron)
    np.testing.assert_array_equal(same[:, 0, 0], spikes)
    potential = np.where(spikes, 0.0, u[:, 0, 0])

    times = [_spike_error(trace[:, 2], exact[:, 2]) for trace in traces.values()]
    potentials = [_potential_error(trace[:, 1], exact[:, 1]) for trace in traces.values()]
    assert _spike_error(spikes, exact[:, 2]) <= min(times) < np.median(times)
    assert _potential_error(potential, exact[:, 1]) < np.median(potentials)
