"""``h2learn as``, ``disasm`` and ``objdump``: text and binary programs."""

from __future__ import annotations

import sys

import click

from h2learn.backends.h2learn.assembler import assemble, disassemble, objdump
from h2learn.backends.h2learn.object_file import ObjectFile, read_object, write_object
from h2learn.files import check_writable, write_atomic

from .options import read_bytes, read_text


@click.command("as")
@click.argument("file", default="-")
@click.option("-o", "--output", default="-", help="Program to write (default: standard output).")
def assemble_(file: str, output: str) -> None:
    """Assemble FILE ('-': standard input) to a program."""
    if output != "-":
        check_writable(output)
    program = write_object(assemble(read_text(file), "<stdin>" if file == "-" else file))
    if output != "-":
        write_atomic(output, program)
        return
    sys.stdout.buffer.write(program)
    sys.stdout.buffer.flush()


@click.command()
@click.argument("file")
@click.option("-o", "--output", default="-", help="Text to write (default: standard output).")
def disasm(file: str, output: str) -> None:
    """Print the program FILE as assembly text that assembles to the same bytes."""
    _print(disassemble(_object(file)), output)


@click.command("objdump")
@click.argument("file")
@click.option("-o", "--output", default="-", help="Text to write (default: standard output).")
def objdump_(file: str, output: str) -> None:
    """Print header, machine, symbols, tensors and code of the program FILE."""
    _print(objdump(_object(file)), output)


def _object(file: str) -> ObjectFile:
    return read_object(read_bytes("-") if file == "-" else file)


def _print(text: str, output: str) -> None:
    if output == "-":
        click.echo(text, nl=not text.endswith("\n"))
        return
    check_writable(output)
    write_atomic(output, text)
