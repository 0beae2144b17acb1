"""Spellings of elementwise computations that hide what they are, undone while the graph is executed."""

from __future__ import annotations

from collections.abc import Sequence

from .steps import StepNode, Steps


def simplified(steps: Steps, op: str, args: Sequence[StepNode]) -> StepNode | None:
    """Return the node that an operation on ``args`` gives in fewer words, None where there is none.

    * ``(a - h) + h`` is ``a``: how a straight-through surrogate ``h`` is written without a custom gradient.
    * A floor (a ceiling) that is cut off to 0 .. 1 is a comparison with 1 (with 0).
    * 0 times random numbers is 0: noise that is switched off.
    """
    if op in ("add", "sub"):
        return _cancelled(op, *args)
    if op in _CUTS:
        return _one_step(steps, op, args)
    if op == "mul" and any(arg.scalar == 0.0 for arg in args):
        return next((steps.filled(0.0, arg.shape, arg.source) for arg in args if arg.op == "random"), None)
    return None


def _cancelled(op: str, a: StepNode, b: StepNode) -> StepNode | None:
    if op == "sub":
        return a.args[1 - a.args.index(b)] if a.op == "add" and b in a.args else None
    for x, y in ((a, b), (b, a)):
        if x.op == "sub" and x.args[1] is y:
            return x.args[0]
    return None


def _one_step(steps: Steps, op: str, args: Sequence[StepNode]) -> StepNode | None:
    """Return the comparison that ``clip(floor(x), 0, 1)`` is, whichever end is cut off first."""
    inner, *bounds = _cut(op, args)
    if inner is None or inner.op not in _CUTS:
        return None
    x, *others = _cut(inner.op, inner.args)
    if x is None or x.op not in ("floor", "ceil") or {*bounds, *others} != {None, 0.0, 1.0} or bounds == others:
        return None
    threshold = steps.scalar(1.0 if x.op == "floor" else 0.0, x.source)
    return steps.node("ge" if x.op == "floor" else "gt", [x.args[0], threshold], x.shape, x.source, scope=x.scope)


def _cut(op: str, args: Sequence[StepNode]) -> tuple[StepNode | None, float | None, float | None]:
    """Return what a maximum (minimum) with a number cuts off, and the lower (upper) bound."""
    if op == "relu":
        return args[0], 0.0, None
    number, other = (args[0].scalar, args[1]) if args[0].scalar is not None else (args[1].scalar, args[0])
    return (None, None, None) if number is None else (other, number, None) if op == "max" else (other, None, number)


_CUTS = ("relu", "max", "min")
