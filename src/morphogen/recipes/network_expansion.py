"""Network Expansion (Ding et al., CVPR 2023): Tables 1 to 6, section 4."""

from __future__ import annotations

from .deit import DEIT, IMAGENET
from .prunetrain import IMAGENET_ROWS
from .table import Row, Table

ONE_1080TI = "1 GTX 1080 Ti"

CIFAR = {
    "epochs": 240,
    "batch_size": 128,
    "optimizer": "sgd",
    "nesterov": False,
    "lr": 0.1,
    "lr_schedule": "cosine",
    "weight_decay": 5e-4,
}
"""Section 4.2. The networks are those of He et al., whose shortcuts are padded."""

RESNET32 = CIFAR | {"model": "resnet32(shortcut='pad')"}
RESNET56 = CIFAR | {"model": "resnet56(shortcut='pad')"}

RESNETS = IMAGENET | {
    "epochs": 120,
    "batch_size": 1024,
    "optimizer": "sgd",
    "nesterov": False,
    "lr": 0.4,
    "lr_schedule": "cosine",
    "weight_decay": 1e-4,
}
"""Section 4.3, on the code of PyTorch's example for ImageNet."""

RESNET50 = RESNETS | {"model": "torchvision:resnet50"}
RESNET101 = RESNETS | {"model": "torchvision:resnet101"}

DEIT_BASE = DEIT | {"model": "timm:deit_base_patch16_224", "epochs": 300}
"""Section 4.3, and the official code of DeiT, which tests the weights and no average of them."""

SEGMENTATION = {
    "model": "smp:DeepLabV3Plus(encoder_name='resnet101', output_stride=16)",
    "exclude": ["decoder", "segmentation_head"],
    "epochs": 215,
    "image_size": 768,
    "color_jitter": 0.5,
    "batch_size": 16,
    "optimizer": "sgd",
    "nesterov": False,
    "lr": 0.1,
    "lr_schedule": "poly(power=0.9)",
    "weight_decay": 1e-4,
}
"""Section 4.4: 40,000 steps of 16 of 2,975 images; random crop, colour jitter, flip; only the backbone grows."""

CROP = "the paper does not say how large its crops are, nor how strong its jitter; these are usual ones"


def expansion(width: float, stages: int, operator: str = "orthogonal") -> str:
    """Growth of the width by the paper's own operator."""
    return f"NetworkExpansion(width={width}, stages={stages}, operator='{operator}')"


def deeper(depth: float, stages: int) -> str:
    """Growth of the depth from the EMA model."""
    return f"NetworkExpansion(depth={depth}, stages={stages})"


def _hours(hours: int, minutes: int) -> float:
    return round(hours + minutes / 60, 2)


def _pair(
    model: dict, name: str, data: str, accuracies: tuple[float, float], times: tuple[float, float], speedup: float
):
    """A dense network and the same one grown."""
    (dense, grown), (slow, fast) = accuracies, times
    paper = {"accuracy": grown, "hours": fast, "speedup": speedup}
    return [
        Row(f"{name}-baseline", model | {"method": "Dense"}, {"accuracy": dense, "hours": slow, "speedup": 1.0}, data),
        Row(f"{name}-expansion", model | {"method": expansion(0.5, 5)}, paper, data),
    ]


FAST32, FAST56 = (_hours(1, 29), _hours(1, 3)), (_hours(2, 31), _hours(1, 44))

TABLE1 = [
    *_pair(RESNET32, "resnet32-cifar10", "cifar10", (94.41, 94.36), FAST32, 1.41),
    *_pair(RESNET32, "resnet32-cifar100", "cifar100", (74.91, 74.87), FAST32, 1.41),
    *_pair(RESNET56, "resnet56-cifar10", "cifar10", (95.01, 94.88), FAST56, 1.45),
    *_pair(RESNET56, "resnet56-cifar100", "cifar100", (75.80, 75.76), FAST56, 1.45),
]


def _row(name: str, base: dict, method: str, accuracy: float, hours: float, speedup: float, note: str = "") -> Row:
    return Row(
        name,
        base | {"method": method},
        {"accuracy": accuracy, "hours": hours, "speedup": speedup},
        "cifar100" if base is RESNET56 else "imagenet",
        note=note,
    )


WIDENED = "the paper does not say how far it starts below; the speedup is that of Expansion, so is the schedule"
PRUNED = next(row for row in IMAGENET_ROWS if row.name == "imagenet-resnet50-0.2")

TABLE2 = [
    _row("resnet50-baseline", RESNET50, "Dense", 76.2, _hours(19, 21), 1.0),
    _row("resnet50-net2net", RESNET50, "Net2Net(width=0.5, stages=3)", 75.6, _hours(15, 10), 1.28, note=WIDENED),
    Row(
        "resnet50-prunetrain",
        PRUNED.settings,
        {"accuracy": 74.8, "speedup": 1.32},
        "imagenet",
        note="from PruneTrain's own Table 1, with its settings",
    ),
    _row("resnet50-expansion", RESNET50, expansion(0.5, 3), 75.9, _hours(15, 10), 1.28),
    _row("resnet101-baseline", RESNET101, "Dense", 77.4, _hours(31, 1), 1.0),
    _row("resnet101-net2net", RESNET101, "Net2Net(width=0.5, stages=3)", 76.5, _hours(21, 45), 1.42, note=WIDENED),
    _row("resnet101-expansion", RESNET101, expansion(0.5, 3), 77.2, _hours(21, 46), 1.42),
    _row("deit-base-baseline", DEIT_BASE, "Dense", 81.8, _hours(62, 30), 1.0),
    _row(
        "deit-base-bert2bert",
        DEIT_BASE,
        "Bert2BERT(width=0.5, stages=2)",
        79.6,
        _hours(44, 58),
        1.39,
        note="the paper does not say how far it starts below",
    ),
    _row("deit-base-stackbert", DEIT_BASE, "StackBERT", 80.8, _hours(47, 33), 1.31),
    _row("deit-base-expansion", DEIT_BASE, deeper(0.5, 2), 81.5, _hours(46, 42), 1.34),
]


def _segmentation(name: str, method: str, miou: float, hours: float, speedup: float) -> Row:
    paper = {"miou": miou, "hours": hours, "speedup": speedup}
    return Row(name, SEGMENTATION | {"method": method}, paper, "cityscapes", note=CROP)


TABLE3 = [
    _segmentation("baseline", "Dense", 76.9, _hours(21, 59), 1.0),
    _segmentation("expansion-3", expansion(0.5, 3), 75.1, _hours(16, 49), 1.3),
    _segmentation("expansion-2", expansion(0.5, 2), 76.4, _hours(16, 50), 1.3),
]

TABLE4 = [
    _row("baseline", RESNET56, "Dense", 75.80, _hours(2, 31), 1.0),
    _row("0.875", RESNET56, expansion(0.875, 2), 75.81, _hours(2, 8), 1.18),
    _row("0.75", RESNET56, expansion(0.75, 3), 75.88, _hours(1, 59), 1.27),
    _row("0.625", RESNET56, expansion(0.625, 4), 75.91, _hours(1, 52), 1.35),
    _row("0.5", RESNET56, expansion(0.5, 5), 75.76, _hours(1, 44), 1.45),
    _row("0.375", RESNET56, expansion(0.375, 6), 75.60, _hours(1, 39), 1.52),
    _row("0.25", RESNET56, expansion(0.25, 7), 75.53, _hours(1, 36), 1.57),
    _row("0.125", RESNET56, expansion(0.125, 8), 75.31, _hours(1, 32), 1.64),
]

TABLE5 = [
    _row("baseline", DEIT_BASE, "Dense", 81.8, _hours(62, 30), 1.0),
    _row("third-3", DEIT_BASE, deeper(0.3333, 3), 80.2, _hours(42, 27), 1.47),
    _row("half-3", DEIT_BASE, deeper(0.5, 3), 80.5, _hours(47, 44), 1.31),
    _row("half-2", DEIT_BASE, deeper(0.5, 2), 81.5, _hours(46, 42), 1.34),
    _row("two-thirds-2", DEIT_BASE, deeper(0.6667, 2), 81.8, _hours(52, 30), 1.19),
]

TABLE6 = [
    Row(operator, RESNET56 | {"method": expansion(0.5, 5, operator)}, {"accuracy": accuracy}, "cifar100")
    for operator, accuracy in (("random", 75.39), ("replicate", 74.67), ("orthogonal", 75.76))
]

PAPER = "network-expansion"
TABLES = [
    Table(PAPER, "1", "ResNets on CIFAR-10 and CIFAR-100", ONE_1080TI, TABLE1),
    Table(PAPER, "2", "ResNets and DeiT-B on ImageNet", "4 V100 (ResNet-50), 8 V100 (the others)", TABLE2),
    Table(PAPER, "3", "DeepLabV3+ with ResNet-101 on Cityscapes", "1 V100", TABLE3),
    Table(PAPER, "4", "alpha_0 and n_g, ResNet-56 on CIFAR-100", ONE_1080TI, TABLE4),
    Table(PAPER, "5", "alpha_0 and n_g, DeiT-B on ImageNet", "8 V100", TABLE5),
    Table(PAPER, "6", "how new filters are filled, ResNet-56 on CIFAR-100", ONE_1080TI, TABLE6),
]
