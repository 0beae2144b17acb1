"""Errors with locations: checking a module, and turning what other libraries raise into the one error type."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from xdsl.dialects import builtin
from xdsl.ir import Operation, Region, SSAValue
from xdsl.utils.exceptions import ArgSpecParseError, DiagnosticException, ParseError, VerifyException

from h2learn.backends.h2learn.errors import H2LearnError, Location, why
from h2learn.dialects.common import source_of


class InternalError(Exception):
    """A defect of the compiler, not of the input: one sentence, and the file that reproduces it.

    ``pass_name`` is the pass that failed, ``reproducer`` the file that ``h2learn opt --run-reproducer`` runs again.
    The original exception is the cause.
    """

    def __init__(self, message: str, *, pass_name: str = "", reproducer: Path | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.pass_name = pass_name
        self.reproducer = reproducer

    def render(self) -> str:
        """Return the text that the command line prints."""
        where = f" in pass {self.pass_name}" if self.pass_name else ""
        lines = [f"internal error{where}: {self.message}"]
        if self.reproducer is not None:
            lines.append(f"  reproducer: {self.reproducer} (h2learn opt --run-reproducer {self.reproducer})")
        return "\n".join(lines)


def as_user_error(error: BaseException) -> H2LearnError | None:
    """Return ``error`` as an H2LearnError when the input is to blame (parsing, pipeline text, files), else None."""
    match error:
        case H2LearnError():
            return error
        case ParseError():
            return _parse_error(error)
        case ArgSpecParseError():
            return H2LearnError("the pass pipeline cannot be parsed", excerpt=str(error).partition("\n")[2].rstrip())
        case FileNotFoundError():
            return H2LearnError("no such file", location=_file_of(error))
        case IsADirectoryError():
            return H2LearnError("expected a file, found a folder", location=_file_of(error))
        case PermissionError():
            return H2LearnError("permission denied", location=_file_of(error))
        case OSError() if error.filename is not None:
            return H2LearnError(why(error), location=_file_of(error))
        case _:
            return None


def location_of(op: Operation) -> Location | str | None:
    """Return where ``op`` or its closest enclosing operation came from, or None when nothing says so."""
    current: Operation | None = op
    while current is not None:
        if source := source_of(current):
            return _split(source)
        current = current.parent_op()
    return None


@contextmanager
def placed(op: Operation) -> Iterator[None]:
    """Give an H2LearnError that has no location that of ``op``."""
    try:
        yield
    except H2LearnError as error:
        error.location = error.location or location_of(op)
        raise


def verify_module(module: builtin.ModuleOp) -> None:
    """Check structure, every operation's own rules, and that values are defined before they are used.

    Raises H2LearnError that names the first bad operation and its location.
    """
    try:
        module.verify()
    except (DiagnosticException, ValueError) as error:
        raise _verification_error(module, error) from error
    check_dominance(module)


def check_dominance(module: builtin.ModuleOp) -> None:
    """Raise H2LearnError for the first operand that is used before its definition or outside its region."""
    for region in module.regions:
        _check_region(region, set())


def write_crash_report(error: BaseException, arguments: Iterable[str]) -> Path:
    """Write the traceback and the command line of an unexpected failure to a file and return its path."""
    details = "".join(traceback.format_exception(error))
    text = f"command: h2learn {' '.join(arguments)}\npython: {sys.version}\n\n{details}"
    name = f"h2learn-crash-{hashlib.sha256(details.encode()).hexdigest()[:10]}.txt"
    for folder in (Path(tempfile.gettempdir()), Path.cwd()):
        try:
            (folder / name).write_text(text, encoding="utf-8")
        except OSError:
            continue
        return folder / name
    return Path("(nowhere: neither the current nor the temporary folder is writable)")


def one_line(error: BaseException) -> str:
    """Return type and first line of an exception's text."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _check_region(region: Region, outer: set[SSAValue]) -> None:
    visible = set(outer)
    if len(region.blocks) > 1:
        visible.update(value for block in region.blocks for op in block.ops for value in op.results)
        visible.update(value for block in region.blocks for value in block.args)
    for block in region.blocks:
        visible.update(block.args)
        for op in block.ops:
            for index, operand in enumerate(op.operands):
                if operand not in visible:
                    raise H2LearnError(
                        f"operand {index} of {op.name} is used before it is defined", location=location_of(op)
                    )
            for inner in op.regions:
                _check_region(inner, visible)
            visible.update(op.results)


def _verification_error(module: builtin.ModuleOp, error: Exception) -> H2LearnError:
    message = " ".join(str(error).split())
    culprit = _first_bad_operation(module)
    if culprit is None:
        return H2LearnError(message)
    return H2LearnError(f"{culprit.name}: {message}", location=location_of(culprit))


def _first_bad_operation(module: builtin.ModuleOp) -> Operation | None:
    for op in module.walk():
        try:
            op.verify(verify_nested_ops=False)
        except (VerifyException, ValueError):
            return op
    return None


def _parse_error(error: ParseError) -> H2LearnError:
    place = error.span.get_location()
    shown = error.span.print_with_context(None).splitlines()
    return H2LearnError(
        " ".join(error.msg.split()),
        location=Location(place.file, place.line, place.col),
        excerpt="\n".join(shown[1:]),
    )


def _file_of(error: OSError) -> str:
    return str(error.filename) if error.filename is not None else "?"


def _split(source: str) -> Location | str:
    file, _, rest = source.partition(":")
    line, _, column = rest.partition(":")
    return Location(file, int(line), int(column)) if line.isdecimal() and column.isdecimal() else source


def quote(text: str) -> str:
    """Return ``text`` as a JSON string, for single-line comments in reproducers."""
    return json.dumps(text)
