"""What every job of the ``tile`` level does to its buffers, written from ``docs/semantics.md``."""

from __future__ import annotations

from collections.abc import Callable

from h2learn.dialects import tile

from . import elements, engines, neurons, training
from .job import Buffers, Params

JOBS: dict[str, Callable[[Buffers, Params, bool], None]] = {
    "tile.fe_fill": engines.fe_fill,
    "tile.fe_run": engines.fe_run,
    "tile.fe_planes": engines.fe_planes,
    "tile.be_fwd": engines.be_fwd,
    "tile.be_run": engines.be_run,
    "tile.be_wgt": engines.be_wgt,
    "tile.wu_run": engines.wu_run,
    "tile.lif": neurons.lif,
    "tile.grad": neurons.gradient,
    "tile.tune": neurons.tune,
    "tile.pool": elements.pool,
    "tile.unpool": elements.unpool,
    "tile.rng": elements.rng,
    "tile.drop": elements.drop,
    "tile.reduce": elements.reduce,
    "tile.map": elements.elementwise,
    "tile.pack": elements.pack,
    "tile.stat": training.statistics,
    "tile.fold": training.fold,
    "tile.norm": training.normalise,
    "tile.spread": elements.spread,
    "tile.loss": training.loss,
    "tile.opt": training.optimize,
}

if set(JOBS) != set(tile.FACTS):
    raise ImportError(f"jobs without a meaning or meanings without a job: {sorted(set(JOBS) ^ set(tile.FACTS))}")
