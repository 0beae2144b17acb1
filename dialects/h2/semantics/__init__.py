"""What each computing instruction does, one function per mnemonic, in plain NumPy.

Written from ``docs/semantics.md``. Loops run where the order of a sum counts; what is vectorised is independent.
"""

from __future__ import annotations

from collections.abc import Callable

from . import elements, engines, neurons, training, transfers
from .job import Job

SEMANTICS: dict[str, Callable[[Job], None]] = {
    "ld": transfers.load,
    "st": transfers.store,
    "fe.fill": engines.fe_fill,
    "fe.run": engines.fe_run,
    "be.fwd": engines.be_forward,
    "be.run": engines.be_run,
    "be.wgt": engines.be_weights,
    "wu.run": engines.wu_run,
    "v.lif": neurons.lif,
    "v.grad": neurons.gradient,
    "v.tune": neurons.tune,
    "v.pool": elements.pool,
    "v.unpool": elements.unpool,
    "v.spread": elements.spread,
    "v.map": elements.elementwise,
    "v.pack": elements.bit_planes,
    "v.rng": elements.rng,
    "v.drop": elements.drop,
    "v.reduce": elements.reduce,
    "v.stat": training.statistics,
    "v.fold": training.fold,
    "v.norm": training.normalise,
    "v.loss": training.loss,
    "v.opt": training.optimize,
}
"""What each mnemonic does."""
