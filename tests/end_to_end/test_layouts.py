"""Layouts of DRAM tensors: what a program computes does not depend on them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from xdsl.dialects import builtin

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.driver import Recipe, emit_program
from h2learn.compiler.universe import new_context
from h2learn.dialects import tile

from .networks import Case, random_data, random_model, random_train


def lowered_with(case: Case, lay_out: Callable[[builtin.ModuleOp], None]) -> builtin.ModuleOp:
    """Return the ``h2`` program with layouts of one's own."""
    module = case.levels["lut"].clone()
    names = [one.name for one in case.recipe.passes("h2")]
    for one in case.recipe.passes("h2")[names.index("h2l-lut-to-tile") :]:
        if one.name == "h2l-lay-out-tensors":
            lay_out(module)
        else:
            one.apply(new_context(), module)
    return module


def leave(module: builtin.ModuleOp) -> None:
    """Leave all channels of a position together."""


def part(module: builtin.ModuleOp) -> None:
    """Put every 8 channels of whatever is no slot into a plane."""
    for op in module.walk():
        if isinstance(op, tile.TensorOp) and op.rows is None and op.shadow is None:
            placed = tile.placed_of(op.result)
            users = [use.operation for use in op.result.uses]
            if not placed.gblk and placed.shape[-1] % 8 == 0 and all(isinstance(user, tile.CopyOp) for user in users):
                op.layout = tile.LayoutAttr(tile.Layout(8))


def loops(module: builtin.ModuleOp) -> int:
    """Return the number of loops of a program."""
    return sum(op.name == "h2.loop" for op in module.walk())


def test_layouts_change_bursts_and_no_numbers() -> None:
    """A program whose tensors lie channels last, and one in thin planes, give the same bytes; DRAM is busy longer."""
    chosen = over_planes = 0
    busy = np.zeros(2)
    for seed in range(10):
        rng = np.random.default_rng([31, seed])
        model, train = random_model(rng, batch=4, steps=2), random_train(rng)
        limits = str(rng.choice(["c=8", "c=8,rows=3", "k=8,steps=1", "samples=2,group=4", "samples=2,rows=2,group=4"]))
        try:
            case = Case(model, Recipe("h2l-edge", "fp16", train, limits), random_data(model, train, rng))
        except H2LearnError as error:
            assert "fits the on-chip memories" in error.message
            continue
        expected, report = case.run_device()
        for lay_out in (leave, part):
            module = lowered_with(case, lay_out)
            found, other = case.run_device(emit_program(model, module, case.recipe))
            for key, value in expected.items():
                assert value.tobytes() == found[key].tobytes(), key
            assert other.bytes_read == report.bytes_read and other.bytes_written == report.bytes_written
            if lay_out is part:
                over_planes += loops(module) - loops(case.levels["h2"])
            else:
                busy += other.busy["DRAM"], report.busy["DRAM"]
        chosen += sum(isinstance(op, tile.TensorOp) and op.layout is not None for op in case.levels["tile"].walk())
    print(f"\n{chosen} layouts; DRAM busy {busy[0]:.0f}, {busy[1]:.0f} cycles; {over_planes} loops over planes")
    assert chosen > 20 and over_planes > 0 and busy[1] < 0.95 * busy[0]
