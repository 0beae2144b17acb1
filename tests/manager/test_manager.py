import io
from dataclasses import dataclass
from pathlib import Path

import pytest
from xdsl.context import Context
from xdsl.dialects import arith, builtin, func
from xdsl.ir import Operation
from xdsl.passes import ModulePass

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.diagnostics import InternalError, verify_module
from h2learn.compiler.manager import ManagerOptions, PassManager, module_text, timing_table
from h2learn.compiler.opt import parse_module
from h2learn.compiler.universe import new_context

TEXT = """
func.func @main(%a: i32) -> i32 {
  %b = arith.addi %a, %a : i32
  func.return %b : i32
}
"""


def _find(module: builtin.ModuleOp, name: str) -> Operation:
    return next(op for op in module.walk() if op.name == name)


@dataclass(frozen=True)
class NothingPass(ModulePass):
    name = "test-nothing"

    def apply(self, ctx: Context, op: builtin.ModuleOp) -> None:
        pass


@dataclass(frozen=True)
class RenamePass(ModulePass):
    name = "test-rename"
    to: str = "other"

    def apply(self, ctx: Context, op: builtin.ModuleOp) -> None:
        function = _find(op, "func.func")
        assert isinstance(function, func.FuncOp)
        function.sym_name = builtin.StringAttr(self.to)


@dataclass(frozen=True)
class CrashPass(ModulePass):
    name = "test-crash"

    def apply(self, ctx: Context, op: builtin.ModuleOp) -> None:
        RenamePass("half-done").apply(ctx, op)
        raise KeyError("no such layer")


@dataclass(frozen=True)
class BreakPass(ModulePass):
    """Uses the sum before it is computed, which xDSL's own verifier accepts."""

    name = "test-break"

    def apply(self, ctx: Context, op: builtin.ModuleOp) -> None:
        add = _find(op, "arith.addi")
        early = arith.AddiOp(add.results[0], add.results[0])
        early.location = add.location
        block = add.parent_block()
        assert block is not None
        block.insert_op_before(early, add)


def run(passes: list[ModulePass], **options: object) -> tuple[builtin.ModuleOp, str]:
    stream = io.StringIO()
    module = parse_module(TEXT, "net.mlir")
    PassManager(passes, ManagerOptions(**options), stream).run(new_context(), module)  # type: ignore[arg-type]
    return module, stream.getvalue()


def test_prints_before_and_after_the_named_pass() -> None:
    _, text = run([NothingPass(), RenamePass()], print_before=frozenset({"test-rename"}), print_after=frozenset({"*"}))
    titles = [line for line in text.splitlines() if line.startswith("// -----")]
    assert titles == [
        "// ----- IR after test-nothing -----",
        "// ----- IR before test-rename -----",
        "// ----- IR after test-rename -----",
    ]
    assert text.count("@main") == 2 and text.count("@other") == 1


def test_prints_only_changes() -> None:
    _, text = run([NothingPass(), RenamePass(), NothingPass()], print_after_change=True)
    assert text.count("// ----- IR after") == 1 and "IR after test-rename" in text


def test_dumps_numbered_files_with_locations(tmp_path: Path) -> None:
    run([NothingPass(), RenamePass()], dump_folder=tmp_path / "ir")
    names = sorted(file.name for file in (tmp_path / "ir").iterdir())
    assert names == ["00-input.mlir", "01-test-nothing.mlir", "02-test-rename.mlir"]
    dumped = (tmp_path / "ir" / "02-test-rename.mlir").read_text()
    assert 'loc("net.mlir":3:3)' in dumped and "@other" in dumped


def test_time_passes_prints_a_table() -> None:
    _, text = run([NothingPass(), RenamePass()], time_passes=True)
    assert [line.split()[0] for line in text.splitlines()] == ["pass", "test-nothing", "test-rename", "total"]
    assert timing_table([("a", 0.001), ("b", 0.003)]).splitlines()[1].split() == ["a", "1.00", "25.0%"]


def test_a_crash_leaves_the_program_before_it_and_the_rest_of_the_pipeline(tmp_path: Path) -> None:
    with pytest.raises(InternalError) as caught:
        run([NothingPass(), CrashPass(), RenamePass("late")], reproducer_folder=tmp_path)
    assert caught.value.pass_name == "test-crash" and isinstance(caught.value.__cause__, KeyError)
    assert caught.value.reproducer is not None
    text = caught.value.reproducer.read_text()
    assert 'pipeline: "test-crash,test-rename{to=\\"late\\"}"' in text
    assert "half-done" not in text
    assert module_text(parse_module(text, "again")) == module_text(parse_module(TEXT, "net.mlir"))


def test_verify_each_blames_the_pass_for_a_use_before_the_definition(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match=r"invalid after test-break.*used before it is defined at net.mlir:"):
        run([BreakPass()], reproducer_folder=tmp_path)
    run([BreakPass()], verify_each=False)


def test_check_is_called_with_the_program_before_and_after() -> None:
    seen: list[tuple[str, bool, bool]] = []

    def check(name: str, before: builtin.ModuleOp, after: builtin.ModuleOp) -> str:
        seen.append((name, "@main" in module_text(before), "@other" in module_text(after)))
        return "fine"

    _, text = run([RenamePass()], check=check)
    assert seen == [("test-rename", True, True)] and text == "check test-rename: fine\n"


def test_a_verifier_error_names_operation_and_place() -> None:
    text = "func.func @main(%a: i32) -> i64 {\n  func.return %a : i32\n}\n"
    with pytest.raises(H2LearnError) as caught:
        verify_module(parse_module(text, "bad.mlir"))
    assert caught.value.render().startswith("bad.mlir:2:3: error: func.return: Expected arguments")
