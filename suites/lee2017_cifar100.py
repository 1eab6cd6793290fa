"""Lee et al. 2017 on CIFAR-100: table 2 (b), and what the figures show."""

from __future__ import annotations

from typing import Final

from harness.studies.study import Choice, Study
from suites.lee2017 import (
    BASELINE,
    DROPOUT,
    DROPOUT_GAT,
    FG_L2,
    FG_LINF,
    FIGURES,
    GAT,
    METHODS,
    RANDOM,
    SEARCHES,
    architectures,
    figures,
    models,
    points,
    profiles,
    regularization,
    table,
    training_power,
)

PRINTED: Final = {
    BASELINE: (44.32, 0.63),
    DROPOUT: (46.29, 0.61),
    RANDOM: (44.43, 0.71),
    FG_LINF: (45.16, 0.73),
    FG_L2: (45.67, 0.63),
    GAT: (50.44, 0.56),
    DROPOUT_GAT: (50.71, 0.49),
}

STUDY: Final = Study(
    name="lee2017-cifar100",
    title="Generative Adversarial Trainer: CIFAR-100",
    source="Lee, Han & Lee 2017 (arXiv:1705.03387)",
    profiles=profiles("cifar100", "cifar100"),
    models=models,
    items=(architectures("table-1", 100), table("table-2b", PRINTED), *figures(44.0), training_power()),
    claims=(
        regularization("section 4.4, table 2 (b)"),
        points("Table 2 (b) has 1.97 for dropout, less for the others, 6.12 for GAT and 6.39 with dropout."),
        *FIGURES,
    ),
    choices=(
        Choice(
            topic="everything else",
            choice="as in the study of CIFAR-10",
            reason="The paper prints no hyperparameters of either.",
        ),
    ),
    defended=tuple((name, name) for name in METHODS),
    datasets=("cifar100",),
    searches=SEARCHES,
)
