"""Networks of small dyadic numbers: all sums are exact, so that order and rounding decide nothing anywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from h2learn.compiler.autodiff.spec import SGD, Train
from h2learn.compiler.driver import Recipe

from .networks import Case, Named, interpret_spike, random_data, random_limits, random_model

SEEDS = range(40)
LEVELS = ("lut", "tile", "h2")
TRAIN = Train(loss="mse_rate", optimizer=SGD(momentum=0.5))


def dyadic_case(seed: int) -> Case:
    """Return a network with power-of-two sizes and decays, without tile limits."""
    rng = np.random.default_rng([13, seed])
    model = random_model(rng, batch=int(rng.choice([1, 2, 4])), steps=int(rng.choice([1, 2, 4])), dyadic=True)
    return Case(model, Recipe(train=TRAIN), random_data(model, TRAIN, rng, dyadic=True))


def exact_results(case: Case) -> Named | None:
    """Return the results of the training graph, if binary32 and binary64 give the same."""
    graph = case.levels["spike"]
    single, double = (interpret_spike(graph, case.arguments(), dtype) for dtype in (np.float32, np.float64))
    if not all(np.array_equal(a, b) for a, b in zip(single, double, strict=True)):
        return None
    return case.in_source_order(graph, single)


def equal(expected: Named, found: Named) -> None:
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=str(key))


@pytest.fixture(scope="module")
def exact() -> list[tuple[Case, Named]]:
    """Return the networks whose sums are all exact."""
    cases = (dyadic_case(seed) for seed in SEEDS)
    return [(case, results) for case in cases if (results := exact_results(case)) is not None]


def test_most_networks_are_exact_and_learn(exact: list[tuple[Case, Named]]) -> None:
    learning = [r for _, r in exact if all(v.any() for (role, name), v in r.items() if role == "gradient")]
    print(f"\n{len(exact)} of {len(SEEDS)} networks are exact, {len(learning)} of them have no gradient of zeros")
    assert len(exact) >= len(SEEDS) / 2
    assert len(learning) >= len(SEEDS) / 4


def test_every_level_and_two_mappings_give_the_same_numbers(exact: list[tuple[Case, Named]]) -> None:
    remapped = 0
    for seed, (case, expected) in enumerate(exact):
        limits = random_limits(np.random.default_rng([8, seed]))
        tiled = Case(case.model, replace(case.recipe, limits=limits), case.data)
        remapped += (tiled.program.text, tiled.program.rodata) != (case.program.text, case.program.rodata)
        for one in (case, tiled):
            for level in LEVELS:
                equal(expected, one.run_level(level))
            equal(expected, one.run_device(timing=False)[0])
    assert remapped >= 0.8 * len(exact)
