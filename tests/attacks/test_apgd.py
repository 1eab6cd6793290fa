"""Auto-PGD against what is known exactly: linear victims, its cost, victims without gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from harness.attacks.apgd import APGD, _together
from harness.attacks.line_search import CHUNK, is_fooled, log_odds
from harness.attacks.losses import LOSSES
from harness.attacks.toolkits.foolbox import Foolbox
from harness.errors import UserError
from harness.models.ensemble import Ensemble
from harness.selftest.linear_victim import LinearVictim
from harness.threat import Norm, Threat, per_sample
from harness.victims.adaptation import Remedy
from harness.victims.victim import Victim

NORMS = ("linf", "l2", "l1")
ANY = Threat("linf", 0.1)
EPS = {"linf": 0.1, "l2": 0.6, "l1": 2.5}  # leave about half of the digits standing


@pytest.fixture(scope="module")
def victim(trained_once) -> Victim:
    return Victim(trained_once, classes=10)


@pytest.fixture(scope="module")
def images(digits, victim) -> tuple[Tensor, Tensor]:
    x, y = digits.to_float(digits.x_test[:120]), digits.y_test[:120]
    right = victim.predict(x) == y
    return x[right], y[right]


@pytest.fixture(scope="module")
def firm(victim, images) -> tuple[Tensor, Tensor]:
    """Images that a tiny eps cannot break."""
    x, y = images
    far = log_odds(victim(x), y) < -3
    assert far.sum() > 60
    return x[far], y[far]


def attack(attack: APGD, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    torch.manual_seed(0)
    return attack(victim, x, y, threat)


def scaled(model: nn.Module, factor: float) -> Victim:
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return factor * self.model(x)

    return Victim(Scaled(), classes=10)


def equally_far(victim: LinearVictim, norm: str, distance: float, n: int) -> tuple[Tensor, Tensor]:
    """Images of a two-class victim that are all as far from the boundary."""
    x, y = victim.images(n)
    away = victim.distance(x, y, norm) - distance
    return x + per_sample(away, x) * victim.perturbation(x, y, norm) / per_sample(victim.distance(x, y, norm), x), y


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", NORMS)
def test_two_linear_classes_fall_at_their_distance_and_not_before(norm, loss):
    victim = LinearVictim.random(2, seed=3)
    distance = {"linf": 0.03, "l2": 0.1, "l1": 0.2}[norm]
    x, y = equally_far(victim, norm, distance, 40)
    torch.testing.assert_close(victim.distance(x, y, norm), torch.full((40,), distance))
    for ratio, broken in ((1.02, True), (0.98, False)):
        threat = Threat(norm, ratio * distance)
        x_adv = attack(APGD(loss=loss, steps=60), victim, x, y, threat)
        assert threat.within(x, x_adv).all()
        assert ((victim.predict(x_adv) != y) == broken).all()


@pytest.mark.parametrize("loss", ["dlr", "margin"])
@pytest.mark.parametrize("norm", NORMS)
def test_targets_find_the_nearest_of_many_linear_classes(norm, loss):
    victim = LinearVictim.random(5, seed=1)
    x, y = victim.images(2)
    for i, distance in enumerate(victim.distance(x, y, norm).tolist()):
        for ratio, broken in ((1.02, True), (0.98, False)):
            x_adv = attack(
                APGD(loss=loss, targets=4, steps=30), victim, x[i : i + 1], y[i : i + 1], Threat(norm, ratio * distance)
            )
            assert bool(victim.predict(x_adv) != y[i]) == broken


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targets", [0, 3])
def test_results_keep_ball_and_box(victim, images, norm, loss, targets):
    x, y = images
    for eps in (EPS[norm] / 4, EPS[norm], 1e-3):
        threat = Threat(norm, eps)
        x_adv = attack(APGD(loss=loss, targets=targets, steps=10), victim, x, y, threat)
        assert (threat.distance(x, x_adv) <= eps * (1 + 1e-5) + 1e-7).all()
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_is_allowed_nothing_moves(victim, images, norm):
    x, y = images
    assert torch.equal(attack(APGD(steps=3), victim, x, y, Threat(norm, 0.0)), x)


@pytest.mark.parametrize("targets", [0, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_an_image_gets_the_same_result_in_any_batch(victim, images, norm, targets):
    x, y = images
    declared, threat = APGD(loss="margin", targets=targets, steps=20, restarts=2), Threat(norm, EPS[norm])
    whole = attack(declared, victim, x, y, threat)
    part = torch.arange(len(x) - 1, 0, -3)
    torch.testing.assert_close(attack(declared, victim, x[part], y[part], threat), whole[part], rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", ["dlr", "margin"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targets", [0, 3])
def test_scale_of_logits_makes_no_difference(trained, images, norm, loss, targets):
    x, y = images
    declared, threat = APGD(loss=loss, targets=targets, steps=12), Threat(norm, EPS[norm])
    plain = attack(declared, scaled(trained, 1.0), x, y, threat)
    for factor in (2.0**10, 2.0**-10):  # exact in float32
        torch.testing.assert_close(attack(declared, scaled(trained, factor), x, y, threat), plain, rtol=0, atol=1e-6)
    judge = Victim(trained)
    lost = judge.predict(plain) != y
    for factor in (100.0, 0.01):  # rounded: one iterate in many turns another way
        other = judge.predict(attack(declared, scaled(trained, factor), x, y, threat)) != y
        assert (other != lost).sum() <= 1
    assert 0.1 < lost.double().mean() < 0.9


def test_cross_entropy_survives_saturated_logits(trained, images):
    x, y = images
    threat = Threat("linf", EPS["linf"])
    lost = [
        int((Victim(trained).predict(attack(APGD(steps=20), scaled(trained, factor), x, y, threat)) != y).sum())
        for factor in (1.0, 100.0)
    ]
    assert lost[1] >= 0.9 * lost[0] > 0


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_no_weaker_than_foolbox(victim, images, norm):
    x, y = images
    name = "SparseL1DescentAttack" if norm == "l1" else f"{norm.capitalize()}ProjectedGradientDescentAttack"
    rival = Foolbox(name, steps=40)
    threat = Threat(norm, EPS[norm])
    torch.manual_seed(0)
    theirs = victim.predict(rival(victim, x, y, threat)) != y
    ours = victim.predict(attack(APGD(steps=40), victim, x, y, threat)) != y
    assert 0.1 < ours.double().mean() < 0.95
    assert ours.sum() >= theirs.sum()


def test_more_restarts_and_targets_never_lose_an_image(victim, images):
    x, y = images
    threat = Threat("linf", EPS["linf"])
    lost = victim.predict(attack(APGD(steps=10), victim, x, y, threat)) != y
    again = victim.predict(attack(APGD(steps=10, restarts=3), victim, x, y, threat)) != y
    assert (again | ~lost).all()


class Counting(nn.Module):
    """Remembers the log-odds of what it was shown."""

    def __init__(self, model: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.model, self.y, self.seen = model, y, []

    def forward(self, x):
        logits = self.model(x)
        self.seen.append(log_odds(logits.detach(), self.y))
        return logits


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_best_of_all_iterates_is_returned(trained, firm, norm):
    x, y = firm
    threat = Threat(norm, EPS[norm] / 10)
    model = Counting(trained, y)
    watched = Victim(model, own=True)
    x_adv = attack(APGD(steps=30, restarts=2), watched, x, y, threat)
    seen = torch.stack(model.seen)  # nobody is fooled, so that every call has every image
    assert len(seen) == 62
    torch.testing.assert_close(log_odds(watched(x_adv), y), seen.amax(0), rtol=1e-5, atol=1e-5)
    assert (seen.amax(0) > seen[0]).all()


def test_passes_are_counted_and_the_fooled_leave(victim, firm):
    x, y = firm
    n, steps = len(x), 12
    tiny, huge = Threat("l2", 1e-3), Threat("linf", 0.8)
    for norm in NORMS:
        with victim.counted() as cost:
            attack(APGD(steps=steps, restarts=2), victim, x, y, Threat(norm, 1e-3))
        assert (cost.forwards, cost.backwards) == (2 * n * (steps + 1), 2 * n * steps)
    with victim.counted() as cost:
        attack(APGD(steps=steps, targets=3), victim, x, y, tiny)
    assert (cost.forwards, cost.backwards) == (n + 3 * n * (steps + 1), 3 * n * steps)
    with victim.counted() as cost:
        attack(APGD(steps=100, restarts=5), victim, x, y, huge)
    assert cost.forwards < 8 * n


def flat(classes: int = 3, bias: float = 1.0) -> nn.Module:
    layer = nn.Linear(16, classes)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(bias * torch.arange(classes, 0, -1.0))
    return nn.Sequential(nn.Flatten(), layer)


class NoGradient(nn.Module):
    """Passes on what it gets, and a gradient of NaN or zero."""

    def __init__(self, model: nn.Module, way: str) -> None:
        super().__init__()
        self.model, self.way = model, way

    def forward(self, x):
        if self.way == "zero":
            return self.model((x * 32).round() / 32)
        return self.model(x + 0 * (x - x.detach()).abs().sqrt())  # the root's slope at 0 is infinite: 0 * inf


class Watched(nn.Module):
    """Remembers whether anything it was shown, all of one image, was not of its label."""

    def __init__(self, model: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.model, self.y, self.fooled = model, y, False

    def forward(self, x):
        logits = self.model(x)
        self.fooled |= bool(is_fooled(logits, self.y.expand(len(logits))).any())
        return logits


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("steps", [1, 12])
def test_no_success_is_thrown_away(trained, images, gradient, steps):
    x, y = images
    model = trained if gradient else NoGradient(trained, "zero")
    plain = Victim(model)
    found = 0
    for i in range(40):
        watched = Watched(model, y[i : i + 1])
        threat = Threat("linf", 0.15 if gradient else 0.4)
        x_adv = attack(APGD(targets=3, steps=steps), Victim(watched, own=True), x[i : i + 1], y[i : i + 1], threat)
        assert bool(plain.predict(x_adv) != y[i]) == watched.fooled
        found += watched.fooled
    assert 5 < found < 40


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_flat_victim_gets_valid_images_back(norm, loss):
    x, y = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(5, dtype=torch.int64)
    threat = Threat(norm, 0.3)
    for targets in (0, 2):
        x_adv = attack(APGD(loss=loss, targets=targets, steps=10), Victim(flat()), x, y, threat)
        assert threat.within(x, x_adv).all()
        assert x_adv.isfinite().all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("way", ["zero", "nan"])
def test_victims_without_gradient_are_searched_at_random(norm, way):
    linear = LinearVictim.random(2, seed=3)
    distance = {"linf": 0.05, "l2": 0.15, "l1": 0.25}[norm]
    x, y = equally_far(linear, norm, distance, 30)
    hidden = Victim(NoGradient(linear.model, way))
    x.requires_grad_(True)
    (grad,) = torch.autograd.grad(hidden(x).sum(), x)
    assert not grad.isfinite().all() if way == "nan" else not grad.any()
    x = x.detach()
    threat = Threat(norm, 2 * distance)
    x_adv = attack(APGD(steps=100), hidden, x, y, threat)
    assert threat.within(x, x_adv).all()
    assert (hidden.predict(x_adv) != y).double().mean() > 0.8


class Broken(nn.Module):
    """NaN logits off the clean image."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x

    def forward(self, x):
        away = (x - self.x[:1]).flatten(1).abs().sum(1, keepdim=True)
        return torch.cat((away, -away), 1) * torch.nan


@pytest.mark.parametrize("norm", NORMS)
def test_nan_logits_give_no_nan_images(norm):
    x = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    threat = Threat(norm, 0.3)
    for targets in (0, 1):
        x_adv = attack(APGD(targets=targets, steps=5), Victim(Broken(x)), x, torch.zeros(4, dtype=torch.int64), threat)
        assert torch.equal(x_adv, x)


def test_one_success_on_a_stochastic_victim_is_not_the_end(trained, images):
    x, y = images
    eot = Victim(trained, remedy=Remedy(draws=2))
    threat = Threat("linf", EPS["linf"])
    with eot.counted() as cost:
        x_adv = attack(APGD(steps=10), eot, x, y, threat)
    assert (cost.forwards, cost.backwards) == (2 * 11 * len(x), 2 * 10 * len(x))
    plain = Victim(trained)
    early = attack(APGD(steps=10), plain, x, y, threat)
    lost = plain.predict(early) != y
    gain = (log_odds(plain(x_adv), y) - log_odds(plain(early), y))[lost]
    assert gain.min() > -1e-4  # it went the same way, and on
    assert gain.mean() > 0.05


@pytest.mark.parametrize("norm", NORMS)
def test_dlr_is_the_margin_where_classes_are_few(norm):
    for classes, targets in ((2, 0), (2, 1), (3, 2)):
        victim = LinearVictim.random(classes, seed=5)
        x, y = victim.images(10)
        threat = Threat(norm, 0.02)
        dlr, margin = (
            attack(APGD(loss=loss, targets=targets, steps=10), victim, x, y, threat) for loss in ("dlr", "margin")
        )
        assert torch.equal(dlr, margin)


def test_more_targets_than_wrong_classes_are_all_of_them():
    victim = LinearVictim.random(3)
    x, y = victim.images(5)
    with victim.counted() as cost:
        attack(APGD(targets=9, steps=4), victim, x, y, Threat("l2", 1e-4))
    assert cost.backwards == 2 * 4 * 5


def test_fewest_steps_and_no_images(victim, images):
    x, y = images
    for norm in NORMS:
        for steps in (1, 2, 3):
            threat = Threat(norm, EPS[norm])
            assert threat.within(x, attack(APGD(steps=steps), victim, x, y, threat)).all()
        assert attack(APGD(), victim, x[:0], y[:0], Threat(norm, 0.1)).shape == x[:0].shape


@pytest.mark.parametrize(
    "bad",
    [{"loss": "hinge"}, {"targets": -1}, {"steps": 0}, {"restarts": 0}, {"rho": 0.0}, {"rho": 1.0}, {"rho": math.nan}],
)
def test_bad_fields_are_refused(bad):
    with pytest.raises(ValueError, match=r"must be|unknown"):
        APGD(**bad)


def test_what_it_is(victim, images):
    assert (APGD().kind, APGD().family, APGD().access) == ("budget", "iterated", "gradients")
    x, y = images
    with pytest.raises(ValueError, match="no l0 form"):
        APGD()(victim, x, y, Threat("l0", 3))
    with pytest.raises(ValueError, match="needs an eps"):
        APGD()(victim, x, y, Threat("l2"))


# ---------------------------------------------------------------- runs that end early, and longer ones


@pytest.mark.parametrize("norm", NORMS)
def test_runs_that_are_far_off_end_early(victim: Victim, images: tuple[Tensor, Tensor], norm: Norm) -> None:
    """In L1 none does: the first half is spent in a larger ball."""
    x, y = images

    def found(far: float | None, victim: Victim = victim) -> tuple[Tensor, int]:
        with victim.counted() as cost:
            led = APGD(loss="dlr", targets=5, steps=20, far=far)
            x_adv = attack(led, victim, x, y, Threat(norm, EPS[norm] / 2))
        return x_adv, cost.backwards

    (whole, passes), (early, fewer) = found(None), found(0.5)
    assert torch.equal(victim.predict(early) != y, victim.predict(whole) != y)
    assert fewer < 0.9 * passes if norm != "l1" else fewer == passes
    (low, _), (_, least) = found(0.999), found(0.001)
    assert Threat(norm, EPS[norm] / 2).within(x, low).all()
    assert least < 0.4 * passes if norm != "l1" else least == passes  # most end after a quarter


def test_a_ratio_that_never_rises_ends_no_run() -> None:
    """Where gradients are hidden it says nothing of how far off an image is."""
    model, x = flat(classes=6), torch.rand(8, 1, 4, 4)
    passes = []
    for far in (None, 0.001):
        victim = Victim(model, classes=6)
        attack(APGD(loss="dlr", targets=3, steps=10, far=far), victim, x, torch.zeros(8).long(), ANY)
        passes.append(victim.cost.backwards)
    assert passes == [8 * 3 * 10] * 2


def test_no_run_of_an_ensemble_of_averaged_losses_ends_early(images: tuple[Tensor, Tensor]) -> None:
    """The ratio of its mean logits is not the mean of its ratios, which is what would be compared with it."""
    x, passes = images[0][:20], {}
    for average in ("logits", "loss"):
        for far in (None, 0.001):
            members = [nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2)]
            victim = Victim(Ensemble(members, average), classes=10)
            led = APGD(loss="dlr", targets=3, steps=10, far=far)
            attack(led, victim, x, victim.predict(x), Threat("linf", 1e-3))
            passes[average, far] = victim.cost.backwards
    assert passes["loss", None] == passes["loss", 0.001]
    assert passes["logits", 0.001] < passes["logits", None]


def test_a_cascade_keeps_what_is_declared() -> None:
    led = APGD(loss="dlr", targets=9, far=0.9)
    assert led.in_cascade() == led
    cheap = APGD(loss="dlr", targets=9).in_cascade()
    assert cheap == APGD(loss="dlr", targets=9, far=0.5) == cheap.in_cascade()


def test_near_misses_are_led_again(victim: Victim, images: tuple[Tensor, Tensor]) -> None:
    """What ended near the boundary is tried again, and nothing else: the others come back as without it."""
    (x, y), threat = images, Threat("linf", 0.1)

    def found(near: float | None) -> tuple[Tensor, float]:
        torch.manual_seed(0)
        with victim.counted() as cost:
            x_adv = APGD(loss="dlr", targets=9, steps=1, near=near)(victim, x, y, threat)
        return x_adv, cost.backwards

    (once, passes), (again, more), (always, most) = found(None), found(0.1), found(0.9)
    lost, lost_too, lost_most = (victim.predict(of) != y for of in (once, again, always))
    assert (lost_too & ~lost).sum() >= 3
    assert not (lost & ~lost_too).any()
    assert torch.equal(again[lost], once[lost])
    assert passes < more < most  # of those that stand, only the near ones cost anything
    assert lost_most.sum() >= lost_too.sum()
    assert threat.within(x, again).all()


@pytest.mark.parametrize("few", [3, 40])
@pytest.mark.parametrize("norm", NORMS)
def test_runs_side_by_side_find_what_they_find_one_after_the_other(
    trained_once: nn.Module, images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, norm: Norm, few: int
) -> None:
    """The same points in fewer calls; passes of runs that another makes needless are those of few images."""
    x, y = (part[:few] for part in images)
    led = APGD(loss="dlr", targets=9, steps=20, near=0.3, restarts=2)
    found, passes = [], []
    for together in (_together, lambda left, number, runs: number + 1):
        monkeypatch.setattr("harness.attacks.apgd._together", together)
        victim = Victim(trained_once, classes=10)
        shown: list[int] = []
        victim.register_forward_hook(lambda module, given, logits, shown=shown: shown.append(len(logits)))
        found.append(attack(led, victim, x, y, Threat(norm, EPS[norm])))
        passes.append((victim.cost.forwards, max(shown), len(shown)))
    torch.testing.assert_close(*found, rtol=0, atol=1e-4)
    (beside, widest, calls), (after, _, each) = passes
    assert few < widest <= CHUNK
    assert calls < 0.7 * each
    assert beside < (1.2 if few == 40 else 3) * after


def test_only_ratios_are_near_or_far() -> None:
    for name in ("near", "far"):
        for wrong in ({"loss": "ce", "targets": 9}, {"loss": "dlr"}, {"loss": "dlr", "targets": 9, name: 1.0}):
            with pytest.raises(UserError, match=name):
                APGD(**({name: 0.5} | wrong))  # type: ignore[arg-type]
    assert APGD(loss="dlr", targets=3).in_cascade() == APGD(loss="dlr", targets=3)
    assert APGD(loss="dlr", targets=9, near=0.1, far=0.5).for_classes(3) == APGD(loss="margin", targets=9)
