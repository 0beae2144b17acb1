"""The command line: what needs no simulator."""

import io
import json
import os
from pathlib import Path

import pytest

from h2learn.cli import COMMANDS, run
from h2learn.files import check_folder, check_writable, write_atomic

NET = """network tiny
input image: 1 x 4 x 4
time steps: 2
encode direct
neuron: lif(decay 0.5, threshold 1.0, reset hard, spike at u >= threshold)
conv c1: 3 channels, kernel 3 x 3, padding 1
lif n1
flatten
linear f1: 4 features
lif n2
readout rate
train: loss mse_rate, optimizer sgd(lr 0.1)
init: normal gain 2.0 seed 1
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "tiny.snn").write_text(NET)
    return str(tmp_path / "tiny.snn")


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), ["arch", "show"], ["arch", "list"]])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    code, out, _ = call(capsys, *command, "--help")
    assert code == 0 and out.startswith(f"Usage: {' '.join(['h2learn', *command])}")


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys)
    assert code == 1 and err.startswith("Usage: h2learn") and "  compile " in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version")[:2] == (0, "h2learn 0.1.0\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["opt", "--nonsense"],
        ["compile", "no-such-file.snn"],
        ["compile", "model.xyz"],
        ["import", "."],
        ["disasm", "no-such-file.h2x"],
        ["run", "no-such-file.h2x"],
        ["arch", "show", "h2l-v9"],
        ["arch", "show", "no-such-file.toml"],
        ["arch", "show", "h2l-v0:forward.skip_zero_patterns"],
        ["arch", "show", "h2l-v0:forward.skip_zero_patterns=1"],
        ["arch", "show", "h2l-v0:forward.skipping=true"],
        ["arch", "show", "h2l-v0:sideways.lanes=1"],
        ["arch", "show", "h2l-v0:forward.lanes=1, 2"],
        ["arch", "show", "h2l-v9:forward.lanes=1"],
        ["opt", "-p", "h2l-nothing", os.devnull],
        ["opt", "-p", "h2l-train{", os.devnull],
        ["opt", "--print-ir-after", "h2l-nothing", os.devnull],
        ["opt", "--run-reproducer", os.devnull],
    ],
)
def test_bad_arguments_give_one_error_and_exit_code_1(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, out, err = call(capsys, *arguments)
    assert code == 1 and out == "" and "error: " in err
    assert "Traceback" not in err and "internal" not in err


def test_arch_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert "h2l-edge" in call(capsys, "arch", "list")[1]
    shown = json.loads(call(capsys, "arch", "show", "h2l-v0", "--json")[1])
    assert shown["forward"]["lanes"] == 2048 and len(shown["hash"]) == 16
    assert "forward.lanes" in call(capsys, "arch", "show", "h2l-v0")[1]
    changed = "h2l-v0:forward.skip_zero_patterns=true,dram.bytes_per_cycle=64.5"
    other = json.loads(call(capsys, "arch", "show", changed, "--json")[1])
    assert other.pop("hash") != shown.pop("hash")
    shown["forward"]["skip_zero_patterns"], shown["dram"]["bytes_per_cycle"] = True, 64.5
    assert other == shown | {"name": changed}


def test_import_prints_ir_that_opt_reads(capsys: pytest.CaptureFixture[str], net: str, tmp_path: Path) -> None:
    code, text, _ = call(capsys, "import", net, "--batch", "3")
    assert code == 0 and "tensor<2x3x4x4x3xi1>" in text and 'tiny.snn":6:1' in text
    (tmp_path / "tiny.mlir").write_text(text)
    code, again, _ = call(capsys, "opt", str(tmp_path / "tiny.mlir"), "--print-locations")
    assert code == 0 and again == text
    code, summary, _ = call(capsys, "import", net, "--check")
    assert code == 0 and "everything is supported" in summary


def test_import_reports_line_and_column(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.snn"
    bad.write_text(NET.replace("conv c1", "convolve c1"))
    code, out, err = call(capsys, "import", str(bad))
    assert code == 1 and out == "" and err.startswith(f"{bad}:6:") and "^" in err


def test_compile_stops_at_a_phase_and_its_pipeline_reproduces_it(
    capsys: pytest.CaptureFixture[str], net: str, tmp_path: Path
) -> None:
    options = ["--train", "bptt", "--compile-to", "engines"]
    _, text, _ = call(capsys, "compile", net, *options)
    assert "lut.wu" in text and "lut.opt" in text
    _, pipeline, _ = call(capsys, "compile", net, *options, "--print-pipeline")
    assert call(capsys, "compile", net, "-p", pipeline.strip())[1] == text
    call(capsys, "import", net, "-o", str(tmp_path / "tiny.mlir"))
    out = str(tmp_path / "out.mlir")
    assert (
        call(capsys, "opt", str(tmp_path / "tiny.mlir"), "-p", pipeline.strip(), "--print-locations", "-o", out)[0] == 0
    )
    assert Path(out).read_text() == text


def test_flags_of_the_pass_manager(capsys: pytest.CaptureFixture[str], net: str, tmp_path: Path) -> None:
    flags = ["--time-passes", "--check-each", "--print-ir-before", "h2l-train", "--dump-ir-dir", str(tmp_path / "ir")]
    code, _, err = call(capsys, "compile", net, "--train", "bptt", "--compile-to", "engines", *flags)
    assert code == 0 and "IR before h2l-train" in err and "check h2l-spike-to-lut: " in err and "total" in err
    assert len(list((tmp_path / "ir").iterdir())) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "h2l-v9"], "there is no machine 'h2l-v9'"),
        (["--precision", "fp8"], "expected precision fp32 or fp16, found 'fp8'"),
        (["--train", "hebb"], "found 'hebb'"),
        (["--batch", "0"], "0"),
        (["--batch", "-2"], "-2"),
        (["--mapping", "rows=0"], "tile limit 'rows=0'"),
        (["--mapping", "rows=²"], "tile limit 'rows=²'"),
        (["--mapping", "group=" + "9" * 5000], "tile limit 'group=999"),
        (["--mapping", "rows=2,k=8,rows=3"], "rows is given twice, as 2 and as 3"),
        (["--mapping", "fan=9"], "expected a fan-in of look-up tables from 1 to 8, found 9"),
        (["--arch", "h2l-v0:forward.fan_in=9"], "fan_in: error: expected an integer from 1 to 8, found 9"),
        (["--arch", "h2l-v0:weight_update.fan_in=9"], "fan_in: error: expected an integer from 1 to 8, found 9"),
        (["--arch", "h2l-v0:backward.width=3"], "expected an integer that is a multiple of 4 from 4 to 1048576"),
        (["--arch", "h2l-v0:backward.elements=9999"], "expected an integer from 1 to 4096, found 9999"),
        (["--arch", "h2l-v0:dram.latency_cycles=100000000000000000000"], "from 1 to 1048576"),
        (["--arch", "h2l-v0:forward=3"], "forward: error: expected a table, found 3"),
        (["--arch", "none.toml"], "none.toml: error: cannot read the machine description: no such file"),
        (["--compile-to", "nowhere"], "there is no phase 'nowhere'"),
        (["--emit", "pdf"], "there is no output 'pdf'"),
        (["-o", "/no/such/folder/x.h2x"], "cannot write here"),
        (["-o", "/"], "found a folder"),
        (["--params", "/no/such/file"], "no such file"),
    ],
)
def test_compile_refuses(capsys: pytest.CaptureFixture[str], net: str, arguments: list[str], message: str) -> None:
    code, out, err = call(capsys, "compile", net, *arguments)
    assert code == 1 and out == "" and "error: " in err and message in err and "internal" not in err


def test_an_internal_error_is_one_line_and_a_reproducer(
    capsys: pytest.CaptureFixture[str], net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from h2learn.compiler.passes.spike_to_lut import SpikeToLutPass

    def crash(self: object, ctx: object, op: object) -> None:
        raise KeyError("lost")

    arguments = ["compile", net, "--compile-to", "engines"]
    with monkeypatch.context() as patch:
        patch.setattr(SpikeToLutPass, "apply", crash)
        code, _, err = call(capsys, *arguments)
        assert (
            code == 1 and err.startswith("internal error in pass h2l-spike-to-lut: KeyError") and "Traceback" not in err
        )
        assert "Traceback" in call(capsys, "--debug", *arguments)[2]
    reproducer = err.partition("reproducer: ")[2].split()[0]
    expected = call(capsys, *arguments)[1]
    code, out, _ = call(capsys, "opt", "--run-reproducer", "--print-locations", reproducer)
    assert code == 0 and out == expected


def test_opt_reads_the_standard_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"func.func @main() {\n  func.return\n}\n// -----\nfunc.func @main() {\n  func.return\n}\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    code, out, _ = call(capsys, "opt", "--split-input-file")
    assert code == 0 and out.count("@main") == 2
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    code, _, err = call(capsys, "opt", "-")
    assert code == 1 and "<stdin>: error: expected UTF-8" in err


def test_list_passes(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "opt", "--list-passes")
    assert "h2l-train" in out and all(len(line.split()) > 2 for line in out.splitlines())


def test_interrupt_is_130(capsys: pytest.CaptureFixture[str], net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("h2learn.cli.model.load_model", interrupt)
    code, _, err = call(capsys, "import", net)
    assert code == 130 and err.strip() == "interrupted"


def test_writing_leaves_nothing_else_behind(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    check_writable(target)
    assert list(tmp_path.iterdir()) == []
    write_atomic(target, b"one")
    write_atomic(target, "two")
    assert [file.name for file in tmp_path.iterdir()] == ["out.bin"] and target.read_text() == "two"
    check_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
