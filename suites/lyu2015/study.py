"""The study of Lyu et al. 2015 on MNIST: how much is run, and all that there is in the paper's order."""

from __future__ import annotations

from typing import Final

from harness.studies.study import Profile, Study

from .choices import CHOICES
from .claims import CLAIMS
from .error_tables import TABLE_1, TABLE_2, TABLE_4
from .figures import FIGURE_5, FIGURE_6, FIGURE_7, GALLERY
from .networks import CONV, DEFENDED, MAXOUT, models, regularized
from .softmax_tables import TABLE_6, TABLE_7, TABLE_8, TABLE_9

_CONVOLUTIONAL: Final = tuple(name for name, _ in DEFENDED if name.startswith(CONV))

PROFILES: Final = {
    "smoke": Profile(
        summary="embedded 8x8 digits, one seed: whether everything runs, not what it shows",
        dataset="digits",
        seeds=(0,),
        samples=60,
        batteries=("quick",),
        battery_samples=20,
        skipped=tuple(name for name, _ in DEFENDED if name != regularized(MAXOUT)),
        settings={
            "epochs": 4,
            "refit": 1,
            "conv_epochs": 1,
            "conv_refit": 1,
            "conv_subset": None,
            "softmax_epochs": 20,
        },
    ),
    "cpu": Profile(
        summary="MNIST, two seeds, all test images for errors; dense networks train for 20 epochs of 50,000 images (of "
        "60,000, the rest held out; then at most 2 of all), convolutional ones for 4 epochs of 16,667 images (of "
        "20,000, the rest held out), too few for the paper's errors; two cores take about an hour",
        dataset="mnist",
        seeds=(0, 1),
        samples=2000,
        battery_samples=100,
        skipped=_CONVOLUTIONAL,
        settings={
            "epochs": 20,
            "refit": 2,
            "conv_epochs": 4,
            "conv_refit": 1,
            "conv_subset": 20_000,
            "softmax_epochs": 28,
        },
    ),
    "night": Profile(
        summary="MNIST, five seeds, all test images for errors; dense networks train for 50 epochs of 50,000 images "
        "(of 60,000, the rest held out; then at most 5 of all), convolutional ones for 5 (then 1 of all), too few for "
        "the paper's errors; two cores take some 10 hours",
        dataset="mnist",
        seeds=(0, 1, 2, 3, 4),
        samples=2000,
        battery_samples=500,
        battery_seeds=3,
        skipped=_CONVOLUTIONAL,
        settings={
            "epochs": 50,
            "refit": 5,
            "conv_epochs": 5,
            "conv_refit": 1,
            "conv_subset": None,
            "softmax_epochs": 28,
        },
    ),
    "full": Profile(
        summary="MNIST, five seeds, all test images; dense networks train for 100 epochs of 50,000 images (of 60,000, "
        "the rest held out; then at most 30 of all), convolutional ones for 60 (then 20); a GPU or patience",
        dataset="mnist",
        seeds=(0, 1, 2, 3, 4),
        samples=10_000,
        battery_samples=1000,
        battery_seeds=3,
        settings={
            "epochs": 100,
            "refit": 30,
            "conv_epochs": 60,
            "conv_refit": 20,
            "conv_subset": None,
            "softmax_epochs": 28,
        },
    ),
}

STUDY: Final = Study(
    name="lyu2015",
    title="A unified gradient regularization family for adversarial examples",
    source="Lyu, Huang & Liang 2015 (ICDM; arXiv:1511.06385)",
    profiles=PROFILES,
    models=models,
    items=(
        GALLERY,
        TABLE_1,
        TABLE_2,
        TABLE_4,
        FIGURE_5,
        TABLE_6,
        TABLE_7,
        TABLE_8,
        FIGURE_6,
        FIGURE_7,
        TABLE_9,
    ),
    claims=CLAIMS,
    choices=CHOICES,
    defended=DEFENDED,
)
