"""Plain xdsl-opt knows the dialects and passes once the package is installed."""

import subprocess
import sys
from pathlib import Path

from h2learn.cli import run
from h2learn.compiler.pipeline import PASSES, PHASES, load_pass
from h2learn.compiler.universe import DIALECTS, UNIVERSE, new_context

ROOT = Path(__file__).parents[2]


def test_every_dialect_and_pass_loads_under_its_name() -> None:
    context = new_context()
    for name in DIALECTS:
        context.load_registered_dialect(name)
        assert UNIVERSE.all_dialects[name]().name == name
    for name in PASSES:
        assert load_pass(name).name == name and name.startswith("h2l-") and load_pass(name).__doc__
    assert [name for phase in PHASES for name in phase.passes] == list(PASSES)


def test_xdsl_opt_runs_our_passes(tmp_path: Path) -> None:
    source = tmp_path / "digits.mlir"
    assert run(["import", str(ROOT / "examples" / "digits.snn"), "-o", str(source)]) == 0
    tool = "from xdsl.tools.xdsl_opt import main; main()"
    passes = "h2l-hoist-static-current,h2l-train,h2l-spike-to-lut"
    command = [sys.executable, "-c", tool, str(source), "-p", passes]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "lut.wu" in result.stdout
