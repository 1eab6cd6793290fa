"""Health checks on a probe's diagnostics: outputs, gradients, convergence of attacks.

The probe measures twice where a remedy is given: on the model as it is (``raw``) and on what attacks see
(``attacked``). A fault that only the first shows is remedied.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from ..metrics.pairs import limit, nearest, wilson
from ..schema.probes import Diagnostics, PlantedFacts
from .checks import (
    FEW,
    ITERATED,
    MANY,
    WHITE_BOX,
    Check,
    Evidence,
    Grade,
    Question,
    accuracies,
    exceeded,
    grade_of,
    listed,
    percent,
    threat_text,
)

# "sound" below are plain, gaussian-noise, fast-gradient and pgd-trained networks on digits and MNIST in linf, l2 and
# l1; "broken" are the classifiers of harness.selftest.masked_gradients, which only look robust

DRAWN: Final = 1e-4
"""Relative change of a logit between calls that is put down to rounding. Sound: 0; drawn noise: 0.15 and more."""

ZERO_GRADIENT: Final[Mapping[Grade, float]] = {"C": 0.01, "D": 0.05}
"""Share of images on which a gradient may be exactly zero or not finite: attacks do not move there at all. Sound: 0;
broken: 0.7 and more."""

JUMPS: Final[Mapping[Grade, float]] = {"C": 0.01, "D": 0.05}
"""Share of images beside which logits may jump. Sound: 0; models that answer files otherwise than floats: 1."""

UPHILL: Final[Mapping[Grade, float]] = {"C": 0.1, "D": 0.3}
"""Share of images on which a small step along the gradient may gain no more than random steps do. Sound: 0 to 0.03;
broken: 0.66 to 0.81; directions drawn by chance: 0.69."""

SCALE: Final[Mapping[Grade, float]] = {"C": 0.05, "D": 0.2}
"""Accuracy that a plain attack may take beyond its own when the logits are divided by 20. Sound: less than nothing,
because division makes it weaker; logits that are too large: 0.38 and more."""

UNBOUNDED: Final[Mapping[Grade, float]] = {"C": 0.01, "D": 0.05}
"""Accuracy that may be left when the budget holds every image there is. The truth is zero, and so is sound; broken: 0.1
to 0.5."""

STEPS: Final[Mapping[Grade, float]] = {"B": 0.01, "C": 0.05}
"""Accuracy that twice as many steps may still take. Sound: 0 to 0.02, which is fewer images than count; broken: 0.04
to 0.1."""

RISING: Final[Mapping[Grade, float]] = {"B": 0.1, "C": 0.25}
"""Share of the whole rise of the loss that may come in the last tenth of the steps: even progress gives a tenth.
Sound: 0 to 0.001; this is a guard against steps that are too small."""

RESTARTS: Final[Mapping[Grade, float]] = {"B": 0.02, "C": 0.05}
"""Accuracy that five restarts may take beyond two. Sound: 0 to 0.02; broken: 0.02 to 0.13."""

LOSSES: Final[Mapping[Grade, float]] = {"C": 0.05, "D": 0.2}
"""Accuracy that the log-odds may leave beyond the difference of logits ratio. Sound: 0.02 at most; a rugged loss: 0.2
to 0.4."""

STRENGTH: Final[Mapping[Grade, float]] = {"C": 0.02, "D": 0.1}
"""Accuracy that the probe's attack alone may take beyond the whole battery, on the same images. The suite quick leaves
at most what the probe does, or 1 % more, on sound networks."""

KNOWN: Final = 0.95
"""Share of planted adversarials that gradient attacks must find together. Sound: 0.96 to 1; gradients that are zero or
cut: 0 to 0.1."""

Answer = tuple[Grade, str]
Measure = Callable[[Diagnostics, int], Answer | None]
NOT_PROBED: Final = "the model was not probed in this norm"


def _answered(question: Question, evidence: Evidence, measure: Measure, *, fault: bool) -> Check:
    """What attacks saw decides. Where only the model as it is shows a ``fault`` of its own, that was remedied."""
    facts = evidence.facts
    if facts is None:
        return question.skipped(NOT_PROBED, "B", "Run the suite again: the probe belongs to it.")
    n = facts.n
    if not n:
        return question.skipped("the model gets none of the probe's images right", "B")
    raw, attacked = measure(facts.seen.raw, n), measure(facts.seen.attacked, n)
    if attacked is None:
        why = listed(facts.seen.attacked.errors, 1) or "no gradient"
        return question.skipped(f"the probe could not measure it ({why})", "B")
    grade, finding = attacked
    if fault and grade == "A" and raw is not None and raw[0] in ("C", "D"):
        return question.remedied(f"{raw[1]}; with the remedy ({facts.remedy}) {finding}")
    return question.graded(grade, finding)


def _asks(measure: Measure, *, fault: bool = True) -> Callable[[Question, Evidence], Check]:
    return lambda question, evidence: _answered(question, evidence, measure, fault=fault)


def _flag(name: str, grade: Grade, fault: str, sound: str) -> Measure:
    """Whether a fact is true that should not be."""
    return lambda seen, n: (grade, fault) if getattr(seen, name) else ("A", sound)


def _vanishing(seen: Diagnostics, n: int) -> Answer | None:
    shares = {
        "zero for the cross-entropy": seen.zero_gradient,
        "zero for the margin": seen.small_gradient,
        "not finite": seen.non_finite_gradient,
    }
    if len(known := {text: share for text, share in shares.items() if share is not None}) < len(shares):
        return None
    what, share = max(known.items(), key=lambda item: item[1])
    if not share:
        return "A", "every image has a gradient"
    return _share(share, n, ZERO_GRADIENT, f"the gradient is {what} on {{}} of the images")


def _share(share: float, n: int, bounds: Mapping[Grade, float], text: str) -> Answer:
    return grade_of(round(share * n), n, bounds), text.format(f"{percent(share)} ({round(share * n)} of {n})")


def _jumps(seen: Diagnostics, n: int) -> Answer | None:
    if seen.jumps is None:
        return None
    return _share(
        seen.jumps, n, JUMPS, "a change of a twentieth of a step of 8 bits makes logits jump on {} of the images"
    )


def _misleading(seen: Diagnostics, n: int) -> Answer | None:
    if seen.uphill is None:
        return None
    return _share(1 - seen.uphill, n, UPHILL, "the gradient gains less than random directions on {} of the images")


def _unbounded(seen: Diagnostics, n: int) -> Answer | None:
    if seen.unbounded is None:
        return None
    return _share(seen.unbounded, n, UNBOUNDED, "a budget without bound left {} of the images")


def _lead(name: str, weak: str, strong: str, bounds: Mapping[Grade, float], text: str) -> Measure:
    """How much less one setting of an attack leaves than another."""

    def measure(seen: Diagnostics, n: int) -> Answer | None:
        left = accuracies(getattr(seen, name))
        if not left:
            return None
        found = text.format(percent(left[weak]), percent(left[strong]))
        return grade_of(round((left[weak] - left[strong]) * n), n, bounds), found

    return measure


def _steps(seen: Diagnostics, n: int) -> Answer | None:
    left, rising = accuracies(seen.steps), seen.rising
    if not left:
        return None
    counts = sorted(left, key=int)
    half, full = left[counts[-2]], left[counts[-1]]
    grade = grade_of(round((half - full) * n), n, STEPS)
    text = f"{counts[-1]} steps left {percent(full)}, {counts[-2]} steps {percent(half)}"
    if rising is not None and round(full * n) >= FEW:
        text += f", and {percent(rising)} of the rise of the loss came in the last tenth of the steps"
        grade = max(grade, exceeded(rising, RISING))
    return grade, text


def _restarts(seen: Diagnostics, n: int) -> Answer | None:
    left = accuracies(seen.restarts)
    if not left:
        return None
    counts = sorted(left, key=int)
    few, many = left[counts[-2]], left[counts[-1]]
    text = f"{counts[-1]} restarts left {percent(many)}, {counts[-2]} left {percent(few)}"
    return grade_of(round((few - many) * n), n, RESTARTS), text


def _stochastic(question: Question, evidence: Evidence) -> Check:
    """Whether calls differ; the remedy's text says whether attacks and referee were told."""
    facts = evidence.facts
    if facts is None:
        return question.skipped(NOT_PROBED, "B", "Run the suite again: the probe belongs to it.")
    labels, logits = facts.stochastic.labels, facts.stochastic.logits
    change = f"labels of {percent(labels)} of the images changed, and logits by up to {percent(logits)}"
    finding = f"among {facts.stochastic.draws} calls {change}"
    if labels == 0 and logits <= DRAWN:
        return question.graded("A", finding)
    if averaged := re.search(r"averaged over (\d+) draws", facts.remedy):
        return question.remedied(f"{finding}; attacks averaged {averaged[1]} draws")
    if votes := facts.votes:
        counted = "one call" if votes == 1 else f"the majority of {votes} calls"
        return question.remedied(
            f"{finding}; the model averages on its own account, and {counted} under a fixed seed is its label"
        )
    return question.graded("D" if labels else "C", finding)  # with other labels attacks and referee ask two models


def _strength(question: Question, evidence: Evidence) -> Check:
    """What is left on the probe's images: the first that the model gets right, in the order of the test set."""
    facts = evidence.facts
    if facts is None:
        grade: Grade = "B" if evidence.of(ITERATED) else "C"  # then nobody vouches for the battery
        more = "" if grade == "B" else ", and no iterated gradient attack ran"
        return question.skipped(NOT_PROBED + more, grade, question.remedy)
    seen, n = facts.seen.attacked, facts.n
    best = [value for left in (seen.steps, seen.restarts, seen.losses) for value in accuracies(left).values()]
    distance = nearest(evidence.everything, evidence.norm)["distance"].to_numpy(float)
    stands = distance[evidence.correct][:n] > limit(facts.eps)
    if not best or not n or len(stands) < n:
        return question.skipped("the probe's attack could not be run on the same images", "B")
    battery, probe = int(stands.sum()), round(min(best) * n)
    where = threat_text(evidence.norm, facts.eps)
    left = f"the battery left {percent(battery / n)}, the probe's attack alone {percent(probe / n)}"
    finding = f"{left} of {n} images at {where}"
    return question.graded(grade_of(battery - probe, n, STRENGTH), finding)


def _planted(question: Question, evidence: Evidence) -> Check:
    """The lower of what is found on floats and on the grid of 8-bit files, and of both together."""
    if not evidence.of(WHITE_BOX):
        return question.skipped("no gradient attack ran in this norm")
    facts = evidence.facts
    if facts is None:
        return question.skipped(NOT_PROBED, "B", "Run the suite again: the probe belongs to it.")
    planted = facts.planted
    if planted is None:
        again = "Run the suite again: planting belongs to it."
        return question.skipped("no adversarials were planted in this norm", "B", again)
    if not planted.asked:
        return question.skipped(_unplanted(planted), "B")
    parts = {"on floats": planted.floats, "on the 8-bit grid": planted.grid}
    counts = {where: (part.gradients, part.planted) for where, part in parts.items()}
    counts["in all"] = (planted.floats.gradients + planted.grid.gradients, planted.planted)
    said = " and ".join(f"{found} of {n} {where}" for where, (found, n) in list(counts.items())[:2])
    finding = f"of adversarials known to be there, gradient attacks found {said}"
    if any(one.side == "black_box" for one in planted.attacks):
        other = planted.floats.black_box + planted.grid.black_box
        finding += f"; black-box attacks {other} of {planted.planted}"
    lost = any(n - found >= MANY and wilson(found, n)[1] < KNOWN for found, n in counts.values())
    if lost:
        return question.graded("D", f"the battery cannot find what is known to be there: {finding}")
    found, n = counts["in all"]
    return question.graded("A" if found >= KNOWN * n or n - found < FEW else "B", finding)


def _unplanted(planted: PlantedFacts) -> str:
    """Why attacks were not asked."""
    noisy = planted.floats.noise + planted.grid.noise
    where = f" (head upon {planted.place})" if planted.place else ""
    if noisy > 0.05 * planted.planted:  # harness.trust.planting.NOISY
        return (
            f"noise finds {noisy} of {planted.planted} planted adversarials, so that finding them says nothing{where}"
        )
    return (
        f"adversarials could be planted for {planted.floats.planted} images on floats and {planted.grid.planted} on "
        f"the 8-bit grid alone, of {planted.images}{where}"
    )


_DETACHED: Final = _flag(
    "detached", "D", "automatic differentiation does not reach the input", "gradients reach the input"
)
_INNER: Final = _flag(
    "inner_optimisation",
    "C",
    "the forward pass computes gradients of its own",
    "the forward pass computes no gradients of its own",
)
_SCALED: Final = _lead("scale", "1", "0.05", SCALE, "a plain attack left {}, and {} with the logits divided by 20")
_OF_LOSSES: Final = _lead("losses", "ce", "dlr", LOSSES, "the log-odds left {}, the difference of logits ratio {}")

FACT_QUESTIONS: Final = (
    Question(
        "outputs-are-probabilities",
        "Does the model return logits?",
        "Return logits, or let attacks see the logarithm with --remedy probabilities.",
        _asks(_flag("probabilities", "D", "the outputs are probabilities", "the outputs are logits")),
    ),
    Question(
        "stochastic-predictions",
        "Does the same image always get the same answer?",
        "Let attacks average and the referee vote over draws with --remedy draws=N.",
        _stochastic,
    ),
    Question(
        "continuous-logits",
        "Are images beside each other treated alike?",
        "Judge it as files: --remedy grid=255; or take out what looks at the exact values of pixels.",
        _asks(_jumps),
    ),
    Question(
        "detached-gradients",
        "Do gradients reach the input?",
        "Name the module that cuts them with --stand-in MODULE=identity.",
        _asks(_DETACHED),
    ),
    Question(
        "optimisation-in-forward",
        "Is the forward pass free of optimisation?",
        "Judge the model without that part as well, or give attacks a stand-in for it: --stand-in MODULE=identity.",
        _asks(_INNER),
    ),
    Question(
        "vanishing-gradients",
        "Does every image have a gradient?",
        "Saturated logits: --remedy temperature=N; a part without a slope: --stand-in MODULE=identity.",
        _asks(_vanishing),
    ),
    Question(
        "misleading-gradients",
        "Do gradients point uphill?",
        "Name the module that shatters them with --stand-in MODULE=identity; random parts need --remedy draws=N.",
        _asks(_misleading),
    ),
    Question(
        "logit-scale",
        "Does the scale of the logits leave attacks alone?",
        "Divide the logits that attacks see with --remedy temperature=N.",
        _asks(_SCALED),
    ),
    Question(
        "losses-agree",
        "Do different losses break the same images?",
        "Add attacks with other losses to the suite, and look for what makes the loss rugged (misleading-gradients).",
        _asks(_OF_LOSSES),
    ),
    Question(
        "unbounded-attack",
        "Does a budget without bound break every image?",
        "Gradients do not lead out of the right class: see misleading-gradients and vanishing-gradients.",
        _asks(_unbounded),
    ),
    Question(
        "steps-saturated",
        "Would more steps find no more?",
        "Raise the steps of the suite's iterated attacks until twice as many find no more.",
        _asks(_steps, fault=False),
    ),
    Question(
        "restarts-saturated",
        "Would more restarts find no more?",
        "Add random restarts to the suite's iterated attacks until more find no more.",
        _asks(_restarts, fault=False),
    ),
    Question(
        "planted-found",
        "Do gradient attacks find what is known to be there?",
        "Gradients are zero, lie or are cut before the last layer: see vanishing-gradients, misleading-gradients and "
        "detached-gradients, and name a --stand-in MODULE=identity; random parts need --remedy draws=N.",
        _planted,
    ),
    Question(
        "battery-strength",
        "Is the battery as strong as the probe's attack?",
        "Add an iterated gradient attack with enough steps to the suite, AutoPGD say.",
        _strength,
    ),
)
