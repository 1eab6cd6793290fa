"""Records of witnesses: the images that broke a model."""

from __future__ import annotations

from .base import Document


class WitnessFacts(Document):
    """Facts in a file of ``witnesses/MODEL/``.

    Attributes:
        norms: In which the nearest image of each sample is kept.
        weights: Digest of the weights of the model that was broken.
        place: Key of the model and name of the file.
    """

    norms: tuple[str, ...]
    weights: str
    place: str = ""
