"""``h2learn arch``: machine descriptions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict

import click

from h2learn.backends.h2learn import area, energy_profile, machine


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
@click.option("--area", "with_area", is_flag=True, help="Estimate its area from its parts instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, with_area: bool, as_json: bool) -> None:
    """Show the machine NAME (a name, or the path of a TOML file)."""
    found = machine.load_machine(name)
    if with_area:
        report = area.area_of(found)
        click.echo(json.dumps(report.to_dict(), indent=2) if as_json else area.area_text(report))
        return
    if as_json:
        click.echo(json.dumps(found.to_dict() | {"hash": found.hash}, indent=2))
        return
    rows = [*_rows(found.to_dict()), ("hash", found.hash)]
    width = max(len(key) for key, _ in rows)
    for key, value in rows:
        click.echo(f"{key:<{width}}  {value}")


@arch.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def profiles(name: str | None, as_json: bool) -> None:
    """List the energy profiles, or show the constants of the profile NAME (or TOML file) with their sources."""
    found = [energy_profile.load_profile(one) for one in ([name] if name else energy_profile.profile_names())]
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=2))
        return
    for one in found:
        click.echo(f"{one.name}: {one.description}")
        for text in one.sources if name else ():
            click.echo(f"  {text}")


def _rows(data: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
