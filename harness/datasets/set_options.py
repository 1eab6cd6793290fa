"""How a user's images are brought to one size, and which of a model's outputs their classes are: part of a set's name.

``images:DIR?resize=256&crop=224&classes=imagenet``; without a question mark nothing is changed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

from ..errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

_WRITTEN: Final = re.compile(r"(.+?)\?((?:resize|crop|classes)=[^&]*(?:&(?:resize|crop|classes)=[^&]*)*)", re.DOTALL)
_LARGEST: Final = 10_000


@dataclass(frozen=True)
class SetOptions:
    """What is done to a user's set when it is read.

    Attributes:
        resize: ``"256"``: the shorter side becomes that long; ``"320x240"``: both sides, width first. As torchvision's
            ``Resize`` does: bilinear, with antialiasing.
        crop: What is then cut out of the middle, ``"224"`` for a square; as ``CenterCrop``, but never padded.
        classes: ``"imagenet"`` or a file, see :mod:`harness.datasets.class_maps`.

    Raises:
        UserError: A size that cannot be read.
    """

    resize: str = ""
    crop: str = ""
    classes: str = ""

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            _sides(getattr(self, name), name)

    @property
    def words(self) -> str:
        """As they are written behind a set's path, "" for none."""
        given = [f"{name}={quote(value, safe='/:,~ ')}" for name, value in vars(self).items() if value]
        return f"?{'&'.join(given)}" if given else ""

    @property
    def tag(self) -> str:
        """What they add to the set's name: sizes; which classes there are is in its digest."""
        named = f"-resize{self.resize}" if self.resize else ""
        named += f"-crop{self.crop}" if self.crop else ""
        return named + ("-classes" if self.classes else "")

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an image after resizing."""
        sides = _sides(self.resize, "resize")
        if len(sides) != 1:
            return (sides[0], sides[1]) if sides else (width, height)
        short, long = sorted((width, height))
        other = int(sides[0] * long / short)
        return (sides[0], other) if width <= height else (other, sides[0])

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an image when all is done; smaller than the crop where it does not fill it."""
        width, height = self.resized(width, height)
        return (min(width, self.cut[0]), min(height, self.cut[1])) if self.cut else (width, height)

    @property
    def cut(self) -> tuple[int, int] | None:
        """Width and height of the crop, if there is one."""
        sides = _sides(self.crop, "crop")
        return (sides[0], sides[-1]) if sides else None

    def apply(self, image: Image) -> Image:
        """The image resized and cropped."""
        from PIL.Image import Resampling

        wanted = self.resized(*image.size)
        if wanted != image.size:
            image = image.resize(wanted, Resampling.BILINEAR)
        if self.cut in (None, image.size):
            return image
        width, height = self.cut or image.size
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))


def _sides(text: str, name: str) -> tuple[int, ...]:
    if not text:
        return ()
    found = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text, re.ASCII)
    sides = tuple(int(side) for side in found.groups() if side is not None) if found else ()
    if not sides or not all(1 <= side <= _LARGEST for side in sides):
        raise UserError(f"{name} must be a number of pixels such as 224, or WIDTHxHEIGHT, got {text!r}")
    return sides


def parse(text: str) -> tuple[Path, SetOptions]:
    """The path of a set, absolute, and its options; a question mark that begins none is part of the path.

    Raises:
        UserError: An option is given twice, or cannot be read.
    """
    found = _WRITTEN.fullmatch(text)
    given: dict[str, str] = {}
    for word in found[2].split("&") if found else ():
        name, _, value = word.partition("=")
        if name in given or not value:
            raise UserError(f"{text}: {name} {'is given twice' if name in given else 'has no value'}")
        given[name] = unquote(value)
    path = Path(found[1] if found else text).expanduser().absolute()
    return path, check(SetOptions(**given))


def check(options: SetOptions) -> SetOptions:
    """The options with the file of classes made absolute."""
    if options.classes in ("", "imagenet"):
        return options
    return SetOptions(options.resize, options.crop, str(Path(options.classes).expanduser().absolute()))


PLAIN: Final = SetOptions()
