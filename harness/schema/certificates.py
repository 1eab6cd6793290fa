"""Records of certificates: of which images it is proved that no adversarial lies within eps."""

from __future__ import annotations

from .base import Document, Number, Provenance, Record


class CertificateEntry(Record):
    """A certificate in a plan: its key, that of its model, its norm, and its shards.

    Attributes:
        screen: Whether it is what a cascade need not attack, rather than what a table says is certified.
    """

    certificate: str
    model: str
    norm: str
    shards: int
    screen: bool = False


class CertifiedLevel(Record):
    """What is proved at one eps.

    Attributes:
        certified: Whether it is proved, image by image.
        margins: What is left beyond what the proof needs, in units of the logits or of the radius; not a number where
            it was not asked: of an image that is wrong as it is, or not certified at a smaller eps.
    """

    eps: float
    certified: tuple[bool, ...]
    margins: tuple[Number, ...]


class CertificateFacts(Record):
    """What is proved of some images of a model in one norm.

    Attributes:
        n: Images that were asked for.
        index: Positions in the test set of those that were looked at: the first of them, in their order. Fewer than
            ``n`` where bounds cost too much.
        levels: By eps, ascending.
        uncovered: Why there is no bound: the operation that none is known for; "" if there is one.
        alpha: Probability that what is proved of an image does not hold; None for a proof without chance.
        cost: Passes of an image that a certificate was taken to cost.
    """

    norm: str
    n: int
    index: tuple[int, ...]
    levels: tuple[CertifiedLevel, ...]
    uncovered: str = ""
    alpha: float | None = None
    cost: int
    seconds: Number

    def at(self, eps: float) -> CertifiedLevel | None:
        """What is proved at that eps, None if it was not asked."""
        return next((level for level in self.levels if level.eps == eps), None)


class CertificateRecord(Document, Provenance):
    """``certificates/KEY/SHARD.json``."""

    facts: CertificateFacts


def together(shards: tuple[CertificateFacts, ...]) -> CertificateFacts:
    """Facts of a certificate's shards, in their order, as those of the whole."""
    first = shards[0]
    levels = tuple(
        CertifiedLevel(
            eps=level.eps,
            certified=tuple(flag for shard in shards for flag in shard.levels[i].certified),
            margins=tuple(margin for shard in shards for margin in shard.levels[i].margins),
        )
        for i, level in enumerate(first.levels)
    )
    return first.model_copy(
        update={
            "index": tuple(position for shard in shards for position in shard.index),
            "levels": levels,
            "uncovered": next((shard.uncovered for shard in shards if shard.uncovered), ""),
            "seconds": sum(shard.seconds for shard in shards),
        }
    )
