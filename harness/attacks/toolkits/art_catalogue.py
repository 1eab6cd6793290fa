"""Attacks of ART 1.20.1: capabilities, how each is called, known defects.

Option values are ART's own, except where a comment says otherwise. ``step_ratio`` is ours: the step as a fraction
of eps, because ART's absolute default of 0.1 is ten times an eps of 0.01. None means 2.5 / max_iter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ...threat import NORMS, Norm
from .capability import BRENDEL_BETHGE, ArtCapability, Fill, Value, listing

_BUDGET: Final[tuple[Fill, ...]] = ("batch_size", "verbose", "targeted", "norm", "eps", "eps_step")
_ONE_PIXEL = "in l1 a step moves one pixel, so l1 is not offered"

_AUTO: Final[Mapping[str, Value]] = {
    "max_iter": 100,
    "nb_random_init": 5,
    "loss_type": "cross_entropy",
    "step_ratio": 2.0,
}
_AUTO_LOSSES: Final = {"loss_type": ("cross_entropy", "difference_logits_ratio")}

# one random start, where ART has none
_RANDOM: Final = {"num_random_init": 1, "decay": None, "random_eps": False}


def _iterated(attack: str, short: str, options: Mapping[str, Value], *aliases: str) -> ArtCapability:
    return ArtCapability(
        attack=attack,
        short=short,
        norms=("linf", "l2"),
        targeted="yes",
        fills=_BUDGET,
        options={"max_iter": 100, "step_ratio": None, **options},
        defect=_ONE_PIXEL,
        aliases=aliases,
        smoke={"max_iter": 3},
    )


ART_BUDGET: Final[tuple[ArtCapability, ...]] = (
    ArtCapability(
        attack="AutoProjectedGradientDescent",
        short="apgd-art",
        norms=("linf", "l2", "l1"),
        targeted="yes",
        fills=_BUDGET,
        # the published first step is 2 eps; the losses need logits
        options=_AUTO,
        choices=_AUTO_LOSSES,
        variants=(
            ("loss_type", "difference_logits_ratio", {"min_classes": 3, "fewer": {"loss_type": "cross_entropy"}}),
        ),
        defect="judges the last iterate, not the best one; in l1 weak (0.33 where SparseL1DescentAttack reaches 0.86)",
        smoke={"max_iter": 5, "nb_random_init": 1},
    ),
    _iterated("ProjectedGradientDescent", "pgd-art", _RANDOM, "ProjectedGradientDescentPyTorch"),
    _iterated("ProjectedGradientDescentNumpy", "pgd-art-numpy", _RANDOM),
    ArtCapability(
        attack="BasicIterativeMethod",
        short="bim-art",
        norms=("linf",),
        targeted="yes",
        fills=("batch_size", "verbose", "targeted", "eps", "eps_step"),
        options={"max_iter": 100, "step_ratio": None},
        smoke={"max_iter": 3},
    ),
    _iterated("MomentumIterativeMethod", "mim-art", {"decay": 1.0}),
    ArtCapability(
        attack="FastGradientMethod",
        short="fgm-art",
        norms=("linf", "l2"),
        targeted="yes",
        fills=("batch_size", "targeted", "norm", "eps", "eps_step"),
        # minimal: growing steps along one gradient, step_ratio of the box's diameter each
        options={"num_random_init": 0, "minimal": False, "step_ratio": 0.01},
        variants=(("minimal", True, {"kind": "minimal"}),),
        defect=_ONE_PIXEL,
    ),
    ArtCapability(
        attack="AutoAttack",
        short="apgd-deepfool-square",
        norms=("linf", "l2"),
        fills=("batch_size", "targeted", "norm", "eps", "eps_step"),
        options={"step_ratio": 2.0},
        needs=("multiprocess",),
        # with two classes APGD has one loss alone: the other needs three
        defect="not the published battery: APGD with two losses, DeepFool and Square",
        min_side=8,
        recipe="battery",
    ),
    ArtCapability(
        attack="FrameSaliencyAttack",
        short="frame-saliency",
        norms=("linf",),
        fills=("batch_size", "verbose"),
        options={"method": "iterative_saliency", "frame_index": 2},  # 2: the rows of an image are its frames
        choices={"method": ("iterative_saliency", "iterative_saliency_refresh", "one_shot")},
        variants=(
            (
                "method",
                "iterative_saliency_refresh",
                {
                    "refused": True,
                    "defect": "method iterative_saliency_refresh leaves the ball, up to twice eps",
                    "instead": "method='iterative_saliency'",
                },
            ),
        ),
        defect="made for video: a fast gradient step, applied to one row after the other",
        recipe="frames",
    ),
    ArtCapability(
        attack="VirtualAdversarialMethod",
        short="vat-art",
        norms=("l2",),
        fills=("batch_size", "verbose", "eps"),
        outputs="probabilities",
        # 1e-6 is below what float32 resolves (success 0.02 where 1e-2 gives 0.24)
        options={"max_iter": 10, "finite_diff": 1e-2},
        access="scores",
        defect="finite differences pixel by pixel: thousands of forwards an image",
        smoke={"max_iter": 1},
    ),
    ArtCapability(
        attack="UniversalPerturbation",
        short="universal",
        norms=("linf", "l2"),
        fills=("batch_size", "verbose", "norm", "eps"),
        options={"attacker": "deepfool", "delta": 0.2, "max_iter": 20},
        choices={"attacker": ("deepfool", "fgsm", "pgd")},
        defect="one perturbation for the batch: the result depends on its company",
        recipe="universal",
        smoke={"max_iter": 1},
    ),
    ArtCapability(
        attack="TargetedUniversalPerturbation",
        short="universal-targeted",
        norms=("linf", "l2"),
        targeted="only",
        target="common",
        fills=("norm", "eps"),
        options={"attacker": "fgsm", "delta": 0.2, "max_iter": 20},
        choices={"attacker": ("fgsm",)},
        defect="one perturbation for the batch, towards the batch's most frequent rival class",
        recipe="universal",
        smoke={"max_iter": 1},
    ),
)


def _refused(attack: str, why: str, instead: str = "", *aliases: str) -> ArtCapability:
    return ArtCapability(attack=attack, short="", defect=why, instead=instead, refused=True, aliases=aliases)


_MINIMAL = (
    ArtCapability(
        attack="DeepFool",
        short="deepfool-art",
        norms=("l2",),
        kind="minimal",
        options={
            "max_iter": 100,
            "epsilon": 0.02,
            "nb_grads": 10,
        },  # the paper's overshoot; ART's 1e-6 is lost in rounding
        defect="ten backwards a step for every image until the last is done; Foolbox's takes a fifth",
        smoke={"max_iter": 10},
    ),
    ArtCapability(
        attack="ElasticNet",
        short="ead-art",
        norms=("l1", "l2"),
        kind="minimal",
        targeted="yes",
        fills=("batch_size", "verbose", "targeted"),
        options={
            "confidence": 0.0,
            "learning_rate": 0.01,
            "binary_search_steps": 9,
            "max_iter": 100,
            "beta": 0.001,
            "initial_const": 0.001,
            "decision_rule": "EN",
        },
        choices={"decision_rule": ("EN", "L1")},
        variants=(("decision_rule", "L1", {"norms": ("l1",)}),),
        smoke={"max_iter": 3, "binary_search_steps": 2},
    ),
    ArtCapability(
        attack="NewtonFool",
        short="newtonfool",
        norms=("l2",),
        kind="minimal",
        options={"max_iter": 100, "eta": 0.01},
        defect="weak: success 0.26 on a plain MLP",
        smoke={"max_iter": 3},
    ),
    ArtCapability(
        attack="SaliencyMapMethod",
        short="jsma",
        norms=("l0",),
        kind="minimal",
        targeted="only",
        options={"theta": 1.0, "gamma": 1.0},  # theta 0.1 takes ten visits to a pixel
        aliases=("JSMA",),
        smoke={"gamma": 0.2},
    ),
    ArtCapability(
        attack="SpatialTransformation",
        short="spatial-art",
        norms=NORMS,
        kind="minimal",
        access="decisions",
        fills=("verbose",),
        options={"max_translation": 10.0, "num_translations": 5, "max_rotation": 30.0, "num_rotations": 5},
        defect="one rotation and shift for the whole batch; minimises no norm",
        smoke={"num_translations": 1, "num_rotations": 3},
    ),
    ArtCapability(
        attack="AdversarialPatchPyTorch",
        short="patch",
        norms=("l0",),
        kind="minimal",
        targeted="yes",
        fills=("batch_size", "verbose", "targeted"),
        options={
            "rotation_max": 22.5,
            "scale_min": 0.1,
            "scale_max": 1.0,
            "learning_rate": 0.05,  # ART's 5.0 is meant for images in [0, 255]
            "max_iter": 500,
            "patch_type": "circle",
            "optimizer": "Adam",
            "scale": 0.5,  # ours: side of the patch, as a fraction of the image's
        },
        choices={"patch_type": ("circle", "square"), "optimizer": ("Adam", "pgd")},
        defect="one patch for the batch, placed at random; minimises nothing",
        aliases=("AdversarialPatch",),
        recipe="patch",
        smoke={"max_iter": 2},
    ),
    ArtCapability(
        attack="CompositeAdversarialAttackPyTorch",
        short="composite",
        norms=NORMS,
        kind="minimal",
        # hue and saturation (0, 1) need three channels
        options={
            "enabled_attack": (2, 3, 4, 5),
            "max_iter": 5,
            "max_inner_iter": 10,
            "early_stop": True,
            "attack_order": "scheduled",
            "hue_epsilon": (-3.141592653589793, 3.141592653589793),
            "sat_epsilon": (0.7, 1.3),
            "rot_epsilon": (-10.0, 10.0),
            "bri_epsilon": (-0.2, 0.2),
            "con_epsilon": (0.7, 1.3),
            "pgd_epsilon": (-8 / 255, 8 / 255),
        },
        needs=("kornia",),
        defect="rotation, brightness, contrast and a PGD step; minimises no norm",
        smoke={"max_iter": 1, "max_inner_iter": 2},
    ),
)


def _evolved(attack: str, short: str, norm: Norm, smoke: Mapping[str, Value]) -> ArtCapability:
    return ArtCapability(
        attack=attack,
        short=short,
        norms=(norm,),
        kind="minimal",
        access="scores",
        targeted="yes",
        fills=("verbose", "targeted"),
        options={"th": None, "es": 1, "max_iter": 100},
        variants=(
            ("es", 0, {"refused": True, "defect": "CMA-ES (es=0) is not reproducible under a seed", "instead": "es=1"}),
        ),
        defect="tens of thousands of forwards an image",
        min_classes=3,  # it takes two for one output, and raises
        recipe="bytes",
        smoke=smoke,
    )


_BLACK_BOX = (
    ArtCapability(
        attack="SquareAttack",
        short="square-art",
        norms=("linf", "l2"),
        access="scores",
        fills=("batch_size", "verbose", "norm", "eps"),
        options={"max_iter": 100, "p_init": 0.8, "nb_restarts": 1},
        defect="one square for the whole batch, never in the last row or column; weak in l2 under 10 pixels; no l1",
        min_side=8,
        smoke={"max_iter": 5},
    ),
    ArtCapability(
        attack="SimBA",
        short="simba",
        norms=("l2",),
        kind="minimal",
        access="scores",
        targeted="yes",
        fills=("batch_size", "verbose", "targeted"),
        one_by_one=True,
        outputs="probabilities",
        # freq_dim None: the image's side (ART's 4 leaves most frequencies out)
        options={"attack": "dct", "max_iter": 3000, "order": "random", "epsilon": 0.2, "freq_dim": None, "stride": 1},
        choices={"attack": ("dct", "px"), "order": ("random", "diag")},
        smoke={"max_iter": 5},
    ),
    ArtCapability(
        attack="ZooAttack",
        short="zoo",
        norms=("l2",),
        kind="minimal",
        access="scores",
        targeted="yes",
        fills=("batch_size", "verbose", "targeted"),
        one_by_one=True,
        # with resizing and importance sampling, ART's defaults, no image of five fell
        options={
            "confidence": 0.0,
            "learning_rate": 0.01,
            "max_iter": 100,
            "binary_search_steps": 1,
            "initial_const": 0.001,
            "abort_early": True,
            "use_resize": False,
            "use_importance": False,
            "nb_parallel": 128,
            "variable_h": 1e-4,
        },
        defect="thousands of forwards an image",
        smoke={"max_iter": 2, "nb_parallel": 16},
    ),
    ArtCapability(
        attack="HopSkipJump",
        short="hop-skip-jump-art",
        norms=("linf", "l2"),
        kind="minimal",
        access="decisions",
        targeted="yes",
        fills=("batch_size", "verbose", "targeted", "norm"),
        draws=True,
        options={"max_iter": 50, "max_eval": 10000, "init_eval": 100, "init_size": 100},
        defect="one image at a time; moves away from the predicted class, not from y",
        smoke={"max_iter": 1, "max_eval": 20, "init_eval": 10},
    ),
    ArtCapability(
        attack="BoundaryAttack",
        short="boundary-art",
        norms=("l2",),
        kind="minimal",
        access="decisions",
        targeted="yes",
        fills=("batch_size", "verbose", "targeted"),
        draws=True,
        options={
            "delta": 0.01,
            "epsilon": 0.01,
            "step_adapt": 0.667,
            "max_iter": 5000,
            "num_trial": 25,
            "sample_size": 20,
            "init_size": 100,
            "min_epsilon": 0.0,
        },
        defect="one image at a time; moves away from the predicted class, not from y",
        smoke={"max_iter": 2, "num_trial": 3},
    ),
    ArtCapability(
        attack="SignOPTAttack",
        short="sign-opt",
        norms=("l2",),
        kind="minimal",
        access="decisions",
        targeted="yes",
        fills=("batch_size", "verbose", "targeted"),
        options={
            "epsilon": 0.001,
            "num_trial": 100,
            "max_iter": 1000,
            "query_limit": 20000,
            "k": 200,
            "alpha": 0.2,
            "beta": 0.001,
        },
        min_classes=3,  # it takes two for one output, and raises
        smoke={"num_trial": 5, "max_iter": 2, "query_limit": 200, "k": 5},
    ),
    ArtCapability(
        attack="GeoDA",
        short="geoda",
        norms=("linf", "l2"),
        kind="minimal",
        access="decisions",
        fills=("batch_size", "verbose", "norm"),
        litters=True,
        options={"sub_dim": 10, "max_iter": 4000, "bin_search_tol": 0.1, "lambda_param": 0.6, "sigma": 0.0002},
        defect="far from the nearest (l2 5.98 where DDN finds 0.77); norm 1 computes norm 2 and is not offered",
        smoke={"max_iter": 500, "sub_dim": 4},
    ),
    ArtCapability(
        attack="BrendelBethgeAttack",
        short="brendel-bethge-art",
        norms=NORMS,
        kind="minimal",
        targeted="yes",
        fills=("batch_size", "targeted", "norm"),
        options=BRENDEL_BETHGE,
        needs=("numba",),
        defect="far from the nearest (l2 5.05 in 100 steps where Foolbox's form reaches 0.82 in 200)",
        recipe="starts",
        smoke={"steps": 2},
    ),
    # th: number of pixels; None searches for the smallest
    _evolved("PixelAttack", "pixel", "l0", {"th": 3, "max_iter": 1}),
    # differential evolution, where ART has CMA-ES; th: bound in 1/255, None searches for the smallest
    _evolved("ThresholdAttack", "threshold", "linf", {"th": 20, "max_iter": 1}),
)

_NO_SIGN = "its L-infinity step with cross-entropy never takes the sign, so it hardly moves (success 0.02 for 0.97)"
_NOT_IMAGES = "not an attack on image classifiers in PyTorch"
_OTHERS: Final = (
    "AdversarialPatchTensorFlowV2", "AdversarialTexturePyTorch", "CarliniWagnerASR", "DPatch", "DecisionTreeAttack",
    "FeatureAdversariesTensorFlowV2", "HighConfidenceLowUncertainty", "ImperceptibleASR", "ImperceptibleASRPyTorch",
    "LaserAttack", "MalwareGDTensorFlow", "OverTheAirFlickeringPyTorch", "OverloadPyTorch",
    "ProjectedGradientDescentTensorFlowV2", "RobustDPatch", "SNAL",
)  # fmt: skip

_REFUSED = (
    # whole records: the self-tests force them in, and must find them out
    *(
        ArtCapability(
            attack=attack,
            short=short,
            norms=("linf", "l2"),
            targeted="yes",
            fills=_BUDGET,
            options=_AUTO,
            choices=_AUTO_LOSSES,
            defect=_NO_SIGN,
            instead="AutoProjectedGradientDescent",
            refused=True,
        )
        for attack, short in (("AutoConjugateGradient", "acg-art"), ("RescalingAutoConjugateGradient", "reacg-art"))
    ),
    _refused(
        "CarliniL2Method",
        "an aliased bound keeps its constant from ever decreasing (median L2 2.35 where 0.78 is reachable)",
        "foolbox L2CarliniWagnerAttack",
    ),
    _refused(
        "CarliniLInfMethod", "its gradient ignores the constant it searches for (success 0)", "foolbox LInfFMNAttack"
    ),
    _refused("CarliniL0Method", "it returns the images of the broken CarliniL2Method", "foolbox L0FMNAttack"),
    _refused(
        "ShadowAttack", "giving y turns it into an attack towards y, and its loss is averaged twice (success 0)", "PGD"
    ),
    _refused("Wasserstein", "it overflows at its defaults, and its L-infinity ball grows beyond eps", "PGD"),
    _refused("FeatureAdversariesPyTorch", "it sees layers of a bare nn.Sequential only, and leaves the ball", "PGD"),
    _refused("FeatureAdversariesNumpy", "it sees layers of a bare nn.Sequential only, by finite differences", "PGD"),
    _refused("AdversarialPatchNumpy", "it fails with NumPy 2 before its first step", "AdversarialPatchPyTorch"),
    _refused("LowProFool", "it takes flat tabular features only", "foolbox DDNAttack"),
    _refused("GRAPHITEBlackbox", "a physical-world attack: it needs a target image and a camera's viewpoints"),
    _refused(
        "GRAPHITEWhiteboxPyTorch", "a physical-world attack: it needs a camera's viewpoints", "AdversarialPatchPyTorch"
    ),
    *(_refused(name, _NOT_IMAGES) for name in _OTHERS),
)

ART_TABLE: Final[dict[str, ArtCapability]] = listing(*ART_BUDGET, *_MINIMAL, *_BLACK_BOX, *_REFUSED)
"""Every attack class of ART by name, the refused ones included."""
