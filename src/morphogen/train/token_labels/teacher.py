"""A teacher's label maps: its classifier applied at every place of its last feature map."""

from __future__ import annotations

import hashlib
from copy import copy
from math import isqrt
from pathlib import Path
from typing import Any

import timm
import torch
from rich.progress import track
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torchvision.datasets import DatasetFolder
from torchvision.transforms import InterpolationMode, v2

from ...errors import ConfigError, first_line
from ...spec import parse_call, suggest
from ..data import in_one_line, terminal
from ..models import timm_model
from .label_maps import About, LabelMaps, class_names, image_names


def make_label_maps(
    teacher: nn.Module,
    dataset: DatasetFolder,
    folder: Path,
    *,
    top_k: int = 5,
    image_size: int | None = None,
    batch_size: int = 64,
    workers: int = 2,
    device: torch.device | None = None,
) -> tuple[int, float]:
    """Write a label map for every image that has none yet (Jiang et al., NeurIPS 2021, section 3.2).

    The whole image is resized to the teacher's square input, without a crop, so that places of the map are places
    of the image; the authors' centre crop shifts them where an image is not square.

    Args:
        teacher: a timm classifier of the dataset's classes; it is moved to the device and put into eval mode.
        dataset: an image folder; its own transform is not used.
        folder: where the maps go. A map takes `4 top_k rows columns` bytes.
        top_k: classes to keep at each place, below the number of classes.
        image_size: side of the teacher's input in pixels, by default its own; the grid grows with it.
        batch_size: images at once.
        workers: processes that decode images.
        device: where the teacher runs, by default the CPU.

    Returns:
        The number of maps made, and the percentage of them whose mean over all places ranks the image's own class
        first. A figure near chance means that the teacher's classes are in another order.

    Raises:
        ConfigError: a teacher of other classes or without spatial features, an unreadable image, a folder that
            cannot be written or holds other maps.
    """
    device = device or torch.device("cpu")
    teacher = teacher.to(device).eval()
    config: dict[str, Any] = resolve_model_data_config(teacher)
    size = image_size or config["input_size"][-1]
    with torch.inference_mode():
        example = class_map(teacher, torch.zeros(1, 3, size, size, device=device))
    count, classes = example.shape[1], class_names(dataset)
    if count != len(classes) or count < 2:
        raise ConfigError(
            "the teacher has other classes than the images",
            where=_name(teacher),
            expected=f"{max(2, len(classes))} classes",
            found=f"{count}",
            todo="Use a teacher trained on these images' classes",
        )
    top_k = min(top_k, count - 1)  # the others share what is left
    maps = LabelMaps.create(folder, About(_name(teacher), classes, top_k, (example.shape[2], example.shape[3])))
    names = image_names(dataset)
    todo = maps.missing(names)
    dataset = copy(dataset)
    dataset.transform = _whole_image(size, config)
    loader = torch.utils.data.DataLoader(torch.utils.data.Subset(dataset, todo), batch_size, num_workers=workers)
    right, left = 0, iter(todo)
    batches = track(in_one_line(loader), "making label maps", len(loader), transient=True, disable=not terminal())
    with torch.inference_mode():
        for images, labels in batches:
            logits = class_map(teacher, images.to(device))
            right += int((logits.mean((2, 3)).argmax(1).cpu() == labels).sum())
            for scores, indices in zip(*(t.cpu() for t in top_scores(logits, top_k)), strict=True):
                _write(maps, names[next(left)], scores, indices)
    return len(todo), 100 * right / len(todo) if todo else 100.0


def load_teacher(text: str) -> nn.Module:
    """A timm model with its trained weights.

    Args:
        text: a timm name, with or without a tag, and arguments: `nfnet_f0`, `convnext_base.fb_in1k`, or
            `resnet50(checkpoint_path='weights.safetensors', num_classes=10)` for weights of one's own.

    Raises:
        ConfigError: no such model, or its weights cannot be had.
    """
    name, arguments = parse_call(text.removeprefix("timm:"))
    if ":" not in name and not timm.is_model(name):  # hf-hub:OWNER/NAME is timm's to look up
        raise ConfigError(f"no timm model '{name}'", todo=suggest(name.partition(".")[0], timm.list_models()))
    arguments.setdefault("pretrained", "checkpoint_path" not in arguments)
    try:
        return timm_model(name, arguments)
    except Exception as error:  # the network's, the disk's and the model's own
        raise ConfigError(f"cannot load the teacher ({first_line(error)})", where=text) from error


def class_map(teacher: nn.Module, images: Tensor) -> Tensor:
    """What a classifier says of each place: (N, 3, H, W) to logits (N, classes, rows, columns).

    Each place of the last feature map goes through the teacher's own head as if it were an image of one place, so
    that any head works, pooled or not. Of a network trained for it (VOLO) the head for tokens is used.

    Raises:
        ConfigError: the model has no spatial features, or a head that cannot be applied place by place.
    """
    try:
        features = teacher.forward_features(images)  # pyright: ignore  (timm's interface)
    except Exception as error:  # whatever the model's own code raises
        raise _unsuited(teacher, f"its forward_features fails, {first_line(error)}") from error
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise _unsuited(teacher, "its features are neither a map nor tokens")
    count = len(images)
    if features.ndim == 3:
        rows = columns = isqrt(features.shape[1])
        prefix = features.shape[1] - rows * columns  # class and register tokens
        if prefix != getattr(teacher, "num_prefix_tokens", prefix):
            raise _unsuited(teacher, f"its {features.shape[1]} tokens are not a square")
        # A head may read the class token, or leave it out of a mean: here every token is the place.
        places = features[:, prefix:].flatten(0, 1)[:, None].expand(-1, prefix + 1, -1)
    elif _channels_last(teacher, features):
        rows, columns = features.shape[1:3]
        places = features.flatten(0, 2)[:, None, None]
    else:
        rows, columns = features.shape[2:]
        places = features.permute(0, 2, 3, 1).flatten(0, 2)[:, :, None, None]
    if rows * columns == 1:
        raise _unsuited(teacher, "its features are one place")
    for_tokens = getattr(teacher, "aux_head", None)
    try:
        logits = for_tokens(places[:, 0]) if for_tokens is not None else teacher.forward_head(places)  # pyright: ignore
    except Exception as error:  # whatever the model's own code raises
        raise _unsuited(teacher, f"its head fails on one place, {first_line(error)}") from error
    if not isinstance(logits, Tensor) or logits.shape[:1] != places.shape[:1] or logits.ndim != 2:
        raise _unsuited(teacher, "its head gives no class scores")
    return logits.float().view(count, rows, columns, -1).permute(0, 3, 1, 2)


def top_scores(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The highest logits and their classes, (N, top_k, rows, columns) each, of (N, classes, rows, columns).

    The logits are shifted so that a softmax over these, and 0 for all others, gives the kept classes the teacher's
    own probabilities and shares the rest evenly. The authors keep the raw logits and also fill with 0, which is
    right only as far as their teacher's other logits are near 0.
    """
    values, indices = logits.topk(top_k, dim=1)
    others = logits.scatter(1, indices, -torch.inf).logsumexp(1, keepdim=True)
    return values - others + torch.tensor(logits.shape[1] - top_k).log(), indices


def _write(maps: LabelMaps, name: str, scores: Tensor, classes: Tensor) -> None:
    try:
        maps.write(name, scores, classes)
    except OSError as error:
        raise ConfigError(f"cannot write the label map ({first_line(error)})", where=f"{maps.folder}/{name}") from error


def _whole_image(size: int, config: dict[str, Any]) -> v2.Compose:
    interpolation = InterpolationMode(config["interpolation"])
    return v2.Compose(
        [
            v2.Resize((size, size), interpolation, antialias=True),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(config["mean"], config["std"]),
        ]
    )


def _channels_last(teacher: nn.Module, features: Tensor) -> bool:
    known = getattr(teacher, "output_fmt", None)
    return known == "NHWC" if known else features.shape[1] != teacher.num_features == features.shape[3]


def _name(teacher: nn.Module) -> str:
    """Name and checksum: maps of two teachers must not mix, and weights from a file have no name of their own."""
    checksum = hashlib.sha256()
    for tensor in teacher.state_dict().values():
        checksum.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    name = getattr(teacher, "pretrained_cfg", {}).get("architecture", type(teacher).__name__)
    return f"{name} ({checksum.hexdigest()[:12]})"


def _unsuited(teacher: nn.Module, reason: str) -> ConfigError:
    return ConfigError(
        f"cannot make label maps with this teacher: {reason}",
        where=type(teacher).__name__,
        expected="a timm classifier whose forward_features gives a feature map or a square of tokens",
        todo="Such as nfnet_f0, convnext_base or volo_d1_224",
    )
