"""Volumes and medical images: MONAI and the networks of nnU-Net."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from .kinds import Table, Wild, image, volume

UNET = dict(spatial_dims=3, in_channels=1, out_channels=3, channels=(8, 16, 32), strides=(2, 2))
TOKENS = dict(hidden_size=48, mlp_dim=64, num_heads=4)
VIT = dict(in_channels=1, img_size=(32, 32, 32), patch_size=(16, 16, 16), **TOKENS, num_layers=2)
SWIN = dict(in_channels=1, out_channels=3, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), window_size=2)
KERNELS = dict(kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2], filters=[8, 16, 32])
RESNET = dict(layers=[1, 1, 1, 1], block_inplanes=[8, 16, 24, 32], n_input_channels=1, num_classes=10)
LATENT = dict(channels=(8, 16), attention_levels=(False, True), num_res_blocks=1, norm_num_groups=4)

MONAI: Table = {
    "UNet": (volume(), {**UNET, "num_res_units": 2}),
    "BasicUNet": (volume(), dict(features=(8, 8, 16, 32, 32, 8))),
    "BasicUNetPlusPlus": (image(32, 1), dict(spatial_dims=2, features=(8, 8, 16, 32, 32, 8))),
    "AttentionUnet": (volume(), UNET),
    "DynUNet": (volume(), dict(spatial_dims=3, in_channels=1, out_channels=3, **KERNELS)),
    "DynUNet-deep": (
        volume(),
        dict(
            spatial_dims=3,
            in_channels=1,
            out_channels=3,
            **KERNELS,
            deep_supervision=True,
            deep_supr_num=1,
            res_block=True,
        ),
    ),
    "SegResNet": (volume(), dict(blocks_down=(1, 1, 1), blocks_up=(1, 1))),
    "SegResNetDS": (volume(), dict(init_filters=8, blocks_down=(1, 1, 1), dsdepth=2)),
    "VNet": (image(32, 1), dict(spatial_dims=2, in_channels=1, out_channels=3, dropout_dim=2)),
    "UNETR": (volume(), dict(in_channels=1, out_channels=3, img_size=(32, 32, 32), feature_size=8, **TOKENS)),
    "SwinUNETR": (volume(64), SWIN),
    "SwinUNETR-v2": (image(64, 1), {**SWIN, "spatial_dims": 2, "use_v2": True}),
    "ViT": (volume(), {**VIT, "classification": True, "num_classes": 10}),
    "ViTAutoEnc": (volume(), {**VIT, "out_channels": 1}),
    "MaskedAutoEncoderViT": (
        volume(),
        {
            **VIT,
            "masking_ratio": 0.5,
            "decoder_hidden_size": 48,
            "decoder_mlp_dim": 64,
            "decoder_num_layers": 1,
            "decoder_num_heads": 4,
        },
    ),
    "DenseNet": (
        volume(),
        dict(spatial_dims=3, in_channels=1, out_channels=10, init_features=16, growth_rate=8, block_config=(2, 2, 2)),
    ),
    "ResNet": (volume(), {**RESNET, "block": "bottleneck"}),
    "EfficientNetBN": (image(64), dict(model_name="efficientnet-b0", pretrained=False, num_classes=10)),
    "HighResNet": (volume(16), dict(out_channels=3)),
    "FlexibleUNet": (
        image(64),
        dict(in_channels=3, out_channels=3, backbone="resnet18", decoder_channels=(64, 48, 32, 24, 16)),
    ),
    "MedNeXt": (
        volume(),
        dict(init_filters=8, in_channels=1, out_channels=3, blocks_down=(1, 1), blocks_bottleneck=1, blocks_up=(1, 1)),
    ),
    "AutoEncoder": (volume(), {**UNET, "strides": (2, 2, 2), "num_res_units": 1}),
    "AutoencoderKL": (image(32, 1), dict(spatial_dims=2, **LATENT)),
    "DiffusionModelUNet": (
        lambda: (torch.randn(2, 1, 32, 32), torch.tensor([3, 7])),
        dict(spatial_dims=2, in_channels=1, out_channels=1, **LATENT, num_head_channels=8),
    ),
    "VQVAE": (
        image(32, 1),
        dict(
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            channels=(16, 32),
            num_res_layers=1,
            num_res_channels=(16, 32),
            downsample_parameters=((2, 4, 1, 1),) * 2,
            upsample_parameters=((2, 4, 1, 1, 0),) * 2,
            num_embeddings=16,
            embedding_dim=16,
        ),
    ),
    "Quicknat": (image(32, 1), dict(num_classes=4, num_filters=16)),
    "PatchDiscriminator": (image(64), dict(spatial_dims=2, channels=16, in_channels=3)),
    "RegUNet": (volume(16), dict(spatial_dims=3, in_channels=1, num_channel_initial=8, depth=2)),
    "MILModel": (
        lambda: torch.randn(2, 3, 3, 64, 64),
        dict(num_classes=4, pretrained=False, mil_mode="att_trans", backbone="resnet18", trans_blocks=1),
    ),
}


def monai(name: str, settings: dict[str, Any]) -> nn.Module:
    """A network of MONAI."""
    return getattr(importlib.import_module("monai.networks.nets"), name.partition("-")[0])(**settings)


def nnunet(name: str) -> nn.Module:
    """A network of nnU-Net."""
    blocks = "n_blocks_per_stage" if name.startswith("Residual") else "n_conv_per_stage"
    make = getattr(importlib.import_module("dynamic_network_architectures.architectures.unet"), name)
    return make(
        input_channels=1,
        n_stages=3,
        features_per_stage=(8, 16, 32),
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=(1, 2, 2),
        **{blocks: (2, 2, 2)},
        num_classes=3,
        n_conv_per_stage_decoder=(2, 2),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )


MODELS: dict[str, Wild] = {
    **{
        f"monai:{name}": Wild(lambda name=name, s=settings: monai(name, s), example)
        for name, (example, settings) in MONAI.items()
    },
    **{
        f"dynamic_network_architectures:{name}": Wild(lambda name=name: nnunet(name), volume())
        for name in ("PlainConvUNet", "ResidualEncoderUNet")
    },
}
