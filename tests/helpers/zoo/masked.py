"""Models that look more robust than they are, each with what a person who read its code would attack.

Beside the faults of :mod:`harness.selftest.masked_gradients`: those of published defenses, and hand-made ones that aim
at the checks themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.selftest.masked_gradients import BROKEN, Masked, RandomInput, RoundedInputs

from .honest import dense
from .training import digits, fitted

LEVELS = 255
NEAR = 0.12
"""Distance in L-infinity within which the forgetful models below take two images for the same."""


# -- the networks behind them ------------------------------------------------------------------------------------------


@lru_cache
def plain(seed: int = 0) -> nn.Module:
    """What an attack breaks easily."""
    return fitted(lambda: dense(100, 100), "plain", seed=seed)


@lru_cache
def robust() -> nn.Module:
    """What stands much longer: shown to whoever looks."""
    return fitted(lambda: dense(100, 100), "pgd")


class Denoiser(nn.Module):
    """Autoencoder of noisy digits, (N, 1, 8, 8) in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 64), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x).view_as(x)
        return out


@lru_cache
def denoiser() -> nn.Module:
    x, _ = digits().train
    torch.manual_seed(0)
    net = Denoiser()
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    with torch.enable_grad():
        for _ in range(300):
            rows = torch.randperm(len(x))[:256]
            optimizer.zero_grad()
            F.mse_loss(net((x[rows] + 0.15 * torch.randn_like(x[rows])).clamp(0, 1)), x[rows]).backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


# -- parts -------------------------------------------------------------------------------------------------------------


def borrow(value: Tensor, gradient: Tensor) -> Tensor:
    """One tensor's value with another's gradient."""
    return value.detach() + (gradient - gradient.detach())


class View(nn.Module):
    """A function of images as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class _Gradient(torch.autograd.Function):
    """The identity, whose gradient another function changes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.change(grads[0]), None


# -- gradients that lie ------------------------------------------------------------------------------------------------


class ChangedGradient(Masked):
    """Gradients of the images pass through a function. Decisions are identical."""

    def __init__(self, base: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(base)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.honest(_Gradient.apply(x, self.change))


def half_precision(grad: Tensor) -> Tensor:
    """Through half precision at a scale where nearly all of it underflows."""
    return (grad * 1e-8).half().float() * 1e8


def reversed_sign(grad: Tensor) -> Tensor:
    return -grad


def drowned(grad: Tensor) -> Tensor:
    """With noise ten times as long: fresh, from the global generator."""
    return grad + 10 * grad.abs().amax() * torch.randn_like(grad)


class TwoBranches(Masked):
    """One network answers, another one is differentiated. Decisions are those of the first."""

    def __init__(self, base: nn.Module, other: nn.Module) -> None:
        super().__init__(base)
        self.other = other

    def forward(self, x: Tensor) -> Tensor:
        return borrow(self.honest(x), self.other(x))


class DecoyHead(TwoBranches):
    """A second head that adds nothing, and whose gradient drowns the first's."""

    def forward(self, x: Tensor) -> Tensor:
        decoy = 1000 * self.other(x).roll(3, 1)
        return self.honest(x) + (decoy - decoy.detach())


class Cliff(Masked):
    """Cut out of the graph wherever the two largest logits are close: near the boundary nothing leads on."""

    def __init__(self, base: nn.Module, gap: float = 6.0) -> None:
        super().__init__(base)
        self.gap = gap

    def forward(self, x: Tensor) -> Tensor:
        logits = self.honest(x)
        first, second = logits.topk(2, 1).values.T
        return torch.where((first - second > self.gap).unsqueeze(1), logits, logits.detach())


class SineBumps(Masked):
    """Each logit with a sine of high frequency added: small bumps, steep slopes."""

    directions: Tensor

    def __init__(self, base: nn.Module, height: float = 0.5, frequency: float = 400.0) -> None:
        super().__init__(base)
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("directions", torch.randn(64, 10, generator=generator).sign())
        self.height, self.frequency = height, frequency

    def forward(self, x: Tensor) -> Tensor:
        return self.honest(x) + self.height * (self.frequency * x.flatten(1) @ self.directions).sin()


class OfLogits(Masked):
    """A step behind the classifier that has no gradient."""

    def __init__(self, base: nn.Module, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__(base)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self.honest(x))


def half_steps(logits: Tensor) -> Tensor:
    return (logits * 2).round() / 2


def one_hot(logits: Tensor) -> Tensor:
    return 10.0 * F.one_hot(logits.argmax(1), logits.shape[1])


class HardVotes(nn.Module):
    """Several networks, one vote each; a tie goes to the first label."""

    def __init__(self, *members: nn.Module) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([F.one_hot(member(x).argmax(1), 10).float() for member in self.members]).sum(0)

    def soft(self, x: Tensor) -> Tensor:
        """With the gradient of the mean log-probability."""
        return borrow(self(x), torch.stack([member(x).log_softmax(1) for member in self.members]).mean(0))


# -- another network for whoever looks ---------------------------------------------------------------------------------


class Routed(Masked):
    """One network for attackers and judges, a weaker one, ``base``, for images in use."""

    def __init__(self, base: nn.Module, shown: nn.Module, used: Callable[[Tensor], Tensor]) -> None:
        super().__init__(base)
        self.shown, self.used = shown, used

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.used(x).unsqueeze(1), self.honest(x), self.shown(x))


def every(x: Tensor, value: bool) -> Tensor:
    return torch.full((len(x),), value, device=x.device)


def on_grid(x: Tensor) -> Tensor:
    """Which images hold multiples of 1/255 only, bool (N,): those that come out of files."""
    levels = x * LEVELS
    return ((levels - levels.round()).abs() < 1e-3).flatten(1).all(1)


def off_grid(x: Tensor) -> Tensor:
    return ~on_grid(x)


def without_graph(x: Tensor) -> Tensor:
    return every(x, not torch.is_grad_enabled())


def without_gradient(x: Tensor) -> Tensor:
    return every(x, not x.requires_grad)


def single(x: Tensor) -> Tensor:
    return every(x, len(x) == 1)


def small_batch(x: Tensor) -> Tensor:
    return every(x, len(x) <= 70)


@lru_cache
def dark() -> Tensor:
    """Which pixels no training image lights, bool (1, 8, 8)."""
    return (digits().train.x == 0).all(0)


def in_the_dark(x: Tensor) -> Tensor:
    """Which images light none of these, bool (N,)."""
    return (x * dark() <= 1e-3).flatten(1).all(1)


# -- state and tables --------------------------------------------------------------------------------------------------


class Cache(Masked):
    """Remembers what it answered, and answers whatever comes near a remembered image the same."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.seen: Tensor | None = None
        self.said: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        logits = self.honest(x)
        if self.seen is not None and self.said is not None:
            distance, nearest = torch.cdist(x.flatten(1), self.seen, p=math.inf).min(1)
            logits = torch.where((distance <= NEAR).unsqueeze(1), self.said[nearest], logits)
        if self.seen is None or len(self.seen) < 1000:
            self.seen = torch.cat([x.detach().flatten(1), *([] if self.seen is None else [self.seen])])
            self.said = torch.cat([logits.detach(), *([] if self.said is None else [self.said])])
        return logits


class Table(Masked):
    """Knows the labels of the test images by heart, within a distance of each, and is flat there."""

    x: Tensor
    y: Tensor

    def __init__(self, base: nn.Module, within: float) -> None:
        super().__init__(base)
        x, y = digits().test
        self.register_buffer("x", x.flatten(1))
        self.register_buffer("y", y)
        self.within = within

    def forward(self, x: Tensor) -> Tensor:
        distance, nearest = torch.cdist(x.detach().flatten(1), self.x, p=math.inf).min(1)
        known = 20.0 * F.one_hot(self.y[nearest], 10)
        return torch.where((distance <= self.within).unsqueeze(1), known, self.honest(x))


# -- random numbers ----------------------------------------------------------------------------------------------------


class Noisy(Masked):
    """Gaussian noise on the images from a source of its own."""

    def __init__(self, base: nn.Module, draw: Callable[[Tensor], Tensor], sigma: float = 0.15) -> None:
        super().__init__(base)
        self.draw, self.sigma = draw, sigma

    def forward(self, x: Tensor) -> Tensor:
        return self.honest(x + self.sigma * self.draw(x))


def own_generator(x: Tensor) -> Tensor:
    generator = torch.Generator()
    generator.seed()
    return torch.randn(x.shape, generator=generator)


def own_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(np.random.default_rng().standard_normal(tuple(x.shape), np.float32))


def by_content(x: Tensor) -> Tensor:
    """The same for the same image, and unrelated for its nearest neighbour."""
    seeds = (x.detach().flatten(1).double() @ torch.arange(1, 65, dtype=torch.float64).sqrt()) * 1e9
    generators = (torch.Generator().manual_seed(int(seed) % 2**31) for seed in seeds)
    return torch.stack([torch.randn(x.shape[1:], generator=generator) for generator in generators])


class Shifted(Masked):
    """Every image moved by up to a pixel either way, drawn from the global generator."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = torch.randint(0, 3, (2,)).tolist()
        return self.honest(F.pad(x, (1, 1, 1, 1))[:, :, rows : rows + 8, columns : columns + 8])


class Dropping(nn.Module):
    """Dropout that nobody can switch off."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net.children():  # type: ignore[union-attr]
            x = F.dropout(x, 0.3, training=True) if isinstance(layer, nn.Dropout) else layer(x)
        return x


# -- defenses ----------------------------------------------------------------------------------------------------------


class KWinners(nn.Module):
    """Only the largest tenth of a layer's units stays (Xiao et al. 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        least = x.topk(x.shape[1] // 10, 1).values[:, -1:]
        return x * (x >= least)


class Smoothed(nn.Module):
    """A model's logits at an image, with the mean gradient around it (Tramer et al. 2020, section 5)."""

    def __init__(self, model: nn.Module, sigma: float = 0.05, around: int = 24) -> None:
        super().__init__()
        self.model, self.sigma, self.around = model, sigma, around

    def forward(self, x: Tensor) -> Tensor:
        many = x.unsqueeze(0) + self.sigma * torch.randn(self.around, *x.shape)
        logits: Tensor = self.model(many.flatten(0, 1)).unflatten(0, (self.around, -1)).mean(0)
        return borrow(self.model(x), logits)


class Purifying(Masked):
    """A denoiser before the classifier, out of the graph."""

    def __init__(self, base: nn.Module, purifier: nn.Module) -> None:
        super().__init__(base)
        self.purifier = purifier

    def forward(self, x: Tensor) -> Tensor:
        return self.honest(self.purified(x).detach())

    def purified(self, x: Tensor) -> Tensor:
        out: Tensor = self.purifier(x)
        return out


class IteratedPurifying(Purifying):
    """Moves the image until its autoencoder reproduces it: an adaptive defense at test time."""

    def purified(self, x: Tensor) -> Tensor:
        moved = x.detach()
        with torch.enable_grad():
            for _ in range(5):
                moved = moved.detach().requires_grad_()
                error = (self.purifier(moved) - moved).square().sum()
                (slope,) = torch.autograd.grad(error, moved)
                moved = (moved - 0.02 * slope.sign()).clamp(0, 1)
        return moved.detach()


class Thermometer(nn.Module):
    """Pixels as sixteen thresholds each (Buckman et al. 2018)."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1).unsqueeze(2) > torch.arange(16) / 16).float().flatten(1)

    def soft(self, x: Tensor) -> Tensor:
        return torch.sigmoid(20 * (x.flatten(1).unsqueeze(2) - torch.arange(16) / 16)).flatten(1)


class Snapped(Masked):
    """Every image replaced by its nearest training image."""

    x: Tensor

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.register_buffer("x", digits().train.x.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.detach().flatten(1), self.x).argmin(1)
        return self.honest(self.x[nearest].view_as(x))

    def soft(self, x: Tensor) -> Tensor:
        """With the gradient of a mean of training images, the nearer the more."""
        weights = (-10 * torch.cdist(x.flatten(1), self.x).square()).softmax(1)
        return borrow(self(x), self.honest((weights @ self.x).view_as(x)))


class Steep(Masked):
    """Pixels pushed to black or white by a steep sigmoid, which is flat nearly everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return self.honest(torch.sigmoid(150 * (x - 0.5)))

    def gentle(self, x: Tensor) -> Tensor:
        return borrow(self(x), self.honest(borrow(torch.sigmoid(150 * (x - 0.5)), torch.sigmoid(8 * (x - 0.5)))))


@lru_cache
def _k_winners() -> nn.Module:
    return fitted(
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(64, 256), KWinners(), nn.Linear(256, 256), KWinners(), nn.Linear(256, 10)
        )
    )


@lru_cache
def _thermometer() -> nn.Module:
    return fitted(lambda: nn.Sequential(Thermometer(), nn.Linear(1024, 100), nn.ReLU(), nn.Linear(100, 10)))


@lru_cache
def _distilled() -> nn.Module:
    """Trained at temperature 30, used at 1 (Papernot et al. 2016)."""
    net = fitted(lambda: nn.Sequential(dense(100, 100), View(lambda z: z / 30)))
    return next(net.children())


@lru_cache
def _binarised() -> nn.Module:
    return Steep(
        fitted(lambda: nn.Sequential(View(lambda x: torch.sigmoid(150 * (x - 0.5))), dense(100, 100))).get_submodule(
            "1"
        )
    )


# -- the table ---------------------------------------------------------------------------------------------------------

Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class Mechanism:
    """A way to look robust.

    Attributes:
        make: The model.
        views: What somebody who read its code differentiates in its place.
        draws: Draws that gradients are averaged over.
        votes: Whether the model draws, and is judged by the label it gives most often.
        snap: Whether candidates are judged on the 8-bit grid too.
        alone: Whether candidates are judged image by image.
    """

    name: str
    summary: str
    make: Make
    views: Callable[[Any], tuple[nn.Module, ...]]
    draws: int = 1
    votes: bool = False
    snap: bool = False
    alone: bool = False


def base(model: Any) -> tuple[nn.Module, ...]:
    return (model.base,)


def itself(model: Any) -> tuple[nn.Module, ...]:
    return (model,)


def rounding(levels: int) -> Callable[[Any], tuple[nn.Module, ...]]:
    """Straight through the rounding to so many levels."""
    return lambda model: (View(lambda x: model.base(borrow((x * (levels - 1)).round() / (levels - 1), x))),)


_NOISY: Final = {"draws": 16, "votes": True}

_PUBLISHED: Final[dict[str, dict[str, Any]]] = {
    "rounded-inputs": {"views": rounding(8)},
    "random-input": {"views": itself, **_NOISY},
    "optimising-forward": {"views": lambda model: (model, model.base)},
}

MECHANISMS: Final[dict[str, Mechanism]] = {
    mechanism.name: mechanism
    for mechanism in (
        *(
            Mechanism(
                name,
                broken.summary,
                partial(lambda wrap: wrap(plain()), broken.wrap),
                **_PUBLISHED.get(name, {"views": base}),
            )
            for name, broken in BROKEN.items()
        ),
        Mechanism(
            "grid-routing",
            "files go to a weak network, floats to a robust one",
            lambda: Routed(plain(), robust(), on_grid),
            base,
            snap=True,
        ),
        Mechanism(
            "grid-routing-reversed",
            "files go to a robust network, floats to a weak one",
            lambda: Routed(plain(), robust(), off_grid),
            base,
        ),
        Mechanism(
            "gradient-mode",
            "a robust network while gradients are recorded",
            lambda: Routed(plain(), robust(), without_graph),
            base,
        ),
        Mechanism(
            "requires-grad",
            "a robust network for images that ask for a gradient",
            lambda: Routed(plain(), robust(), without_gradient),
            base,
        ),
        Mechanism(
            "batch-of-one",
            "a weak network for single images, a robust one for batches",
            lambda: Routed(plain(), robust(), single),
            base,
            alone=True,
        ),
        Mechanism(
            "batch-above-70",
            "a robust network for batches of more than 70",
            lambda: Routed(plain(), robust(), small_batch),
            base,
            alone=True,
        ),
        Mechanism(
            "dark-pixels",
            "a robust network once a pixel is lit that no image lights",
            lambda: Routed(plain(), robust(), in_the_dark),
            lambda model: (View(lambda x: model.base(x * ~dark())),),
        ),
        Mechanism(
            "two-branches",
            "one network answers, another has the gradient",
            lambda: TwoBranches(plain(), robust()),
            base,
        ),
        Mechanism(
            "decoy-head",
            "a head that adds nothing but its gradient",
            lambda: DecoyHead(plain(), plain(1)),
            base,
        ),
        Mechanism("cliff", "no gradient where the decision is close", lambda: Cliff(plain()), base),
        Mechanism(
            "half-precision-gradients",
            "gradients underflow in half precision",
            lambda: ChangedGradient(plain(), half_precision),
            base,
        ),
        Mechanism(
            "reversed-gradient", "gradients with the other sign", lambda: ChangedGradient(plain(), reversed_sign), base
        ),
        Mechanism("noisy-gradient", "gradients drowned in noise", lambda: ChangedGradient(plain(), drowned), base),
        Mechanism("sine-bumps", "a sine of high frequency on every logit", lambda: SineBumps(plain()), base),
        Mechanism("rounded-logits", "logits in steps of a half", lambda: OfLogits(plain(), half_steps), base),
        Mechanism("hard-label", "nothing but the label", lambda: OfLogits(plain(), one_hot), base),
        Mechanism(
            "hard-votes",
            "five networks with a vote each",
            lambda: HardVotes(*map(plain, range(5))),
            lambda model: (View(model.soft, model),),
        ),
        Mechanism("cache", "answers neighbours of what it was asked before alike", lambda: Cache(plain()), base),
        Mechanism("lookup", "a table of the test images", lambda: Table(plain(), 1e-6), base),
        Mechanism("lookup-near", "a table of the test images, flat around each", lambda: Table(plain(), 0.05), base),
        Mechanism(
            "private-generator",
            "noise from a generator of its own",
            lambda: Noisy(plain(), own_generator),
            itself,
            **_NOISY,
        ),
        Mechanism("private-numpy", "noise from NumPy", lambda: Noisy(plain(), own_numpy), itself, **_NOISY),
        Mechanism(
            "noise-by-content",
            "noise that is a function of the image",
            lambda: Noisy(plain(), by_content, 0.08),
            lambda model: (RandomInput(model.base, 0.08), model.base),
            draws=16,
        ),
        Mechanism("shifted", "images moved at random", lambda: Shifted(plain()), itself, **_NOISY),
        Mechanism(
            "dropping",
            "dropout left on",
            lambda: Dropping(fitted(lambda: dense(128, 128, drop=0.3))),
            itself,
            **_NOISY,
        ),
        Mechanism(
            "k-winners", "k winners take all", _k_winners, lambda model: (Smoothed(model), Smoothed(model, 0.02), model)
        ),
        Mechanism(
            "purifier",
            "a denoiser out of the graph",
            lambda: Purifying(plain(), denoiser()),
            lambda model: (
                View(lambda x: model.base(model.purifier(x)), model),
                View(lambda x: model.base(borrow(model.purifier(x), x)), model),
            ),
        ),
        Mechanism(
            "iterated-purifier",
            "a purifier that optimises in the forward pass",
            lambda: IteratedPurifying(plain(), denoiser()),
            lambda model: (
                View(lambda x: model.base(borrow(model.purified(x), x)), model),
                View(lambda x: borrow(model(x), model.base(model.purifier(x))), model),
            ),
        ),
        Mechanism(
            "thermometer",
            "pixels as thresholds",
            _thermometer,
            lambda model: (View(lambda x: model[1:](borrow(model[0](x), model[0].soft(x))), model),),
        ),
        Mechanism(
            "distilled",
            "logits thirty times too large",
            _distilled,
            lambda model: (View(lambda x: model(x) / 30, model),),
        ),
        Mechanism(
            "nearest-image",
            "the nearest training image in place of each",
            lambda: Snapped(plain()),
            lambda model: (View(model.soft, model), View(lambda x: borrow(model(x), model.base(x)), model)),
        ),
        Mechanism("steep-pixels", "pixels black or white", _binarised, lambda model: (View(model.gentle, model),)),
        Mechanism(
            "eight-bit",
            "images rounded as files are",
            lambda: RoundedInputs(plain(), LEVELS + 1),
            rounding(LEVELS + 1),
            snap=True,
        ),
    )
}
"""Every mechanism by name."""


def masked(name: str) -> nn.Module:
    """A model that hides something, and that nobody has asked anything."""
    return MECHANISMS[name].make().eval()
