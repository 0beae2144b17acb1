"""``h2learn arch``: machine descriptions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import click

from h2learn.backends.h2learn import machine


@click.group()
def arch() -> None:
    """List and show machine descriptions."""


@arch.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List the machines that come with the package."""
    machines = [machine.load_machine(name) for name in machine.names()]
    if as_json:
        click.echo(json.dumps({one.name: one.description for one in machines}, indent=2))
        return
    width = max(len(one.name) for one in machines)
    for one in machines:
        click.echo(f"{one.name:<{width}}  {one.description}")


@arch.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, as_json: bool) -> None:
    """Show the machine NAME (a name, or the path of a TOML file)."""
    found = machine.load_machine(name)
    if as_json:
        click.echo(json.dumps(found.to_dict() | {"hash": found.hash}, indent=2))
        return
    rows = [*_rows(found.to_dict()), ("hash", found.hash)]
    width = max(len(key) for key, _ in rows)
    for key, value in rows:
        click.echo(f"{key:<{width}}  {value}")


def _rows(data: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
