"""What an attack finds and does not return counts all the same, and nothing else does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from harness.api import evaluate
from harness.attacks.apgd import APGD
from harness.attacks.base import Attack
from harness.attacks.lbfgs import LBFGS
from harness.attacks.toolkits.foolbox import Foolbox
from harness.attacks.transfer import Transfer, inner
from harness.datasets.registry import Dataset
from harness.judging.proposal import Bench, Proposal
from harness.judging.shard import ShardOutcome, craft, run_shard
from harness.metrics.pairs import broken
from harness.planning.suite import Suite
from harness.publishing.judging import Asked
from harness.records.results import pair_from_outcomes
from harness.selftest.linear_victim import LinearVictim
from harness.threat import Norm, Threat
from harness.victims.adaptation import Remedy
from harness.victims.harvest import Harvest
from harness.victims.victim import Victim
from suites import suites
from tests.helpers.boards import declared

N = 12
EPS = 0.1


@pytest.fixture
def victim() -> LinearVictim:
    return LinearVictim.random(4, (1, 4, 4))


@pytest.fixture
def bench(victim: LinearVictim) -> Bench:
    return Bench.of(victim.model, 4, "cpu")


@dataclass(frozen=True, kw_only=True)
class Loses(Attack):
    """Goes to the boundary and beyond, and returns its last iterate, which is right again."""

    name: ClassVar[str] = "loses"

    reach: tuple[float, ...] = (1.2, 0.1)
    """Multiples of the distance to the boundary that are asked about; the last is returned."""

    shuffled: bool = False
    parts: int = 0
    raises: bool = False
    minimal: bool = False

    @property
    def kind(self) -> Any:
        return "minimal" if self.minimal else "budget"

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        guide = LinearVictim.random(4, (1, 4, 4))
        step = guide.perturbation(x, y, threat.norm)
        order = torch.arange(len(x)).flip(0) if self.shuffled else torch.arange(len(x))
        for length in self.reach:
            x_adv = x + length * step
            for rows in order.split(self.parts or len(x)):
                self.ask(victim, x_adv, rows)
        if self.raises:
            raise RuntimeError("lost it")
        return x_adv

    def ask(self, victim: Victim, x_adv: Tensor, rows: Tensor) -> None:
        victim.of(rows)(x_adv[rows])


@dataclass(frozen=True, kw_only=True)
class Foreign(Loses):
    """The same as a toolkit has it: it knows nothing of rows."""

    def ask(self, victim: Victim, x_adv: Tensor, rows: Tensor) -> None:
        victim(x_adv[rows])


def run(bench: Bench, attack: Attack, threat: Threat, x: Tensor, y: Tensor, **more: Any) -> ShardOutcome:
    return run_shard(bench, attack, threat, index=torch.arange(len(x)), x=x, y=y, seed=0, **more)


def within(victim: LinearVictim, x: Tensor, y: Tensor, reach: float = 1.2) -> tuple[Threat, Tensor]:
    """A budget that allows some of the steps, and which."""
    far = victim.distance(x, y, "linf") * reach
    return Threat("linf", float(far.median())), far <= far.median() * (1 + 1e-4)


# ---------------------------------------------------------------- found and lost


@pytest.mark.parametrize("parts", [0, 5])
@pytest.mark.parametrize("shuffled", [False, True])
def test_what_is_found_and_lost_scores(shuffled: bool, parts: int, bench: Bench, victim: LinearVictim) -> None:
    x, y = victim.images(N)
    threat, near = within(victim, x, y)
    outcome = run(bench, Loses(shuffled=shuffled, parts=parts), threat, x, y)
    assert outcome.samples["adversarial"].tolist() == near.tolist()
    expected = victim.distance(x, y, "linf")[near] * 1.2
    torch.testing.assert_close(
        torch.tensor(outcome.samples["linf"].dropna().to_numpy()), expected.double(), rtol=1e-3, atol=0
    )
    assert (outcome.samples["adv_pred"] != outcome.samples["label"]).tolist() == near.tolist()
    assert outcome.facts.harvest is not None
    assert (outcome.facts.harvest.lost, outcome.facts.harvest.unattributed) == (int(near.sum()), 0)
    shown = torch.from_numpy(outcome.gallery["x_adv"])
    assert torch.equal(victim.predict(shown) != y, near)  # people see what counts
    pair = pair_from_outcomes(declared(N), [outcome, outcome])
    assert pair.result.status == "ok"
    assert pair.result.harvest is not None
    assert pair.result.harvest.lost == 2 * int(near.sum())


def test_a_toolkits_finds_are_known_by_their_places(bench: Bench, victim: LinearVictim) -> None:
    x, y = victim.images(N)
    threat, near = within(victim, x, y)
    facts = run(bench, Foreign(), threat, x, y).facts
    assert facts.harvest is not None
    assert facts.harvest.lost == int(near.sum())
    assert facts.harvest.unattributed == int((~near).sum())  # wrong, and not within eps of the image at their place

    parted = run(bench, Foreign(parts=5), threat, x, y)
    assert not parted.samples["adversarial"].any()
    assert parted.facts.harvest is not None
    assert (parted.facts.harvest.lost, parted.facts.harvest.unattributed) == (0, 2 * N)


@pytest.mark.parametrize("kind", [Loses, Foreign])
def test_a_nearer_one_that_was_met_counts_for_a_minimal_attack(kind: Any, bench: Bench, victim: LinearVictim) -> None:
    x, y = victim.images(N)
    reach = (2.0, 1.1, 1.3, 0.5, 1.5)
    outcome = run(bench, kind(minimal=True, reach=reach), Threat("linf"), x, y)
    found = torch.tensor(outcome.samples["linf"].to_numpy())
    torch.testing.assert_close(found, victim.distance(x, y, "linf").double() * 1.1, rtol=1e-3, atol=0)
    assert outcome.facts.harvest is not None
    assert (outcome.facts.harvest.lost, outcome.facts.harvest.nearer) == (0, N)

    @dataclass(frozen=True, kw_only=True)
    class Defined(kind):  # type: ignore[misc]
        seeks_the_nearest: ClassVar[bool] = False

    own = run(bench, Defined(minimal=True, reach=reach), Threat("linf"), x, y)
    found = torch.tensor(own.samples["linf"].to_numpy())
    torch.testing.assert_close(found, victim.distance(x, y, "linf").double() * 1.5, rtol=1e-3, atol=0)
    lost = run(bench, Defined(minimal=True, reach=(1.3, 0.5)), Threat("linf"), x, y)
    assert lost.samples["adversarial"].all()


def test_an_lbfgs_of_given_c_is_measured_by_its_minimiser() -> None:
    assert LBFGS().seeks_the_nearest
    assert not LBFGS(c=1.0).seeks_the_nearest


def test_shuffled_batches_of_a_toolkit_are_no_finds(bench: Bench, victim: LinearVictim) -> None:
    """Other images of the batch are misclassified at any place but their own."""
    x, y = victim.images(N, spread=0.4)
    attack = Foreign(minimal=True, shuffled=True, reach=(0.0,))
    outcome = run(bench, attack, Threat("l2"), x, y)
    assert not outcome.samples["adversarial"].any()
    assert outcome.facts.harvest is not None
    assert outcome.facts.harvest.unattributed == int((y != y.flip(0)).sum()) > 0


def test_an_attack_that_raises_has_found_what_it_found(bench: Bench, victim: LinearVictim) -> None:
    x, y = victim.images(N)
    threat, near = within(victim, x, y)
    outcome = run(bench, Loses(raises=True), threat, x, y)
    assert outcome.samples["adversarial"].tolist() == near.tolist()
    assert outcome.samples["crashed"].all()
    assert pair_from_outcomes(declared(N), [outcome]).result.status == "crashed"


def test_what_was_returned_is_never_taken_back(bench: Bench, victim: LinearVictim) -> None:
    x, y = victim.images(N)
    threat = Threat("linf", 1.0)
    last = run(bench, Loses(reach=(1.2, 1.4)), threat, x, y)
    torch.testing.assert_close(
        torch.tensor(last.samples["linf"].to_numpy()), victim.distance(x, y, "linf").double() * 1.4, rtol=1e-3, atol=0
    )
    assert last.facts.harvest is not None
    assert last.facts.harvest.lost == 0


def test_images_that_come_back_as_they_were_are_still_a_failure(bench: Bench, victim: LinearVictim) -> None:
    x, y = victim.images(N)
    outcome = run(bench, Loses(reach=(1.2, 0.0)), Threat("linf", 1.0), x, y)
    assert outcome.samples["adversarial"].all()
    assert pair_from_outcomes(declared(N), [outcome]).result.status == "invalid"


def test_points_that_no_referee_would_take(bench: Bench, victim: LinearVictim) -> None:
    """NaN, beyond the box, beyond eps: not kept, so that they stand in nobody's way."""
    x, y = victim.images(N)
    step = victim.perturbation(x, y, "linf")

    class Strays(Loses):
        def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
            bad = x + 1.2 * step
            for value in (torch.nan, torch.inf, -0.1, 1.1):
                far = bad.clone()
                far[:, :, 0, 0] = value
                victim(far)
            victim(x + 50 * step)
            victim(bad)
            bad.zero_()  # toolkits go on with the tensors they showed
            return x + 0.5 * step

    threat = Threat("linf", 2.0 * float(victim.distance(x, y, "linf").max()))
    assert run(bench, Strays(), threat, x, y).samples["adversarial"].all()


def test_a_model_of_infinite_logits_is_no_find(victim: LinearVictim) -> None:
    """The referee would call off the whole evaluation; an attack that only passed by must not."""

    class Explodes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = victim.model

        def forward(self, x: Tensor) -> Tensor:
            logits = self.inner(x)
            return torch.where((x == 0.125).flatten(1).any(1, keepdim=True), torch.inf * logits.sign(), logits)

    class Passes(Loses):
        def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
            return victim(torch.full_like(x, 0.125)) is not None and x + 0.01

    x, y = victim.images(N)
    assert not run(Bench.of(Explodes(), 4, "cpu"), Passes(), Threat("linf", 1.0), x, y).samples["adversarial"].all()


def test_what_is_wrong_without_an_attack_is_not_found(bench: Bench, victim: LinearVictim) -> None:
    class Everywhere(Loses):
        everywhere: ClassVar[bool] = True

    x, y = victim.images(N)
    y = torch.where(torch.arange(N) < 4, (y + 1) % 4, y)
    outcome = run(bench, Everywhere(reach=(0.0,)), Threat("linf", 1.0), x, y)
    assert not outcome.samples["adversarial"].any()
    assert outcome.facts.harvest is not None
    assert outcome.facts.harvest.lost == 0


def test_nobody_looks_where_nothing_may_count(bench: Bench, victim: LinearVictim) -> None:
    class Unboxed(Loses):
        boxed: ClassVar[bool] = False

    x, y = victim.images(N)
    outcome = run(bench, Unboxed(), Threat("linf", 1.0), x, y)
    assert outcome.facts.harvest is None
    assert not outcome.samples["adversarial"].any()
    # what was met on one model says nothing of another
    crafted = craft(bench.attacked, Loses(), Threat("linf", 1.0), x, y, 0)
    assert crafted.harvest is None
    outcome = run(bench, Loses(), Threat("linf", 1.0), x, y, crafted=Proposal(crafted.x_adv, 0.0, 0, 0))
    assert outcome.facts.harvest is None
    assert not outcome.samples["adversarial"].any()


def test_a_cascade_harvests_what_it_attacks(bench: Bench, victim: LinearVictim) -> None:
    x, y = victim.images(N)
    standing = torch.arange(N) % 2 == 0
    samples = run(bench, Loses(), Threat("linf", 1.0), x, y, standing=standing).samples
    assert samples["adversarial"].tolist() == standing.tolist()


def test_evaluate_counts_what_was_met(trained: nn.Module, digits: Dataset) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Rounds(Attack):
        """One step, and back again."""

        name: ClassVar[str] = "rounds"

        def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
            x_adv = 1 - x
            victim(x_adv)
            return (x + 1e-3).clamp(0, 1)

    suite = Suite(name="rounds", summary="", attacks={"linf": (Rounds(),)}, budgets={"linf": (1.0,)}, samples=20)
    _, (x, y) = digits.test_sample(20)
    frame = evaluate(trained, x, y, suite, dataset=digits.info, health=False)
    wrong = Victim(trained).predict(1 - x) != y
    assert frame["robust_accuracy"].iloc[0] == pytest.approx(float((~wrong).float().mean()))


@pytest.mark.parametrize("chunk", [None, 5])
def test_a_model_that_takes_few_images_at_once_is_harvested_alike(
    chunk: int | None, trained: nn.Module, digits: Dataset
) -> None:
    """A backward pass makes parts of the forward pass again; what it meets then was met before."""
    _, (x, y) = digits.test_sample(20)
    threat = Threat("linf", 0.15)
    victim = Victim(trained)
    victim.chunk = chunk
    seen: list[int] = []

    class Counts(Harvest):
        def note(self, x: Tensor, logits: Tensor, rows: Tensor | None = None) -> None:
            seen.append(len(x))
            assert not x.requires_grad
            assert not logits.requires_grad
            super().note(x, logits, rows)

    with victim.harvesting(harvest := Counts(x, y, threat)):
        x_adv = APGD(steps=5)(victim, x, y, threat)
    assert sum(seen) == victim.cost.forwards
    assert harvest.points is not None
    fooled = victim.predict(x_adv) != y
    assert (~harvest.points.flatten(1).isnan().any(1) | ~fooled).all()


def test_memory_that_runs_out_changes_no_harvest(trained: nn.Module, digits: Dataset) -> None:
    """The attack starts again, and so does what is kept."""

    class Hungry(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.limit = trained, 12

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > self.limit:
                raise torch.OutOfMemoryError
            logits: Tensor = self.model(x)
            return logits

    _, (x, y) = digits.test_sample(20)
    attack, threat = APGD(steps=5), Threat("linf", 0.15)
    roomy = craft(Victim(trained), attack, threat, x, y, 0, harvest=True).harvest
    tight = craft(Victim(Hungry(), own=True), attack, threat, x, y, 0, harvest=True).harvest
    assert roomy is not None
    assert tight is not None
    assert roomy.points is not None
    assert tight.points is not None
    torch.testing.assert_close(tight.points, roomy.points, equal_nan=True, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- toolkits


def test_what_a_toolkit_meets_nearer_than_it_returns(trained: nn.Module, digits: Dataset) -> None:
    """EAD returns the lowest elastic net that it met, not the nearest adversarial."""
    _, (x, y) = digits.test_sample(30)
    attack = Foolbox("EADAttack", steps=20)
    alone, both = (
        run(Bench.of(trained, 10, "cpu"), attack, Threat("l1"), x, y, harvest=harvest) for harvest in (False, True)
    )
    assert both.facts.harvest is not None
    assert both.facts.harvest.unattributed == 0
    assert both.facts.harvest.nearer > 0
    assert both.samples["l1"].mean() < 0.99 * alone.samples["l1"].mean()
    assert not (alone.samples["adversarial"] & ~both.samples["adversarial"]).any()


def test_a_toolkit_that_is_handed_some_of_the_images_is_told_which(trained: nn.Module, digits: Dataset) -> None:
    """Those without a starting point, and those wrong as they are, stay behind."""
    _, (x, y) = digits.test_sample(20)
    y = torch.where(torch.arange(20) % 4 == 0, (y + 1) % 10, y)  # wrong as they are
    victim, threat = Victim(trained), Threat("l2")
    attack = Foolbox("BoundaryAttack", steps=20)
    with victim.harvesting(harvest := Harvest(x, y, threat)):
        x_adv = attack(victim, x, y, threat)
    assert harvest.points is not None
    kept = ~harvest.points.flatten(1).isnan().any(1)
    moved = (x_adv != x).flatten(1).any(1)
    assert moved.any()
    distance = (harvest.points - x).flatten(1).norm(dim=1)
    assert (distance[kept & moved] <= (x_adv - x).flatten(1).norm(dim=1)[kept & moved] * (1 + 1e-3)).all()
    assert (kept & moved).sum() > 0.5 * moved.sum()


# ---------------------------------------------------------------- models that draw


class Noisy(nn.Module):
    """A linear model with noise on its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits + 0.05 * torch.randn_like(logits)


@pytest.mark.parametrize("minimal", [False, True])
def test_a_lucky_draw_is_no_find(minimal: bool) -> None:
    """Of a model that draws only the referee's votes count."""
    victim = LinearVictim.random(4, (1, 4, 4))
    x, y = victim.images(200)
    threat = Threat("linf", None if minimal else 1.0)
    bench = Bench.of(Noisy(victim.model), 4, "cpu", Remedy(votes=25))
    clear = victim.boundaries(x, y, "linf").amin(1) > 0.01
    assert clear.sum() > 5
    x, y = x[clear], y[clear]
    lucky = Loses(reach=(0.3,) * 40, minimal=minimal)
    with bench.attacked.harvesting(met := Harvest(x, y, threat, draws=True)):
        lucky(bench.attacked, x, y, threat)
    assert met.points is not None  # luck there was
    outcome = run(bench, lucky, threat, x, y)
    assert not outcome.samples["adversarial"].any()
    assert outcome.facts.harvest is not None
    assert outcome.facts.harvest.lost == 0
    # and it does not stand in the way of what is more than that
    outcome = run(bench, Loses(reach=(*lucky.reach, 4.0, 0.3), minimal=minimal), threat, x, y)
    assert outcome.samples["adversarial"].all()


@dataclass(frozen=True, kw_only=True)
class Half(Attack):
    """Returns every other adversarial that it finds."""

    name: ClassVar[str] = "half"

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        x_adv = APGD(steps=10).run(victim, x, y, threat)
        return torch.where((torch.arange(len(x)) % 2 == 0).view(-1, 1, 1, 1), x_adv, x)


def test_witnesses_say_among_how_many_images_they_were_judged() -> None:
    """Draws depend on it: who judges them again meets the same ones."""
    victim = LinearVictim.random(4, (1, 4, 4))
    x, y = victim.images(60, spread=0.2)
    bench = Bench.of(Noisy(victim.model), 4, "cpu", Remedy(draws=4, votes=8))
    outcome = run(bench, Half(), Threat("linf", 0.01), x, y)
    assert outcome.facts.harvest is not None
    assert outcome.facts.harvest.lost > 3
    rows = outcome.witnesses
    assert len(set(rows["batch"].tolist())) == 2
    again = Asked(bench.referee).judged(rows, x[rows["index"]], y[rows["index"]])
    assert again["adv_pred"].tolist() == rows["adv_pred"].tolist()


# ---------------------------------------------------------------- rows


def _own() -> list[tuple[Attack, Norm]]:
    """Every attack of ours in a suite that asks the victim anything, one of each label and norm."""
    found: dict[tuple[str, str], tuple[Attack, Norm]] = {}
    for suite in suites().values():
        for norm, attacks in suite.attacks.items():
            for attack in map(inner, attacks):
                if attack.toolkit == "gauntlet" and not isinstance(attack, Transfer):
                    short = _short(attack)
                    found.setdefault((short.label, norm), (short, norm))
    return list(found.values())


def _short(attack: Attack) -> Attack:
    """With fewer queries, for the sake of time."""
    from dataclasses import fields, replace

    fewer = {"queries": 60, "steps": 6, "draws": 3, "max_evaluations": 30, "searches": 3, "angles": 3, "shifts": 3}
    names = {field.name for field in fields(attack)}
    changed = {name: min(most, getattr(attack, name)) for name, most in fewer.items() if name in names}
    return replace(attack, **changed)


class Spy(Harvest):
    """Holds rows against what they are said to belong to, where that can be told: close to one of the images."""

    asked = 0
    known = 0
    elsewhere = 0

    def note(self, x: Tensor, logits: Tensor, rows: Tensor | None = None) -> None:
        said = self.everyone if rows is None else rows
        if len(x) == len(said):
            gaps = torch.cdist(self.x.flatten(1), self.x.flatten(1)).fill_diagonal_(torch.inf).amin(1)
            nearest = torch.cdist(x.flatten(1), self.x.flatten(1)).min(1)
            known = nearest.values < gaps[nearest.indices] / 2
            Spy.asked += len(x)
            Spy.known += int(known.sum())
            Spy.elsewhere += int((known & (nearest.indices != said)).sum())
        super().note(x, logits, rows)


@pytest.mark.parametrize(("attack", "norm"), _own(), ids=lambda value: getattr(value, "label", value))
def test_rows_of_our_attacks_belong_to_their_images(
    attack: Attack, norm: Norm, trained: nn.Module, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More images than a chunk holds, of which every attack drops some."""
    monkeypatch.setattr("harness.judging.shard.Harvest", Spy)
    Spy.asked = Spy.known = Spy.elsewhere = 0
    eps = {"linf": 0.1, "l2": 0.5, "l1": 2.0}.get(norm, 4.0)
    if attack.family == "transformation":
        eps = 1.0
    threat = Threat(norm, eps if attack.kind == "budget" else None)
    _, (x, y) = digits.test_sample(150)
    bench = Bench.of(trained, 10, "cpu")
    keep = bench.referee.predict(x) == y
    x, y = x[keep], y[keep]
    assert len(x) > 128
    if attack.prepares:
        attack = attack.prepare(bench.attacked, x, y)

    proposal = craft(bench.attacked, attack, threat, x, y, 0, harvest=True)
    assert not proposal.errors
    harvest = proposal.harvest
    assert isinstance(harvest, Harvest)
    assert harvest.unattributed == 0
    assert Spy.elsewhere == 0
    assert Spy.asked == proposal.forwards
    assert Spy.known > 0.05 * Spy.asked or not Spy.asked
    if harvest.points is None:
        return
    kept = ~harvest.points.flatten(1).isnan().any(1)
    assert kept.any()
    points = torch.where(kept.view(-1, 1, 1, 1), harvest.points, x)
    assert threat.within(x, points).all()
    assert (bench.referee.predict(points) != y)[kept].all()


@pytest.mark.parametrize(("attack", "norm"), _own(), ids=lambda value: getattr(value, "label", value))
def test_a_harvest_changes_no_attack_and_never_leaves_more(
    attack: Attack, norm: Norm, trained: nn.Module, digits: Dataset
) -> None:
    threat = Threat(norm, None)
    if attack.kind == "budget":
        threat = Threat(norm, 1.0 if attack.family == "transformation" else {"linf": 0.1, "l2": 0.5}.get(norm, 2.0))
    _, (x, y) = digits.test_sample(40)
    if attack.prepares:
        attack = attack.prepare(Victim(trained), x, y)
    with_it = run(Bench.of(trained, 10, "cpu"), attack, threat, x, y)
    without = run(Bench.of(trained, 10, "cpu"), attack, threat, x, y, harvest=False)
    assert without.facts.harvest is None
    assert (with_it.facts.forwards, with_it.facts.backwards) == (without.facts.forwards, without.facts.backwards)
    before, after = without.samples, with_it.samples
    assert not (before["adversarial"] & ~after["adversarial"]).any()
    both = before["adversarial"]
    assert (after[norm][both] <= before[norm][both] * (1 + 1e-9)).all()
    for eps in (0.02, 0.05, 0.1, 0.3, 0.5, 1.0, 2.0):
        assert not (broken(before, norm, eps) & ~broken(after, norm, eps)).any()


@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("eps", [None, 0.05])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_all_rows_at_once_keep_what_picked_rows_keep(norm: Norm, eps: float | None, draws: bool) -> None:
    """As on a GPU, and as on a CPU; and that is the best of all that was met, one image after the other."""
    victim = LinearVictim.random(4, (1, 4, 4))
    x, y = victim.images(N, spread=0.1)
    budget = None if eps is None else eps * {"linf": 1, "l2": 4, "l1": 16, "l0": 200}[norm]
    threat = Threat(norm, budget)
    picked, whole = (Harvest(x, y, threat, draws=draws) for _ in range(2))
    whole.whole = True
    generator = torch.Generator().manual_seed(1)
    met: list[list[tuple[float, Tensor]]] = [[] for _ in range(N)]
    for turn in range(60):
        # some images several times, some not at all
        rows = torch.randint(N, (2 * N - turn % 3,), generator=generator) if turn % 2 else torch.arange(N)
        size = 0.3 * torch.rand(len(rows), 1, 1, 1, generator=generator) ** 2
        points = x[rows] + size * torch.randn(len(rows), 1, 4, 4, generator=generator).sign()
        points = torch.where(torch.rand(points.shape, generator=generator) < 0.5, x[rows], points)
        logits = victim(points)
        for harvest in (picked, whole):
            harvest.note(points, logits, rows if turn % 2 else None)
        inside = (points >= 0).flatten(1).all(1) & (points <= 1).flatten(1).all(1)
        wrong = inside & (logits.argmax(1) != y[rows]) & threat.within(x[rows], points)
        if not turn % 2 and eps is None:  # by their places
            wrong &= torch.cdist(points.flatten(1), x.flatten(1)).argmin(1) == rows
        margin = logits.gather(1, y[rows].unsqueeze(1)).squeeze(1) - logits.amax(1)
        value = margin if draws else threat.distance(x[rows], points) if eps is None else torch.full_like(margin, turn)
        for place in wrong.nonzero().squeeze(1).tolist():
            met[int(rows[place])].append((float(value[place]), points[place]))
    assert picked.points is not None
    assert whole.points is not None
    torch.testing.assert_close(picked.points, whole.points, equal_nan=True, rtol=0, atol=0)
    assert picked.unattributed == whole.unattributed
    assert sum(map(bool, met)) > N // 3
    for each, kept in zip(met, picked.points, strict=True):
        if not each:
            assert kept.isnan().all()
            continue
        best = min(each, key=lambda item: item[0])
        again = next(value for value, point in each if torch.equal(point, kept))
        assert again == pytest.approx(best[0], rel=1e-6)


def test_views_share_the_model(victim: LinearVictim) -> None:
    x, y = victim.images(N)
    assert victim.of(torch.tensor([1])) is victim  # nothing is kept, so there is nothing to say
    with victim.harvesting(Harvest(x, y, Threat("linf"))):
        view = victim.of(torch.arange(N) >= 4).of(torch.tensor([2, 0]))
        assert view.rows is not None
        assert view.rows.tolist() == [6, 4]
        assert victim.rows is None
        seen: list[int] = []
        hook = victim.register_forward_hook(lambda module, given, logits: seen.append(len(logits)))
        view(x[[6, 4]])
        hook.remove()
        assert seen == [2]
        assert victim.cost.forwards == 2
        view.chunk = 3
        assert victim.chunk == 3
        assert [part.rows.tolist() for part in victim.split(x, 5) if part.rows is not None] == [
            [0, 1, 2, 3, 4],
            [5, 6, 7, 8, 9],
            [10, 11],
        ]
    assert victim.harvest is None


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_may_be_in_inference_mode(victim: LinearVictim, norm: Norm) -> None:
    """What is kept is written to after the attack, too."""
    x, y = victim.images(N)
    harvest = Harvest(x, y, Threat(norm))
    with torch.inference_mode(), victim.harvesting(harvest):
        points = x + 1.5 * victim.perturbation(x, y, norm)
        for _ in range(2):
            victim.of(torch.arange(N))(points)
            assert harvest.points is not None
        victim.of(torch.arange(N))(x + 1.2 * victim.perturbation(x, y, norm))
    torch.testing.assert_close(harvest.points, x + 1.2 * victim.perturbation(x, y, norm))


def test_a_transform_of_torch_is_not_looked_into(victim: LinearVictim) -> None:
    x, y = victim.images(N)
    harvest = Harvest(x, y, Threat("linf"))
    with victim.harvesting(harvest):
        logits = torch.func.vmap(lambda image: victim(image.unsqueeze(0)).squeeze(0))(x)
    torch.testing.assert_close(logits, victim(x))
    assert harvest.points is None
    assert harvest.unattributed > 0
