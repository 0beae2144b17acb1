"""Time outside the layers: ``lut.scan``, and values at other time steps."""

from __future__ import annotations

from typing import ClassVar

from xdsl.dialects.builtin import IntegerAttr, IntegerType, LocationAttr, i64
from xdsl.ir import SSAValue
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def
from xdsl.utils.exceptions import VerifyException

from ..feedback import FeedbackEnd, FeedbackOp
from .attributes import shape_of
from .base import LutOp


@irdl_op_definition
class YieldOp(FeedbackEnd):
    """The results of a scan's body."""

    name = "lut.yield"


@irdl_op_definition
class ScanOp(FeedbackOp):
    """Layers with feedback: the loop over time steps is outside of all of them. See :class:`FeedbackOp`."""

    name = "lut.scan"
    END: ClassVar[type[FeedbackEnd]] = YieldOp


@irdl_op_definition
class DelayOp(LutOp):
    """``result[t] = x[t - steps]`` in any format, zeros before the first step (``steps`` < 0: behind the last)."""

    name = "lut.delay"
    ENGINE: ClassVar[str] = "DMA"
    x = operand_def()
    result = result_def()
    steps_attr = prop_def(IntegerAttr[IntegerType], prop_name="steps")
    assembly_format = "operands attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: SSAValue, steps: int, location: LocationAttr | None = None) -> None:
        self.construct([x], [x.type], {"steps": IntegerAttr(steps, i64)}, location)

    @property
    def steps(self) -> int:
        """Time steps from ``x`` to the result."""
        return self.steps_attr.value.data

    def verify_(self) -> None:
        """Check that there is time and that the type stays."""
        if self.x.type != self.result.type or len(shape_of(self.x.type)) != 5:
            raise VerifyException(f"expected [T,N,H,W,C] of one type, found {self.x.type} and {self.result.type}")
