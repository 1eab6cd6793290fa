"""Records of models: name, training card, admission, state."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from .base import Document, Json, Number, Origin, Record


class ModelName(Record):
    """What people know a model by."""

    dataset: str
    architecture: str
    defense: str
    seed: int

    @property
    def group(self) -> tuple[str, str, str]:
        """What seeds of one defense share: data set, architecture and defense."""
        return self.dataset, self.architecture, self.defense

    @classmethod
    def of(cls, other: ModelName) -> ModelName:
        """The name in another record."""
        return ModelName(dataset=other.dataset, architecture=other.architecture, defense=other.defense, seed=other.seed)

    def __str__(self) -> str:
        return f"{self.dataset} {self.architecture} {self.defense} seed {self.seed}"

    @property
    def names(self) -> tuple[str, str, str, int]:
        """All four."""
        return *self.group, self.seed


class ModelEntry(ModelName):
    """A model in a plan.

    Attributes:
        ranked: Whether the suite's battery judges it, so that it may have a rank.
        stochastic: Whether its predictions are drawn.
        declaration: What its key is a hash of.
    """

    model: str
    ranked: bool = True
    stochastic: bool = False
    declaration: Json = {}


class EpochLine(Record):
    """One epoch of training; see :class:`harness.training.defense.Epoch`. ``logged`` is left out where it is empty."""

    epoch: int
    loss: Number
    accuracy: Number
    validation_loss: Number
    validation_accuracy: Number
    seconds: Number
    logged: dict[str, Number] = {}

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        return written if self.logged else {name: value for name, value in written.items() if name != "logged"}


class Agreement(Record):
    """How two sets of answers to the same images differ.

    Attributes:
        differ: Images whose logits differ by more than rounding.
        labels: Images whose label is another one, and not by rounding alone.
        change: Largest change of a logit, in units of the largest logit.
    """

    images: int
    differ: int
    labels: int
    change: float


class Admission(Record):
    """What inspection found of a user's model.

    Attributes:
        outputs: ``"logits"``, ``"probabilities"`` or ``"log-probabilities"``.
        train_mode: Whether it came in that mode; it is judged in eval mode.
        changed_labels: Images whose label varied over three calls; 0 for a deterministic model.
        clean_accuracy: On the images asked, in [0, 1].
        writes: Whether it writes into its images.
        gradients: Whether they reach the images.
        gradient_fault: Why attacks leave its gradients alone; "" where they follow them.
        answers: Agreement for each way of asking the same; none for a model that draws.
        passes: Of an image, forward and backward, that the inspection took.
    """

    outputs: str = ""
    dtype: str = ""
    train_mode: bool = False
    images: int = 0
    changed_labels: int = 0
    clean_accuracy: Number = math.nan
    writes: bool = False
    gradients: bool = True
    gradient_fault: str = ""
    answers: dict[str, Agreement] = {}
    passes: int = 0


class Card(Document, ModelName, Origin):
    """``card.json``: written after a model's weights, it makes them count.

    Attributes:
        sha256: Digest of the weights; of a user's model the fingerprint of its outputs and gradients.
        declaration: What the model's key is a hash of.
        upon: Digests of the models that it is built on, by key.
        git_commit: Of the code that trained it.
        epochs: Epochs trained; None of a user's model, which was not trained here.
        train_accuracy: On clean training images, in [0, 1].
        test_accuracy: On clean test images, in [0, 1].
        history: A line per epoch.
        reference: Where a user's model is loaded from; None for a trained one.
        remedy: How attacks see a user's model, in words.
        inspection: What was found of a user's model.
    """

    sha256: str
    declaration: Json = {}
    upon: dict[str, str] = {}
    git_commit: str = ""
    parameters: int | None = None
    epochs: int | None = None
    seconds: Number = math.nan
    train_accuracy: Number = math.nan
    test_accuracy: Number = math.nan
    history: tuple[EpochLine, ...] = ()
    reference: Json | None = None
    remedy: str = ""
    inspection: Admission | None = None


class FailedTraining(Document):
    """``failed.json``: why a model has no weights."""

    error: str


class ModelState(Record):
    """What became of a model.

    Attributes:
        status: ``"ok"`` or ``"failed"``.
        card: Its card; None if it failed, or was not trained here.
    """

    status: Literal["ok", "failed"] = "ok"
    error: str = ""
    card: Card | None = None


class KnownModel(ModelName, ModelState):
    """What a board knows of a model."""
