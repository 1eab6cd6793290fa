"""The study of Gu & Rigazio 2014: how much is run, and all that there is in the paper's order."""

from __future__ import annotations

from typing import Final

from harness.studies.study import Profile, Study

from .choices import CHOICES
from .claims import CLAIMS
from .figures import FIGURE_1_ADVERSARIAL, FIGURE_1_CLEAN, FIGURE_2, FIGURE_3
from .networks import DEFENDED, NETS, PLACES, blur, dcn, models, noise
from .tables import TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_5, TABLE_6


def _others(judged: tuple[str, ...]) -> tuple[str, ...]:
    """Defended models but these."""
    return tuple(name for name, _ in DEFENDED if name not in judged)


_NOISES_BUT_ONE: Final = tuple(
    noise(place, 0.1, net) for place in PLACES for net in NETS if (place, net) != ("L1", "N100-100-10")
)
"""Networks with noise at inference, but for one."""

PROFILES: Final = {
    "smoke": Profile(
        summary="embedded 8x8 digits, one seed: whether everything runs, not what it shows",
        dataset="digits",
        seeds=(0,),
        samples=40,
        batteries=("quick",),
        battery_samples=20,
        skipped=_others(("N100-100-10", dcn("N100-100-10"), blur(5, "N100-100-10"))),
        settings={"epochs": 15, "unsupervised_epochs": 10, "conv_epochs": 15, "ae_epochs": 10, "attacked": 400},
    ),
    "cpu": Profile(
        summary="MNIST, three seeds, 1,000 test images; two cores take at most 45 minutes",
        dataset="mnist",
        seeds=(0, 1, 2),
        samples=1000,
        battery_samples=100,
        skipped=_NOISES_BUT_ONE,
        settings={"epochs": 12, "unsupervised_epochs": 20, "conv_epochs": 6, "ae_epochs": 8, "attacked": 10_000},
    ),
    "night": Profile(
        summary="MNIST, five seeds, all test images, longer training; some 5 core-hours without the batteries",
        dataset="mnist",
        seeds=(0, 1, 2, 3, 4),
        samples=10_000,
        battery_samples=500,
        battery_seeds=3,
        skipped=_NOISES_BUT_ONE,
        settings={"epochs": 24, "unsupervised_epochs": 20, "conv_epochs": 12, "ae_epochs": 24, "attacked": 10_000},
    ),
    "full": Profile(
        summary="MNIST, five seeds, all test images, long training; a GPU or patience",
        dataset="mnist",
        seeds=(0, 1, 2, 3, 4),
        samples=10_000,
        battery_samples=1000,
        battery_seeds=3,
        settings={"epochs": 40, "unsupervised_epochs": 40, "conv_epochs": 20, "ae_epochs": 30, "attacked": 60_000},
    ),
}

STUDY: Final = Study(
    name="gu2014",
    title="Towards deep neural network architectures robust to adversarial examples",
    source="Gu & Rigazio 2014 (arXiv:1412.5068)",
    profiles=PROFILES,
    models=models,
    items=(
        TABLE_1,
        FIGURE_1_CLEAN,
        FIGURE_1_ADVERSARIAL,
        TABLE_2,
        TABLE_3,
        FIGURE_2,
        TABLE_4,
        TABLE_5,
        TABLE_6,
        FIGURE_3,
    ),
    claims=CLAIMS,
    choices=CHOICES,
    defended=DEFENDED,
)
