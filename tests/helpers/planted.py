"""Facts of planted adversarials, made up; needs no torch."""

from __future__ import annotations

from typing import Any

from harness.schema.probes import PlantedAttack, PlantedFacts, PlantedPart


def planted(
    eps: float = 0.1,
    floats: int = 32,
    grid: int = 32,
    *,
    n: int = 32,
    black_box: int = 30,
    norm: str = "linf",
    **fields: Any,
) -> PlantedFacts:
    """What gradient attacks find of n adversarials planted on floats and n on the grid."""
    base: dict[str, Any] = {
        "norm": norm, "eps": eps, "images": 2 * n, "place": "stages.logits", "asked": True,
        "floats": PlantedPart(planted=n, noise=0, gradients=floats, black_box=black_box),
        "grid": PlantedPart(planted=n, noise=0, gradients=grid, black_box=black_box),
        "attacks": (
            PlantedAttack(attack="apgd", side="gradients", shown=2 * n, found=floats + grid),
            PlantedAttack(attack="square", side="black_box", shown=2 * n, found=2 * black_box),
        ),
        "seconds": 1.0, "forwards": 1, "backwards": 1,
    }  # fmt: skip
    return PlantedFacts(**base | fields)
