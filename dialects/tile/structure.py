"""Where work stands: streams, stages, loops and fences, and the tokens that order them."""

from __future__ import annotations

from typing import Self

from xdsl.dialects.builtin import IndexType, IntAttr, StringAttr
from xdsl.ir import Block, Region, SSAValue
from xdsl.irdl import IRDLOperation, irdl_op_definition, opt_prop_def, prop_def, region_def, traits_def
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import NoTerminator
from xdsl.utils.exceptions import VerifyException

from h2learn.backends.h2learn import isa

from .syntax import in_scope, name_hint, print_body, with_attributes, with_block


@irdl_op_definition
class StreamOp(IRDLOperation):
    """Stages with an instruction stream of their own: it runs beside other streams as far as tokens allow.

    The meaning is that of one stream after the other. Text: ``tile.stream "backward" {...}``.
    """

    name = "tile.stream"
    label = prop_def(StringAttr)
    body = region_def("single_block")
    traits = traits_def(NoTerminator())

    def __init__(self, label: str, body: Region) -> None:
        super().__init__(regions=[body], properties={"label": StringAttr(label)})

    def print(self, printer: Printer) -> None:
        """Print label and body."""
        printer.print_string(" ")
        printer.print_string_literal(self.label.data)
        in_scope(printer, lambda: print_body(printer, self.body))
        printer.print_op_attributes(self.attributes, print_keyword=True)

    @classmethod
    def parse(cls, parser: Parser) -> StreamOp:
        """Parse label and body."""
        return with_attributes(cls(parser.parse_str_literal(), with_block(parser.parse_region())), parser)


@irdl_op_definition
class FenceOp(IRDLOperation):
    """The stream goes on when all of its engines have finished. Stages in a loop end with one. Text: ``tile.fence``."""

    name = "tile.fence"
    assembly_format = "attr-dict"

    def __init__(self) -> None:
        super().__init__()


@irdl_op_definition
class StageOp(IRDLOperation):
    """One loop nest with buffers of its own; the stages of a stream run one after another.

    ``part`` is the part of a training step whose share of the on-chip memories the stage has (none: all of them).
    Text: ``tile.stage "forward c1" in forward {...}``.
    """

    name = "tile.stage"
    label = prop_def(StringAttr)
    part = opt_prop_def(StringAttr)
    body = region_def("single_block")
    traits = traits_def(NoTerminator())

    def __init__(self, label: str, body: Region, part: str | None = None) -> None:
        properties = {"label": StringAttr(label), "part": None if part is None else StringAttr(part)}
        super().__init__(regions=[body], properties=properties)

    def print(self, printer: Printer) -> None:
        """Print label, part and body."""
        printer.print_string(" ")
        printer.print_string_literal(self.label.data)
        if self.part is not None:
            printer.print_string(f" in {self.part.data}")
        in_scope(printer, lambda: print_body(printer, self.body))
        printer.print_op_attributes(self.attributes, print_keyword=True)

    @classmethod
    def parse(cls, parser: Parser) -> StageOp:
        """Parse label, part and body."""
        label = parser.parse_str_literal()
        part = parser.parse_identifier() if parser.parse_optional_keyword("in") is not None else None
        return with_attributes(cls(label, with_block(parser.parse_region()), part), parser)


@irdl_op_definition
class ForOp(IRDLOperation):
    """Run the body ``trips`` times; the counter counts from 0. Text: ``tile.for "t" %t to 8 { ... }``."""

    name = "tile.for"
    label = prop_def(StringAttr)
    trips = prop_def(IntAttr)
    body = region_def("single_block")
    traits = traits_def(NoTerminator())

    def __init__(self, label: str, trips: int, body: Region | None = None) -> None:
        if body is None:
            body = Region(Block(arg_types=[IndexType()]))
            body.block.args[0].name_hint = name_hint(label)
        super().__init__(regions=[body], properties={"label": StringAttr(label), "trips": IntAttr(trips)})

    @property
    def counter(self) -> SSAValue:
        """The loop counter."""
        return self.body.block.args[0]

    def verify_(self) -> None:
        """Check the counter and the trip count."""
        if len(self.body.block.args) != 1 or self.body.block.args[0].type != IndexType():
            raise VerifyException("tile.for expects one index argument, its counter")
        if self.trips.data < 1:
            raise VerifyException(f"tile.for expects at least one trip, found {self.trips.data}")

    def print(self, printer: Printer) -> None:
        """Print label, counter, trips and body."""
        printer.print_string(" ")
        printer.print_string_literal(self.label.data)

        def scoped() -> None:
            printer.print_string(" ")
            printer.print_ssa_value(self.counter)
            printer.print_string(f" to {self.trips.data}")
            print_body(printer, self.body)

        in_scope(printer, scoped)
        printer.print_op_attributes(self.attributes, print_keyword=True)

    @classmethod
    def parse(cls, parser: Parser) -> ForOp:
        """Parse label, counter, trips and body."""
        label = parser.parse_str_literal()
        counter = parser.parse_argument(expect_type=False).resolve(IndexType())
        parser.parse_keyword("to")
        trips = parser.parse_integer(allow_boolean=False)
        return with_attributes(cls(label, trips, parser.parse_region([counter])), parser)


class TokenOp(IRDLOperation):
    """What an engine does with the tokens of one dependence. Text: ``tile.wait VEC, 3`` (``count 2`` when not one)."""

    engine = prop_def(StringAttr)
    token = prop_def(IntAttr)
    count = prop_def(IntAttr)

    def __init__(self, engine: str, token: int, count: int = 1) -> None:
        super().__init__(properties={"engine": StringAttr(engine), "token": IntAttr(token), "count": IntAttr(count)})

    def verify_(self) -> None:
        """Check engine, token and count."""
        if self.engine.data not in isa.ENGINES:
            raise VerifyException(
                f"{self.name} expects an engine of {', '.join(isa.ENGINES)}, found {self.engine.data!r}"
            )
        if self.token.data < 0 or self.count.data < 1:
            raise VerifyException(f"{self.name} expects a token from 0 and a count from 1")

    def print(self, printer: Printer) -> None:
        """Print engine, token and count."""
        count = f" count {self.count.data}" if self.count.data != 1 else ""
        printer.print_string(f" {self.engine.data}, {self.token.data}{count}")
        printer.print_op_attributes(self.attributes, print_keyword=True)

    @classmethod
    def parse(cls, parser: Parser) -> Self:
        """Parse engine, token and count."""
        engine = parser.parse_identifier()
        parser.parse_punctuation(",")
        token = parser.parse_integer(allow_boolean=False)
        count = parser.parse_integer(allow_boolean=False) if parser.parse_optional_keyword("count") else 1
        return with_attributes(cls(engine, token, count), parser)


@irdl_op_definition
class SignalOp(TokenOp):
    """Post ``count`` tokens of ``token`` when all earlier work of ``engine`` is done."""

    name = "tile.signal"


@irdl_op_definition
class WaitOp(TokenOp):
    """Hold ``engine`` until ``count`` tokens of ``token`` are there, and take them."""

    name = "tile.wait"
