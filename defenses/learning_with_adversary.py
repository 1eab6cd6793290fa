"""Learning with adversary: training at the worst perturbation of a linearised network (Huang et al. 2015).

Two defenses: the images are perturbed (algorithm 2), or what a hidden layer makes of them (algorithm 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.attacks.alpha import nearest_boundary
from harness.attacks.line_search import log_odds
from harness.errors import unknown
from harness.models.stages import Stages
from harness.threat import EXPONENT, magnitude, per_sample, steepest
from harness.training.defense import Loss
from harness.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class LearningWithAdversary(Trainer):
    """Minimise the cross-entropy at x + r, with r the worst perturbation of norm eps (eq. 2, algorithm 2).

    r is found on the linearised network, is a constant for the update (proposition 3.1), and x + r is not clipped to
    [0, 1]. The clean images have no part in the objective.

    Attributes:
        adversary: ``"likelihood"`` lowers the probability of the true class fastest (section 3.1.1), for one more
            forward and backward pass a batch. ``"misclassification"`` goes towards the nearest boundary of the
            linearised softmax (section 3.1.2), for as many backward passes as there are classes.
        norm: ``"l2"``, as in the paper's experiments, ``"linf"`` or ``"l1"``.
        eps: The paper's c, in pixel units; ``None``: the data set's. The paper has it tuned and prints no value.
        euclidean: Scale r to length eps in L2 whatever the norm is: so says line 5 of algorithm 2, while eqs. 2 and 3
            bound r in the norm itself, which is the default here.
    """

    name = "learning-with-adversary"
    summary = "training at the worst perturbation of the linearised network"
    source = "Huang et al. 2015, algorithm 2"
    by_batch = True

    adversary: Literal["likelihood", "misclassification"] = "likelihood"
    norm: Literal["linf", "l2", "l1"] = "l2"
    eps: float | None = None
    euclidean: bool = False

    def loss(self, model: Stages, x: Tensor, y: Tensor) -> Loss:
        """Cross-entropy at the perturbed images."""
        logits = model(x + self.perturbation(model, x, y))
        return Loss(F.cross_entropy(logits, y), logits)

    def perturbation(self, classifier: Callable[[Tensor], Tensor], at: Tensor, y: Tensor) -> Tensor:
        """The worst perturbation of length eps on the linearised classifier, in closed form.

        Args:
            classifier: Gives logits (N, K).
            at: What it is given and what is perturbed, (N, ...).
            y: Labels (N,).

        Returns:
            Like ``at``, detached; zero where the gradients are.
        """
        assert self.eps is not None
        at = at.detach().requires_grad_(True)
        logits = classifier(at)
        if self.adversary == "likelihood":
            # a positive multiple of minus the gradient of the probability (or of its logarithm) that never vanishes;
            # asked for the inputs alone, autograd computes no gradient of a weight
            (grad,) = torch.autograd.grad(log_odds(logits, y).sum(), at)
            r = steepest(grad, EXPONENT[self.norm])
        else:
            jacobian = torch.stack([torch.autograd.grad(z.sum(), at, retain_graph=True)[0] for z in logits.T], 1)
            r = nearest_boundary(logits.detach(), jacobian, y, self.norm)[0].to(at.dtype).view_as(at)
        if self.euclidean:
            size = per_sample(magnitude(r, "l2"), r)
            r = r / torch.where(size > 0, size, 1)
        return self.eps * r


@dataclass(frozen=True, kw_only=True)
class LearningWithAdversaryRepresentation(LearningWithAdversary):
    """Minimise the cross-entropy of N_cal(N_rep(x) + r), r the worst perturbation of norm eps (eq. 4, algorithm 3).

    N_rep are the stages up to a hidden one, N_cal those after it. Both halves are updated by the loss at the perturbed
    representation: what reaches N_rep is the gradient there, passed on as if r were not a function of anything.

    Attributes:
        stage: Name of the stage whose output is perturbed; ``"first"`` is the first hidden one of the architecture.
            The paper leaves it open. The units of eps are that output's, and so its default is no more than a guess.
    """

    name = "learning-with-adversary-representation"
    summary = "training at the worst perturbation of a hidden layer of the linearised network"
    source = "Huang et al. 2015, algorithm 3"
    by_batch = False

    stage: str = "first"

    def loss(self, model: Stages, x: Tensor, y: Tensor) -> Loss:
        """Cross-entropy at the perturbed representations.

        Raises:
            UserError: The architecture has no such stage, or nothing comes after it.
        """
        *names, last = model.stages
        stage = model.hidden[0] if self.stage == "first" else self.stage
        if stage not in names:
            raise unknown(f"stage for {self.name}", stage, ("first", *names))
        cut = names.index(stage) + 1

        def representation(images: Tensor) -> Tensor:
            for name in names[:cut]:
                images = model.stages[name](images)
            return images

        def classifier(hidden: Tensor) -> Tensor:
            for name in (*names[cut:], last):
                hidden = model.stages[name](hidden)
            return hidden

        hidden = representation(x)
        logits = classifier(hidden + self.perturbation(classifier, hidden, y))
        return Loss(F.cross_entropy(logits, y), logits)
