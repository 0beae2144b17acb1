"""The pass manager: runs passes, checks, shows and times the program, and keeps a reproducer of a crash."""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from xdsl.context import Context
from xdsl.dialects import builtin
from xdsl.passes import ModulePass
from xdsl.printer import Printer
from xdsl.utils.exceptions import DiagnosticException

from h2learn.backends.h2learn.errors import H2LearnError

from .diagnostics import InternalError, location_of, one_line, quote, verify_module
from .pipeline import READS, pipeline_text

REPRODUCER_KEY = "// pipeline: "
"""The line of a reproducer file that holds the passes still to run, as a JSON string."""

PassCheck = Callable[[str, builtin.ModuleOp, builtin.ModuleOp], str]
"""Compares a program before and after the named pass: returns one line, raises H2LearnError if they differ."""


@dataclass(frozen=True)
class ManagerOptions:
    """What to show and check around passes; ``"*"`` in a set of names stands for every pass.

    ``dump_folder`` receives one numbered file per pass; ``reproducer_folder`` is where a crash leaves its file
    (default: the temporary folder); ``check`` is called after every pass with the program before and after it.
    """

    print_before: frozenset[str] = frozenset()
    print_after: frozenset[str] = frozenset()
    print_after_change: bool = False
    dump_folder: Path | None = None
    time_passes: bool = False
    verify_each: bool = True
    check: PassCheck | None = None
    reproducer_folder: Path | None = None


@dataclass
class PassManager:
    """Runs ``passes`` in order on a module, in place; everything it prints goes to ``stream``."""

    passes: Sequence[ModulePass]
    options: ManagerOptions = field(default_factory=ManagerOptions)
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    timings: list[tuple[str, float]] = field(default_factory=list)
    first_number: int = 0

    def run(self, context: Context, module: builtin.ModuleOp) -> None:
        """Run all passes.

        Raises H2LearnError when the input is to blame or a check finds a difference, InternalError (with a reproducer
        file) when a pass fails in any other way or leaves an invalid program.
        """
        if self.first_number == 0:
            self._dump(0, "input", module)
        if self.options.verify_each:
            verify_module(module)
        for index, one in enumerate(self.passes):
            self._run_one(context, module, index, one)
        if self.options.time_passes:
            self.stream.write(timing_table(self.timings))

    def _run_one(self, context: Context, module: builtin.ModuleOp, index: int, one: ModulePass) -> None:
        options = self.options
        if _wanted(options.print_before, one.name):
            self._show(f"IR before {one.name}", module)
        _check_level(one.name, module)
        before = module.clone()
        start = time.perf_counter()
        try:
            one.apply(context, module)
            self.timings.append((one.name, time.perf_counter() - start))
            if options.verify_each:
                _verify_after(one.name, module)
        except (H2LearnError, KeyboardInterrupt):
            raise
        except Exception as error:
            file = write_reproducer(before, self.passes[index:], one_line(error), options.reproducer_folder)
            raise InternalError(one_line(error), pass_name=one.name, reproducer=file) from error
        self._dump(self.first_number + index + 1, one.name, module)
        changed = options.print_after_change and module_text(before) != module_text(module)
        if changed or _wanted(options.print_after, one.name):
            self._show(f"IR after {one.name}", module)
        if options.check is not None:
            self.stream.write(f"check {one.name}: {options.check(one.name, before, module)}\n")

    def _show(self, title: str, module: builtin.ModuleOp) -> None:
        self.stream.write(f"// ----- {title} -----\n{module_text(module)}")

    def _dump(self, number: int, name: str, module: builtin.ModuleOp) -> None:
        if self.options.dump_folder is not None:
            self.options.dump_folder.mkdir(parents=True, exist_ok=True)
            file = self.options.dump_folder / f"{number:02d}-{name}.mlir"
            file.write_text(module_text(module), encoding="utf-8")


def module_text(module: builtin.ModuleOp, *, locations: bool = True, generic: bool = False) -> str:
    """Return the program as text, with its locations unless told otherwise."""
    stream = io.StringIO()
    Printer(stream, print_debuginfo=locations, print_generic_format=generic).print_op(module)
    return stream.getvalue() + "\n"


def timing_table(timings: Sequence[tuple[str, float]]) -> str:
    """Return wall time and share of every pass as a table."""
    total = sum(seconds for _, seconds in timings)
    width = max([len(name) for name, _ in timings], default=5)
    rows = [f"  {'pass':<{width}}  {'ms':>9}  share"]
    for name, seconds in timings:
        rows.append(f"  {name:<{width}}  {seconds * 1e3:9.2f}  {seconds / total if total else 0:5.1%}")
    rows.append(f"  {'total':<{width}}  {total * 1e3:9.2f}")
    return "\n".join(rows) + "\n"


def write_reproducer(
    module: builtin.ModuleOp, passes: Sequence[ModulePass], reason: str, folder: Path | None = None
) -> Path:
    """Write the program before the failing pass and the pipeline from there on; return the file."""
    pipeline = quote(pipeline_text(passes))
    head = f"// {reason}\n{REPRODUCER_KEY}{pipeline}\n// run again with: h2learn opt --run-reproducer\n"
    target = Path(tempfile.mkdtemp(prefix="h2learn-")) if folder is None else folder
    target.mkdir(parents=True, exist_ok=True)
    file = target / f"reproducer-{passes[0].name}.mlir"
    file.write_text(head + module_text(module, generic=True), encoding="utf-8")
    return file


def _wanted(names: frozenset[str], name: str) -> bool:
    return "*" in names or name in names


def _check_level(name: str, module: builtin.ModuleOp) -> None:
    """Raise H2LearnError where the program is written in other dialects than the pass ``name`` takes."""
    taken = READS.get(name)
    if taken is None:
        return
    for op in module.walk():
        if op.name.partition(".")[0] not in (*taken, "builtin", "func"):
            raise H2LearnError(
                f"{name} takes programs of {' and '.join(taken)}, found {op.name}", location=location_of(op)
            )


def _verify_after(name: str, module: builtin.ModuleOp) -> None:
    try:
        verify_module(module)
    except H2LearnError as error:
        place = f" at {error.location}" if error.location is not None else ""
        raise DiagnosticException(f"the program is invalid after {name}: {error.message}{place}") from error
