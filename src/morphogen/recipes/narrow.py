"""The recipes' models at a share of their width and of their images' side, for `scaled`."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import ConfigError
from ..spec import parse_call

CIFAR_WIDTHS = {"resnet32": 16, "resnet56": 16, "cifar_resnet50": 16, "cifar_vgg11": 64, "cifar_vgg13": 64}
"""Channels of the first stage."""

VITS = {"deit_tiny_patch16_224": 3, "deit_small_patch16_224": 6, "deit_base_patch16_224": 12}
"""Heads of 64 channels; 14 x 14 tokens."""

VOLOS = {"volo_d1_224": ((4, 4, 8, 2), 6, 12), "volo_d2_224": ((6, 4, 10, 4), 8, 16)}
"""Blocks of each stage, heads of 32 channels in the first and in the others; patches of 8 pixels, later of 16."""

RESNETS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


def narrowed(model: str, width: float, side: float) -> tuple[str, int]:
    """A model of a recipe with a share of its channels (whole heads), and the side of its images in pixels.

    Vision transformers have patches of 8 pixels then, since small images are the reason to do this.

    Raises:
        ConfigError: it is not among the recipes' models.
    """
    name, arguments = parse_call(model)
    bare = name.rpartition(":")[2]
    if bare in CIFAR_WIDTHS:
        channels = max(4, 4 * round(width * CIFAR_WIDTHS[bare] / 4))
        return spelled(name, arguments | {"width": channels}), max(16, 4 * round(side * 32 / 4))
    if bare in VITS:
        heads, tokens = max(1, round(width * VITS[bare])), max(4, round(14 * side))
        small = {"embed_dim": 64 * heads, "num_heads": heads, "patch_size": 8, "img_size": 8 * tokens}
        return spelled(name, arguments | small), 8 * tokens
    if bare in VOLOS or bare == "VOLO":
        layers, first, rest = VOLOS.get(bare, ((4, 4, 8, 2), 4, 8))
        heads = max(1, round(width * first)), max(2, round(width * rest))
        each = heads[0], heads[1], heads[1], heads[1]
        size = 16 * max(4, round(14 * side))
        shape = {"layers": layers, "embed_dims": tuple(32 * n for n in each), "num_heads": each, "img_size": size}
        return spelled("timm.models.volo:VOLO", shape | {"use_mix_token": True}), size
    if bare in RESNETS:
        channels = tuple(max(8, 8 * round(width * n / 8)) for n in (64, 128, 256, 512))
        return spelled(f"timm:{bare}", {"channels": channels, "zero_init_last": False}), 32 * max(2, round(7 * side))
    if bare == "DeepLabV3Plus":
        return spelled(name, arguments | {"encoder_name": "resnet18"}), 32 * max(4, round(24 * side))
    raise ConfigError("this recipe's model has no smaller size", where=model, todo="Leave out scale")


def spelled(name: str, arguments: Mapping[str, object]) -> str:
    """`NAME(key=value, ...)`, which `parse_call` reads."""
    inside = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"{name}({inside})" if inside else name
