"""Lee et al. 2017: the generative adversarial trainer, on CIFAR-10; CIFAR-100 is in :mod:`suites.lee2017_cifar100`.

Perturbation power is the root mean square of L2 lengths: a gradient step has the same length for every image, a
generator gives more to some and less to others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from defenses.dropout import Dropout
from defenses.fast_gradient import FastGradient
from defenses.generative_adversarial_trainer import GenerativeAdversarialTrainer
from defenses.random_perturbation import RandomPerturbation
from defenses.standard import Standard
from harness.attacks.fast_gradient import Gradient
from harness.attacks.learned_generator import Generator
from harness.planning.specs import ModelSpec
from harness.studies.study import Choice, Claim, Clause, Derived, Item, Measure, Profile, Search, Study, Value
from harness.threat import Threat

if TYPE_CHECKING:
    from harness.attacks.base import Attack
    from harness.datasets.registry import DatasetInfo
    from harness.training.trainer import Trainer

BASELINE: Final = "Baseline"
DROPOUT: Final = "Dropout"
RANDOM: Final = "Random perturbation"
FG_LINF: Final = "Adv. training (FG, Linf)"
FG_L2: Final = "Adv. training (FG, L2)"
GAT: Final = "Adv. training (GAT)"
DROPOUT_GAT: Final = "Dropout + GAT"
METHODS: Final = (BASELINE, DROPOUT, RANDOM, FG_LINF, FG_L2, GAT, DROPOUT_GAT)
"""Rows of table 2."""

OTHER: Final = "Another baseline"
"""What the images of the indirect attack are crafted on."""

CONSTANT: Final = "Baseline, constant rate"
"""Beside the baseline, where a profile lowers the learning rate."""

SLOW: Final = "Adv. training (GAT, rate 1e-6)"
"""GAT with the paper's rate of the generator, where a profile has a higher one."""

OTHER_SEED: Final = 1000
"""Added to a seed for it: no profile has so many."""

FAST: Final = Gradient(p=2.0)
SIGN: Final = Gradient(p=math.inf)
COMMON: Final[Mapping[str, Any]] = {"c": 0.5, "dropout": 0.1, "fg_l2": 0.25, "fg_linf": 0.25, "random": 0.5}
"""Settings that all profiles share, of those that are searched."""

TRAINED: Final[Mapping[str, Any]] = {"images": 10_000, "epochs": 30, "patience": 5, "lr": 3e-4}
"""How the generators of figure 2 are trained in the full profile."""

LOW: Final = (0.1, 0.25, 0.5)
POWERS: Final = (*LOW, 1.0, 1.5)


def models(profile: Profile, info: DatasetInfo, seed: int) -> Mapping[str, ModelSpec]:
    """The networks of table 2, and another baseline."""
    settings = profile.settings
    common: dict[str, Any] = {
        "epochs": settings["epochs"],
        "batch_size": settings["batch_size"],
        "validation": 0.1,
        "subset": settings["subset"],
        "schedule": settings.get("schedule", "constant"),
        "precision": settings.get("precision", "float32"),
    }
    p = settings["dropout"]
    game = {"c": settings["c"], "generator_lr": settings["generator_lr"], **common}
    trainers: dict[str, Trainer] = {
        BASELINE: Standard(**common),
        DROPOUT: Dropout(p=p, **common),
        RANDOM: RandomPerturbation(eps=settings["random"], **common),
        # the step of a sign as long in L2
        FG_LINF: FastGradient(norm="linf", eps=settings["fg_linf"] / math.sqrt(math.prod(info.shape)), **common),
        FG_L2: FastGradient(norm="l2", eps=settings["fg_l2"], **common),
        GAT: GenerativeAdversarialTrainer(**game),
        DROPOUT_GAT: GenerativeAdversarialTrainer(p=p, **game),
        CONSTANT: Standard(**{**common, "schedule": "constant"}),
        SLOW: GenerativeAdversarialTrainer(**{**game, "generator_lr": 1e-6}),
    }

    def spec(trainer: Trainer, number: int) -> ModelSpec:
        return ModelSpec(dataset=info.name, architecture="allconv", defense=trainer.resolve(info), seed=number)

    found = {name: spec(trainer, seed) for name, trainer in trainers.items()}
    return found | {OTHER: spec(trainers[BASELINE], seed + OTHER_SEED)}


def tested(model: str) -> Measure:
    """Accuracy on the whole test set."""
    return Measure(quantity="test_accuracy", model=model)


def attacked(model: str, attack: Attack, power: float, source: str = "") -> Measure:
    """Accuracy at a power; a generator's is in its declaration, for a threat bounds each image by itself."""
    threat = Threat("l2", None if attack.kind == "minimal" else power)
    return Measure(quantity="accuracy", model=model, attack=attack, threat=threat, source=source)


def gained(model: str) -> Derived:
    """Accuracy above the baseline's."""
    return Derived(operation="difference", of=(tested(model), tested(BASELINE)))


def architectures(name: str, classes: int) -> Item:
    """Table 1.

    Args:
        name: Of the item.
        classes: Of the data set.
    """
    # weights and biases of the layers that are printed: fan-in, maps, kernel
    convolutions = ((3, 48, 3), (48, 48, 3), (48, 96, 3), (96, 96, 3), (96, 96, 3), (96, 96, 1), (96, classes, 1))
    weights = sum((fan_in * kernel**2 + 1) * maps for fan_in, maps, kernel in convolutions)
    return Item(
        name=name,
        title="Networks: weights and biases of the classifier",
        where="section 4.1, page 5",
        note="The paper prints layers, from which the number follows, and so does the network here: they agree by "
        "construction. Classifier: 3x3 convolutions with 48, 48 (stride 2), 96, 96 (stride 2) and 96 maps, 1x1 with 96 "
        f"and {classes}, mean over places. Generator: six 3x3 convolutions and one 1x1 with 48 maps each, 1x1 with 3, "
        "tanh. ReLU between. No record has the generator, which is thrown away after training; tests compare it layer "
        "by layer.",
        values=(
            Value(
                row="classifier",
                column="parameters",
                metric="weights and biases",
                quantity=Measure(quantity="parameters", model=BASELINE),
                printed=weights,
                basis="construction",
            ),
        ),
    )


def training_power() -> Item:
    """Not in the paper: whether GAT trains on perturbations at all."""

    def logged(field: str, model: str, **settings: Any) -> Measure:
        return Measure(quantity="history", model=model, settings=tuple(sorted({"field": field, **settings}.items())))

    return Item(
        name="training-power",
        title="Perturbations that GAT trains on, mean L2 length over an epoch",
        where="not in the paper",
        note="The paper prints no power of training. Steps of fast-gradient training are "
        f"{COMMON['fg_l2']:g} (L2) and {COMMON['fg_linf']:g} (Linf) long here, random perturbations "
        f"{COMMON['random']:g}: GAT is compared with them at equal strength only where its own are about as long. The "
        "gradient is what the generator sees, that of the label's probability.",
        values=tuple(
            Value(row=model, column=column, metric=f"L2 length of the {field}", quantity=logged(field, model, **at))
            for model in (GAT, DROPOUT_GAT, SLOW)
            for column, field, at in (
                ("perturbation, first epoch", "perturbation", {"epoch": 1}),
                ("perturbation, last epoch", "perturbation", {}),
                ("gradient, last epoch", "gradient", {}),
            )
        ),
    )


def _cell(method: str, mean: float, std: float, baseline: float) -> Value:
    """A row of table 2; no rival where it is no further from the baseline than its own runs vary."""
    effect = abs(mean - baseline)
    shown = effect > std
    return Value(
        row=method,
        column="Test accuracy",
        metric="accuracy on the test set",
        quantity=tested(method),
        printed=mean,
        unit="%",
        tolerance=min(1.0, math.floor(45 * effect) / 100) if shown else std,
        rival=baseline if shown else None,
        printed_std=std,
    )


def table(name: str, printed: Mapping[str, tuple[float, float]]) -> Item:
    """A half of table 2: mean and standard deviation by row."""
    return Item(
        name=name,
        title="Test accuracy by regularization method",
        where="section 4.4, page 7",
        note="The paper's means and standard deviations are over 50 runs. Random perturbations change nothing there.",
        values=tuple(_cell(method, mean, std, printed[BASELINE][0]) for method, (mean, std) in printed.items()),
    )


def regularization(margin: str) -> Claim:
    """GAT above everything else in table 2.

    Args:
        margin: Where the paper prints it.
    """

    def above(better: str, worse: str) -> Clause:
        return Clause(
            text=f"{better} against {worse}", left=tested(better), relation=">", right=tested(worse), unit="%"
        )

    return Claim(
        name="regularization",
        text="GAT is more accurate on clean images than every other method, and dropout adds to it.",
        where=margin,
        clauses=(
            *(above(GAT, other) for other in METHODS if other not in (GAT, DROPOUT_GAT)),
            above(DROPOUT_GAT, DROPOUT),
            above(DROPOUT_GAT, GAT),
        ),
    )


def generator(power: float) -> Generator:
    """The attack of figure 2, with the c that gives a power."""
    return Generator(c=None, mode="minimal", power=power, **TRAINED)


def _lines(
    name: str, title: str, where: str, lines: Mapping[str, Sequence[tuple[float, Measure]]], note: str = ""
) -> Item:
    return Item(
        name=name,
        title=title,
        where=where,
        kind="lines",
        axes=("power of the perturbation (L2)", "accuracy (%)"),
        note=f"The paper's figure prints no numbers. {note}".strip(),
        values=tuple(
            Value(row=row, column=f"{power:g}", metric="accuracy", quantity=measure, unit="%")
            for row, points in lines.items()
            for power, measure in points
        ),
    )


def _figure_2(accuracy: float) -> Item:
    lines: dict[str, list[tuple[float, Measure]]] = {
        "FG (L2)": [(power, attacked(BASELINE, FAST, power)) for power in POWERS],
        "FG (Linf)": [(power, attacked(BASELINE, SIGN, power)) for power in POWERS],
    }
    lines["GAT"] = [(power, attacked(BASELINE, generator(power), power)) for power in POWERS]
    item = _lines(
        "figure-2",
        "Accuracy of the baseline over the power of perturbations, by gradient steps and by generators trained for it",
        "section 4.2, page 6",
        lines,
        f"A generator is trained for each power, with the c that gives it. The text says {accuracy:g} % for no power.",
    )
    unmoved = Value(
        row="FG (L2)",
        column="0",
        metric="accuracy",
        quantity=tested(BASELINE),
        printed=accuracy,
        unit="%",
        tolerance=1.0,
        basis="repeat",
    )
    return replace(item, values=(unmoved, *item.values))


def figures(accuracy: float) -> tuple[Item, ...]:
    """Figures 2 to 4.

    Args:
        accuracy: What the text says of the baseline's, in percent.
    """
    return (
        _figure_2(accuracy),
        _lines(
            "figure-3",
            "Accuracy under an attack on the network itself, by the L2 length of gradient steps",
            "section 4.3.1, page 7",
            {model: _over_power(model, "") for model in ROBUST},
        ),
        _lines(
            "figure-4",
            "Accuracy under an attack on another baseline network, by the L2 length of gradient steps",
            "section 4.3.2, page 7",
            {model: _over_power(model, OTHER) for model in ROBUST},
        ),
    )


ROBUST: Final = (BASELINE, FG_LINF, FG_L2, GAT)
"""Models of figures 3 and 4. The claims compare GAT with training on steps of the sign; that on L2 steps is ours."""


def _over_power(model: str, source: str) -> list[tuple[float, Measure]]:
    return [(0.0, tested(model)), *((power, attacked(model, FAST, power, source)) for power in POWERS)]


def _robust(name: str, text: str, where: str, source: str) -> Claim:
    return Claim(
        name=name,
        text=text,
        where=where,
        clauses=tuple(
            Clause(
                text=f"power {power:g}, against {other}",
                left=attacked(GAT, FAST, power, source),
                relation=">",
                right=attacked(other, FAST, power, source),
                unit="%",
            )
            for power in LOW
            for other in (BASELINE, FG_LINF)
        ),
    )


def points(printed: str) -> Claim:
    """What each method gains over the baseline.

    Args:
        printed: What the paper's own table says of it.
    """
    return Claim(
        name="points-gained",
        text=f"Usual regularizers gain 1 to 2 points, GAT 4 to 6. {printed}",
        where="section 4.4, page 8",
        clauses=(
            Clause(text="Dropout, lower end", left=gained(DROPOUT), relation=">=", right=0.01, unit="%"),
            Clause(text="Dropout, upper end", left=gained(DROPOUT), relation="<=", right=0.02, unit="%"),
            Clause(text="GAT, lower end", left=gained(GAT), relation=">=", right=0.04, unit="%"),
            Clause(text="Dropout + GAT, lower end", left=gained(DROPOUT_GAT), relation=">=", right=0.04, unit="%"),
        ),
    )


FIGURES: Final = (
    Claim(
        name="stronger-than-fast-gradient",
        text="At low power a generator leaves less accuracy than gradient steps of the same power.",
        where="section 4.2, figure 2",
        clauses=tuple(
            Clause(
                text=f"power {power:g}, against {name}",
                left=attacked(BASELINE, generator(power), power),
                relation="<",
                right=attacked(BASELINE, fast, power),
                unit="%",
            )
            for power in LOW
            for name, fast in (("FG (L2)", FAST), ("FG (Linf)", SIGN))
        ),
    ),
    _robust(
        "robust-directly",
        "GAT withstands gradient steps of its own better than plain training and training on steps of the sign do.",
        "section 4.3.1, figure 3",
        "",
    ),
    _robust(
        "robust-indirectly",
        "So it does those of another network.",
        "section 4.3.2, figure 4",
        OTHER,
    ),
    Claim(
        name="direct-is-stronger",
        text="Accuracy falls no faster under steps of another network than under those of the network itself.",
        where="section 4.3.2, figures 3 and 4",
        clauses=tuple(
            Clause(
                text=f"power {power:g}, {model}",
                left=attacked(model, FAST, power, OTHER),
                relation=">=",
                right=attacked(model, FAST, power),
                unit="%",
            )
            for power in LOW
            for model in (BASELINE, FG_LINF, GAT)
        ),
    ),
)
"""Claims that are about the figures."""

CLAIMS: Final = (
    regularization("section 4.4, table 2 (a)"),
    points("Table 2 (a) has 1.01 for dropout, less for the others, 2.85 for GAT and 4.14 with dropout."),
    *FIGURES,
)


def _clean(model: str) -> Value:
    return Value(row=model, column="", metric="accuracy on the test set", quantity=tested(model), unit="%")


def _slower(model: str) -> Value:
    def seconds(name: str) -> Measure:
        return Measure(quantity="epoch_seconds", model=name)

    ratio = Derived(operation="ratio", of=(seconds(model), seconds(FG_L2)))
    return Value(row=model, column="", metric="ratio of times", quantity=ratio)


CHOICES: Final = (
    Choice(
        topic="c of the trainer, lengths of steps and the probability of dropout",
        choice="for the cpu profile the best of dropout 0.1 to 0.5, random lengths 0.5 to 2, steps 0.1 to 0.5 and c "
        "0.5 to 8, by the accuracy of one network each on 5,000 training images that it did not see; the other "
        "profiles take over its values. c, dropout and random lengths were best at the lowest value: gauntlet search "
        "lee2017 tries lower ones by now. Lengths "
        "are in L2, also those of FG in Linf and of random perturbations",
        reason="The paper chooses by validation accuracy, and prints neither the values nor what it chose among.",
    ),
    Choice(
        topic="what the generator sees",
        choice="the gradient of the label's probability, as the paper has it, by way of the log-odds",
        reason="By way of the softmax it is zero in single precision where a network is sure.",
    ),
    Choice(
        topic="minibatches of algorithm 1",
        choice="all updates of a step share one; the last of the generator's shares its pass with the classifier's",
        reason="It spares passes: without dropout a step costs less than three fast-gradient ones. The paper's three "
        "to four times the time of fast-gradient training is therefore no claim here.",
        effects=(("time of an epoch, in those of FG in L2", _slower(GAT)), ("with dropout", _slower(DROPOUT_GAT))),
    ),
    Choice(
        topic="rate of the generator",
        choice="the paper's 1e-6 in the full profile, higher in those that train for fewer steps",
        reason="At 1e-6 it takes thousands of steps to move; item training-power shows how far it came.",
        effects=(("accuracy at 1e-6", _clean(SLOW)), ("accuracy at the profile's rate", _clean(GAT))),
    ),
    Choice(
        topic="learning rate of classifiers",
        choice="lowered to zero along a cosine in the night profile, constant in the others; the generator's always is",
        reason="The paper gives one rate. On few images the last epoch's accuracy varies by points at a constant one.",
        effects=(("baseline, constant rate", _clean(CONSTANT)), ("baseline", _clean(BASELINE))),
    ),
    Choice(
        topic="power of perturbations",
        choice="the root mean square of L2 lengths, equal for all attacks at a point of figure 2; in training, c is "
        "adapted to it, and one factor for all images makes up for what is missing in the end",
        reason="The paper does not define the word; its loss weighs the square. It varies c and takes gradient steps "
        "of the power that comes of it.",
    ),
    Choice(
        topic="clipping",
        choice="training is on unclipped images, attacks are clipped to [0, 1]",
        reason="The paper mentions none; what lies outside is no image.",
    ),
    Choice(
        topic="epochs and batches",
        choice="all methods train for as many epochs, in batches of 128 in the full profile, without early stopping; "
        "passes of training are computed in bfloat16 in the night profile, every evaluation in float32",
        reason="The paper gives neither. In bfloat16 a step takes half as long, and errors differ by less than between "
        "seeds (docs/performance.md).",
    ),
    Choice(
        topic="place of dropout",
        choice="after every hidden layer, with a low probability",
        reason="The paper does not say where; the network is small.",
    ),
)

PRINTED: Final = {
    BASELINE: (77.48, 0.46),
    DROPOUT: (78.49, 0.64),
    RANDOM: (77.59, 0.57),
    FG_LINF: (78.12, 0.59),
    FG_L2: (77.99, 0.45),
    GAT: (80.33, 0.44),
    DROPOUT_GAT: (81.62, 0.34),
}


def shrunk(**settings: Any) -> Mapping[Attack, Attack]:
    """The generators of figure 2, trained with other settings."""
    return {attack: replace(attack, **settings) for attack in map(generator, POWERS)}


def profiles(full: str, cpu: str) -> Mapping[str, Profile]:
    """Sizes.

    Args:
        full: Data set of the full profile.
        cpu: Data set of the one for two cores.
    """
    return {
        "smoke": Profile(
            summary="embedded 8x8 digits, 540 training images, one seed: whether everything runs, not what it shows",
            dataset="digits",
            seeds=(0,),
            samples=40,
            batteries=("quick",),
            battery_samples=10,
            skipped=tuple(name for name in METHODS if name != GAT),
            settings={**COMMON, "epochs": 5, "batch_size": 32, "subset": 600, "generator_lr": 1e-3},
            attacks=shrunk(images=200, epochs=5, batch_size=32, lr=1e-3),
        ),
        "cpu": Profile(
            summary=f"{cpu}, 1,800 training images (200 more held out), two seeds, 500 test images: what the methods "
            "do for a network that overfits; meant for an hour of two cores",
            dataset=cpu,
            seeds=(0, 1),
            samples=500,
            battery_samples=50,
            skipped=tuple(name for name in METHODS if name not in (BASELINE, GAT)),
            settings={**COMMON, "epochs": 30, "batch_size": 32, "subset": 2000, "generator_lr": 1e-4},
            attacks=shrunk(images=2000, epochs=10, batch_size=64, lr=1e-3),
            surrogate={"epochs": 30, "batch_size": 32, "validation": 0.1, "subset": 2000},
        ),
        "night": Profile(
            summary=f"{cpu}, 10,000 training images (1,111 more held out), 30 epochs, five seeds, 2,000 test images; "
            "meant for two cores over several nights, resuming",
            dataset=cpu,
            seeds=(0, 1, 2, 3, 4),
            samples=2000,
            battery_samples=500,
            battery_seeds=3,
            skipped=tuple(name for name in METHODS if name not in (BASELINE, FG_LINF, GAT, DROPOUT_GAT)),
            settings={
                **COMMON,
                "epochs": 30,
                "batch_size": 64,
                "subset": 11_111,
                "generator_lr": 1e-4,
                "schedule": "cosine",
                "precision": "bfloat16",
            },
            attacks=shrunk(images=4000, epochs=10, batch_size=64, lr=1e-3),
            surrogate={"epochs": 30, "batch_size": 64, "validation": 0.1, "subset": 11_111, "schedule": "cosine"},
        ),
        "full": Profile(
            summary=f"{full}, ten seeds, 45,000 training images (5,000 more held out), all test "
            "images; meant for an hour of a large GPU",
            dataset=full,
            seeds=tuple(range(10)),
            samples=10_000,
            battery_samples=500,
            settings={**COMMON, "epochs": 30, "batch_size": 128, "subset": None, "generator_lr": 1e-6},
        ),
    }


_LENGTHS: Final = {
    "smoke": (0.25, 0.5),
    "cpu": (0.1, 0.25, 0.5),
    "night": (0.1, 0.25, 0.5, 1.0),
    "full": (0.1, 0.25, 0.5, 1.0),
}


def _tried(smoke: tuple[float, ...], *values: float) -> Mapping[str, tuple[float, ...]]:
    return {**dict.fromkeys(_LENGTHS, values), "smoke": smoke}


SEARCHES: Final = (
    Search(setting="dropout", model=DROPOUT, values=_tried((0.1, 0.25, 0.5), 0.02, 0.05, 0.1, 0.25, 0.5, 0.7)),
    Search(setting="random", model=RANDOM, values=_tried((0.5, 1.0, 2.0), 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)),
    Search(setting="fg_linf", model=FG_LINF, values=_LENGTHS),
    Search(setting="fg_l2", model=FG_L2, values=_LENGTHS),
    Search(setting="c", model=GAT, values=_tried((0.5, 2.0), 0.03, 0.125, 0.5, 2.0, 8.0, 32.0)),
)
"""What the paper chooses by validation accuracy, without saying among what."""

STUDY: Final = Study(
    name="lee2017",
    title="Generative Adversarial Trainer: defense to adversarial perturbations with GAN",
    source="Lee, Han & Lee 2017 (arXiv:1705.03387)",
    profiles=profiles("cifar10", "cifar10-jpeg"),
    models=models,
    items=(architectures("table-1", 10), table("table-2a", PRINTED), *figures(77.0), training_power()),
    claims=CLAIMS,
    choices=CHOICES,
    defended=tuple((name, name) for name in METHODS),
    datasets=("cifar10", "cifar10-jpeg"),
    searches=SEARCHES,
)
