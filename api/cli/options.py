"""Options that several commands share, and reading of their files."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from h2learn.backends.h2learn.energy_profile import load_profile
from h2learn.backends.h2learn.errors import H2LearnError, why
from h2learn.compiler.manager import ManagerOptions, PassCheck
from h2learn.compiler.pipeline import PASSES
from h2learn.files import check_folder

Command = Callable[..., Any]


@dataclass(frozen=True)
class PassOptions:
    """The flags that show and check what passes do."""

    print_before: frozenset[str]
    print_after: frozenset[str]
    print_after_change: bool
    dump_folder: Path | None
    time_passes: bool
    verify_each: bool
    check_each: bool

    @property
    def asks_for_passes(self) -> bool:
        """True when a flag has no effect without passes."""
        return bool(self.print_before or self.print_after or self.print_after_change or self.check_each)

    def manager_options(self, check: PassCheck | None = None) -> ManagerOptions:
        """Return what the pass manager takes; ``check``, if given, is used with ``--check-each``."""
        if self.dump_folder is not None:
            check_folder(self.dump_folder)
        return ManagerOptions(
            self.print_before,
            self.print_after,
            self.print_after_change,
            self.dump_folder,
            self.time_passes,
            self.verify_each,
            check if self.check_each else None,
        )


def pass_options(command: Command) -> Command:
    """Add the pass manager's flags to a command, which receives them as ``passes``."""

    @click.option("--print-ir-before", multiple=True, metavar="PASS", help="Print the IR before PASS (repeatable).")
    @click.option("--print-ir-after", multiple=True, metavar="PASS", help="Print the IR after PASS (repeatable).")
    @click.option("--print-ir-before-all", is_flag=True, help="Print the IR before every pass.")
    @click.option("--print-ir-after-all", is_flag=True, help="Print the IR after every pass.")
    @click.option("--print-ir-after-change", is_flag=True, help="Print the IR after every pass that changed it.")
    @click.option("--dump-ir-dir", metavar="FOLDER", help="Write the IR after every pass to a numbered file.")
    @click.option("--time-passes", is_flag=True, help="Print how long every pass took.")
    @click.option("--verify-each/--no-verify-each", default=True, help="Verify the IR after every pass (default: on).")
    @click.option("--check-each", is_flag=True, help="Run the program before and after every pass and compare.")
    @functools.wraps(command)
    def wrapped(
        *args: object,
        print_ir_before: tuple[str, ...],
        print_ir_after: tuple[str, ...],
        print_ir_before_all: bool,
        print_ir_after_all: bool,
        print_ir_after_change: bool,
        dump_ir_dir: str | None,
        time_passes: bool,
        verify_each: bool,
        check_each: bool,
        **rest: object,
    ) -> object:
        for name in (*print_ir_before, *print_ir_after):
            if name not in PASSES:
                raise H2LearnError(f"there is no pass {name!r}", hint=f"known passes: {', '.join(sorted(PASSES))}")
        options = PassOptions(
            frozenset(("*",) if print_ir_before_all else print_ir_before),
            frozenset(("*",) if print_ir_after_all else print_ir_after),
            print_ir_after_change,
            Path(dump_ir_dir) if dump_ir_dir else None,
            time_passes,
            verify_each,
            check_each,
        )
        return command(*args, passes=options, **rest)

    return wrapped


def import_options(command: Command) -> Command:
    """Add what a model file may leave open; a command receives the options that were given as ``reading``."""

    @click.option("--time-steps", type=int, metavar="T", help="Time steps, for a file that does not say how many.")
    @click.option("--encode", metavar="direct|bernoulli", help="Present an input without time as this.")
    @click.option("--dt", type=float, metavar="SECONDS", help="Time step, for neurons in continuous time.")
    @click.option("--discretisation", metavar="forward-euler|exponential", help="How continuous time becomes steps.")
    @click.option("--reset", metavar="hard|soft|soft-delayed", help="Reset of the neurons, where the file is silent.")
    @click.option("--neurons", metavar="lif|if", help="Turn the activations of a network without time into these.")
    @click.option("--calibrate", metavar="DATA", help="Set the thresholds from the training samples of this file.")
    @click.option("--percentile", type=float, help="Of the weighted inputs, for --calibrate (default: 99.7).")
    @click.option("--producer", metavar="NAME", help="Framework that wrote the file: presets for what it cannot say.")
    @click.option("--max-spikes", type=int, metavar="N", help="Most spikes of a neuron per time step; 0: any number.")
    @functools.wraps(command)
    def wrapped(
        *args: object,
        time_steps: int | None,
        encode: str | None,
        dt: float | None,
        discretisation: str | None,
        reset: str | None,
        neurons: str | None,
        calibrate: str | None,
        percentile: float | None,
        producer: str | None,
        max_spikes: int | None,
        **rest: object,
    ) -> object:
        every = {
            "time_steps": time_steps,
            "encode": encode,
            "dt": dt,
            "discretisation": discretisation,
            "reset": reset,
            "neurons": neurons,
            "calibrate": calibrate,
            "percentile": percentile,
            "producer": producer,
            "max_spikes": max_spikes,
        }
        return command(*args, reading={name: value for name, value in every.items() if value is not None}, **rest)

    return wrapped


def profile_option(command: Command) -> Command:
    """Add ``--profile`` to a command, which receives an EnergyProfile (None: the machine's own) as ``profile``."""

    @click.option("--profile", metavar="NAME|FILE", help="Energies per operation (default: the machine's).")
    @functools.wraps(command)
    def wrapped(*args: object, profile: str | None, **rest: object) -> object:
        return command(*args, profile=None if profile is None else load_profile(profile), **rest)

    return wrapped


def read_text(file: str) -> str:
    """Return the text of a file, or of the standard input for ``-``; raises H2LearnError when that is not possible."""
    name = "<stdin>" if file == "-" else file
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return raw.decode("utf-8")
    except FileNotFoundError as error:
        raise H2LearnError("no such file", location=name) from error
    except OSError as error:
        raise H2LearnError(why(error), location=name) from error
    except UnicodeDecodeError as error:
        raise H2LearnError(
            f"expected UTF-8 text, found byte {error.object[error.start]:#04x}", location=name
        ) from error


def read_bytes(file: str) -> bytes:
    """Return the bytes of a file, or of the standard input for ``-``; raises H2LearnError when that is not possible."""
    name = "<stdin>" if file == "-" else file
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except FileNotFoundError as error:
        raise H2LearnError("no such file", location=name) from error
    except OSError as error:
        raise H2LearnError(why(error), location=name) from error
