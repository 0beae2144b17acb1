"""What the ops of ``lut`` share: the engine of an op, checks of shapes and sizes, attributes as plain values."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeAlias

from xdsl.dialects.builtin import DenseArrayBase, IntegerAttr, IntegerType, LocationAttr, TensorType, f32, i32, i64
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import IRDLOperation, IRDLOption, ParsePropInAttrDict, traits_def
from xdsl.traits import Pure
from xdsl.utils.exceptions import VerifyException

from .attributes import Shape, shape_of

Tensor: TypeAlias = TensorType[Attribute]
Block: TypeAlias = tuple[int, int, int, int]
ENGINES = ("FE", "BE", "WUE", "VEC", "DMA")
RUN_SCALARS = TensorType(i32, [8])
PLAIN_SYNTAX = "operands attr-dict `:` functional-type(operands, results)"


def tensor(shape: Sequence[int]) -> Tensor:
    """Return the fp32 tensor type of ``shape``."""
    return TensorType(f32, shape)


class LutOp(IRDLOperation, ABC):
    """An operation of one engine; it has no side effects."""

    ENGINE: ClassVar[str]
    irdl_options: tuple[IRDLOption, ...] = (ParsePropInAttrDict(),)
    traits = traits_def(Pure())

    @property
    def engine(self) -> str:
        """The engine that executes the operation, one of :data:`ENGINES`."""
        return self.ENGINE

    def construct(
        self,
        operands: Sequence[SSAValue | Sequence[SSAValue]],
        result_types: Sequence[Attribute | Sequence[Attribute]],
        properties: Mapping[str, Attribute | None],
        location: LocationAttr | None,
    ) -> None:
        """Initialise the operation with its operands, result types, properties and place in the source."""
        super().__init__(operands=operands, result_types=result_types, properties=properties)
        if location is not None:
            self.location = location


def pair(attribute: DenseArrayBase[IntegerType]) -> tuple[int, int]:
    """Return the two numbers of an attribute, as rows and columns."""
    first, second = attribute.get_values()
    return first, second


def integer(value: int) -> IntegerAttr[IntegerType]:
    """Return an integer attribute of 64 bits."""
    return IntegerAttr(value, i64)


def integers(values: Sequence[int]) -> DenseArrayBase[IntegerType]:
    """Return integers as an attribute."""
    return DenseArrayBase.from_list(i64, list(values))


def optional(value: SSAValue | None) -> list[SSAValue]:
    """Return an operand that may be missing as a list of none or one."""
    return [] if value is None else [value]


def block_of(attribute: DenseArrayBase[IntegerType]) -> Block:
    """Return the (steps, samples, rows, columns) that an attribute holds."""
    steps, samples, rows, columns = attribute.get_values()
    return steps, samples, rows, columns


def expect(what: str, found: object, expected: object) -> None:
    """Raise VerifyException unless ``found`` is what is ``expected``."""
    if found != expected:
        raise VerifyException(f"expected {what} to be {expected}, found {found}")


def expect_shape(what: str, type_: Attribute, expected: Shape) -> None:
    """Raise VerifyException unless a type has the shape ``expected``, which is empty where a window does not fit."""
    if min(expected, default=1) < 1:
        raise VerifyException(f"the window does not fit its input: {what} would have the shape {list(expected)}")
    expect(f"the shape of the {what}", list(shape_of(type_)), list(expected))


def activation_shape(what: str, type_: Attribute) -> Shape:
    """Return the shape of an activation; raises VerifyException unless it is [T,N,H,W,C] or [N,H,W,C]."""
    shape = shape_of(type_)
    if len(shape) not in (4, 5):
        raise VerifyException(f"expected {what} as [T,N,H,W,C] or [N,H,W,C], found {type_}")
    return shape


def verify_word(what: str, word: str, known: tuple[str, ...]) -> None:
    """Raise VerifyException unless ``word`` is ``known``."""
    if word not in known:
        raise VerifyException(f"expected a {what} of {', '.join(known)}, found {word!r}")


def verify_block(what: str, *sizes: int) -> None:
    """Raise VerifyException unless all sizes are positive."""
    if min(sizes) < 1:
        raise VerifyException(f"expected {what} to be positive, found {', '.join(map(str, sizes))}")
