"""How to train one network: the settings that a method and its dense baseline share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import torch

from ..errors import ConfigError
from ..machine.device import find_device
from ..schedule.learning_rate import shape_named
from ..schedule.revision import Option
from .pretrained import known_as

_HIGHEST = {
    "clip_grad": math.inf,
    "label_smoothing": 0.999,
    "randaugment": 10,
    "erasing": 1,
    "mixup": 1000,
    "cutmix": 1000,
    "repeated_augmentation": math.inf,
    "drop_path": 0.999,
    "ema": 0.999999,
    "warn_drop": 100,
    "ignored": 255,
    "color_jitter": 1,
}

DENSE_ALONE = ("base_size", "ignored", "color_jitter")
"""Settings that only segmentation has."""


BESIDE_THE_RUN = (
    "data output workers sparsity_map resume overwrite save_every keep keep_best patience track warn_drop "
    "table methods seeds first_seed budgets stretch parallel".split()
)
"""Settings that leave the run as it is; of the data the images are compared."""


@dataclass(frozen=True)
class Recipe:
    """How to train one network; the same for a method and the dense baseline.

    Attributes:
        recipe: a row of a paper's table, such as `network-expansion/4/0.375`, whose settings hold where nothing else is
            given; see `morphogen recipes`.
        scale: makes a recipe small, in (0, 1]: epochs, images, width and resolution together.
        model: `resnet20(width=32)`, any torchvision or timm name, or `package.module:function`.
        pretrained: weights to begin with, for fine-tuning: a file (`.safetensors`, a state dict of `torch.save`, the
            `model.pt` of a run), or `true` for those that timm or torchvision has for the model. A classifier of
            another number of classes begins anew; anything else that does not fit is refused.
        data: `digits` (embedded, 16 x 16), `clutter` (embedded, 24 x 24: digits that are harder to find), a folder with
            `train/CLASS/` and `val/CLASS/` or `test/CLASS/`, or `cifar10:FOLDER`, `cifar100:FOLDER`, `imagenet:FOLDER`
            as torchvision reads them. `csv:FILE` has the columns path, label and perhaps split; `hf:NAME_OR_FOLDER` is
            a data set of Hugging Face, `wds:/data/train-*.tar` are webdataset's shards. For segmentation
            `segmentation:FOLDER`, with `images/train/NAME.jpg`, `masks/train/NAME.png` and the same in `val` or `test`,
            or `cityscapes:FOLDER`. For detection `scatter` (embedded, 64 x 64: digits and their boxes) or
            `detection:FOLDER`, with images and an `annotations.json` as COCO has it, in `train` and in `val` or `test`.
        image_size: side of the square input in pixels; by default the data's own.
        base_size: of segmentation, the shorter side of a whole image in pixels, in tests and where the random scale
            (0.5 to 2) is 1; by default each image's own.
        ignored: of segmentation, the label of pixels that are neither learnt nor tested, beside 255.
        color_jitter: of segmentation and detection, by how much brightness, contrast and saturation change at random,
            as a share.
        images: use only so many training images, the same for every seed.
        test_images: use only so many test images, the same for every seed.
        epochs: passes over the training images.
        batch_size: images in a step, of all ranks together.
        optimizer: `sgd` (momentum 0.9) or `adamw`.
        nesterov: whether the momentum is Nesterov's.
        lr: peak learning rate.
        lr_schedule: how it falls after the warm-up: `cosine`, `linear`, `poly(power=0.9)`,
            `milestones(at=(0.5, 0.75), factor=0.1)`, or `wsd(decay=0.35)`, which is flat and linear to 0 in the last
            part, so that what grows before learns at the full rate.
        warmup_epochs: epochs in which the learning rate rises to its peak, linearly from a thousandth of it.
        weight_decay: as the optimizer defines it; under `adamw` not on biases, norms and tokens.
        clip_grad: largest norm of the gradients; 0 is no limit.
        class_weights: `balanced` weighs the loss of each class by images / (classes x images of the class), so that
            rare ones count as much as common ones; by default all images weigh the same.
        label_smoothing: share of each label that goes to all classes alike.
        randaugment: magnitude of RandAugment (timm's `rand-mM-mstd0.5-inc1`), up to 10; 0 is off.
        erasing: share of images in which a rectangle becomes noise.
        mixup: alpha of mixup; 0 is off. With cutmix too, each batch draws one of them.
        cutmix: alpha of cutmix; 0 is off.
        repeated_augmentation: times an image comes in a row, differently augmented; 0 and 1 are off.
        token_labels: folder of label maps, made by `morphogen label-maps`, with which a VOLO learns a label for each
            of its tokens (token labelling with MixToken).
        ground_truth: blend the true class into what the whole crop is to be, beside its label map; VOLO's authors do
            not.
        drop_path: rate of stochastic depth, the model's `drop_path_rate`.
        ema: decay of an exponential moving average of the weights, which is then what is tested and saved; 0 is off. Of
            several, such as `[0.998, 0.9996]`, it is the one that is best when the run ends, and results name it.
        test_size: side of the images in pixels at which the finished network is tested too, without training there.
        fast: all ordinary speed-ups that the device has: bfloat16, channels_last, fused, compile, and on a GPU
            cuda_graphs; each can also be set by itself.
        precision: `float32`; autocast to `bfloat16`, or to `float16` with the loss scaled.
        channels_last: keep images and weights in channels-last memory format.
        fused: let one kernel update all parameters.
        compile: `torch.compile` the network, once for each size that it has; searches run uncompiled.
        cuda_graphs: replay the compiled step as a CUDA graph; on a GPU, with compile.
        exclude: module paths of the model that no method changes, such as `["layer4"]`.
        sparsity_map: paths of the layers whose channels a method that prunes shows over the epochs; by default three
            of one residual path.
        rescue: what to try, in order, where the loss is not finite in the epoch after the network grew: from the state
            before it, `smaller` lets half of the new in and the rest an epoch later, `later` all of it an epoch later.
            By default the run stops.
        warn_drop: warn where accuracy falls by more points than this when channels or blocks of the network change.
        workers: processes that decode images which do not fit into memory.
        device: `auto` takes a GPU where there is one.
    """

    model: str = "resnet8(width=64)"
    data: str = "digits"
    image_size: int | None = None
    base_size: int | None = None
    ignored: int = 255
    color_jitter: float = 0.0
    images: int | None = None
    test_images: int | None = None
    epochs: int = 20
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    nesterov: bool = True
    lr: float = 0.1
    lr_schedule: str = "wsd"
    warmup_epochs: int = 0
    weight_decay: float = 5e-4
    clip_grad: float = 0.0
    class_weights: Literal["balanced"] | None = None
    label_smoothing: float = 0.0
    randaugment: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    repeated_augmentation: int = 0
    token_labels: Path | None = None
    ground_truth: bool = False
    drop_path: float = 0.0
    ema: float | list[float] = 0.0
    test_size: int | None = None
    fast: bool = False
    precision: Literal["float32", "bfloat16", "float16"] | None = None
    channels_last: bool = True
    fused: bool | None = None
    compile: bool | None = None
    cuda_graphs: bool | None = None
    exclude: list[str] = field(default_factory=list)
    sparsity_map: list[str] = field(default_factory=list)
    rescue: list[Option] = field(default_factory=list)
    warn_drop: float = 20.0
    workers: int = 2
    device: str = "auto"
    pretrained: bool | str = False
    recipe: str = ""
    scale: float | None = None

    def __post_init__(self) -> None:
        self._choose_speed()
        least = {"epochs": 1, "batch_size": 1, "image_size": 8, "base_size": 8, "images": 1, "test_images": 1}
        least["test_size"] = 8
        for key, lowest in least.items():
            value = getattr(self, key)
            if value is not None and value < lowest:
                raise ConfigError(f"{key} out of range", expected=f"at least {lowest}", found=f"{value}")
        if not (0 < self.lr < math.inf and 0 <= self.weight_decay < math.inf and self.workers >= 0):
            raise ConfigError(
                "out of range",
                expected="lr above 0, weight_decay and workers not below, all finite",
                found=f"lr {self.lr}, weight_decay {self.weight_decay}, workers {self.workers}",
            )
        for key, highest in _HIGHEST.items():
            value = getattr(self, key)
            if not all(0 <= each <= highest for each in (value if isinstance(value, list) else [value])):
                expected = f"0 to {highest:g}" if highest < math.inf else "at least 0"
                raise ConfigError(f"{key} out of range", expected=expected, found=f"{value}")
        if isinstance(self.ema, list) and not (all(self.ema) and len(set(self.ema)) == len(self.ema) > 0):
            raise ConfigError("ema out of range", expected="decays above 0, each once", found=f"{self.ema}")
        for key in ("mixup", "cutmix"):
            if 0 < getattr(self, key) < 1e-3:  # the beta distribution of still less is not a number
                raise ConfigError(f"{key} out of range", expected="0, or 0.001 to 1000", found=f"{getattr(self, key)}")
        shape_named(self.lr_schedule)
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ConfigError(
                "warmup_epochs out of range",
                expected=f"0 to {self.epochs - 1}, below epochs",
                found=f"{self.warmup_epochs}",
            )
        if self.batch_size % 2 and (self.mixup or self.cutmix):
            raise ConfigError(
                "mixup and cutmix pair the images of a batch",
                where="batch_size",
                expected="an even number",
                found=f"{self.batch_size}",
            )
        if self.token_labels and self.class_weights:
            raise ConfigError("label maps have no class weights", where="class_weights", expected="none of them")
        if self.token_labels and (self.mixup or self.cutmix):
            raise ConfigError(
                "label maps cannot follow mixup and cutmix",
                where="token_labels",
                expected="mixup 0 and cutmix 0; MixToken takes their place",
                found=f"mixup {self.mixup}, cutmix {self.cutmix}",
            )

    def _choose_speed(self) -> None:
        """Settle what was left to `fast`, so that a recipe says what it does."""
        on_gpu = self.fast and self.torch_device().type == "cuda"
        left = {
            "precision": "bfloat16" if self.fast else "float32",
            "fused": self.fast,
            "compile": self.fast and self.token_labels is None,
            "cuda_graphs": on_gpu and self.compile is not False and self.token_labels is None,
        }
        for key, value in left.items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, value)
        if self.compile and self.token_labels is not None:
            raise ConfigError(
                "token labelling calls parts of the model, and only its whole forward pass is compiled",
                where="compile",
                expected="false",
                found="true",
            )
        if self.cuda_graphs and not (self.compile and self.torch_device().type == "cuda"):
            raise ConfigError(
                "CUDA graphs are made by torch.compile, on a GPU",
                where="cuda_graphs",
                expected="compile true and a CUDA device",
                found=f"compile {str(self.compile).lower()} on {self.torch_device().type}",
            )

    def as_text(self) -> dict[str, str]:
        """Every setting as one would write it."""
        return {entry.name: str(getattr(self, entry.name)) for entry in fields(self)}

    def deciding(self) -> dict[str, str]:
        """The settings that decide how a run goes, as one would write them; weights to begin with by their content.

        Raises:
            ConfigError: the file of the weights is not there.
        """
        settings = {key: value for key, value in self.as_text().items() if key not in BESIDE_THE_RUN}
        del settings["pretrained"]
        return settings | ({"pretrained": known_as(self.pretrained)} if self.pretrained else {})

    @property
    def decays(self) -> list[float]:
        """Of the averages of the weights; none where the weights themselves are tested."""
        return self.ema if isinstance(self.ema, list) else [self.ema] if self.ema else []

    @property
    def autocast(self) -> torch.dtype | None:
        """The type of autocast; None for none."""
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(self.precision or "")

    def torch_device(self) -> torch.device:
        """The device to train on; raises ConfigError where there is no such device."""
        return find_device(self.device)
