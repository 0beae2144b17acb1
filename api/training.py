"""Training: epochs of the compiled training step on the simulator, with checkpoints that resume bit for bit."""

from __future__ import annotations

import hashlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import FrameType

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.energy_profile import EnergyProfile, load_profile
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.machine import Machine
from h2learn.checkpoints import Checkpoint, Progress, check_same_run, read_checkpoint, write_checkpoint
from h2learn.compiler.autodiff.spec import Train
from h2learn.compiler.folding import folded
from h2learn.compiler.manager import module_text
from h2learn.compiler.mapping.limits import TileLimits
from h2learn.compiler.model import Model, TensorSpec
from h2learn.data import Binning, DataSet, holds_events, load_data
from h2learn.files import check_writable
from h2learn.program import Execution, Program, Result, Session, compile
from h2learn.runtime.energy import profile_for
from h2learn.schedules import Schedule, parse_schedule

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Epoch:
    """One epoch. ``loss`` and ``accuracy`` are means over the training samples as they were trained.

    ``test_accuracy`` is that of the parameters after the epoch (None: not evaluated); cycles, energy and instructions
    are sums over the epoch's training steps (cycles and energy 0 where runs are functional).
    """

    number: int
    samples: int
    steps: int
    loss: float
    accuracy: float
    test_accuracy: float | None
    cycles: int
    energy_pj: float
    instructions: int


@dataclass(frozen=True)
class History:
    """What training gave: epochs, the loss of every step, and the final parameters by name in the model's layout."""

    epochs: list[Epoch]
    losses: list[float]
    parameters: dict[str, Floats]
    step: Program = field(repr=False)
    last: Result | None = field(default=None, repr=False)

    @property
    def test_accuracy(self) -> float | None:
        """The accuracy on the test images after the last epoch."""
        return self.epochs[-1].test_accuracy if self.epochs else None


@dataclass(frozen=True)
class Step:
    """Progress inside an epoch, for display: ``batch`` of ``batches`` is done; loss and accuracy so far."""

    epoch: int
    batch: int
    batches: int
    loss: float
    accuracy: float


Observer = Callable[[Step | Epoch], None]


class Interrupted(KeyboardInterrupt):
    """Training was interrupted; ``checkpoint`` is the file that holds its state, if any."""

    def __init__(self, checkpoint: Path | None) -> None:
        super().__init__("training was interrupted")
        self.checkpoint = checkpoint


def train(
    model: Model,
    data: DataSet | str | Path,
    epochs: int = 1,
    *,
    batch: int = 32,
    lr: float | None = None,
    schedule: Schedule | str | None = None,
    arch: str | Path | Machine = "h2l-v0",
    precision: str = "fp32",
    train: Train | None = None,
    mapping: str | TileLimits | None = None,
    seed: int = 0,
    limit: int | None = None,
    binning: Binning | None = None,
    evaluate: bool = True,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    observe: Observer | None = None,
    execution: Execution | None = None,
    profile: str | Path | EnergyProfile | None = None,
) -> History:
    """Train ``model`` on ``data`` by running its compiled training step on the simulator, sample order from ``seed``.

    ``data``: a data set, or the path of a file of images or events; ``binning``: how events become frames (default: as
    many of equal duration as the model has time steps). ``train``: the recipe (default: the model file's). ``lr``
    replaces the recipe's learning rate; ``schedule`` multiplies it step by step (a schedule, or its text as
    ``parse_schedule`` reads it). ``limit``: use only that many training samples. With ``checkpoint`` the state
    is written after every epoch, every ``checkpoint_every`` steps, and when Ctrl-C stops training (Interrupted is
    raised); ``resume`` continues from it bit for bit. ``observe`` is called after every step and epoch. ``profile``:
    the energies per operation, as for ``Program.run``.
    Raises H2LearnError for arguments, data or a checkpoint that cannot be used.
    """
    if checkpoint_every is not None and checkpoint is None:
        raise H2LearnError("a checkpoint every so many steps needs the file to write", hint="name it with --checkpoint")
    _check_counts(epochs=epochs, batch=batch, checkpoint_every=checkpoint_every, limit=limit, seed=seed)
    recipe = train or model.train or Train()
    rates = _Rates(schedule, recipe.optimizer.lr if lr is None else lr, epochs)
    target = None if checkpoint is None else check_writable(checkpoint)
    samples = _load(data, model, limit, binning)
    program = compile(model, arch=arch, precision=precision, train=recipe, batch=batch, mapping=mapping)
    energies = profile_for(program.machine) if profile is None else load_profile(profile)
    _check_labels(samples, program)
    run = _description(model, program, recipe, samples, energies, rates, batch=batch, seed=seed)
    start = _resumed(target, run) if resume else None
    trainer = _Trainer(model, samples, program, run, epochs, rates, seed, target, checkpoint_every, observe, evaluate)
    with program.session(seed=seed, execution=execution, profile=energies) as session:
        return trainer.run(session, start)


def evaluate(model: Model, data: DataSet, **options: object) -> float:
    """Return the share of test images that the compiled inference program of ``model`` classifies correctly.

    ``options`` are those of ``compile`` (``arch``, ``precision``, ``batch``, ``mapping``).
    """
    return _accuracy(compile(replace(model, step=None), **options), data, None, _batch_axis(model))  # type: ignore[arg-type]


class _Rates:
    """The learning rate of every step of a run."""

    def __init__(self, schedule: Schedule | str | None, start: float, epochs: int) -> None:
        self.schedule = parse_schedule(schedule) if isinstance(schedule, str) else schedule or Schedule()
        self.start, self.epochs = start, epochs

    def at(self, step: int, steps_per_epoch: int) -> float:
        return self.start * self.schedule.factor(step, self.epochs * steps_per_epoch, steps_per_epoch)


@dataclass
class _Trainer:
    model: Model
    data: DataSet
    program: Program
    run_description: dict[str, object]
    epochs: int
    rates: _Rates
    seed: int
    checkpoint: Path | None
    checkpoint_every: int | None
    observe: Observer | None
    evaluate: bool
    _inference: Program | None = None

    def run(self, session: Session, start: Checkpoint | None) -> History:
        progress = Progress() if start is None else start.progress
        if start is not None:
            session.restore(start.parameters, start.states, steps=progress.steps, samples=progress.samples)
        last: Result | None = None
        with _deferred_interrupt() as interrupted:
            while progress.epoch < self.epochs:
                for indices in self._batches(progress):
                    last = None  # a result that nobody holds is not read before the next run
                    last = self._step(session, progress, indices)
                    if interrupted():
                        self._save(session, progress)
                        raise Interrupted(self.checkpoint)
                    if self.checkpoint_every and progress.steps % self.checkpoint_every == 0:
                        self._save(session, progress)
                self._finish_epoch(session, progress)
        epochs = [Epoch(**values) for values in progress.finished]
        return History(epochs, list(progress.losses), session.parameters, self.program, last)

    def _batches(self, progress: Progress) -> Iterator[npt.NDArray[np.int64]]:
        count, size = len(self.data.x_train), self.program.batch
        order = np.random.default_rng([self.seed, progress.epoch]).permutation(count)
        for first in range(progress.batch * size, count, size):
            yield order[first : first + size]

    def _step(self, session: Session, progress: Progress, indices: npt.NDArray[np.int64]) -> Result:
        labels = self.data.y_train[indices]
        result = session.run(
            {**self._input(self.data.x_train[indices]), "label": labels},
            lr=self.rates.at(progress.steps, self._batch_count()),
        )
        assert result.loss is not None
        if not np.isfinite(result.loss):
            raise H2LearnError(
                f"the loss is {result.loss} in step {progress.steps} of epoch {progress.epoch}",
                hint="a smaller learning rate may help; the last checkpoint was not overwritten",
            )
        progress.batch += 1
        progress.steps += 1
        progress.samples += len(labels)
        progress.seen += len(labels)
        progress.loss_sum += result.loss * len(labels)
        progress.correct += int((_classes(result, self.program) == labels).sum())
        if result.report.timed:
            progress.cycles += result.cycles
            progress.energy_pj += result.energy_pj
        progress.instructions += result.report.instructions
        progress.losses.append(result.loss)
        if self.observe is not None:
            mean, share = progress.loss_sum / progress.seen, progress.correct / progress.seen
            self.observe(Step(progress.epoch, progress.batch, self._batch_count(), mean, share))
        return result

    def _batch_count(self) -> int:
        return -(-len(self.data.x_train) // self.program.batch)

    def _finish_epoch(self, session: Session, progress: Progress) -> None:
        test_accuracy = None
        if self.evaluate:
            trained = folded(self.model.with_parameters(session.parameters)).parameters
            test_accuracy = _accuracy(self._inference_program(), self.data, trained, self._batch_axis)
        epoch = Epoch(
            number=progress.epoch,
            samples=progress.seen,
            steps=progress.batch,
            loss=progress.loss_sum / progress.seen,
            accuracy=progress.correct / progress.seen,
            test_accuracy=test_accuracy,
            cycles=progress.cycles,
            energy_pj=progress.energy_pj,
            instructions=progress.instructions,
        )
        progress.finished.append(asdict(epoch))
        progress.start_next_epoch()
        self._save(session, progress)
        if self.observe is not None:
            self.observe(epoch)

    def _inference_program(self) -> Program:
        if self._inference is None:
            trained = self.program
            self._inference = compile(
                replace(self.model, step=None),
                arch=trained.machine,
                precision=trained.precision,
                batch=trained.batch,
                mapping=trained.mapping,
            )
        return self._inference

    def _input(self, images: Floats) -> dict[str, Floats]:
        name, spec = next(iter(self.model.network.inputs.items()))
        return {name: _batch(images, spec, self._batch_axis)}

    @cached_property
    def _batch_axis(self) -> int:
        return _batch_axis(self.model)

    def _save(self, session: Session, progress: Progress) -> None:
        if self.checkpoint is not None:
            write_checkpoint(
                self.checkpoint, Checkpoint(self.run_description, progress, session.parameters, session.states)
            )


def _check_counts(**values: int | None) -> None:
    for name, value in values.items():
        least = 0 if name == "seed" else 1
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise H2LearnError(
                f"expected {name.replace('_', ' ')} to be an integer of at least {least}, found {value!r}"
            )


def _load(data: DataSet | str | Path, model: Model, limit: int | None, binning: Binning | None) -> DataSet:
    if len(model.network.inputs) != 1:
        raise H2LearnError(f"training needs a model with one input, {model.name!r} has {len(model.network.inputs)}")
    spec = next(iter(model.network.inputs.values()))
    axis = _batch_axis(model)
    shape = spec.unfolded()[:axis] + spec.unfolded()[axis + 1 :]
    if spec.dtype == "bool":
        binning = replace(binning, binary=True) if binning is not None else Binning(shape[0], binary=True)
    found = data if isinstance(data, DataSet) else _read(data, shape, binning, over_time=axis > 0)
    return found.shaped(shape).limited(limit)


def _read(path: str | Path, shape: tuple[int, ...], binning: Binning | None, *, over_time: bool) -> DataSet:
    if over_time and not holds_events(path):
        raise H2LearnError(
            "expected events for a model that takes inputs over time, found images",
            location=str(path),
            hint="add an encoder to the model",
        )
    return load_data(path, shape, binning)


def _batch_axis(model: Model) -> int:
    """Return the axis of samples in the model's input."""
    one, two = (next(iter(model.build(batch).inputs.values())).unfolded() for batch in (1, 2))
    return next(axis for axis, (n, m) in enumerate(zip(one, two, strict=True)) if n != m)


def _check_labels(data: DataSet, program: Program) -> None:
    classes = next(iter(program.outputs.values())).shape[-1]
    if data.classes > classes:
        raise H2LearnError(f"the data has the label {data.classes - 1}, the model has {classes} classes")


def _description(
    model: Model,
    program: Program,
    recipe: Train,
    data: DataSet,
    energies: EnergyProfile,
    rates: _Rates,
    *,
    batch: int,
    seed: int,
) -> dict[str, object]:
    text = module_text(model.with_batch(1).module, locations=False)
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(model.parameters.items()):
        digest.update(name.encode() + np.ascontiguousarray(value).tobytes())
    images = hashlib.sha256(np.ascontiguousarray(data.x_train).tobytes() + data.y_train.tobytes()).hexdigest()
    return {
        "model": f"{model.name} {digest.hexdigest()[:16]}",
        "machine": f"{program.machine.name} {program.machine.hash}",
        "precision": program.precision,
        "training_recipe": repr(recipe),
        "mapping": program.mapping,
        "data": f"{data.name} {len(data.x_train)} {images[:16]}",
        "energy_profile": energies.name,
        "batch": batch,
        "seed": seed,
        "learning_rate": rates.start,
        "schedule": rates.schedule.description(rates.epochs),
    }


def _resumed(path: Path | None, run: dict[str, object]) -> Checkpoint:
    if path is None:
        raise H2LearnError("resuming needs the checkpoint file")
    found = read_checkpoint(path)
    check_same_run(path, found.run, run)
    return found


def _accuracy(program: Program, data: DataSet, parameters: Mapping[str, Floats] | None, batch_axis: int) -> float:
    name, spec = next(iter(program.inputs.items()))
    correct = 0
    with program.session(execution=Execution(timing=False)) as session:
        if parameters is not None:
            session.restore(parameters, {}, steps=0, samples=0)
        for first in range(0, len(data.x_test), program.batch):
            samples = _batch(data.x_test[first : first + program.batch], spec, batch_axis)
            result = session.run({name: samples})
            correct += int((_classes(result, program) == data.y_test[first : first + program.batch]).sum())
    return correct / len(data.x_test)


def _batch(images: Floats, spec: TensorSpec, batch_axis: int) -> Floats:
    """Return samples ``[N,...]`` as a run takes them: samples at ``batch_axis``, or folded with time."""
    moved = np.moveaxis(images, 0, batch_axis)
    return moved.reshape(-1, *spec.shape[1:]) if spec.folded else moved


def _classes(result: Result, program: Program) -> npt.NDArray[np.int64]:
    """The most active class of each sample: of the first output, summed over time where it has a time axis."""
    name, output = next(iter(result.outputs.items()))
    spec = program.outputs[name]
    output = np.asarray(output).reshape(spec.unfolded(np.shape(output)))
    perm = next(e["perm"] for e in program.loaded.note["io"] if (e["role"], e["name"]) == ("output", name))
    scores = output.astype(np.float64).sum(axis=perm[0] if perm else 0) if output.ndim == 3 else output
    return np.asarray(np.argmax(scores, axis=-1), dtype=np.int64)


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C into a flag, so that a training step is never left half done; a second Ctrl-C stops at once."""
    hit: list[bool] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if hit:
            raise KeyboardInterrupt
        hit.append(True)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(hit)
    finally:
        signal.signal(signal.SIGINT, before)
