"""Area of a machine from its parts, by hand; what is guessed says so."""

import json

import pytest

from h2learn.backends.h2learn.area import CONSTANTS, PAPER_MM2, area_of, area_text
from h2learn.backends.h2learn.machine import from_dict, load_machine
from h2learn.cli import run


def part(report, name):
    return next(one for one in report.parts if one.name == name)


def test_memories_are_banks_with_a_guessed_overhead():
    report = area_of(load_machine("h2l-v0"))
    sram, tables = part(report, "SRAM"), part(report, "tables")
    assert (sram.low, sram.high) == (pytest.approx(128 * 0.185 * 1.1), pytest.approx(128 * 0.185 * 1.5))
    assert (tables.low, tables.high) == (pytest.approx(1024 * 0.0021 * 1.1), pytest.approx(1024 * 0.0021 * 1.5))


def test_the_backward_engine_is_its_multipliers_adders_and_registers():
    engine = part(area_of(load_machine("h2l-edge")), "BE")
    assert engine.low == pytest.approx(256 * (1590 + 623 + 96 * 2.9) * 2.0 / 1e6)
    assert engine.high == pytest.approx(256 * (1590 + 623 + 192 * 5.98) * 3.5 / 1e6)


def test_the_dram_interface_follows_the_bandwidth():
    v0, edge = area_of(load_machine("h2l-v0")), area_of(load_machine("h2l-edge"))
    assert part(v0, "DRAM").low == 2 * CONSTANTS["hbm2_phy"].low
    assert part(edge, "DRAM").high == CONSTANTS["lpddr4_phy"].high


def test_more_lanes_are_more_area_and_nothing_else_changes():
    data = load_machine("h2l-v0").to_dict()
    data["vector"] = {"lanes": 512}
    small, large = area_of(load_machine("h2l-v0")), area_of(from_dict(data))
    assert part(large, "VEC").low == pytest.approx(2 * part(small, "VEC").low)
    assert [one for one in small.parts if one.name != "VEC"] == [one for one in large.parts if one.name != "VEC"]


def test_the_sum_its_sources_and_its_guesses():
    report = area_of(load_machine("h2l-v0"))
    assert report.low_mm2 == pytest.approx(sum(one.low for one in report.parts)) and report.low_mm2 < report.high_mm2
    assert pytest.approx(815 / 7.38) == PAPER_MM2
    text = area_text(report)
    for name, constant in CONSTANTS.items():
        line = next(line for line in text.splitlines() if line.startswith(f"  {name} "))
        assert constant.source in line and ("guess: " in line) == constant.guess
    assert "110.4 mm2" in text and "ours, not a layout" in text
    json.dumps(report.to_dict())


def test_another_node_is_said():
    data = load_machine("h2l-edge").to_dict() | {"node_nm": 12}
    assert "nothing was scaled" in area_of(from_dict(data)).assumptions[-1]


def test_the_command(capsys):
    assert run(["arch", "show", "h2l-v0", "--area"]) == 0
    assert "total" in capsys.readouterr().out
    assert run(["arch", "show", "h2l-v0", "--area", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["paper_mm2"] == pytest.approx(110.4, abs=0.05)
    assert run(["arch", "profiles"]) == 0 and "28nm-hbm2" in capsys.readouterr().out
    assert run(["arch", "profiles", "45nm-horowitz"]) == 0 and "Horowitz" in capsys.readouterr().out
