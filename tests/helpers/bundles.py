"""Hand-made entries of a board."""

from __future__ import annotations

from typing import Any

from harness.schema.board import BundleEntry, Claimed


def claim(bundle: str, defense: str, accuracy: float, **fields: Any) -> Claimed:
    """A claim, the given fields overridden."""
    base: dict[str, Any] = {
        "bundle": bundle, "suite": "quick", "dataset": "digits", "architecture": "mlp-8", "defense": defense,
        "weights": (defense,), "norm": "linf", "eps": 0.1, "n": 100, "seeds": 1, "clean": 0.95, "accuracy": accuracy,
        "low": accuracy - 0.05, "high": accuracy + 0.05, "certified": float("nan"), "trust": "B", "strongest": "apgd",
        "note": "",
    }  # fmt: skip
    return Claimed(**base | fields)


def board_entries() -> list[BundleEntry]:
    """Two bundles, the newer of which lowers a number, and one that does not count."""
    doubted = {"trust": "D", "note": "trust D: planted-found"}
    first = (
        claim("a.tar", "standard", 0.3),
        claim("a.tar", "pgd", 0.5),
        claim("a.tar", "pgd", 0.6, norm="l2", eps=0.5),
        claim("a.tar", "masked <b>", 0.9, **doubted),
    )
    second = (claim("b", "standard", 0.1, suite="linf", trust="A"),)
    return [
        BundleEntry(
            name="a.tar", link="../a.tar", by="Ada", date="2026-01-01", manifest="0" * 64, models=3, claims=first
        ),
        BundleEntry(name="b", link="../b/", by="Grace", date="2026-02-01", manifest="1" * 64, models=1, claims=second),
        BundleEntry(name="c.zip", link="../c.zip", trouble=("numbers.json was changed",)),
    ]
