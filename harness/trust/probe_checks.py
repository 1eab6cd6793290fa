"""Health checks on a probe's diagnostics: outputs, gradients, convergence of attacks.

The probe measures twice where a remedy is given: on the model as it is (``raw``) and on what attacks see
(``attacked``). A fault that only the first shows is remedied.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, Literal

from ..metrics.pairs import Board, nearest, wilson
from ..schema.eps import limit
from ..schema.probes import Diagnostics, PlantedFacts, ProbeFacts
from .checks import (
    BOUNDED,
    FEW,
    ITERATED,
    MANY,
    WHITE_BOX,
    Check,
    Evidence,
    Grade,
    Power,
    Question,
    accuracies,
    bounded,
    exceeded,
    grade_of,
    least,
    listed,
    percent,
    proved,
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

LOSSES: Final[Mapping[Grade, float]] = {"C": 0.1, "D": 0.2}
"""Accuracy that the log-odds may leave beyond the difference of logits ratio. Sound: 0.02 at most, and 0.07 on softmax
regression, whose small logits make the log-odds heed all classes at once; a rugged loss: 0.2 to 0.46."""

STRENGTH: Final[Mapping[Grade, float]] = {"C": 0.02, "D": BOUNDED}
"""Accuracy that the probe's attack alone may take beyond the whole battery, on the same images: by so much at least the
number is too high. The suite quick leaves at most what the probe does, or 1 % more, on sound networks."""

KNOWN: Final = 0.95
"""Share of planted adversarials that gradient attacks must find together. Sound: 0.96 to 1; gradients that are zero or
cut: 0 to 0.1."""

NOISY: Final = 0.05
"""Share of planted images that noise may find: above it the attacks are not asked, for finding would say nothing."""

WRONG: Final[Mapping[Grade, float]] = {"C": 0.1}
"""Share of images on which the gradient may differ from central differences at every step (see
:mod:`harness.trust.slopes`). Sound networks (dense, convolutional, batch normalised, maxout, residual, sigmoid,
attention): 0; straight through 8 bits: 0.1 at most; cut, scaled, flipped, masked or drowned in noise: 0.8 and more."""

RUGGED: Final[Mapping[Grade, float]] = {"C": 0.2}
"""Share of images on which the gradient may say nothing of a step of a twentieth of eps. Sound: 0 to 0.05; broken: 0.4
to 1."""

Answer = tuple[Grade, str, Power]
View = Literal["raw", "attacked"]
Measure = Callable[[Diagnostics, int], Answer | None]
NOT_PROBED: Final = "the model was not probed in this norm"


def _answered(
    question: Question, evidence: Evidence, measure: Measure, *, fault: bool, view: View = "attacked"
) -> Check:
    """One ``view`` of the model decides. A ``fault`` that only the model as it is shows was remedied."""
    facts = evidence.facts
    if facts is None:
        return question.skipped(NOT_PROBED, "B", "Run the suite again: the probe belongs to it.")
    n = facts.n
    if not n:
        return question.skipped("the model gets none of the probe's images right", "B")
    seen: Diagnostics = getattr(facts.seen, view)
    raw, answer = measure(facts.seen.raw, n), measure(seen, n)
    if answer is None:
        why = listed(seen.errors, 1) or "no gradient"
        return question.skipped(f"the probe could not measure it ({why})", "B")
    grade, finding, power = answer
    if fault and grade == "A" and raw is not None and raw[0] in ("C", "D"):
        return question.remedied(f"{raw[1]}; with the remedy ({facts.remedy}) {finding}", power)
    if fault and grade in ("C", "D"):  # nothing in it says how wrong the accuracy is
        grade, finding = bounded(evidence, grade, finding)
    return question.graded(grade, finding, power, powerless="B" if n < FEW else "A")


def _asks(measure: Measure, *, fault: bool = True, view: View = "attacked") -> Callable[[Question, Evidence], Check]:
    return lambda question, evidence: _answered(question, evidence, measure, fault=fault, view=view)


def _flag(name: str, grade: Grade, fault: str, sound: str) -> Measure:
    """Whether a fact is true that should not be."""
    return lambda seen, n: (grade, fault, Power(n, 1)) if getattr(seen, name) else ("A", sound, Power(n, 1))


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
        return "A", "every image has a gradient", Power(n, least(n, ZERO_GRADIENT))
    return _share(share, n, ZERO_GRADIENT, f"the gradient is {what} on {{}} of the images")


def _share(share: float, n: int, bounds: Mapping[Grade, float], text: str) -> Answer:
    finding = text.format(f"{percent(share)} ({round(share * n)} of {n})")
    return grade_of(round(share * n), n, bounds), finding, Power(n, least(n, bounds))


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
        power = _between(left[weak], left[strong], n, bounds)
        return grade_of(round((left[weak] - left[strong]) * n), n, bounds), found, power

    return measure


def _between(weak: float, strong: float, n: int, bounds: Mapping[Grade, float]) -> Power:
    """Of two attacks, by the accuracies they leave: what the one leaves and the other breaks can raise a question."""
    left, broke = round(weak * n), round((1 - strong) * n)
    what = "the weaker attack left {} of them" if left < broke else "the stronger attack broke {} of them"
    return Power(n, least(n, bounds), min(left, broke), what)


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
        return grade, text, Power(n, least(n, STEPS), round(full * n), "{} of them were left, and watched")
    return grade, text, _between(half, full, n, STEPS)


def _restarts(seen: Diagnostics, n: int) -> Answer | None:
    left = accuracies(seen.restarts)
    if not left:
        return None
    counts = sorted(left, key=int)
    few, many = left[counts[-2]], left[counts[-1]]
    text = f"{counts[-1]} restarts left {percent(many)}, {counts[-2]} left {percent(few)}"
    return grade_of(round((few - many) * n), n, RESTARTS), text, _between(few, many, n, RESTARTS)


def _stochastic(question: Question, evidence: Evidence) -> Check:
    """Whether calls differ; the remedy's text says whether attacks and referee were told."""
    facts = evidence.facts
    if facts is None:
        return question.skipped(NOT_PROBED, "B", "Run the suite again: the probe belongs to it.")
    labels, logits = facts.stochastic.labels, facts.stochastic.logits
    change = f"labels of {percent(labels)} of the images changed, and logits by up to {percent(logits)}"
    finding = f"among {facts.stochastic.draws} calls {change}"
    power = Power(facts.n, 1)
    if labels == 0 and logits <= DRAWN:
        return question.graded("A", finding, power, powerless="B")
    if averaged := re.search(r"averaged over (\d+) draws", facts.remedy):
        return question.remedied(f"{finding}; attacks averaged {averaged[1]} draws", power)
    if votes := facts.votes:
        counted = "one call" if votes == 1 else f"the majority of {votes} calls"
        return question.remedied(
            f"{finding}; the model averages on its own account, and {counted} under a fixed seed is its label",
            power,
        )
    # with other labels attacks and referee ask two models
    return question.graded("D" if labels else "C", finding, power)


def _strength(question: Question, evidence: Evidence) -> Check:
    """What is left on the probe's images: the first that the model gets right, in the order of the test set."""
    if evidence.board.targeted:
        return question.skipped("the probe's attack has no targets, and vouches for no battery that has", "B")
    facts = evidence.facts
    if facts is None:
        grade: Grade = "B" if evidence.of(ITERATED) else "C"  # then nobody vouches for the battery
        more = "" if grade == "B" else ", and no iterated gradient attack ran"
        return question.skipped(NOT_PROBED + more, grade, question.remedy)
    seen, n = facts.seen.attacked, facts.n
    whole = [value for left in (seen.steps, seen.restarts, seen.losses) for value in accuracies(left).values()]
    parts = accuracies(seen.parts)
    hidden = min(parts, key=lambda name: parts[name], default="")
    if hidden and grade_of(round((parts["1"] - parts[hidden]) * n), n, STRENGTH) == "A":
        hidden = ""
    best = [*whole, *(parts.values() if hidden else ())]
    distance = nearest(evidence.everything, evidence.norm)["distance"].to_numpy(float)
    stands = distance[evidence.correct][:n] > limit(facts.eps)
    if not best or not n or len(stands) < n:
        return question.skipped("the probe's attack could not be run on the same images", "B")
    battery, probe = int(stands.sum()), round(min(best) * n)
    where = threat_text(evidence.norm, facts.eps)
    left = f"the battery left {percent(battery / n)}, the probe's attack alone {percent(probe / n)}"
    finding = f"{left} of {n} images at {where}"
    if hidden:
        which = (
            "the values in which images differ" if hidden == "differing" else f"{percent(float(hidden))} of the values"
        )
        finding += f"; by steps on {which}, of what those on all left ({percent(parts['1'])})"
    power = _between(battery / n, probe / n, n, STRENGTH)
    return question.graded(grade_of(battery - probe, n, STRENGTH), finding, power)


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
    found, n = counts["in all"]
    power = Power(n, FEW, unit="planted adversarials")
    if lost:
        grade, shown = proved(evidence)
        finding = f"the battery cannot find what is known to be there: {finding}"
        return question.graded(grade, f"{finding}; {shown}" if shown else finding, power)
    return question.graded("A" if found >= KNOWN * n or n - found < FEW else "B", finding, power)


def _unplanted(planted: PlantedFacts) -> str:
    """Why attacks were not asked."""
    noisy = planted.floats.noise + planted.grid.noise
    where = f" (head upon {planted.place})" if planted.place else ""
    if noisy > NOISY * planted.planted:
        return (
            f"noise finds {noisy} of {planted.planted} planted adversarials, so that finding them says nothing{where}"
        )
    return (
        f"adversarials could be planted for {planted.floats.planted} images on floats and {planted.grid.planted} on "
        f"the 8-bit grid alone, of {planted.images}{where}"
    )


def _slopes(question: Question, evidence: Evidence) -> Check:
    """A gradient that a stand-in was given for is not the model's, and need not be: what it is worth, others ask."""
    check = _answered(question, evidence, _differences, fault=True)
    facts = evidence.facts
    if facts is not None and check.status == "failed" and _STAND_IN in facts.remedy:
        return question.remedied(f"attacks follow a stand-in's gradient ({facts.remedy}): {check.finding}", check.power)
    return check


_STAND_IN: Final = " for the gradient of "
_MISSING: Final = "gradients are missing"


def _reached(question: Question, evidence: Evidence) -> Check:
    """Gradients that are there, of a model whose battery leaves out what follows them, were not asked."""
    facts = evidence.facts
    if facts is not None and facts.n and _MISSING in facts.remedy and not facts.seen.attacked.detached:
        finding = "gradients reach the input, and attacks that follow them were left out as if none did"
        return question.graded("D", finding, Power(facts.n, 1))
    return _answered(question, evidence, _DETACHED, fault=True)


def _differences(seen: Diagnostics, n: int) -> Answer | None:
    if seen.slopes is None:
        return None
    slopes, kinds = seen.slopes, []
    if slopes.wrong:
        where, share = max(slopes.wrong.items(), key=lambda item: item[1])
        kinds.append((where, share, WRONG, "the gradient is not that of the outputs on {}"))
    where, share = max(slopes.coarse.items(), key=lambda item: item[1])
    kinds.append((where, share, RUGGED, "the gradient says nothing of a step of a twentieth of eps on {}"))
    for where, share, bounds, text in kinds:
        grade, finding, power = _share(share, slopes.n, bounds, text)
        if grade != "A":
            return grade, f"{finding} of the images ({_PLACES[where]})", power
    if not slopes.error:
        return None
    errors = " and ".join(f"{error:.0e} {_PLACES[where]}" for where, error in slopes.error.items())
    how = "float64" if slopes.float64 else "float32"
    power = Power(slopes.n, least(slopes.n, WRONG))
    return "A", f"gradients differ from differences in {how} by {errors} (median, relative)", power


_PLACES: Final = {"clean": "around the images", "boundary": "near the boundary"}

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
        "Name the module that cuts them with --stand-in MODULE=identity; where none does, leave out "
        "--remedy gradients=missing.",
        _reached,
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
        "gradients-match-differences",
        "Are gradients those of what the model computes?",
        "Find the part whose backward pass is not its own, or give attacks a stand-in for it: --stand-in "
        "MODULE=identity; and run the suite black-box, whose attacks need no gradient, on more images.",
        _slopes,
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
        "Add an iterated gradient attack with enough steps to the suite, AutoPGD say; where steps on part of "
        "the values break more, partial-pgd, and look for what the model watches.",
        _strength,
    ),
)


_OF_BATTERIES: Final = frozenset({"planted-found", "battery-strength"})


def suspicious(facts: ProbeFacts) -> bool:
    """Whether what the probe measured, or what was planted, gives a reason to doubt attacks that follow gradients.

    Any grade below a B does, and so does a fault that was remedied; so do planted adversarials of which gradient
    attacks found less than :data:`KNOWN`, and a model of which too little was seen.
    """
    alone = Evidence(Board("", {}, (), health={"": {facts.norm: facts}}), "", facts.norm)
    checks = [question.ask(alone) for question in FACT_QUESTIONS if question.name not in _OF_BATTERIES]
    found = facts.planted.share("gradients") if facts.planted is not None else None
    return facts.n < MANY or max(check.grade for check in checks) > "B" or (found is not None and found < KNOWN)
