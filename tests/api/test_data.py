from pathlib import Path

import numpy as np
import pytest

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.data import load_digits, load_npz


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (6, 4, 4), dtype=np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8),
        "x_test": rng.integers(0, 256, (3, 4, 4), dtype=np.uint8),
        "y_test": np.array([0, 1, 2], dtype=np.int64),
    } | changes


def saved(tmp_path: Path, content: dict[str, np.ndarray]) -> Path:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, **content)  # type: ignore[arg-type]
    return path


def test_the_digits_are_all_there_and_a_quarter_is_held_out() -> None:
    digits = load_digits()
    assert digits.x_train.shape == (1348, 1, 8, 8) and digits.x_test.shape == (449, 1, 8, 8)
    assert digits.x_train.dtype == np.float32 and digits.x_train.min() == 0 and digits.x_train.max() == 1
    assert np.bincount(np.concatenate([digits.y_train, digits.y_test])).tolist() == [
        *(178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
    ]
    assert set(np.unique(digits.x_train * 16)) == set(range(17))


def test_images_are_scaled_and_shaped_for_the_model(tmp_path: Path) -> None:
    data = load_npz(saved(tmp_path, arrays()), (1, 4, 4))
    assert data.x_train.shape == (6, 1, 4, 4) and data.x_train.dtype == np.float32
    np.testing.assert_array_equal(data.x_train[:, 0], arrays()["x_train"].astype(np.float32) / np.float32(255))
    assert data.y_test.dtype == np.int32 and data.classes == 3
    assert load_npz(saved(tmp_path, arrays()), (16,)).x_test.shape == (3, 16)
    assert len(data.limited(2).x_train) == len(data.limited(2).y_train) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.zeros((6, 4, 4), dtype=np.int64)}, "x_train must be uint8"),
        ({"x_test": np.full((3, 4, 4), np.nan, dtype=np.float32)}, "x_test holds values that are not finite"),
        ({"x_train": np.zeros((0, 4, 4), dtype=np.uint8)}, "x_train holds no images"),
        ({"y_train": np.zeros(5, dtype=np.uint8)}, "6 images but y_train 5 labels"),
        ({"y_test": np.array([0, 1, -1])}, "y_test holds the label -1"),
        ({"y_test": np.zeros(3, dtype=np.float32)}, "y_test must be one-dimensional and of an integer type"),
        ({"y_test": np.zeros((3, 1), dtype=np.uint8)}, "y_test must be one-dimensional"),
        ({"x_test": np.zeros((3, 4, 5), dtype=np.uint8)}, "x_train has images"),
        ({"x_test": np.array([None] * 3)}, "cannot be read"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    path = saved(tmp_path, arrays(**changes))
    with pytest.raises(H2LearnError, match=message) as caught:
        load_npz(path)
    assert caught.value.location == str(path)


def test_digits_for_a_network_of_features() -> None:
    digits = load_digits()
    flat = digits.shaped((64,))
    assert flat.x_test.shape == (449, 64) and flat.x_train.tobytes() == digits.x_train.tobytes()
    assert flat.classes == 10 and flat.name == digits.name
    with pytest.raises(H2LearnError, match="digits has samples 1x8x8, the model takes 1x4x16"):
        digits.shaped((1, 4, 16))


def test_another_image_size_than_the_model_takes(tmp_path: Path) -> None:
    with pytest.raises(H2LearnError, match="x_train has images 4x4, the model takes 1x2x8"):
        load_npz(saved(tmp_path, arrays()), (1, 2, 8))


def test_missing_arrays_and_files(tmp_path: Path) -> None:
    content = arrays()
    del content["y_test"]
    with pytest.raises(H2LearnError, match="'y_test' is missing"):
        load_npz(saved(tmp_path, content))
    with pytest.raises(H2LearnError, match="no such file"):
        load_npz(tmp_path / "nothing.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(H2LearnError, match="single array"):
        load_npz(tmp_path / "one.npy")


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.99])
def test_truncated_files(tmp_path: Path, share: float) -> None:
    path = saved(tmp_path, arrays())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(H2LearnError, match="cannot be read"):
        load_npz(path)


def test_damaged_files_are_refused_or_read(tmp_path: Path) -> None:
    path = saved(tmp_path, arrays())
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            load_npz(path)
        except H2LearnError:
            refused += 1
    assert refused > 100
