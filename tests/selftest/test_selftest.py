"""The self-tests of attacks find out the weak, the broken and the lying by name, and let the sound pass."""

from __future__ import annotations

import dataclasses
import itertools
import os
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from harness.attacks.alpha import Alpha
from harness.attacks.base import Access, Attack, Family, Kind
from harness.attacks.fast_gradient import Gradient
from harness.attacks.noise import Noise
from harness.attacks.toolkits import art, foolbox
from harness.attacks.toolkits.art import Art
from harness.attacks.toolkits.foolbox import Foolbox
from harness.attacks.transfer import Transfer
from harness.planning.gradient_free import besides
from harness.planning.suite import Suite
from harness.selftest.requirements import RULES, stated
from harness.selftest.run import IMAGES, SelfTestResult, attacks_of, run
from harness.selftest.victims import Case, ReferenceVictim, closed_form, linear, references
from harness.threat import Norm, Threat
from harness.victims.victim import Victim, input_gradient
from suites import suites

FLAT, STEEP = LINEAR = ("flat linear, 2 classes", "steep linear, 10 classes")
PLAIN = "plain network"
HARD = "hardened network"
FEW = (*LINEAR, PLAIN)


def faults(attack: Attack, norm: Norm = "linf", victims: tuple[str, ...] = FEW) -> list[SelfTestResult]:
    return [finding for finding in run([(attack, norm)], victims=victims) if not finding.passed]


@dataclass(frozen=True, kw_only=True)
class Suspect(Attack):
    """Sign steps on the margin, sound unless told otherwise."""

    name: ClassVar[str] = "suspect"

    way: str = "sound"
    steps: int = 10
    length: float = 1.0

    @property
    def family(self) -> Family:
        return "iterated"

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        x_adv = self.climb(victim, x, y, threat)
        match self.way:
            case "does nothing":
                return x
            case "NaN":
                x_adv[0] = torch.nan
            case "over budget":
                return (x + 1.01 * (x_adv - x)).clamp(0, 1)
            case "outside the box":
                return x_adv + 1
            case "raises":
                raise RuntimeError("no luck")
            case "returns nothing":
                return None  # type: ignore[return-value]
            case "drops an image":
                return x_adv[1:]
            case "draws without a seed":
                chosen = torch.tensor(bytearray(os.urandom(x.numel()))).view_as(x) < 250
                return torch.where(chosen, x_adv, x)
            case "changes the weights":
                for parameter in victim.parameters():
                    parameter.data.mul_(-1)
            case "gives up on half":
                x_adv[::2] = x[::2]
        return x_adv

    def climb(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        assert threat.eps is not None
        eps = self.length * threat.eps

        def margin(logits: Tensor) -> Tensor:
            own = logits.gather(1, y.unsqueeze(1)).squeeze(1)
            return logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1) - own

        x_adv = x
        for _ in range(self.steps):
            step = input_gradient(victim, x_adv, margin)[1].sign() * max(eps / 4, eps / self.steps)
            x_adv = Threat("linf", eps).project(x, x_adv + step)
        return x_adv


@dataclass(frozen=True, kw_only=True)
class Blackout(Attack):
    """Takes black images for successes, as some minimum-norm attacks do."""

    name: ClassVar[str] = "blackout"

    @property
    def kind(self) -> Kind:
        return "minimal"

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        return torch.zeros_like(x)


@dataclass(frozen=True, kw_only=True)
class Boaster(Noise):
    """Random noise that calls itself a strong attack."""

    name: ClassVar[str] = "boaster"

    @property
    def family(self) -> Family:
        return "iterated"


@dataclass(frozen=True, kw_only=True)
class Unprepared(Suspect):
    name: ClassVar[str] = "unprepared"

    def prepare(self, victim: Victim, x: Tensor, y: Tensor) -> Attack:
        raise ValueError(f"{len(x)} images are too few")


def test_a_sound_attack_passes() -> None:
    assert faults(Suspect(), victims=tuple(references())) == []


@pytest.mark.parametrize(
    ("attack", "norm"),
    [
        (Gradient(), "linf"),
        (Gradient(), "l2"),
        (Gradient(mode="minimal"), "l1"),
        (Alpha(mode="minimal"), "l2"),
        (Noise(), "l2"),
        (Foolbox("DDNAttack"), "l2"),
        (Foolbox("LInfFMNAttack"), "linf"),
        (Foolbox("LinfBasicIterativeAttack"), "linf"),
    ],
    ids=lambda value: value.label if isinstance(value, Attack) else value,
)
def test_attacks_in_use_pass(attack: Attack, norm: Norm) -> None:
    assert faults(attack, norm, tuple(references())) == []


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("does nothing", "changed 0 of 32"),
        ("NaN", "1 of 32 images not finite"),
        ("over budget", "32 of 32 images over budget"),
        ("outside the box", "32 of 32 images outside [0, 1]"),
        ("raises", "raised RuntimeError: no luck"),
        ("returns nothing", "raised TypeError: the attack returned None"),
        ("drops an image", "32 of 32 images of the wrong shape or type"),
        ("draws without a seed", "not reproducible"),
        ("changes the weights", "raised ModelChangedError: the attack changed the model"),
        ("gives up on half", "left 50% (16 of 32)"),
    ],
)
def test_liars_are_found_out_in_the_right_words(way: str, words: str) -> None:
    found = faults(Suspect(way=way), victims=LINEAR)
    assert {finding.victim for finding in found} == ({STEEP} if "reproducible" in words else set(LINEAR))
    for finding in found:
        assert words in finding.measured
        assert finding.attack == f"suspect(way={way})"


def test_a_liar_is_found_out_where_nothing_is_promised_but_valid_images() -> None:
    (finding,) = faults(Suspect(way="NaN"), victims=("dead-units",))
    assert (finding.expected, finding.measured) == ("valid images", "1 of 32 images not finite")


def test_black_images_are_no_success() -> None:
    for finding in faults(Blackout(), "l2", ("zero-gradient", *LINEAR)):
        assert finding.measured == "32 of 32 images black"
    assert len(faults(Blackout(), "l2", ("zero-gradient", *LINEAR))) == 3


def test_half_the_strength_is_found_out_everywhere() -> None:
    found = faults(Suspect(length=0.5), victims=(*FEW, HARD))
    assert [finding.victim for finding in found] == [*FEW, HARD]
    assert found[0].measured == "left 100% (32 of 32)"
    assert found[0].expected.startswith("at most 25% left at 1.5 x the distance in closed form (linf 0.0")
    assert found[2].expected == "at most 25% left at linf 0.2"


def test_a_single_step_that_calls_itself_iterated_is_found_out() -> None:
    (finding,) = faults(Suspect(steps=1), victims=(*FEW, HARD))
    assert finding.victim == HARD
    assert int(finding.measured.split()[1].rstrip("%")) >= 45


def test_noise_that_calls_itself_strong_is_found_out_everywhere() -> None:
    found = faults(Boaster(distribution="signs"), victims=(*FEW, HARD))
    assert [finding.victim for finding in found] == [*FEW, HARD]
    assert faults(Noise(distribution="signs"), victims=(*FEW, HARD)) == []


def test_an_error_of_the_preparation_is_found_out() -> None:
    found = faults(Unprepared(), victims=(PLAIN,))
    assert [finding.measured for finding in found] == ["raised ValueError: 200 images are too few"]


def test_an_honest_error_passes_only_where_it_is_due() -> None:
    assert faults(Gradient(), victims=("zero-gradient",)) == []
    (finding,) = faults(Suspect(way="raises"), victims=("dead-units",))
    assert finding.measured == "raised RuntimeError: no luck"


@pytest.mark.parametrize("name", ["AutoConjugateGradient", "RescalingAutoConjugateGradient"])
@pytest.mark.parametrize("steps", [5, 50])
def test_the_lost_sign_of_arts_conjugate_gradients_is_found_out_by_name(name: str, steps: int) -> None:
    """However many steps: without the sign they are as short as the gradient, which is short on the flat victim."""
    few = {"max_iter": steps, "nb_random_init": 1}
    (finding,) = faults(Art.forced(name, loss_type="cross_entropy", **few), victims=(FLAT,))
    assert finding.attack.split("-")[0] in ("acg", "reacg")
    assert finding.norm == "linf"
    assert finding.expected.startswith("at most 25% left")
    assert finding.measured == "left 100% (32 of 32)"
    assert faults(Art("AutoProjectedGradientDescent", **few), victims=(FLAT,)) == []
    assert faults(Art.forced(name, loss_type="cross_entropy", **few), "l2", (FLAT,)) == []


def test_declarations_run_as_they_stand() -> None:
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Watched(Suspect):
        name: ClassVar[str] = "watched"

        def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
            seen.append((self, len(x), threat.norm))
            return super().run(victim, x, y, threat)

    attack = Watched(steps=7)
    run([(attack, "linf")], victims=FEW)
    assert set(seen) == {(attack, IMAGES["gradients"], "linf")}
    assert len(seen) == len(FEW) + 1  # twice where it is repeated


def test_progress_is_told() -> None:
    told: list[tuple[int, int, str]] = []
    run([(Noise(), "l2")], victims=FEW, progress=lambda *line: told.append(line))
    assert told == [(number, 3, "noise") for number in (1, 2, 3)]


@pytest.mark.slow
def test_processes_change_no_finding() -> None:
    work = [(Gradient(), "linf"), (Noise(), "l2")]
    alone, together = (run(work, victims=LINEAR, jobs=jobs) for jobs in (1, 2))  # type: ignore[arg-type]
    assert [dataclasses.replace(f, seconds=0) for f in alone] == [dataclasses.replace(f, seconds=0) for f in together]


def test_attacks_of_suites_come_once_and_as_what_crafts() -> None:
    suite = Suite(
        name="a",
        summary="",
        attacks={"linf": (Gradient(), Transfer(attack=Gradient(), defense=None), Noise()), "l2": (Gradient(),)},
    )
    assert attacks_of([suite, suite]) == [(Gradient(), "linf"), (Noise(), "linf"), (Gradient(), "l2")]


def test_every_attack_of_every_suite_has_promises_that_bind() -> None:
    """On some victim more is asked of it than valid images, unless it keeps no eps, or looks for nothing."""
    for attack, norm in attacks_of([*suites().values(), besides()]):
        rules = [stated(attack, norm, reference) for reference in references().values()]
        harmless = attack.family in ("noise", "transformation") or "no nearest image" in rules[0].why
        assert harmless or any(rule.floors for rule in rules), attack.label


def test_exceptions_have_a_reason() -> None:
    for rule in RULES:
        if rule.attacks != ("*",) or rule.toolkits != ("*",) or rule.raising:
            assert rule.why
        assert all(0 <= floor.left < 1 and floor.reach > 0 for floor in rule.floors)


def test_victims_are_enough_for_every_attack_of_the_tables() -> None:
    for entry in (*art.capabilities(), *foolbox.capabilities()):
        assert entry.min_side <= 8


@pytest.mark.parametrize("reference", references().values(), ids=references())
def test_cases_are_right_and_repeat(reference: ReferenceVictim) -> None:
    case: Case = reference.case("l2", 12)
    bench = reference.bench()
    assert torch.equal(bench.referee.predict(case.x), case.y)
    assert case.x.shape == (12, 1, 8, 8)
    assert len(case.y.unique()) > 1
    assert not {tuple(image) for image in case.x.flatten(1).tolist()} & {
        tuple(image) for image in case.x_train.flatten(1).tolist()
    }


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_images_of_linear_victims_are_about_equally_far(classes: int, norm: Norm) -> None:
    unit = references()[{2: FLAT, 10: STEEP}[classes]].case(norm, 32).unit
    assert unit.min() > 0
    assert unit.max() <= 1.15 * unit.min()


def test_the_least_number_of_pixels_is_the_least() -> None:
    """Against all single pixels and all pairs of them, each black or white."""
    victim = linear(2)
    x, y = victim.images(12, spread=0.3)
    pixels = closed_form(victim, x, y, "l0")
    assert set(pixels.tolist()) >= {1.0, 2.0}
    first, second = torch.triu_indices(64, 64)
    choices = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2)))
    for image, label, least in zip(x.flatten(1), y, pixels, strict=True):
        moved = image.repeat(4, len(first), 1)
        moved.scatter_(2, first.expand(4, -1).unsqueeze(2), choices[:, :1].expand(-1, len(first)).unsqueeze(2))
        moved.scatter_(2, second.expand(4, -1).unsqueeze(2), choices[:, 1:].expand(-1, len(first)).unsqueeze(2))
        hit = (victim.predict(moved.view(-1, 1, 8, 8)) != label).view(4, -1).any(0)
        assert bool(hit[first == second].any()) == (least == 1)
        assert bool(hit.any()) == (least <= 2)


@pytest.mark.slow
def test_every_attack_of_the_quick_suite_passes() -> None:
    found = run(attacks_of([suites()["quick"]]))
    assert [finding for finding in found if not finding.passed] == []


def test_access_is_covered() -> None:
    assert set(IMAGES) == set(Access.__args__)  # type: ignore[attr-defined]
