"""What no threat model foresaw: transformations that images meet on their way, most in two severities.

One budget, linf 1, allows any image. The severities leave pictures of 8x8 to 32x32 pixels readable; their units are
those of :mod:`harness.attacks.corruptions`. The three grid searches turn by up to 15 degrees: ART takes one angle and
one shift sideways for all images, Foolbox the worst angle of each image, ours the worst angle and shift of each.
"""

from __future__ import annotations

from harness.attacks.corruptions import (
    BlurCorruption,
    Brightness,
    Jpeg,
    LowContrast,
    NoiseCorruption,
    Quantise,
    SaltAndPepper,
)
from harness.attacks.spatial import Rotation, Spatial, Translation
from harness.attacks.toolkits.art import Art
from harness.attacks.toolkits.foolbox import Foolbox
from harness.planning.suite import Suite

SUITE = Suite(
    name="unseen",
    summary="what nobody trained against: noise, blur, light, compression, rotations and shifts",
    attacks={
        "linf": (
            NoiseCorruption(std=0.05),
            NoiseCorruption(std=0.15),
            SaltAndPepper(share=0.02),
            SaltAndPepper(share=0.1),
            BlurCorruption(sigma=0.03),
            BlurCorruption(sigma=0.06),
            LowContrast(factor=0.6),
            LowContrast(factor=0.3),
            Brightness(change=0.15),
            Brightness(change=0.3),
            Brightness(change=-0.15),
            Brightness(change=-0.3),
            Quantise(levels=4),
            Jpeg(quality=50),
            Jpeg(quality=10),
            Rotation(degrees=15),
            Rotation(degrees=30),
            Translation(shift=0.05),
            Translation(shift=0.1),
            Art("SpatialTransformation", max_rotation=15.0, num_rotations=5, max_translation=5.0, num_translations=3),
            Foolbox("SpatialAttack", max_rotation=15.0, num_rotations=11, max_translation=0.0, num_translations=1),
            Spatial(degrees=15, shift=0.05, angles=11, shifts=3),
        ),
    },
    budgets={"linf": (1.0,)},
)
