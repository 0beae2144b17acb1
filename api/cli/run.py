"""``h2learn run``: a program on the simulator."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.energy_profile import EnergyProfile
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.checkpoints import read_parameters, write_parameters
from h2learn.files import check_folder, check_writable, write_atomic
from h2learn.program import Execution, Result, Session, load_program

from .options import profile_option
from .progress import note_first_run

Array = npt.NDArray[np.generic]


@click.command()
@click.argument("program")
@click.option("--input", "inputs", multiple=True, metavar="NAME=@FILE", help="Input from .npy or .npz (repeatable).")
@click.option("--params", metavar="FILE", help="Parameters in place of the program's (.safetensors).")
@click.option("--expected", multiple=True, metavar="NAME=@FILE", help="Compare an output with a file (repeatable).")
@click.option(
    "--tolerance", default=1e-5, show_default=True, help="Largest difference allowed with --expected, relative."
)
@click.option("--lr", type=float, help="Learning rate (default: the recipe's).")
@click.option("--seed", default=0, show_default=True, help="Seed of random encodings.")
@click.option(
    "--stats", is_flag=False, flag_value="text", type=click.Choice(["text", "json"]), help="Print all counters (text)."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--trace", metavar="FILE", help="Write the timeline for Perfetto (ui.perfetto.dev).")
@click.option("--sanitize", default="", metavar="CHECKS", help="Any of race,uninit,bounds; a finding is an error.")
@click.option("--max-instructions", type=int, help="Fail when more instructions are fetched.")
@click.option("--output-dir", metavar="FOLDER", help="Write outputs, gradients and parameters here.")
@click.option("--functional", is_flag=True, help="Only the numbers: no timing, no counters.")
@click.option("--reference", is_flag=True, help="Plain instead of compiled kernels; slow, same bits.")
@profile_option
def run(
    program: str,
    inputs: tuple[str, ...],
    params: str | None,
    expected: tuple[str, ...],
    tolerance: float,
    lr: float | None,
    seed: int,
    stats: str | None,
    as_json: bool,
    trace: str | None,
    sanitize: str,
    max_instructions: int | None,
    output_dir: str | None,
    functional: bool,
    reference: bool,
    profile: EnergyProfile | None,
) -> int:
    """Run PROGRAM (.h2x) once on the simulator."""
    execution = Execution(
        "reference" if reference else "fast",
        not functional,
        frozenset(filter(None, (name.strip() for name in sanitize.split(",")))),
        trace is not None,
        max_instructions,
    )
    if functional and stats is not None:
        raise H2LearnError("--stats prints counters, and a functional run has none", hint="leave out --functional")
    loaded = load_program(program)
    given = named_arrays(inputs, "--input")
    wanted = named_arrays(expected, "--expected")
    known = [*loaded.outputs, *(["loss"] if loaded.training else [])]
    for name in wanted:
        if name not in known:
            raise H2LearnError(f"the program has no output {name!r}", hint=f"known outputs: {', '.join(known)}")
    if trace is not None:
        check_writable(trace)
    if output_dir is not None:
        check_folder(output_dir)
    if not reference and not sanitize:
        note_first_run()
    with loaded.session(seed=seed, execution=execution, profile=profile) as session:
        if params is not None:
            session.set_parameters(read_parameters(params))
        result = session.run(given, lr=lr)
        if output_dir is not None:
            _write_results(Path(output_dir), result, session)
        if trace is not None:
            session.write_trace(trace)
    differences = {name: _difference(name, result, array) for name, array in wanted.items()}
    click.echo(json.dumps(_json(result, stats), indent=2) if as_json or stats == "json" else _text(result, stats))
    failed = [name for name, gap in differences.items() if not gap <= tolerance]
    for name in failed:
        click.echo(f"error: output {name!r} differs by {differences[name]:.3g}, {tolerance:g} allowed", err=True)
    for finding in result.report.findings:
        click.echo(f"{finding.kind}: {finding.message}", err=True)
    return 1 if failed or result.report.findings else 0


def named_arrays(pairs: tuple[str, ...], option: str) -> dict[str, Array]:
    """Read ``NAME=@FILE`` pairs; raises H2LearnError for pairs of another form and files that cannot be read."""
    found: dict[str, Array] = {}
    for pair in pairs:
        name, separator, file = pair.partition("=@")
        if not separator:
            raise H2LearnError(f"{option} expects NAME=@FILE, found {pair!r}")
        if name in found:
            raise H2LearnError(f"{option} names {name!r} twice")
        found[name] = _load_array(name, file)
    return found


def _load_array(name: str, file: str) -> Array:
    try:
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            if name in content.files:
                return np.asarray(content[name])
            held = ", ".join(content.files) or "nothing"
    except FileNotFoundError as error:
        raise H2LearnError("no such file", location=file) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        detail = str(error).partition("\n")[0] or type(error).__name__
        raise H2LearnError(f"the array cannot be read: {detail}", location=file) from error
    raise H2LearnError(f"the archive has no array {name!r}", location=file, hint=f"it holds {held}")


def _difference(name: str, result: Result, expected: Array) -> float:
    values = {"loss": np.float32(0.0 if result.loss is None else result.loss), **result.outputs}
    array = np.asarray(values[name])
    if array.shape != expected.shape:
        raise H2LearnError(f"output {name!r} has the shape {list(array.shape)}, expected {list(expected.shape)}")
    left, right = array.astype(np.float64), expected.astype(np.float64)
    gap = float(np.abs(left - right).max(initial=0.0))
    scale = float(np.abs(right).max(initial=0.0))
    return gap / scale if scale else gap


def _write_results(folder: Path, result: Result, session: Session) -> None:

    for name, value in result.outputs.items():
        stream = io.BytesIO()
        np.save(stream, value)
        write_atomic(folder / f"{name}.npy", stream.getvalue())
    if session.program.training:
        write_parameters(folder / "parameters.safetensors", dict(result.parameters))
        if len(result.gradients):
            write_parameters(folder / "gradients.safetensors", dict(result.gradients))


def _json(result: Result, stats: str | None) -> dict[str, Any]:
    data: dict[str, Any] = {"loss": result.loss}
    if result.report.timed:
        data = {"cycles": result.cycles, "energy_pj": result.energy_pj} | data
        data["energy"] = result.report.energy.to_dict()
    data["outputs"] = {name: np.asarray(value).tolist() for name, value in result.outputs.items()}
    return data if stats is None else data | {"stats": result.stats}


def _text(result: Result, stats: str | None) -> str:
    lines = [] if result.loss is None else [f"loss    {result.loss:.6g}"]
    for name, value in result.outputs.items():
        array = np.asarray(value)
        lines.append(f"output  {name} {list(array.shape)} {np.array2string(array.reshape(-1)[:10], precision=5)}")
    if result.report.timed:
        lines.append(f"cycles  {result.cycles}")
        lines.append(f"energy  {result.energy_pj / 1e6:.3f} uJ ({result.report.energy.summary})")
    for item in result.report.nonfinite:
        lines.append(f"not finite: {item.count} results of {item.mnemonic} at {item.where}")
    return "\n".join(lines + (stats_lines(result) if stats else []))


def stats_lines(result: Result) -> list[str]:
    """Return the counters as text: engines, memories, executed instructions, energy."""
    report = result.report
    lines = [f"instructions  {report.instructions} fetched, {report.dispatched} dispatched"]
    lines.append(f"bound         {report.bound} cycles, makespan / bound {report.cycles / max(report.bound, 1):.2f}")
    for engine, busy in report.busy.items():
        lines.append(f"busy          {engine:<8} {busy:>12} cycles {busy / max(report.cycles, 1):6.1%}")
    for memory in sorted(report.bytes_read.keys() | report.bytes_written.keys()):
        read, written = report.bytes_read.get(memory, 0), report.bytes_written.get(memory, 0)
        lines.append(f"memory        {memory:<8} {read:>12} bytes read {written:>12} bytes written")
    for mnemonic, count in sorted(report.executed.items()):
        lines.append(f"executed      {mnemonic:<8} {count:>12}")
    for part, energy in report.energy.parts_pj.items():
        lines.append(f"energy        {part:<8} {energy / 1e6:>12.3f} uJ")
    lines.append(f"profile       {report.energy.profile}")
    return lines + [f"assumption    {text}" for text in report.energy.assumptions]
