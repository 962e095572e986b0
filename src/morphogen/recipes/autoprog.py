"""AutoProg (Li et al., CVPR 2022): Tables 2 to 8, and I to IX of the supplement."""

from __future__ import annotations

from collections.abc import Mapping

from .deit import DEIT, IMAGENET, TRANSFORMER
from .table import Row, Table

AVERAGES = {"ema": [0.998, 0.9986, 0.999, 0.9996]}
"""Supplement B: the best of these."""

MIXED = {"precision": "bfloat16"}
"""Section 5: mixed precision, in the baseline too."""

BOTH = AVERAGES | MIXED | {"test_size": 288}

DEIT_TINY = DEIT | BOTH | {"model": "timm:deit_tiny_patch16_224"}
DEIT_SMALL = DEIT | BOTH | {"model": "timm:deit_small_patch16_224"}

VOLO = TRANSFORMER | BOTH | {"warmup_epochs": 20, "exclude": ["post_network"]}
"""The paper counts the blocks of the four stages alone; the two of class attention behind them stay."""

D0_SIZE = "layers=(4, 4, 8, 2), embed_dims=(128, 256, 256, 256), num_heads=(4, 8, 8, 8)"
VOLO_D0 = VOLO | {"model": f"timm.models.volo:VOLO({D0_SIZE}, use_mix_token=True)", "drop_path": 0.1}
VOLO_D1 = VOLO | {"model": "timm:volo_d1_224(use_mix_token=True)", "drop_path": 0.2}
VOLO_D2 = VOLO | {"model": "timm:volo_d2_224(use_mix_token=True)", "drop_path": 0.2}

RESNET50 = (
    IMAGENET
    | MIXED
    | {
        "model": "torchvision:resnet50",
        "batch_size": 1024,
        "optimizer": "sgd",
        "nesterov": False,
        "lr": 0.4,
        "lr_schedule": "cosine",
        "warmup_epochs": 5,
        "weight_decay": 5e-5,
        "label_smoothing": 0.1,
    }
)
"""The paper does not say how; this is the common recipe for 100 epochs."""

D0_ADAPTIVE, D1_ADAPTIVE = "(0.5, 0.0, 0.0)", "(0.5, 0.25, 0.5)"
"""Table I: the least of RandAugment, erasing and stochastic depth, as shares of the most."""

LABELS = "learns from classes alone without --token_labels MAPS, which `morphogen label-maps` makes"
PATH_OF_D2 = f"Table I stops at D1, so this has D1's settings; {LABELS}"


def grown(method: str, adaptive: str = "", **settings: float | str | bool) -> str:
    """A method of the paper, whose momentum network has m = 0.998."""
    texts = [f"{key}={value!r}" for key, value in ({"decay": 0.998} | settings).items()]
    return f"{method}({', '.join(texts + ([f'adaptive={adaptive}'] if adaptive else []))})"


def _prog(adaptive: str = "", **settings: float | str) -> str:
    return grown("Prog", adaptive, **settings)


def _auto(adaptive: str = "", **settings: float | str | bool) -> str:
    return grown("AutoProg", adaptive, **settings)


def _row(name: str, base: Mapping, epochs: int, method: str, **paper: float | str) -> Row:
    note = LABELS if base is VOLO_D1 else PATH_OF_D2 if base is VOLO_D2 else ""
    return Row(name, {**base, "epochs": epochs, "method": method}, paper, "imagenet", note=note)


FIGURES = "flops", "flop_speedup", "hours", "speedup", "accuracy", "accuracy_288"


def _main(base: Mapping, epochs: int, name: str, *rows: tuple) -> list[Row]:
    """Rows of Table II: a name, a method and its figures."""
    made = []
    for scheme, method, *figures in rows:
        paper = {key: value for key, value in zip(FIGURES, figures, strict=True) if value is not None}
        made.append(_row(f"{name}-{epochs}-{scheme}", base, epochs, method, **paper))
    return made


D1 = D1_ADAPTIVE
TABLE_II = [
    *_main(
        DEIT_SMALL,
        100,
        "deit-s",
        ("original", "Dense", 4.6, 1.0, 71, 1.0, 74.1, 74.6),
        ("prog", _prog(), 2.4, 1.916, 46, 1.536, 72.6, 73.2),
        ("autoprog", _auto(), 2.8, 1.62, 50, 1.407, 74.4, 74.9),
    ),
    *_main(
        VOLO_D1,
        100,
        "volo-d1",
        ("original", "Dense", 6.8, 1.0, 150, 1.0, 82.6, 83.0),
        ("prog", _prog(D1), 3.7, 1.847, 93, 1.609, 81.7, 82.1),
        ("autoprog-0.5", _auto(D1, ratio=0.5), 3.3, 2.042, 91, 1.656, 82.8, 83.2),
        ("autoprog-0.4", _auto(D1, ratio=0.4), 2.9, 2.322, 81, 1.851, 82.7, 83.1),
    ),
    *_main(
        VOLO_D2,
        100,
        "volo-d2",
        ("original", "Dense", 14.1, 1.0, 277, 1.0, 83.6, 84.1),
        ("prog", _prog(D1), 7.5, 1.877, 180, 1.544, 82.9, 83.3),
        ("autoprog", _auto(D1), 8.3, 1.687, 191, 1.453, 83.8, 84.2),
    ),
    *_main(
        DEIT_TINY,
        300,
        "deit-tiny",
        ("original", "Dense", 1.2, 1.0, 144, 1.0, 72.2, 72.9),
        ("autoprog", _auto(), 0.7, 1.821, 95, 1.512, 72.4, 73.0),
    ),
    *_main(
        DEIT_SMALL,
        300,
        "deit-s",
        ("original", "Dense", 4.6, 1.0, 213, 1.0, 79.8, 80.1),
        ("autoprog", _auto(), 2.8, 1.62, 150, 1.42, 79.8, 80.1),
    ),
    *_main(
        VOLO_D1,
        300,
        "volo-d1",
        ("original", "Dense", 6.8, 1.0, 487, 1.0, 84.2, 84.4),
        ("autoprog", _auto(D1), 4.0, 1.689, 327, 1.489, 84.3, 84.6),
    ),
    *_main(
        VOLO_D2,
        300,
        "volo-d2",
        ("original", "Dense", 14.1, 1.0, 863, 1.0, 85.2, 85.1),
        ("autoprog", _auto(D1), 8.8, 1.607, 605, 1.427, 85.2, 85.2),
    ),
]


def _printing(rows: list[Row], *figures: str) -> list[Row]:
    """The same rows in a table that prints less of them."""
    return [
        Row(
            row.name,
            row.settings,
            {key: row.paper[key] for key in figures if key in row.paper},
            row.data,
            note=row.note,
        )
        for row in rows
    ]


def _d1(name: str, method: str, **paper: float | str) -> Row:
    """VOLO-D1, 100 epochs: what all ablations are of."""
    return _row(name, VOLO_D1, 100, method, **paper)


TRANSFER = (
    IMAGENET
    | MIXED
    | {
        "model": "timm:deit_small_patch16_224",
        "method": "Dense",
        "epochs": 1000,
        "batch_size": 768,
        "optimizer": "sgd",
        "nesterov": False,
        "lr": 0.01,
        "lr_schedule": "cosine",
        "weight_decay": 1e-4,
    }
)

TABLE3 = [
    Row(
        f"{name}-{data}",
        TRANSFER,
        {"accuracy": accuracy},
        data,
        needs={"pretrained": f"the model.pt of autoprog/2/deit-s-300-{name}"},
        note="by DeiT's procedure, the paper says; these are the settings that DeiT's authors tell of for CIFAR",
    )
    for name, accuracies in (("original", (99.0, 89.5)), ("autoprog", (99.0, 89.7)))
    for data, accuracy in zip(("cifar10", "cifar100"), accuracies, strict=True)
]

TABLE4 = [
    _d1("baseline", "Dense", accuracy=82.53),
    _d1("randinit", _prog(D1, depth_operator="random"), growth_accuracy=60.61, accuracy=80.02),
    _d1("stacking", _prog(D1, depth_operator="stack"), growth_accuracy=61.50, accuracy=81.55),
    _d1("interpolation", _prog(D1, depth_operator="interpolate"), growth_accuracy=61.53, accuracy=81.78),
    _d1("identity", _prog(D1, depth_operator="rezero"), growth_accuracy=61.04, accuracy=79.32),
    _d1("mogrow", _prog(D1), growth_accuracy=61.65, accuracy=81.90),
]

TABLE5 = [
    _d1("without-mogrow", _auto(D1, depth_operator="interpolate"), growth_accuracy=59.41, accuracy=82.6),
    _d1("with-mogrow", _auto(D1), growth_accuracy=62.14, accuracy=82.8),
]

TABLE6 = [
    _d1("without-recycling", _auto(D1, recycle=False), speedup=1.533, accuracy=82.8),
    _d1("with-recycling", _auto(D1), speedup=1.656, accuracy=82.8),
]

TABLE7 = [
    _row("deit-s-without", DEIT_SMALL, 100, _auto(), speedup=1.407, accuracy=74.4),
    _row("deit-s-with", DEIT_SMALL, 100, _auto(D0_ADAPTIVE), accuracy=0.1),
    _d1("volo-d1-without", _auto(ratio=0.4), speedup=1.509, accuracy=81.5),
    _d1("volo-d1-with", _auto(D1, ratio=0.4), speedup=1.851, accuracy=82.7),
]

SUPERNET = [
    _d1("original", "Dense", accuracy=82.6),
    _d1("supernet", "Supernet", speedup=1.485, accuracy=81.7),
    _d1("autoprog", _auto(D1), speedup=1.656, accuracy=82.8),
]

TABLE_I = [
    Row(
        name,
        {**base, "epochs": 300, "method": _auto(adaptive)},
        {"randaugment": "4.5 to 9", "erasing": erasing, "drop_path": path},
        "imagenet",
        note=f"{size}{LABELS}",
    )
    for name, base, adaptive, erasing, path, size in (
        ("d0", VOLO_D0, D0_ADAPTIVE, "0 to 0.25", "0 to 0.1", "the paper does not say how large a D0 is; "),
        ("d1", VOLO_D1, D1_ADAPTIVE, "0.0625 to 0.25", "0.1 to 0.2", ""),
    )
]

TABLE_III = [
    _d1("baseline", "Dense", hours=150.2, speedup=1.0, accuracy=82.6),
    _d1("progstack", "ProgStack", hours=135.3, speedup=1.11, accuracy=82.2),
    _d1(
        "progstack-mogrow",
        grown("ProgStack", depth_operator="mostack"),
        hours=136.0,
        speedup=1.104,
        accuracy=82.5,
    ),
    _d1("prog", _prog(D1), hours=93.3, speedup=1.609, accuracy=81.7),
    _d1("autoprog-0.4", _auto(D1, ratio=0.4), hours=81.1, speedup=1.851, accuracy=82.7),
]


def _precision(name: str, method: str, precision: str, speedup: float, accuracy: float) -> Row:
    settings = {**VOLO_D1, "epochs": 100, "method": method, "precision": precision}
    return Row(name, settings, {"speedup": speedup, "accuracy": accuracy}, "imagenet", baseline="original", note=LABELS)


TABLE_IV = [
    _precision("original", "Dense", "float32", 1.0, 82.6),
    _precision("amp", "Dense", "bfloat16", 1.74, 82.6),
    _precision("autoprog", _auto(D1, ratio=0.4), "float32", 1.875, 82.7),
    _precision("amp-autoprog", _auto(D1, ratio=0.4), "bfloat16", 3.221, 82.7),
]

TABLE_V = [
    _d1("original", "Dense", accuracy=82.6),
    *(
        _d1(f"{ratio}-{stages}", _auto(D1, ratio=ratio, stages=stages), speedup=speedup, accuracy=accuracy)
        for ratio, stages, speedup, accuracy in (
            (0.5, 3, 1.691, 82.6),
            (0.5, 4, 1.656, 82.8),
            (0.5, 5, 1.636, 82.8),
            (0.5, 50, 1.485, 81.7),
            (0.4, 3, 1.908, 82.4),
            (0.4, 4, 1.851, 82.7),
            (0.4, 5, 1.804, 82.7),
        )
    ),
]

TABLE_VII = [
    _d1("volo-d1-100", _auto(D1, ratio=0.4), depth="0.4, 1, 1, 1", tokens="0.4, 0.6, 0.6, 1"),
    _row("volo-d2-300", VOLO_D2, 300, _auto(D1), depth="0.83, 1, 1, 1", tokens="0.5, 0.67, 0.83, 1"),
]

RETRAIN = "Retrain(file='schedule.json')"

TABLE_VIII = [
    _d1("baseline", "Dense", hours=150.2, speedup=1.0, accuracy=82.6),
    _d1("autoprog-0.4", _auto(D1, ratio=0.4), hours=81.1, speedup=1.851, accuracy=82.7),
    Row(
        "retrain",
        {**VOLO_D1, "epochs": 100, "method": RETRAIN},
        {"hours": 81.4, "speedup": 1.845, "accuracy": 82.7},
        "imagenet",
        needs={"method": f"{RETRAIN}, with the schedule.json of autoprog/VIII/autoprog-0.4"},
        note=LABELS,
    ),
]

TABLE_IX = [
    _row("original", RESNET50, 100, "Dense", accuracy=77.3),
    Row(
        "autoprog",
        {**RESNET50, "epochs": 100, "method": RETRAIN},
        {"speedup": 1.569, "accuracy": 77.3},
        "imagenet",
        needs={"method": f"{RETRAIN}, with the schedule.json of a run of autoprog/2"},
        note='the policy searched on ViTs; --method "AutoProg(decay=0.998)" searches anew',
    ),
]

PAPER = "autoprog"
GPU = "RTX 3090"
ABLATION = "VOLO-D1, 100 epochs"
TABLES = [
    Table(PAPER, "2", "training on ImageNet", GPU, _printing(TABLE_II, "speedup", "accuracy", "accuracy_288")),
    Table(PAPER, "3", "transfer of DeiT-S to CIFAR", GPU, TABLE3),
    Table(PAPER, "4", f"depth growth operators with Prog, {ABLATION}", GPU, TABLE4),
    Table(PAPER, "5", f"MoGrow in AutoProg, {ABLATION}", GPU, TABLE5),
    Table(PAPER, "6", f"weight recycling, {ABLATION}", GPU, TABLE6),
    Table(PAPER, "7", "adaptive regularisation, 100 epochs", GPU, TABLE7),
    Table(PAPER, "8", f"the supernet alone, {ABLATION}", GPU, SUPERNET),
    Table(PAPER, "I", "adaptive regularisation of VOLO", GPU, TABLE_I),
    Table(PAPER, "II", "training on ImageNet, with FLOPs and GPU hours", GPU, TABLE_II),
    Table(PAPER, "III", f"progressive stacking, {ABLATION}", GPU, TABLE_III),
    Table(PAPER, "IV", f"mixed precision, {ABLATION}", GPU, TABLE_IV),
    Table(PAPER, "V", f"number of stages, {ABLATION}", GPU, TABLE_V),
    Table(PAPER, "VI", f"the supernet alone, {ABLATION}", GPU, SUPERNET),
    Table(PAPER, "VII", "schedules that were found, by stage", GPU, TABLE_VII),
    Table(PAPER, "VIII", f"retraining with the schedule found, {ABLATION}", GPU, TABLE_VIII),
    Table(PAPER, "IX", "ResNet-50, 100 epochs", GPU, TABLE_IX),
]
