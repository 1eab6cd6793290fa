"""Stand-in gradients and remedies: what attacks see, and what the referee does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.identity import canonical
from harness.judging.proposal import Bench
from harness.victims.adaptation import VOTES, Remedy
from harness.victims.bpda import find_function, give_gradients
from harness.victims.victim import Victim, input_gradient


class Front(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 7).round() / 7


class Rounding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front = Front()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(self.front(x))
        return out


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x + 0.5 * torch.randn_like(x))
        return out


@pytest.fixture
def x() -> Tensor:
    return torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_a_stand_in_keeps_the_values_and_lends_the_gradient(x: Tensor) -> None:
    model = Rounding()
    weight = model.net[1].weight.detach()  # type: ignore[union-attr]
    plain, mended = Victim(model), Victim(model, remedy=Remedy(stand_ins=(("front", "identity"),)))
    assert torch.equal(plain(x), mended(x))
    _, dead, _ = input_gradient(plain, x, lambda logits: logits[:, 0])
    _, alive, logits = input_gradient(mended, x, lambda logits: logits[:, 0])
    assert dead.abs().max() == 0
    torch.testing.assert_close(alive.flatten(1), weight[0].expand(8, -1))
    assert torch.equal(logits, plain(x)), "with gradients on, the values changed"
    assert isinstance(model.front, Front), "the caller's model was altered"


def test_a_stand_in_may_come_from_a_file(x: Tensor, tmp_path: Path) -> None:
    file = tmp_path / "soft.py"
    file.write_text("def doubled(x):\n    return 2 * x\n")
    model = Rounding()
    weight = model.net[1].weight.detach()  # type: ignore[union-attr]
    victim = Victim(model, remedy=Remedy(stand_ins=(("front", f"{file}:doubled"),)))
    _, grad, _ = input_gradient(victim, x, lambda logits: logits[:, 0])
    torch.testing.assert_close(grad.flatten(1), 2 * weight[0].expand(8, -1))


def test_a_part_is_found_by_the_end_of_its_path(x: Tensor) -> None:
    outer = nn.Sequential(nn.Identity(), Rounding())
    assert torch.equal(give_gradients(outer, [("front", "identity")])(x), outer(x))
    with pytest.raises(UserError, match=r"unknown part of the model 'frond'.*front"):
        give_gradients(Rounding(), [("frond", "identity")])
    with pytest.raises(UserError, match="unknown part"):  # two of them: which?
        give_gradients(nn.Sequential(Rounding(), Rounding()), [("front", "identity")])


@pytest.mark.parametrize(
    ("name", "words"),
    [("soft", "FILE.py:FUNCTION"), ("no.py:f", "no file"), ("{file}:g", "choose from f"), ("{bad}:f", "bad.py")],
)
def test_a_wrong_stand_in_is_named(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("def f(x):\n    return x\n")
    (tmp_path / "bad.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(UserError, match=words):
        find_function(name.format(file=tmp_path / "good.py", bad=tmp_path / "bad.py"))


def test_a_stand_in_of_another_shape_is_refused(x: Tensor, tmp_path: Path) -> None:
    (tmp_path / "flat.py").write_text("def flat(x):\n    return x.flatten(1)\n")
    victim = Victim(Rounding(), remedy=Remedy(stand_ins=(("front", f"{tmp_path}/flat.py:flat"),)))
    with pytest.raises(UserError, match="shape"):
        input_gradient(victim, x, lambda logits: logits[:, 0])


def test_probabilities_and_temperature(x: Tensor) -> None:
    base = Rounding()
    logits = Victim(base)(x)
    soft = nn.Sequential(base, nn.Softmax(1))
    seen = Victim(soft, remedy=Remedy(probabilities=True))(x)
    torch.testing.assert_close(seen, logits.log_softmax(1))
    torch.testing.assert_close(Victim(base, remedy=Remedy(temperature=20))(x), logits / 20)


def test_draws_average_and_count(x: Tensor) -> None:
    victim = Victim(Noisy(), remedy=Remedy(draws=64))
    single = Victim(Noisy())
    spread = torch.stack([single(x) for _ in range(30)]).std(0).mean()
    averaged = torch.stack([victim(x) for _ in range(30)]).std(0).mean()
    assert averaged < spread / 5
    with victim.counted() as cost:
        input_gradient(victim, x, lambda logits: logits[:, 0])
    assert cost.forwards == cost.backwards == 64 * len(x)


def test_votes_repeat_and_leave_the_generators_alone(x: Tensor) -> None:
    bench = Bench.of(Noisy(), 3, "cpu", Remedy(draws=4))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = bench.referee.ballots(x)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(bench.referee.ballots(x), first)
    assert (first.sum(1) == VOTES).all()
    assert (first.max(1).values < VOTES).any(), "this victim was meant to change its mind"
    assert bench.referee.cost.forwards == 0


def test_a_model_that_averages_by_itself_is_asked_as_often_as_it_says(x: Tensor) -> None:
    remedy = Remedy(votes=3)
    bench = Bench.of(Noisy(), 3, "cpu", remedy)
    assert torch.equal(bench.referee.ballots(x), bench.referee.ballots(x))
    assert (bench.referee.ballots(x).sum(1) == 3).all()
    assert bench.attacked.remedy.stochastic
    bench.attacked(x)
    assert bench.attacked.cost.forwards == len(x)  # attacks see one call
    assert (Remedy().calls, Remedy(draws=2).calls, Remedy(draws=2, votes=5).calls) == (None, VOTES, 5)


def test_votes_are_no_part_of_the_keys_of_those_that_have_none() -> None:
    assert "votes" not in canonical(Remedy(draws=3))
    assert canonical(Remedy(votes=1))["votes"] == 1


def test_a_remedy_says_what_it_does() -> None:
    assert not Remedy()
    remedy = Remedy(temperature=20, draws=8, stand_ins=(("front", "identity"),))
    assert remedy
    assert str(remedy) == "logits / 20, gradients averaged over 8 draws, identity for the gradient of front"
    with pytest.raises(UserError, match="temperature"):
        Remedy(temperature=0)
    with pytest.raises(UserError, match="draws"):
        Remedy(draws=0)
    with pytest.raises(UserError, match="votes must be at least 1, got 0"):
        Remedy(votes=0)
    assert str(Remedy(votes=1)) == "labels by 1 vote"
