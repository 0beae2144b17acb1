"""The energy profiles: complete, sourced, related as they say; and what a bad file is told."""

import pytest

from h2learn import H2LearnError
from h2learn.backends.h2learn.energy_profile import UNITS, load_profile, profile_names
from h2learn.backends.h2learn.machine import load_machine
from h2learn.runtime.energy import energy_of

ARITHMETIC = ("fp32_add", "fp32_multiply", "fp16_multiply", "compare", "select")


@pytest.mark.parametrize("name", profile_names())
def test_every_constant_has_value_unit_node_and_source(name):
    profile = load_profile(name)
    assert profile.name == name and tuple(profile.constants) == tuple(UNITS)
    for key, constant in profile.constants.items():
        assert constant.value > 0 and constant.unit == UNITS[key], key
        assert len(constant.source) > 20 and any(char.isalpha() for char in constant.source), key
    assert all(key in line for key, line in zip(UNITS, profile.sources, strict=True))


def test_the_28_nm_arithmetic_is_the_45_nm_table_scaled():
    new, old = load_profile("28nm-hbm2"), load_profile("45nm-horowitz")
    for key in ARITHMETIC:
        assert new[key] == pytest.approx(0.51 * old[key]), key
    assert old["sram_read"] == 20 / 64 and old["table_read"] == 10 / 64 and old["dram_read"] == 640 / 32


def test_a_base_is_replaced_one_constant_at_a_time():
    base, narrow = load_profile("28nm-hbm2"), load_profile("28nm-lpddr4")
    changed = {key for key in UNITS if base[key] != narrow[key]}
    assert changed == {"dram_read", "dram_write"} and narrow["dram_read"] == 512 / 64


def test_the_stems_profile_is_its_published_figures():
    profile = load_profile("zigzag-stems")
    assert profile["dram_read"] == 700 / 64 and profile["dram_write"] == 750 / 64
    assert profile["fp32_add"] == pytest.approx(0.07 * 32 / 4)
    assert profile["fp16_multiply"] == pytest.approx(0.07 * (16 / 4) ** 2)


def test_reads_and_writes_of_dram_have_their_own_energy():
    machine = load_machine("h2l-v0")
    report = energy_of(machine, 2, {}, {"DRAM": 100}, {"DRAM": 10}, load_profile("zigzag-stems"))
    assert report.parts_pj["DRAM"] == pytest.approx(8 * (100 * 700 + 10 * 750) / 64)
    assert report.profile == "zigzag-stems" and "zigzag-stems" in report.summary
    assert "not scaled" in report.assumptions[-1]
    assert "not scaled" not in energy_of(machine, 2, {}, {}, {}).assumptions[-1]


HEAD = 'name = "mine"\ndescription = "mine"\nnode_nm = 28\nbase = "28nm-hbm2"\n'
ADD = '[constants.fp32_add]\nvalue = 1.0\nunit = "pJ"\nnode_nm = 28\nsource = "a measurement"\n'


def test_a_file_of_the_user(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(HEAD + ADD)
    assert load_profile(file)["fp32_add"] == 1.0 and load_profile(str(file)).name == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + ADD.replace('source = "a measurement"\n', ""), "value, unit, node_nm and source"),
        (HEAD + ADD.replace("a measurement", " "), "expected a text for 'source'"),
        (HEAD + ADD.replace("1.0", "-1.0"), "at least 0"),
        (HEAD + ADD.replace("1.0", "nan"), "at least 0"),
        (HEAD + ADD.replace('"pJ"', '"nJ"'), "expected the unit pJ"),
        (HEAD + ADD.replace("fp32_add", "fp64_add"), "unknown constant"),
        (HEAD.replace('base = "28nm-hbm2"\n', "") + ADD, "is missing"),
        (HEAD.replace("28nm-hbm2", "other"), "no base profile"),
        (HEAD + "color = 3\n", "unknown key"),
        ("name = ", "cannot read"),
    ],
)
def test_a_bad_file_is_told_why(tmp_path, text, message):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(H2LearnError, match=message):
        load_profile(file)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(H2LearnError, match=r"^cannot read the energy profile: no such file or directory$"):
        load_profile(tmp_path / "none.toml")


def test_an_unknown_name():
    with pytest.raises(H2LearnError, match="there is no energy profile 'x'") as error:
        load_profile("x")
    assert "28nm-hbm2" in error.value.hint
