"""Area of a machine from its parts: published cell areas times counts, widened by overheads that are guesses.

Micro-architecture parameters are ours, so the result is a range and not a layout. It is never fitted to the paper.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .machine import Machine

NODE_NM = 28
V100_MM2 = 815.0
PAPER_RATIO = 7.38
PAPER_MM2 = V100_MM2 / PAPER_RATIO
"""What the paper's ratio means against a V100 of 815 mm²: 110.4 mm²."""


@dataclass(frozen=True)
class AreaConstant:
    """A figure between ``low`` and ``high`` in ``unit``, and where it comes from (``guess``: nowhere but here)."""

    low: float
    high: float
    unit: str
    source: str
    guess: bool = False


_HOROWITZ = (
    "M. Horowitz, ISSCC 2014, 45 nm, x0.38 to 28 nm (A. Stillmaker and B. Baas, Integration 58, 2017); weak: the areas"
    " are quoted second-hand"
)
_CACTI = "CACTI 7 (Balasubramonian et al., TACO 2017), own run, 28 nm high performance, one 128-bit port: {}"

CONSTANTS: dict[str, AreaConstant] = {
    "fp32_add": AreaConstant(1590.0, 1590.0, "um2", f"4184 um2 at 45 nm, {_HOROWITZ}"),
    "fp32_multiply": AreaConstant(2926.0, 2926.0, "um2", f"7700 um2 at 45 nm, {_HOROWITZ}"),
    "fp16_multiply": AreaConstant(623.0, 623.0, "um2", f"1640 um2 at 45 nm, {_HOROWITZ}"),
    "register_bit": AreaConstant(
        2.9,
        5.98,
        "um2",
        "5.98 um2 per bit at 40 nm, Aladdin (Shao et al., ISCA 2014); low end x0.49 by the node's square",
    ),
    "sram_bank": AreaConstant(0.185, 0.185, "mm2 per 128 KB", _CACTI.format("128 KB bank 0.185 mm2")),
    "sram_small_bank": AreaConstant(0.0107, 0.0107, "mm2 per 8 KB", _CACTI.format("8 KB bank 0.0107 mm2")),
    "table_bank": AreaConstant(0.0021, 0.0021, "mm2 per 1 KB", _CACTI.format("1 KB bank 0.0021 mm2")),
    "sram_overhead": AreaConstant(1.1, 1.5, "times", "crossbars, redundancy and test logic of banked SRAM", True),
    "logic_overhead": AreaConstant(
        2.0,
        3.5,
        "times",
        "control, wiring, clock tree and unused cell area of a placed design over its arithmetic",
        True,
    ),
    "lane_register_bits": AreaConstant(
        96.0, 192.0, "bits per lane", "pipeline registers and an accumulator of 3 to 6 words of 32 bits per lane", True
    ),
    "hbm2_phy": AreaConstant(10.0, 16.0, "mm2 per stack", "PHY and controller of a 256 GB/s HBM2 stack", True),
    "lpddr4_phy": AreaConstant(3.0, 6.0, "mm2", "PHY and controller of a 25.6 GB/s LPDDR4 channel", True),
    "control": AreaConstant(2.0, 8.0, "mm2", "front end, queues, semaphores, DMA engines, host interface", True),
}
"""Every figure the area rests on."""

HBM2_STACK_BYTES_PER_SECOND = 256e9
LPDDR4_BYTES_PER_SECOND = 25.6e9
NARROW_BYTES_PER_SECOND = 64e9


@dataclass(frozen=True)
class AreaPart:
    """One part of the chip in mm², between ``low`` and ``high``, and what it consists of."""

    name: str
    low: float
    high: float
    contents: str


@dataclass(frozen=True)
class AreaReport:
    """Area of a machine: parts, their sum, and every assumption."""

    machine: str
    parts: tuple[AreaPart, ...]
    assumptions: tuple[str, ...]

    @property
    def low_mm2(self) -> float:
        """Sum of the low ends."""
        return sum(part.low for part in self.parts)

    @property
    def high_mm2(self) -> float:
        """Sum of the high ends."""
        return sum(part.high for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "machine": self.machine,
            "low_mm2": self.low_mm2,
            "high_mm2": self.high_mm2,
            "paper_mm2": PAPER_MM2,
            "parts": [asdict(part) for part in self.parts],
            "assumptions": list(self.assumptions),
        }


def area_of(machine: Machine) -> AreaReport:
    """Return the area of a machine at 28 nm from its parts; multipliers take fp16 operands, all sums are fp32."""
    multipliers = machine.backward.elements * machine.backward.width
    update_lanes = machine.weight_update.lanes_k * machine.weight_update.lanes_c
    update_adders = (2**machine.weight_update.fan_in - 1 - machine.weight_update.fan_in) * machine.weight_update.lanes_k
    vector = machine.vector.lanes
    memory = machine.sram_kib
    kib = memory.W + memory.S + memory.U + memory.G + memory.M + memory.A
    parts = (
        _sram("SRAM", kib, f"{kib} KB in banks of {'128' if kib >= 128 else '8'} KB"),
        _tables(memory.L),
        _logic("FE", machine.forward.lanes, machine.forward.lanes + machine.forward.builder_entries, 0, 0),
        _logic("BE", multipliers, multipliers, multipliers, 0),
        _logic("WUE", update_lanes, update_lanes + update_adders, 0, 0),
        _logic("VEC", vector, 2 * vector, 0, 2 * vector),
        _dram(machine),
        AreaPart("control", CONSTANTS["control"].low, CONSTANTS["control"].high, "front end, queues, DMA"),
    )
    assumptions = [
        f"{NODE_NM} nm; a bottom-up estimate of a machine whose micro-architecture parameters are ours, not a layout",
        *(f"{name} {_figure(one)}: {'guess: ' if one.guess else ''}{one.source}" for name, one in CONSTANTS.items()),
    ]
    if machine.node_nm != NODE_NM:
        assumptions.append(f"the machine is {machine.node_nm} nm; nothing was scaled to that node")
    return AreaReport(machine.name, parts, tuple(assumptions))


def area_text(report: AreaReport) -> str:
    """Return a report as text: parts, sum, the paper's figure, assumptions."""
    lines = [f"{part.name:<8} {part.low:7.2f} - {part.high:7.2f} mm2  {part.contents}" for part in report.parts]
    lines.append(f"{'total':<8} {report.low_mm2:7.2f} - {report.high_mm2:7.2f} mm2")
    where = "inside" if report.low_mm2 <= PAPER_MM2 <= report.high_mm2 else "outside"
    lines.append(
        f"the paper's ratio of {PAPER_RATIO} against a V100 ({V100_MM2:g} mm2 at 12 nm) means {PAPER_MM2:.1f} mm2,"
        f" {where} this range; its node and contents are not public"
    )
    return "\n".join(lines + [f"  {text}" for text in report.assumptions])


def _sram(name: str, kib: int, contents: str) -> AreaPart:
    bank, size = (CONSTANTS["sram_bank"], 128) if kib >= 128 else (CONSTANTS["sram_small_bank"], 8)
    overhead, banks = CONSTANTS["sram_overhead"], -(-kib // size)
    return AreaPart(name, banks * bank.low * overhead.low, banks * bank.high * overhead.high, contents)


def _tables(kib: int) -> AreaPart:
    bank, overhead = CONSTANTS["table_bank"], CONSTANTS["sram_overhead"]
    return AreaPart(
        "tables", kib * bank.low * overhead.low, kib * bank.high * overhead.high, f"{kib} KB in banks of 1 KB"
    )


def _logic(name: str, lanes: int, adders: int, half_multipliers: int, multipliers: int) -> AreaPart:
    cells = adders * CONSTANTS["fp32_add"].low + half_multipliers * CONSTANTS["fp16_multiply"].low
    cells += multipliers * CONSTANTS["fp32_multiply"].low
    bits, bit, overhead = CONSTANTS["lane_register_bits"], CONSTANTS["register_bit"], CONSTANTS["logic_overhead"]
    low = (cells + lanes * bits.low * bit.low) * overhead.low / 1e6
    high = (cells + lanes * bits.high * bit.high) * overhead.high / 1e6
    counts = (("fp32 adders", adders), ("fp16 multipliers", half_multipliers), ("fp32 multipliers", multipliers))
    return AreaPart(name, low, high, ", ".join(f"{count} {kind}" for kind, count in counts if count))


def _dram(machine: Machine) -> AreaPart:
    rate = machine.dram.bytes_per_cycle * machine.clock_hz
    if rate < NARROW_BYTES_PER_SECOND:
        kind, unit, phy = "LPDDR4 channels", LPDDR4_BYTES_PER_SECOND, CONSTANTS["lpddr4_phy"]
    else:
        kind, unit, phy = "HBM2 stacks", HBM2_STACK_BYTES_PER_SECOND, CONSTANTS["hbm2_phy"]
    count = int(-(-rate // unit))
    return AreaPart("DRAM", count * phy.low, count * phy.high, f"{count} {kind} for {rate / 1e9:g} GB/s")


def _figure(one: AreaConstant) -> str:
    return f"{one.low:g} {one.unit}" if one.low == one.high else f"{one.low:g}-{one.high:g} {one.unit}"
