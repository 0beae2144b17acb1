"""The manual in docs/ is the generator's output and names everything in the table."""

import json
from pathlib import Path

import pytest

from h2learn.backends.h2learn import isa, manual

PAGE = Path(__file__).parents[2] / "docs" / "isa.md"


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == manual.page(), (
        "run: python -m h2learn.backends.h2learn.manual docs/isa.md"
    )


@pytest.mark.parametrize("row", isa.INSTRUCTIONS, ids=lambda row: row.mnemonic)
def test_every_field_stands_in_its_section(row: isa.Instruction) -> None:
    section = manual.page().split(f"### {row.mnemonic}\n")[1].split("\n##")[0]
    assert row.doc in section
    assert row.action in section
    for field in row.fields:
        start = isa.field_offset(row, field.name)
        assert f"| `{field.name}` | {start}-{start + field.bits - 1} | {field.kind.value} |" in section


def test_every_descriptor_field_is_described() -> None:
    page = manual.page()
    for descriptor in isa.DESCRIPTORS:
        section = page.split(f"### {descriptor.name}: ")[1].split("\n##")[0]
        for number, field in enumerate(descriptor.fields):
            assert f"| {number} | `{field.name}` |" in section


def test_json_holds_the_table() -> None:
    table = json.loads(manual.table_json())
    assert table["hash"] == isa.isa_hash()
    assert [row["mnemonic"] for row in table["instructions"]] == list(isa.BY_MNEMONIC)
    assert table["layout"]["fe.run"]["init"] == isa.field_offset(isa.BY_MNEMONIC["fe.run"], "init")
