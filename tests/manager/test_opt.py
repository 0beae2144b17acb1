import io

import pytest

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.autodiff.spec import Train
from h2learn.compiler.driver import Recipe, compile_to
from h2learn.compiler.frontends.dsl import parse_snn
from h2learn.compiler.manager import module_text
from h2learn.compiler.opt import OptOptions, reproducer_pipeline, run_opt
from h2learn.compiler.pipeline import PASSES, parse_passes
from h2learn.compiler.universe import new_context

GOOD = "func.func @main(%a: i32) -> i32 {\n  func.return %a : i32\n}\n"
BAD = "func.func @main(%a: i32) -> i64 {\n  {}func.return %a : i32\n}\n"


def opt(text: str, **options: bool) -> str:
    return run_opt(text, "in.mlir", OptOptions(**options), io.StringIO())  # type: ignore[arg-type]


def test_prints_what_it_reads_and_reads_what_it_prints() -> None:
    printed = opt(GOOD)
    assert "func.return %a : i32" in printed and opt(printed) == printed


def test_locations_come_from_the_text_or_from_the_file() -> None:
    given = GOOD.replace("i32\n}", 'i32 loc("net.snn":7:1)\n}')
    printed = opt(given, print_locations=True)
    assert 'loc("net.snn":7:1)' in printed and 'loc("in.mlir":1:1)' in printed
    assert opt(printed, print_locations=True) == printed


def test_parse_errors_show_line_and_caret() -> None:
    with pytest.raises(H2LearnError) as caught:
        opt("func.func @main() {\n  %a = arith.constant : i32\n}")
    assert str(caught.value.location).startswith("in.mlir:2:") and "^" in caught.value.excerpt


def test_split_input_runs_every_chunk_and_counts_lines_through() -> None:
    assert opt(GOOD + "// -----\n" + GOOD, split_input=True).count("// -----") == 1
    with pytest.raises(H2LearnError) as caught:
        opt(GOOD + "// -----\n" + BAD.replace("{}", ""), split_input=True)
    assert str(caught.value.location) == "in.mlir:6:3"


@pytest.mark.parametrize("place", ["", "@+1 ", "@below "])
def test_an_expected_error_is_matched_by_text_and_line(place: str) -> None:
    comment = f"// expected-error {place}{{{{expected [i64], got [i32]}}}}\n  "
    assert opt(BAD.replace("{}", comment), verify_diagnostics=True) == ""


@pytest.mark.parametrize(
    "comment", ["// expected-error {{another text}}\n  ", "// expected-error @+2 {{got [i32]}}\n  "]
)
def test_a_wrong_expectation_is_reported(comment: str) -> None:
    with pytest.raises(H2LearnError, match="unexpected error"):
        opt(BAD.replace("{}", comment), verify_diagnostics=True)


def test_a_missing_error_is_reported() -> None:
    with pytest.raises(H2LearnError, match="did not appear"):
        opt(GOOD + "// expected-error {{anything}}\n", verify_diagnostics=True)


def test_pipeline_errors() -> None:
    with pytest.raises(H2LearnError, match="no pass 'h2l-nope'"):
        parse_passes("h2l-nope")
    with pytest.raises(H2LearnError, match="cannot be parsed"):
        parse_passes("h2l-train{")


def test_a_file_without_pipeline_is_no_reproducer() -> None:
    assert reproducer_pipeline('// x\n// pipeline: "a,b{c=1}"\n') == "a,b{c=1}"
    with pytest.raises(H2LearnError, match="no pipeline"):
        reproducer_pipeline(GOOD)


NET = "network n\ninput x: 4\ntime steps: 2\nencode direct\nlinear f: 3 features\nli: decay 1\nreadout membrane last\n"


@pytest.fixture(scope="module")
def levels() -> dict[str, str]:
    """The text of a small program at every level, and at ``tile`` without addresses."""
    model, recipe = parse_snn(NET, "net.snn"), Recipe(train=Train())
    texts = {phase: module_text(compile_to(model, recipe, phase)) for phase in ("import", "train", "engines", "tile")}
    unplaced = parse_passes("h2l-lut-to-tile")[0]
    module = compile_to(model, recipe, "engines")
    unplaced.apply(new_context(), module)
    return texts | {"unplaced": module_text(module), "h2": module_text(compile_to(model, recipe, "h2"))}


@pytest.mark.parametrize("level", ["import", "train", "engines", "unplaced", "tile", "h2"])
@pytest.mark.parametrize("name", PASSES)
def test_a_pass_on_a_program_of_any_level_works_or_says_what_it_takes(
    levels: dict[str, str], level: str, name: str
) -> None:
    try:
        run_opt(levels[level], "in.mlir", OptOptions(passes=parse_passes(name)), io.StringIO())
    except H2LearnError as error:
        assert str(error.location).startswith(("net.snn:", "in.mlir:")), error.message


def test_a_pass_names_the_op_of_another_level(levels: dict[str, str]) -> None:
    with pytest.raises(H2LearnError, match="h2l-insert-tokens takes programs of tile, found lut") as caught:
        run_opt(levels["engines"], "in.mlir", OptOptions(passes=parse_passes("h2l-insert-tokens")), io.StringIO())
    assert str(caught.value.location).startswith("net.snn:")
    for name in ("h2l-insert-tokens", "h2l-tile-to-h2"):
        with pytest.raises(H2LearnError, match="expected buffers with addresses") as caught:
            run_opt(levels["unplaced"], "in.mlir", OptOptions(passes=parse_passes(name)), io.StringIO())
        assert caught.value.hint == "run h2l-place-buffers first"
