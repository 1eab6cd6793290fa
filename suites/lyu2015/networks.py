"""The models of Lyu et al. 2015 on MNIST, plain and regularized: constants, names and declarations.

The weight decays of the softmax models are the printed ones over :data:`SCALE`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from defenses.fast_gradient import FastGradient
from defenses.gradient_regularization import GradientRegularization
from defenses.standard import Standard
from harness.planning.specs import ModelSpec

if TYPE_CHECKING:
    from harness.datasets.registry import DatasetInfo
    from harness.studies.study import Profile
    from harness.training.trainer import Trainer

SIGMOID: Final = "Sigmoid MLP"
MAXOUT: Final = "Maxout + dropout"
CONV: Final = "Conv. Maxout + dropout"

ARCHITECTURE: Final = {SIGMOID: "mlp-sigmoid-600-600", MAXOUT: "maxout", CONV: "conv-maxout"}

SIGMA: Final = {"p = 2": 1.0, "p = inf, 0.1": 0.1, "p = inf, 0.25": 0.25}
"""Section IV.A: 0.1 was better on the convolutional network, 0.25 is what Goodfellow et al. (2015) had on the other."""

LAMBDAS: Final = {"1e-4": 1e-4, "1e-2": 1e-2, "1": 1.0}
SCALE: Final = 784
"""The printed lambda over the weight of ||W||^2 beside the *mean* cross-entropy: the units of the layer below."""


def regularized(net: str, norm: str = "p = 2") -> str:
    """The study's name of a network with gradient regularization."""
    return f"{net} + gradient {norm}"


def softmax(weight: str) -> str:
    """The study's name of a softmax model by its printed lambda."""
    return f"Softmax lambda = {weight}"


RAW: Final = "Softmax, lambda = 1e-2 on the mean loss"

HALVES: Final = f"{MAXOUT} + gradient p = inf, by halves"
"""Fast gradient sign training on clean and perturbed images, as Goodfellow et al. (2015) have it."""

ALONE: Final = f"{MAXOUT} + gradient p = inf, perturbed images alone"
"""Row of the network that has eq. 3 with p = inf, which the paper does not print."""

PENALTY: Final = f"{SIGMOID} + penalty p = 2"
"""The sigmoid network with eq. 4."""

DEFENDED: Final = (
    (SIGMOID, f"{SIGMOID} (plain)"),
    (regularized(SIGMOID), regularized(SIGMOID)),
    (MAXOUT, f"{MAXOUT} (plain)"),
    (regularized(MAXOUT), regularized(MAXOUT)),
    (regularized(MAXOUT, "p = inf, 0.25"), regularized(MAXOUT, "p = inf, 0.25")),
    (CONV, f"{CONV} (plain)"),
    (regularized(CONV), regularized(CONV)),
    (regularized(CONV, "p = inf, 0.1"), regularized(CONV, "p = inf, 0.1")),
    *((softmax(weight), softmax(weight)) for weight in LAMBDAS),
)
"""Models that today's batteries judge, and what they are called."""


def models(profile: Profile, info: DatasetInfo, seed: int) -> Mapping[str, ModelSpec]:
    """Every model of the paper on MNIST."""
    settings = profile.settings
    stages: dict[str, Any] = {"validation": 1 / 6, "refit": settings["refit"], "schedule": "cosine"}
    common: dict[str, dict[str, Any]] = {
        SIGMOID: {**stages, "epochs": settings["epochs"], "max_norm": math.sqrt(15)},
        MAXOUT: {
            **stages,
            "epochs": settings["epochs"],
            "batch_size": 100,
            "optimizer": "sgd",
            "lr": 0.1,
            "momentum": 0.7,
            "max_norm": 1.9365,
        },
        CONV: {
            **stages,
            "epochs": settings["conv_epochs"],
            "refit": settings["conv_refit"],
            "subset": settings["conv_subset"],
            "optimizer": "sgd",
            "lr": 0.05,
            "momentum": 0.7,
            "max_norm": 1.9365,
        },
    }

    def spec(architecture: str, defense: Trainer) -> ModelSpec:
        return ModelSpec(dataset=info.name, architecture=architecture, defense=defense.resolve(info), seed=seed)

    def linear(weight: float, scale: int) -> ModelSpec:
        # twice, for the optimizer adds the gradient of half of weight_decay ||W||^2; rounded for the label's sake
        decay = round(2 * weight / scale, 12)
        more: dict[str, Any] = {"lr": 0.01, "schedule": "cosine", "weight_decay": decay}
        return spec("softmax", Standard(epochs=settings["softmax_epochs"], batch_size=500, **more))

    found = {net: spec(ARCHITECTURE[net], Standard(**common[net])) for net in ARCHITECTURE}
    for net in ARCHITECTURE:
        for norm, sigma in SIGMA.items():
            defense = GradientRegularization(p=2.0 if norm == "p = 2" else math.inf, sigma=sigma, **common[net])
            found[regularized(net, norm)] = spec(ARCHITECTURE[net], defense)
    halves = FastGradient(alpha=0.5, norm="linf", eps=SIGMA["p = inf, 0.25"], **common[MAXOUT])
    penalty = GradientRegularization(p=2.0, sigma=SIGMA["p = 2"], form="penalty", **common[SIGMOID])
    found |= {HALVES: spec(ARCHITECTURE[MAXOUT], halves), PENALTY: spec(ARCHITECTURE[SIGMOID], penalty)}
    found |= {softmax(name): linear(weight, SCALE) for name, weight in LAMBDAS.items()}
    found[RAW] = linear(LAMBDAS["1e-2"], 1)
    return found
