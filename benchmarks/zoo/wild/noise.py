"""diffusers: denoisers and autoencoders, small."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .kinds import Table, image, rows


def diffusion(name: str, settings: dict[str, Any]) -> nn.Module:
    """A class of diffusers."""
    return getattr(importlib.import_module("diffusers"), name)(**settings)


def latents(
    channels: int = 4, size: int = 16, **more: Callable[[], torch.Tensor]
) -> Callable[[], dict[str, torch.Tensor]]:
    """Noisy images, their time step, and what else a model asks for."""
    return lambda: (
        {"sample": torch.randn(2, channels, size, size), "timestep": torch.tensor([3, 7])}
        | {name: make() for name, make in more.items()}
    )


def prompt(dim: int = 32) -> Callable[[], torch.Tensor]:
    """The embedding of a sentence."""
    return lambda: torch.randn(2, 8, dim)


BLOCKS = dict(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4)
HEADS = dict(num_layers=2, attention_head_dim=16, num_attention_heads=4)

DIFFUSERS: Table = {
    "UNet2DModel": (
        latents(3),
        dict(
            **BLOCKS,
            sample_size=16,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=8,
        ),
    ),
    "UNet2DConditionModel": (
        latents(4, encoder_hidden_states=prompt()),
        dict(
            **BLOCKS,
            sample_size=16,
            cross_attention_dim=32,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
    ),
    "UNet1DModel": (
        lambda: {"sample": torch.randn(2, 14, 16), "timestep": torch.tensor([3, 7])},
        dict(
            block_out_channels=(8, 8, 16, 16),
            in_channels=14,
            out_channels=14,
            time_embedding_type="positional",
            use_timestep_embedding=True,
            norm_num_groups=4,
            flip_sin_to_cos=False,
            freq_shift=1.0,
            out_block_type="OutConv1DBlock",
            mid_block_type="MidResTemporalBlock1D",
            down_block_types=("DownResnetBlock1D",) * 4,
            up_block_types=("UpResnetBlock1D",) * 3,
            act_fn="swish",
        ),
    ),
    "UNet3DConditionModel": (
        lambda: {
            "sample": torch.randn(2, 4, 2, 16, 16),
            "timestep": torch.tensor([3, 7]),
            "encoder_hidden_states": torch.randn(2, 8, 32),
        },
        dict(
            **BLOCKS,
            sample_size=16,
            cross_attention_dim=32,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        ),
    ),
    "DiTTransformer2DModel": (
        lambda: {
            "hidden_states": torch.randn(2, 4, 16, 16),
            "timestep": torch.tensor([3, 7]),
            "class_labels": torch.tensor([1, 2]),
        },
        dict(**HEADS, in_channels=4, out_channels=8, sample_size=16, patch_size=4, num_embeds_ada_norm=10),
    ),
    "PixArtTransformer2DModel": (
        lambda: {
            "hidden_states": torch.randn(2, 4, 16, 16),
            "timestep": torch.tensor([3, 7]),
            "encoder_hidden_states": torch.randn(2, 8, 32),
        },
        dict(
            **HEADS,
            in_channels=4,
            out_channels=8,
            sample_size=16,
            patch_size=4,
            cross_attention_dim=64,
            caption_channels=32,
            use_additional_conditions=False,
        ),
    ),
    "SD3Transformer2DModel": (
        lambda: {
            "hidden_states": torch.randn(2, 4, 16, 16),
            "timestep": torch.tensor([3, 7]),
            "encoder_hidden_states": torch.randn(2, 8, 32),
            "pooled_projections": torch.randn(2, 24),
        },
        dict(
            **HEADS,
            in_channels=4,
            out_channels=4,
            sample_size=16,
            patch_size=2,
            joint_attention_dim=32,
            caption_projection_dim=64,
            pooled_projection_dim=24,
            pos_embed_max_size=8,
        ),
    ),
    "FluxTransformer2DModel": (
        lambda: {
            "hidden_states": torch.randn(2, 16, 8),
            "timestep": torch.rand(2),
            "encoder_hidden_states": torch.randn(2, 6, 32),
            "pooled_projections": torch.randn(2, 24),
            "img_ids": torch.randn(16, 3),
            "txt_ids": torch.randn(6, 3),
        },
        dict(
            **{**HEADS, "num_layers": 1},
            num_single_layers=1,
            patch_size=1,
            in_channels=8,
            joint_attention_dim=32,
            pooled_projection_dim=24,
            axes_dims_rope=(4, 4, 8),
        ),
    ),
    "UVit2DModel": (
        lambda: {
            "input_ids": torch.randint(0, 30, (2, 8, 8)),
            "encoder_hidden_states": torch.randn(2, 6, 32),
            "pooled_text_emb": torch.randn(2, 32),
            "micro_conds": torch.rand(2, 2),
        },
        dict(
            hidden_size=32,
            cond_embed_dim=32,
            micro_cond_encode_dim=2,
            micro_cond_embed_dim=4,
            encoder_hidden_size=32,
            vocab_size=32,
            codebook_size=32,
            in_channels=32,
            block_out_channels=32,
            num_res_blocks=1,
            num_hidden_layers=1,
            num_attention_heads=4,
            block_num_heads=4,
            intermediate_size=64,
        ),
    ),
    "PriorTransformer": (
        lambda: {
            "hidden_states": torch.randn(2, 32),
            "timestep": torch.tensor([3, 7]),
            "proj_embedding": torch.randn(2, 32),
            "encoder_hidden_states": torch.randn(2, 8, 32),
        },
        dict(**HEADS, embedding_dim=32, num_embeddings=8, additional_embeddings=4),
    ),
    "Transformer2DModel": (
        lambda: {"hidden_states": torch.randn(2, 32, 8, 8), "encoder_hidden_states": torch.randn(2, 8, 24)},
        dict(num_attention_heads=4, attention_head_dim=16, in_channels=32, norm_num_groups=4, cross_attention_dim=24),
    ),
    "AutoencoderKL": (
        image(32),
        dict(
            **BLOCKS,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
        ),
    ),
    "VQModel": (
        image(32),
        dict(
            **BLOCKS,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=3,
            num_vq_embeddings=16,
        ),
    ),
    "AutoencoderTiny": (
        image(32),
        dict(
            encoder_block_out_channels=(16, 16),
            decoder_block_out_channels=(16, 16),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ),
    ),
    "AutoencoderDC": (
        image(32),
        dict(
            latent_channels=4,
            attention_head_dim=8,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(16, 32),
            decoder_block_out_channels=(16, 32),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            upsample_block_type="interpolate",
        ),
    ),
    "T2IAdapter": (image(64), dict(channels=[16, 32], num_res_blocks=1, downscale_factor=8)),
    "WanTransformer3DModel": (
        lambda: {
            "hidden_states": torch.randn(2, 4, 2, 8, 8),
            "timestep": torch.tensor([3, 7]),
            "encoder_hidden_states": torch.randn(2, 8, 32),
        },
        dict(
            **HEADS,
            patch_size=(1, 2, 2),
            in_channels=4,
            out_channels=4,
            text_dim=32,
            freq_dim=32,
            ffn_dim=96,
            rope_max_seq_len=32,
        ),
    ),
    "SanaTransformer2DModel": (
        lambda: {
            "hidden_states": torch.randn(2, 4, 8, 8),
            "timestep": torch.tensor([3, 7]),
            "encoder_hidden_states": torch.randn(2, 8, 32),
        },
        dict(
            **HEADS,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_cross_attention_heads=4,
            cross_attention_head_dim=16,
            cross_attention_dim=64,
            caption_channels=32,
            sample_size=8,
        ),
    ),
}

MODELS = rows("diffusers", diffusion, DIFFUSERS)
