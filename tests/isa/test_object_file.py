"""ELF files: readable by others, deterministic, and refused with one sentence when anything is wrong."""

import io
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from h2learn.backends.h2learn.assembler import assemble, disassemble
from h2learn.backends.h2learn.encoder import decode_program
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.object_file import ObjectFile, Symbol, read_object, write_object

SMALL = """
.io {"name": "w", "role": "parameter", "symbol": "w", "dtype": "f32", "shape": [2, 1], "view": [], "perm": []}
.io {"name": "s", "role": "output", "symbol": "s", "dtype": "bits", "shape": [2, 9], "view": [], "perm": []}
.rodata 0x1000
.hex 01020304
.data 0x2000
.hex 0000803f00000040
.bss 0x3000, 4096
.symbol "w", data, 0x2000, 8
.symbol "s", bss, 0x3000, 4
.text
addr a1, W, 0
addr a2, DRAM, 0x2000
cfg x0.run, 8
.loc "net.snn:1:1", "t"
ld dst=a1, src=a2, y=a0, x=a0, desc=x0
loop 3
  v.pool dst=a1, src=a2, idx=a0, y=a0, x=a0, desc=p1
endl
.endloc
halt
"""


@pytest.fixture(scope="module")
def small() -> ObjectFile:
    return assemble(SMALL)


def test_pyelftools_reads_what_was_written(small: ObjectFile) -> None:
    elf = ELFFile(io.BytesIO(write_object(small)))
    assert elf["e_machine"] == 0x4832
    assert elf.get_section_by_name(".text").data() == small.text
    assert elf.get_section_by_name(".data").data() == small.data
    assert elf.get_section_by_name(".bss")["sh_size"] == 4096
    symbol = elf.get_section_by_name(".symtab").get_symbol_by_name("w")[0]
    assert (symbol["st_value"], symbol["st_size"], symbol["st_info"]["type"]) == (0x2000, 8, "STT_OBJECT")
    loads = [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
    assert [(s["p_vaddr"], s["p_filesz"], s["p_memsz"]) for s in loads] == [
        (0x1000, 4, 4), (0x2000, 8, 8), (0x3000, 0, 4096),
    ]  # fmt: skip
    assert all(s["p_offset"] % 0x1000 == 0 for s in loads)
    note = next(s for s in elf.iter_segments() if s["p_type"] == "PT_NOTE")
    assert [n["n_name"] for n in note.iter_notes()] == ["h2learn"]


@pytest.mark.skipif(shutil.which("readelf") is None, reason="binutils is not installed")
@pytest.mark.parametrize("empty", [False, True])
def test_readelf_prints_no_warning(small: ObjectFile, empty: bool, tmp_path: Path) -> None:
    assemble("halt\n").save(tmp_path / "x.h2x") if empty else small.save(tmp_path / "x.h2x")
    done = subprocess.run(["readelf", "-aW", str(tmp_path / "x.h2x")], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "arning" not in done.stdout
    assert "h2learn" in done.stdout


def test_file_is_deterministic_and_mappable(small: ObjectFile, tmp_path: Path) -> None:
    small.save(tmp_path / "x.h2x")
    contents = (tmp_path / "x.h2x").read_bytes()
    assert contents == write_object(small) == write_object(read_object(tmp_path / "x.h2x"))
    offset = ELFFile(io.BytesIO(contents)).get_section_by_name(".data")["sh_offset"]
    assert np.memmap(tmp_path / "x.h2x", "<f4", "r", offset, (2,)).tolist() == [1.0, 2.0]
    assert [p.name for p in tmp_path.iterdir()] == ["x.h2x"]


def test_unwritable_target_leaves_nothing(small: ObjectFile, tmp_path: Path) -> None:
    with pytest.raises(H2LearnError, match="cannot write"):
        small.save(tmp_path / "missing" / "x.h2x")
    (tmp_path / "folder.h2x").mkdir()
    with pytest.raises(H2LearnError, match="cannot write"):
        small.save(tmp_path / "folder.h2x")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.h2x"]


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(H2LearnError, match="no such file"):
        read_object(tmp_path / "no.h2x")
    with pytest.raises(H2LearnError, match="not a file"):
        read_object(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": b"123"}, "multiple of 16"),
        ({"bss_size": 1 << 60}, "past the"),
        ({"bases": {"rodata": 0x1000, "data": 0x1000, "bss": 0x3000}}, "overlap"),
        ({"bases": {"rodata": 0x1000, "data": 0x2004, "bss": 0x3000}}, "must be a page"),
        ({"bases": {"rodata": 0, "data": 0x2000, "bss": 0x3000}}, "must be a page"),
        ({"locations": [(0, 99, "a", "")]}, "location table"),
        ({"locations": [(0, 2, "a", ""), (2, 3, "a", "")]}, "location table"),
        ({"symbols": {}}, "there is no symbol 'w'"),
        ({"symbols": {"w": Symbol("w", 0x2004, 8, "data")}}, "reaches outside"),
    ],
)
def test_inconsistent_objects_are_refused(small: ObjectFile, change: dict[str, object], message: str) -> None:
    with pytest.raises(H2LearnError, match=message):
        write_object(replace(small, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"isa_hash": "0"}, "instruction set version"),
        ({"machine_hash": "0"}, "the hash of machine 'h2l-v0'"),
        ({"machine": {"name": 3}}, "expected a string"),
        ({"format": 2}, "format"),
        ({"batch": 0}, "positive batch"),
        ({"batch": True}, "batch"),
        ({"gradient_scale": -1.0}, "gradient_scale"),
        ({"precision": "fp8"}, "fp8"),
        ({"io": [3]}, "io table"),
    ],
)
def test_wrong_notes_are_refused(small: ObjectFile, change: dict[str, object], message: str) -> None:
    with pytest.raises(H2LearnError, match=message):
        write_object(replace(small, note=small.note | change))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dtype", "f64"),
        ("role", "x"),
        ("shape", [3, 1]),
        ("shape", [0]),
        ("shape", "2"),
        ("perm", [0, 0]),
        ("symbol", "q"),
    ]
    + [("name", None), ("view", [-1, -1]), ("shadow", "q"), ("shadow", 3), ("shadow_plane", 1)],
)
def test_wrong_io_entries_are_refused(small: ObjectFile, key: str, value: object) -> None:
    io_table = [small.note["io"][0] | {key: value}]
    with pytest.raises(H2LearnError, match="io"):
        write_object(replace(small, note=small.note | {"io": io_table}))


def with_copy(small: ObjectFile, **change: object) -> ObjectFile:
    """Return an object file whose first io entry is 2 x 4 numbers with a storage copy of 16 bytes."""
    base = small.bases["bss"]
    symbols = small.symbols | {
        "w": Symbol("w", base, 32, "bss"),
        "copy": Symbol("copy", base, 16, "bss"),
        "short": Symbol("short", base, 15, "bss"),
    }
    entry = {"name": "w", "role": "parameter", "symbol": "w", "dtype": "f32", "shape": [2, 4], "view": [], "perm": []}
    io = [entry | {"shadow": "copy", "shadow_plane": 2} | change]
    return replace(small, bss_size=max(small.bss_size, 64), symbols=symbols, note=small.note | {"io": io})


def test_a_storage_copy_may_lie_in_planes(small: ObjectFile) -> None:
    assert read_object(write_object(with_copy(small))).note["io"][0]["shadow_plane"] == 2


@pytest.mark.parametrize("plane", [0, -2, 3, 8, True, 2.0, "2", [2], {}])
def test_planes_that_do_not_fit_the_parameter_are_refused(small: ObjectFile, plane: object) -> None:
    with pytest.raises(H2LearnError, match="io 'w': shadow_plane must divide the channels"):
        write_object(with_copy(small, shadow_plane=plane))


def test_a_storage_copy_must_have_room(small: ObjectFile) -> None:
    with pytest.raises(H2LearnError, match="io 'w' does not fit its storage copy 'short'"):
        write_object(with_copy(small, shadow="short"))


def loads_or_is_refused(contents: bytes) -> bool:
    try:
        obj = read_object(contents)
        decode_program(obj.text)
    except H2LearnError as error:
        assert "\n" not in error.message
        return False
    assert write_object(assemble(disassemble(obj))) == write_object(obj)
    return True


def test_every_truncation_is_refused(small: ObjectFile) -> None:
    contents = write_object(small)
    ends = [*range(0, len(contents), max(1, len(contents) // 500)), len(contents) - 1]
    assert not any(loads_or_is_refused(contents[:end]) for end in ends)
    assert loads_or_is_refused(contents)


def test_mutated_files_load_or_are_refused(small: ObjectFile) -> None:
    contents = write_object(small)
    interesting = np.flatnonzero(np.frombuffer(contents, np.uint8))
    rng = np.random.default_rng(7)
    loaded = 0
    for _ in range(10_000):
        mutant = bytearray(contents)
        for _ in range(int(rng.integers(1, 4))):
            near = int(rng.choice(interesting)) + int(rng.integers(-2, 3))
            at = min(max(near, 0), len(mutant) - 1)
            mutant[at] = (mutant[at] ^ 1 << int(rng.integers(8))) if rng.integers(2) else int(rng.integers(256))
        loaded += loads_or_is_refused(bytes(mutant))
    assert 0 < loaded < 10_000


@pytest.mark.parametrize("text", [b"", b"\x7fELF", b"hello" * 100, b"\x7fELF\x02\x01\x01" + bytes(9) + b"\xff" * 400])
def test_other_files_are_refused(text: bytes) -> None:
    assert not loads_or_is_refused(text)


@pytest.mark.parametrize("old", [b'"batch":1', b'"view":[]', b'"shape":[2,1]'])
@pytest.mark.parametrize("new", ["NaN", "1e999", "9" * 30, "[" * 3000, '"\\ud800"', '{"a":1}'])
def test_strange_json_is_refused(small: ObjectFile, old: bytes, new: str) -> None:
    contents = write_object(small)
    start = contents.index(b'{"batch"')
    size = int.from_bytes(contents[start - 16 : start - 12], "little")
    key = old.partition(b":")[0]
    text = contents[start : start + size].replace(old, key + b":" + new.encode())[:size].ljust(size)
    with pytest.raises(H2LearnError):
        read_object(contents[:start] + text + contents[start + size :])
