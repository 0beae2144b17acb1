"""Where a run's cycles, bytes and energy went: per layer and phase, per engine, with a roofline.

Instructions are grouped by the source and the stage label of the location table (``forward c1``). The first words of a
label give its phase; what has no such label gets the phase of its instructions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from h2learn.backends.h2learn.energy_profile import EnergyProfile
from h2learn.backends.h2learn.isa import ENGINES
from h2learn.backends.h2learn.machine import Machine

from .counters import PcCounters, RunReport, add_counts
from .energy import EnergyReport, energy_of, profile_for
from .loader import LoadedProgram

SCHEMA = "h2learn-profile/1"
PHASES = ("forward", "backward", "weights", "optimizer", "other")
_PHASE_OF_STAGE = {
    "encode": "forward",
    "constants": "forward",
    "constants gradient": "weights",
    "dropout": "forward",
    "dropout gradient": "backward",
    "forward": "forward",
    "neuron": "forward",
    "statistics": "forward",
    "deviation": "forward",
    "normalise": "forward",
    "norm sums": "backward",
    "norm gradient": "backward",
    "pool": "forward",
    "sum": "forward",
    "convert": "forward",
    "concat": "forward",
    "slice": "backward",
    "embed": "forward",
    "extract": "weights",
    "readout": "forward",
    "loss": "backward",
    "gradient": "backward",
    "backward": "backward",
    "unpool": "backward",
    "readout gradient": "backward",
    "gradient sum": "backward",
    "time sum": "backward",
    "weights": "weights",
    "bias": "weights",
    "optimizer": "optimizer",
}
_PHASE_OF_MNEMONIC = {
    "v.opt": "optimizer",
    "wu.run": "weights",
    "be.wgt": "weights",
    "be.run": "backward",
    "v.grad": "backward",
    "v.tune": "weights",
    "v.unpool": "backward",
    "v.loss": "backward",
    "v.spread": "backward",
    "fe.fill": "forward",
    "fe.run": "forward",
    "be.fwd": "forward",
    "v.lif": "forward",
    "v.pool": "forward",
    "v.rng": "forward",
    "v.drop": "forward",
    "v.reduce": "forward",
    "v.map": "forward",
    "v.pack": "forward",
    "v.stat": "forward",
    "v.fold": "forward",
    "v.norm": "forward",
}
"""In the order of precedence: a stage of several instructions has the phase of the first that it contains."""

_UNITS = {"FE": "look-ups", "FE.fill": "entries", "BE": "MACs", "WUE": "look-ups", "VEC": "elements"}
_BACKWARD_ENGINE = ("be.fwd", "be.run", "be.wgt")


@dataclass(frozen=True)
class Roof:
    """One engine in one part of the program, on the roofline. ``work`` and rates are in ``unit`` (per cycle).

    ``intensity``: work per DRAM byte (None: no DRAM traffic); ``ridge``: the intensity above which the engine and not
    the DRAM limits; ``attainable`` = min(peak, intensity * DRAM bytes per cycle); ``achieved``: work per cycle of the
    part's span, from its first start to its last end.
    """

    engine: str
    unit: str
    work: int
    peak: float
    intensity: float | None
    ridge: float
    attainable: float
    achieved: float
    limit: str


@dataclass(frozen=True)
class Part:
    """A group of instructions: one layer in one phase, a whole phase, or the whole program.

    ``busy``: engine (``DRAM``: the channel) -> cycles; ``efficiency``: engine -> work done / (busy cycles * peak);
    ``eta``: products / (cycles of the busiest processing element * multipliers) of the backward engine, start-up left
    out; ``stalls``: engine -> cause -> cycles; ``bytes_*``: memory -> bytes; ``energy_pj``: part of the chip -> pJ.
    ``operations``: ``dense_macs`` (what a dense machine would multiply and add), ``synaptic_operations`` (spikes times
    their fan-out, forward and weight update), ``accumulates`` (additions done by FE and WUE, table building included),
    ``macs`` (done by BE), ``lookups``, ``vector_elements``. ``densities``: shares of values that are not zero.
    """

    layer: str
    source: str
    phase: str
    stages: tuple[str, ...]
    first_cycle: int
    last_cycle: int
    busy: dict[str, int]
    efficiency: dict[str, float]
    eta: float | None
    stalls: dict[str, dict[str, int]]
    bytes_read: dict[str, int]
    bytes_written: dict[str, int]
    energy_pj: dict[str, float]
    operations: dict[str, int]
    densities: dict[str, float]
    roofline: tuple[Roof, ...]

    @property
    def total_pj(self) -> float:
        """Energy of the part in pJ."""
        return sum(self.energy_pj.values())

    @property
    def dram_bytes(self) -> int:
        """Bytes to and from DRAM."""
        return self.bytes_read.get("DRAM", 0) + self.bytes_written.get("DRAM", 0)


@dataclass(frozen=True)
class ProgramProfile:
    """A profiled run. ``utilisation``: engine -> busy cycles / cycles; ``idle``: engine -> cycles neither busy nor lost
    to a stall that has a cause (before its first and after its last instruction).
    """

    program: str
    machine: str
    precision: str
    batch: int
    time_steps: int
    training: bool
    clock_hz: float
    cycles: int
    bound: int
    utilisation: dict[str, float]
    idle: dict[str, int]
    front_end_stalls: dict[str, int]
    total: Part
    phases: tuple[Part, ...]
    layers: tuple[Part, ...]
    energy: EnergyReport
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; ``schema`` names its version."""
        data = asdict(self) | {"schema": SCHEMA, "energy": self.energy.to_dict()}
        return {"schema": data.pop("schema"), **data}


def profile_run(
    program: LoadedProgram, report: RunReport, energies: EnergyProfile | None = None, notes: Sequence[str] = ()
) -> ProgramProfile:
    """Return the profile of one run of a program; ``energies``: those of the run (default: the machine's)."""
    builder = _Builder(program, report, energies or profile_for(program.machine))
    total = builder.part("", "", "all", report.by_pc)
    stalls = {engine: sum(causes.values()) for engine, causes in total.stalls.items()}
    note = program.note
    return ProgramProfile(
        program=program.name,
        machine=program.machine.name,
        precision=str(note.get("precision", "fp32")),
        batch=int(note.get("batch", 1)),
        time_steps=int(note.get("time_steps", 1)),
        training=bool(note.get("training", False)),
        clock_hz=program.machine.clock_hz,
        cycles=report.cycles,
        bound=report.bound,
        utilisation={name: busy / max(report.cycles, 1) for name, busy in report.busy.items()},
        idle={
            name: max(0, report.cycles - busy - stalls.get(name, 0))
            for name, busy in report.busy.items()
            if name in ENGINES
        },
        front_end_stalls=dict(report.stalls.get("CTRL", {})),
        total=total,
        phases=builder.phases(),
        layers=builder.layers(),
        energy=report.energy,
        notes=tuple(notes),
    )


class _Builder:
    """Groups the instructions of a run and adds them up."""

    def __init__(self, program: LoadedProgram, report: RunReport, energies: EnergyProfile) -> None:
        self.machine = program.machine
        self.energies = energies
        self.item_bytes = 2 if program.note.get("precision") == "fp16" else 4
        self.peaks = _peaks(program.machine)
        self.posters = _posters(program)
        self.labels = _stage_labels(program)
        self.counters = report.by_pc
        self.dense = _dense_macs(report.by_pc)
        by_stage: dict[tuple[str, str], list[PcCounters]] = {}
        for item in self.counters:
            by_stage.setdefault((item.source, self.labels[item.pc]), []).append(item)
        self.stages = {key: (_phase(key[1], items), items) for key, items in by_stage.items()}

    def phases(self) -> tuple[Part, ...]:
        """Return the phases that did something, in their order."""
        parts = []
        for phase in PHASES:
            items = [item for found, group in self.stages.values() if found == phase for item in group]
            parts.append(self.part("", "", phase, items))
        return tuple(part for part in parts if part.last_cycle >= 0)

    def layers(self) -> tuple[Part, ...]:
        """Return every layer in every phase, in program order."""
        names: dict[str, str] = {}
        groups: dict[tuple[str, str], list[PcCounters]] = {}
        for (source, label), (phase, items) in self.stages.items():
            names[source] = names.get(source) or _layer_name(label)
            groups.setdefault((source, phase), []).extend(items)
        parts = (self.part(names[source], source, phase, items) for (source, phase), items in groups.items())
        return tuple(part for part in parts if part.last_cycle >= 0)

    def part(self, layer: str, source: str, phase: str, items: Sequence[PcCounters]) -> Part:
        """Add up a group of instructions."""
        busy: dict[str, int] = {}
        stalls: dict[str, dict[str, int]] = {}
        read: dict[str, int] = {}
        written: dict[str, int] = {}
        work: dict[str, dict[str, int]] = {}
        for item in items:
            if item.busy:
                add_counts(busy, {item.engine: item.busy})
            if item.channel_busy:
                add_counts(busy, {"DRAM": item.channel_busy})
            if item.stalls:
                named = {self._cause(cause): 0 for cause in item.stalls}
                for cause, cycles in item.stalls.items():
                    named[self._cause(cause)] += cycles
                add_counts(stalls.setdefault(item.engine.partition(".")[0], {}), named)
            add_counts(read, item.bytes_read)
            add_counts(written, item.bytes_written)
            if item.work:
                add_counts(work.setdefault(item.mnemonic, {}), item.work)
            for memory, count in _SAVED.items():
                if item.mnemonic == "v.lif" and memory in item.bytes_written:
                    add_counts(work["v.lif"], {count: item.work["elements"]})
            if item.mnemonic == "v.lif" and "counted" in item.work:
                add_counts(work["v.lif"], {"spiking_elements": item.work["counted"]})
        _leave_out_halos(work, items, self.dense)
        first = min((item.first_cycle for item in items if item.first_cycle >= 0), default=-1)
        last = max((item.last_cycle for item in items), default=-1)
        energy = energy_of(self.machine, self.item_bytes, work, read, written, self.energies).parts_pj
        done = _engine_work(work)
        return Part(
            layer=layer,
            source=source,
            phase=phase,
            stages=tuple(dict.fromkeys(label for item in items if (label := self.labels[item.pc]))),
            first_cycle=first,
            last_cycle=last,
            busy=busy,
            efficiency={
                name: done[name] / (cycles * self.peaks[name]) for name, cycles in busy.items() if name in done
            },
            eta=_eta(work, self.peaks["BE"]),
            stalls={name: dict(sorted(causes.items())) for name, causes in sorted(stalls.items())},
            bytes_read=dict(sorted(read.items())),
            bytes_written=dict(sorted(written.items())),
            energy_pj={name: value for name, value in energy.items() if value},
            operations=_operations(work),
            densities=_densities(work),
            roofline=self._roofs(done, read.get("DRAM", 0) + written.get("DRAM", 0), last - first),
        )

    def _roofs(self, done: Mapping[str, int], dram_bytes: int, span: int) -> tuple[Roof, ...]:
        bandwidth = self.machine.dram.bytes_per_cycle
        roofs = []
        for engine, work in done.items():
            if not work:
                continue
            peak = self.peaks[engine]
            intensity = work / dram_bytes if dram_bytes else None
            attainable = peak if intensity is None else min(peak, intensity * bandwidth)
            roofs.append(
                Roof(
                    engine,
                    _UNITS[engine],
                    work,
                    peak,
                    intensity,
                    peak / bandwidth,
                    attainable,
                    work / max(span, 1),
                    engine if attainable == peak else "DRAM",
                )
            )
        return tuple(roofs)

    def _cause(self, cause: str) -> str:
        kind, _, number = cause.partition(" ")
        return f"waits for {self.posters.get(int(number), 'nobody')}" if kind == "semaphore" else cause


def _posters(program: LoadedProgram) -> dict[int, str]:
    """Return semaphore -> the engines that post it."""
    found: dict[int, set[str]] = {}
    for item in program.code:
        if item.mnemonic == "signal":
            found.setdefault(item.fields["sem"], set()).add(ENGINES[item.fields["engine"]])
    return {number: " or ".join(sorted(names)) for number, names in found.items()}


def _stage_labels(program: LoadedProgram) -> list[str]:
    """Return the stage of every instruction; what stands between stages joins its neighbour of the same source."""
    labels = [program.stage(pc) for pc in range(len(program.code))]
    sources = [program.source(pc) for pc in range(len(program.code))]
    for order in (range(len(labels) - 2, -1, -1), range(1, len(labels))):
        towards = 1 if order.step < 0 else -1
        for pc in order:
            if not labels[pc] and sources[pc] == sources[pc + towards]:
                labels[pc] = labels[pc + towards]
    return labels


def _phase(label: str, items: Iterable[PcCounters]) -> str:
    words = label.split()
    for length in (2, 1):
        phase = _PHASE_OF_STAGE.get(" ".join(words[:length]))
        if phase is not None:
            return phase
    used = {item.mnemonic for item in items}
    return next((phase for mnemonic, phase in _PHASE_OF_MNEMONIC.items() if mnemonic in used), "other")


def _layer_name(label: str) -> str:
    """Return the layer in a stage label: what follows the kind; a number alone only counts stages.

    The optimizer's stages are named after parameters, ``layer.weight``.
    """
    words = label.split()
    rest = words[2:] if " ".join(words[:2]) in _PHASE_OF_STAGE else words[1:]
    name = rest[0] if rest and not rest[0].isdigit() else ""
    return name.rpartition(".")[0] or name if words and words[0] == "optimizer" else name


def _peaks(machine: Machine) -> dict[str, float]:
    """Return work per cycle at best, in the unit of each engine."""
    return {
        "FE": machine.forward.lanes,
        "FE.fill": machine.forward.builder_entries,
        "BE": machine.backward.elements * machine.backward.width,
        "WUE": machine.weight_update.lanes_k * machine.weight_update.lanes_c,
        "VEC": machine.vector.lanes,
    }


def _engine_work(work: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    skips = "lane_cycles" in work.get("fe.run", {})
    return {
        "FE": _sum(work, "adds" if skips else "lookups", "fe.run"),
        "FE.fill": _sum(work, "entries", "fe.fill"),
        "BE": _sum(work, "macs", *_BACKWARD_ENGINE),
        "WUE": _sum(work, "lookups", "wu.run"),
        "VEC": sum(counts.get("elements", 0) for mnemonic, counts in work.items() if mnemonic.startswith("v.")),
    }


def _operations(work: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    look_ups = ("fe.run", "wu.run")
    found = {
        "dense_macs": _sum(work, "dense_products", *look_ups, *_BACKWARD_ENGINE),
        "synaptic_operations": _sum(work, "synaptic_operations", *look_ups),
        "accumulates": _sum(work, "adds", "fe.fill", *look_ups) + _sum(work, "table_adds", "wu.run"),
        "macs": _sum(work, "macs", *_BACKWARD_ENGINE),
        "lookups": _sum(work, "lookups", *look_ups),
        "vector_elements": _engine_work(work)["VEC"],
    }
    return {name: count for name, count in found.items() if count}


_DENSITIES = (
    ("input_spikes", "spikes", "inputs", ("fe.run", "wu.run")),
    ("output_spikes", "spikes", "spiking_elements", ("v.lif",)),
    ("surrogate_mask", "masked_in", "masked_elements", ("v.lif",)),
    ("real_inputs", "live_inputs", "dense_inputs", ("be.fwd", "be.wgt")),
    ("gradients_into_BE", "live_inputs", "dense_inputs", ("be.run",)),
    ("outputs_of_BE", "live_outputs", "dense_outputs", ("be.run",)),
    ("products_of_BE", "products", "dense_products", ("be.run",)),
    ("gradients_into_WUE", "live_inputs", "dense_inputs", ("wu.run",)),
    ("gradients", "live_outputs", "elements", ("v.grad",)),
)
"""Name, live count, count of all, instructions."""
_SAVED = {"S": "spiking_elements", "M": "masked_elements"}
"""Memory that ``v.lif`` writes bits to when it fires or saves its mask -> what its elements then count as."""


def _densities(work: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    found = {}
    for name, live, dense, mnemonics in _DENSITIES:
        whole, part = _sum(work, dense, *mnemonics), _sum(work, live, *mnemonics)
        if whole:
            found[name] = part / whole
    return found


def _dense_macs(counters: Iterable[PcCounters]) -> dict[str, int]:
    """Return source -> multiply-accumulates of its dense convolution, from its forward pass or its weight update."""
    found: dict[str, dict[str, int]] = {}
    for item in counters:
        way = {"fe.run": "forward", "be.fwd": "forward", "wu.run": "weights", "be.wgt": "weights"}.get(item.mnemonic)
        if way is not None and item.work:
            add_counts(found.setdefault(item.source, {}), {way: item.work["dense_products"]})
    return {source: min(ways.values()) for source, ways in found.items()}


def _leave_out_halos(work: Mapping[str, dict[str, int]], items: Iterable[PcCounters], dense: Mapping[str, int]) -> None:
    """Make the dense counts of ``be.run`` those of its layer's convolution.

    The engine also meets the zeros around a gradient tile, which for a layer behind a flattened map are nearly all.
    """
    met: dict[str, dict[str, int]] = {}
    for item in items:
        if item.mnemonic == "be.run" and item.source in dense:
            counted = {name: item.work.get(name, 0) for name in ("dense_inputs", "dense_products")}
            add_counts(met.setdefault(item.source, {}), counted)
    for source, counts in met.items():
        own, width = dense[source], counts["dense_products"] / max(counts["dense_inputs"], 1)
        add_counts(
            work["be.run"],
            {
                "dense_products": own - counts["dense_products"],
                "dense_inputs": round(own / max(width, 1)) - counts["dense_inputs"],
            },
        )


def _eta(work: Mapping[str, Mapping[str, int]], multipliers: float) -> float | None:
    cycles = _sum(work, "pe_cycles", *_BACKWARD_ENGINE)
    return _sum(work, "macs", *_BACKWARD_ENGINE) / (cycles * multipliers) if cycles else None


def _sum(work: Mapping[str, Mapping[str, int]], name: str, *mnemonics: str) -> int:
    return sum(work[mnemonic].get(name, 0) for mnemonic in mnemonics if mnemonic in work)
