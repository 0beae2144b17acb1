"""Values that spikes let through or hold back."""

from __future__ import annotations

from typing import ClassVar

from xdsl.dialects.builtin import LocationAttr, StringAttr
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def
from xdsl.utils.exceptions import VerifyException

from h2learn.backends.reference.gate import GATES

from .attributes import SpikesType, shape_of
from .base import LutOp


@irdl_op_definition
class GateOp(LutOp):
    """Values in any format and 0, as spikes ``s`` ``[T,N,H,W,C]`` say: ``keep``, ``drop`` or ``negate`` (-x or 0).

    ``x`` may be the same at every step (without T). Spikes stay spikes, gradients become live where they are not 0.
    """

    name = "lut.gate"
    ENGINE: ClassVar[str] = "VEC"
    x = operand_def()
    s = operand_def(SpikesType)
    result = result_def()
    kind_attr = prop_def(StringAttr, prop_name="kind")
    assembly_format = "operands attr-dict `:` functional-type(operands, results)"

    def __init__(
        self, x: SSAValue, s: SSAValue, kind: str, result: Attribute, location: LocationAttr | None = None
    ) -> None:
        self.construct([x, s], [result], {"kind": StringAttr(kind)}, location)

    @property
    def kind(self) -> str:
        """One of ``GATES``."""
        return self.kind_attr.data

    def verify_(self) -> None:
        """Check kind, formats and shapes."""
        shape, found, result = (shape_of(value.type) for value in (self.s, self.x, self.result))
        if self.kind not in GATES:
            raise VerifyException(f"expected kind {', '.join(GATES)}, found {self.kind}")
        if type(self.x.type) is not type(self.result.type):
            raise VerifyException(f"expected values that keep their format, found {self.x.type} and {self.result.type}")
        if self.kind == "negate" and isinstance(self.x.type, SpikesType):
            raise VerifyException(f"expected reals to negate, found {self.x.type}")
        if found not in (shape, shape[1:]) or result != shape or len(shape) not in (4, 5):
            raise VerifyException(
                f"expected values and a result of the shape {list(shape)}, found {list(found)} and {list(result)}"
            )
