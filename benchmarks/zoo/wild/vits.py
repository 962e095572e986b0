"""vit_pytorch: a file and its class, small."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from .kinds import Table, image, rows, video


def vit(path: str, settings: dict[str, Any]) -> nn.Module:
    """A class of vit_pytorch."""
    file, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"vit_pytorch.{file}"), name)(**settings)


VIT = dict(image_size=32, patch_size=8, num_classes=10, dim=64, depth=2, heads=4, mlp_dim=96, dim_head=16)
CLIP = dict(image_size=32, frames=8, image_patch_size=8, frame_patch_size=2) | {
    key: VIT[key] for key in "num_classes dim depth heads mlp_dim dim_head".split()
}
FOUR = dict(dim=(16, 24, 32, 48), depth=(1, 1, 1, 1), num_classes=10)
TWINS: dict[str, int] = {
    f"s{i}_{key}": value
    for i, dim in enumerate((16, 24, 32, 48), 1)
    for key, value in dict(emb_dim=dim, patch_size=2, local_patch_size=2, global_k=2, depth=1).items()
}
VITS: Table = {
    **dict.fromkeys(
        """vit.ViT simple_vit.SimpleViT deepvit.DeepViT parallel_vit.ViT rvt.RvT
        vit_for_small_dataset.ViT simple_vit_with_qk_norm.SimpleViT simple_vit_with_register_tokens.SimpleViT
        simple_vit_with_value_residual.SimpleViT simple_uvit.SimpleUViT vit_with_patch_merger.ViT
        learnable_memory_vit.ViT simple_flash_attn_vit.SimpleViT
        vit_with_patch_dropout.ViT""".split(),
        (image(32), VIT),
    ),
    **dict.fromkeys(["cait.CaiT", "xcit.XCiT"], (image(32), {**VIT, "cls_depth": 1})),
    "cct.CCT": (
        image(32),
        dict(
            img_size=32,
            embedding_dim=64,
            n_conv_layers=2,
            kernel_size=3,
            stride=1,
            padding=1,
            num_layers=2,
            num_heads=4,
            mlp_ratio=2,
            num_classes=10,
        ),
    ),
    "cross_vit.CrossViT": (
        image(48),
        dict(
            image_size=48,
            num_classes=10,
            sm_dim=32,
            lg_dim=48,
            sm_enc_heads=2,
            sm_enc_mlp_dim=64,
            sm_enc_dim_head=16,
            lg_enc_depth=1,
            lg_enc_heads=2,
            lg_enc_mlp_dim=64,
            lg_enc_dim_head=16,
            cross_attn_depth=1,
            cross_attn_heads=2,
            cross_attn_dim_head=16,
            depth=1,
        ),
    ),
    "pit.PiT": (image(32), {**VIT, "depth": (1, 1), "patch_size": 4}),
    "levit.LeViT": (
        image(64),
        dict(
            image_size=64,
            num_classes=10,
            stages=2,
            dim=(32, 48),
            depth=1,
            heads=(2, 3),
            mlp_mult=2,
            dim_key=8,
            dim_value=16,
        ),
    ),
    "cvt.CvT": (
        image(64),
        dict(
            num_classes=10, s1_emb_dim=16, s2_emb_dim=32, s2_heads=2, s2_depth=1, s3_emb_dim=48, s3_heads=3, s3_depth=1
        ),
    ),
    "twins_svt.TwinsSVT": (image(32), dict(num_classes=10, **TWINS)),
    "regionvit.RegionViT": (image(64), {**FOUR, "window_size": 2, "local_patch_size": 4}),
    "crossformer.CrossFormer": (
        image(64),
        {**FOUR, "dim": (32, 48, 64, 96), "global_window_size": (4, 2, 2, 1), "local_window_size": 2},
    ),
    "scalable_vit.ScalableViT": (
        image(64),
        dict(
            num_classes=10,
            dim=16,
            heads=(1, 2, 4, 8),
            depth=(1, 1, 1, 1),
            ssa_dim_key=8,
            reduction_factor=(8, 4, 2, 1),
            window_size=(4, 4, 2, None),
        ),
    ),
    "sep_vit.SepViT": (image(56), dict(num_classes=10, dim=16, dim_head=8, heads=(1, 2), depth=(1, 1))),
    "max_vit.MaxViT": (
        image(64),
        dict(num_classes=10, dim=16, dim_head=8, dim_conv_stem=16, depth=(1, 1), window_size=2),
    ),
    "nest.NesT": (
        image(32),
        dict(
            image_size=32,
            patch_size=4,
            num_classes=10,
            dim=16,
            heads=2,
            num_hierarchies=2,
            block_repeats=(1, 1),
            dim_head=16,
        ),
    ),
    "mobile_vit.MobileViT": (
        image(64),
        dict(
            image_size=(64, 64),
            dims=[32, 40, 48],
            channels=[8, 16, 24, 24, 32, 32, 48, 48, 64, 64, 96],
            num_classes=10,
            depths=(1, 1, 1),
        ),
    ),
    "t2t.T2TViT": (image(64), dict(image_size=64, num_classes=10, dim=64, depth=2, heads=4, mlp_dim=96, dim_head=16)),
    "vivit.ViViT": (
        video(8),
        {**{k: v for k, v in CLIP.items() if k != "depth"}, "spatial_depth": 1, "temporal_depth": 1},
    ),
    "vit_1d.ViT": (
        lambda: torch.randn(2, 3, 64),
        dict(seq_len=64, patch_size=8, **{k: v for k, v in VIT.items() if k[-4:] != "size"}),
    ),
    "vit_3d.ViT": (video(8), CLIP),
    "simple_vit_3d.SimpleViT": (video(8), CLIP),
    "look_vit.LookViT": (
        image(48),
        dict(
            dim=64,
            image_size=48,
            num_classes=10,
            depth=1,
            heads=4,
            dim_head=16,
            cross_attn_heads=4,
            cross_attn_dim_head=16,
            mlp_factor=2,
            highres_mlp_factor=2,
        ),
    ),
}

MODELS = rows("vit_pytorch", vit, VITS)
