"""``h2learn opt``: passes on IR text."""

from __future__ import annotations

import sys

import click

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.checks import check_pass
from h2learn.compiler.opt import OptOptions, reproducer_pipeline, run_opt
from h2learn.compiler.pipeline import PASSES, load_pass, parse_passes
from h2learn.files import check_writable, write_atomic

from .options import PassOptions, pass_options, read_text


@click.command()
@click.argument("file", default="-")
@click.option("-p", "--passes", "pipeline", default="", metavar="PIPELINE", help="Passes to run: 'a,b{option=1}'.")
@click.option("-o", "--output", default="-", help="Where to write the result (default: standard output).")
@click.option("--split-input-file", is_flag=True, help="Treat '// -----' as the end of one program.")
@click.option("--verify-diagnostics", is_flag=True, help="Match errors against '// expected-error {{text}}' comments.")
@click.option("--print-locations", is_flag=True, help="Print the location of every operation.")
@click.option("--print-generic", is_flag=True, help="Print every operation in the generic form.")
@click.option("--run-reproducer", is_flag=True, help="Run the pipeline that the file of a crash holds.")
@click.option("--list-passes", is_flag=True, help="List the passes and exit.")
@pass_options
def opt(
    file: str,
    pipeline: str,
    output: str,
    split_input_file: bool,
    verify_diagnostics: bool,
    print_locations: bool,
    print_generic: bool,
    run_reproducer: bool,
    list_passes: bool,
    passes: PassOptions,
) -> None:
    """Parse FILE ('-': standard input), run passes on it, and print the result."""
    if list_passes:
        click.echo(_pass_list(), nl=False)
        return
    if output != "-":
        check_writable(output)
    text = read_text(file)
    if run_reproducer:
        pipeline = reproducer_pipeline(text)
    elif pipeline.strip() == "" and passes.asks_for_passes:
        raise H2LearnError("no pass to print or check", hint="name the passes with -p")
    options = OptOptions(
        parse_passes(pipeline) if pipeline.strip() else (),
        passes.manager_options(check_pass),
        split_input_file,
        verify_diagnostics,
        print_locations,
        print_generic,
    )
    result = run_opt(text, "<stdin>" if file == "-" else file, options, sys.stderr)
    if output == "-":
        click.echo(result, nl=False)
    else:
        write_atomic(output, result)


def _pass_list() -> str:
    width = max(map(len, PASSES))
    return "".join(f"{name:<{width}}  {_first_line(name)}\n" for name in sorted(PASSES))


def _first_line(name: str) -> str:
    return (load_pass(name).__doc__ or "").strip().partition("\n")[0]
