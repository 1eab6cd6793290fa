"""The attacks of ART 1.20.1 that keep a budget and use gradients (or the finite differences of scores).

See :mod:`.art_table` for how to read the entries.
"""

from __future__ import annotations

from typing import Final

from .capability import ArtCapability, Fill

_BUDGET: Final[tuple[Fill, ...]] = ("batch_size", "verbose", "targeted", "norm", "eps", "eps_step")
_ONE_PIXEL = "in l1 a step moves one pixel, so l1 is not offered"

ART_BUDGET: Final[tuple[ArtCapability, ...]] = (
    ArtCapability(
        attack="AutoProjectedGradientDescent",
        short="apgd-art",
        norms=("linf", "l2", "l1"),
        targeted="yes",
        fills=_BUDGET,
        # the published first step is 2 eps; the losses need logits
        options={"max_iter": 100, "nb_random_init": 5, "loss_type": "cross_entropy", "step_ratio": 2.0},
        choices={"loss_type": ("cross_entropy", "difference_logits_ratio")},
        variants=(
            (
                "loss_type",
                "difference_logits_ratio",
                {"min_classes": 3, "fewer": {"loss_type": "cross_entropy"}},
            ),
        ),
        defect="judges the last iterate, not the best one; in l1 weak (0.33 where SparseL1DescentAttack reaches 0.86)",
        smoke={"max_iter": 5, "nb_random_init": 1},
    ),
    ArtCapability(
        attack="ProjectedGradientDescent",
        short="pgd-art",
        norms=("linf", "l2"),
        targeted="yes",
        fills=_BUDGET,
        # one random start, where ART has none
        options={"max_iter": 100, "num_random_init": 1, "step_ratio": None, "decay": None, "random_eps": False},
        defect=_ONE_PIXEL,
        aliases=("ProjectedGradientDescentPyTorch",),
        smoke={"max_iter": 3},
    ),
    ArtCapability(
        attack="ProjectedGradientDescentNumpy",
        short="pgd-art-numpy",
        norms=("linf", "l2"),
        targeted="yes",
        fills=_BUDGET,
        options={"max_iter": 100, "num_random_init": 1, "step_ratio": None, "decay": None, "random_eps": False},
        defect=_ONE_PIXEL,
        smoke={"max_iter": 3},
    ),
    ArtCapability(
        attack="BasicIterativeMethod",
        short="bim-art",
        norms=("linf",),
        targeted="yes",
        fills=("batch_size", "verbose", "targeted", "eps", "eps_step"),
        options={"max_iter": 100, "step_ratio": None},
        smoke={"max_iter": 3},
    ),
    ArtCapability(
        attack="MomentumIterativeMethod",
        short="mim-art",
        norms=("linf", "l2"),
        targeted="yes",
        fills=_BUDGET,
        options={"max_iter": 100, "decay": 1.0, "step_ratio": None},
        defect=_ONE_PIXEL,
        smoke={"max_iter": 3},
    ),
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
