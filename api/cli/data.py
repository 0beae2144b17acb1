"""``h2learn data``: what a file of images or events holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from h2learn.data import Events, holds_events, load_events, load_npz


@click.group()
def data() -> None:
    """Look at files of images and events."""


@data.command()
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(file: str, as_json: bool) -> None:
    """Say what FILE (.npz, .h5) holds: samples, classes, sizes; for events their number, polarities and durations."""
    if holds_events(file):
        halves = {half: _events(events) for half, events in load_events(file).items()}
        found: dict[str, Any] = {"file": Path(file).name, "kind": "events", "halves": halves}
    else:
        images = load_npz(file)
        parts = {"train": (images.x_train, images.y_train), "test": (images.x_test, images.y_test)}
        shape = list(images.x_train.shape[1:])
        halves = {half: {"samples": len(x), "shape": shape, "labels": _labels(y)} for half, (x, y) in parts.items()}
        found = {"file": Path(file).name, "kind": "images", "halves": halves}
    click.echo(json.dumps(found, indent=2) if as_json else _text(found))


def _events(events: Events) -> dict[str, Any]:
    return {
        "samples": len(events),
        "events": int(events.offset[-1]),
        "size": list(events.size),
        "polarities": sorted(int(p) for p in np.unique(events.p)),
        "events_per_sample": _spread(events.counts),
        "duration_ms": _spread(events.durations_us / 1000),
        "labels": _labels(events.label),
    }


def _spread(values: Any) -> list[float]:
    """Return the smallest, the middle and the largest value."""
    return [float(np.min(values)), float(np.median(values)), float(np.max(values))]


def _labels(labels: Any) -> dict[str, int]:
    return {str(int(label)): int(count) for label, count in zip(*np.unique(labels, return_counts=True), strict=True)}


def _text(found: dict[str, Any]) -> str:
    lines = [f"{found['file']}: {found['kind']}"]
    for half, facts in found["halves"].items():
        lines.append(f"{half}: {facts['samples']} samples of {len(facts['labels'])} classes")
        if "shape" in facts:
            lines.append(f"  shape       {' x '.join(map(str, facts['shape']))}")
        else:
            rows, columns = facts["size"]
            lines.append(
                f"  events      {facts['events']} on {rows} x {columns} pixels, polarities {facts['polarities']}"
            )
            lines.append(
                "  per sample  {:.0f} to {:.0f} events, median {:.0f}".format(*_ends_first(facts["events_per_sample"]))
            )
            lines.append(
                "  duration    {:.1f} to {:.1f} ms, median {:.1f} ms".format(*_ends_first(facts["duration_ms"]))
            )
        lines.append("  labels      " + ", ".join(f"{label}: {count}" for label, count in facts["labels"].items()))
    return "\n".join(lines)


def _ends_first(spread: list[float]) -> tuple[float, float, float]:
    low, middle, high = spread
    return low, high, middle
