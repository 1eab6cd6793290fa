"""Trainers: plain training, which defenses override in part."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..datasets.registry import Dataset, DatasetInfo
from ..errors import UserError
from ..models.registry import build_model
from ..models.stages import Stages
from . import resuming
from .defense import Diverged, Epoch, Loss, Progress, Trained, require
from .gradient_descent import GradientDescent, score
from .optim import descend, limit_norms, set_lr
from .precision import Precision, computing
from .pretraining import Decoder, autoencoder_loss


@dataclass(frozen=True, kw_only=True)
class Trainer(GradientDescent):
    """Plain training of a classifier on the cross-entropy; the base of defenses that change it.

    A defense may have a field ``eps``, at least 0: ``None`` stands for the eps that defenses train at on the data set,
    in the defense's ``norm`` (L2 without such a field).

    Override :meth:`loss` for another objective, :meth:`reconstruction` for another objective of stages that are
    trained without labels, :meth:`step` for two-player training, :meth:`wrap` for parts that act at inference time.

    Attributes:
        validation: Fraction of the training set held out, in [0, 1).
        patience: Stop after so many epochs without a lower validation loss and keep the best weights; ``None``
            trains all epochs. Needs ``validation > 0``.
        pretraining: Passes over the training part for each stage that the architecture has trained without labels
            (:attr:`Stages.unsupervised`); ``None``: as many as :attr:`epochs`.
        pretraining_lr: Train those stages by Adam at this constant rate; ``None``: as with labels.
        fine_tuned: Train those stages on with the labels; else they stay as they are after pre-training (Szegedy et al.
            2014, AE400-10).
        max_norm: Largest Euclidean norm of the weights that enter a unit, of dense layers and convolutions, to which
            they are scaled down after every update (Srivastava et al. 2014, section 5.1); ``None``: no limit.
        refit: After all epochs, the held-out part joins the rest, and training goes on at a tenth of :attr:`lr` until
            the cross-entropy on it has come down to what it was on the rest before, both as the model is judged; for so
            many epochs at most (Goodfellow et al. 2013, section 5.1; Lyu et al. 2015, section IV.A). ``None`` leaves
            the held-out part out. Needs ``validation > 0``, whose fields in the history are no validation then.
        subset: Train on so many training images alone, the first of a fixed, stratified order (the same whatever the
            seed), before any are held out; ``None``: on all.
        precision: ``"bfloat16"`` computes forward passes of training by autocast; weights, updates and every evaluation
            stay float32. No hyperparameter of a method, but it moves numbers within what another seed does.
        compiled: Compile forward passes of training (:func:`torch.compile`), where that can be done; so too.
    """

    by_batch: ClassVar[bool] = False
    """Whether training is nothing but passes of whole batches through the whole model: only then can
    :attr:`precision` and :attr:`compiled` be chosen."""

    validation: float = 0.0
    patience: int | None = None
    pretraining: int | None = field(default=None, metadata={"identity": "set"})
    pretraining_lr: float | None = field(default=None, metadata={"identity": "set"})
    fine_tuned: bool = field(default=False, metadata={"identity": "set"})
    max_norm: float | None = field(default=None, metadata={"identity": "set"})
    refit: int | None = field(default=None, metadata={"identity": "set"})
    subset: int | None = field(default=None, metadata={"identity": "set"})
    precision: Precision = field(default="float32", metadata={"identity": "set"})
    compiled: bool = field(default=False, metadata={"identity": "set"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "pretraining", self.pretraining is None or self.pretraining >= 0, "at least 0")
        require(self, "pretraining_lr", self.pretraining_lr is None or self.pretraining_lr > 0, "positive")
        require(self, "validation", 0 <= self.validation < 1, "in [0, 1)")
        require(self, "patience", self.patience is None or self.patience >= 1, "at least 1")
        require(self, "max_norm", self.max_norm is None or self.max_norm > 0, "positive")
        require(self, "refit", self.refit is None or self.refit >= 1, "at least 1")
        if getattr(self, "eps", None) is not None:
            require(self, "eps", getattr(self, "eps") >= 0, "at least 0")  # noqa: B009
        for name in ("patience", "refit"):
            if getattr(self, name) is not None and not self.validation:
                raise UserError(f"{self.name}: {name} needs a validation split, e.g. validation=0.1")
        if not self.by_batch:
            without = "where not all passes are the whole model's"
            require(self, "precision", self.precision == "float32", f"float32 {without}")
            require(self, "compiled", not self.compiled, f"False {without}")

    def resolve(self, info: DatasetInfo) -> Self:
        """Fill in the data set's epochs and eps."""
        mine: Any = super().resolve(info)
        if getattr(mine, "eps", 0.0) is None:
            mine = dataclasses.replace(mine, eps=info.eps[getattr(mine, "norm", "l2")])
        return mine  # type: ignore[no-any-return]

    def loss(self, model: Stages, x: Tensor, y: Tensor) -> Loss:
        """The objective on one batch: x float32 (N, C, H, W) in [0, 1], y int64 (N,)."""
        logits = model(x)
        return Loss(F.cross_entropy(logits, y), logits)

    def reconstruction(self, model: Stages, stage: str, decoder: Decoder, x: Tensor) -> Tensor:
        """The objective of a stage trained without labels, on what enters it, (N, ...) in [0, 1]: a mean, a scalar."""
        return autoencoder_loss(decoder, model.stages[stage](x), x)

    def step(self, model: Stages, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Loss:
        """One update of the weights on one batch."""
        loss = self.loss(model, x, y)
        if not isinstance(loss, Loss):
            raise UserError(f"{self.name}: loss must return gauntlet.Loss(value, logits), got {type(loss).__name__}")
        descend(optimizer, loss.value)
        return Loss(loss.value.detach(), loss.logits.detach(), loss.logged)

    def opponent(self, info: DatasetInfo) -> nn.Module | None:
        """A network that takes part in training and is thrown away; its initial weights are drawn after the model's."""
        return None

    def against(self, opponent: nn.Module) -> Trainer:
        """This trainer with its opponent in play, ready for :meth:`step`."""
        return self

    def parts(self) -> Mapping[str, resuming.Part] | None:
        """What training changes beside the model and its optimizer, by name, so that a long one can be kept.

        None where that is not known: a trainer with steps of its own, or with an opponent, has to say it.
        """
        ours = type(self).step is Trainer.step and type(self).opponent is Trainer.opponent
        return {} if ours else None

    def wrap(self, model: Stages, base: nn.Module | None) -> nn.Module:
        """The model that is judged: by default the trained one."""
        return model

    def suits(self, architecture: str) -> None:
        """Raise a UserError, with the choices, if networks of that name cannot be trained so: by default all can."""

    def build(self, architecture: str, info: DatasetInfo, base: nn.Module | None = None) -> nn.Module:
        """The untrained model in its judged form: what a checkpoint's weights are loaded into.

        Raises:
            UserError: As :meth:`suits`.
        """
        self.suits(architecture)
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
        """Train from scratch; see :meth:`Defense.fit`.

        Raises:
            UserError: As :meth:`suits`; :attr:`pretraining` and the like for an architecture that has nothing to
                pre-train.
        """
        self.suits(architecture)
        mine = self.resolve(data.info)
        data = mine.part(data)
        model = build_model(architecture, data.info.shape, len(data.info.classes)).to(device)
        for name in ("pretraining", "pretraining_lr", "fine_tuned"):
            if getattr(self, name) not in (None, False) and not model.unsupervised:
                raise UserError(f"{self.name}: {name} means nothing to {architecture}, which trains with labels alone")
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

    def _loop(self, model: Stages, data: Dataset, device: torch.device | str, progress: Progress | None) -> list[Epoch]:
        assert self.epochs is not None
        images, labels = data.x_train.to(device), data.y_train.to(device)
        order = torch.randperm(len(images))
        held = self.held(len(images))
        held_out, kept = order[:held].to(device), order[held:]
        saves = resuming.claimed() if self.parts() is not None else None
        found = saves.read() if saves is not None else None
        if found is None:
            self.pretrain(model, data, images, kept)
        for name in model.unsupervised:
            model.stages[name].requires_grad_(self.fine_tuned)
        optimizer = self.new_optimizer(model, self.weight_decay)
        parts: dict[str, resuming.Part] = {"the model": model, "its optimizer": optimizer, **(self.parts() or {})}
        history: list[Epoch] = []
        best: tuple[float, int, dict[str, Tensor]] | None = None
        if saves is not None and found is not None:
            lines, best = saves.restore(found, parts, device)
            history = [Epoch(*line) for line in lines]
        steps = math.ceil(len(kept) / self.batch_size)
        advance = self.scheduled(optimizer, self.epochs * steps)
        for _ in range(len(history) * steps):
            advance()
        total = self.epochs + (self.refit or 0)

        def one_epoch(rows: Tensor) -> Epoch:
            start = time.perf_counter()
            number = len(history) + 1
            model.train()
            correct = torch.zeros((), device=images.device, dtype=torch.int64)
            totals: dict[str, Tensor] = {}

            def step(batch: Tensor) -> Tensor:
                x, y = data.to_float(images[batch]), labels[batch]
                advance()
                loss = self.step(model, optimizer, x, y)
                if self.max_norm is not None:
                    limit_norms(model, self.max_norm)
                correct.add_((loss.logits.argmax(1) == y).sum())
                for name, value in loss.logged.items():  # on the device, like the loss
                    totals[name] = totals.get(name, 0.0) + value * len(y)
                return loss.value

            mean = self.run_epoch(f"the training loss of epoch {number}", rows, images.device, step)
            checked = score(model, data, images, labels, held_out)
            logged = {name: float(total) / len(rows) for name, total in totals.items()}
            line = Epoch(number, mean, int(correct) / len(rows), *checked, time.perf_counter() - start, logged)
            history.append(line)
            tell()
            return line

        def tell() -> None:
            if progress is not None:
                progress(len(history), total, {"loss": history[-1].loss, "accuracy": history[-1].accuracy})

        if history:
            tell()
        for epoch in range(len(history) + 1, self.epochs + 1):
            if self.patience is not None and best is not None and epoch - 1 - best[1] >= self.patience:
                break
            line = one_epoch(kept)
            if self.patience is not None and (best is None or line.validation_loss < best[0]):
                best = (line.validation_loss, epoch, copy.deepcopy(model.state_dict()))
            if saves is not None:
                saves.keep(parts, ([(*line[:-1], dict(line.logged)) for line in history], best), device)
        if best is not None:
            model.load_state_dict(best[2])
        if self.refit is not None:
            wanted, _ = score(model, data, images, labels, kept.to(device))
            everything = torch.cat([kept, order[:held]])
            optimizer = self.new_optimizer(model, self.weight_decay)
            set_lr(optimizer, self.lr / 10)
            advance = _stay
            for _ in range(self.refit):
                if one_epoch(everything).validation_loss <= wanted:
                    break
        # a step's loss is that of the weights before it: nobody has looked at the last update yet
        last, _ = score(model, data, images, labels, kept[:1000].to(device))
        if not math.isfinite(last):
            raise Diverged(f"{self.name}: the loss of the trained model is {last}; try a lower lr")
        return history

    def pretrain(self, model: Stages, data: Dataset, images: Tensor, kept: Tensor) -> None:
        """Train the stages that need no labels, one after the other.

        Each is the encoder of an autoencoder whose decoder is thrown away; its input is what the stages before it make
        of the images. Images are uint8 (N, C, H, W), those at indices ``kept`` are trained on. A model without such
        stages is left as it is, and so are the random numbers.

        Raises:
            Diverged: The loss stopped being finite.
        """
        passes = self.epochs if self.pretraining is None else self.pretraining
        assert passes is not None
        for name in model.unsupervised:
            stage = model.stages[name].train()
            decoder = Decoder(stage, model.entering(name, data.to_float(images[:1]))).to(images.device)
            both = nn.ModuleList([stage, decoder])
            if self.pretraining_lr is None:
                optimizer = self.new_optimizer(both, 0.0)
            else:
                optimizer = torch.optim.Adam(both.parameters(), lr=self.pretraining_lr)

            def step(batch: Tensor) -> Tensor:
                with torch.no_grad():
                    x = model.entering(name, data.to_float(images[batch]))  # noqa: B023
                loss = self.reconstruction(model, name, decoder, x)  # noqa: B023
                descend(optimizer, loss)  # noqa: B023
                return loss.detach()

            for epoch in range(1, passes + 1):
                self.run_epoch(f"the loss of {name} in epoch {epoch}", kept, images.device, step)


def _stay() -> None:
    """The learning rate stays as it is."""
