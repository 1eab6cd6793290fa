"""Estimate the cost of a plan: passes from declarations, hours from a short probe on random images.

An estimate, not a promise. Early stopping makes it less, and so do images that fall early; a busy machine makes it
more, and so do attacks whose declarations say less than what they do.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import determinism, identity
from ..attacks.base import Attack
from ..attacks.transfer import inner
from ..datasets.registry import Dataset, DatasetInfo
from ..external.external import External, restore
from ..judging.certificates import cost as certificate_cost
from ..models.ensemble import Ensemble
from ..models.purifier import Purified, purifier
from ..planning.cascade import SAMPLE
from ..planning.plan import Plan
from ..planning.specs import Cell, Certification, ModelSpec
from ..records.checkpoints import has_model
from ..records.home import Home
from ..records.results import is_finished
from ..schema.counts import plural
from ..training.gradient_descent import GradientDescent
from ..training.optim import keep_compiler_out
from ..training.trainer import Trainer

STEPS: Final = ("steps", "max_iter", "queries", "max_evaluations", "iterations")
"""How declarations call the number of passes that one run of an attack makes over an image ..."""
TIMES: Final = ("restarts", "targets", "nb_random_init", "binary_search_steps", "searches", "draws")
"""... and how often it runs."""

PROBED: Final = 32
"""Images a pass of the probe, on a CPU; a GPU is shown whole batches, for small ones cost it as much."""


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """What is left to do.

    Attributes:
        images: Images that training shows them, all epochs together.
        passes: Passes of an image through a model that attacks declare, preparation included.
        certificates: Models and norms in which something is to be proved.
        training_hours: Of one worker; None where nothing could be probed.
        attack_hours: Likewise.
        certificate_hours: Likewise, each at one eps: what is not proved there is asked no further.
        missed: Declarations that it did not come to, and that are taken for the mean of the others.
        training_of: Seconds that a model's training takes, by its key; those alone that were probed.
    """

    trainings: int
    images: float
    pairs: int
    passes: float
    training_hours: float | None
    attack_hours: float | None
    device: str
    seconds: float
    missed: int
    training_of: Mapping[str, float] = dataclasses.field(default_factory=dict)
    certificates: int = 0
    certificate_hours: float | None = 0.0

    def __str__(self) -> str:
        counted = (
            f"to do: {plural(self.trainings, 'training')} ({_short(self.images)} images, all epochs together), "
            f"{plural(self.pairs, 'pair')} ({_short(self.passes)} passes of an image, as far as attacks declare them)"
            + (f", {plural(self.certificates, 'certificate')}" if self.certificates else "")
        )
        if not self.trainings and not self.pairs and not self.certificates:
            return "nothing to do"
        if self.training_hours is None or self.attack_hours is None or self.certificate_hours is None:
            return f"{counted}; no estimate of hours: the probe on {self.device} came to nothing"
        missed = f"; {self.missed} of the declarations taken for the mean of the others" if self.missed else ""
        hours = {"training": self.training_hours, "attacks": self.attack_hours}
        if self.certificates:
            hours["certificates"] = self.certificate_hours
        each = ", ".join(f"{duration(value)} {what}" for what, value in hours.items())
        return (
            f"{counted}; rough estimate: {duration(sum(hours.values()))} of one worker on {self.device} ({each}), from "
            f"a probe of {duration(self.seconds / 3600)} on random images{missed}"
        )


def estimate(plans: Sequence[Plan], home: Home, device: str = "cpu", limit: float = 12.0) -> CostEstimate:
    """What is missing of some plans, each model and pair once, and how long it may take.

    Training is taken to last all its epochs; in a cascade every attack is taken to see every image, in a sampled one
    the rest as well. Random numbers are left as they are. After ``limit`` seconds no other probe is begun.
    """
    infos = {name: info for plan in plans for name, info in plan.infos.items()}
    specs = {s.key: s for plan in plans for s in plan.models if not has_model(home, s) and s.defense.trainable}
    cells = {c.key: c for plan in plans for c in plan.cells if not is_finished(home.cell(c.key))}
    proofs = {c.key: c for plan in plans for c in plan.certifications if not _proved(home, c)}
    crafting = {s.key for plan in plans for s in plan.crafters if s.defense.images_shown(infos[s.dataset])}
    start = time.perf_counter()
    keep_compiler_out()
    with determinism.as_a_worker(device):
        probe = _Probe(infos, device, start + limit)
        for spec in specs.values():
            if spec.key in crafting:
                probe.training(spec)  # a line of its own says what it costs
        for cell in cells.values():  # the cheaper ones first: the limit is to leave neither sort without any
            probe.passing(cell.crafter, cell.batch)
        for asked in proofs.values():
            probe.passing(asked.model, PROBED)
            probe.proving(asked.model)
        for spec in specs.values():
            if spec.defense.images_shown(infos[spec.dataset]):
                probe.training(spec)
    attacks = [(cell, passes(cell.attack) * _images(cell)) for cell in _crafted_once(cells.values())]
    learned = {cell.prepared_key: cell for cell in cells.values() if cell.prepared_key is not None}
    prepared = {key: cell for key, cell in learned.items() if not home.prepared(key).exists()}
    attacks += [(cell, preparation(cell.attack)) for cell in prepared.values()]
    images = {key: spec.defense.images_shown(infos[spec.dataset]) for key, spec in specs.items()}
    costs = {key: probe.trained.get(_kind(spec)) for key, spec in specs.items()}
    return CostEstimate(
        trainings=len(specs),
        images=sum(images.values()),
        pairs=len(cells),
        passes=sum(number for _, number in attacks),
        training_hours=_total([(costs[key], images[key]) for key in specs]),
        attack_hours=_total([(_cost(probe, cell), number) for cell, number in attacks]),
        device=device,
        seconds=time.perf_counter() - start,
        missed=sum(value is None for value in (*probe.trained.values(), *probe.passed.values())),
        certificates=len(proofs),
        certificate_hours=_total([probe.proof(asked) for asked in proofs.values()]),
        training_of={key: cost * images[key] for key, cost in costs.items() if cost is not None},
    )


def _images(cell: Cell) -> int:
    """Images that a pair may have to attack."""
    tenth = -(-cell.n // SAMPLE)
    return {"all": cell.n, "tenth": tenth, "rest": cell.n - tenth}[cell.share]


def _proved(home: Home, asked: Certification) -> bool:
    """Whether all of a certificate is there."""
    return all(home.certificate(asked.key, shard).exists() for shard in range(asked.shards))


def passes(attack: Attack) -> int:
    """Passes over an image that the attack's declaration speaks of; 1 where it speaks of none."""
    declared = _settings(attack)
    number = max((declared[name] for name in STEPS if _counts(declared.get(name))), default=1)
    for name in TIMES:
        if _counts(declared.get(name)):
            number *= declared[name]
    return int(number)


def preparation(attack: Attack) -> int:
    """Passes of training images that an attack learns from."""
    declared = _settings(attack)
    images = min(declared.get("images", attack.preparation_samples), attack.preparation_samples)
    return int(images * declared.get("epochs", 1))


def _settings(attack: Attack) -> Mapping[str, Any]:
    declared = {field.name: getattr(inner(attack), field.name) for field in dataclasses.fields(inner(attack))}
    return declared | dict(declared.get("options", ()))  # a toolkit's


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


class _Probe:
    """Seconds an image: of one epoch of training, and of a forward pass without and with its backward pass."""

    def __init__(self, infos: Mapping[str, DatasetInfo], device: str, until: float) -> None:
        self._infos, self._device, self._until = infos, device, until
        self.trained: dict[str, float | None] = {}
        self.passed: dict[str, tuple[float, float] | None] = {}
        self.priced: dict[str, int | None] = {}

    def training(self, spec: ModelSpec) -> None:
        """Two epochs of one batch, of which the second counts."""
        if (kind := _kind(spec)) not in self.trained:
            self.trained[kind] = self._try(lambda: self._train(spec))

    def passing(self, spec: ModelSpec, batch: int) -> None:
        """Two passes, of which the second counts."""
        if (kind := _kind(spec)) not in self.passed:
            self.passed[kind] = self._try(lambda: self._pass(spec, batch))

    def proving(self, spec: ModelSpec) -> None:
        """How many passes the certificate of an image costs."""
        if (kind := _kind(spec)) not in self.priced:
            x = torch.rand(1, *self._infos[spec.dataset].shape)
            self.priced[kind] = self._try(lambda: certificate_cost(judged(spec, self._infos).eval(), x))

    def proof(self, asked: Certification) -> tuple[float | None, int]:
        """Seconds of a pass, and the passes that a certificate takes at its smallest eps."""
        kind = _kind(asked.model)
        found, price = self.passed.get(kind), self.priced.get(kind)
        return None if found is None else found[0], asked.affordable(price) * price if price else 0

    def _try(self, work: Callable[[], Any]) -> Any:
        try:
            return work() if time.perf_counter() < self._until else None
        except Exception:  # an estimate may lack a part, a look at a plan must not fail for it
            return None

    def _batch(self, wanted: int) -> int:
        return min(wanted, PROBED) if self._device == "cpu" else wanted

    def _train(self, spec: ModelSpec) -> float:
        info, trainer = self._infos[spec.dataset], spec.defense
        if not isinstance(trainer, GradientDescent):
            return 0.0
        size = self._batch(trainer.batch_size)
        alone: dict[str, Any] = {"subset": None}
        trainer = replace(trainer, epochs=2, batch_size=size, **alone)
        if isinstance(trainer, Trainer):
            trainer = replace(trainer, validation=0.0, patience=None, refit=None)
        base = judged(spec.base, self._infos, spec.front) if spec.base is not None else None
        history = trainer.fit(spec.architecture, noise(info, size), device=self._device, base=base).history
        return history[-1].seconds / size

    def _pass(self, spec: ModelSpec, batch: int) -> tuple[float, float]:
        model = judged(spec, self._infos).to(self._device).eval()
        size = self._batch(batch)
        x = torch.rand(size, *self._infos[spec.dataset].shape, device=self._device, requires_grad=True)
        for _ in range(2):
            start = time.perf_counter()
            out: Tensor = model(x.clone())  # it may work in place
            float(out.detach().sum())  # a GPU's work is done when its result is read
            forward = time.perf_counter() - start
            loss = F.cross_entropy(out, out.detach().argmax(1))
            if loss.requires_grad:
                float(torch.autograd.grad(loss, x, allow_unused=True)[0] is None)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            both = time.perf_counter() - start
        return forward / size, both / size


def judged(spec: ModelSpec, infos: Mapping[str, DatasetInfo], front: ModelSpec | None = None) -> nn.Module:
    """A model as it is judged, untrained: its parts with it; a user's own as it is."""
    if isinstance(spec.defense, External):
        assert spec.defense.reference is not None
        return restore(spec.defense.reference, spec.defense).eval()
    base = judged(spec.base, infos, spec.front) if spec.base is not None else None
    if spec.members:
        base = Ensemble(judged(part, infos) for part in spec.members)
    model = spec.defense.build(spec.architecture, infos[spec.dataset], base)
    return model if front is None else Purified(purifier(judged(front, infos), str(front)), model)


def noise(info: DatasetInfo, size: int) -> Dataset:
    """A data set of random images, for what does not depend on what they show."""
    x = torch.randint(info.levels + 1, (size, *info.shape), dtype=torch.uint8)
    y = torch.randint(len(info.classes), (size,))
    return Dataset(info, x, y, x, y)


def _kind(spec: ModelSpec) -> str:
    """What models have in common that cost the same."""
    defense = spec.defense
    if isinstance(defense, GradientDescent):
        defense = replace(defense, epochs=defense.epochs and 1)
    return identity.key(spec.dataset, spec.architecture, defense, [_kind(part) for part in spec.parents])


def _crafted_once(cells: Any) -> list[Cell]:
    """Cells without those whose images another of them makes."""
    found: dict[str, Cell] = {}
    for cell in cells:
        found.setdefault(cell.crafted_key or cell.key, cell)
    return list(found.values())


def _cost(probe: _Probe, cell: Cell) -> float | None:
    found = probe.passed.get(_kind(cell.crafter))
    return None if found is None else found[inner(cell.attack).access == "gradients"]


def _total(parts: Sequence[tuple[float | None, float]]) -> float | None:
    """Hours: what was not probed costs the mean of the others; None where nothing was."""
    known = [cost for cost, number in parts if cost is not None and number]
    if not any(number for _, number in parts):
        return 0.0
    if not known:
        return None
    mean = sum(known) / len(known)
    return sum((mean if cost is None else cost) * number for cost, number in parts) / 3600


def _short(number: float) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def duration(hours: float) -> str:
    """Hours as people say them, with a unit that fits."""
    if 0 < hours < 1 / 3600:
        return "less than 1 s"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"
