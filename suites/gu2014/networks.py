"""The networks of Gu & Rigazio 2014, plain and defended: constants, names and declarations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from defenses.adversarial_autoencoder import AdversarialAutoencoder
from defenses.contractive import Contractive
from defenses.denoising_autoencoder import DenoisingAutoencoder
from defenses.gaussian_blur import GaussianBlur
from defenses.gaussian_noise import GaussianNoise
from defenses.noise_injection import NoiseInjection
from defenses.stacked import Stacked
from defenses.standard import Standard
from harness.planning.specs import ModelSpec

from .attacks import LBFGS_GU

if TYPE_CHECKING:
    from harness.datasets.registry import DatasetInfo
    from harness.studies.study import Profile
    from harness.training.defense import Defense
    from harness.training.noise import Where

NETS: Final = {
    "N100-100-10": "mlp-100-100",
    "N200-200-10": "mlp-200-200",
    "AE400-10": "ae-400",
    "ConvNet": "convnet-gu",
}
"""The paper's networks, and their architectures here."""

LAMBDA: Final[Mapping[str, float | tuple[float, ...]]] = {
    "N100-100-10": 3e-3,
    "N200-200-10": 3e-3,
    "AE400-10": 1e-3,
    "ConvNet": (5e-5, 5e-5, 2e-3, 2e-3),
}
"""Weights of the contractive penalty: the paper's are not printed."""

KERNELS: Final = (5, 11)
SIGMAS: Final = (0.05, 0.1, 0.2, 0.3, 0.4)
PLACES: Final[Mapping[str, Where]] = {"L1": "input", "L*": "all"}
DAE_SIGMAS: Final = (0.1, 0.5)
DOUBLED: Final = tuple(2 * sigma for sigma in DAE_SIGMAS)
"""What they would be if the paper's noise were twice as strong as it says."""


def dcn(net: str) -> str:
    """The study's name of a contractive network."""
    return f"DCN {net}"


def stack(trained_on: str, net: str) -> str:
    """The study's name of the autoencoder trained on one network's adversarials, in front of another."""
    return f"AE({trained_on}) + {net}"


def dae(sigma: float, net: str) -> str:
    """The study's name of a denoising autoencoder in front of a network."""
    return f"DAE({sigma}) + {net}"


def blur(kernel: int, net: str) -> str:
    """The study's name of a network behind a blur."""
    return f"blur {kernel} + {net}"


SIGMA_FITTED: Final[Mapping[int, float]] = {5: 1.05, 11: 1.72}
"""Standard deviations of the blur, in pixels, that meet the printed errors of N100-100-10 and ConvNet."""


def fitted_blur(kernel: int, net: str) -> str:
    """The study's name of a network behind a blur whose sigma was fitted to print."""
    return f"blur {kernel}, sigma {SIGMA_FITTED[kernel]} + {net}"


FROZEN: Final = "AE400-10 frozen"
DCN_EXACT: Final = "DCN, eq. 5, N100-100-10"


def noise(place: str, sigma: float, net: str) -> str:
    """The study's name of a network with noise at inference."""
    return f"noise {place} {sigma} + {net}"


GN: Final[Mapping[str, Where]] = {"GN,L1": "input", "GN,L*": "all"}
DCN_GN: Final = "DCN+GN,L1"
NET_6: Final = "N200-200-10"
"""The network of table 6."""

STRONGER: Final = (0.2, 0.3)
"""Standard deviations of training noise, beside the printed 0.1."""


def noisy(name: str, sigma: float) -> str:
    """The study's name of a network trained with noise, the paper's or more."""
    return f"{name}, sigma {sigma}" if sigma in STRONGER else name


TWICE: Final = "DCN ConvNet, twice lambda"
CLEANER_ALL: Final = "AE(N100-100-10, of all training images)"


def cleaned_by_all(net: str) -> str:
    """The study's name of a network behind the autoencoder trained on adversarials of every training image."""
    return f"{CLEANER_ALL} + {net}"


DEFENDED: Final = (
    *((net, f"{net} (plain)") for net in NETS),
    *((dcn(net), dcn(net)) for net in NETS),
    *((name, f"{name}, {NET_6}") for name in (*GN, DCN_GN)),
    *((stack(net, net), stack(net, net)) for net in NETS),
    *((dae(sigma, net), dae(sigma, net)) for sigma in DAE_SIGMAS for net in NETS),
    *((blur(kernel, net), blur(kernel, net)) for kernel in KERNELS for net in NETS),
    *((noise(place, 0.1, net), noise(place, 0.1, net)) for place in PLACES for net in NETS),
)
"""Models that today's batteries judge, and what they are called."""


def models(profile: Profile, info: DatasetInfo, seed: int) -> Mapping[str, ModelSpec]:
    """Every network of the paper, plain and defended."""
    settings = profile.settings

    def spec(net: str, defense: Defense, **parents: Any) -> ModelSpec:
        return ModelSpec(dataset=info.name, architecture=NETS[net], defense=defense.resolve(info), seed=seed, **parents)

    def common(net: str) -> dict[str, Any]:
        """Section 2.2: weight decay of 1e-3, none on convolutions. The autoencoder is pre-trained, then fine-tuned."""
        epochs, lr = (settings["conv_epochs"], 0.02) if net == "ConvNet" else (settings["epochs"], 0.1)
        sgd = {"optimizer": "sgd", "lr": lr, "schedule": "cosine", "weight_decay": 1e-3, "decayed": "dense"}
        before = {"pretraining": settings["unsupervised_epochs"], "pretraining_lr": 1e-2, "fine_tuned": True}
        return {"epochs": epochs, **sgd, **(before if net == "AE400-10" else {})}

    found = {net: spec(net, Standard(**common(net))) for net in NETS}
    found |= {dcn(net): spec(net, Contractive(weight=LAMBDA[net], **common(net))) for net in NETS}
    frozen = {"epochs": settings["unsupervised_epochs"], "lr": 1e-2, "schedule": "cosine", "weight_decay": 1e-6}
    found[FROZEN] = spec("AE400-10", Standard(**frozen))
    first = next(iter(NETS))
    found[DCN_EXACT] = spec(first, Contractive(weight=LAMBDA[first], penalty="exact", **common(first)))
    twice = tuple(2 * weight for weight in LAMBDA["ConvNet"])  # type: ignore[union-attr]
    found[TWICE] = spec("ConvNet", Contractive(weight=twice, **common("ConvNet")))
    for sigma in (0.1, *STRONGER):
        for name, where in GN.items():
            found[noisy(name, sigma)] = spec(NET_6, GaussianNoise(sigma=sigma, where=where, **common(NET_6)))
        found[noisy(DCN_GN, sigma)] = spec(NET_6, Contractive(weight=LAMBDA[NET_6], sigma=sigma, **common(NET_6)))
    cleaner = AdversarialAutoencoder(
        images=settings["attacked"], target="random", error_rate=LBFGS_GU.error_rate, epochs=settings["ae_epochs"]
    )
    for net in NETS:
        found[stack(net, net)] = spec(net, cleaner, base=found[net])
    of_all = found[cleaned_by_all(first)] = spec(first, replace(cleaner, images=60_000), base=found[first])
    found[cleaned_by_all("ConvNet")] = spec("ConvNet", Stacked(), base=found["ConvNet"], front=of_all)
    for trained_on in NETS:
        for net in NETS:
            if net != trained_on:
                front = found[stack(trained_on, trained_on)]
                found[stack(trained_on, net)] = spec(net, Stacked(), base=found[net], front=front)
    for sigma in (*DAE_SIGMAS, *DOUBLED):
        denoiser = DenoisingAutoencoder(sigma=sigma, epochs=settings["ae_epochs"])
        found[dae(sigma, first)] = spec(first, denoiser, base=found[first])
        for net in list(NETS)[1:]:
            found[dae(sigma, net)] = spec(net, Stacked(), base=found[net], front=found[dae(sigma, first)])
    for net in NETS:
        for kernel in KERNELS:
            found[blur(kernel, net)] = spec(net, GaussianBlur(kernel=kernel), base=found[net])
            fitted = GaussianBlur(kernel=kernel, sigma=SIGMA_FITTED[kernel])
            found[fitted_blur(kernel, net)] = spec(net, fitted, base=found[net])
        for place, where in PLACES.items():
            for sigma in SIGMAS:
                injected = NoiseInjection(sigma=sigma, where=where)
                found[noise(place, sigma, net)] = spec(net, injected, base=found[net])
    return found
