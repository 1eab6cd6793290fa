"""Gu & Rigazio 2014, every table and figure: Deep Contractive Networks, and all that they tried before.

The adversarial examples of the paper are those of Szegedy et al. (2014) with one constant c for a model (section 2.1):
:data:`LBFGS_GU`. Rows are named as the paper names its networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from defenses.adversarial_autoencoder import AdversarialAutoencoder
from defenses.contractive import Contractive
from defenses.denoising_autoencoder import DenoisingAutoencoder
from defenses.gaussian_blur import GaussianBlur
from defenses.gaussian_noise import GaussianNoise
from defenses.noise_injection import NoiseInjection
from defenses.stacked import Stacked
from defenses.standard import Standard
from harness.attacks.lbfgs import LBFGS
from harness.planning.specs import ModelSpec
from harness.studies.study import (
    Basis,
    Choice,
    Claim,
    Clause,
    Derived,
    Item,
    Measure,
    Picture,
    Profile,
    Study,
    Unit,
    Value,
)
from harness.threat import Threat

if TYPE_CHECKING:
    from harness.datasets.registry import DatasetInfo
    from harness.training.defense import Defense
    from harness.training.noise import Where

NETS: Final = {
    "N100-100-10": "mlp-100-100",
    "N200-200-10": "mlp-200-200",
    "AE400-10": "ae-400",
    "ConvNet": "convnet-gu",
}
"""The paper's networks, and their architectures here."""

LBFGS_GU: Final = LBFGS(c="dataset", target="random", error_rate=0.995, search_images=1000)
"""Section 2.1, with one c for a model."""

LBFGS_STACK: Final = replace(LBFGS_GU, error_rate=0.95)
"""The same for an autoencoder and a network: no c fools more than 97 to 99 % of the images there."""

MINIMAL: Final = Threat("l2", None)

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
TABLE_6: Final = "N200-200-10"
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
    *((name, f"{name}, {TABLE_6}") for name in (*GN, DCN_GN)),
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
            found[noisy(name, sigma)] = spec(TABLE_6, GaussianNoise(sigma=sigma, where=where, **common(TABLE_6)))
        found[noisy(DCN_GN, sigma)] = spec(TABLE_6, Contractive(weight=LAMBDA[TABLE_6], sigma=sigma, **common(TABLE_6)))
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


def _others(judged: tuple[str, ...]) -> tuple[str, ...]:
    """Defended models but these."""
    return tuple(name for name, _ in DEFENDED if name not in judged)


def _adv(quantity: str, model: str, source: str = "") -> Measure:
    attack = LBFGS_STACK if model.startswith(("AE(", "DAE(")) and not source else LBFGS_GU
    return Measure(quantity=quantity, model=model, attack=attack, threat=MINIMAL, source=source)


def _test(model: str) -> Measure:
    return Measure(quantity="test_error", model=model)


def _within(widest: float, printed: float | None, rival: float | None) -> dict[str, Any]:
    """Tolerance and rival of a value: at most two fifths of the effect; none where print shows no effect."""
    if printed is None or rival is None or printed == rival:
        return {"tolerance": widest}
    return {"tolerance": min(widest, 0.4 * abs(printed - rival)), "rival": rival}


def _column(
    column: str,
    metric: str,
    printed: Mapping[str, float | None],
    quantity: Mapping[str, Measure],
    *,
    unit: Unit = "",
    tolerance: float = 0.0,
    rival: Mapping[str, float | None] | None = None,
    basis: Basis = "measured",
) -> tuple[Value, ...]:
    return tuple(
        Value(
            row=row,
            column=column,
            metric=metric,
            quantity=quantity[row],
            printed=number,
            unit=unit,
            basis=basis,
            **_within(tolerance, number, rival[row] if rival else None),
        )
        for row, number in printed.items()
    )


def _by_net(*values: float) -> dict[str, float | None]:
    return dict(zip(NETS, values, strict=True))


TEST_ERROR: Final = _by_net(1.8, 1.6, 2.0, 0.9)
DISTORTION: Final = _by_net(0.084, 0.087, 0.098, 0.095)
DCN_DISTORTION: Final = _by_net(0.107, 0.102, 0.106, 0.106)
"""As table 5 prints them."""

TABLE_1: Final = Item(
    name="table-1",
    title="The plain networks: errors and average distortion of their adversarial examples",
    where="section 2.2, page 3",
    values=(
        *_column(
            "Train err.",
            "error on the training set",
            _by_net(0, 0, 1.0, 0),
            {net: Measure(quantity="train_error", model=net) for net in NETS},
            unit="%",
            tolerance=0.5,
        ),
        *_column(
            "Test err.",
            "error on the test set",
            _by_net(1.77, 1.65, 2.0, 0.90),
            {n: _test(n) for n in NETS},
            unit="%",
            tolerance=0.3,
        ),
        *_column(
            "Adv. err.",
            "error on adversarials",
            _by_net(99.9, 99.9, 99.6, 100),
            {n: _adv("error", n) for n in NETS},
            unit="%",
            tolerance=1.0,
            basis="construction",
        ),
        *_column(
            "Av. distortion",
            "root mean square distortion",
            DISTORTION,
            {n: _adv("distortion", n) for n in NETS},
            tolerance=0.01,
            rival=DCN_DISTORTION,
        ),
    ),
)

_FIGURE_1_X = ("0", *map(str, SIGMAS))


def _figure_1(quantity: str, name: str, title: str) -> Item:
    def point(net: str, place: str, x: str) -> Value:
        model = net if x == "0" else noise(place, float(x), net)
        measure = _adv(quantity, model, "" if x == "0" else net)
        return Value(row=f"{net} {place}", column=x, metric=title, quantity=measure, unit="%")

    return Item(
        name=name,
        title=f"Gaussian noise at inference, averaged over 20 runs: {title}",
        where="section 3.1, page 4",
        kind="lines",
        axes=("standard deviation of the noise", f"{title} (%)"),
        note="L1: noise at the input; L*: at the input and every hidden layer. The paper's figure prints no numbers.",
        values=tuple(point(net, place, x) for net in NETS for place in PLACES for x in _FIGURE_1_X),
    )


def _blurred(quantity: str, net: str, kernel: int) -> Measure:
    return _adv(quantity, blur(kernel, net), net) if kernel else _adv(quantity, net)


def _table_2() -> Item:
    clean = {0: (1.8, 1.6, 2.0, 0.9), 5: (2.6, 2.5, 3.2, 1.2), 11: (11.3, 14.8, 16.6, 4.0)}
    adv = {0: (99.9, 99.9, 99.6, 100), 5: (43.5, 47.0, 68.3, 53.8), 11: (62.8, 65.5, 78.8, 43.8)}
    values: list[Value] = []
    for name, quantity, printed, tolerance in (
        ("clean", "clean_error", clean, 1.0),
        ("adv.", "error", adv, 5.0),
    ):
        for kernel, numbers in printed.items():
            # without a blur: table 1's test error, and an error that c was chosen for
            alone: Basis = "measured" if kernel else "repeat" if name == "clean" else "construction"
            values += _column(
                f"{name} {kernel or '-'}",
                f"error on {'clean images' if name == 'clean' else 'adversarials'}, blur kernel {kernel or 'none'}",
                _by_net(*numbers),
                {net: _blurred(quantity, net, kernel) for net in NETS},
                unit="%",
                tolerance=tolerance,
                rival=_by_net(*printed[0]) if kernel else None,
                basis=alone,
            )
    return Item(
        name="table-2",
        title="Gaussian blur: error on clean and on adversarial images, by kernel size",
        where="section 3.1, page 5",
        values=tuple(values),
    )


ADV_ERROR: Final[Mapping[str, float]] = dict(zip(NETS, (99.9, 99.9, 99.6, 100.0), strict=True))
"""Errors on adversarials without any defense, as table 1 prints them."""


def _table_3() -> Item:
    printed = {
        "N100-100-10": (2.3, 2.4, 2.3, 5.2),
        "N200-200-10": (2.3, 2.2, 2.2, 5.4),
        "AE400-10": (3.6, 3.5, 2.7, 9.2),
        "ConvNet": (7.7, 7.6, 8.3, 2.6),
    }
    values = [
        Value(
            row=net,
            column=trained_on,
            metric=f"error on {net}'s adversarials behind the autoencoder trained on {trained_on}'s",
            quantity=_adv("error", stack(trained_on, net), net),
            printed=number,
            unit="%",
            **_within(1.5, number, ADV_ERROR[net]),
        )
        for net, numbers in printed.items()
        for trained_on, number in zip(NETS, numbers, strict=True)
    ]
    values += [
        Value(
            row="Test error (clean)",
            column=net,
            metric="error of the stacked network on the test set",
            quantity=_test(stack(net, net)),
            printed=number,
            unit="%",
            **_within(0.4, number, TEST_ERROR[net]),
        )
        for net, number in zip(NETS, (2.1, 1.9, 2.1, 1.1), strict=True)
    ]
    values += [
        Value(
            row="Avg adv distortion",
            column=net,
            metric="root mean square distortion, stacked network attacked end to end",
            quantity=_adv("distortion", stack(net, net)),
            printed=number,
            **_within(0.01, number, DISTORTION[net]),
        )
        for net, number in zip(NETS, (0.049, 0.051, 0.043, 0.038), strict=True)
    ]
    return Item(
        name="table-3",
        title="Autoencoders trained on adversarials: error on adversarials of other networks, and the stack attacked",
        where="section 3.2, page 6",
        note="Columns: whose adversarials the autoencoder was trained on. Rows: whose it has to clean.",
        values=tuple(values),
    )


DAE_PRINTED: Final = dict(zip(DAE_SIGMAS, ((5.0, 4.9, 11.5, 9.1), (10.0, 10.6, 16.3, 15.3)), strict=True))


def _table_4() -> Item:
    return Item(
        name="table-4",
        title="Denoising autoencoders: error on adversarials",
        where="section 3.3, page 7",
        values=tuple(
            Value(
                row=f"DAE, sigma = {sigma}",
                column=net,
                metric="error on adversarials behind the autoencoder",
                quantity=_adv("error", dae(sigma, net), net),
                printed=number,
                unit="%",
                **_within(2.0, number, ADV_ERROR[net]),
            )
            for sigma, numbers in DAE_PRINTED.items()
            for net, number in zip(NETS, numbers, strict=True)
        ),
    )


TABLE_5: Final = Item(
    name="table-5",
    title="Deep Contractive Networks: clean error and average distortion, beside the plain network's",
    where="section 4.3, page 8",
    values=(
        *_column(
            "DCN error",
            "error on the test set",
            _by_net(2.3, 2.0, 2.0, 1.2),
            {n: _test(dcn(n)) for n in NETS},
            unit="%",
            tolerance=0.3,
            rival=TEST_ERROR,
        ),
        *_column(
            "DCN adv. distortion",
            "root mean square distortion",
            DCN_DISTORTION,
            {n: _adv("distortion", dcn(n)) for n in NETS},
            tolerance=0.01,
            rival=DISTORTION,
        ),
        *_column(
            "orig. error",
            "error on the test set",
            TEST_ERROR,
            {n: _test(n) for n in NETS},
            unit="%",
            tolerance=0.3,
            basis="repeat",
        ),
        *_column(
            "orig. adv. distortion",
            "root mean square distortion",
            DISTORTION,
            {n: _adv("distortion", n) for n in NETS},
            tolerance=0.01,
            basis="repeat",
        ),
        *_column(
            "DCN adv. err.",
            "error on adversarials",
            _by_net(100, 100, 100, 100),
            {n: _adv("error", dcn(n)) for n in NETS},
            unit="%",
            tolerance=1.0,
            basis="construction",
        ),
    ),
)


def _table_6() -> Item:
    rows = {
        "DCN": (dcn(TABLE_6), 2.0, 0.102),
        "GN,L1, sigma = 0.1": ("GN,L1", 1.8, 0.095),
        "GN,L*, sigma = 0.1": ("GN,L*", 2.0, 0.099),
        "DCN+GN,L1, sigma = 0.1": (DCN_GN, 2.2, 0.108),
    }
    errors: dict[str, float | None] = {row: error for row, (_, error, _) in rows.items()}
    far: dict[str, float | None] = {row: distortion for row, (_, _, distortion) in rows.items()}
    # noise is to do something to the plain network, and something more to the contractive one
    plain: dict[str, tuple[float, float]] = dict.fromkeys(rows, (1.6, 0.087)) | {list(rows)[-1]: (2.0, 0.102)}
    return Item(
        name="table-6",
        title="N200-200-10 under other training conditions",
        where="section 4.3, page 8",
        values=(
            *_column(
                "Test error",
                "error on the test set",
                errors,
                {r: _test(m) for r, (m, _, _) in rows.items()},
                unit="%",
                tolerance=0.3,
                rival={row: error for row, (error, _) in plain.items()},
            ),
            *_column(
                "Av. distortion",
                "root mean square distortion",
                far,
                {r: _adv("distortion", m) for r, (m, _, _) in rows.items()},
                tolerance=0.01,
                rival={row: distortion for row, (_, distortion) in plain.items()},
            ),
        ),
    )


def _grid(name: str, where: str, title: str, second: str) -> Item:
    original = _adv("distortion", "N100-100-10")
    defended = _adv("distortion", second)
    return Item(
        name=name,
        title=title,
        where=where,
        kind="grid",
        pictures=(
            Picture(title="original", measure=original, shows="original"),
            Picture(title="adversarial, plain", measure=original, shows="adversarial"),
            Picture(title="noise, plain", measure=original, shows="noise"),
            Picture(title=f"adversarial, {second}", measure=defended, shows="adversarial"),
            Picture(title=f"noise, {second}", measure=defended, shows="noise"),
        ),
    )


def _least(*of: Measure) -> Derived:
    return Derived(operation="least", of=of)


def _recovered(behind: str, net: str) -> Derived:
    """The share of a network's adversarial errors that a defense before it is without."""
    return Derived(operation="recovered", of=(_adv("error", behind, net), _adv("error", net)))


def _halved(kernel: int) -> float:
    """The frequency, in cycles a pixel, that a blur by the usual rule passes at half its amplitude."""
    return math.sqrt(math.log(2) / 2) / (math.pi * GaussianBlur(kernel=kernel).usual_sigma)


def _frequent(net: str, kernel: int, of: str = "noise") -> Measure:
    """The share of a network's adversarial noise, or of the images, above the frequency that a blur halves."""
    return replace(_adv("high_frequency", net), settings=(("above", round(_halved(kernel), 4)), ("of", of)))


CLAIMS: Final = (
    Claim(
        name="always-fooled",
        text="Every plain network errs on more than 99 % of its adversarials, at a distortion of 0.05 to 0.15.",
        where="section 2.2, table 1",
        clauses=tuple(
            clause
            for net in NETS
            for clause in (
                Clause(text=f"{net}: error", left=_adv("error", net), relation=">=", right=0.99, unit="%"),
                Clause(text=f"{net}: distortion", left=_adv("distortion", net), relation=">=", right=0.05),
                Clause(text=f"{net}: distortion, upper end", left=_adv("distortion", net), relation="<=", right=0.15),
            )
        ),
    ),
    Claim(
        name="blur-over-noise",
        text="Blur recovers more adversarials than noise: the better of two kernels against the better of L1 and L* "
        "with sigma = 0.1.",
        where="section 3.1, figure 1, table 2",
        clauses=tuple(
            Clause(
                text=net,
                left=_least(*(_blurred("error", net, kernel) for kernel in KERNELS)),
                relation="<",
                right=_least(*(_adv("error", noise(place, 0.1, net), net) for place in PLACES)),
                unit="%",
            )
            for net in NETS
        ),
    ),
    Claim(
        name="convolution-recovers",
        text="Convolution helps to recover: on the ConvNet a blur of 11 recovers more than half of the adversarials "
        "at a clean error 3 points higher, noise of 0.1 at every layer more than 35 %; both more than on N100-100-10.",
        where="section 3.1, page 5",
        clauses=(
            *(
                clause
                for name, behind, share in (
                    ("blur 11", blur(11, "ConvNet"), 0.5),
                    ("noise L* 0.1", noise("L*", 0.1, "ConvNet"), 0.35),
                )
                for clause in (
                    Clause(
                        text=f"{name} on the ConvNet: recovered",
                        left=_recovered(behind, "ConvNet"),
                        relation=">",
                        right=share,
                        unit="%",
                    ),
                    Clause(
                        text=f"{name} on the ConvNet: points of clean error",
                        left=Derived(
                            operation="difference",
                            of=(_adv("clean_error", behind, "ConvNet"), _adv("clean_error", "ConvNet")),
                        ),
                        relation="<=",
                        right=0.035,
                        unit="%",
                    ),
                )
            ),
            Clause(
                text="blur 11: ConvNet against N100-100-10",
                left=_recovered(blur(11, "ConvNet"), "ConvNet"),
                relation=">",
                right=_recovered(blur(11, "N100-100-10"), "N100-100-10"),
                unit="%",
            ),
            Clause(
                text="noise L* 0.1: ConvNet against N100-100-10",
                left=_recovered(noise("L*", 0.1, "ConvNet"), "ConvNet"),
                relation=">",
                right=_recovered(noise("L*", 0.1, "N100-100-10"), "N100-100-10"),
                unit="%",
            ),
        ),
    ),
    Claim(
        name="never-clean",
        text="Neither noise nor blur brings the error on adversarials down to that on clean images.",
        where="section 3.1, page 5",
        clauses=tuple(
            Clause(
                text=net,
                left=_least(
                    *(_blurred("error", net, kernel) for kernel in KERNELS),
                    *(_adv("error", noise(place, sigma, net), net) for place in PLACES for sigma in SIGMAS),
                ),
                relation=">",
                right=_adv("clean_error", net),
                unit="%",
            )
            for net in NETS
        ),
    ),
    Claim(
        name="noise-of-high-frequency",
        text="Adversarial noise mostly resides in the high-frequency domain: more than half of its energy lies above "
        "the frequency that a blur of 11 halves, and more than of the images' own.",
        where="section 3.4",
        clauses=tuple(
            clause
            for net in NETS
            for clause in (
                Clause(text=f"{net}: most of it", left=_frequent(net, 11), relation=">", right=0.5, unit="%"),
                Clause(
                    text=f"{net}: against the images",
                    left=_frequent(net, 11),
                    relation=">",
                    right=_frequent(net, 11, of="image"),
                    unit="%",
                ),
            )
        ),
    ),
    Claim(
        name="dae-almost-as-good",
        text="A denoising autoencoder with sigma = 0.1 recovers almost as many adversarials as the network's own "
        "autoencoder: at most 10 points fewer, as in print.",
        where="section 3.3, page 7, tables 3 and 4",
        clauses=tuple(
            Clause(
                text=net,
                left=Derived(
                    operation="difference",
                    of=(_adv("error", dae(0.1, net), net), _adv("error", stack(net, net), net)),
                ),
                relation="<=",
                right=0.1,
                unit="%",
            )
            for net in NETS
        ),
    ),
    Claim(
        name="dae-stack-is-weaker",
        text="Stacked with the network, the denoising autoencoder suffers the same deficiency: attacked end to end, "
        "both fall to a smaller distortion than the bare network.",
        where="section 3.3, page 7",
        clauses=(
            Clause(
                text="DAE(0.1) + N100-100-10",
                left=_adv("distortion", dae(0.1, "N100-100-10")),
                relation="<",
                right=_adv("distortion", "N100-100-10"),
            ),
        ),
    ),
    Claim(
        name="autoencoder-recovers",
        text="Every autoencoder recovers at least 90 % of adversarial errors, whatever network they were made on.",
        where="section 3.2, table 3",
        clauses=tuple(
            Clause(
                text=f"{net}'s adversarials, autoencoder of {trained_on}",
                left=_recovered(stack(trained_on, net), net),
                relation=">=",
                right=0.9,
                unit="%",
            )
            for net in NETS
            for trained_on in NETS
        ),
    ),
    Claim(
        name="stack-is-weaker",
        text="Attacked end to end, autoencoder and network fall to a smaller distortion than the bare network.",
        where="section 3.2, table 3",
        clauses=tuple(
            Clause(text=net, left=_adv("distortion", stack(net, net)), relation="<", right=_adv("distortion", net))
            for net in NETS
        ),
    ),
    Claim(
        name="dcn-is-stronger",
        text="A contractive network falls to a larger distortion than the plain one, at a clean error at most 1 point "
        "higher.",
        where="section 4.3, table 5",
        clauses=tuple(
            clause
            for net in NETS
            for clause in (
                Clause(
                    text=f"{net}: distortion",
                    left=_adv("distortion", dcn(net)),
                    relation=">",
                    right=_adv("distortion", net),
                ),
                Clause(
                    text=f"{net}: clean error",
                    left=Derived(operation="difference", of=(_test(dcn(net)), _test(net))),
                    relation="<=",
                    right=0.01,
                    unit="%",
                ),
            )
        ),
    ),
    Claim(
        name="dcn-over-noise",
        text="The penalty gives a larger distortion than training with noise, and noise with the penalty a larger one "
        "than the penalty alone.",
        where="section 4.3, table 6",
        clauses=(
            *(
                Clause(
                    text=f"DCN against {name}",
                    left=_adv("distortion", dcn(TABLE_6)),
                    relation=">",
                    right=_adv("distortion", name),
                )
                for name in GN
            ),
            Clause(
                text="DCN+GN against DCN",
                left=_adv("distortion", DCN_GN),
                relation=">",
                right=_adv("distortion", dcn(TABLE_6)),
            ),
        ),
    ),
)

_SECOND = replace(LBFGS_GU, target="second")

FITTED_CELLS: Final = {
    "N100-100-10": ((2.6, 43.5), (11.3, 62.8)),
    "N200-200-10": ((2.5, 47.0), (14.8, 65.5)),
    "AE400-10": ((3.2, 68.3), (16.6, 78.8)),
    "ConvNet": ((1.2, 53.8), (4.0, 43.8)),
}
"""Table 2 behind a blur: errors on clean and on adversarial images, by kernel."""


def _effects(*rows: tuple[str, str, float | None, float | None]) -> tuple[tuple[str, Value], ...]:
    """Of a model by what it is called: its distortion and its test error, with the printed ones."""
    measured: tuple[tuple[str, Callable[[str], Measure], Unit], ...] = (
        ("distortion", partial(_adv, "distortion"), ""),
        ("test error", _test, "%"),
    )
    return tuple(
        (
            f"{called}: {what}",
            Value(row=model, column=what, metric=what, quantity=of(model), printed=printed, unit=unit),
        )
        for called, model, *both in rows
        for (what, of, unit), printed in zip(measured, both, strict=True)
    )


CHOICES: Final = (
    Choice(
        topic="target label l of eq. 1",
        choice="a random wrong class for each image, as in Szegedy et al. 2014",
        reason="The paper names none. With random targets the plain networks' distortion comes out as printed.",
        effects=tuple(
            (
                f"{net}, second most likely class instead",
                Value(
                    row=net,
                    column="",
                    metric="root mean square distortion",
                    quantity=Measure(quantity="distortion", model=net, attack=_SECOND, threat=MINIMAL),
                    printed=printed,
                ),
            )
            for net, printed in zip(NETS, (0.084, 0.087, 0.098, 0.095), strict=True)
        ),
    ),
    Choice(
        topic="distortion",
        choice="the square root of the printed formula: root mean square over pixels, over the adversarials found of "
        "images that the network gets right",
        reason="The formula in section 1 has no root, but only with one do the printed values fit images in [0, 1]: "
        "a mean square of 0.084 would be a root mean square of 0.29.",
    ),
    Choice(
        topic="constant c",
        choice="the largest c, searched on 1,000 training images, with which at least 99.5 % of them are misclassified",
        reason="The paper searches for e = 99 % on some subset and prints 99.6 to 100 %; half a point more on training "
        "images keeps the error on test images above 99 %. Autoencoder and network together are searched for 95 %: on "
        "some seeds no c fools more than 98 %, and the search would end at a c of nearly 0, where distortions mean "
        "nothing.",
    ),
    Choice(
        topic="optimizer and epochs",
        choice="stochastic gradient descent with momentum 0.9, batches of 128, a rate that falls to 0 by a cosine; "
        "weight decay enters the gradient as 1e-3 W",
        reason="The paper gives the weight decay alone.",
    ),
    Choice(
        topic="ConvNet",
        choice="two convolutions of 5x5 with max-pooling, one dense layer: see harness.models.registry",
        reason="The paper says two convolutional, one fully connected and one softmax layer, and no widths.",
    ),
    Choice(
        topic="AE400-10",
        choice="the hidden layer is trained as a sparse autoencoder (mean activation 0.05), then, with a softmax "
        "layer on top, fine-tuned like the other dense networks, with section 2.2's weight decay",
        reason="Szegedy et al. 2014 freeze the autoencoder and decay the softmax layer by 1e-6; nothing then holds "
        "its weights down, and it falls at a fifth of the printed distortion. The decay of 1e-3 is what this paper "
        "says of all its networks. The contractive penalty acts in pre-training (eq. 4) and in fine-tuning (eq. 6).",
        effects=_effects(("frozen, decay 1e-6", FROZEN, 0.098, 2.0)),
    ),
    Choice(
        topic="eq. 5",
        choice="the penalty of eq. 6, layer by layer",
        reason="The paper takes eq. 6 as an approximation of eq. 5 for its cost, and leaves the comparison open.",
        effects=_effects(("eq. 5 on N100-100-10, same lambda", DCN_EXACT, 0.107, 2.3)),
    ),
    Choice(
        topic="lambda of eq. 6",
        choice="squared norms, one lambda for all layers of a dense network, one for each layer of the ConvNet: "
        + ", ".join(f"{n} {w}" for n, w in LAMBDA.items()),
        reason="The paper prints none and says that accuracy stayed close to the plain network's: chosen on one seed "
        "so that N200-200-10 loses about as much accuracy as printed. Whether the ConvNet's was too small for the "
        "printed distortion, twice as much shows.",
        fitted=True,
        effects=_effects(("ConvNet, twice lambda", TWICE, 0.106, 1.2)),
    ),
    Choice(
        topic="training with noise",
        choice="Gaussian with the printed standard deviation, 0.1, on images in [0, 1] and on layers as they are",
        reason="Less comes of it here than is printed (table 6). If the paper's noise was stronger than it says, two "
        "and three times as much shows what that would do.",
        effects=_effects(
            *(
                (f"{name}, sigma {sigma}", noisy(name, sigma), distortion, error)
                for sigma in STRONGER
                for name, distortion, error in (("GN,L1", 0.095, 1.8), ("GN,L*", 0.099, 2.0), (DCN_GN, 0.108, 2.2))
            )
        ),
    ),
    Choice(
        topic="noise of the denoising autoencoder",
        choice="Gaussian with the printed standard deviations on images in [0, 1]",
        reason="The one of 0.5 cleans better here than that of 0.1, in print worse (table 4). As with noise in "
        "training and at inference, twice as much shows whether the paper's was stronger than it says.",
        effects=tuple(
            (
                f"sigma {sigma} before {net}: error on adversarials",
                Value(
                    row=net,
                    column=f"{sigma}",
                    metric="error on adversarials",
                    quantity=_adv("error", dae(sigma, net), net),
                    printed=number,
                    unit="%",
                ),
            )
            for sigma, numbers in zip(DOUBLED, DAE_PRINTED.values(), strict=True)
            for net, number in zip(NETS, numbers, strict=True)
            if net in ("N100-100-10", "ConvNet")
        ),
    ),
    Choice(
        topic="blur",
        choice="sigma = 0.3 ((k - 1) / 2 - 1) + 0.8 for a kernel of size k",
        reason="The paper gives kernel sizes; this is the usual rule of image libraries. A sigma fitted to print "
        "shows what the rule costs.",
        effects=tuple(
            (
                f"{net}, kernel {kernel}, sigma {SIGMA_FITTED[kernel]} (fitted): error on {what}",
                Value(
                    row=net,
                    column=f"{what} {kernel}",
                    metric=f"error on {what} images",
                    quantity=_adv(quantity, fitted_blur(kernel, net), net),
                    printed=printed,
                    unit="%",
                ),
            )
            for net, cells in FITTED_CELLS.items()
            for kernel, numbers in zip(KERNELS, cells, strict=True)
            for (what, quantity), printed in zip(
                (("clean", "clean_error"), ("adversarial", "error")), numbers, strict=True
            )
        ),
    ),
    Choice(
        topic="high frequency",
        choice=f"above {_halved(11):.3f} cycles a pixel, what a blur of 11 passes at half amplitude; from the first "
        "16 attacked images of each network",
        reason="Section 3.4 infers it from the effect of blur, and names no cut-off.",
        effects=tuple(
            (
                f"{net}: share above {_halved(5):.3f}, what a blur of 5 halves",
                Value(
                    row=net,
                    column="",
                    metric="share of the noise's energy",
                    quantity=_frequent(net, 5),
                    unit="%",
                ),
            )
            for net in NETS
        ),
    ),
    Choice(
        topic="adversarials for training autoencoders",
        choice="those of a subset of the training images, attacked as the test images are (random targets, one c), "
        "each epoch together with all clean ones",
        reason="The paper uses the training set's, by one procedure for training and test; the subset's size is in the "
        "profile. Whether more of them clean another network's better, the whole training set's show.",
        effects=tuple(
            (
                f"N100-100-10's autoencoder, of all training images: error on {net}'s adversarials",
                Value(
                    row=net,
                    column="",
                    metric=f"error on {net}'s adversarials",
                    quantity=_adv("error", cleaned_by_all(net), net),
                    printed=printed,
                    unit="%",
                ),
            )
            for net, printed in (("N100-100-10", 2.3), ("ConvNet", 7.7))
        ),
    ),
)

PROFILES: Final = {
    "smoke": Profile(
        summary="embedded 8x8 digits, one seed: whether everything runs, not what it shows",
        dataset="digits",
        seeds=(0,),
        samples=40,
        batteries=("quick",),
        battery_samples=20,
        skipped=_others(("N100-100-10", dcn("N100-100-10"), blur(5, "N100-100-10"))),
        settings={"epochs": 15, "unsupervised_epochs": 10, "conv_epochs": 15, "ae_epochs": 10, "attacked": 400},
    ),
    "cpu": Profile(
        summary="MNIST, three seeds, 1,000 test images; two cores take at most 45 minutes",
        dataset="mnist",
        seeds=(0, 1, 2),
        samples=1000,
        battery_samples=100,
        skipped=tuple(
            noise(place, 0.1, net) for place in PLACES for net in NETS if (place, net) != ("L1", "N100-100-10")
        ),
        settings={"epochs": 12, "unsupervised_epochs": 20, "conv_epochs": 6, "ae_epochs": 8, "attacked": 10_000},
    ),
    "night": Profile(
        summary="MNIST, five seeds, all test images, longer training; some 5 core-hours without the batteries",
        dataset="mnist",
        seeds=(0, 1, 2, 3, 4),
        samples=10_000,
        battery_samples=500,
        battery_seeds=3,
        skipped=tuple(
            noise(place, 0.1, net) for place in PLACES for net in NETS if (place, net) != ("L1", "N100-100-10")
        ),
        settings={"epochs": 24, "unsupervised_epochs": 20, "conv_epochs": 12, "ae_epochs": 24, "attacked": 10_000},
    ),
    "full": Profile(
        summary="MNIST, five seeds, all test images, long training; a GPU or patience",
        dataset="mnist",
        seeds=(0, 1, 2, 3, 4),
        samples=10_000,
        battery_samples=1000,
        battery_seeds=3,
        settings={"epochs": 40, "unsupervised_epochs": 40, "conv_epochs": 20, "ae_epochs": 30, "attacked": 60_000},
    ),
}

STUDY: Final = Study(
    name="gu2014",
    title="Towards deep neural network architectures robust to adversarial examples",
    source="Gu & Rigazio 2014 (arXiv:1412.5068)",
    profiles=PROFILES,
    models=models,
    items=(
        TABLE_1,
        _figure_1("clean_error", "figure-1-clean", "error on clean images"),
        _figure_1("error", "figure-1-adversarial", "error on adversarials"),
        _table_2(),
        _table_3(),
        _grid(
            "figure-2",
            "section 3.2, page 6",
            "Adversarials of the plain network and of the stack, with their noise",
            stack("N100-100-10", "N100-100-10"),
        ),
        _table_4(),
        TABLE_5,
        _table_6(),
        _grid(
            "figure-3",
            "section 4.3, page 9",
            "Adversarials of the plain and of the contractive network, with their noise",
            dcn("N100-100-10"),
        ),
    ),
    claims=CLAIMS,
    choices=CHOICES,
    defended=DEFENDED,
)
