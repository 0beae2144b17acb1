"""Affine indices over named loop counters: their text, which declarative formats cannot say, and their check."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from xdsl.dialects.builtin import IndexType
from xdsl.ir import Attribute, Block, Operation, Region, SSAValue
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from .attributes import Index

Terms = tuple[int, dict[SSAValue, int]]
"""A parsed affine expression: its constant, and the coefficient of every counter in order of appearance."""

Op = TypeVar("Op", bound=Operation)


def name_hint(label: str) -> str | None:
    """Return the name under which a labelled value is printed, None when the label cannot be made one."""
    hint = re.sub(r"[^A-Za-z0-9_$.-]", ".", label)
    return hint if SSAValue.is_valid_name(hint) else None


def parse_value(parser: Parser, kind: type[Attribute]) -> SSAValue:
    """Parse the name of a value that was defined before and has a type of ``kind``."""
    operand = parser.parse_unresolved_operand()
    known = parser.ssa_values.get(operand.operand_name, ())
    if operand.index >= len(known):
        parser.raise_error("the value is used before it is defined", operand.span)
    value = known[operand.index]
    if not isinstance(value.type, kind):
        parser.raise_error(f"expected a value of type {kind.name}, found {value.type}", operand.span)
    return value


def parse_optional_values(parser: Parser, keyword: str, kind: type[Attribute]) -> list[SSAValue]:
    """Parse ``keyword(%a, %b)``, or nothing."""
    if parser.parse_optional_keyword(keyword) is None:
        return []
    return parser.parse_comma_separated_list(parser.Delimiter.PAREN, lambda: parse_value(parser, kind))


def print_index(printer: Printer, index: Index, counters: Sequence[SSAValue]) -> None:
    """Print ``4*%n + %y - 1``."""
    offset, coeffs = index
    empty = True
    for coeff, counter in zip(coeffs, counters, strict=True):
        if coeff:
            printer.print_string(("" if empty else " + ") + ("" if coeff == 1 else f"{coeff}*"))
            printer.print_ssa_value(counter)
            empty = False
    if empty:
        printer.print_string(str(offset))
    elif offset:
        printer.print_string(f" {'-' if offset < 0 else '+'} {abs(offset)}")


def print_indices(printer: Printer, indices: Sequence[Index], counters: Sequence[SSAValue]) -> None:
    """Print ``[4*%n, 0]``."""
    with printer.in_square_brackets():
        printer.print_list(indices, lambda index: print_index(printer, index, counters))


def parse_expression(parser: Parser) -> Terms:
    """Parse what ``print_index`` prints."""
    offset, coeffs = 0, dict[SSAValue, int]()
    sign = 1
    while True:
        number = parser.parse_optional_integer(allow_boolean=False)
        if number is None or parser.parse_optional_punctuation("*") is not None:
            counter = parse_value(parser, IndexType)
            coeffs[counter] = coeffs.get(counter, 0) + sign * (1 if number is None else number)
        else:
            offset += sign * number
        if parser.parse_optional_punctuation("+") is not None:
            sign = 1
        elif parser.parse_optional_punctuation("-") is not None:
            sign = -1
        else:
            return offset, coeffs


def parse_expressions(parser: Parser) -> list[Terms]:
    """Parse what ``print_indices`` prints."""
    return parser.parse_comma_separated_list(parser.Delimiter.SQUARE, lambda: parse_expression(parser))


def parse_optional_index(parser: Parser) -> Terms | None:
    """Parse ``[4*%n]``, or nothing."""
    if parser.parse_optional_punctuation("[") is None:
        return None
    expression = parse_expression(parser)
    parser.parse_punctuation("]")
    return expression


def number_counters(expressions: Sequence[Terms]) -> tuple[list[SSAValue], list[Index]]:
    """Return the counters that the expressions use, and the expressions as indices over them."""
    used = (counter for _, coeffs in expressions for counter, coeff in coeffs.items() if coeff)
    counters = list(dict.fromkeys(used))
    return counters, [(offset, tuple(coeffs.get(c, 0) for c in counters)) for offset, coeffs in expressions]


def in_scope(printer: Printer, body: Callable[[], None]) -> None:
    """Print with names that are free again afterwards: what a region defines cannot be seen outside."""
    printer.enter_scope()
    body()
    printer.exit_scope()


def print_body(printer: Printer, body: Region) -> None:
    """Print the region of a stage or loop; the counter stands in the op's head."""
    printer.print_string(" ")
    printer.print_region(body, print_entry_block_args=False, print_empty_block=False)


def check_counters(op: Operation, count: int, indices: Sequence[Index]) -> None:
    """Check that the coefficients of the indices belong to counters, and every counter to an index."""
    if any(len(coeffs) > count for _, coeffs in indices):
        raise VerifyException(f"{op.name} has an index over more than its {count} loop counters")
    if any(not any(coeffs[n : n + 1] != (0,) for _, coeffs in indices if len(coeffs) > n) for n in range(count)):
        raise VerifyException(f"{op.name} has a loop counter that no index uses")


def with_attributes(op: Op, parser: Parser) -> Op:
    """Add the attributes that follow in the text."""
    attributes = parser.parse_optional_attr_dict_with_keyword()
    if attributes is not None:
        op.attributes.update(attributes.data)
    return op


def with_block(region: Region) -> Region:
    """Give an empty region the block that its text leaves out."""
    if region.first_block is None:
        region.add_block(Block())
    return region
