"""Surrogates for users' models: one small network per data set that images are transferred from.

Nobody can train a twin of a model that was trained elsewhere, and a network of its size may take hours. The surrogate
is the same for all models of a data set, so it is trained once and kept in the home.

Measured with 250 test images and APGD of 20 steps, on victims that were trained otherwise (small networks of 3x3
convolutions with batch normalisation). Broken are images that the victim gets right as they are; CPU seconds are of a
busy machine, on which everything took longer; accuracies on CIFAR-10 are of 2000 test images:

============= ============================================== ======== === ==============================
data set      surrogate                                      accuracy CPU broken
============= ============================================== ======== === ==============================
cifar10-jpeg  this one: resnet, 75 k images shown, lr 3e-3   77.4 %   136 70 of 198 at linf 8/255
cifar10-jpeg  the same, lr 1e-3                              72.3 %   140 47
cifar10-jpeg  resnet, one epoch of 50 k, lr 1e-3             65.0 %   82  44
cifar10-jpeg  lenet, 100 k shown, lr 1e-3                    66.1 %   71  22
mnist         this one: lenet, 75 k shown, lr 3e-3           99.1 %   29  222 of 246 at linf 0.2
mnist         the same, lr 1e-3                              98.7 %   31  222
digits        this one: lenet, 75 k shown, lr 3e-3           98.6 %   6   74 of 250 at linf 0.15
digits        lenet, the data set's epochs (86 k), lr 1e-3   98.9 %   6   78
============= ============================================== ======== === ==============================

Twenty epochs of resnet on all of CIFAR-10 show it 13 times as many images; what they would break was not measured. Five
classes of it enlarged to 64x64, 3000 training images: 67.6 % (the victim 70.7 %), and no more than 15 of 175 broken at
linf 8/255. A surrogate that has little to learn from transfers little, and such transfers say little of the victim.
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
    """Architecture and trainer of a surrogate; a defense that says how many epochs it wants stays as it is."""
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
