"""The comparison of look-ups with adders on one small layer: rates follow the density of spikes as they should."""

from __future__ import annotations

import adders
import pytest

from h2learn.backends.h2learn.machine import load_machine

PLAIN = load_machine("h2l-v0")
SKIPPING = load_machine("h2l-v0:forward.skip_zero_patterns=true")


@pytest.mark.parametrize("density", [0.1, 0.4])
def test_rates_follow_the_density_of_spikes(density: float) -> None:
    found = {
        name: adders.measure(density, fan, SKIPPING if skips else PLAIN, channels=32, size=10)
        for name, fan, skips in adders.METHODS
    }
    inside = found["adders"].spikes  # a little below the density: the zeros around the maps count
    assert 0.75 * density < inside < density
    rates = {name: one.rate for name, one in found.items()}
    assert rates["adders"] == pytest.approx(1, rel=0.15) and rates["look-ups"] == pytest.approx(4, rel=0.15)
    assert rates["event-driven adders"] == pytest.approx(1 / inside, rel=0.3)
    assert rates["look-ups, skipping"] > 1.1 * rates["look-ups"]
    assert (rates["event-driven adders"] > rates["look-ups"]) == (density < 0.25)
    assert found["look-ups, skipping"].picojoules == found["look-ups"].picojoules
