"""What ``spike.scan`` and ``lut.scan`` share: a body over whole tensors that reads its own results one step earlier."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
from xdsl.dialects.builtin import LocationAttr, UnitAttr
from xdsl.ir import Block, BlockArgument, Region, SSAValue
from xdsl.irdl import (
    IRDLOperation,
    ParsePropInAttrDict,
    opt_prop_def,
    region_def,
    traits_def,
    var_operand_def,
    var_result_def,
)
from xdsl.traits import IsTerminator, Pure
from xdsl.utils.exceptions import VerifyException

from .common import Array


class FeedbackEnd(IRDLOperation, ABC):
    """The end of a body: what it yields."""

    values = var_operand_def()

    assembly_format = "$values attr-dict `:` type($values)"
    traits = traits_def(IsTerminator())

    def __init__(self, values: Sequence[SSAValue], *, location: LocationAttr) -> None:
        super().__init__(operands=[list(values)])
        self.location = location


class FeedbackOp(IRDLOperation, ABC):
    """Ops over all time steps of which some read, at every step, what the body yielded one step earlier.

    The body describes whole tensors ``[T,N,...]`` like the ops around it. Its arguments are the inputs, then the
    fed-back values: argument j of these is, at step t, the yielded value j at step t - 1, and 0 (no spike) at the first
    step. With ``reverse`` time runs the other way: the yielded value at t + 1, and 0 at the last step. No op of a body
    looks ahead of its step, so the values are found step by step.
    """

    END: ClassVar[type[FeedbackEnd]]
    inputs = var_operand_def()
    outputs = var_result_def()
    reverse = opt_prop_def(UnitAttr)
    body = region_def("single_block")

    irdl_options = (ParsePropInAttrDict(),)
    assembly_format = "$inputs attr-dict `:` functional-type(operands, results) $body"
    traits = traits_def(Pure())

    def __init__(
        self, inputs: Sequence[SSAValue], body: Block, *, reverse: bool = False, location: LocationAttr
    ) -> None:
        end = body.last_op
        assert isinstance(end, FeedbackEnd)
        super().__init__(
            operands=[list(inputs)],
            properties={"reverse": UnitAttr() if reverse else None},
            result_types=[[value.type for value in end.values]],
            regions=[Region(body)],
        )
        self.location = location

    @property
    def arguments(self) -> tuple[BlockArgument, ...]:
        """The body's arguments that stand for the inputs."""
        return tuple(self.body.block.args[: len(self.inputs)])

    @property
    def fed_back(self) -> tuple[BlockArgument, ...]:
        """The body's arguments that stand for the first yielded values, one step earlier (or later)."""
        return tuple(self.body.block.args[len(self.inputs) :])

    @property
    def yielded(self) -> tuple[SSAValue, ...]:
        """The values that the body yields."""
        end = self.body.block.last_op
        assert isinstance(end, FeedbackEnd)
        return tuple(end.values)

    def verify_(self) -> None:
        """Check arguments, fed-back values and results against each other."""
        if not isinstance(self.body.block.last_op, self.END):
            raise VerifyException(f"{self.name}: expected a body that ends with {self.END.name}")
        _expect_types(self, "arguments", self.arguments, self.inputs)
        _expect_types(self, "results", self.outputs, self.yielded)
        if not 0 < len(self.fed_back) <= len(self.yielded):
            raise VerifyException(
                f"{self.name}: expected 1 to {len(self.yielded)} fed-back values, found {len(self.fed_back)}"
            )
        _expect_types(self, "fed-back values", self.fed_back, self.yielded[: len(self.fed_back)])


def settle(
    run: Callable[[Sequence[Array]], Sequence[Array]], first: Sequence[Array], *, reverse: bool
) -> Sequence[Array]:
    """Return what a body yields that reads its own first results one step earlier (``reverse``: later).

    ``run`` maps fed-back values ``[T,...]`` to the results; ``first`` holds fed-back values of zeros. Each round gets
    one more step right, so that nothing changes any more after T rounds at most.
    """
    fed = first
    while True:
        results = run(fed)
        again = [_next_step(result, reverse) for result in results[: len(fed)]]
        if all(old.tobytes() == new.tobytes() for old, new in zip(fed, again, strict=True)):
            return results
        fed = again


def _next_step(values: Array, reverse: bool) -> Array:
    moved = np.zeros_like(values)
    if reverse:
        moved[:-1] = values[1:]
    else:
        moved[1:] = values[:-1]
    return moved


def _expect_types(op: FeedbackOp, what: str, found: Sequence[SSAValue], expected: Sequence[SSAValue]) -> None:
    types = [value.type for value in found], [value.type for value in expected]
    if types[0] != types[1]:
        texts = (", ".join(map(str, one)) for one in types)
        raise VerifyException(f"{op.name}: expected {what} {{1}}, found {{0}}".format(*texts))
