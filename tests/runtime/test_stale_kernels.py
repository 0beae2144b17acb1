"""Kernels that were compiled before a change of what they call are compiled again."""

import os
from pathlib import Path

import pytest

from h2learn.runtime.jit import forget_stale


@pytest.mark.parametrize("edited", ["kernels/bits.py", "events.py"])
def test_kernels_older_than_any_source_are_deleted(tmp_path: Path, edited: str) -> None:
    sources = [tmp_path / name for name in ("kernels/bits.py", "events.py")]
    kept = [tmp_path / "__pycache__/events.advance.nbi", tmp_path / "kernels/__pycache__/bits.pack.nbi"]
    for number, file in enumerate([*sources, *kept]):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
        os.utime(file, (100 + number, 100 + number))
    forget_stale(sources, tmp_path)
    assert all(file.exists() for file in kept), "nothing was edited"
    os.utime(tmp_path / edited, (103, 103))  # as new as the newer kernel, newer than the other
    forget_stale(sources, tmp_path)
    assert [file.exists() for file in kept] == [False, True]
