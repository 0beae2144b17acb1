"""``h2learn demo``: the whole road on handwritten digits."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import click

from h2learn.backends.h2learn.energy_profile import EnergyProfile
from h2learn.checkpoints import write_parameters
from h2learn.compiler.driver import Recipe, compile_to, emit_program
from h2learn.compiler.manager import ManagerOptions
from h2learn.data import DataSet, load_digits
from h2learn.files import check_folder, write_atomic
from h2learn.models import load_model
from h2learn.program import Execution, Program, Result
from h2learn.training import History, train

from .model import Target, target_options
from .options import profile_option
from .progress import EpochBars, epoch_text, note_first_run

MODEL = "digits.snn"
EPOCHS = 6
BATCH = 32


@click.command()
@click.option("--output-dir", default="h2learn-demo", show_default=True, help="Where the files go.")
@click.option("--epochs", default=EPOCHS, show_default=True, help="Passes over the 1,348 training images.")
@click.option("--batch", default=BATCH, show_default=True, help="Samples per step.")
@click.option("--limit", type=int, help="Use only the first so many training images.")
@click.option("--seed", default=0, show_default=True, help="Seed of the sample order.")
@target_options
@profile_option
def demo(
    output_dir: str,
    epochs: int,
    batch: int,
    limit: int | None,
    seed: int,
    target: Target,
    profile: EnergyProfile | None,
) -> None:
    """Train a small convolutional spiking network on 8x8 handwritten digits.

    The network is compiled to accelerator instructions, and every training step executes them on the simulator. The
    binary, the IR after every pass, a timeline and the trained parameters stay in the output folder.
    """
    folder = check_folder(output_dir)
    data = load_digits().limited(limit)
    source = folder / MODEL
    write_atomic(source, resources.files("h2learn.data").joinpath(MODEL).read_bytes())
    model = load_model(source)
    click.echo(f"{source}: {sum(v.size for v in model.parameters.values())} parameters, {len(data.x_train)} images")
    note_first_run()
    with EpochBars(epochs, epoch_text) as bars:
        history = train(
            model,
            data,
            epochs,
            batch=batch,
            arch=target.arch,
            precision=target.precision,
            mapping=target.mapping,
            seed=seed,
            observe=bars,
            profile=profile,
        )
    step = history.step
    step.save(folder / "digits.h2x")
    recipe = Recipe(target.arch, target.precision, model.train, target.mapping)
    sized = model.with_batch(batch)
    module = compile_to(sized, recipe, options=ManagerOptions(dump_folder=folder / "ir"))
    assert emit_program(sized, module, recipe).text == step.object_file.text
    write_parameters(folder / "parameters.safetensors", history.parameters)
    traced = _traced_step(step, history, data, profile, folder / "trace.json")
    write_atomic(folder / "history.json", json.dumps([asdict(epoch) for epoch in history.epochs], indent=2) + "\n")
    click.echo(_report(history, traced, folder))


def _traced_step(step: Program, history: History, data: DataSet, profile: EnergyProfile | None, path: Path) -> Result:
    """Run one more training step from the trained parameters, with a timeline and all sanitizers."""
    name = next(name for name in step.inputs if name != "label")
    inputs = {name: data.x_train[: step.batch], "label": data.y_train[: step.batch]}
    with step.session(execution=Execution(trace=True), profile=profile) as session:
        session.set_parameters(history.parameters)
        result = session.run(inputs)
        session.write_trace(path)
    return result


def _report(history: History, result: Result, folder: Path) -> str:
    step, last = history.step, history.epochs[-1]
    report = result.report
    held_out = f"{last.test_accuracy:.2%}" if last.test_accuracy is not None else "not evaluated"
    busy = "  ".join(f"{name} {cycles / max(report.cycles, 1):.1%}" for name, cycles in report.busy.items())
    rate = last.samples / last.cycles * step.machine.clock_hz
    energy = last.energy_pj / last.samples / 1e6
    lines = [
        "",
        f"test accuracy        {held_out} of 449 held-out images",
        f"program              {len(step.loaded.code)} instructions for {step.machine.name}, {step.precision},"
        f" batch {step.batch}, T = {step.time_steps}",
        f"executed per step    {report.instructions} instructions ({report.dispatched} by engines)",
        f"cycles per sample    {last.cycles / last.samples:,.0f} ({rate:,.0f} training samples per second at"
        " the machine's clock)",
        f"busy share           {busy}",
        f"makespan / bound     {report.cycles / max(report.bound, 1):.2f}",
        f"energy per sample    {energy:.3f} uJ, energy profile {report.energy.profile}:",
        *(f"                     {text}" for text in report.energy.assumptions),
        "",
        f"binary               {folder / 'digits.h2x'} (h2learn objdump shows it)",
        f"IR after every pass  {folder / 'ir'}",
        f"timeline             {folder / 'trace.json'} (open in ui.perfetto.dev)",
        f"parameters           {folder / 'parameters.safetensors'}",
        f"history              {folder / 'history.json'}",
    ]
    return "\n".join(lines)
