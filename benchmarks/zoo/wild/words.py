"""Words, and words with images: open_clip and x_transformers."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .kinds import Wild, ids, image

TEXT = dict(context_length=12, vocab_size=96, width=64, heads=4, layers=2)
VISION: dict[str, dict[str, Any]] = {
    "vit": dict(image_size=32, layers=2, width=64, head_width=16, patch_size=8),
    "resnet": dict(image_size=64, layers=(1, 1, 1, 1), width=16, patch_size=None),
    "timm": dict(image_size=64, timm_model_name="convnext_atto", timm_pool="avg", timm_proj="linear"),
}


def clip(name: str) -> nn.Module:
    """An image and a text encoder of open_clip."""
    library = importlib.import_module("open_clip")
    if name == "coca":
        coca = importlib.import_module("open_clip.coca_model")
        words = {**TEXT, "embed_cls": True, "output_tokens": True, "pad_id": 0}
        seen = {
            **VISION["vit"],
            "attentional_pool": True,
            "output_tokens": True,
            "attn_pooler_queries": 8,
            "attn_pooler_heads": 4,
        }
        model = coca.CoCa(64, coca.MultimodalCfg(**{**TEXT, "n_queries": 8, "attn_pooler_heads": 4}), words, seen)
        nn.init.normal_(model.text_decoder.text_projection, std=0.02)  # which it leaves as the memory was
        return model
    return library.CLIP(32, library.CLIPVisionCfg(**VISION[name]), library.CLIPTextCfg(**TEXT), output_dict=True)


def layers(kind: str, **settings: Any) -> nn.Module:
    """An encoder or a decoder of x_transformers."""
    settings = {"dim": 64, "depth": 2, "heads": 4, "attn_dim_head": 16, **settings}
    return getattr(importlib.import_module("x_transformers"), kind)(**settings)


def words(kind: str, **settings: Any) -> nn.Module:
    """A language model of x_transformers."""
    library = importlib.import_module("x_transformers")
    return library.TransformerWrapper(num_tokens=96, max_seq_len=32, attn_layers=layers(kind, **settings))


def seen(**settings: Any) -> nn.Module:
    """A vision transformer of x_transformers."""
    library = importlib.import_module("x_transformers")
    return library.ViTransformerWrapper(
        image_size=32, patch_size=8, num_classes=10, attn_layers=layers("Encoder", **settings)
    )


def measured(**settings: Any) -> nn.Module:
    """Of x_transformers, on vectors in place of words."""
    library = importlib.import_module("x_transformers")
    return library.ContinuousTransformerWrapper(
        dim_in=8, dim_out=10, max_seq_len=32, attn_layers=layers("Encoder", **settings)
    )


X: dict[str, tuple[Callable[..., nn.Module], Callable[[], Any]]] = {
    "decoder": (lambda: words("Decoder"), ids),
    "decoder-rotary": (
        lambda: words("Decoder", rotary_pos_emb=True, use_rmsnorm=True, ff_glu=True, ff_swish=True),
        ids,
    ),
    "decoder-alibi": (lambda: words("Decoder", alibi_pos_bias=True, attn_kv_heads=2), ids),
    "encoder-relative": (lambda: words("Encoder", rel_pos_bias=True, attn_pre_talking_heads=True), ids),
    "encoder-sandwich": (lambda: words("Encoder", sandwich_norm=True, attn_qk_norm=True, ff_relu_squared=True), ids),
    "vision": (seen, image(32)),
    "vision-gated": (lambda: seen(gate_residual=True, attn_gate_values=True), image(32)),
    "continuous": (measured, lambda: torch.randn(2, 12, 8)),
}

MODELS: dict[str, Wild] = {
    **{
        f"open_clip:{name}": Wild(lambda name=name: clip(name), lambda size=size: (image(size)(), ids()))
        for name, size in {"vit": 32, "resnet": 64, "timm": 64, "coca": 32}.items()
    },
    **{f"x_transformers:{name}": Wild(build, example) for name, (build, example) in X.items()},
}
