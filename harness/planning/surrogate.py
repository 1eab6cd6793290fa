"""What images are transferred from to a model of a user's: one small network a data set, whatever the model.

Nobody can train a twin of a model that was trained elsewhere, and a network of its size may take hours. The surrogate
is the same for every model, so it is trained once a data set and kept in the home.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from ..datasets.registry import DatasetInfo
from ..training.trainer import Trainer

SHOWN: Final = 100_000
"""Images that training shows a surrogate, all epochs together ..."""
SUBSET: Final = 50_000
"""... of at most so many of the data set's ..."""
EPOCHS: Final = 60
"""... each at most so often."""


def recipe(info: DatasetInfo, defense: Trainer, architecture: str | None = None) -> tuple[str, Trainer]:
    """Architecture and trainer of a surrogate.

    Args:
        info: Data set.
        defense: As the suite declares it. One that says how many epochs it wants stays as it is.
        architecture: As the suite declares it, if it does.
    """
    # of 4 pixels two poolings leave one
    usual = "lenet-32" if min(info.shape[1:]) >= 4 else "mlp-100-100"
    if defense.epochs is not None or not info.train_size:
        return architecture or usual, defense.resolve(info)
    subset = min(info.train_size, SUBSET)
    epochs = min(max(round(SHOWN / subset), 1), EPOCHS)
    trainer = dataclasses.replace(defense, epochs=epochs, subset=subset, batch_size=64, schedule="cosine")
    return architecture or usual, trainer.resolve(info)
