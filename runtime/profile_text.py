"""A profile as text: engines, phases, layers, roofline, energy with its assumptions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .profile import Part, ProgramProfile

_LEGEND = """\
cycles: from the first start to the last end of the part; parts overlap, so they do not add up to the whole.
SOP: spikes times fan-out. AC: additions of look-ups and table building. MAC: products of the backward engine.
roofline: work per cycle against min(engine peak, intensity * DRAM bandwidth); intensity in work per DRAM byte.
H2Learn-style machine; micro-architecture parameters are ours."""

_ROOF_COLUMNS = ("layer", "phase", "engine", "work", "intensity", "ridge", "attainable", "achieved", "limit")


def profile_text(profile: ProgramProfile) -> str:
    """Return a profile as text: engines, phases, layers, roofline, energy with its assumptions."""
    lines = [
        f"{profile.program}: {'training step' if profile.training else 'inference'} on {profile.machine},"
        f" {profile.precision}, batch {profile.batch}, T = {profile.time_steps}",
        f"{profile.cycles:,} cycles ({profile.cycles / profile.clock_hz * 1e6:,.1f} us), bound {profile.bound:,},"
        f" makespan / bound {profile.cycles / max(profile.bound, 1):.2f}",
        *(f"note: {note}" for note in profile.notes),
    ]
    lines += ["", *_table(("engine", "busy", "share", "efficiency", "stalls by cause"), _engine_rows(profile))]
    columns = ("cycles", "busiest", "DRAM bytes", "on-chip bytes", "energy uJ", "dense MAC", "SOP", "AC", "MAC")
    lines += ["", *_table(("phase", *columns), [(part.phase, *_cost(part)) for part in profile.phases])]
    lines += ["", *_table(("layer", "phase", *columns), [(_name(p), p.phase, *_cost(p)) for p in profile.layers])]
    seen = [
        (_name(part), part.phase, f"{part.eta:.2f}" if part.eta is not None else "", _shares(part.densities))
        for part in profile.layers
        if part.densities
    ]
    lines += ["", *_table(("layer", "phase", "BE eta", "densities seen"), seen)] if seen else []
    lines += ["", *_table(_ROOF_COLUMNS, _roof_rows(profile.layers))]
    lines += ["", f"energy {profile.total.total_pj / 1e6:.3f} uJ, profile {profile.energy.profile}: " + ", ".join(
        f"{name} {value / 1e6:.3f}" for name, value in profile.total.energy_pj.items()
    )]  # fmt: skip
    lines += [f"  {text}" for text in profile.energy.assumptions]
    return "\n".join([*lines, "", _LEGEND])


def _name(part: Part) -> str:
    place = part.source.rpartition("/")[2]
    return f"{part.layer} {place}".strip() or "-"


def _cost(part: Part) -> tuple[str, ...]:
    on_chip = sum(part.bytes_read.values()) + sum(part.bytes_written.values()) - part.dram_bytes
    busiest, busy = max(part.busy.items(), key=lambda item: item[1], default=("-", 0))
    counts = (part.operations.get(n, 0) for n in ("dense_macs", "synaptic_operations", "accumulates", "macs"))
    return (
        f"{part.last_cycle - part.first_cycle:,}",
        f"{busiest} {busy:,}",
        f"{part.dram_bytes:,}",
        f"{on_chip:,}",
        f"{part.total_pj / 1e6:.3f}",
        *(f"{count:,}" for count in counts),
    )


def _shares(densities: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {share:.3f}" for name, share in densities.items())


def _engine_rows(profile: ProgramProfile) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, share in profile.utilisation.items():
        efficiency = profile.total.efficiency.get(name)
        causes = dict(sorted(profile.total.stalls.get(name, {}).items(), key=lambda item: -item[1]))
        if profile.idle.get(name):
            causes["idle"] = profile.idle[name]
        text = ", ".join(f"{cause} {cycles:,}" for cause, cycles in causes.items())
        busy = profile.total.busy.get(name, 0)
        rows.append((name, f"{busy:,}", f"{share:.1%}", "" if efficiency is None else f"{efficiency:.1%}", text))
    if profile.front_end_stalls:
        text = ", ".join(f"{cause} {cycles:,}" for cause, cycles in profile.front_end_stalls.items())
        rows.append(("front end", "", "", "", text))
    return rows


def _roof_rows(parts: Iterable[Part]) -> list[tuple[str, ...]]:
    return [
        (
            _name(part),
            part.phase,
            roof.engine,
            f"{roof.work:,} {roof.unit}",
            "-" if roof.intensity is None else f"{roof.intensity:.3f}",
            f"{roof.ridge:.3f}",
            f"{roof.attainable:,.1f}",
            f"{roof.achieved:,.1f}",
            roof.limit,
        )
        for part in parts
        for roof in part.roofline
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
