"""``h2learn import`` and ``h2learn compile``: from a model file to IR or a program."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from h2learn.backends.h2learn.assembler import disassemble
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.object_file import ObjectFile, write_object
from h2learn.checkpoints import read_parameters
from h2learn.compiler.calibration import PERCENTILE, calibrate
from h2learn.compiler.driver import Recipe, emit_program, run_passes
from h2learn.compiler.frontends.nir import nir_file
from h2learn.compiler.manager import module_text
from h2learn.compiler.model import Model
from h2learn.compiler.pipeline import parse_passes, phase_names, pipeline_text
from h2learn.data import load_data, load_digits
from h2learn.files import check_writable, write_atomic
from h2learn.models import FRONT_ENDS, limits_text, load_model, recipe_of

from .options import Command, PassOptions, import_options, pass_options

CALIBRATION_SAMPLES = 512
SUFFIXES = {"mlir": ".mlir", "asm": ".s", "bin": ".h2x"}


@dataclass(frozen=True)
class Target:
    """What to compile for."""

    arch: str
    precision: str
    mapping: str


def target_options(command: Command) -> Command:
    """Add ``--arch --precision --mapping`` to a command, which receives them as ``target``."""

    @click.option(
        "--arch",
        default="h2l-v0",
        show_default=True,
        metavar="NAME|FILE[:PART.KEY=VALUE,...]",
        help="Machine to compile for, with changes.",
    )
    @click.option("--precision", default="fp32", show_default=True, metavar="fp32|fp16", help="Storage type.")
    @click.option("--mapping", default="", metavar="LIMITS", help="Caps of tile sizes, such as 'rows=4,k=8'.")
    @functools.wraps(command)
    def wrapped(*args: object, arch: str, precision: str, mapping: str, **rest: object) -> object:
        return command(*args, target=Target(arch, precision, limits_text(mapping)), **rest)

    return wrapped


@click.command("import")
@click.argument("model")
@click.option("-o", "--output", default="-", help="Where to write the program (default: standard output).")
@click.option("--batch", type=int, help="Samples per run (default: the model's).")
@click.option("--check", is_flag=True, help="Only say whether everything in the model is supported.")
@import_options
def import_(model: str, output: str, batch: int | None, check: bool, reading: dict[str, Any]) -> None:
    """Read MODEL and print its spike-level program, with locations."""
    loaded = read_model(model, batch, None, reading)
    if check:
        click.echo(_summary(loaded))
        return
    _write(output, module_text(loaded.module))


@click.command("compile")
@click.argument("model")
@click.option("-o", "--output", help="File to write (default: MODEL.h2x in this folder; '-': standard output).")
@click.option("--batch", type=int, help="Samples per run (default: the model's).")
@click.option("--train", "method", metavar="METHOD", help="Compile a training step by this method (bptt).")
@click.option("--params", metavar="FILE", help="Initial parameters (.safetensors).")
@click.option("--compile-to", metavar="PHASE", help=f"Stop after a phase and print its IR: {', '.join(phase_names())}.")
@click.option("-p", "--passes", "pipeline", metavar="PIPELINE", help="Run these passes instead, and print the IR.")
@click.option("--emit", metavar="KINDS", help="Write these kinds of files: mlir,asm,bin (default: bin).")
@click.option("--print-pipeline", is_flag=True, help="Print the pipeline as -p takes it, and exit.")
@target_options
@import_options
@pass_options
def compile_(
    model: str,
    output: str | None,
    batch: int | None,
    method: str | None,
    params: str | None,
    compile_to: str | None,
    pipeline: str | None,
    emit: str | None,
    print_pipeline: bool,
    target: Target,
    reading: dict[str, Any],
    passes: PassOptions,
) -> None:
    """Compile MODEL to a program for the accelerator."""
    last = compile_to or phase_names()[-1]
    to_binary = last == phase_names()[-1] and pipeline is None
    files = _outputs(Path(model).stem, output, emit) if to_binary else {}
    for file in files.values():
        check_writable(file)
    loaded = read_model(model, batch, params, reading)
    recipe = Recipe(target.arch, target.precision, recipe_of(loaded, method), target.mapping)
    chosen = recipe.passes(last) if pipeline is None else parse_passes(pipeline)
    if print_pipeline:
        click.echo(pipeline_text(chosen))
        return
    options = passes.manager_options()
    module = run_passes(loaded, recipe, chosen, options, check_each=passes.check_each)
    if not to_binary:
        _write(output or "-", module_text(module))
        return
    program = emit_program(loaded, module, recipe)
    for kind, file in files.items():
        write_atomic(file, _content(kind, module_text(module), program))
    click.echo(f"{', '.join(str(file) for file in files.values())}: {len(program.text) // 16} instructions", err=True)


@click.command()
@click.argument("model")
@click.option("-o", "--output", required=True, metavar="FILE", help="File to write (.nir).")
@click.option("--params", metavar="FILE", help="Parameters, for example trained ones (.safetensors).")
@import_options
def export(model: str, output: str, params: str | None, reading: dict[str, Any]) -> None:
    """Write MODEL with its parameters as a file of another format, which its suffix names: .nir."""
    if Path(output).suffix.lower() != ".nir":
        raise H2LearnError(f"expected an output file ending in .nir, found {output}")
    check_writable(output)
    of_file = FRONT_ENDS.get(Path(model).suffix.lower(), ("", ()))[1]
    dt = None if "dt" in of_file else reading.pop("dt", None)
    content, notes = nir_file(read_model(model, None, params, reading), dt)
    write_atomic(output, content)
    for note in notes:
        click.echo(f"note: {note}", err=True)


def read_model(path: str, batch: int | None, parameters: str | None, reading: dict[str, Any]) -> Model:
    """Return the model of a file, for a batch and with parameters where they are given; print what was assumed."""
    data = reading.pop("calibrate", None)
    if data is None and "percentile" in reading:
        raise H2LearnError("--percentile needs --calibrate DATA")
    percentile = reading.pop("percentile", PERCENTILE)
    model = load_model(path, **reading)
    if parameters is not None:
        model = model.with_parameters(read_parameters(parameters))
    if data is not None:
        model = _calibrated(model, data, percentile)
    for note in model.notes:
        click.echo(f"note: {note}", err=True)
    return model if batch is None else model.with_batch(batch)


def _calibrated(model: Model, data: str, percentile: float) -> Model:
    name, spec = next(iter(model.with_batch(1).inputs.items()))
    samples = load_digits().shaped(spec.shape[1:]) if data == "digits" else load_data(data, spec.shape[1:])
    return calibrate(model, {name: samples.x_train[:CALIBRATION_SAMPLES]}, percentile=percentile)


def _outputs(stem: str, output: str | None, emit: str | None) -> dict[str, Path]:
    kinds = [kind.strip() for kind in (emit or "bin").split(",")]
    for kind in kinds:
        if kind not in SUFFIXES:
            raise H2LearnError(f"there is no output {kind!r}", hint=f"known: {', '.join(SUFFIXES)}")
    if output == "-":
        output = "/dev/stdout"
    if output is not None and len(kinds) == 1:
        return {kinds[0]: Path(output)}
    base = Path(output) if output is not None else Path(stem)
    base = base.with_suffix("") if base.suffix in SUFFIXES.values() else base
    return {kind: base.with_name(base.name + SUFFIXES[kind]) for kind in kinds}


def _content(kind: str, text: str, program: ObjectFile) -> bytes | str:
    if kind == "bin":
        return write_object(program)
    return disassemble(program) if kind == "asm" else text


def _write(output: str, text: str) -> None:
    if output == "-":
        click.echo(text, nl=False)
        return
    check_writable(output)
    write_atomic(output, text)


def _summary(model: Model) -> str:
    counts = Counter(op.name.removeprefix("spike.") for op in model.module.walk() if op.name.startswith("spike."))
    layers = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    weights = sum(value.size for value in model.parameters.values())
    return f"{model.name}: everything is supported ({layers}; {weights} parameters)"
