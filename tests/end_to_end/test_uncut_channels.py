"""Channels that no multiple of 8 divides are not cut: weights and tables that never change then have one slot."""

from __future__ import annotations

import numpy as np
import pytest

from h2learn.compiler.autodiff.spec import SGD, Train
from h2learn.compiler.driver import Recipe
from h2learn.compiler.frontends.dsl import parse_snn
from h2learn.dialects import tile

from .networks import Case, random_data
from .test_random_networks import check_all_levels

NET = """network uncut
input x: 12 spikes over time
time steps: 3
linear f1: {width} features
lif n1
linear f2: {width} features
{neurons} n2: decay 0.9
linear f3: 4 features
li: decay 0.5
readout membrane mean
init: normal gain 1.5 seed 1
"""


def checked(width: int, neurons: str, recipe: Recipe) -> Case:
    model = parse_snn(NET.format(width=width, neurons=neurons), "net.snn").with_batch(3)
    case = Case(model, recipe, random_data(model, recipe.train, np.random.default_rng(1)))
    assert check_all_levels(case)["gradient", "f2.weight"].any()
    return case


@pytest.mark.parametrize("neurons", ["lif", "recurrent"])
@pytest.mark.parametrize("mapping", ["", "group=1"])
def test_a_layer_whose_tables_have_room_once(neurons: str, mapping: str) -> None:
    case = checked(70, neurons, Recipe("h2l-edge", "fp32", Train(optimizer=SGD()), mapping))
    allocs = [op for op in case.levels["tile"].walk() if isinstance(op, tile.AllocOp) and op.memory.data == "L"]
    assert {op.slots.data for op in allocs if "70x2x70" in str(op.result.type)} == {1}


def test_sums_without_room_for_the_optimizer_beside_them_go_to_dram() -> None:
    """A step on 100 x 100 weights at once takes more of the small machine's W than there is."""
    case = checked(100, "lif", Recipe("h2l-edge", "fp16", Train(optimizer=SGD(momentum=0.9)), ""))
    stages = {op.label.data for op in case.levels["tile"].walk() if isinstance(op, tile.StageOp)}
    assert "optimizer f2.weight" in stages and "optimizer f1.weight" not in stages
