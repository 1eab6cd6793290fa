"""Self-tests of attacks against the requirements on reference victims.

A weak, broken or lying attack makes models look robust. Here each declaration is run as it stands, with all its
options, on linear victims whose nearest adversarials are known in closed form, on a plain network, and on classifiers
that only look robust, with and without the remedy. What it has to reach there is stated in
:mod:`harness.selftest.requirements`; as everywhere, the referee alone says what it reached.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch

from .. import determinism, identity
from ..attacks.base import Access, Attack
from ..attacks.transfer import inner
from ..errors import describe
from ..execution.process_pool import Pool, Task
from ..judging.proposal import Bench, Proposal
from ..judging.referee import Verdict, as_images, judge
from ..judging.shard import craft
from ..planning.suite import Suite
from ..schema.eps import TOLERANCE
from ..threat import Norm, Threat
from .requirements import Floor, Rule, stated
from .victims import Case, ReferenceVictim, references

IMAGES: Final[dict[Access, int]] = {"none": 32, "gradients": 32, "scores": 24, "decisions": 20}
"""Images by what an attack needs of the victim: those that ask most often get fewest."""

ONE_BY_ONE: Final = 6
"""Images for an attack that takes them one at a time."""

REPEATED: Final = "steep linear, 10 classes"
"""Victim on which every attack is run twice under one seed."""

MOVED: Final = 0.5
"""Share of its images that any attack must change on a linear victim."""

SEED: Final = 0

_FLAGS: Final = {
    "wrong_shape": "of the wrong shape or type",
    "non_finite": "not finite",
    "out_of_box": "outside [0, 1]",
    "over_budget": "over budget",
}

Progress = Callable[[int, int, str], None]
"""Called as ``progress(done, total, label)`` after each attack and victim."""


@dataclass(frozen=True)
class SelfTestResult:
    """One thing that was expected of an attack, and what was measured.

    Attributes:
        expected: In words, with numbers.
        measured: The same.
        why: Reason why something else is expected than of other attacks of its sort, "" otherwise.
    """

    attack: str
    toolkit: str
    norm: str
    victim: str
    expected: str
    measured: str
    passed: bool
    seconds: float
    why: str = ""


def attacks_of(suites: Iterable[Suite]) -> list[tuple[Attack, Norm]]:
    """Every attack and norm that suites ask for, each once; of a transfer, what crafts."""
    found: dict[str, tuple[Attack, Norm]] = {}
    for suite in suites:
        for norm, attacks in suite.attacks.items():
            for attack in attacks:
                found.setdefault(identity.key(inner(attack), norm), (inner(attack), norm))
    return list(found.values())


def run(
    attacks: Sequence[tuple[Attack, Norm]],
    *,
    victims: Sequence[str] | None = None,
    progress: Progress | None = None,
    jobs: int = 1,
) -> list[SelfTestResult]:
    """Test attacks on reference victims, all of :func:`harness.selftest.victims.references` or those named.

    Returns:
        What was found, in the order of ``attacks`` and of the victims.
    """
    work = [_Work(attack, norm, name) for attack, norm in attacks for name in victims or references()]
    found: dict[int, list[SelfTestResult]] = {}
    for place, findings in _all(work, jobs):
        found[place] = findings
        if progress is not None:
            progress(len(found), len(work), work[place].attack.label)
    return [finding for place in range(len(work)) for finding in found[place]]


class _Work(NamedTuple):
    attack: Attack
    norm: Norm
    victim: str

    def finding(self, answer: _Answer, seconds: float, why: str = "") -> SelfTestResult:
        return SelfTestResult(self.attack.label, self.attack.toolkit, self.norm, self.victim, *answer, seconds, why)


class _Answer(NamedTuple):
    expected: str
    measured: str
    passed: bool


def _all(work: Sequence[_Work], jobs: int) -> Iterator[tuple[int, list[SelfTestResult]]]:
    """Findings with the place of what they are about, in any order."""
    if jobs == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a worker: sums depend on how many there are
        try:
            yield from ((place, _examine(item)) for place, item in enumerate(work))
        finally:
            torch.set_num_threads(threads)
        return
    tasks = (Task(str(place), item) for place, item in enumerate(work))
    toolkits = {load for item in work for load in item.attack.loads if load.__module__.startswith("harness.")}
    with Pool(jobs, _start, None, (_imported, *toolkits)) as pool:
        for done in pool.run(lambda: next(tasks, None)):
            if done is not None:
                lost = done.task.payload.finding(_Answer("an answer", f"{done.error}", False), 0.0)
                yield int(done.task.name), [lost] if done.error is not None else done.value


def _imported() -> None:
    """Nothing: this module is imported where it is called."""


def _start(_: None) -> Callable[[_Work], list[SelfTestResult]]:
    """What a worker process does."""
    torch.set_num_threads(1)
    return _examine


def _examine(item: _Work) -> list[SelfTestResult]:
    """Answers to one expectation after the other, up to the first that is not met: it explains the others."""
    reference = references()[item.victim]
    attack = item.attack.for_classes(reference.classes)
    if attack is None:
        return []
    rule = stated(attack, item.norm, reference)
    found: list[SelfTestResult] = []
    start = time.perf_counter()
    with _quiet():
        for answer in () if rule.skip else _answers(attack, item.norm, reference, rule):
            now = time.perf_counter()
            found.append(item.finding(answer, now - start, rule.why))
            start = now
            if not answer.passed:
                break
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Toolkits warn of what is wrong with the broken victims, which is what those are there for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _answers(attack: Attack, norm: Norm, reference: ReferenceVictim, rule: Rule) -> Iterator[_Answer]:
    case = reference.case(norm, _images(attack))
    floors = rule.floors or (Floor(1.5, 1.0),)
    for threat, same in itertools.groupby(floors, lambda floor: _threat(attack, norm, case, floor)):
        bench = reference.bench()
        proposal = _propose(bench, attack, threat, case)
        if proposal.errors:
            honest = any(words in proposal.errors[0] for words in rule.raising)
            yield _Answer("valid images", f"raised {proposal.errors[0]}", honest)
            return
        verdict = judge(bench.referee, case.x, case.y, proposal.x_adv, threat)
        yield _validity(attack, case, proposal, verdict)
        if reference.sort == "linear":
            yield _movement(case, proposal)
        if rule.floors:
            yield from (_strength(reference, case, threat, verdict, norm, floor) for floor in same)
    if reference.name == REPEATED:
        again = _propose(reference.bench(), attack, threat, case)
        yield _repetition(case, proposal, again)


def _images(attack: Attack) -> int:
    one_by_one = getattr(getattr(attack, "capability", None), "one_by_one", False)
    return ONE_BY_ONE if one_by_one else IMAGES[attack.access]


def _threat(attack: Attack, norm: Norm, case: Case, floor: Floor) -> Threat:
    if attack.kind == "minimal":
        return Threat(norm)
    # a transformation has a severity of its own, and has to be allowed every image
    return Threat(norm, 1.0 if attack.family == "transformation" else floor.reach * float(case.unit.max()))


def _propose(bench: Bench, attack: Attack, threat: Threat, case: Case) -> Proposal:
    """Prepare and call the attack; what it raises is in the record, also where it blames the victim, which is sound."""
    try:
        ready = attack
        if attack.prepares:
            determinism.seed_everything(SEED)
            with bench.attacked.guarded():
                ready = attack.prepare(bench.attacked, case.x_train, case.y_train)
        return craft(bench.attacked, ready, threat, case.x, case.y, SEED)
    except Exception as error:
        return Proposal(None, 0.0, 0, 0, (describe(error),))


def _validity(attack: Attack, case: Case, proposal: Proposal, verdict: Verdict) -> _Answer:
    counts = {words: int(getattr(verdict, flag).sum()) for flag, words in _FLAGS.items()}
    images = as_images(proposal.x_adv, case.x)
    if images is not None and attack.access != "none" and attack.family != "transformation":
        # what some toolkits return for failures, and take for successes: a victim has to call black something
        counts["black"] = int(((images == 0).flatten(1).all(1) & (case.x != 0).flatten(1).any(1)).sum())
    faults = [f"{count} of {len(case.x)} images {words}" for words, count in counts.items() if count]
    return _Answer("valid images", ", ".join(faults) or "all of them valid", not faults)


def _movement(case: Case, proposal: Proposal) -> _Answer:
    images = as_images(proposal.x_adv, case.x)
    assert images is not None
    moved = (images != case.x).flatten(1).any(1)
    expected = f"at least {MOVED:.0%} of the images changed"
    return _Answer(expected, f"changed {int(moved.sum())} of {len(moved)}", float(moved.float().mean()) >= MOVED)


def _strength(
    reference: ReferenceVictim, case: Case, threat: Threat, verdict: Verdict, norm: Norm, floor: Floor
) -> _Answer:
    broken = verdict.adversarial
    if threat.eps is None:
        broken = broken & (verdict.distances[norm] <= floor.reach * case.unit * (1 + TOLERANCE))
    standing = int((~broken).sum())
    share = standing / len(broken)
    eps = f"{norm} {floor.reach * float(case.unit.max()):.3g}"
    where = f"{floor.reach:g} x the distance in closed form ({eps})" if reference.sort == "linear" else eps
    expected = f"at most {floor.left:.0%} left at {where}"
    return _Answer(expected, f"left {share:.0%} ({standing} of {len(broken)})", share <= floor.left)


def _repetition(case: Case, first: Proposal, second: Proposal) -> _Answer:
    images = [as_images(proposal.x_adv, case.x) for proposal in (first, second)]
    same = images[0] is not None and images[1] is not None and torch.equal(images[0], images[1])
    return _Answer("the same images under the same seed", "the same" if same else "not reproducible", same)
