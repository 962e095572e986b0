"""Images: segmentation_models_pytorch, ultralytics, effdet, pytorchcv, spandrel, and torchvision's video,
optical flow and backbones of detectors."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable
from typing import Any

from torch import nn

from .kinds import Wild, image, video


def segmenter(name: str, **settings: Any) -> nn.Module:
    """A decoder of segmentation_models_pytorch on a small encoder."""
    settings = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 10, **settings}
    return getattr(importlib.import_module("segmentation_models_pytorch"), name)(**settings)


FPN = dict(decoder_pyramid_channels=32, decoder_segmentation_channels=32)
SEGMENTERS: dict[str, dict[str, Any]] = {
    "Unet": dict(decoder_channels=(64, 48, 32, 24, 16)),
    "Unet-timm-mobilenetv3_small_050": dict(
        encoder_name="tu-mobilenetv3_small_050", decoder_channels=(64, 48, 32, 24, 16)
    ),
    "Unet-mit_b0": dict(encoder_name="mit_b0", decoder_channels=(64, 48, 32, 24, 16)),
    "UnetPlusPlus": dict(encoder_name="timm-mobilenetv3_small_minimal_100", decoder_channels=(64, 48, 32, 24, 16)),
    "MAnet": dict(
        encoder_name="timm-mobilenetv3_small_minimal_100",
        decoder_channels=(64, 48, 32, 24, 16),
        decoder_pab_channels=32,
    ),
    "Linknet": {},
    "FPN": FPN,
    "FPN-efficientnet-b0": dict(encoder_name="efficientnet-b0", **FPN),
    "PSPNet": dict(psp_out_channels=64),
    "DeepLabV3": dict(encoder_name="mobilenet_v2", decoder_channels=32),
    "DeepLabV3Plus": dict(encoder_name="mobilenet_v2", decoder_channels=32),
    "UPerNet": dict(encoder_name="mobileone_s0", decoder_channels=32),
    "Segformer": dict(encoder_name="mit_b0", decoder_segmentation_channels=32),
}


def yolo(name: str) -> nn.Module:
    """A model of ultralytics, from its own description."""
    tasks = importlib.import_module("ultralytics.nn.tasks")
    kinds = {"cls": "ClassificationModel", "seg": "SegmentationModel", "pose": "PoseModel", "obb": "OBBModel"}
    kind = next((of for task, of in kinds.items() if name.endswith(f"-{task}")), "DetectionModel")
    with contextlib.redirect_stdout(io.StringIO()):
        return getattr(tasks, kind)(f"{name}.yaml", verbose=False)


YOLOS = """yolov8n yolo11n yolo11n-cls yolo11n-seg yolo11n-pose yolo11n-obb yolov5n yolov3-tiny yolov6n yolov9t yolov10n
    yolo12n yolo26n yolov8n-ghost""".split()


def efficientdet(name: str) -> nn.Module:
    """A detector of effdet, few and narrow layers in its neck."""
    library = importlib.import_module("effdet")
    config = library.get_efficientdet_config(name)
    config.image_size, config.num_classes, config.fpn_channels, config.fpn_cell_repeats = [128, 128], 10, 32, 2
    return library.EfficientDet(config, pretrained_backbone=False)


PYTORCHCV = """resnet20_cifar10 preresnet20_cifar10 seresnet20_cifar10 sepreresnet20_cifar10 densenet40_k12_cifar10
    diaresnet20_cifar10 shakedropresnet20_cifar10 rir_cifar10 nin_cifar10 xdensenet40_2_k24_bc_cifar10
    shufflenet_g3_wd4 shufflenetv2_wd2 menet108_8x1_g3 squeezenet_v1_1 mobilenet_wd4 mobilenetv2_wd4 igcv3_wd4
    condensenet74_c8_g8 darknet_tiny peleenet mnasnet_small ghostnet""".split()


def gluon(name: str) -> nn.Module:
    """A model of pytorchcv."""
    return importlib.import_module("pytorchcv.model_provider").get_model(name, pretrained=False)


def restorer(name: str, **settings: Any) -> nn.Module:
    """An architecture of spandrel (image restoration, super-resolution)."""
    return getattr(importlib.import_module(f"spandrel.architectures.{name}"), name)(**settings)


WINDOWED = dict(
    img_size=16,
    embed_dim=24,
    depths=[1, 1],
    num_heads=[2, 2],
    window_size=4,
    mlp_ratio=2,
    upscale=2,
    upsampler="pixelshuffle",
)
RESTORERS: dict[str, dict[str, Any]] = {
    "SwinIR": WINDOWED,
    "HAT": {**WINDOWED, "squeeze_factor": 6, "num_feat": 16},
    "NAFNet": dict(width=16, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1]),
    "SPAN": dict(num_in_ch=3, num_out_ch=3, feature_channels=24, upscale=2, norm=False),
    "OmniSR": dict(num_feat=16, block_num=1, window_size=4, up_scale=2),
    "PLKSR": dict(dim=32, n_blocks=2, upscaling_factor=2),
    "RCAN": dict(scale=2, n_resgroups=2, n_resblocks=2, n_feats=32, reduction=8),
    "Compact": dict(num_feat=16, num_conv=3, upscale=2),
}


def clip_of(name: str) -> nn.Module:
    """A video network of torchvision, one block a stage where it is told so."""
    video = importlib.import_module("torchvision.models.video")
    if name in ("r3d", "mc3", "r2plus1d"):
        resnet = importlib.import_module("torchvision.models.video.resnet")
        convs = {
            "r3d": [resnet.Conv3DSimple] * 4,
            "r2plus1d": [resnet.Conv2Plus1D] * 4,
            "mc3": [resnet.Conv3DSimple] + [resnet.Conv3DNoTemporal] * 3,
        }
        stem = resnet.R2Plus1dStem if name == "r2plus1d" else resnet.BasicStem
        return resnet.VideoResNet(resnet.BasicBlock, convs[name], [1, 1, 1, 1], stem, num_classes=10)
    if name == "swin3d":
        return video.SwinTransformer3d([2, 4, 4], 16, [1, 1, 2], [1, 2, 4], [2, 4, 4], num_classes=10)
    if name == "mvit":
        config = importlib.import_module("torchvision.models.video.mvit").MSBlockConfig
        kv = [[1, 4, 4], [1, 2, 2]]
        blocks = [
            config(1, 16, 32, [3, 3, 3], [3, 3, 3], [1, 1, 1], kv[0]),
            config(2, 32, 32, [3, 3, 3], [3, 3, 3], [1, 2, 2], kv[1]),
        ]
        return video.MViT(
            (32, 32),
            8,
            blocks,
            residual_pool=True,
            residual_with_cls_embed=False,
            rel_pos_embed=True,
            proj_after_attn=True,
            num_classes=10,
        )
    raise KeyError(name)


def flow(name: str) -> nn.Module:
    """RAFT with narrow encoders."""
    raft = importlib.import_module("torchvision.models.optical_flow.raft")
    residual = name == "raft_large"
    return raft._raft(
        weights=None,
        progress=False,
        feature_encoder_layers=(16, 16, 24, 32, 48),
        feature_encoder_block=raft.ResidualBlock if residual else raft.BottleneckBlock,
        feature_encoder_norm_layer=nn.InstanceNorm2d,
        context_encoder_layers=(16, 16, 24, 32, 64),
        context_encoder_block=raft.ResidualBlock if residual else raft.BottleneckBlock,
        context_encoder_norm_layer=nn.BatchNorm2d if residual else None,
        corr_block_num_levels=2,
        corr_block_radius=2,
        motion_encoder_corr_layers=(32,),
        motion_encoder_flow_layers=(32, 16),
        motion_encoder_out_channels=32,
        recurrent_block_hidden_state_size=32,
        recurrent_block_kernel_size=((3, 3),),
        recurrent_block_padding=((1, 1),),
        flow_head_hidden_size=32,
        use_mask_predictor=residual,
    )


def backbone(name: str) -> nn.Module:
    """The backbone of one of torchvision's detectors: the whole has lists of boxes, which cannot be exported."""
    make = getattr(importlib.import_module("torchvision.models.detection"), name)
    return make(weights=None, weights_backbone=None, num_classes=10).backbone


DETECTORS = "fasterrcnn_mobilenet_v3_large_fpn ssdlite320_mobilenet_v3_large retinanet_resnet50_fpn".split()


def _named(
    package: str, build: Callable[..., nn.Module], example: Any, table: dict[str, dict[str, Any]]
) -> dict[str, Wild]:
    return {
        f"{package}:{name}": Wild(
            lambda name=name, settings=settings: build(name.partition("-")[0], **settings), example
        )
        for name, settings in table.items()
    }


def _alone(package: str, build: Callable[[str], nn.Module], example: Any, names: list[str]) -> dict[str, Wild]:
    return {f"{package}:{name}": Wild(lambda name=name: build(name), example) for name in names}


MODELS: dict[str, Wild] = {
    **_named("segmentation_models_pytorch", segmenter, image(64), SEGMENTERS),
    **_alone("ultralytics", yolo, image(64), YOLOS),
    **_alone("effdet", efficientdet, image(128), ["tf_efficientdet_lite0", "efficientdet_d0", "efficientdetv2_dt"]),
    **_alone("pytorchcv", gluon, image(32), PYTORCHCV[:10]),
    **_alone("pytorchcv", gluon, image(224), PYTORCHCV[10:]),
    **_named("spandrel", restorer, image(16), RESTORERS),
    **_alone("torchvision.video", clip_of, video(8, 32), ["r3d", "mc3", "r2plus1d", "swin3d", "mvit"]),
    **_alone("torchvision.flow", flow, lambda: (image(128)(), image(128)()), ["raft_small", "raft_large"]),
    **_alone("torchvision.detection", backbone, image(128), DETECTORS),
}
