"""Data sets: the handwritten digits of the package, files with training and test images, and files of events."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.errors import H2LearnError

from .events import Binning, Events, holds_events, load_events, load_frames
from .files import Array, read_arrays, stored_names

__all__ = ["Binning", "DataSet", "Events", "holds_events", "load_data", "load_digits", "load_events", "load_npz"]

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]

KEYS = ("x_train", "y_train", "x_test", "y_test")
DIGITS_LEVELS = 16
HELD_OUT_SHARE = 4


@dataclass(frozen=True)
class DataSet:
    """Images ``[samples, C, H, W]`` (or ``[samples, features]``) float32, labels ``[samples]`` int32 from 0.

    Frames of events are ``[samples, T, C, H, W]`` (or ``[samples, T, features]``). ``name`` identifies the data in
    checkpoints and reports.
    """

    name: str
    x_train: Images
    y_train: Labels
    x_test: Images
    y_test: Labels

    @property
    def classes(self) -> int:
        """The number of classes: the largest label plus one."""
        return int(max(self.y_train.max(initial=-1), self.y_test.max(initial=-1))) + 1

    def limited(self, count: int | None) -> DataSet:
        """Return the data with only the first ``count`` training samples (None: all)."""
        if count is None:
            return self
        if count < 1:
            raise H2LearnError(f"the number of training samples must be positive, found {count}")
        return DataSet(self.name, self.x_train[:count], self.y_train[:count], self.x_test, self.y_test)

    def shaped(self, shape: tuple[int, ...]) -> DataSet:
        """Return the data with samples of ``shape``, flattened if need be; raises H2LearnError where that fails."""
        for x in (self.x_train, self.x_test):
            if len(x) and not _fits(x.shape[1:], shape):
                raise H2LearnError(f"{self.name} has samples {_by(x.shape[1:])}, the model takes {_by(shape)}")
        train, test = (x.reshape(len(x), *shape) for x in (self.x_train, self.x_test))
        return DataSet(self.name, train, self.y_train, test, self.y_test)


def load_digits() -> DataSet:
    """Return the 8x8 digits: 1,797 images ``[1, 8, 8]`` in 0..1, a quarter of them (449) held out for testing.

    The split is fixed: with ``order = numpy.random.default_rng(0).permutation(1797)`` the first 449 are the test set.
    """
    with resources.files(__package__).joinpath("digits.npz").open("rb") as file, np.load(file) as archive:
        images, labels = archive["images"], archive["labels"]
    order = np.random.default_rng(0).permutation(len(images))
    x = images[order].astype(np.float32)[:, np.newaxis] / np.float32(DIGITS_LEVELS)
    y = labels[order].astype(np.int32)
    held_out = len(order) // HELD_OUT_SHARE
    return DataSet("digits", x[held_out:], y[held_out:], x[:held_out], y[:held_out])


def load_data(path: str | Path, sample_shape: tuple[int, ...] | None = None, binning: Binning | None = None) -> DataSet:
    """Read a file of images (``load_npz``; HDF5 too) or of events, which become frames.

    ``sample_shape``: what one sample is brought to; frames take ``[T, polarities, rows, columns]`` or
    ``[T, features]``. ``binning``: how events become frames (default: T frames of equal duration).
    Raises H2LearnError that names the file for anything that cannot be used, and for binning of images.
    """
    if holds_events(path):
        return _load_events(path, sample_shape, binning)
    if binning is not None:
        raise H2LearnError("expected events to be binned, found images", location=str(path))
    return load_npz(path, sample_shape)


def load_npz(path: str | Path, sample_shape: tuple[int, ...] | None = None) -> DataSet:
    """Read ``x_train y_train x_test y_test`` from an ``.npz`` (or HDF5) file, as MNIST is commonly distributed.

    Images ``uint8`` are divided by 255, floating-point images are taken as they are (and must be finite). When
    ``sample_shape`` is given, every image is brought to it (``28x28`` fits ``1x28x28``). Raises H2LearnError that names
    the file and the array for anything that cannot be used.
    """
    source = str(path)
    arrays = read_arrays(path, KEYS)
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise H2LearnError(
            f"the array {missing[0]!r} is missing, the file holds {', '.join(sorted(stored_names(path))) or 'nothing'}",
            location=source,
            hint=f"a data file holds {', '.join(KEYS)}",
        )
    return _images(source, arrays, sample_shape)


def _images(source: str, arrays: Mapping[str, Array], sample_shape: tuple[int, ...] | None) -> DataSet:
    parts = {
        half: _half(source, half, arrays[f"x_{half}"], arrays[f"y_{half}"], sample_shape) for half in ("train", "test")
    }
    (x_train, y_train), (x_test, y_test) = parts["train"], parts["test"]
    if x_train.shape[1:] != x_test.shape[1:]:
        raise H2LearnError(f"x_train has images {x_train.shape[1:]} and x_test {x_test.shape[1:]}", location=source)
    return DataSet(Path(source).name, x_train, y_train, x_test, y_test)


def _load_events(path: str | Path, sample_shape: tuple[int, ...] | None, binning: Binning | None) -> DataSet:
    if sample_shape is not None and len(sample_shape) not in (2, 4):
        raise H2LearnError(
            f"events become frames over time, the model takes {_by(sample_shape)}",
            location=str(path),
            hint="declare the model's input 'over time'",
        )
    if binning is None:
        if sample_shape is None:
            raise H2LearnError("expected a number of bins for events, found none", location=str(path))
        binning = Binning(sample_shape[0])
    shape = None
    if sample_shape is not None and len(sample_shape) == 4:
        shape = (sample_shape[1], sample_shape[2], sample_shape[3])
    halves = load_frames(path, binning, shape)
    if sample_shape is not None and len(sample_shape) == 2:
        halves = {half: (x.reshape(*x.shape[:2], -1), y) for half, (x, y) in halves.items()}
    return DataSet(Path(path).name, *halves["train"], *halves["test"])


def _half(
    source: str,
    half: str,
    x: npt.NDArray[np.generic],
    y: npt.NDArray[np.generic],
    sample_shape: tuple[int, ...] | None,
) -> tuple[Images, Labels]:
    images = _scaled(source, f"x_{half}", x)
    labels = _labels(source, f"y_{half}", y)
    if len(images) == 0:
        raise H2LearnError(f"x_{half} holds no images", location=source)
    if len(images) != len(labels):
        raise H2LearnError(f"x_{half} holds {len(images)} images but y_{half} {len(labels)} labels", location=source)
    if sample_shape is None:
        return images, labels
    if not _fits(images.shape[1:], sample_shape):
        raise H2LearnError(
            f"x_{half} has images {_by(images.shape[1:])}, the model takes {_by(sample_shape)}", location=source
        )
    return images.reshape(len(images), *sample_shape), labels


def _scaled(source: str, key: str, x: npt.NDArray[np.generic]) -> Images:
    if x.ndim < 2:
        raise H2LearnError(
            f"{key} must have samples first and at least one more axis, found {x.shape}", location=source
        )
    if x.dtype == np.uint8:
        return x.astype(np.float32) / np.float32(255)
    if x.dtype not in (np.float16, np.float32, np.float64):
        raise H2LearnError(
            f"{key} must be uint8 (0..255) or floating point, found {x.dtype}",
            location=source,
            hint="convert the images before saving",
        )
    images = x.astype(np.float32)
    if not np.isfinite(images).all():
        raise H2LearnError(f"{key} holds values that are not finite", location=source)
    return images


def _labels(source: str, key: str, y: npt.NDArray[np.generic]) -> Labels:
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise H2LearnError(
            f"{key} must be one-dimensional and of an integer type, found {y.dtype} {y.shape}", location=source
        )
    if len(y) and (int(y.min()) < 0 or int(y.max()) > 1_000_000):
        raise H2LearnError(
            f"{key} holds the label {int(y.min()) if int(y.min()) < 0 else int(y.max())}, "
            "expected class numbers from 0",
            location=source,
        )
    return y.astype(np.int32)


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    found, expected = _squeezed(shape), _squeezed(wanted)
    flattens = len(found) == 1 or len(expected) == 1
    return found == expected or (flattens and math.prod(found) == math.prod(expected))


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
