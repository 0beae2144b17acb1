"""A weight gradient whose positions are one block reads inputs or gradients once, whichever moves fewer bytes."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import pytest

import h2learn
from h2learn.compiler.driver import Recipe, compile_to
from h2learn.compiler.frontends.dsl import parse_snn
from h2learn.compiler.passes.tile_layout import enclosing_loops
from h2learn.dialects import tile

NETWORK = """
network order
input image: 24
time steps: 3
encode direct
neuron: lif(decay 0.5, threshold 0.5, reset hard, spike at u > threshold)
linear f1: {hidden} features
lif n1
linear f2: {wide} features
lif n2
linear f3: 10 features
li integrate: decay 0.5
readout membrane mean
train: loss cross_entropy, optimizer sgd(lr 0.05),
       surrogate rectangular(half_width 0.5, height 1.0), method bptt
init: normal gain 1.5 seed 0
"""
BATCH = 4


def reads(model: h2learn.Model, mapping: str) -> dict[str, int]:
    """Return how often the stage of f2's weight gradient loads inputs and gradients."""
    assert model.train is not None
    recipe = Recipe("h2l-v0", "fp16", replace(model.train, keep_gradients=False), mapping)
    counts: dict[str, int] = {}
    for op in compile_to(model.with_batch(BATCH), recipe, "tile").walk():
        if isinstance(op, tile.StageOp) and op.label.data == "weights f2":
            for load in (one for one in op.walk() if isinstance(one, tile.LoadOp)):
                form = tile.placed_of(load.tensor).form
                kind = {"bits": "inputs", "slots.f16": "gradients"}.get(form)
                if kind is not None:
                    counts[kind] = prod(loop.trips.data for loop in enclosing_loops(load))
    return counts


@pytest.mark.parametrize(
    ("hidden", "wide", "expected"),
    [(32, 512, {"inputs": 4, "gradients": 32}), (512, 128, {"inputs": 128, "gradients": 2})],
    ids=["inputs stay", "gradients stay"],
)
def test_what_is_read_more_often_stays(hidden: int, wide: int, expected: dict[str, int]) -> None:
    model = parse_snn(NETWORK.format(hidden=hidden, wide=wide))
    assert reads(model, "c=8,k=64") == expected
    assert model.train is not None
    rng = np.random.default_rng(0)
    feed = {"image": rng.random((BATCH, 24), dtype=np.float32), "label": rng.integers(0, 10, BATCH).astype(np.int32)}
    results = []
    for mapping in ("c=8,k=64", "c=8,k=64,samples=1,steps=1"):
        program = h2learn.compile(model, train=model.train, batch=BATCH, precision="fp32", mapping=mapping)
        results.append(program.run(feed))
    one, several = results
    assert one.report.findings == several.report.findings == []
    assert np.abs(one.gradients["f2.weight"]).max() > 0
    np.testing.assert_allclose(one.gradients["f2.weight"], several.gradients["f2.weight"], rtol=1e-5, atol=1e-7)
