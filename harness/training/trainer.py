"""Trainers: plain training is the base, a defense overrides what it changes."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple, Self, cast, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..datasets.registry import Dataset, DatasetInfo
from ..errors import UserError, unknown
from ..models.registry import build_model
from ..models.stages import Stages
from ..victims.adaptation import Remedy
from .optim import descend, limit_norms, set_lr
from .precision import Precision, computing
from .pretraining import Decoder, autoencoder_loss

Optimizer = Literal["adam", "sgd"]
Schedule = Literal["constant", "cosine"]
Decayed = Literal["all", "dense"]


class Diverged(RuntimeError):
    """Training produced a loss that is not finite."""


class Loss(NamedTuple):
    """One evaluation of a training objective: its mean over the batch (a scalar) and logits (N, K) it saw."""

    value: Tensor
    logits: Tensor


class Epoch(NamedTuple):
    """One line of a training history; accuracies are fractions, validation fields NaN without a split."""

    epoch: int
    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float


class Trained(NamedTuple):
    """What training returns: the model to be judged (in eval mode) and a line for every epoch."""

    model: nn.Module
    history: list[Epoch]


Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called as ``progress(epochs_done, epochs_total, {"loss": ..., "accuracy": ...})`` after each epoch."""


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Plain training on the cross-entropy; the base of every defense.

    Fields are hyperparameters and belong to a model's identity. ``None`` stands for the data set's own value,
    which :meth:`resolve` fills in before a key is taken.

    Override :meth:`loss` for another objective, :meth:`reconstruction` for another objective of stages that are
    trained without labels, :meth:`step` for two-player training, :meth:`wrap` for parts that act at inference time.

    Attributes:
        epochs: Passes over the training part; ``None``: :attr:`DatasetInfo.epochs`.
        batch_size: Samples a step.
        optimizer: ``"adam"`` or ``"sgd"``.
        lr: Initial learning rate.
        momentum: Of ``"sgd"``.
        weight_decay: L2 penalty in the optimizer, on weights and biases; none without labels.
        decayed: What :attr:`weight_decay` acts on: ``"all"`` parameters, or those of ``"dense"`` layers alone, which
            leaves convolutions out (Gu & Rigazio 2014, section 2.2).
        schedule: ``"constant"``, or ``"cosine"`` to zero over all steps.
        validation: Fraction of the training set held out, in [0, 1).
        patience: Stop after so many epochs without a lower validation loss and keep the best weights; ``None``
            trains all epochs. Needs ``validation > 0``.
        pretraining: Passes over the training part for each stage that the architecture has trained without labels
            (:attr:`Stages.unsupervised`); ``None``: as many as :attr:`epochs`.
        max_norm: Largest Euclidean norm of the weights that enter a unit, of dense layers and convolutions, to which
            they are scaled down after every update (Srivastava et al. 2014, section 5.1); ``None``: no limit.
        refit: After all epochs, the held-out part joins the rest, and training goes on at a tenth of :attr:`lr` until
            the cross-entropy on it has come down to what it was on the rest before, both as the model is judged; for so
            many epochs at most (Goodfellow et al. 2013, section 5.1; Lyu et al. 2015, section IV.A). ``None`` leaves
            the held-out part out. Needs ``validation > 0``, whose fields in the history are no validation then.
        precision: ``"bfloat16"`` computes forward passes of training by autocast; weights, updates and every evaluation
            stay float32. No hyperparameter of a method, but it moves numbers within what another seed does.
        compiled: Compile forward passes of training (:func:`torch.compile`), where that can be done; so too.
        subset: Train on so many training images alone, the first of a fixed, stratified order (the same whatever the
            seed), before any are held out; ``None``: on all.

    Raises:
        ValueError: A hyperparameter outside its range.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    summary: ClassVar[str] = ""
    """One line for ``gauntlet list defenses``."""
    source: ClassVar[str] = ""
    """Where the method is from."""
    trainable: ClassVar[bool] = True
    """Whether it makes models; False where it stands for one made elsewhere."""
    by_batch: ClassVar[bool] = False
    """Whether training is nothing but passes of whole batches through the whole model: only then can
    :attr:`precision` and :attr:`compiled` be chosen."""

    epochs: int | None = None
    batch_size: int = 128
    optimizer: Optimizer = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    decayed: Decayed = field(default="all", metadata={"identity": "set"})
    schedule: Schedule = "constant"
    validation: float = 0.0
    patience: int | None = None
    pretraining: int | None = field(default=None, metadata={"identity": "set"})
    max_norm: float | None = field(default=None, metadata={"identity": "set"})
    refit: int | None = field(default=None, metadata={"identity": "set"})
    subset: int | None = field(default=None, metadata={"identity": "set"})
    precision: Precision = field(default="float32", metadata={"identity": "set"})
    compiled: bool = field(default=False, metadata={"identity": "set"})

    def __post_init__(self) -> None:
        _check_literals(self)
        for declared in dataclasses.fields(self):
            value = getattr(self, declared.name)
            finite = not isinstance(value, float) or math.isfinite(value) or declared.metadata.get("infinite", False)
            require(self, declared.name, finite, "finite")
        require(self, "epochs", self.epochs is None or self.epochs >= 0, "at least 0")
        require(self, "pretraining", self.pretraining is None or self.pretraining >= 0, "at least 0")
        require(self, "batch_size", self.batch_size >= 1, "at least 1")
        require(self, "lr", self.lr > 0, "positive")
        require(self, "momentum", 0 <= self.momentum < 1, "in [0, 1)")
        require(self, "weight_decay", self.weight_decay >= 0, "at least 0")
        require(self, "validation", 0 <= self.validation < 1, "in [0, 1)")
        require(self, "patience", self.patience is None or self.patience >= 1, "at least 1")
        if self.patience is not None and not self.validation:
            raise UserError(f"{self.name}: patience needs a validation split, e.g. validation=0.1")
        require(self, "max_norm", self.max_norm is None or self.max_norm > 0, "positive")
        require(self, "refit", self.refit is None or self.refit >= 1, "at least 1")
        if self.refit is not None and not self.validation:
            raise UserError(f"{self.name}: refit needs a validation split, e.g. validation=0.1")
        require(self, "subset", self.subset is None or self.subset >= 1, "at least 1")
        if not self.by_batch:
            without = "where not all passes are the whole model's"
            require(self, "precision", self.precision == "float32", f"float32 {without}")
            require(self, "compiled", not self.compiled, f"False {without}")

    def resolve(self, info: DatasetInfo) -> Self:
        """Replace every ``None`` that stands for the data set's own value."""
        return self if self.epochs is not None else dataclasses.replace(self, epochs=info.epochs)

    @property
    def remedy(self) -> Remedy:
        """How attacks are to see its models: a defense that draws at inference time says over how many draws."""
        return Remedy()

    def seed_identity(self) -> Trainer:
        """What random numbers of attacks on its models may depend on."""
        return self

    def label(self, info: DatasetInfo) -> str:
        """Name for people: the defense and every hyperparameter that is not its default on that data set."""
        usual, mine = type(self)().resolve(info), self.resolve(info)
        changed = [
            f"{f.name}={_short(getattr(mine, f.name))}"
            for f in dataclasses.fields(self)
            if getattr(mine, f.name) != getattr(usual, f.name)
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name

    def part(self, data: Dataset) -> Dataset:
        """The data set with what :attr:`subset` leaves of its training part.

        Raises:
            UserError: It asks for more than there is.
        """
        return data if self.subset is None else data.first(self.subset)

    def loss(self, model: Stages, x: Tensor, y: Tensor) -> Loss:
        """The objective on one batch: x float32 (N, C, H, W) in [0, 1], y int64 (N,)."""
        logits = model(x)
        return Loss(F.cross_entropy(logits, y), logits)

    def reconstruction(self, model: Stages, stage: str, decoder: Decoder, x: Tensor) -> Tensor:
        """The objective of a stage trained without labels: its mean over one batch, a scalar.

        Args:
            model: Holds the stage.
            stage: Its name.
            decoder: Turns what leaves the stage into logits of what entered it.
            x: What enters the stage, (N, ...) in [0, 1].
        """
        return autoencoder_loss(decoder, model.stages[stage](x), x)

    def step(self, model: Stages, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Loss:
        """One update of the weights on one batch."""
        loss = self.loss(model, x, y)
        descend(optimizer, loss.value)
        return Loss(loss.value.detach(), loss.logits.detach())

    def opponent(self, info: DatasetInfo) -> nn.Module | None:
        """A network that takes part in training and is thrown away; its initial weights are drawn after the model's."""
        return None

    def against(self, opponent: nn.Module) -> Trainer:
        """This trainer with its opponent in play, ready for :meth:`step`."""
        return self

    def wrap(self, model: Stages, base: nn.Module | None) -> nn.Module:
        """The model that is judged: by default the trained one.

        Args:
            model: What was trained.
            base: The trained model that the spec is built upon, if it names one.
        """
        return model

    def build(self, architecture: str, info: DatasetInfo, base: nn.Module | None = None) -> nn.Module:
        """The untrained model in its judged form: what a checkpoint's weights are loaded into."""
        return self.wrap(build_model(architecture, info.shape, len(info.classes)), base)

    def fit(
        self,
        architecture: str,
        data: Dataset,
        *,
        device: torch.device | str = "cpu",
        base: nn.Module | None = None,
        progress: Progress | None = None,
    ) -> Trained:
        """Train from scratch; all randomness comes from torch's global generator, which the caller seeds.

        Args:
            architecture: Name of the architecture.
            data: The data set; its test part is not looked at.
            device: Where to train.
            base: Trained model that the spec is built upon, if any.
            progress: Called after every epoch.

        Raises:
            Diverged: The loss stopped being finite, or the weights of the last update give none that is.
            UserError: :attr:`subset` is more than there are.
        """
        mine = self.resolve(data.info)
        data = mine.part(data)
        model = build_model(architecture, data.info.shape, len(data.info.classes)).to(device)
        opponent = mine.opponent(data.info)
        playing = mine if opponent is None else mine.against(opponent.to(device))
        with computing(playing.networks(model), mine.precision, mine.compiled):
            history = playing._loop(model, data, device, progress)
        model.requires_grad_(True)  # frozen in training alone: a loaded model is no different
        return Trained(mine.wrap(model, base).to(device).eval(), history)

    def networks(self, model: Stages) -> tuple[nn.Module, ...]:
        """All whose passes training is made of."""
        return (model,)

    def held(self, images: int) -> int:
        """How many of the training images are held out: at least one image on either side, if any is to be."""
        return min(max(round(self.validation * images), 1), images - 1) if self.validation else 0

    def rates(self, steps: int) -> Iterator[float] | None:
        """Learning rate of each of so many steps; None where it stays as it is."""
        if self.schedule == "constant":
            return None
        return (self.lr * (1 + math.cos(math.pi * done / steps)) / 2 for done in itertools.count())

    def _loop(self, model: Stages, data: Dataset, device: torch.device | str, progress: Progress | None) -> list[Epoch]:
        assert self.epochs is not None
        images, labels = data.x_train.to(device), data.y_train.to(device)
        order = torch.randperm(len(images))
        held = self.held(len(images))
        held_out, kept = order[:held].to(device), order[held:]
        self.pretrain(model, data, images, kept)
        rates = self.rates(self.epochs * math.ceil(len(kept) / self.batch_size))
        optimizer = self._optimizer(model, self.weight_decay)
        history: list[Epoch] = []
        best: tuple[float, int, dict[str, Tensor]] | None = None
        last_epoch = self.epochs + (self.refit or 0)
        for epoch in range(1, self.epochs + 1):
            line = self._epoch(epoch, model, optimizer, data, images, labels, kept, held_out, rates)
            history.append(line)
            if progress is not None:
                progress(epoch, last_epoch, {"loss": line.loss, "accuracy": line.accuracy})
            if self.patience is not None:
                if best is None or line.validation_loss < best[0]:
                    best = (line.validation_loss, epoch, copy.deepcopy(model.state_dict()))
                elif epoch - best[1] >= self.patience:
                    break
        if best is not None:
            model.load_state_dict(best[2])
        if self.refit is not None:
            wanted, _ = score(model, data, images, labels, kept.to(device))
            everything = torch.cat([kept, order[:held]])
            optimizer = self._optimizer(model, self.weight_decay)
            set_lr(optimizer, self.lr / 10)
            for epoch in range(len(history) + 1, len(history) + self.refit + 1):
                line = self._epoch(epoch, model, optimizer, data, images, labels, everything, held_out)
                history.append(line)
                if progress is not None:
                    progress(epoch, last_epoch, {"loss": line.loss, "accuracy": line.accuracy})
                if line.validation_loss <= wanted:
                    break
        # a step's loss is that of the weights before it: nobody has looked at the last update yet
        last, _ = score(model, data, images, labels, kept[:1000].to(device))
        if not math.isfinite(last):
            raise Diverged(f"{self.name}: the loss of the trained model is {last}; try a lower lr")
        return history

    def _epoch(
        self,
        number: int,
        model: Stages,
        optimizer: torch.optim.Optimizer,
        data: Dataset,
        images: Tensor,
        labels: Tensor,
        kept: Tensor,
        held_out: Tensor,
        rates: Iterator[float] | None = None,
    ) -> Epoch:
        """One pass over the images ``kept``, with a learning rate for each step if they are given."""
        start = time.perf_counter()
        model.train()
        total = torch.zeros((), device=images.device)
        correct = torch.zeros((), device=images.device, dtype=torch.int64)
        for batch in self._batches(kept, images.device):
            x, y = data.to_float(images[batch]), labels[batch]
            if rates is not None:
                set_lr(optimizer, next(rates))
            loss = self.step(model, optimizer, x, y)
            if self.max_norm is not None:
                limit_norms(model, self.max_norm)
            # summed on the device: reading a value every step would stall a GPU
            total += loss.value * len(y)
            correct += (loss.logits.argmax(1) == y).sum()
        mean = float(total) / len(kept)
        if not math.isfinite(mean):
            raise Diverged(f"{self.name}: the training loss became {mean} in epoch {number}; try a lower lr")
        valid_loss, valid_accuracy = score(model, data, images, labels, held_out)
        return Epoch(number, mean, int(correct) / len(kept), valid_loss, valid_accuracy, time.perf_counter() - start)

    def pretrain(self, model: Stages, data: Dataset, images: Tensor, kept: Tensor) -> None:
        """Train the stages that need no labels, one after the other, and freeze them (Szegedy et al. 2014, AE400-10).

        Each is the encoder of an autoencoder whose decoder is thrown away; its input is what the stages before it
        make of the images. A model without such stages is left as it is, and so are the random numbers.

        Args:
            model: Changed in place.
            data: Says how images become floats.
            images: uint8 (N, C, H, W), on the model's device.
            kept: Indices of those to train on.

        Raises:
            Diverged: The loss stopped being finite.
        """
        passes = self.epochs if self.pretraining is None else self.pretraining
        assert passes is not None
        for name in model.unsupervised:
            stage = model.stages[name].train()
            decoder = Decoder(stage, model.entering(name, data.to_float(images[:1]))).to(images.device)
            optimizer = self._optimizer(nn.ModuleList([stage, decoder]), 0.0)
            for epoch in range(1, passes + 1):
                total = torch.zeros((), device=images.device)
                for batch in self._batches(kept, images.device):
                    with torch.no_grad():
                        x = model.entering(name, data.to_float(images[batch]))
                    loss = self.reconstruction(model, name, decoder, x)
                    descend(optimizer, loss)
                    total += loss.detach()
                if not total.isfinite():
                    raise Diverged(
                        f"{self.name}: the loss of {name} became {float(total)} in epoch {epoch}; try a lower lr"
                    )
            stage.requires_grad_(False)

    def _batches(self, kept: Tensor, device: torch.device | str) -> Iterator[Tensor]:
        yield from kept[torch.randperm(len(kept))].to(device).split(self.batch_size)  # type: ignore[no-untyped-call]

    def _optimizer(self, model: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
        dense = {id(p) for part in model.modules() if isinstance(part, nn.Linear) for p in part.parameters()}
        groups: dict[float, list[nn.Parameter]] = {}
        for parameter in model.parameters():
            if parameter.requires_grad:
                spared = self.decayed == "dense" and id(parameter) not in dense
                groups.setdefault(0.0 if spared else weight_decay, []).append(parameter)
        grouped = [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]
        if self.optimizer == "adam":
            return torch.optim.Adam(grouped, lr=self.lr)
        return torch.optim.SGD(grouped, lr=self.lr, momentum=self.momentum)


@torch.no_grad()
def score(
    model: nn.Module,
    data: Dataset,
    images: Tensor,
    labels: Tensor,
    index: Tensor | None = None,
    batch: int | None = None,
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in eval mode; (NaN, NaN) for no image.

    Args:
        model: The classifier; left in eval mode.
        data: Says how images become floats.
        images: uint8 (N, C, H, W), on the model's device.
        labels: int64 (N,).
        index: Which of them; ``None``: all.
        batch: Images a forward pass; ``None``: 1000 on a GPU, 128 on a CPU, where more of them leave the cache (a
            convolutional net takes twice the time with 1000). Halved while they are too many for the memory.

    Raises:
        torch.OutOfMemoryError: There was not even room for one.
    """
    batch = batch or (1000 if images.is_cuda else 128)
    chosen = torch.arange(len(images), device=images.device) if index is None else index
    if not len(chosen):
        return math.nan, math.nan
    model.eval()
    batch = min(batch, len(chosen))
    while True:
        try:
            return _score(model, data, images, labels, chosen, batch)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch = (batch + 1) // 2


def _score(
    model: nn.Module, data: Dataset, images: Tensor, labels: Tensor, chosen: Tensor, batch: int
) -> tuple[float, float]:
    loss, correct = 0.0, 0
    for part in chosen.split(batch):  # type: ignore[no-untyped-call]
        logits = model(data.to_float(images[part]))
        loss += float(F.cross_entropy(logits, labels[part], reduction="sum"))
        correct += int((logits.argmax(1) == labels[part]).sum())
    return loss / len(chosen), correct / len(chosen)


def require(declaration: Any, name: str, holds: bool, wanted: str) -> None:
    """Raise a one-line error unless a hyperparameter is in its range."""
    if not holds:
        raise UserError(f"{declaration.name}: {name} must be {wanted}, got {getattr(declaration, name)}")


def _check_literals(trainer: Trainer) -> None:
    for name, choices, optional in _literals(cast("Any", type(trainer))):
        value = getattr(trainer, name, None)
        if value not in choices and not (optional and value is None):
            raise unknown(f"{name} for {trainer.name}", str(value), choices)


@cache  # annotations are strings, which it takes a millisecond to read: a plan declares thousands of trainers
def _literals(kind: Any) -> tuple[tuple[str, tuple[Any, ...], bool], ...]:
    """Fields of a class that have a choice of values: name, choices, and whether it may be None as well."""
    found = []
    for name, hint in get_type_hints(kind).items():
        literal = next((part for part in (hint, *get_args(hint)) if get_origin(part) is Literal), None)
        if literal is not None:
            found.append((name, get_args(literal), type(None) in get_args(hint)))
    return tuple(found)


def _short(value: Any) -> str:
    if isinstance(value, tuple):  # as the command line reads it
        return "/".join(map(_short, value))
    # in full if it must be: models of one label are read as seeds of one defense
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
