"""Records of a board: what many bundles say together."""

from __future__ import annotations

from .base import Number, Record


class Claimed(Record):
    """What one bundle says of one model, over its seeds, at one eps.

    Attributes:
        bundle: Its name on the board.
        weights: Digests of the model's weights, or of what a user's model answers, over its seeds: whose the number is.
        accuracy: Robust accuracy of the worst case, in [0, 1]; ``low`` and ``high`` are its 95 % interval.
        certified: Share of images for which a bound is proved; NaN without one.
        note: Why it has no rank, "" if it has one.
    """

    bundle: str
    suite: str
    dataset: str
    architecture: str
    defense: str
    weights: tuple[str, ...]
    norm: str
    eps: float
    n: int
    seeds: int
    clean: Number
    accuracy: Number
    low: Number
    high: Number
    certified: Number
    trust: str
    strongest: str
    note: str


class BundleEntry(Record):
    """A bundle on a board.

    Attributes:
        name: Of its file or folder.
        link: Where it is, relative to the board's pages.
        date: The newest day on which one of its results was measured, YYYY-MM-DD; "" if none says.
        manifest: SHA-256 of its manifest.
        trouble: Why nothing of it counts, a line each.
    """

    name: str
    link: str
    by: str = ""
    licence: str = ""
    date: str = ""
    manifest: str = ""
    models: int = 0
    pairs: int = 0
    trouble: tuple[str, ...] = ()
    claims: tuple[Claimed, ...] = ()
