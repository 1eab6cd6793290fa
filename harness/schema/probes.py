"""Records of probes: gradient diagnostics of a model."""

from __future__ import annotations

from .base import Cost, Document, Provenance, Record


class Wavering(Record):
    """How outputs change among calls under different seeds.

    Attributes:
        labels: Share of images whose label changed.
        logits: Largest change of a logit over the largest logit.
    """

    draws: int
    labels: float
    logits: float


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
        uphill: Share whose margin grows along its gradient more than in random directions.
        scale: Accuracy that plain PGD leaves, by the factor of the logits.
        unbounded: Accuracy that is left when every image is allowed.
        one_step: Accuracy that a step along the gradient of the log-odds leaves.
        steps: Accuracy by number of steps.
        rising: Share of the rise of the margin that came in the last tenth of the steps.
        restarts: Accuracy by number of restarts.
        losses: Accuracy by loss.
    """

    probabilities: bool
    detached: bool
    inner_optimisation: bool
    zero_gradient: float | None = None
    non_finite_gradient: float | None = None
    small_gradient: float | None = None
    uphill: float | None = None
    scale: dict[str, float | None] | None = None
    unbounded: float | None = None
    one_step: float | None = None
    steps: dict[str, float | None] | None = None
    rising: float | None = None
    restarts: dict[str, float | None] | None = None
    losses: dict[str, float | None] | None = None
    errors: tuple[str, ...] = ()


class Views(Record):
    """The same measurements on the model as it is and as attacks see it."""

    raw: Diagnostics
    attacked: Diagnostics


class ProbeFacts(Cost):
    """What a probe found; ``forwards`` and ``backwards`` are those of all its images.

    Attributes:
        n: Images that the model gets right, which are those measured on.
        remedy: How attacks see the model, in words.
        votes: Calls behind a label, None if it is declared deterministic.
        stochastic: How outputs change from call to call.
    """

    norm: str
    eps: float
    n: int
    remedy: str
    votes: int | None = None
    stochastic: Wavering
    seen: Views


class ProbeRecord(Document, Provenance):
    """``health/KEY.json``; ``key`` is "" in records of before there was one."""

    key: str = ""
    facts: ProbeFacts
