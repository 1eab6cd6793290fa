"""What images are transferred from to a model of a user's: one small network a data set, whatever the model.

Nobody can train a twin of a model that was trained elsewhere, and a network of its size may take hours. The surrogate
is the same for all models of a data set, so it is trained once and kept in the home.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from ..datasets.registry import DatasetInfo
from ..training.trainer import Trainer

NETWORKS: Final = {1: "lenet-32", 3: "resnet-32"}
"""Architecture by colour channels; for any other number of them that of colour."""
SHOWN: Final = 75_000
"""Images that training shows a surrogate, all epochs together ..."""
SUBSET: Final = 25_000
"""... which are at most so many different ones ..."""
EPOCHS: Final = 100
"""... each at most so often."""


def recipe(info: DatasetInfo, defense: Trainer, architecture: str | None = None) -> tuple[str, Trainer]:
    """Architecture and trainer of a surrogate.

    Args:
        info: Data set.
        defense: As the suite declares it. One that says how many epochs it wants stays as it is.
        architecture: As the suite declares it, if it does.
    """
    # of fewer pixels two poolings leave nothing, and batch normalisation sees one place
    usual = NETWORKS.get(info.shape[0], NETWORKS[3]) if min(info.shape[1:]) >= 8 else "mlp-100-100"
    if defense.epochs is not None or not info.train_size:
        return architecture or usual, defense.resolve(info)
    images = min(info.train_size, SUBSET)
    trainer = dataclasses.replace(
        defense,
        epochs=min(max(round(SHOWN / images), 1), EPOCHS),
        subset=images if images < info.train_size else None,
        batch_size=64,
        optimizer="adam",
        lr=3e-3,
        schedule="cosine",
    )
    return architecture or usual, trainer.resolve(info)
