"""Into which groups of samples a batch is cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.machine import Machine, load_machine
from h2learn.compiler.driver import Recipe, compile_to
from h2learn.compiler.mapping.groups import MOST_LAYERS, WORTH, Layer, Pool, choose_groups, step_cycles
from h2learn.compiler.mapping.limits import TileLimits
from h2learn.dialects.common import groups_of
from h2learn.models import load_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "networks"
MACHINE = load_machine("h2l-v0")
FIRST = Layer(9, 3, 64, 1024, 4, real=True, first=True)
MAP = Layer(9, 128, 128, 1024, 4, real=False, first=False)
LAYERS = (FIRST, *[MAP] * 4)
DEEP = replace(MAP, c=512, k=512, positions=64)


def chosen(
    batch: int, limits: str = "", layers: tuple[Layer, ...] = LAYERS, machine: Machine = MACHINE
) -> tuple[int, ...]:
    return choose_groups(layers, batch, machine, 2, TileLimits.parse(limits))


@pytest.mark.parametrize("batch", range(1, 40))
def test_groups_are_the_batch_in_at_most_two_runs(batch: int) -> None:
    sizes = chosen(batch)
    assert sum(sizes) == batch
    assert sizes == tuple(sorted(sizes)) and len(set(sizes)) <= 2


@pytest.mark.parametrize("batch", [8, 16, 32, 64])
def test_a_batch_with_good_divisors_has_equal_groups(batch: int) -> None:
    assert len(set(chosen(batch))) == 1


def test_a_batch_without_good_divisors_has_groups_of_two_sizes() -> None:
    """Where DRAM traffic decides, one sample a group is too small, and of all together no part overlaps another."""
    small, layers = load_machine("h2l-edge"), (FIRST, *[DEEP] * 4)
    sizes = chosen(13, layers=layers, machine=small)
    assert len(set(sizes)) == 2 and 1 < max(sizes) < 13
    equal = [(13,), (1,) * 13]
    assert all(step_cycles(layers, sizes, small, 2) < step_cycles(layers, one, small, 2) / WORTH for one in equal)
    many = (FIRST, *[DEEP] * MOST_LAYERS)
    assert chosen(13, layers=many, machine=small) in equal, "its stages would be written down twice"


def test_small_groups_at_the_ends_gain_nothing_where_engines_take_as_long() -> None:
    """What stands behind the forward part waits whenever a group is larger than the one before."""
    equal = step_cycles(LAYERS, (4, 4, 4, 4), MACHINE, 2)
    for sizes in ((1, 3, 4, 4, 3, 1), (1, 1, 4, 4, 4, 1, 1), (2, 4, 4, 4, 2)):
        assert step_cycles(LAYERS, sizes, MACHINE, 2) > 0.98 * equal


VGG5 = (
    Layer(9, 3, 32, 1024, 1, real=True, first=True),
    Layer(9, 32, 64, 1024, 8, real=False, first=False),
    Layer(9, 64, 128, 256, 8, real=False, first=False),
    Layer(1, 8192, 256, 1, 8, real=False, first=False),
    Layer(1, 256, 10, 1, 8, real=False, first=False),
)
POOLS = (Pool(524_288, 131_072, 4, spikes=True), Pool(262_144, 65_536, 4, spikes=True))


@pytest.mark.parametrize(
    ("group", "cycles"), [(1, 1_254_017), (2, 1_164_761), (4, 1_226_569), (8, 1_433_782), (16, 1_808_167)]
)
def test_a_step_with_pooling_takes_about_as_long_as_estimated(group: int, cycles: int) -> None:
    """As measured on ``h2l-v0``: a gradient comes back through the windows in stages of the vector unit."""
    estimate = step_cycles(VGG5, (group,) * (16 // group), MACHINE, 2, pools=POOLS)
    assert 0.9 * cycles < estimate < 1.1 * cycles
    assert step_cycles(VGG5, (group,) * (16 // group), MACHINE, 2) < estimate


@pytest.mark.parametrize("machine", ["h2l-v0", "h2l-edge"])
@pytest.mark.parametrize("spikes", [True, False])
def test_pooled_maps_are_moved_as_fp32(machine: str, *, spikes: bool) -> None:
    """Once with and once without the windows, there and back, where spikes are pooled; currents only there."""
    there, one = load_machine(machine), (4,) * 4
    plain, pooled = (
        step_cycles(VGG5, one, there, 2, pools=pools) for pools in ((), (replace(POOLS[0], spikes=spikes),))
    )
    moved = 16 * POOLS[0].values * 8 / there.dram.bytes_per_cycle
    assert pooled - plain >= (1 if machine == "h2l-edge" else 0.25) * moved


def test_pooling_of_a_network_is_in_the_estimate() -> None:
    model = load_model(BENCHMARKS / "vgg5.snn").with_batch(16)
    assert groups_of(compile_to(model, Recipe("h2l-v0", "fp16", model.train), "engines")) == (2,) * 8


def test_groups_that_are_asked_for() -> None:
    assert chosen(16, "group=4") == (4, 4, 4, 4) and chosen(16, "group=5") == (4, 4, 4, 4)
    assert chosen(13, "group=4") == (1,) * 13, "groups of one size"
    assert chosen(13, "groups=1+4+4+4") == (1, 4, 4, 4)


def test_groups_that_are_not_the_batch() -> None:
    with pytest.raises(H2LearnError, match="groups of 15 samples in all do not make a batch of 16"):
        chosen(16, "groups=3+4+4+4")
    with pytest.raises(H2LearnError, match="group and groups exclude each other") as found:
        chosen(16, "group=4,groups=4+4+4+4")
    assert found.value.hint
