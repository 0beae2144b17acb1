"""Showing how training goes: a bar per epoch on a terminal, a line per epoch anywhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

import click

from h2learn.runtime.events import advance
from h2learn.runtime.jit import is_kept
from h2learn.training import Epoch, Step


def note_first_run() -> None:
    """Say why the first run after an installation takes long: it compiles the simulator's kernels."""
    if not is_kept(advance):
        click.echo("note: compiling the simulator's kernels, which the first run alone does (about a minute)", err=True)


class EpochBars:
    """Observer of training: a progress bar for the running epoch, and ``describe(epoch)`` when it is done."""

    def __init__(self, epochs: int, describe: Callable[[Epoch], str], quiet: bool = False) -> None:
        self._epochs = epochs
        self._describe = describe
        self._quiet = quiet
        self._bar: Any = None

    def __enter__(self) -> EpochBars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __call__(self, event: Step | Epoch) -> None:
        """Show a step or an epoch."""
        if self._quiet or (isinstance(event, Step) and not sys.stderr.isatty()):
            return
        if isinstance(event, Epoch):
            self._close()
            click.echo(f"epoch {event.number + 1}/{self._epochs}  {self._describe(event)}", err=True)
            return
        if self._bar is None:
            label = f"epoch {event.epoch + 1}/{self._epochs}"
            self._bar = click.progressbar(length=event.batches, label=label, show_pos=True, file=sys.stderr)
            self._bar.__enter__()
            self._bar.update(event.batch - 1)
        self._bar.label = f"epoch {event.epoch + 1}/{self._epochs} loss {event.loss:.3f} accuracy {event.accuracy:.1%}"
        self._bar.update(1)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        self._bar = None


def epoch_text(epoch: Epoch) -> str:
    """Return one line: loss, accuracy, and of an epoch that was timed cycles and energy."""
    tested = "" if epoch.test_accuracy is None else f"  test {epoch.test_accuracy:.2%}"
    line = f"loss {epoch.loss:.4f}  accuracy {epoch.accuracy:.2%}{tested}"
    if not epoch.cycles:
        return line
    energy = epoch.energy_pj / epoch.samples / 1e6
    return f"{line}  {epoch.cycles / epoch.samples:,.0f} cycles and {energy:.2f} uJ per sample"
