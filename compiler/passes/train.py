"""From an inference program to the training graph: loss, gradients by backpropagation through time, update."""

from __future__ import annotations

from dataclasses import dataclass, replace

from xdsl.context import Context
from xdsl.dialects import builtin
from xdsl.passes import ModulePass

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.autodiff.bptt import differentiate
from h2learn.compiler.autodiff.spec import BPTT, OPTIMIZERS, SGD, SURROGATES, MSECount, Optimizer, Train


@dataclass(frozen=True)
class TrainPass(ModulePass):
    """Add loss, gradients and parameter update to an inference program.

    Without ``surrogate`` the neurons keep the one of the model; ``loss_scale`` 0 means the default of the precision.
    The learning rate is a run-time scalar and no option.
    """

    name = "h2l-train"

    method: str = "bptt"
    loss: str = "cross_entropy"
    correct: float = 1.0
    incorrect: float = 0.0
    optimizer: str = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    surrogate: str | None = None
    half_width: float = 0.5
    height: float = 1.0
    periodic: bool = False
    detach_reset: bool = False
    keep_gradients: bool = True
    loss_scale: float = 0.0

    @classmethod
    def of(cls, spec: Train) -> TrainPass:
        """Return the pass that does what ``spec`` says."""
        surrogate, optimizer = spec.surrogate, spec.optimizer
        base = cls(
            method="bptt" if isinstance(spec.method, BPTT) else spec.method,
            loss=spec.loss_name,
            correct=spec.targets.correct,
            incorrect=spec.targets.incorrect,
            optimizer=next(name for name, kind in OPTIMIZERS.items() if type(optimizer) is kind),
            weight_decay=optimizer.weight_decay,
            surrogate=None if surrogate is None else surrogate.kind,
            half_width=0.5 if surrogate is None else surrogate.half_width,
            height=1.0 if surrogate is None else surrogate.height,
            periodic=surrogate is not None and surrogate.periodic,
            detach_reset=spec.detach_reset,
            keep_gradients=spec.keep_gradients,
            loss_scale=spec.loss_scale or 0.0,
        )
        if isinstance(optimizer, SGD):
            return replace(base, momentum=optimizer.momentum, nesterov=optimizer.nesterov)
        return replace(base, beta1=optimizer.betas[0], beta2=optimizer.betas[1], eps=optimizer.eps)

    def recipe(self) -> Train:
        """Return the options as a training recipe; raises H2LearnError for a choice that does not exist."""
        if self.surrogate is not None and self.surrogate not in SURROGATES:
            raise H2LearnError(f"there is no surrogate {self.surrogate!r}", hint=f"known: {', '.join(SURROGATES)}")
        surrogate = None
        if self.surrogate:
            surrogate = SURROGATES[self.surrogate](self.half_width, self.height, periodic=self.periodic)
        return Train(
            method=self.method,
            loss=MSECount(self.correct, self.incorrect) if self.loss == "mse_count" else self.loss,
            optimizer=self._optimizer(),
            surrogate=surrogate,
            detach_reset=self.detach_reset,
            keep_gradients=self.keep_gradients,
            loss_scale=self.loss_scale or None,
        )

    def _optimizer(self) -> Optimizer:
        kind = OPTIMIZERS.get(self.optimizer)
        if kind is None:
            raise H2LearnError(f"there is no optimizer {self.optimizer!r}", hint=f"known: {', '.join(OPTIMIZERS)}")
        if issubclass(kind, SGD):
            return kind(momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay)
        return kind(betas=(self.beta1, self.beta2), eps=self.eps, weight_decay=self.weight_decay)

    def apply(self, ctx: Context, op: builtin.ModuleOp) -> None:
        """Replace the program by its training graph."""
        trained = differentiate(op, self.recipe())
        op.detach_region(0).drop_all_references()
        op.add_region(trained.detach_region(0))
        op.attributes = dict(trained.attributes)
