"""What Huang et al. (2015) costs: Adv_Alpha against its bare passes and the toolkits, LWA against plain training.

    python benchmarks/bench_huang.py [--models mlp-1000-1000,lenet] [--batch 128] [--rounds 7] [--toolkits]

Wrapper models on random 28x28 images: only the shapes matter here. One thread, process CPU seconds; everything that
is compared runs in turn within each round, and a ratio is the median over the rounds of that round's ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from turns import options, stepper, table

from defenses.fast_gradient import FastGradient
from defenses.learning_with_adversary import LearningWithAdversary, LearningWithAdversaryRepresentation
from defenses.standard import Standard
from harness.attacks.alpha import adv_alpha
from harness.attacks.base import Attack
from harness.attacks.class_jacobian import class_gradients
from harness.attacks.fast_gradient import adv_loss
from harness.attacks.toolkits.art import Art
from harness.attacks.toolkits.foolbox import Foolbox
from harness.models.registry import build_model
from harness.threat import Threat
from harness.training.trainer import Trainer
from harness.victims.victim import Victim

C = 1.5
TRAINERS: Mapping[str, Trainer] = {
    "plain": Standard(),
    "fast gradient": FastGradient(norm="l2", eps=C),
    "LWA": LearningWithAdversary(eps=C),
    "LWA, linf": LearningWithAdversary(norm="linf", eps=0.1),
    "LWA_Rep": LearningWithAdversaryRepresentation(eps=C),
    "LWA, misclassification": LearningWithAdversary(adversary="misclassification", eps=C),
    "LWA_Rep, misclassification": LearningWithAdversaryRepresentation(adversary="misclassification", eps=C),
}
TOOLKITS: Mapping[str, Attack] = {
    "Foolbox L2DeepFoolAttack(steps=1)": Foolbox("L2DeepFoolAttack", steps=1),
    "ART DeepFool(max_iter=1)": Art("DeepFool", max_iter=1),
}


def bare(victim: Victim, x: Tensor) -> None:
    """One forward pass and a backward pass for each class, over the whole batch."""
    v = x.clone().requires_grad_(True)
    logits = victim(v)
    for k in range(logits.shape[1]):
        torch.autograd.grad(logits[:, k].sum(), v, retain_graph=True)


def main() -> None:
    """Print the tables."""
    parser = options(__doc__, models="mlp-1000-1000,lenet", rounds=7)
    parser.add_argument("--toolkits", action="store_true", help="also Foolbox and ART, which have to be installed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)  # ART's NumPy would wake a BLAS thread a core, which counts as CPU time
    for name in args.models.split(","):
        torch.manual_seed(0)
        victim = Victim(build_model(name, (1, 28, 28), 10), classes=10, own=True)
        x = torch.rand(args.batch, 1, 28, 28)
        y = victim.predict(x)  # an attack that starts on the wrong side has nothing to do
        attacks = {"Adv_Alpha": adv_alpha(), "Adv_Loss": adv_loss(), **(TOOLKITS if args.toolkits else {})}
        works: dict[str, Callable[[], object]] = {
            "K bare backward passes": partial(bare, victim, x),
            "class gradients": partial(class_gradients, victim, x),
        }
        for label, attack in attacks.items():
            works[label] = partial(attack, victim, x, y, Threat("l2", C if attack.kind == "budget" else None))
        table(f"{name}: attacks on a batch of {args.batch}", works, args.rounds)
        steps = {label: stepper(name, trainer, x, y) for label, trainer in TRAINERS.items()}
        table(f"{name}: one step of training, batch of {args.batch}", steps, args.rounds)


if __name__ == "__main__":
    main()
