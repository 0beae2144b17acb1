"""Values that spikes let through or hold back: products of spikes, such as SEW's AND and IAND."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import LocationAttr, StringAttr, TensorType, f32, i1
from xdsl.ir import SSAValue
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def
from xdsl.utils.exceptions import VerifyException

from h2learn.backends.reference.gate import GATES

from .base import InferredOp, Properties, Tensor, choice, expect_element, expect_rank


@irdl_op_definition
class GateOp(InferredOp):
    """Values ``x`` ``[(T,)N,...]`` and 0: see :func:`h2learn.backends.reference.gate.gate`.

    Of spikes the result is spikes, and both operands have a gradient. Of reals (gradients among them) only ``x`` has.
    """

    name = "spike.gate"

    x = operand_def(TensorType)
    s = operand_def(TensorType)
    result = result_def(TensorType)
    kind = prop_def(StringAttr)

    assembly_format = "$x `,` $s attr-dict `:` functional-type(operands, results)"

    def __init__(self, x: SSAValue, s: SSAValue, kind: str, *, location: LocationAttr) -> None:
        super().__init__([x, s], {"kind": StringAttr(kind)}, location)

    @classmethod
    def infer(cls, operands: Sequence[Tensor], properties: Properties) -> list[Tensor]:
        """Give the type of ``x``."""
        x, s = operands
        expect_element("x", x, f32, i1)
        expect_element("s", s, i1)
        expect_rank("x", x, 2, 3, 4, 5)
        if x.get_shape() != s.get_shape():
            raise VerifyException(f"expected spikes of the shape of {x}, found {s}")
        if choice(properties, "kind", GATES) == "negate" and x.element_type == i1:
            raise VerifyException(f"expected reals to negate, found {x}")
        return [x]
