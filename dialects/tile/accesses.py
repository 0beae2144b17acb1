"""Which engine runs an op, and what it reads and writes."""

from __future__ import annotations

from xdsl.ir import Operation, SSAValue

from .attributes import Index
from .jobs import JobOp
from .structure import TokenOp
from .tensors import CopyOp, LoadOp, StoreOp


def engine_of(op: Operation) -> str | None:
    """Return the engine that runs an op (None for loops and declarations)."""
    if isinstance(op, LoadOp):
        return "DMAIN"
    if isinstance(op, StoreOp):
        return "DMAOUT"
    if isinstance(op, TokenOp):
        return op.engine.data
    return op.facts.engine if isinstance(op, JobOp) else None


def touched(op: Operation) -> list[tuple[SSAValue, Index | None, bool, bool]]:
    """Return (buffer or tensor, leading index, read, written) for everything a job or copy touches.

    For the tensor of a copy the index is None; the copy's own window says which part.
    """
    if isinstance(op, CopyOp):
        load = isinstance(op, LoadOp)
        return [(op.tensor, None, load, not load), (op.buffer, op.index, not load, load)]
    if not isinstance(op, JobOp):
        return []
    facts = op.facts
    return [(buffer, index, role in facts.reads, role in facts.writes) for role, (buffer, index) in op.places().items()]
