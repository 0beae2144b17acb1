"""Text of the ``tile`` dialect, and what its verifiers refuse."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from xdsl.dialects import builtin
from xdsl.parser import Parser
from xdsl.utils.exceptions import ParseError, VerifyException

from h2learn.backends.h2learn.isa import ENGINES, MEMORIES
from h2learn.compiler.autodiff.spec import SGD, Train
from h2learn.compiler.driver import Recipe, compile_to
from h2learn.compiler.manager import module_text
from h2learn.compiler.opt import OptOptions, run_opt
from h2learn.compiler.universe import new_context
from h2learn.dialects import tile
from h2learn.models import load_model

ROOT = Path(__file__).parents[2]

STAGE = Path(__file__).with_name("stage.mlir").read_text(encoding="utf-8")


def parse(text: str) -> builtin.ModuleOp:
    return Parser(new_context(), text).parse_module()


def test_what_is_written_is_what_is_read() -> None:
    module = parse(STAGE)
    module.verify()
    assert module_text(module, locations=False).strip() == STAGE.strip()


@pytest.mark.parametrize("generic", [False, True])
def test_the_generic_text_holds_the_same(generic: bool) -> None:
    module = parse(STAGE)
    again = parse(module_text(module, generic=generic))
    assert again.is_structurally_equivalent(module)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("generic", [False, True])
def test_a_lowered_training_step_survives_its_text(precision: str, generic: bool) -> None:
    model = load_model(ROOT / "examples" / "digits.snn").with_batch(2)
    recipe = Recipe(train=Train(optimizer=SGD(lr=0.1, momentum=0.9)), precision=precision, limits="rows=3,k=8")
    module = compile_to(model, recipe, "tile")
    text = module_text(module, generic=generic)
    again = parse(text)
    again.verify()
    assert again.is_structurally_equivalent(module)
    assert module_text(again, generic=generic) == text


def test_jobs_hold_the_buffers_they_use() -> None:
    ops = {op.name: op for op in parse(STAGE).walk()}
    lif, run = ops["tile.lif"], ops["tile.fe_run"]
    assert isinstance(lif, tile.LifOp) and isinstance(run, tile.FeRunOp)
    assert lif.roles() == ("acc", "par", "us", "ss", "so") and tile.unused_roles(lif) == {"uo", "mo", "cs"}
    assert lif.index("acc") == (0, (1,)) and lif.index("par") is None
    assert [(buffer.name_hint, read, written) for buffer, _, read, written in tile.touched(run)] == [
        ("acc", True, True),
        ("inputs", True, False),
        ("tables", True, False),
    ]
    assert (tile.engine_of(lif), tile.engine_of(run), tile.engine_of(ops["tile.for"])) == ("VEC", "FE", None)
    assert (tile.engine_of(ops["tile.load"]), tile.engine_of(ops["tile.wait"])) == ("DMAIN", "FE")


def test_facts_name_roles_engines_and_memories_of_the_machine() -> None:
    assert set(tile.FACTS) == {op.name for op in tile.JOBS}
    for facts in tile.FACTS.values():
        assert facts.engine in ENGINES and set(facts.reads) | set(facts.writes) == set(facts.roles)
    assert tuple(tile.MEMORIES) == MEMORIES[1:]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("in U : 1 x", "in X : 1 x", "expects a memory of W, S, U, G, M, A, L, found 'X'"),
        ("in U : 1 x", "in U : 0 x", "at least one slot, found 0"),
        ("at 0x40", "at -1", "expects an address from 0, found -1"),
        ("%n to 2", "%n to 0", "at least one trip, found 0"),
        ("wait FE, 0", "wait FEE, 0", "expects an engine of DMAIN, DMAOUT, FE, BE, WUE, VEC, found 'FEE'"),
        ("wait FE, 0", "wait FE, 0 count 0", "a token from 0 and a count from 1"),
        ("%y[%t, %n, 0, 0, 0]", "%y[%t, %n, 0, 0]", "expects 5 window starts, found 4"),
        ("sizes 1x1x8x8x32 from", "sizes 8x8x32 from", "expects 5 window sizes, found 3"),
        ("sizes 1x1x8x8x32 from", "sizes 1x1x8x4x32 from", "expects a buffer of shape (1, 1, 8, 4, 32)"),
        ("sizes 1x1x8x8x32 from", "sizes 1x1x8x16x16 from", "expects a buffer of shape (1, 1, 8, 16, 16)"),
        ("x32 from %acc", "x32 from %spikes", "the format of its tensor, f32[4x2x8x8x32], found bits"),
        ("to %par[0]", "to %par", "expects a buffer of shape (1, 32), found (4, 32)"),
        ("fan=4, imgs", "fun=4, imgs", "expects parameters ["),
        (", so=%spikes[%step]", "", "expects buffers acc, par, us, ss, so, found 4"),
        ('save_u="no"', 'save_u="yes"', "expects buffers acc, par, us, ss, so, uo, found 5"),
        ('rows <"0.0; 0.5; 1.0; 0.0">', 'rows <"0.0; 0.5; 1.0">', "f32 with 3 rows, found f32[4x32]"),
        ('rows <"0.0; 0.5; 1.0; 0.0">', 'rows <"0.0; 0.5; 1.0; 0.0 1.0">', "rows of 1 or 32 values"),
        ("tensor<bits[4x2x8x8x16]>", "tensor<bit[4x2x8x8x16]>", "expects a format of bits, u8"),
        ("2 x bits[1x1x10x10x16]", "2 x bits[1x1x0x10x16]", "expects positive sizes"),
        ("x96 by 32]", "x96]", "channels per slot exactly for slots, found 0"),
        ("f32[4x2x8x8x32]>", "f32[4x2x8x8x32 by 8]>", "channels per slot exactly for slots, found 8"),
    ],
)  # fmt: skip
def test_verifiers_refuse(old: str, new: str, message: str) -> None:
    assert STAGE.count(old) == 1
    with pytest.raises((VerifyException, ParseError), match=re.escape(message)):
        parse(STAGE.replace(old, new)).verify()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("%x[-1*%t + 3", "%x[-1*%u + 3", "the value is used before it is defined"),
        ("%x[-1*%t + 3", "%x[-1*%x + 3", "expected a value of type index"),
        ("s=%inputs,", "s=%x,", "expected a value of type tile.buffer, found !tile.tensor"),
        ("s=%inputs,", "spikes=%inputs,", "as role of a buffer"),
        ("first(%t, %step)", "first(%n1)", "the value is used before it is defined"),
    ],
)
def test_text_that_cannot_be_read(old: str, new: str, message: str) -> None:
    with pytest.raises(ParseError, match=re.escape(message)):
        parse(STAGE.replace(old, new))


STACK = """builtin.module {
  %x = tile.dram "x" : !tile.tensor<f32[4x8]>
  %y = tile.dram "y" : !tile.tensor<f32[4x8]>
  %z = tile.dram "z" : !tile.tensor<f32[4x9]>
  %both = tile.stack %x, %y
  %rows = tile.view %both : !tile.tensor<f32[2x4x8]> to !tile.tensor<f32[2x32]>
}
"""


def test_a_stack_is_its_members_with_a_leading_dimension() -> None:
    module = parse(STACK)
    module.verify()
    assert module_text(module, locations=False).strip() == STACK.strip()
    (stack,) = (op for op in module.walk() if isinstance(op, tile.StackOp))
    assert tile.placed_of(stack.result).shape == (2, 4, 8)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("stack %x, %y", "stack %x, %z", "expects tensors like the first, f32[4x8]"),
        ("stack %x, %y", "stack %x, %x", "expects tensors that are in no other stack"),
        (
            "to !tile.tensor<f32[2x32]>",
            "to !tile.tensor<f32[4x16]>",
            "expects the 2 tensors of a stack, found f32[4x16]",
        ),
        ("  %rows", "  %more = tile.stack %both\n  %rows", "expects whole tensors, found the result of tile.stack"),
        ('"x"', '"x" layout <planes of 4, units of 1>', "expects tensors of one layout"),
    ],
)
def test_stacks_that_are_refused(old: str, new: str, message: str) -> None:
    assert STACK.count(old) == 1
    with pytest.raises(VerifyException, match=re.escape(message)):
        parse(STACK.replace(old, new)).verify()


def test_counters_are_not_seen_outside_their_loop() -> None:
    outside = STAGE.replace("%y[%t, %n, 0, 0, 0]", "%y[%step, %n, 0, 0, 0]")
    with pytest.raises(ParseError, match="used before it is defined"):
        parse(outside)


def test_counters_without_an_index_are_refused() -> None:
    text = module_text(parse(STAGE), generic=True)
    wider, count = re.subn(r"#tile.indices<\[\[0, 1, 0\], \[0, 0, 1\]", "#tile.indices<[[0, 1, 0], [0, 0, 0]", text)
    assert count == 1
    with pytest.raises(VerifyException, match="a loop counter that no index uses"):
        parse(wider).verify()
    longer, count = re.subn(r"#tile.indices<\[\[0, 1, 0\], \[0, 0, 1\]", "#tile.indices<[[0, 1, 0, 9], [0, 0, 1]", text)
    assert count == 1
    with pytest.raises(VerifyException, match="more than its 2 loop counters"):
        parse(longer).verify()


def test_a_view_of_planes_keeps_their_channels() -> None:
    text = """%p = tile.dram "p" shadow "w" layout <planes of 2, units of 1> : !tile.tensor<f16[4x3x6]>
    %q = tile.view %p : !tile.tensor<f16[4x3x6]> to !tile.tensor<f16[{}]>"""
    parse(text.format("12x6")).verify()
    with pytest.raises(VerifyException, match="expects the channels of planes of 2 to stay"):
        parse(text.format("4x18")).verify()


def test_positions_lie_apart_in_maps() -> None:
    text = '%p = tile.dram "p" layout <planes of 8, units of 1, positions apart> : !tile.tensor<{}>'
    module = parse(text.format("bits[2x3x3x16]"))
    module.verify()
    assert "layout <planes of 8, units of 1, positions apart>" in str(module)
    with pytest.raises(VerifyException, match="expects maps where positions lie apart"):
        parse(text.format("f16[9x16x8]")).verify()
    view = "\n%q = tile.view %p : !tile.tensor<f16[2x3x3x16]> to !tile.tensor<f16[18x16]>"
    with pytest.raises(VerifyException, match="expects a tensor whose positions do not lie apart"):
        parse(text.format("f16[2x3x3x16]") + view).verify()


def test_constant_rows_have_no_layout() -> None:
    text = '%p = tile.dram "p" rows <"1.0; 2.0"> layout <planes of 2, units of 1> : !tile.tensor<f32[2x4]>'
    with pytest.raises(VerifyException, match="expects no layout of constant rows"):
        parse(text).verify()


def test_a_view_keeps_volume_and_plain_numbers() -> None:
    view = "%p = tile.dram {} : !tile.tensor<{}>\n%q = tile.view %p : !tile.tensor<{}> to !tile.tensor<{}>"
    parse(view.format('"p"', "f32[4x6]", "f32[4x6]", "f32[24]")).verify()
    with pytest.raises(VerifyException, match="expects equal volumes"):
        parse(view.format('"p"', "f32[4x6]", "f32[4x6]", "f32[23]")).verify()
    with pytest.raises(VerifyException, match="expects plain numbers, found bits"):
        parse(view.format('"p"', "bits[4x6]", "bits[4x6]", "bits[24]")).verify()


def test_parameters_are_finite() -> None:
    with pytest.raises(VerifyException, match="parameter width expects a finite number, found inf"):
        tile.LifOp({}, {"width": float("inf")})


@pytest.mark.parametrize("value", [1e-30, -2.5, 1e20, 0.1, 3.0, 7, -7])
def test_numbers_survive_their_text(value: float) -> None:
    module = parse(STAGE)
    lif = next(op for op in module.walk() if isinstance(op, tile.LifOp))
    lif.params = type(lif.params)(tuple({**lif.parameters(), "width": value}.items()))
    again = next(op for op in parse(module_text(module)).walk() if isinstance(op, tile.LifOp))
    found = again.parameters()["width"]
    assert found == value and type(found) is type(value)


def test_an_expected_error_is_matched_by_its_line() -> None:
    comment = "    // expected-error {{expects at least one slot, found 0}}\n    %state"
    text = STAGE.replace("    %state", comment).replace("in U : 1 x", "in U : 0 x")
    assert run_opt(text, "in.mlir", OptOptions(verify_diagnostics=True), io.StringIO()) == ""
