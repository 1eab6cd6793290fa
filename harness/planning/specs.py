"""Declarations of a model, of a cell (model and attack), of a probe, of a planting and of a certificate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final

from .. import identity
from ..attacks.base import Attack
from ..attacks.transfer import inner
from ..datasets.registry import DatasetInfo, Half
from ..errors import UserError
from ..goal import Goal
from ..schema.pairs import SHARES, Share
from ..threat import Norm, Threat
from ..training.averaging import Averaging
from ..training.defense import Defense
from ..training.on_trained import OnTrainedModel

PROBE_SAMPLES: Final = 128
"""Images that a model's health is looked at with."""

PLANTED_SAMPLES: Final = 64
"""Images of which those that the model gets right are planted; see :data:`harness.trust.planting.IMAGES`."""

CERTIFIED_PART: Final = 8
"""Unless somebody says how many, one in so many images is certified ..."""
CERTIFIED_FEW: Final = 32
"""... but not fewer than these if there are so many ..."""
CERTIFIED_PASSES: Final = 400
"""... and fewer where that would cost more than so many passes of every image that is attacked: less than the attacks
of any suite that asks for the worst case declare in one norm, which is what these bounds stand beside."""
SCREENED_PASSES: Final = 640
"""The same of a cascade's screen, which spares the attacks what it proves: they declare about as many or more, and with
gradients. The draws of randomised smoothing just fit."""
CERTIFIED_SHARD: Final = 64
"""Images that are certified in one go."""
INTERVAL_SHARD: Final = 256
"""Likewise, by intervals alone: taking the model apart costs more than they do."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model that can be trained again from nothing but this.

    Attributes:
        defense: Resolved: no hyperparameter is left to the data set.
        seed: Number of the training run, 0, 1, ...
        front: Model whose purifier is put in front of the base, if any: the defense is built upon both together.
        members: Of an ensemble (:class:`harness.training.averaging.Averaging`), at least two.

    Raises:
        UserError: A base or front that the defense needs is missing; a front without a base; parts of another data set;
            an ensemble without members, or one of models that attacks have to see through a remedy.
    """

    name: ClassVar[str] = "ModelSpec"

    dataset: str
    architecture: str
    defense: Defense
    seed: int = 0
    base: ModelSpec | None = None
    front: ModelSpec | None = dataclasses.field(default=None, metadata={"identity": "set"})
    members: tuple[ModelSpec, ...] = dataclasses.field(default=(), metadata={"identity": "set"})

    def __post_init__(self) -> None:
        if isinstance(self.defense, Averaging) != (len(self.members) > 1):
            raise UserError("an ensemble has at least two members: ModelSpec(defense=Averaging(), members=...)")
        for part in self.members:
            if part.defense.remedy:
                raise UserError(f"{part} is attacked through a remedy ({part.defense.remedy}): no ensemble can hold it")
        if isinstance(self.defense, OnTrainedModel):
            if self.base is None:
                raise self.defense.baseless()
            if self.defense.fronted and self.front is None:
                raise UserError(f"{self.defense.name} needs a model whose purifier it takes: ModelSpec(front=...)")
        if self.front is not None and self.base is None:
            raise UserError("a front stands before a base, and there is none: ModelSpec(base=..., front=...)")
        for part in self.parents:
            if part.dataset != self.dataset:
                raise UserError(f"a model of {self.dataset} cannot be built upon one of {part.dataset}")

    @cached_property
    def key(self) -> str:
        """Identity of the trained model."""
        return identity.key(self)

    @property
    def parents(self) -> tuple[ModelSpec, ...]:
        """Models that have to be trained before this one."""
        return tuple(part for part in (self.base, self.front, *self.members) if part is not None)

    @property
    def root(self) -> ModelSpec:
        """What the defense is built upon in the end; the model itself if it is built upon nothing."""
        return self if self.base is None else self.base.root

    @property
    def nameless(self) -> ModelSpec:
        """What random numbers follow from: of a user's model its weights, whatever file and name it came under."""
        if self.defense.trainable:
            return self
        return dataclasses.replace(self, architecture="", defense=self.defense.seed_identity())

    @property
    def training_seed(self) -> int:
        """What random numbers of training are seeded with."""
        return identity.derive_seed(self.key, "train")

    def label(self, info: DatasetInfo) -> str:
        """Name of the defense for people, with what it stands on: ``standard > gaussian-blur(kernel=11)``.

        Architecture and seed of what it stands on are named where they are others.
        """
        return self._said(lambda spec: spec.defense.label(info))

    @property
    def label_alone(self) -> str:
        """Name as a member of an ensemble that is declared."""
        called = getattr(self.defense, "called", "") or self.architecture
        return called if not self.defense.trainable else str(self)

    def __str__(self) -> str:
        return f"{self.architecture} {self._said(lambda spec: spec.defense.name)} seed {self.seed}"

    def _said(self, name: Callable[[ModelSpec], str]) -> str:
        own = name(self)
        if self.members:
            each = (f"{part.architecture} {part._said(name)} seed {part.seed}" for part in self.members)
            own += f" of {' + '.join(each)}"
        if self.front is not None:
            own += f" [front: {self.front.architecture} {self.front._said(name)}{self._seed_of(self.front)}]"
        if self.base is None:
            return own
        other = f"{self.base.architecture} " if self.base.architecture != self.architecture else ""
        return f"{other}{self.base._said(name)}{self._seed_of(self.base)} > {own}"

    def _seed_of(self, other: ModelSpec) -> str:
        return f" seed {other.seed}" if other.seed != self.seed else ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model-attack pair.

    Attributes:
        source: The model that the images are crafted on, when it is not the victim.
        n: Images: the first n of the part's fixed order.
        batch: Images a shard. Part of the identity, because random draws and rounding depend on it.
        after: In a cascade the key of the cell before this one: the attack sees what it and all before it left.
        floor: In a cascade the eps at which an image must still stand to be attacked.
        ceiling: In a cascade a larger eps: an image that the whole battery left there is not attacked, unless in its
            shard something at a smaller eps broke an image that stood at the larger one, which no sound attack does.
        screen: In a cascade what is proved beforehand: an image is not attacked at an eps at which it provably stands.
        share: In a sampled cascade, "tenth": the attack meets one in ten of the images that it would meet, of every
            class alike; "rest": the others, if one of such attacks broke an image of its tenth, or the model's probe
            gives a reason to doubt its gradients (:func:`harness.trust.probe_checks.suspicious`).
        twin: Key of the cell that met the tenth of which this one meets the rest.
        part: Whose images: those of the test part, or, where a paper measured on them, those of the training part.
        goal: Targets that images have to be taken for; None: any wrong label will do.
        alone: Whether a transfer crafts for this cell what it meets, as in a cascade, and not for all victims of its
            source whole shards.
    """

    name: ClassVar[str] = "Cell"

    victim: ModelSpec
    attack: Attack
    threat: Threat
    source: ModelSpec | None = None
    n: int
    batch: int
    after: str = ""
    floor: float | None = None
    ceiling: float | None = dataclasses.field(default=None, metadata={"identity": "set"})
    screen: Certification | None = dataclasses.field(default=None, metadata={"identity": "set"})
    share: Share = dataclasses.field(default="all", metadata={"identity": "set"})
    twin: str = dataclasses.field(default="", metadata={"identity": "set"})
    part: Half = dataclasses.field(default="test", metadata={"identity": "set"})
    goal: Goal | None = dataclasses.field(default=None, metadata={"identity": "set"})
    alone: bool = dataclasses.field(default=False, metadata={"identity": "set"})

    @cached_property
    def key(self) -> str:
        """Identity of the result."""
        return identity.key(self)

    @cached_property
    def prepared_key(self) -> str | None:
        """Identity of the attack's look at the training data, None if it takes none."""
        attack = inner(self.attack)
        if not attack.prepares:
            return None
        # preparation is shown no eps
        threat = dataclasses.replace(self.threat, eps=None)
        return identity.key("prepared", self.crafter, attack.preparation, threat)

    @property
    def crafted_key(self) -> str | None:
        """Identity of the crafted images that this cell shares with every other victim of its source."""
        return None if self.alone else self._crafted_key

    @cached_property
    def _crafted_key(self) -> str | None:
        if self.source is None:
            return None
        more = [*([] if self.part == "test" else [self.part]), *([] if self.goal is None else [self.goal])]
        more += ["onward"] if inner(self.attack).ends_early else []
        return identity.key("crafted", self.source, inner(self.attack), self.threat, self.n, self.batch, *more)

    @property
    def crafter(self) -> ModelSpec:
        """The model handed to the attack."""
        return self.source or self.victim

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.n // self.batch)

    def shard_slice(self, shard: int) -> slice:
        """Positions of one shard's images in the test order."""
        return slice(shard * self.batch, min((shard + 1) * self.batch, self.n))

    def shard_seed(self, shard: int) -> int:
        """Seed of one shard: from identities alone, so that worker count and order change no number.

        A cascade draws what the full matrix draws, and the same weights in another file what they drew before.
        """
        return identity.derive_seed(self._crafted_key or self._seed_key, shard)

    @cached_property
    def _seed_key(self) -> str:
        alone: dict[str, Any] = {
            "after": "",
            "floor": None,
            "ceiling": None,
            "screen": None,
            "share": "all",
            "twin": "",
        }
        return identity.key(
            dataclasses.replace(self, victim=self.victim.nameless, attack=self.attack.draws_as, **alone)
        )

    @property
    def cascaded(self) -> bool:
        """Whether the attack sees only what still stands."""
        return self.floor is not None

    def __str__(self) -> str:
        aim = f", {self.goal}" if self.goal is not None else ""
        return f"{self.victim}: {self.attack.label} ({self.threat}{aim}{SHARES[self.share]})"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A look at one model that says how far its accuracies in one norm can be believed; see :mod:`harness.trust.probe`.

    Attributes:
        n: Images: the first n of the data set's fixed test order.
        version: Bumped by hand when the probe measures anything else.
    """

    name: ClassVar[str] = "Probe"

    model: ModelSpec
    threat: Threat
    n: int
    version: int = 4

    @cached_property
    def key(self) -> str:
        """Identity of the facts."""
        return identity.key(self)

    @property
    def seed(self) -> int:
        """Seed of its random numbers: what was measured before a new version is measured alike."""
        return identity.derive_seed(dataclasses.replace(self, model=self.model.nameless, version=1).key)

    def __str__(self) -> str:
        return f"{self.model} ({self.threat})"


@dataclass(frozen=True, kw_only=True)
class Certification:
    """What can be proved of a model's first images in one norm; see :mod:`harness.judging.certificates`.

    Attributes:
        grid: Values of eps, ascending.
        n: Images: the first n of the data set's fixed test order.
        passes: What it may cost, in passes of one image, all images together; fewer are certified if it would cost
            more. ``None``: whatever it costs.
        intervals: Whether bounds are from intervals alone, at the price of a few passes; a model's own certificate is
            taken in any case.
        version: Bumped by hand when the same bounds prove anything else.
    """

    name: ClassVar[str] = "Certification"

    model: ModelSpec
    norm: Norm
    grid: tuple[float, ...]
    n: int
    passes: int | None = None
    intervals: bool = dataclasses.field(default=False, metadata={"identity": "set"})
    version: int = 1

    @cached_property
    def key(self) -> str:
        """Identity of the facts."""
        return identity.key(self)

    @property
    def seed(self) -> int:
        """Seed of its random numbers."""
        return identity.derive_seed(dataclasses.replace(self, model=self.model.nameless).key)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.n // self.batch)

    @property
    def batch(self) -> int:
        """Images a shard."""
        return INTERVAL_SHARD if self.intervals else CERTIFIED_SHARD

    def shard_slice(self, shard: int) -> slice:
        """Positions of one shard's images in the test order."""
        return slice(shard * self.batch, min((shard + 1) * self.batch, self.n))

    def covering(self, places: slice) -> range:
        """The shards that hold these positions of the test order."""
        return range(places.start // self.batch, -(-min(places.stop, self.n) // self.batch))

    def affordable(self, cost: int) -> int:
        """Images that may be certified if one costs so many passes."""
        return self.n if self.passes is None else min(self.n, self.passes // cost)

    def __str__(self) -> str:
        return f"{self.model}: certificate ({self.norm} {', '.join(f'{eps:g}' for eps in self.grid)})"


@dataclass(frozen=True, kw_only=True)
class Planting:
    """A test whether a suite's attacks find on a model what is known to be there; see :mod:`harness.trust.planting`.

    Attributes:
        n: Images: the first n of the data set's fixed test order.
        attacks: Those of the suite in the threat's norm, as they are for the data set.
        version: Bumped by hand when other adversarials are planted.
    """

    name: ClassVar[str] = "Planting"

    model: ModelSpec
    threat: Threat
    n: int
    attacks: tuple[Attack, ...]
    version: int = 1

    @cached_property
    def key(self) -> str:
        """Identity of the facts."""
        return identity.key(self)

    @property
    def seed(self) -> int:
        """Seed of its random numbers: whatever attacks are asked, the same adversarials are planted."""
        return identity.derive_seed(dataclasses.replace(self, model=self.model.nameless, attacks=()).key)

    def __str__(self) -> str:
        return f"{self.model} ({self.threat}), planted"
