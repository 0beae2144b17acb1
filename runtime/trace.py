"""Timeline of a run in the Chrome trace format, which Perfetto opens: one track per engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from h2learn.backends.h2learn.atomic_file import replace_file
from h2learn.backends.h2learn.errors import H2LearnError, why
from h2learn.backends.h2learn.isa import ENGINES

from .loader import LoadedProgram

TRACKS = tuple(track for engine in ENGINES for track in ((engine, "FE.fill") if engine == "FE" else (engine,)))
"""The engines in order; the table builder of FE beside its look-up lanes."""


class Span(NamedTuple):
    """One executed instruction: cycles ``start`` to ``end`` on ``track``."""

    track: str
    start: int
    end: int
    pc: int
    iterations: tuple[int, ...]


def chrome_trace(program: LoadedProgram, spans: Sequence[Span]) -> dict[str, Any]:
    """Return the trace as JSON data; times are microseconds at the machine's clock, cycles stand in ``args``."""
    used = {span.track for span in spans}
    tracks = {name: number for number, name in enumerate(TRACKS, start=1) if name in used}
    scale = 1e6 / program.machine.clock_hz
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": f"{program.machine.name}: {program.name}"}}
    ]
    for name, number in tracks.items():
        events.append({"ph": "M", "name": "thread_name", "pid": 1, "tid": number, "args": {"name": name}})
    for span in spans:
        mnemonic = program.code[span.pc].mnemonic
        source = program.source(span.pc)
        events.append(
            {
                "ph": "X",
                "name": f"{mnemonic} {source}" if source else mnemonic,
                "cat": mnemonic,
                "pid": 1,
                "tid": tracks[span.track],
                "ts": span.start * scale,
                "dur": (span.end - span.start) * scale,
                "args": {
                    "where": program.describe(span.pc, span.iterations),
                    "stream": program.streams[span.pc],
                    "cycle": span.start,
                    "cycles": span.end - span.start,
                },
            }
        )
    return {"displayTimeUnit": "ns", "traceEvents": events}


def write_trace(path: str | Path, program: LoadedProgram, spans: Sequence[Span]) -> None:
    """Write the trace file atomically; raises H2LearnError when it cannot be written."""
    text = json.dumps(chrome_trace(program, spans), separators=(",", ":"))
    try:
        replace_file(path, text.encode())
    except OSError as error:
        raise H2LearnError(f"cannot write the trace: {why(error)}", location=str(path)) from error
