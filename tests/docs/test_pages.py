"""The documentation: commands that exist, pages that are generated, files that are named."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from h2learn.cli import COMMANDS, cli

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_the_readme_lists_exactly_the_commands() -> None:
    table = re.findall(r"^\| `h2learn ([a-z]+)|^\| .*?`, `([a-z]+)`", (ROOT / "README.md").read_text(), re.MULTILINE)
    named = {name for row in table for name in row if name} | {"disasm", "objdump"}
    assert named - {"show"} == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_pages_use_exist(page: Path) -> None:
    context = cli.make_context("h2learn", ["--help"], resilient_parsing=True)
    for line in re.findall(r"h2learn [a-z][^`\n|]*", page.read_text(encoding="utf-8")):
        words = line.split()
        command = cli.get_command(context, words[1])
        if command is None or words[1] == "arch":
            continue
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for option in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", line):
            assert option in {*known, "--help", "--debug"}, f"{page.name}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_pages_name_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:docs|api|compiler|dialects|backends|runtime|tests|examples)/[\w./-]*)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_example_in_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    exec(block[1].replace("epochs=2", "epochs=1, limit=64"), names)
    assert set(names["trained"]) == {"c1.weight", "c1.bias", "f1.weight", "f1.bias"}  # type: ignore[call-overload]


def test_generated_pages_are_current() -> None:
    result = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
