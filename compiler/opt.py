"""What ``h2learn opt`` does: parse IR text with locations, run passes, print, and match expected errors."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TextIO

from xdsl.context import Context
from xdsl.dialects import builtin
from xdsl.ir import Operation
from xdsl.parser import Parser
from xdsl.passes import ModulePass
from xdsl.utils.exceptions import DiagnosticException

from h2learn.backends.h2learn.errors import H2LearnError, Location
from h2learn.dialects.common import file_location

from .diagnostics import InternalError, as_user_error
from .manager import REPRODUCER_KEY, ManagerOptions, PassManager, module_text
from .universe import new_context

SPLIT_MARK = "// -----"
_EXPECTATION = re.compile(r"//\s*expected-error\s*(?:@(?P<place>[+-]\d+|above|below)\s*)?\{\{(?P<text>.*?)\}\}")


@dataclass(frozen=True)
class Expectation:
    """An ``expected-error`` comment: the text, and the line where the error must be (0: anywhere in the chunk)."""

    text: str
    line: int
    written_at: int


@dataclass(frozen=True)
class OptOptions:
    """What to run and how to print; the fields are the command's options."""

    passes: Sequence[ModulePass] = ()
    manager: ManagerOptions = field(default_factory=ManagerOptions)
    split_input: bool = False
    verify_diagnostics: bool = False
    print_locations: bool = False
    print_generic: bool = False


class LocatingParser(Parser):
    """xDSL's parser, which also gives every operation without a location the place where it was read."""

    def __init__(self, context: Context, text: str, file: str, first_line: int = 1) -> None:
        super().__init__(context, text, file)
        self._file = file
        self._first_line = first_line
        self._line_starts = list(accumulate((len(line) for line in text.splitlines(keepends=True)), initial=0))

    def parse_optional_operation(self) -> Operation | None:
        """Parse one operation if there is one."""
        start = self._current_token.span.start
        op = super().parse_optional_operation()
        if op is not None and isinstance(op.location, builtin.UnknownLoc) and not isinstance(op, builtin.ModuleOp):
            line = bisect_right(self._line_starts, start)
            column = start - self._line_starts[line - 1] + 1
            op.location = file_location(self._file, self._first_line + line - 1, column)
        return op


def parse_module(text: str, file: str, context: Context | None = None, first_line: int = 1) -> builtin.ModuleOp:
    """Parse IR text; raises H2LearnError with file, line, column and an excerpt."""
    try:
        return LocatingParser(context or new_context(), text, file, first_line).parse_module()
    except Exception as error:
        found = as_user_error(error) or _diagnosed(error)
        if found is None:
            raise
        raise _shifted(found, first_line) from error


def run_opt(text: str, file: str, options: OptOptions, stream: TextIO) -> str:
    """Run the passes on every chunk of ``text`` and return the printed programs; progress goes to ``stream``.

    Raises H2LearnError on bad input, or — with ``verify_diagnostics`` — when an expected error is missing or another
    one appears; then nothing is printed.
    """
    outputs: list[str] = []
    for first_line, chunk in _chunks(text, options.split_input):
        if options.verify_diagnostics:
            _check_expectations(chunk, file, first_line, options, stream)
        else:
            outputs.append(_run_chunk(chunk, file, first_line, options, stream))
    return f"{SPLIT_MARK}\n".join(outputs)


def reproducer_pipeline(text: str) -> str:
    """Return the pipeline text stored in a reproducer file; raises H2LearnError when there is none."""
    for line in text.splitlines()[:10]:
        if line.startswith(REPRODUCER_KEY):
            try:
                return str(json.loads(line.removeprefix(REPRODUCER_KEY)))
            except json.JSONDecodeError:
                break
    raise H2LearnError("the file holds no pipeline to run", hint=f"a reproducer has a line {REPRODUCER_KEY!r}")


def _run_chunk(text: str, file: str, first_line: int, options: OptOptions, stream: TextIO) -> str:
    context = new_context()
    module = parse_module(text, file, context, first_line)
    PassManager(options.passes, options.manager, stream).run(context, module)
    return module_text(module, locations=options.print_locations, generic=options.print_generic)


def _check_expectations(text: str, file: str, first_line: int, options: OptOptions, stream: TextIO) -> None:
    wanted = _expectations(text, first_line)
    found = _errors_of(text, file, first_line, options, stream)
    unmatched = [error for error in found if not any(_matches(one, error, file) for one in wanted)]
    if unmatched:
        first = unmatched[0]
        raise H2LearnError(f"unexpected error: {first.message}", location=first.location, hint=first.hint)
    for one in wanted:
        if not any(_matches(one, error, file) for error in found):
            seen = "; ".join(f"{error.location}: {error.message}" for error in found) or "nothing"
            raise H2LearnError(
                f"expected error {one.text!r} did not appear, found {seen}", location=Location(file, one.written_at)
            )


def _errors_of(text: str, file: str, first_line: int, options: OptOptions, stream: TextIO) -> list[H2LearnError]:
    try:
        _run_chunk(text, file, first_line, options, stream)
    except H2LearnError as error:
        return [error]
    except InternalError as error:
        return [H2LearnError(error.message)]
    return []


def _expectations(text: str, first_line: int) -> list[Expectation]:
    found: list[Expectation] = []
    for number, line in enumerate(text.splitlines(), start=first_line):
        for match in _EXPECTATION.finditer(line):
            place = {None: "", "above": "-1", "below": "+1"}.get(match["place"], match["place"] or "")
            found.append(Expectation(match["text"], number + int(place) if place else 0, number))
    return found


def _matches(expectation: Expectation, error: H2LearnError, file: str) -> bool:
    if expectation.text not in f"{error.message}\n{error.hint}":
        return False
    place = error.location
    here = isinstance(place, Location) and place.file == file
    return not expectation.line or (here and isinstance(place, Location) and place.line == expectation.line)


def _chunks(text: str, split: bool) -> list[tuple[int, str]]:
    if not split:
        return [(1, text)]
    chunks: list[tuple[int, str]] = []
    first, lines = 1, list[str]()
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if line.startswith(SPLIT_MARK):
            chunks.append((first, "".join(lines)))
            first, lines = number + 1, []
        else:
            lines.append(line)
    return [*chunks, (first, "".join(lines))]


def _diagnosed(error: Exception) -> H2LearnError | None:
    if isinstance(error, DiagnosticException | ValueError):
        return H2LearnError(" ".join(str(error).split()))
    return None


def _shifted(error: H2LearnError, first_line: int) -> H2LearnError:
    place = error.location
    if first_line > 1 and isinstance(place, Location) and place.line:
        place = Location(place.file, place.line + first_line - 1, place.column)
    return H2LearnError(error.message, location=place, hint=error.hint, excerpt=error.excerpt)
