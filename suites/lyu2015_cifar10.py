"""Lyu et al. 2015 on CIFAR-10: tables III and V. The rest is in :mod:`suites.lyu2015`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from defenses.gradient_regularization import GradientRegularization
from defenses.standard import Standard
from harness.planning.specs import ModelSpec
from harness.studies.study import Choice, Claim, Profile, Study

from .lyu2015 import NOISE, below, errors, noise_table, noisy, regularized, tested

if TYPE_CHECKING:
    from harness.datasets.registry import DatasetInfo
    from harness.training.trainer import Trainer

NET: Final = "Conv. Maxout Small + dropout"
FIRST: Final = "40K"
BOTH: Final = "50K"
UNIT: Final = 0.22
"""A length printed as 1 in pixel units of [0, 1]; see the choice of preprocessing."""


SHORT: Final = (
    "The cpu profile trains a smaller network for 10 epochs of 8,000 images, night for 12 of 40,000: too few for these "
    "errors."
)


def stage(model: str, images: str) -> str:
    """The study's name of a network after one stage of training or after both."""
    return f"{model} ({images})"


def models(profile: Profile, info: DatasetInfo, seed: int) -> Mapping[str, ModelSpec]:
    """The network, plain and regularized, after the first stage and after the second."""
    settings = profile.settings
    common: dict[str, Any] = {
        "epochs": settings["epochs"],
        "batch_size": settings["batch_size"],
        "optimizer": "sgd",
        "lr": settings["lr"],
        "momentum": 0.6,
        "schedule": "cosine",
        "max_norm": 1.9365,
        "validation": 0.2,
        "subset": settings["subset"],
    }
    found: dict[str, ModelSpec] = {}
    for images, refit in ((FIRST, None), (BOTH, settings["refit"])):
        trainers: dict[str, Trainer] = {
            NET: Standard(refit=refit, **common),
            regularized(NET): GradientRegularization(p=2.0, sigma=2.0 * UNIT, refit=refit, **common),
        }
        for name, trainer in trainers.items():
            found[stage(name, images)] = ModelSpec(
                dataset=info.name, architecture=settings["architecture"], defense=trainer.resolve(info), seed=seed
            )
    return found


PLAIN: Final = {images: stage(NET, images) for images in (FIRST, BOTH)}
OURS: Final = {images: stage(regularized(NET), images) for images in (FIRST, BOTH)}

CLAIMS: Final = (
    Claim(
        name="p-2-is-better",
        text="Standard gradient regularization lowers the test error, at the end of either stage.",
        where="section IV.B, table III",
        clauses=tuple(below(images, tested(OURS[images]), tested(PLAIN[images])) for images in (FIRST, BOTH)),
    ),
    Claim(
        name="robust-to-noise",
        text="Gradient regularization lowers the error under Gaussian noise.",
        where="section IV.C, table V",
        clauses=tuple(
            below(std, noisy(OURS[BOTH], float(std) * UNIT), noisy(PLAIN[BOTH], float(std) * UNIT)) for std in NOISE
        ),
    ),
)

CHOICES: Final = (
    Choice(
        topic="network",
        choice="the small network for CIFAR-10 that was published with Pylearn2, with its dropout",
        reason="The paper names it and its library.",
    ),
    Choice(
        topic="training",
        choice="stochastic gradient descent with momentum 0.6; one rate for all layers, which falls to 0 by a "
        "cosine, and one max-norm",
        reason="Published with it are rates by layer, a linear fall over 250 epochs and another first max-norm.",
    ),
    Choice(
        topic="preprocessing",
        choice=f"none, images in [0, 1], where sigma and the noise are {UNIT} times what is printed",
        reason="The procedure of the Maxout paper is to normalize contrast and whiten; attacks need pixels. An image "
        "has a standard deviation of 0.21, normalized of 1, and noise on whitened images, taken back to pixels, is of "
        "0.22 times its strength. As printed, sigma = 2 would be a sixth of an image's length, and noise of 0.3 more "
        "than an image's own contrast. Whitened, errors are lower than here.",
    ),
    Choice(
        topic="two stages",
        choice="40,000 images, drawn by the seed, then all at a tenth of the rate until the loss on the other 10,000 "
        "is what it was on the first, for a bounded number of epochs. Networks of the first stage's rows are trained "
        "apart, with other initial weights",
        reason="The paper records the training loss and does not say at which rate it goes on. The plain network's "
        "error after both stages is 12.93 % in its table III and 13.08 % in table V.",
    ),
)

_LARGE: Final = "conv-maxout-small"

PROFILES: Final = {
    "smoke": Profile(
        summary="embedded 8x8 digits, one seed: whether everything runs, not what it shows",
        dataset="digits",
        seeds=(0,),
        samples=40,
        batteries=("quick",),
        battery_samples=10,
        skipped=(PLAIN[BOTH],),
        settings={"architecture": _LARGE, "epochs": 1, "batch_size": 128, "lr": 0.05, "refit": 1, "subset": None},
    ),
    "cpu": Profile(
        summary="CIFAR-10 re-encoded as JPEG, all test images, a smaller network for 10 epochs of "
        "8,000 images (of 10,000, the rest held out; then 1 of all), far too few for the paper's errors; two cores "
        "take less than half an hour",
        dataset="cifar10-jpeg",
        seeds=(0,),
        samples=500,
        battery_samples=50,
        settings={
            "architecture": "conv-maxout",
            "epochs": 10,
            "batch_size": 32,
            "lr": 0.03,
            "refit": 1,
            "subset": 10_000,
        },
        surrogate={"epochs": 4, "subset": 10_000},
    ),
    "night": Profile(
        summary="CIFAR-10 re-encoded as JPEG, five seeds, all test images, a smaller network for 12 epochs of 40,000 "
        "images (of 50,000, the rest held out; then 1 of all), too few for the paper's errors; two cores take some 5 "
        "hours",
        dataset="cifar10-jpeg",
        seeds=(0, 1, 2, 3, 4),
        samples=500,
        battery_samples=500,
        battery_seeds=3,
        settings={
            "architecture": "conv-maxout",
            "epochs": 12,
            "batch_size": 32,
            "lr": 0.03,
            "refit": 1,
            "subset": None,
        },
        surrogate={"epochs": 4, "subset": 10_000},
    ),
    "full": Profile(
        summary="CIFAR-10, three seeds, all test images, 150 epochs of 40,000 images (of 50,000, the rest held out; "
        "then at most 40 of all); for a GPU",
        dataset="cifar10",
        seeds=(0, 1, 2),
        samples=10_000,
        battery_samples=1000,
        settings={"architecture": _LARGE, "epochs": 150, "batch_size": 128, "lr": 0.05, "refit": 40, "subset": None},
    ),
}

STUDY: Final = Study(
    name="lyu2015-cifar10",
    title="A unified gradient regularization family for adversarial examples: CIFAR-10",
    source="Lyu, Huang & Liang 2015 (ICDM; arXiv:1511.06385)",
    profiles=PROFILES,
    models=models,
    items=(
        errors(
            "table-3",
            "section IV.B",
            "Test errors on CIFAR-10, after either stage of training",
            {
                PLAIN[FIRST]: (PLAIN[FIRST], 14.05),
                OURS[FIRST]: (OURS[FIRST], 13.26),
                PLAIN[BOTH]: (PLAIN[BOTH], 12.93),
                OURS[BOTH]: (OURS[BOTH], 12.28),
            },
            {OURS[FIRST]: PLAIN[FIRST], OURS[BOTH]: PLAIN[BOTH]},
            0.3,
            SHORT,
        ),
        noise_table(
            "table-5",
            "section IV.C",
            {PLAIN[BOTH]: (13.08, 13.37, 16.88), OURS[BOTH]: (12.28, 12.81, 16.80)},
            {OURS[BOTH]: PLAIN[BOTH]},
            {PLAIN[BOTH]: (0.3, 0.3, 0.3), OURS[BOTH]: (0.3, 0.3, 0.3)},
            "Without noise the table repeats table III, where the plain network's 13.08 % is printed as 12.93 %. "
            f"Standard deviations are the printed ones, of whitened images; measured at {UNIT} times as much. {SHORT}",
            unit=UNIT,
        ),
    ),
    claims=CLAIMS,
    choices=CHOICES,
    defended=((PLAIN[BOTH], f"{NET} (plain)"), (OURS[BOTH], regularized(NET))),
    datasets=("cifar10", "cifar10-jpeg"),
)
