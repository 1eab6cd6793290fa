"""Planted adversarials: whether a battery finds, on a model, adversarial images that are known to be there.

The last layer is replaced so that every image of a small sample keeps its label and has an adversarial within eps that
was constructed without gradients, checked by the referee, and lies where noise does not come. The suite's own attacks,
with their settings and the model's remedy, then have to find one. All but the last layer is the model's own: if its
gradients vanish, lie or are cut, the attacks fail here as they fail on the model itself, and here it is known.

Source: Zimmermann, Brendel, Tramer & Carlini 2022, "Increasing confidence in adversarial robustness evaluations"
(section 4). There the head of one image has two outputs and takes a random corner as the planted point. Here one head
serves all images, so that attacks are called as they always are and may drop rows; it has all classes, for losses of
three logits see nothing on two; the planted point is climbed to, for a random one is met by noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from .. import determinism, identity
from ..attacks.base import Attack
from ..errors import UserError, describe
from ..judging.proposal import Proposal
from ..judging.referee import judge
from ..judging.shard import craft, prepare
from ..schema.eps import limit
from ..schema.probes import PlantedAttack, PlantedFacts, PlantedPart, Side
from ..threat import EXPONENT, Threat, magnitude, per_sample
from ..victims.adaptation import VOTES, Remedy
from ..victims.victim import PassCount, Victim, VictimError, rounded
from .measurements import are_probabilities
from .probe import FEW, stochastic, wavers
from .probe_checks import NOISY

IMAGES: Final = 48
"""Images that are planted, half of them on floats, half on the grid of 8-bit files: missing an eighth of them is told
from 95 %. In a model that draws all that are given, for few of them can be planted."""

INNER: Final = 128
"""Points of the ball that show how its features spread."""

ROUNDS: Final = 48
"""Rounds of the climb to the planted point ..."""

TRIES: Final = 12
"""... each of so many candidates an image."""

NOISE: Final = 500
"""Random points of the ball that the threshold lies above."""

FRESH: Final = 125
"""Other random points: images that noise finds are left out, then noise is tried once more."""

HEIGHT: Final = 0.9
"""Where the threshold lies on the way from the highest random point to the planted one."""

RIDGE: Final = 0.1
"""Share of the mean variance that is added to every direction's in Fisher's discriminant."""

DRAWN_HEIGHT: Final = 0.97
DRAWN_RIDGE: Final = 0.03
"""The same of a model that draws. At 0.9 and 0.1 attacks that see one draw of a network behind noise miss too few for
it to be told from a sound one."""

DRAWN_ROUNDS: Final = 64

ENOUGH: Final = 8
"""Images planted on floats, and as many on the grid, below which the attacks are not asked."""

FEW_PIXELS: Final = 32
"""Pixels that are looked at first to tell planted images apart."""

CALLS: Final = 8
"""Calls that the features of a model that draws at random are averaged over."""

ROOM: Final = 1 << 24
"""Pixels in one batch of points."""

LEVELS: Final = 255
"""Steps of the grid of 8-bit files, that of the referee."""


def plant(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    attacks: Sequence[Attack],
    *,
    classes: int,
    device: torch.device | str = "cpu",
    remedy: Remedy | None = None,
    seed: int = 0,
) -> PlantedFacts:
    """Plant adversarials in a model and see which attacks find them.

    It is copied and never altered; the caller's random generators stay where they are. Same arguments, same facts, but
    for ``"seconds"``. The features that the new head reads are the input of the last linear layer; where these do not
    serve (there is none, few images can be planted, noise finds them), the logits.

    Args:
        model: The model.
        x: Images, float32 (N, C, H, W) in [0, 1]; the first of them that the model gets right are planted in.
        y: Their labels, int64 (N,).
        threat: Norm and eps within which an adversarial is planted.
        attacks: Those of the suite in that norm. Gradient attacks see the images in their order, each those that the
            ones before it did not find; so do attacks on scores and decisions. Others are left out.
        classes: Number of logits.
        device: Where to run.
        remedy: How attacks see the model.
        seed: Of all random numbers.

    Raises:
        UserError: No eps, the norm is ``"l0"``, or the remedy names what the model does not have.
        VictimError: A plain forward pass gives no finite (N, K) logits. Whatever else it raises comes through.
    """
    if threat.norm == "l0" or not threat.eps:
        raise UserError(f"planting needs an eps above 0 in linf, l2 or l1, got {threat}")
    remedy = remedy or Remedy()
    start = time.perf_counter()
    with determinism.isolated(seed, device):
        sole = Victim(model, classes=classes, device=device)
        x, y = x.to(sole.device), y.to(sole.device)
        sole.votes = remedy.calls or (VOTES if wavers(stochastic(sole, x[:FEW], seed)) else None)
        right = (sole.predict(x) == y).nonzero().squeeze(1)[: IMAGES if sole.votes is None else None]
        garden = Garden(
            model, x[right], y[right], threat, classes=classes, device=sole.device, votes=sole.votes, seed=seed
        )
        plots: list[Plot] = []
        if len(garden.x):
            for place in dict.fromkeys((last_layer(sole, garden.x[:2], classes), "")):
                plots.append(garden.plot(place))
                if plots[-1].serves:
                    break
        best = max(plots, key=lambda plot: (plot.serves, len(plot.x)), default=None)
        passes = PassCount(forwards=garden.forwards)
        seen, found = _search(best, model, garden, attacks, remedy, seed, passes) if best else ([], {})
    return PlantedFacts(
        norm=threat.norm,
        eps=threat.eps,
        images=len(x) if sole.votes is not None else min(len(x), IMAGES),
        place=(best.place or "logits") if best else "",
        asked=bool(best and best.serves),
        remedy=str(replace(remedy, votes=None)),
        floats=_part(best, found, grid=False),
        grid=_part(best, found, grid=True),
        attacks=tuple(seen),
        seconds=time.perf_counter() - start,
        forwards=passes.forwards,
        backwards=passes.backwards,
    )


@dataclass(frozen=True)
class Heads:
    """What the new head knows of each planted image.

    Attributes:
        centers: Their pixels that tell them apart, (P, S).
        pixels: Which pixels these are, (S,).
        mean: Mean features in the ball, (P, d).
        slope: Weights of the features, (P, d); scaled so that the label's logit falls and the target's rises by half.
        offset: What is subtracted: the target wins where slope (features - mean) > offset; (P,).
        pair: The class that wins elsewhere, and that of the planted adversarial, (P, 2).
        below: How far below the second largest logit the others lie, (P, K).
    """

    centers: Tensor
    pixels: Tensor
    norm: str
    mean: Tensor
    slope: Tensor
    offset: Tensor
    pair: Tensor
    below: Tensor

    def of(self, rows: Tensor) -> Heads:
        """Those of some images; images of the others belong to the nearest of these."""
        each = {name: getattr(self, name)[rows] for name in ("centers", "mean", "slope", "offset", "pair", "below")}
        return replace(self, **each)

    def nearest(self, x: Tensor) -> Tensor:
        """Whose ball images (N, C, H, W) lie in, or nearest to; (N,)."""
        return torch.cdist(x.flatten(1)[:, self.pixels], self.centers, p=EXPONENT[self.norm]).argmin(1)

    def logits(self, features: Tensor, which: Tensor) -> Tensor:
        """Logits (N, K) of features (N, d): two classes decide, the others stay below both."""
        margin = ((features - self.mean[which]) * self.slope[which]).sum(1) - self.offset[which]
        half = margin / 2
        logits = -half.abs().unsqueeze(1) - self.below[which]
        return logits.scatter(1, self.pair[which], torch.stack([-half, half], 1))


@dataclass
class _Call:
    """A call that is under way: whose balls its images lie in, and what entered the layer that is answered for.

    No attributes of the module, which takes its time over setting one.
    """

    which: Tensor | None = None
    features: Tensor | None = None


class Planted(nn.Module):
    """A model with another last layer, images (N, C, H, W) in [0, 1] to outputs (N, K).

    The model is wrapped and its layer answered for by a hook, so that it keeps all its parts: remedies that name them
    stand, and what comes after the last layer still does what it did.

    Args:
        inner: The model as a victim holds it.
        place: Name of the linear layer that the head stands in for, ``""`` for a head upon the logits.
        heads: The head; without one the outputs are the features that it would read, (N, d).
    """

    def __init__(self, inner: nn.Module, place: str, heads: Heads | None, *, probabilities: bool) -> None:
        super().__init__()
        self.inner = inner
        self.heads = heads
        self.logarithm = probabilities and not place
        self.call = _Call()
        self.place = place
        if place:
            inner.get_submodule(place).register_forward_hook(self._answer)

    def _answer(self, module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        call = self.call
        call.features = given[0]
        if self.heads is None or call.which is None or len(given[0]) != len(call.which):
            return None
        return self.heads.logits(given[0], call.which).to(out.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs under the new head; without one the features."""
        which = None if self.heads is None else self.heads.nearest(x.detach())
        call = self.call
        call.which, call.features = which, None
        out: Tensor = self.inner(x)
        features, call.features = call.features, None
        if self.heads is None or which is None:
            return self._logits(out) if features is None else features
        if self.place:
            return out
        logits = self.heads.logits(self._logits(out), which)
        return logits.softmax(1) if self.logarithm else logits

    def _logits(self, out: Tensor) -> Tensor:
        return out.clamp_min(torch.finfo(out.dtype).tiny).log() if self.logarithm else out


def last_layer(victim: Victim, x: Tensor, classes: int) -> str:
    """Name of the linear layer with a logit for each class that is called last, "" if there is none."""
    called: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            if out.shape == (len(x), classes) and given and given[0].dim() == 2 and given[0].shape[1] > 1:
                called.append(name)

        return hook

    layers = [(name, part) for name, part in victim.model.named_modules() if isinstance(part, nn.Linear)]
    hooks = [layer.register_forward_hook(note(name)) for name, layer in layers]
    try:
        victim.logits(x)
    finally:
        for hook in hooks:
            hook.remove()
    return called[-1] if called else ""


@dataclass(frozen=True)
class Plot:
    """Images, adversarials that were planted for them, and the head that makes them so.

    Attributes:
        x: Images (P, C, H, W) that keep their labels y (P,).
        x_adv: Their adversarials.
        grid: Which of these lie on the grid of 8-bit files, (P,).
        noise: Which images noise finds an adversarial of, (P,).
    """

    heads: Heads
    x: Tensor
    y: Tensor
    x_adv: Tensor
    grid: Tensor
    noise: Tensor
    place: str
    threat: Threat
    probabilities: bool

    def sow(self, victim: Victim) -> Victim:
        """Give a victim the new head."""
        victim.model = Planted(victim.model, self.place, self.heads, probabilities=self.probabilities)
        victim.model.eval().requires_grad_(False)
        return victim

    @property
    def serves(self) -> bool:
        """Whether attacks can be judged by it: enough images of either sort, and noise does not find them."""
        enough = all(int(part.sum()) >= ENOUGH for part in (self.grid, ~self.grid))
        return enough and int(self.noise.sum()) <= NOISY * len(self.x)


class Garden:
    """Builds heads and planted points on a model, for all images at once.

    Args:
        model: The model.
        x: Images (N, C, H, W) that it gets right, with labels y (N,); every second is planted on the grid.
        votes: Calls behind a label of a model that draws at random.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        *,
        classes: int,
        device: torch.device,
        votes: int | None,
        seed: int,
    ) -> None:
        assert threat.eps is not None
        self.model, self.threat, self.classes, self.device = model, threat, classes, device
        self.votes, self.seed, self.eps, self.norm = votes, seed, threat.eps, threat.norm
        self.x, self.y, self.pixels = self._apart(x, y)
        self.grid = torch.arange(len(self.x), device=device) % 2 == 1
        self.forwards = 0

    def _apart(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images whose balls do not touch, and pixels that suffice to tell them apart, those that vary most first."""
        flat, p = x.flatten(1), EXPONENT[self.norm]
        wide = 2 * limit(self.eps) + 1e-6
        near = (torch.cdist(flat, flat, p=p) <= wide).cpu()
        kept: list[int] = []
        for i in range(len(x)):
            if not near[i, kept].any():
                kept.append(i)
        rows = torch.tensor(kept, dtype=torch.int64, device=x.device)
        flat = flat[rows]
        order = (flat - flat.mean(0)).square().sum(0).argsort(descending=True, stable=True)
        size = FEW_PIXELS
        while size < flat.shape[1]:
            part = flat[:, order[:size]]
            if int((torch.cdist(part, part, p=p) <= wide).sum()) == len(rows):  # each is near itself alone
                break
            size *= 2
        return x[rows], y[rows], order[:size]

    def plot(self, place: str) -> Plot:
        """What can be planted in a place: the name of a linear layer, or "" for the logits."""
        victim = Victim(self.model, device=self.device)
        outputs = victim.logits(self.x)
        probabilities = are_probabilities(outputs)
        self._seen = victim
        layer = dict(victim.model.named_modules())[place] if place else None
        victim.model = Planted(victim.model, place, None, probabilities=probabilities).eval()
        clean = self._features(self.x[None])[0]
        logits = clean if layer is None else layer(clean.to(next(layer.parameters()).dtype)).float()

        inner = torch.cat([self._features(points) for points in self._noise("inner", INNER, 0.95)]).transpose(0, 1)
        mean = inner.mean(1)
        x_adv = self._corner(self._draw(1, "start"))
        height_share, ridge = (HEIGHT, RIDGE) if self.votes is None else (DRAWN_HEIGHT, DRAWN_RIDGE)
        slope = fisher(inner, self._features(x_adv)[0], ridge)
        top = torch.maximum(_along(inner.transpose(0, 1), mean, slope).amax(0), _along(clean, mean, slope))
        del inner

        def score(points: Tensor, name: object = "") -> Tensor:
            """How far points (M, N, ...) are along the slope, (M, N)."""
            return _along(self._features(points, name), mean, slope)

        x_adv = self._climb(x_adv, score)
        height = score(x_adv, "height")[0]
        # the far points of an L1 ball are few, and noise comes near them; a model that draws costs many calls a point
        many = NOISE // 5 if self.votes is not None else 3 * NOISE if self.norm == "l1" else NOISE
        for points in self._noise("noise", many, 1.0):
            top = torch.maximum(top, score(points).amax(0))
        offset = top + height_share * (height - top)
        clear = offset - _along(clean, mean, slope)
        # the margin of the clean image is the model's median, the other classes lie as its own do
        profile = logits.sort(1, descending=True).values.median(0).values
        scale = (profile[0] - profile[1]).clamp_min(1e-3) / clear.clamp_min(1e-12)
        target = logits.scatter(1, self.y.unsqueeze(1), -torch.inf).argmax(1)
        pair = torch.stack([self.y, target], 1)
        others = torch.ones_like(logits, dtype=torch.bool).scatter(1, pair, value=False)
        heads = Heads(
            centers=self.x.flatten(1)[:, self.pixels],
            pixels=self.pixels,
            norm=self.norm,
            mean=mean,
            slope=slope * scale.unsqueeze(1),
            offset=offset * scale,
            pair=pair,
            below=torch.zeros_like(logits).masked_scatter(others, (profile[1] - profile[2:]).repeat(len(logits))),
        )
        rounding = 1e-5 * slope.norm(dim=1) * mean.norm(dim=1)
        good = (height - top > rounding) & (clear > 0)
        whole = Plot(
            heads, self.x, self.y, x_adv[0], self.grid, torch.zeros_like(good), place, self.threat, probabilities
        )
        return self._checked(whole, good)

    def _checked(self, plot: Plot, good: Tensor) -> Plot:
        """What the referee confirms, and what noise finds of it."""
        referee = plot.sow(self.referee())
        verdict = judge(referee, plot.x, plot.y, plot.x_adv, self.threat)
        good = good & verdict.adversarial & verdict.stands
        good &= ~plot.grid | (rounded(plot.x_adv, LEVELS) == plot.x_adv).flatten(1).all(1)
        good &= ~self._met(referee, "trial")
        met = self._met(referee, "fresh")
        return replace(
            plot,
            heads=plot.heads.of(good),
            x=plot.x[good],
            y=plot.y[good],
            x_adv=plot.x_adv[good],
            grid=plot.grid[good],
            noise=met[good],
        )

    def _met(self, referee: Victim, name: str) -> Tensor:
        """Which images noise finds an adversarial of, bool (N,)."""
        met = torch.zeros(len(self.x), dtype=torch.bool, device=self.device)
        for points in self._noise(name, FRESH if self.votes is None else FRESH // 5, 1.0):
            m = len(points)
            met |= (referee.predict(points.flatten(0, 1)) != self.y.repeat(m)).view(m, -1).any(0)
        return met

    def referee(self) -> Victim:
        """The model as the referee sees it."""
        return Victim(self.model, classes=self.classes, device=self.device, votes=self.votes)

    def _features(self, points: Tensor, name: object = "") -> Tensor:
        """Features (M, N, d) of points (M, N, C, H, W).

        Where the model draws they are means, of all M under the same random numbers: else the luckiest would win.
        """
        if self.votes is None:
            self.forwards += points[:, :, 0, 0, 0].numel()
            return self._seen.logits(points.flatten(0, 1)).float().view(len(points), len(self.x), -1)
        return torch.stack([self._mean_features(one, name) for one in points])

    def _mean_features(self, points: Tensor, name: object) -> Tensor:
        """Features (N, d) of points (N, C, H, W), averaged over draws."""
        total = torch.zeros((), device=self.device)
        self.forwards += CALLS * len(points)
        for call in range(CALLS):
            determinism.seed_everything(identity.derive_seed(self.seed, "call", name, call))
            total = total + self._seen.logits(points).float()
        return total / CALLS

    def _generator(self, *name: object) -> torch.Generator:
        return torch.Generator().manual_seed(identity.derive_seed(self.seed, "plant", *name))

    def _draw(self, count: int, *name: object) -> Tensor:
        """Directions (M, N, C, H, W), drawn on the CPU: the same on every device."""
        generator = self._generator(*name)
        draw = torch.randn((count, *self.x.shape), generator=generator)
        if self.norm == "l1":  # far points of that ball move few pixels
            share = torch.rand((count, len(self.x), 1, 1, 1), generator=generator) * 0.3 + 0.02
            draw *= torch.rand(draw.shape, generator=generator) < share
        return draw.to(self.x)

    def _corner(self, delta: Tensor, reach: float = 1.0) -> Tensor:
        """Far points of the balls in directions (M, N, ...), within the box; on the grid for every second image."""
        return self._seated(self._far(delta, reach), self.grid)

    def _far(self, delta: Tensor, reach: float) -> Tensor:
        eps = reach * self.eps
        if self.norm == "linf":
            return (self.x + eps * delta.sign()).clamp(0, 1)
        size = magnitude(delta.flatten(0, 1), self.norm).clamp_min(1e-12).view(len(delta), -1, 1, 1, 1)
        return (self.x + delta * (eps / size)).clamp(0, 1)

    def _seated(self, points: Tensor, where: Tensor) -> Tensor:
        """Points (M, N, ...) put on the grid where images say so."""
        rows = where.nonzero().squeeze(1)
        x, off = self.x[rows].expand(len(points), *[-1] * self.x.dim()), points[:, rows]
        on = on_grid(x.flatten(0, 1), off.flatten(0, 1), self.threat).view_as(off)
        return points.index_copy(1, rows, on)

    def _noise(self, name: str, count: int, reach: float) -> Iterator[Tensor]:
        """Random points of the balls, (M, N, ...) at a time: on the surface and within, every other on the grid."""
        group = max(1, min(16, ROOM // max(self.x.numel(), 1)))
        for start in range(0, count, group):
            m = min(group, count - start)
            delta = self._draw(m, name, start)
            points = self._far(delta, reach)
            if self.norm == "linf":
                flat = 2 * torch.rand(delta.shape, generator=self._generator(name, "flat", start)).to(delta) - 1
                within = (self.x + reach * self.eps * flat).clamp(0, 1)
                points[1::2] = within[1::2]
            points[: (m + 1) // 2] = self._seated(points[: (m + 1) // 2], torch.ones_like(self.grid))
            yield points

    def _climb(self, x_adv: Tensor, score: Callable[[Tensor, object], Tensor]) -> Tensor:
        """Up the score by random changes that shrink, from points (1, N, ...) and without gradients."""
        rounds = ROUNDS if self.votes is None else DRAWN_ROUNDS
        for turn in range(rounds):
            share = 0.5 * (1 - turn / rounds) ** 2 + 0.02
            base = x_adv - self.x
            fresh = self._draw(TRIES, "climb", turn)
            if self.norm == "linf":
                change = torch.rand(fresh.shape, generator=self._generator("change", turn)).to(fresh) < share
                delta = torch.where(change, fresh, base)
            else:
                length = magnitude(base[0], "l2") / magnitude(fresh.flatten(0, 1), "l2").clamp_min(1e-12).view(
                    TRIES, -1
                )
                delta = base + fresh * (2 * share * length)[..., None, None, None]
            tried = torch.cat([x_adv, self._corner(delta)])
            best = score(tried, turn).argmax(0)  # under the same random numbers: chance is not kept
            x_adv = tried[best, torch.arange(len(self.x), device=best.device)][None]
        return x_adv


def _along(features: Tensor, mean: Tensor, slope: Tensor) -> Tensor:
    return ((features - mean) * slope).sum(-1)


def on_grid(x: Tensor, points: Tensor, threat: Threat) -> Tensor:
    """Points of the 8-bit grid near points (N, ...) of the ball around images, within the ball where there are any."""
    assert threat.eps is not None
    lows, highs = (x - threat.eps) * LEVELS, (x + threat.eps) * LEVELS
    steps = points * LEVELS
    if threat.norm == "linf":
        near = torch.minimum(torch.maximum(steps.round(), (lows - 1e-3).ceil()), (highs + 1e-3).floor())
        return near.clamp(0, LEVELS).round() / LEVELS
    out = points.clone()
    done = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for factor in (1.0, 0.98, 0.95, 0.9, 0.8, 0.6):
        near = ((x + factor * (points - x)) * LEVELS).round().clamp(0, LEVELS) / LEVELS
        fits = threat.within(x, near) & ~done
        out = torch.where(per_sample(fits, out), near, out)
        done |= fits
        if done.all():
            break
    return out


def fisher(inner: Tensor, far: Tensor, share: float) -> Tensor:
    """Fisher's direction (N, d), of length 1, from features of balls (N, M, d) to those of a far point each (N, d).

    (S + r I)^-1 (far - mean), r a share of the mean variance, by Woodbury's identity: there may be more features than
    points.
    """
    mean = inner.double().mean(1)
    spread, aim = inner.double() - mean.unsqueeze(1), far.double() - mean
    m = spread.shape[1]
    ridge = (share * spread.square().mean((1, 2))).clamp_min(1e-20).unsqueeze(1)
    gram = spread @ spread.mT + (m * ridge).unsqueeze(2) * torch.eye(m, dtype=spread.dtype, device=spread.device)
    part = torch.linalg.solve(gram, spread @ aim.unsqueeze(2))
    slope: Tensor = (aim - (spread.mT @ part).squeeze(2)) / ridge
    return slope.div(slope.norm(dim=1, keepdim=True).clamp_min(1e-30)).float()


def _search(
    plot: Plot,
    model: nn.Module,
    garden: Garden,
    attacks: Sequence[Attack],
    remedy: Remedy,
    seed: int,
    passes: PassCount,
) -> tuple[list[PlantedAttack], dict[Side, Tensor]]:
    """Which images each side's attacks find together, bool (P,); passes are added."""
    sides: dict[str, Side] = {"gradients": "gradients", "scores": "black_box", "decisions": "black_box"}
    found = {side: torch.zeros(len(plot.x), dtype=torch.bool, device=garden.device) for side in sides.values()}
    seen: list[PlantedAttack] = []
    view = replace(remedy, votes=None)
    attacked = plot.sow(Victim(model, classes=garden.classes, device=garden.device, remedy=view))
    referee = plot.sow(garden.referee())
    for attack in attacks if plot.serves else ():
        side = sides.get(attack.access)
        if side is None or bool(found[side].all()):
            continue
        rows = (~found[side]).nonzero().squeeze(1)
        x, y = plot.x[rows], plot.y[rows]
        threat = plot.threat if attack.kind == "budget" else Threat(plot.threat.norm)
        proposal = _proposed(attacked, attack, threat, x, y, identity.derive_seed(seed, attack))
        hit = judge(referee, x, y, proposal.x_adv, plot.threat, y, boxed=attack.boxed).adversarial
        found[side][rows] = hit
        passes.forwards += proposal.forwards
        passes.backwards += proposal.backwards
        seen.append(
            PlantedAttack(attack=attack.label, side=side, shown=len(rows), found=int(hit.sum()), errors=proposal.errors)
        )
    return seen, found


def _proposed(victim: Victim, attack: Attack, threat: Threat, x: Tensor, y: Tensor, seed: int) -> Proposal:
    """What an attack proposes; one that looks at training images is shown those that it attacks."""
    if attack.prepares:
        try:
            attack, _ = prepare(victim, attack, x, y, seed)
        except (VictimError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            return Proposal(None, 0.0, 0, 0, (describe(error),))
    return craft(victim, attack, threat, x, y, seed)


def _part(plot: Plot | None, found: Mapping[Side, Tensor], *, grid: bool) -> PlantedPart:
    if plot is None:
        return PlantedPart(planted=0, noise=0, gradients=0, black_box=0)
    rows = plot.grid == grid
    return PlantedPart(
        planted=int(rows.sum()),
        noise=int(plot.noise[rows].sum()),
        gradients=int(found["gradients"][rows].sum()),
        black_box=int(found["black_box"][rows].sum()),
    )
