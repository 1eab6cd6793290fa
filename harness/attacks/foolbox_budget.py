"""The attacks of Foolbox 3.3.4 that keep a budget: gradient steps, noise, contrast.

See :mod:`.foolbox_table` for how to read the entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..threat import Norm
from .capability import FoolboxCapability, Value

_PREFIX: Final[dict[str, Norm]] = {"Linf": "linf", "L2": "l2", "L1": "l1"}
_ADAM: Final = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}


def family(
    suffix: str, short: str, options: Mapping[str, Value], prefixes: str = "Linf L2 L1", **more: Any
) -> list[FoolboxCapability]:
    """One attack in several norms: ``LinfX``, ``L2X``, ``L1X``."""
    aliases = more.pop("aliases", {})
    return [
        FoolboxCapability(
            attack=prefix + suffix,
            short=f"{short}-{_PREFIX[prefix]}",
            norms=(_PREFIX[prefix],),
            options=options,
            aliases=aliases.get(prefix, ()),
            **more,
        )
        for prefix in prefixes.split()
    ]


def _descent(steps: int, rel_stepsize: float, random_start: bool, **more: Value) -> dict[str, Value]:
    return {"steps": steps, "rel_stepsize": rel_stepsize, "abs_stepsize": None, "random_start": random_start, **more}


FEW: Final = {"steps": 3}

_DESCENT = (
    *family(
        "FastGradientAttack",
        "fgm",
        {"random_start": False},
        aliases={"Linf": ("FGSM",), "L2": ("FGM",)},
        targeted="yes",
    ),
    *family("BasicIterativeAttack", "bim", _descent(10, 0.2, False), targeted="yes", smoke=FEW),
    *family(
        "ProjectedGradientDescentAttack",
        "pgd",
        _descent(40, 0.01 / 0.3, True),
        "Linf",
        aliases={"Linf": ("LinfPGD", "PGD")},
        targeted="yes",
        smoke=FEW,
    ),
    *family(
        "ProjectedGradientDescentAttack",
        "pgd",
        _descent(50, 0.025, True),
        "L2 L1",
        aliases={"L2": ("L2PGD",), "L1": ("L1PGD",)},
        targeted="yes",
        smoke=FEW,
    ),
    *family(
        "AdamBasicIterativeAttack", "adam-bim", _descent(10, 0.2, False, **_ADAM), "Linf", targeted="yes", smoke=FEW
    ),
    *family(
        "AdamProjectedGradientDescentAttack",
        "adam-pgd",
        _descent(50, 0.025, True, **_ADAM),
        aliases={"Linf": ("LinfAdamPGD", "AdamPGD"), "L2": ("L2AdamPGD",), "L1": ("L1AdamPGD",)},
        targeted="yes",
        smoke=FEW,
    ),
    *family(
        "MomentumIterativeFastGradientMethod",
        "mim",
        _descent(10, 0.2, False, momentum=1.0),
        aliases={"Linf": ("MIFGSM",)},
        targeted="yes",
        smoke=FEW,
    ),
    FoolboxCapability(
        attack="SparseL1DescentAttack",
        short="sparse-l1-descent",
        norms=("l1",),
        targeted="yes",
        options=_descent(10, 0.2, False, quantile=0.99),
        defect="its projection leaves the L1 ball by up to 1.2 %; the door takes the clipped images",
        smoke=FEW,
    ),
    FoolboxCapability(
        attack="VirtualAdversarialAttack",
        short="vat",
        norms=("l2",),
        options={"steps": 10, "xi": 1e-2},  # Foolbox has no default for steps; its xi of 1e-6 gives NaN images
        smoke=FEW,
    ),
    FoolboxCapability(
        attack="GenAttack",
        short="gen",
        norms=("linf",),
        access="scores",
        targeted="only",
        options={
            "steps": 1000,
            "population": 10,
            "mutation_probability": 0.1,
            "mutation_range": 0.15,
            "sampling_temperature": 0.3,
            "reduced_dims": None,
        },
        smoke=FEW,
    ),
    FoolboxCapability(
        attack="L2ContrastReductionAttack",
        short="contrast-l2",
        norms=("l2",),
        access="none",
        options={"target": 0.5},
    ),
)

_ONE_DRAW = {"access": "none"}
_DRAWS: Final[dict[str, Any]] = {
    "access": "decisions",
    "options": {"repeats": 100, "check_trivial": True},
    "smoke": {"repeats": 3},
}
_NOISE = (
    *(
        FoolboxCapability(attack=attack, short=short, norms=(norm,), **kind)  # type: ignore[arg-type]
        for attack, short, norm, kind in (
            ("L2AdditiveGaussianNoiseAttack", "gauss-l2", "l2", _ONE_DRAW),
            ("L2AdditiveUniformNoiseAttack", "uniform-l2", "l2", _ONE_DRAW),
            ("LinfAdditiveUniformNoiseAttack", "uniform-linf", "linf", _ONE_DRAW),
            ("L2ClippingAwareAdditiveGaussianNoiseAttack", "gauss-l2-in-box", "l2", _ONE_DRAW),
            ("L2ClippingAwareAdditiveUniformNoiseAttack", "uniform-l2-in-box", "l2", _ONE_DRAW),
            ("L2RepeatedAdditiveGaussianNoiseAttack", "gauss-l2-repeated", "l2", _DRAWS),
            ("L2RepeatedAdditiveUniformNoiseAttack", "uniform-l2-repeated", "l2", _DRAWS),
            ("LinfRepeatedAdditiveUniformNoiseAttack", "uniform-linf-repeated", "linf", _DRAWS),
            ("L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack", "gauss-l2-in-box-repeated", "l2", _DRAWS),
            ("L2ClippingAwareRepeatedAdditiveUniformNoiseAttack", "uniform-l2-in-box-repeated", "l2", _DRAWS),
        )
    ),
)

FOOLBOX_BUDGET: Final[tuple[FoolboxCapability, ...]] = (*_DESCENT, *_NOISE)
