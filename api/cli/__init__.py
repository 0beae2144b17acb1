"""The command ``h2learn``. Commands are imported when they are first used: ``--help`` and ``--version`` are fast."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module, metadata

import click

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo:demo", "Train a small network on handwritten digits, end to end."),
    "import": ("model:import_", "Read a model and print its spike-level program."),
    "compile": ("model:compile_", "Compile a model to a program for the accelerator."),
    "export": ("model:export", "Write a model, for example a trained one, as a NIR file."),
    "opt": ("opt:opt", "Run passes on IR text, like mlir-opt."),
    "as": ("binary:assemble_", "Assemble text to a program."),
    "disasm": ("binary:disasm", "Print a program as assembly text that assembles to the same bytes."),
    "objdump": ("binary:objdump_", "Print a summary of a program: header, symbols, tensors, code."),
    "run": ("run:run", "Run a program on the simulator."),
    "profile": ("profile:profile_", "Say where the cycles, bytes and energy of a program go."),
    "train": ("train:train", "Train a model by running its compiled program on the simulator."),
    "data": ("data:data", "Look at files of images and events."),
    "baseline": ("baseline:baseline", "Estimate what a model costs on a GPU."),
    "arch": ("arch:arch", "List and show machine descriptions."),
}
"""Command -> where it is defined in this package, and its one-line help."""


class LazyGroup(click.Group):
    """A group whose commands are imported by name on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(f"{__name__}.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _print_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        click.echo(f"h2learn {metadata.version('h2learn')}")
        context.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
@click.option("--debug", is_flag=True, expose_value=False, help="On an error, also print the traceback (any position).")
def cli() -> None:
    """Compile spiking neural networks for an H2Learn-style training accelerator, and run them on its simulator."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 when all went well, 1 on any error, 130 when interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(given))


def run(arguments: list[str]) -> int:
    """Run the command line and return the exit code; errors are printed to the standard error stream."""
    debug = "--debug" in arguments
    try:
        result = cli.main([word for word in arguments if word != "--debug"], prog_name="h2learn", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, click.Abort):
        click.echo("\ninterrupted", err=True)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        click.echo(_explain(error, arguments), err=True)
        return 1


def _explain(error: Exception, arguments: list[str]) -> str:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error.format_message()
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx is not None else "h2learn"
        return f"error: {error.format_message()}\n  hint: {command} --help lists the options"
    if isinstance(error, click.ClickException):
        return f"error: {error.format_message()}"
    from h2learn.compiler.diagnostics import InternalError, as_user_error, one_line, write_crash_report

    if isinstance(error, InternalError):
        return error.render()
    if (user_error := as_user_error(error)) is not None:
        return user_error.render()
    return f"internal error: {one_line(error)}\n  report: {write_crash_report(error, arguments)}"
