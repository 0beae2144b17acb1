"""Every computing instruction as an executable specification in plain NumPy: ordered, readable, slow.

Loops run over whatever ``docs/semantics.md`` orders (taps, channels, groups, positions); only independent elements are
vectorised. ``fast.py`` must give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from h2learn.runtime.operation import Memories, Operation, Work, check_dispatch, open_operands

from . import elements, engines, neurons, training, transfers
from .values import Buffers


def execute(op: Operation, memories: Memories) -> Work:
    """Execute one instruction; raises H2LearnError on a fault (nothing is promised about memory then)."""
    buffers = open_operands(op, memories)
    with np.errstate(all="ignore"):
        return SEMANTICS[op.mnemonic](op, buffers)


SEMANTICS: dict[str, Callable[[Operation, Buffers], Work]] = {
    "ld": transfers.load,
    "st": transfers.store,
    "fe.fill": engines.fe_fill,
    "fe.run": engines.fe_run,
    "be.fwd": engines.be_fwd,
    "be.run": engines.be_run,
    "be.wgt": engines.be_wgt,
    "wu.run": engines.wu_run,
    "v.lif": neurons.v_lif,
    "v.grad": neurons.v_grad,
    "v.tune": neurons.v_tune,
    "v.pool": elements.v_pool,
    "v.unpool": elements.v_unpool,
    "v.rng": elements.v_rng,
    "v.drop": elements.v_drop,
    "v.reduce": elements.v_reduce,
    "v.spread": elements.v_spread,
    "v.map": elements.v_map,
    "v.pack": elements.v_pack,
    "v.stat": training.v_stat,
    "v.fold": training.v_fold,
    "v.norm": training.v_norm,
    "v.loss": training.v_loss,
    "v.opt": training.v_opt,
}

check_dispatch(dict(SEMANTICS), "reference semantics")
