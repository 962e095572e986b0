"""PruneTrain (Lym et al., SC 2019): Tables 1 to 4, section 5."""

from __future__ import annotations

from .deit import IMAGENET
from .table import Row, Table

STEPS = {"optimizer": "sgd", "nesterov": False, "lr": 0.1, "weight_decay": 1e-4}
"""Section 5 has the learning rate, and for the rest cites He et al. (CVPR 2016)."""

CIFAR = STEPS | {"epochs": 182, "batch_size": 128, "lr_schedule": "milestones(at=(0.5, 0.75), factor=0.1)"}
"""64,000 steps, the rate divided by 10 after 32,000 and 48,000."""

IMAGENET90 = (
    STEPS
    | IMAGENET
    | {
        "model": "torchvision:resnet50",
        "epochs": 90,
        "batch_size": 256,
        "lr_schedule": "milestones(at=(0.3333, 0.6667), factor=0.1)",
    }
)

MODELS = {"resnet32": "resnet32", "resnet50": "cifar_resnet50", "vgg11": "cifar_vgg11", "vgg13": "cifar_vgg13"}

RATIO = "the paper does not say which penalty ratio; 0.2 is the largest of its sweep on CIFAR"


def pruned(ratio: float, interval: int) -> str:
    """Group lasso from the first step, a reconfiguration after every interval."""
    return f"PruneTrain(ratio={ratio}, interval={interval})"


def _cifar(model: str, method: str) -> dict:
    return CIFAR | {"model": MODELS[model], "method": method}


def _cifar_rows(data: str, *figures: tuple[str, float, float, float, float, float]) -> list[Row]:
    """For each network its dense run, and the pruned one."""
    rows = []
    for model, dense, gap, flops, time, inference in figures:
        paper = {"gap": gap, "training_flops": flops, "training_time": time, "inference_flops": inference}
        name = f"{data}-{model}"
        rows += [
            Row(f"{name}-baseline", _cifar(model, "Dense"), {"accuracy": dense}, data),
            Row(name, _cifar(model, pruned(0.2, 10)), paper, data, note=RATIO),
        ]
    return rows


FINETUNED = "the paper does not say for how many epochs more; here 10, at the rate of the last ones"


def _finetuned(ratio: float, gap: float) -> Row:
    """The same, and then without the penalty."""
    settings = {
        "epochs": 100,
        "lr_schedule": "milestones(at=(0.3, 0.6), factor=0.1)",
        "method": f"PruneTrain(ratio={ratio}, interval=5, finetune=0.1)",
    }
    name = f"imagenet-resnet50-{ratio}-finetuned"
    return Row(name, IMAGENET90 | settings, {"finetuned_gap": gap}, "imagenet", note=FINETUNED)


def _imagenet(ratio: float, gap: float, flops: float, times: tuple[float, float], inference: float) -> Row:
    return Row(
        f"imagenet-resnet50-{ratio}",
        IMAGENET90 | {"method": pruned(ratio, 5)},
        {
            "gap": gap,
            "training_flops": flops,
            "training_time": times[0],
            "training_time_v100": times[1],
            "inference_flops": inference,
        },
        "imagenet",
    )


IMAGENET_BASELINE = Row("imagenet-resnet50-baseline", IMAGENET90 | {"method": "Dense"}, {"accuracy": 76.2}, "imagenet")
IMAGENET_ROWS = [
    _imagenet(0.25, -1.87, 60, (71, 66), 47),
    _finetuned(0.25, -1.58),
    _imagenet(0.2, -1.47, 70, (76, 72), 56),
    _finetuned(0.2, -1.16),
    _imagenet(0.1, -0.24, 97, (98, 98), 88),
    _finetuned(0.1, 0.20),
]

TABLE1 = [
    *_cifar_rows(
        "cifar10",
        ("resnet32", 93.6, -1.8, 47, 81, 34),
        ("resnet50", 94.2, -1.1, 50, 81, 30),
        ("vgg11", 92.1, -0.7, 43, 57, 35),
        ("vgg13", 93.9, -0.6, 44, 57, 37),
    ),
    *_cifar_rows(
        "cifar100",
        ("resnet32", 71.0, -1.4, 68, 88, 54),
        ("resnet50", 73.1, -0.7, 47, 66, 31),
        ("vgg11", 70.6, -1.3, 53, 74, 43),
        ("vgg13", 74.1, -1.1, 58, 67, 48),
    ),
    IMAGENET_BASELINE,
    *IMAGENET_ROWS,
]


def _speed(name: str, at_10: float, at_100: float) -> Row:
    """The network that a row of Table 1 leaves, timed."""
    row = next(row for row in TABLE1 if row.name == name)
    return Row(
        name,
        row.settings,
        {"inference_speedup_10": at_10, "inference_speedup_100": at_100},
        row.data,
        note=row.note,
    )


TABLE2 = [
    _speed("cifar100-resnet32", 1.34, 1.33),
    _speed("cifar100-resnet50", 1.18, 1.51),
    _speed("cifar100-vgg11", 1.44, 1.54),
    _speed("cifar100-vgg13", 1.38, 1.64),
    _speed("imagenet-resnet50-0.25", 1.53, 1.55),
    _speed("imagenet-resnet50-0.2", 1.36, 1.36),
    _speed("imagenet-resnet50-0.1", 1.08, 1.05),
]

RESNET56 = CIFAR | {"model": "resnet56(bottleneck=True)"}
TABLE3 = [
    Row("baseline", RESNET56 | {"method": "Dense"}, {"accuracy": 94.5}, "cifar10"),
    Row(
        "prunetrain",
        RESNET56 | {"method": pruned(0.2, 10)},
        {"gap": -0.5, "inference_flops": 34, "removed_layers": 18},
        "cifar10",
        note=RATIO + "; AMC's row is taken from its own paper",
    ),
]


def _batch(
    name: str, base: dict, method: str, time: float, v100: float | None, inference: float, gap: float, data: str
):
    paper = {"training_time": 100 - time, "inference_flops": inference, "gap": gap}
    if v100 is not None:
        paper["training_time_v100"] = 100 - v100
    return Row(name, base | {"method": method}, paper, data, note=RATIO if data == "cifar100" else "")


RESNET50 = CIFAR | {"model": MODELS["resnet50"]}
TABLE4 = [
    _batch("cifar100-naive", RESNET50, pruned(0.2, 10), 34, None, 31, -0.7, "cifar100"),
    _batch(
        "cifar100-adjusted", RESNET50, f"{pruned(0.2, 10)} + DynamicBatch(limit=320)", 43, None, 34, -0.4, "cifar100"
    ),
    _batch("imagenet-naive", IMAGENET90, pruned(0.25, 5), 29, 34, 47.4, -1.87, "imagenet"),
    _batch("imagenet-adjusted", IMAGENET90, f"{pruned(0.25, 5)} + DynamicBatch()", 34, 39, 46.4, -1.91, "imagenet"),
]

PAPER = "prunetrain"
GPUS = "1 TITAN Xp (CIFAR), 4 GTX 1080 Ti and 4 V100 (ImageNet)"
TABLES = [
    Table(PAPER, "1", "training FLOPs and time against the dense network", GPUS, TABLE1),
    Table(PAPER, "2", "inference of the pruned networks, at 10 and at 100 images", "1 TITAN Xp", TABLE2),
    Table(PAPER, "3", "ResNet-56 on CIFAR-10, beside AMC", "none named", TABLE3),
    Table(PAPER, "4", "dynamic mini-batch, ResNet-50", GPUS, TABLE4),
]
