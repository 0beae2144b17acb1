"""Types and attributes of the ``tile`` dialect: plain tuples and frozen dataclasses in ``Data`` attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xdsl.ir import Data, TypeAttribute
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

FORMATS = (
    "bits",
    "u8",
    "i32",
    "f16",
    "f32",
    "slots.f16",
    "slots.f32",
    "inside.f16",
    "inside.f32",
    "lut.f16",
    "lut.f32",
)

Index = tuple[int, tuple[int, ...]]
"""Affine index: a constant and one coefficient per loop counter among the op's ``ivs`` operands."""

Param = int | float | str
Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Placed:
    """What tensor and buffer types have in common: format, shape and channels per gradient slot (0: no slots).

    Written ``f32[4x100]``, ``slots.f32[2x8x8x64 by 32]``. Slots of format ``inside`` hold potentials inside the
    surrogate's window.
    """

    form: str
    shape: tuple[int, ...]
    gblk: int = 0

    def __str__(self) -> str:
        """Return the text that ``parse_placed`` reads."""
        slots = f" by {self.gblk}" if self.gblk else ""
        return f"{self.form}[{'x'.join(map(str, self.shape))}{slots}]"


def parse_placed(parser: AttrParser) -> Placed:
    """Parse a format and shape."""
    form = parser.parse_identifier("a format")
    with parser.in_square_brackets():
        shape = parser.parse_dimension_list()
        gblk = parser.parse_integer() if parser.parse_optional_keyword("by") else 0
    return Placed(form, tuple(shape), gblk)


class PlacedType(Data[Placed], TypeAttribute):
    """A tensor or buffer: logical shape, channels last, stored as ``docs/semantics.md`` lays out its format."""

    @property
    def placed(self) -> Placed:
        """Format, shape and channels per slot."""
        return self.data

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical sizes."""
        return self.data.shape

    def verify(self) -> None:
        """Check format, sizes and slots."""
        if self.data.form not in FORMATS:
            raise VerifyException(f"{self.name} expects a format of {', '.join(FORMATS)}, found {self.data.form!r}")
        if any(size < 1 for size in self.data.shape):
            raise VerifyException(f"{self.name} expects positive sizes, found {self.data.shape}")
        if (self.data.gblk > 0) != self.data.form.startswith(("slots.", "inside.")):
            raise VerifyException(
                f"{self.name} expects channels per slot exactly for slots, found {self.data.gblk} with "
                f"format {self.data.form}"
            )

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> Placed:
        """Parse ``<f32[4x100]>``."""
        with parser.in_angle_brackets():
            return parse_placed(parser)

    def print_parameter(self, printer: Printer) -> None:
        """Print ``<f32[4x100]>``."""
        printer.print_string(f"<{self.data}>")


@irdl_attr_definition
class TensorType(PlacedType):
    """A tensor in DRAM, contiguous in its format."""

    name = "tile.tensor"


@irdl_attr_definition
class BufferType(PlacedType):
    """A buffer in an on-chip memory."""

    name = "tile.buffer"


def tensor_type(form: str, shape: Sequence[int], gblk: int = 0) -> TensorType:
    """Return the type of a DRAM tensor."""
    return TensorType(Placed(form, tuple(shape), gblk))


def buffer_type(form: str, shape: Sequence[int], gblk: int = 0) -> BufferType:
    """Return the type of an on-chip buffer."""
    return BufferType(Placed(form, tuple(shape), gblk))


@irdl_attr_definition
class ShapeAttr(Data[tuple[int, ...]]):
    """A tuple of positive sizes."""

    name = "tile.shape"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> tuple[int, ...]:
        """Parse ``<2x3>``."""
        with parser.in_angle_brackets():
            return tuple(parser.parse_dimension_list())

    def print_parameter(self, printer: Printer) -> None:
        """Print ``<2x3>``."""
        printer.print_string(f"<{'x'.join(map(str, self.data))}>")


@dataclass(frozen=True)
class Layout:
    """How a DRAM tensor lies: in planes of ``plane`` channels, of gradient slots ``pack`` consecutive ones packed.

    ``apart``: the positions of a map one after the other, at each all images, a sample's time steps side by side.
    """

    plane: int
    pack: int = 1
    apart: bool = False


@irdl_attr_definition
class LayoutAttr(Data[Layout]):
    """The layout of a DRAM tensor: ``<planes of 32, units of 8>``, perhaps with ``positions apart`` behind it."""

    name = "tile.layout"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> Layout:
        """Parse what ``print_parameter`` prints."""
        with parser.in_angle_brackets():
            parser.parse_keyword("planes")
            parser.parse_keyword("of")
            plane = parser.parse_integer(allow_boolean=False, allow_negative=False)
            parser.parse_punctuation(",")
            parser.parse_keyword("units")
            parser.parse_keyword("of")
            pack = parser.parse_integer(allow_boolean=False, allow_negative=False)
            apart = parser.parse_optional_punctuation(",") is not None
            if apart:
                parser.parse_keyword("positions")
                parser.parse_keyword("apart")
            return Layout(plane, pack, apart)

    def print_parameter(self, printer: Printer) -> None:
        """Print channels per plane, slots per unit, and whether positions lie apart."""
        apart = ", positions apart" if self.data.apart else ""
        printer.print_string(f"<planes of {self.data.plane}, units of {self.data.pack}{apart}>")


@irdl_attr_definition
class IndicesAttr(Data[tuple[Index, ...]]):
    """Affine indices, each as its constant and its coefficients: ``<[[-1, 4, 0], [0, 0, 16]]>``."""

    name = "tile.indices"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> tuple[Index, ...]:
        """Parse what ``print_parameter`` prints."""
        with parser.in_angle_brackets():
            return tuple(parser.parse_comma_separated_list(parser.Delimiter.SQUARE, lambda: _parse_index(parser)))

    def print_parameter(self, printer: Printer) -> None:
        """Print one list per index."""
        printer.print_string(f"<[{', '.join(_list_text(index) for index in self.data)}]>")


@irdl_attr_definition
class PlacesAttr(Data[tuple[Index | None, ...]]):
    """The leading index of every buffer of a job, ``whole`` where all of it is meant: ``<[whole, [0, 1]]>``."""

    name = "tile.places"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> tuple[Index | None, ...]:
        """Parse what ``print_parameter`` prints."""

        def place() -> Index | None:
            return None if parser.parse_optional_keyword("whole") else _parse_index(parser)

        with parser.in_angle_brackets():
            return tuple(parser.parse_comma_separated_list(parser.Delimiter.SQUARE, place))

    def print_parameter(self, printer: Printer) -> None:
        """Print one list, or ``whole``, per buffer."""
        texts = ("whole" if index is None else _list_text(index) for index in self.data)
        printer.print_string(f"<[{', '.join(texts)}]>")


@irdl_attr_definition
class ParamsAttr(Data[tuple[tuple[str, Param], ...]]):
    """Named integers, finite floats and words, sorted by name: ``<{dtype="f32", imgs=4, width=0.5}>``."""

    name = "tile.params"

    def verify(self) -> None:
        """Check that floats can be written down."""
        for name, value in self.data:
            if isinstance(value, float) and value - value != 0:
                raise VerifyException(f"parameter {name} expects a finite number, found {value}")

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> tuple[tuple[str, Param], ...]:
        """Parse ``<{name=value, ...}>``."""
        with parser.in_angle_brackets():
            return parse_params(parser)

    def print_parameter(self, printer: Printer) -> None:
        """Print ``<{name=value, ...}>``."""
        printer.print_string(f"<{self}>")

    def __str__(self) -> str:
        """Return the text that ``parse_params`` reads."""
        return "{" + ", ".join(f"{name}={_param_text(value)}" for name, value in self.data) + "}"


def parse_params(parser: AttrParser) -> tuple[tuple[str, Param], ...]:
    """Parse named parameters in braces."""

    def pair() -> tuple[str, Param]:
        name = parser.parse_identifier("a parameter name")
        parser.parse_punctuation("=")
        word = parser.parse_optional_str_literal()
        return name, parser.parse_number(allow_boolean=False) if word is None else word

    return tuple(parser.parse_comma_separated_list(parser.Delimiter.BRACES, pair))


@irdl_attr_definition
class RowsAttr(Data[Rows]):
    """Constant rows of a parameter tensor; a row of one value stands for all channels."""

    name = "tile.rows"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> Rows:
        """Parse ``<"0.5; 1.0; 0.0">``."""
        with parser.in_angle_brackets():
            text = parser.parse_str_literal()
        return tuple(tuple(float(v) for v in row.split()) for row in text.split(";"))

    def print_parameter(self, printer: Printer) -> None:
        """Print the rows separated by semicolons."""
        printer.print_string(f'<"{"; ".join(" ".join(map(repr, row)) for row in self.data)}">')


def evaluate(index: Index, counters: Sequence[int]) -> int:
    """Return the value of an affine index for given loop counters."""
    return index[0] + sum(coeff * counter for coeff, counter in zip(index[1], counters, strict=False))


def _list_text(index: Index) -> str:
    return f"[{', '.join(map(str, (index[0], *index[1])))}]"


def _parse_index(parser: AttrParser) -> Index:
    offset, *coeffs = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, parser.parse_integer)
    return offset, tuple(coeffs)


def _param_text(value: Param) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    text = repr(value)
    mantissa, exponent, power = text.partition("e")
    return f"{mantissa}.0{exponent}{power}" if exponent and "." not in mantissa else text
