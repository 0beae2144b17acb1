"""The package list in pyproject.toml, the files that travel with the package, and the direction of its imports."""

import re
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOUSES = {"api": "h2learn", "backends": "h2learn.backends", "compiler": "h2learn.compiler"} | {
    "dialects": "h2learn.dialects",
    "runtime": "h2learn.runtime",
}
LEAVES = ["isa", "machine", "numerics", "errors", "encoder", "object_file"]
UPPER = ("h2learn.compiler", "h2learn.dialects", "xdsl")


def _packages_in_tree() -> set[str]:
    found = set()
    for folder, name in HOUSES.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([name, *init.parent.relative_to(ROOT / folder).parts]))
    return found


def _modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    return set(result.stdout.split())


def _under(modules: set[str], prefixes: tuple[str, ...]) -> list[str]:
    return sorted(name for name in modules if any(name == p or name.startswith(f"{p}.") for p in prefixes))


def test_pyproject_lists_exactly_the_packages_in_the_tree() -> None:
    configured = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(configured) == sorted(_packages_in_tree())


def test_every_folder_with_code_is_a_package() -> None:
    missing = {
        str(file.parent.relative_to(ROOT))
        for folder in HOUSES
        for file in (ROOT / folder).rglob("*.py")
        if not (file.parent / "__init__.py").exists()
    }
    assert not missing


@pytest.mark.parametrize(
    ("package", "file"),
    [
        ("h2learn", "py.typed"),
        ("h2learn.data", "digits.npz"),
        ("h2learn.data", "digits.snn"),
        ("h2learn.data", "DIGITS-LICENCE.md"),
        ("h2learn.backends.h2learn.machines", "h2l-v0.toml"),
        ("h2learn.compiler.frontends.dsl", "grammar.lark"),
    ],
)
def test_data_files_are_installed(package: str, file: str) -> None:
    assert resources.files(package).joinpath(file).is_file()


def test_importing_the_front_door_is_light() -> None:
    assert not _under(
        _modules_after("import h2learn"), ("numpy", "xdsl", "numba", "h2learn.compiler", "h2learn.runtime")
    )


def test_leaves_import_nothing_of_ours_above_them() -> None:
    loaded = _modules_after("\n".join(f"import h2learn.backends.h2learn.{leaf}" for leaf in LEAVES))
    assert not _under(loaded, (*UPPER, "h2learn.runtime"))


def test_runtime_never_imports_compiler_or_dialects() -> None:
    names = sorted(
        f"h2learn.runtime.{file.stem}" for file in (ROOT / "runtime").glob("*.py") if file.stem != "__init__"
    )
    assert names
    assert not _under(_modules_after("\n".join(f"import {name}" for name in names)), UPPER)


def test_dialects_import_neither_compiler_nor_runtime() -> None:
    names = sorted(
        ".".join(["h2learn.dialects", *file.relative_to(ROOT / "dialects").with_suffix("").parts])
        for file in (ROOT / "dialects").rglob("*.py")
        if file.stem != "__init__"
    )
    loaded = _modules_after("\n".join(f"import {name}" for name in names))
    assert not _under(loaded, ("h2learn.compiler", "h2learn.runtime"))


def test_mapping_knows_no_ir() -> None:
    names = [f"h2learn.compiler.mapping.{file.stem}" for file in (ROOT / "compiler" / "mapping").glob("[a-z]*.py")]
    assert names
    assert not _under(_modules_after("\n".join(f"import {name}" for name in names)), ("xdsl", "h2learn.dialects"))


def test_nothing_imports_the_folders_by_their_names_in_the_tree() -> None:
    wrong = re.compile(r"^\s*(?:from|import)\s+(?:api|compiler|dialects|backends|runtime)\b", re.MULTILINE)
    files = [file for folder in (*HOUSES, "tests", "docs", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    assert not [str(file) for file in files if wrong.search(file.read_text(encoding="utf-8"))]


def test_the_demo_trains_the_example() -> None:
    packaged = resources.files("h2learn.data").joinpath("digits.snn").read_text()
    assert packaged == (ROOT / "examples" / "digits.snn").read_text()
