"""Records of probes: gradient diagnostics of a model."""

from __future__ import annotations

from typing import Literal

from .base import Cost, Document, Provenance, Record

Side = Literal["gradients", "black_box"]
"""What attacks on planted adversarials look at: gradients, or scores and decisions."""


class Wavering(Record):
    """How outputs change among calls under different seeds.

    Attributes:
        labels: Share of images whose label changed.
        logits: Largest change of a logit over the largest logit.
    """

    draws: int
    labels: float
    logits: float


class Slopes(Record):
    """Gradients against central differences, by place: ``"clean"`` and ``"boundary"``.

    Attributes:
        n: Images that were looked at.
        float64: Whether differences were taken on a copy in float64, which is the same function.
        error: Median relative error; empty where no step was short enough for differences to settle.
        wrong: Share of the images on which neither those nor a step of an attack go with the gradient; empty likewise.
        coarse: Share of the images on which a step of an attack has nothing to do with the gradient.
    """

    n: int
    float64: bool
    error: dict[str, float]
    wrong: dict[str, float]
    coarse: dict[str, float]


class Diagnostics(Record):
    """Measurements on a model seen one way: shares of the images, and accuracies that attacks leave of 1.

    None stands for what could not be measured, for want of a gradient or images.

    Attributes:
        probabilities: Whether outputs lie in [0, 1] and sum to 1.
        detached: Whether autograd does not reach the input, or raises.
        inner_optimisation: Whether the forward pass differentiates.
        zero_gradient: Share whose gradient of the cross-entropy in float32 is zero.
        non_finite_gradient: Share whose gradient is not finite.
        small_gradient: Share whose gradient of the margin, which does not saturate, is zero.
        jumps: Share at or beside which logits jump under a change far below a step of 8 bits.
        uphill: Share whose margin grows along its gradient more than in random directions.
        scale: Accuracy that plain PGD leaves, by the factor of the logits.
        unbounded: Accuracy that is left when every image is allowed.
        one_step: Accuracy that a step along the gradient of the log-odds leaves.
        steps: Accuracy by number of steps.
        rising: Share of the rise of the margin that came in the last tenth of the steps.
        restarts: Accuracy by number of restarts.
        losses: Accuracy by loss.
        parts: Accuracy by the share of the values that steps change ("1", "0.5", "0.25"), each of what either loss and
            those before left; "differing": on those in which images differ, if others do not. Not in L1.
        slopes: How the gradients compare with differences.
    """

    probabilities: bool
    detached: bool
    inner_optimisation: bool
    zero_gradient: float | None = None
    non_finite_gradient: float | None = None
    small_gradient: float | None = None
    jumps: float | None = None
    uphill: float | None = None
    scale: dict[str, float | None] | None = None
    unbounded: float | None = None
    one_step: float | None = None
    steps: dict[str, float | None] | None = None
    rising: float | None = None
    restarts: dict[str, float | None] | None = None
    losses: dict[str, float | None] | None = None
    parts: dict[str, float | None] | None = None
    slopes: Slopes | None = None
    errors: tuple[str, ...] = ()


class Views(Record):
    """The same measurements on the model as it is and as attacks see it."""

    raw: Diagnostics
    attacked: Diagnostics


class PlantedPart(Record):
    """What was planted, on floats or on the grid of 8-bit files, and how much of it was found; counts of images.

    Attributes:
        planted: Images with an adversarial that the referee confirmed.
        noise: Of these found by noise.
        gradients: Found by some gradient attack of the suite.
        black_box: Found by some attack of the suite on scores or decisions.
    """

    planted: int
    noise: int
    gradients: int
    black_box: int


class PlantedAttack(Record):
    """One attack on the images that those before it on its side did not find.

    Attributes:
        side: ``"gradients"`` or ``"black_box"``.
        shown: Images that it was given.
    """

    attack: str
    side: Side
    shown: int
    found: int
    errors: tuple[str, ...] = ()


class PlantedFacts(Cost):
    """Which planted adversarials a suite's attacks find; see :mod:`harness.trust.planting`.

    Attributes:
        images: Images that were to be planted.
        place: What the new head reads: the name of the last linear layer, or ``"logits"``; "" where nothing could be
            planted.
        asked: Whether the attacks were run: enough images were planted, and noise does not find them.
        remedy: How attacks see the model, in words.
    """

    norm: str
    eps: float
    images: int
    place: str
    asked: bool
    remedy: str = ""
    floats: PlantedPart
    grid: PlantedPart
    attacks: tuple[PlantedAttack, ...] = ()

    @property
    def planted(self) -> int:
        """Images with a planted adversarial."""
        return self.floats.planted + self.grid.planted

    def share(self, side: Side) -> float | None:
        """Share of them that the attacks of a side find; None where none was asked."""
        if not self.asked or not any(one.side == side for one in self.attacks):
            return None
        found: int = getattr(self.floats, side) + getattr(self.grid, side)
        return found / self.planted


class ProbeFacts(Cost):
    """What a probe found; ``forwards`` and ``backwards`` are those of all its images.

    Attributes:
        n: Images that the model gets right, which are those measured on.
        remedy: How attacks see the model, in words.
        votes: Calls behind a label, None if it is declared deterministic.
        stochastic: How outputs change from call to call.
        planted: Which planted adversarials the suite's attacks find, None if that was not asked: it is a task of its
            own, put in where a board is made.
    """

    norm: str
    eps: float
    n: int
    remedy: str
    votes: int | None = None
    stochastic: Wavering
    seen: Views
    planted: PlantedFacts | None = None


class ProbeRecord(Document, Provenance):
    """``health/KEY.json``; ``key`` is "" in records of before there was one."""

    key: str = ""
    facts: ProbeFacts


class PlantedRecord(Document, Provenance):
    """``planted/KEY.json``."""

    facts: PlantedFacts
