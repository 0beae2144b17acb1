"""Random networks: all levels and the simulator give the same bits, and every ``wait`` of a program is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import pytest
from xdsl.dialects.builtin import StringAttr

from h2learn.backends.h2learn.encoder import Decoded, decode_program, encode
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.isa import WORD_BYTES
from h2learn.backends.h2learn.object_file import ObjectFile
from h2learn.compiler.driver import emit_program
from h2learn.dialects import lut

from .networks import Case, Named, lowered_from_lut, random_case

TRAINING = range(200)
INFERENCE = range(1000, 1030)
DROPPED_WAITS = 2
SANITIZERS = ("race", "uninit", "bounds")


@dataclass
class Tally:
    """What the random networks were and what became of the dropped waits."""

    cases: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)


@pytest.fixture(scope="module")
def tally() -> Iterator[Tally]:
    found = Tally()
    yield found
    print(f"\nnetworks: {dict(found.cases)}\ndropped waits: {dict(found.drops)}")


def assert_same_bits(expected: Named, found: Named, what: str) -> None:
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert value.dtype == found[key].dtype and value.shape == found[key].shape, f"{what}: {key}"
        assert value.tobytes() == found[key].tobytes(), f"{what}: {key} differs"


def assert_close(expected: Named, found: Named) -> None:
    steepest = max((float(np.abs(v).max()) for (role, _), v in expected.items() if role == "gradient"), default=0.0)
    for key, value in expected.items():
        # in front of batch norm the gradient of a bias is a sum that cancels: 0 but for the rounding of its terms
        cancels = ("parameter", key[1].replace(".bias", ".norm.weight")) in expected
        change = expected.get(("gradient", key[1]), value)
        scale = max(float(np.abs(value).max()), float(np.abs(change).max()), steepest if cancels else 1e-6)
        np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-5 * scale, err_msg=str(key))


def check_all_levels(case: Case) -> Named:
    """Compare the levels with each other and with both simulators; return the results."""
    results = case.run_level("lut")
    for level in ("tile", "h2"):
        assert_same_bits(results, case.run_level(level), level)
    assert_same_bits(results, case.run_device(execute="reference", timing=False)[0], "reference")
    fast, report = case.run_device(sanitize=SANITIZERS)
    assert_same_bits(results, fast, "fast")
    assert [finding.message for finding in report.findings] == []
    if case.recipe.precision == "fp32" and case.data.certain:
        assert_close(case.run_level("spike"), results)
    return results


def without(program: ObjectFile, pc: int, wait: Decoded) -> ObjectFile:
    """Return the program with a ``nop`` in place of a ``wait``."""
    start, end = pc * WORD_BYTES, (pc + 1) * WORD_BYTES
    nop = encode("nop", {"engine": wait.fields["engine"]})
    return replace(program, text=program.text[:start] + nop + program.text[end:])


def drop_a_wait(case: Case, rng: np.random.Generator) -> str:
    """Remove a random ``wait`` and return who objects: the race check of accesses, that of tokens, or a fault.

    ``drain``: one of the waits at the end, which only leave the semaphores empty for the next run.
    """
    code = decode_program(case.program.text)
    pc = int(rng.choice([pc for pc, row in enumerate(code) if row.mnemonic == "wait"]))
    try:
        _, report = case.run_device(without(case.program, pc, code[pc]), timing=False, sanitize=("race",))
    except H2LearnError:
        return "fault"
    messages = [finding.message for finding in report.findings]
    assert messages, f"nobody misses {code[pc]} at pc {pc}"
    if any("races with" in message for message in messages):
        return "race"
    return "drain" if all(row.mnemonic in ("wait", "halt") for row in code[pc:]) else "tokens left"


@pytest.mark.parametrize("seed", TRAINING)
def test_training_steps_agree(seed: int, tally: Tally) -> None:
    case = random_case(seed)
    results = check_all_levels(case)
    gradients = [value for (role, _), value in results.items() if role == "gradient"]
    tiled = "tiled" if "c=8" in case.recipe.limits else "whole"
    tally.cases.update(["all", case.recipe.precision, *str(case.recipe.arch).split(":"), tiled])
    layers = [op for op in case.levels["lut"].walk() if isinstance(op, lut.FeConvOp)]
    tally.cases["bit-planes"] += any(op.planes is not None for op in layers)
    tally.cases["learning"] += all(np.isfinite(g).all() for g in gradients) and any(g.any() for g in gradients)
    tally.cases["compared with spike"] += case.recipe.precision == "fp32" and case.data.certain
    rng = np.random.default_rng([seed, 1])
    tally.drops.update(drop_a_wait(case, rng) for _ in range(DROPPED_WAITS))


def test_the_random_networks_say_something(tally: Tally) -> None:
    if tally.cases["all"] < len(TRAINING):
        pytest.skip("only after all random networks")
    assert tally.cases["learning"] >= 0.9 * len(TRAINING)
    assert tally.cases["compared with spike"] >= 0.3 * len(TRAINING)
    assert min(tally.cases[kind] for kind in ("fp16", "h2l-v0", "h2l-edge", "tiled", "whole")) >= 0.2 * len(TRAINING)
    assert tally.cases["bit-planes"] >= 0.05 * len(TRAINING)
    assert tally.drops["race"] > 0.3 * tally.drops.total()
    assert tally.drops["fault"] < 0.05 * tally.drops.total()


@pytest.mark.parametrize("seed", INFERENCE)
def test_inference_agrees(seed: int) -> None:
    results = check_all_levels(random_case(seed, train=False))
    assert [role for role, _ in results] == ["output"]


def with_modes(case: Case, masked: str, unmasked: str) -> ObjectFile:
    """Return the case's program with other modes of the backward engine."""
    module = case.levels["lut"].clone()
    for op in module.walk():
        if isinstance(op, lut.BeGradOp):
            op.properties["mode"] = StringAttr(unmasked if op.m is None else masked)
    return emit_program(case.model, lowered_from_lut(module, case.recipe), case.recipe)


def test_sparsity_modes_change_cycles_and_no_bits() -> None:
    cases = (random_case(seed) for seed in TRAINING)
    masked = (c for c in cases if any(isinstance(op, lut.BeGradOp) and op.m for op in c.levels["lut"].walk()))
    saved = 0
    for case in islice(masked, 6):
        expected, report = case.run_device()
        counts, busy = report.work["be.run"], {"dual": report.busy["BE"]}
        for mode, unmasked in (("dense", "dense"), ("in", "in"), ("out", "dense")):
            found, report = case.run_device(with_modes(case, mode, unmasked))
            assert_same_bits(expected, found, mode)
            if mode != "out":
                assert report.work["be.run"]["pe_cycles"] == counts[f"pe_cycles_{mode}"]
            busy[mode] = report.busy["BE"]
        assert busy["dense"] >= busy["in"] >= busy["dual"] and busy["dense"] >= busy["out"]
        saved += busy["dense"] > busy["dual"]
    assert saved >= 3
