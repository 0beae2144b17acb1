"""Types (packed formats) and attributes (geometry, neuron constants) of the ``lut`` dialect.

All are ``Data`` attributes around plain tuples and frozen dataclasses: cheap to build, and what an op hands to the
mapper is plain Python.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from itertools import chain
from typing import Generic, Literal, TypeVar

from xdsl.dialects.builtin import TensorType
from xdsl.ir import Attribute, Data, TypeAttribute
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

Shape = tuple[int, ...]

STORAGE_TYPES = ("f32", "f16")
RESETS = ("hard", "soft", "none", "soft_delayed", "hard_delayed")
COMPARISONS = ("gt", "ge", "never")
SURROGATES = ("rectangular", "triangular", "atan", "sigmoid", "fast_sigmoid", "exponential", "gaussian")
WINDOWS = ("rectangular", "triangular")
"""Surrogates that are 0 from ``width`` on."""
DRIVES = ("plain", "scaled", "synapse", "delayed")
ADAM_KINDS = ("adam", "adamw")
MOST_PLANES = 24
UPDATE_KINDS = ("sgd", "nesterov", *ADAM_KINDS)

_DRIVE_ROWS = ("gain", "offset", "initial", "beta")

Item = TypeVar("Item")

_UPDATE_NUMBERS = ("grad_scale", "weight_decay", "momentum", "beta1", "beta2", "eps")


@dataclass(frozen=True)
class ConvGeometry:
    """A convolution window; a linear layer has kernel 1x1, a linear layer after flatten the whole map as kernel."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    @property
    def taps(self) -> int:
        """Kernel positions."""
        return self.kernel[0] * self.kernel[1]

    def extent(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the output for an input of ``height`` x ``width`` (0 or less: does not fit)."""
        (kh, kw), (sh, sw), (ph, pw) = self.kernel, self.stride, self.padding
        return (height + 2 * ph - kh) // sh + 1, (width + 2 * pw - kw) // sw + 1


@dataclass(frozen=True)
class Planes:
    """Numbers as ``count`` bit-planes: plane p counts 2^(p - frac), the last one of ``signed`` numbers negative."""

    count: int
    frac: int = 0
    signed: bool = False


@dataclass(frozen=True)
class Neuron:
    """Constants of a (leaky) integrate-and-fire neuron; one value or one per channel where there is a tuple.

    ``r = reset(u[t-1], s[t-1])``, ``u[t] = alpha * r + x[t]``, ``s[t] = u[t] > theta`` (``gt``), ``>=`` (``ge``) or 0
    (``never``, the leaky integrator). The current c[t] arrives as ``x = c`` (drive ``plain``), ``x = gain * c +
    offset`` (``scaled``), or through ``i[t] = beta * i[t-1] + c[t]`` as ``x = gain * i[t] + offset`` (``synapse``) or
    ``x = gain * i[t-1] + offset`` (``delayed``); but for ``plain`` the potential starts at ``initial``, else at 0. With
    ``most`` a step has ``floor(u[t] / theta)`` spikes, at most that many (0: any number); r is not below ``lowest``.
    ``periodic``: the surrogate repeats at every multiple of theta.
    """

    alpha: tuple[float, ...]
    theta: tuple[float, ...] = (0.0,)
    v_reset: tuple[float, ...] = (0.0,)
    reset: str = "none"
    compare: str = "never"
    surrogate: str = "rectangular"
    width: float = 0.5
    height: float = 1.0
    detach_reset: bool = True
    drive: str = "plain"
    gain: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    initial: tuple[float, ...] = (0.0,)
    beta: tuple[float, ...] = (0.0,)
    most: int | None = None
    lowest: float | None = None
    periodic: bool = False

    @property
    def counts(self) -> bool:
        """Whether spikes are numbers in storage type."""
        return self.most is not None

    @property
    def fires(self) -> bool:
        """False for a leaky integrator."""
        return self.compare != "never"

    @property
    def needs_inside_only(self) -> bool:
        """Whether the gradient needs no potential outside the surrogate's window."""
        rests = self.lowest is not None or (self.counts and self.reset == "hard")
        return self.surrogate in ("rectangular", "triangular") and not rests

    @property
    def needs_window_only(self) -> bool:
        """Whether the gradient needs of a potential only whether it lies in the surrogate's window."""
        through_reset = self.reset == "hard" and not self.detach_reset
        return self.needs_inside_only and self.surrogate == "rectangular" and not through_reset

    @property
    def has_synapse(self) -> bool:
        """Whether there is a second state, the synaptic current."""
        return self.drive in ("synapse", "delayed")

    @property
    def rows(self) -> tuple[tuple[float, ...], ...]:
        """Constants in the order of the machine's parameter rows behind the bias."""
        plain = (self.alpha, self.theta, self.v_reset)
        return plain if self.drive == "plain" else (*plain, self.gain, self.offset, self.initial, self.beta)


@dataclass(frozen=True)
class Update:
    """An optimizer's step; see ``v.opt`` in ``docs/semantics.md``.

    ``kind``: ``sgd`` and ``nesterov`` (with ``momentum``), ``adam`` and ``adamw`` (with the betas and ``eps``).
    ``grad_scale`` is the factor of the gradient read: the inverse of the loss scale.
    """

    kind: str = "sgd"
    grad_scale: float = 1.0
    weight_decay: float = 0.0
    momentum: float = 0.0
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0

    @property
    def states(self) -> int:
        """How many buffers the parameter has."""
        return 2 if self.kind in ADAM_KINDS else int(self.momentum != 0)


class ShapedType(Data[Item], TypeAttribute, ABC, Generic[Item]):
    """A tensor in one of the formats of the machine."""

    @property
    def shape(self) -> Shape:
        """Logical shape, channels last."""
        raise NotImplementedError

    @property
    def dtype(self) -> str:
        """Storage type of the values, ``"f32"`` or ``"f16"``; ``"bits"`` or ``"u8"`` where there are none."""
        raise NotImplementedError


class BitsType(ShapedType[Shape], ABC):
    """A format without reals: its only parameter is the shape."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(tuple(shape))

    @property
    def shape(self) -> Shape:
        """Logical shape, channels last."""
        return self.data

    @property
    def dtype(self) -> str:
        """``"bits"``: one bit per element, packed along the channels."""
        return "bits"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> Shape:
        """Parse ``<4x2x1x1x8>``."""
        parser.parse_punctuation("<")
        return _parse_shape(parser, ">")

    def print_parameter(self, printer: Printer) -> None:
        """Print ``<4x2x1x1x8>``."""
        printer.print_string(f"<{_shape_text(self.data)}>")

    def verify(self) -> None:
        """Refuse empty shapes."""
        _verify_shape(self.data)


class RealsType(ShapedType[tuple[Shape, str]], ABC):
    """A format that holds reals in a storage type."""

    @property
    def shape(self) -> Shape:
        """Logical shape, channels last."""
        return self.data[0]

    @property
    def dtype(self) -> str:
        """Storage type, ``"f32"`` or ``"f16"``."""
        return self.data[1]

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> tuple[Shape, str]:
        """Parse ``<4x2x1x1x8, f16>``."""
        with parser.in_angle_brackets():
            return _parse_shape(parser, ","), parser.parse_identifier()

    def print_parameter(self, printer: Printer) -> None:
        """Print ``<4x2x1x1x8, f16>``."""
        printer.print_string(f"<{_shape_text(self.shape)}, {self.dtype}>")

    def verify(self) -> None:
        """Refuse empty shapes and unknown storage types."""
        _verify_shape(self.shape)
        _verify_one_of("storage type", self.dtype, STORAGE_TYPES)


@irdl_attr_definition
class SpikesType(BitsType):
    """Spikes, one bit each, packed along the channels."""

    name = "lut.spikes"


@irdl_attr_definition
class MaskType(BitsType):
    """Where the membrane potential lies in the surrogate window, one bit each."""

    name = "lut.mask"


@irdl_attr_definition
class WinnersType(BitsType):
    """Which element of its window a maximum came from: ``ky * kw + kx``, one byte each."""

    name = "lut.winners"

    @property
    def dtype(self) -> str:
        """``"u8"``."""
        return "u8"


@irdl_attr_definition
class StoreType(RealsType):
    """Reals rounded to the storage type."""

    name = "lut.store"

    def __init__(self, shape: Sequence[int] | tuple[Shape, str], dtype: str | None = None) -> None:
        """Take shape and storage type, or (what the parser does) both as one pair."""
        super().__init__(_shape_and_dtype(shape, dtype))


@irdl_attr_definition
class InsideType(RealsType):
    """Membrane potentials inside the surrogate's window: a bitmap of where it is open and the values there."""

    name = "lut.inside"

    def __init__(self, shape: Sequence[int] | tuple[Shape, str], dtype: str | None = None) -> None:
        """Take shape and storage type, or (what the parser does) both as one pair."""
        super().__init__(_shape_and_dtype(shape, dtype))


@irdl_attr_definition
class GradsType(RealsType):
    """Gradients of membrane potentials: a bitmap of live channels and the live values, in storage type."""

    name = "lut.grads"

    def __init__(self, shape: Sequence[int] | tuple[Shape, str], dtype: str | None = None) -> None:
        """Take shape and storage type, or (what the parser does) both as one pair."""
        super().__init__(_shape_and_dtype(shape, dtype))


@irdl_attr_definition
class GeometryAttr(Data[ConvGeometry]):
    """``#lut.geometry<kernel 3x3 stride 1x1 padding 1x1>``."""

    name = "lut.geometry"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> ConvGeometry:
        """Parse the three pairs."""
        with parser.in_angle_brackets():
            return ConvGeometry(*(_parse_pair(parser, word) for word in ("kernel", "stride", "padding")))

    def print_parameter(self, printer: Printer) -> None:
        """Print the three pairs."""
        words = zip(("kernel", "stride", "padding"), astuple(self.data), strict=True)
        printer.print_string("<" + " ".join(f"{word} {_shape_text(pair)}" for word, pair in words) + ">")

    def verify(self) -> None:
        """Refuse empty windows, zero strides and negative padding."""
        if min(*self.data.kernel, *self.data.stride) < 1 or min(self.data.padding) < 0:
            raise VerifyException(f"expected a positive kernel and stride and no negative padding, found {self.data}")


@irdl_attr_definition
class PlanesAttr(Data[Planes]):
    """``#lut.planes<4 frac 2>`` or ``#lut.planes<4 frac 2 signed>``."""

    name = "lut.planes"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> Planes:
        """Parse both numbers and the word."""
        with parser.in_angle_brackets():
            count = parser.parse_integer(allow_boolean=False)
            parser.parse_keyword("frac")
            frac = parser.parse_integer(allow_boolean=False)
            return Planes(count, frac, parser.parse_optional_keyword("signed") is not None)

    def print_parameter(self, printer: Printer) -> None:
        """Print both numbers and the word."""
        printer.print_string(f"<{self.data.count} frac {self.data.frac}{' signed' * self.data.signed}>")

    def verify(self) -> None:
        """Refuse numbers that the instructions have no fields for."""
        if not 1 <= self.data.count <= MOST_PLANES or not -32 <= self.data.frac < 32:
            raise VerifyException(
                f"expected 1 to {MOST_PLANES} planes and frac from -32 to 31, found {self.data.count} and"
                f" {self.data.frac}"
            )


@irdl_attr_definition
class NeuronAttr(Data[Neuron]):
    """``#lut.neuron<alpha [0.5] theta [1.0] v_reset [0.0] reset hard ...>``, the fields of :class:`Neuron` in order.

    Of what follows ``detach_reset``, the drive is left out when it is ``plain``, and words that say nothing.
    """

    name = "lut.neuron"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> Neuron:
        """Parse all fields in order."""

        def after(word: str) -> None:
            parser.parse_keyword(word)

        def rows(word: str) -> tuple[float, ...]:
            after(word)
            return tuple(parser.parse_comma_separated_list(parser.Delimiter.SQUARE, lambda: _parse_real(parser)))

        def identifier(word: str) -> str:
            after(word)
            return parser.parse_identifier()

        def real(word: str) -> float:
            after(word)
            return _parse_real(parser)

        with parser.in_angle_brackets():
            plain = Neuron(
                rows("alpha"),
                rows("theta"),
                rows("v_reset"),
                identifier("reset"),
                identifier("compare"),
                identifier("surrogate"),
                real("width"),
                real("height"),
                identifier("detach_reset") == "true",
            )
            if parser.parse_optional_keyword("drive") is not None:
                drive = parser.parse_identifier()
                gain, offset, initial, beta = (rows(word) for word in _DRIVE_ROWS)
                plain = replace(plain, drive=drive, gain=gain, offset=offset, initial=initial, beta=beta)
            if parser.parse_optional_keyword("most") is not None:
                plain = replace(plain, most=parser.parse_integer(allow_boolean=False, allow_negative=False))
            if parser.parse_optional_keyword("lowest") is not None:
                plain = replace(plain, lowest=_parse_real(parser))
            return replace(plain, periodic=parser.parse_optional_keyword("periodic") is not None)

    def print_parameter(self, printer: Printer) -> None:
        """Print all fields in order."""
        n = self.data

        def rows(*words: str) -> str:
            lists = ((word, getattr(n, word)) for word in words)
            return " ".join(f"{word} [{', '.join(map(_real_text, values))}]" for word, values in lists)

        more = "" if n.drive == "plain" else f" drive {n.drive} {rows(*_DRIVE_ROWS)}"
        more += "" if n.most is None else f" most {n.most}"
        more += "" if n.lowest is None else f" lowest {_real_text(n.lowest)}"
        more += " periodic" if n.periodic else ""
        printer.print_string(
            f"<{rows('alpha', 'theta', 'v_reset')} reset {n.reset} compare {n.compare} surrogate {n.surrogate} "
            f"width {_real_text(n.width)} height {_real_text(n.height)} "
            f"detach_reset {str(n.detach_reset).lower()}{more}>"
        )

    def verify(self) -> None:
        """Refuse unknown words, empty rows, numbers that are not finite, and a leaky integrator with a reset."""
        n = self.data
        _verify_one_of("reset", n.reset, RESETS)
        _verify_one_of("comparison", n.compare, COMPARISONS)
        _verify_one_of("surrogate", n.surrogate, SURROGATES)
        _verify_one_of("drive", n.drive, DRIVES)
        rows = replace(n, drive="scaled").rows
        if not all(rows):
            raise VerifyException("expected at least one value of every neuron constant")
        if not all(math.isfinite(v) for v in (*chain.from_iterable(rows), n.width, n.height, n.lowest or 0.0)):
            raise VerifyException("expected finite neuron constants")
        if not n.fires and n.reset != "none":
            raise VerifyException(f"a neuron that never fires cannot have the reset {n.reset!r}")
        if n.counts and (n.compare != "ge" or (n.reset == "hard" and not n.detach_reset)):
            raise VerifyException("counted spikes need the comparison ge, and a hard reset that is detached")
        if n.periodic and not n.counts:
            raise VerifyException("a surrogate repeats only where spikes are counted")
        if not n.fires and n.lowest is not None:
            raise VerifyException("a neuron that never fires cannot have a lowest potential")


@irdl_attr_definition
class UpdateAttr(Data[Update]):
    """``#lut.update<sgd grad_scale 1.0 weight_decay 0.0 momentum 0.9 ...>``, the fields of :class:`Update` in order."""

    name = "lut.update"

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> Update:
        """Parse all fields in order."""
        with parser.in_angle_brackets():
            kind = parser.parse_identifier()
            numbers: dict[str, float] = {}
            for name in _UPDATE_NUMBERS:
                parser.parse_keyword(name)
                numbers[name] = _parse_real(parser)
            return Update(kind, **numbers)

    def print_parameter(self, printer: Printer) -> None:
        """Print all fields in order."""
        numbers = " ".join(f"{name} {_real_text(getattr(self.data, name))}" for name in _UPDATE_NUMBERS)
        printer.print_string(f"<{self.data.kind} {numbers}>")

    def verify(self) -> None:
        """Refuse unknown kinds and numbers that are not finite."""
        _verify_one_of("optimizer", self.data.kind, UPDATE_KINDS)
        if not all(math.isfinite(getattr(self.data, name)) for name in _UPDATE_NUMBERS):
            raise VerifyException("expected finite numbers of an optimizer")


def shape_of(type_: Attribute) -> Shape:
    """Return the shape of a ``lut`` type or a builtin tensor; raises VerifyException for other types."""
    if isinstance(type_, ShapedType):
        return type_.shape
    if isinstance(type_, TensorType):
        return tuple(type_.get_shape())
    raise VerifyException(f"expected a type with a shape, found {type_}")


def _shape_and_dtype(shape: Sequence[int] | tuple[Shape, str], dtype: str | None) -> tuple[Shape, str]:
    match shape:
        case (tuple() as sizes, str() as name) if dtype is None:
            return sizes, name
    assert dtype is not None
    return tuple(size for size in shape if isinstance(size, int)), dtype


def _parse_shape(parser: AttrParser, end: Literal[">", ","]) -> Shape:
    """Parse ``4x2x8`` and the punctuation behind it."""
    dimensions = [parser.parse_shape_dimension(allow_dynamic=False)]
    while parser.parse_optional_punctuation(end) is None:
        parser.parse_shape_delimiter()
        dimensions.append(parser.parse_shape_dimension(allow_dynamic=False))
    return tuple(dimensions)


def _parse_pair(parser: AttrParser, word: str) -> tuple[int, int]:
    parser.parse_keyword(word)
    first = parser.parse_shape_dimension(allow_dynamic=False)
    parser.parse_shape_delimiter()
    return first, parser.parse_shape_dimension(allow_dynamic=False)


def _parse_real(parser: AttrParser) -> float:
    return float(parser.parse_number())


def _real_text(value: float) -> str:
    mantissa, exponent, power = repr(float(value)).partition("e")
    return (mantissa if "." in mantissa else f"{mantissa}.0") + exponent + power


def _shape_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _verify_shape(shape: Shape) -> None:
    if not shape or min(shape) < 1:
        raise VerifyException(f"expected positive dimensions, found {_shape_text(shape) or 'none'}")


def _verify_one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise VerifyException(f"expected a {what} of {', '.join(known)}, found {value!r}")
