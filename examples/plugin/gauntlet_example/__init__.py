"""What a package may offer: one of each, as short as it works. Nothing of Gauntlet's is imported but ``gauntlet``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import gauntlet


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(gauntlet.Trainer):
    """Cross-entropy against labels that leave something to the other classes (Szegedy et al. 2016)."""

    name = "label-smoothing"
    summary = "training on softened labels"
    source = "Szegedy et al. 2016"

    amount: float = 0.1

    def loss(self, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> gauntlet.Loss:
        """The objective on one batch."""
        logits = model(x)
        return gauntlet.Loss(F.cross_entropy(logits, y, label_smoothing=self.amount), logits)


@dataclass(frozen=True, kw_only=True)
class Corner(gauntlet.Attack):
    """The best of some random corners of the L-infinity ball."""

    name = "corner"
    norms = ("linf",)
    access = "scores"

    draws: int = 10

    def run(self, victim: gauntlet.Victim, x: torch.Tensor, y: torch.Tensor, threat: gauntlet.Threat) -> torch.Tensor:
        """One image for each given."""
        best, worst = x, torch.full((len(x),), -math.inf)
        for _ in range(self.draws):
            near = threat.project(x, x + threat.eps * torch.randn_like(x).sign())
            with torch.no_grad():
                loss = F.cross_entropy(victim(near), y, reduction="none").cpu()
            best = torch.where((loss > worst).view(-1, 1, 1, 1).to(x.device), near, best)
            worst = torch.maximum(worst, loss)
        return best


SUITE = gauntlet.Suite(
    name="example",
    summary="an attack of the package's and one of Foolbox's",
    attacks={"linf": (Corner(), gauntlet.Foolbox("LinfPGD"))},
    samples=50,
)


def stripes() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Images of 8 x 8 with horizontal or vertical stripes."""
    rows = (torch.arange(8) % 2).view(8, 1).expand(8, 8)

    def part(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.arange(n) % 2
        x = torch.where(y.view(-1, 1, 1, 1) == 0, rows, rows.T)
        return 0.5 * x + 0.5 * torch.rand(n, 1, 8, 8), y

    return part(200), part(60)


def linear(shape: tuple[int, int, int], classes: int) -> torch.nn.Module:
    """Softmax regression."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(math.prod(shape), classes))


def _seeds(question: gauntlet.Question, evidence: gauntlet.Evidence) -> gauntlet.Check:
    """Whether more than one training run stands behind the number."""
    mine = evidence.board.models[evidence.model]
    runs = sum(
        (other.dataset, other.architecture, other.defense) == (mine.dataset, mine.architecture, mine.defense)
        for other in evidence.board.models.values()
    )
    return question.graded("A" if runs > 1 else "B", f"{runs} training run{'s' if runs != 1 else ''}")


CHECK = gauntlet.Question(
    "seed-spread", "more than one training run", "train with several seeds, as in --seeds 0,1,2", _seeds
)
