"""``h2learn baseline``: what a model costs on a GPU, estimated."""

from __future__ import annotations

import json
from typing import Any

import click

from h2learn.backends import gpu
from h2learn.backends.gpu.roofline import PRECISIONS, STYLES

from .model import read_model
from .options import import_options


@click.command()
@click.argument("model")
@click.option("--batch", default=32, show_default=True, help="Samples per step.")
@click.option("--device", default="v100", show_default=True, metavar="NAME", help=f"One of {', '.join(gpu.DEVICES)}.")
@click.option("--inference", is_flag=True, help="The forward pass alone instead of a training step.")
@click.option("--layers", is_flag=True, help="Also print every layer and phase.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@import_options
def baseline(
    model: str, batch: int, device: str, inference: bool, layers: bool, as_json: bool, reading: dict[str, Any]
) -> None:
    """Estimate a step of MODEL on a GPU: eager and fused, fp32 and mixed precision, with ranges.

    A roofline estimate; nothing is run, and its assumptions are printed.
    """
    found = gpu.device_named(device)
    shapes = gpu.layers_of(read_model(model, batch, None, reading).module)
    steps = [
        gpu.baseline(shapes, found, style, precision, training=not inference)
        for style in STYLES
        for precision in PRECISIONS
    ]
    if as_json:
        click.echo(json.dumps([step.to_dict() for step in steps], indent=2))
        return
    click.echo(f"{model} on {found.name}, {'inference' if inference else 'training step'}, batch {batch}")
    for step in steps:
        click.echo(_line(step))
        for row in step.rows if layers else ():
            low, high = row.seconds.low * 1e6, row.seconds.high * 1e6
            click.echo(f"    {row.layer:<16} {row.phase:<10} {low:10.1f} - {high:.1f} us, {row.limit}")
    texts = dict.fromkeys(text for step in steps for text in step.assumptions)
    click.echo("\n".join(f"  {text}" for text in texts))


def _line(step: gpu.Baseline) -> str:
    time, energy, rate = step.seconds, step.joules, step.sustained_flops
    return (
        f"  {step.style:<6} {step.precision:<5} {time.low * 1e3:9.3f} - {time.high * 1e3:.3f} ms"
        f"   {energy.low:.4f} - {energy.high:.4f} J   {rate.low / 1e12:.3f} - {rate.high / 1e12:.3f} dense TFLOPS"
    )
