"""transformers: a class, a small configuration, an input of its kind."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .kinds import Table, ids, rows

SMALL: dict[str, Any] = {
    **dict.fromkeys("hidden_size d_model n_embd dim embedding_size word_embed_proj_dim".split(), 64),
    **dict.fromkeys("num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers".split(), 2),
    **dict.fromkeys("num_attention_heads num_heads n_head n_heads encoder_attention_heads".split(), 4),
    **dict.fromkeys("decoder_attention_heads num_decoder_layers".split(), 4),
    **dict.fromkeys("intermediate_size d_ff encoder_ffn_dim decoder_ffn_dim hidden_dim ffn_dim n_inner".split(), 128),
    **dict.fromkeys("max_position_embeddings n_positions max_seq_len max_source_positions".split(), 64),
    **dict.fromkeys("head_dim d_kv rotary_dim".split(), 16),
    **{"vocab_size": 96, "num_key_value_heads": 2, "num_decoder_layers": 2, "image_size": 64, "patch_size": 16},
    **{"num_labels": 10, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    **{"decoder_start_token_id": 1, "type_vocab_size": 2, "num_mel_bins": 16},
}
"""Settings of a configuration, wherever it has one of the name that is a whole number or as good as one."""


OWN = object()
"""Stands for what a class gives by default, or computes."""


def transformer(name: str, settings: dict[str, Any]) -> nn.Module:
    """A class of transformers with the smallest settings; dictionaries are the settings of inner configurations."""
    library = importlib.import_module("transformers")
    cls = getattr(library, name)
    return cls(configured(cls.config_class, settings))


def configured(cls: Any, settings: dict[str, Any]) -> Any:
    """A configuration, all of whose usual sizes are small; of its inner ones as far as settings are given."""
    default = cls()
    inner = {
        key: value if "model_type" in value else configured(type(getattr(default, key)), value).to_dict()
        for key, value in settings.items()
        if isinstance(value, dict) and hasattr(getattr(default, key, None), "to_dict")
    }
    given = settings.keys() | {other for other, name in cls.attribute_map.items() if name in settings}
    if len(inner) > 1:  # a text and a vision half, which have their own sizes
        given |= {"hidden_size", "image_size", "vocab_size"}
    small = {key: value for key, value in SMALL.items() if key not in given and _single(default, key)}
    return cls(**{key: value for key, value in (small | settings | inner).items() if value is not OWN})


def _single(config: Any, key: str) -> bool:
    """Whether a configuration has this setting, as one number."""
    value = getattr(config, key, "")
    return isinstance(value, (int, float)) or (value is None and key in ("n_inner", "head_dim", "pad_token_id"))


def text() -> dict[str, torch.Tensor]:
    """Token numbers, none of them padding."""
    return {"input_ids": ids(), "attention_mask": torch.ones(2, 12, dtype=torch.long)}


def tokens() -> dict[str, torch.Tensor]:
    """Token numbers alone."""
    return {"input_ids": ids()}


def translation() -> dict[str, torch.Tensor]:
    """What an encoder reads, and a decoder."""
    return {**text(), "decoder_input_ids": ids(8)}


def pixels(size: int = 64) -> Callable[[], dict[str, torch.Tensor]]:
    """Images."""
    return lambda: {"pixel_values": torch.randn(2, 3, size, size)}


def frames() -> dict[str, torch.Tensor]:
    """Clips of eight frames."""
    return {"pixel_values": torch.randn(2, 8, 3, 32, 32)}


def sound() -> dict[str, torch.Tensor]:
    """A quarter of a second at 16 kHz."""
    return {"input_values": torch.randn(2, 4000)}


def captioned() -> dict[str, torch.Tensor]:
    """Images with a sentence each."""
    return {**text(), "pixel_values": torch.randn(2, 3, 64, 64)}


def mels(frames: int = 64, *, decoder: bool = False, first: bool = True) -> Callable[[], dict[str, torch.Tensor]]:
    """Spectrograms of 16 bands, bands first or last, with what a decoder reads."""
    shape = (2, 16, frames) if first else (2, frames, 16)
    return lambda: {"input_features": torch.randn(shape), **({"decoder_input_ids": ids(8)} if decoder else {})}


SPEECH = dict(
    conv_dim=(32, 32, 32),
    conv_stride=(5, 4, 4),
    conv_kernel=(10, 4, 4),
    num_feat_extract_layers=3,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    classifier_proj_size=32,
    mask_time_prob=0.0,
)
PYRAMID = dict(
    num_encoder_blocks=4,
    depths=[1, 1, 1, 1],
    hidden_sizes=[16, 32, 48, 64],
    num_attention_heads=[1, 2, 3, 4],
    decoder_hidden_size=32,
)
SWIN = dict(
    embed_dim=16, hidden_size=OWN, num_layers=OWN, depths=[1, 1, 2], num_heads=[1, 2, 4], window_size=4, patch_size=4
)
STAGES = dict(depths=[1, 1, 1, 1], hidden_sizes=[16, 24, 32, 48], embedding_size=16)
CONVNEXT = dict(patch_size=4, depths=[1, 1, 2, 1], hidden_sizes=[16, 32, 48, 64], num_stages=4)
RESNET = {**STAGES, "model_type": "resnet", "out_features": ["stage1", "stage2", "stage3", "stage4"]}
WINDOWS = dict(text_config={}, vision_config={})

TEXT: Table = {
    **dict.fromkeys(
        """BertForSequenceClassification RobertaForMaskedLM DistilBertForSequenceClassification
        ElectraForSequenceClassification DebertaForSequenceClassification DebertaV2ForSequenceClassification
        MPNetForMaskedLM XLMRobertaForSequenceClassification RoFormerForSequenceClassification ErnieForMaskedLM
        NystromformerForSequenceClassification RemBertForMaskedLM CamembertForMaskedLM MegatronBertForMaskedLM
        LayoutLMForMaskedLM EuroBertForMaskedLM NomicBertForMaskedLM SqueezeBertForSequenceClassification
        GPT2LMHeadModel GPTNeoXForCausalLM GPTJForCausalLM OPTForCausalLM BloomForCausalLM LlamaForCausalLM
        MistralForCausalLM Qwen2ForCausalLM Qwen3ForCausalLM GemmaForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM
        PhiForCausalLM Phi3ForCausalLM StableLmForCausalLM Starcoder2ForCausalLM OlmoForCausalLM
        Olmo2ForCausalLM CohereForCausalLM GraniteForCausalLM MptForCausalLM SmolLM3ForCausalLM GlmForCausalLM
        BioGptForCausalLM OpenAIGPTLMHeadModel""".split(),
        (text, {}),
    ),
    "FalconForCausalLM": (text, {"head_dim": OWN}),
    "AlbertForSequenceClassification": (text, {"embedding_size": 32}),
    "ConvBertForSequenceClassification": (text, {"num_groups": 1, "embedding_size": 32}),
    "ModernBertForSequenceClassification": (
        text,
        {"global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "MobileBertForSequenceClassification": (text, dict(intra_bottleneck_size=32, embedding_size=32)),
    "XLNetForSequenceClassification": (text, {"d_head": 16, "d_inner": 128, "max_position_embeddings": OWN}),
    "FunnelForSequenceClassification": (
        text,
        dict(block_sizes=[1, 1], d_head=16, d_inner=128, num_decoder_layers=1, num_hidden_layers=OWN),
    ),
    "EsmForMaskedLM": (
        text,
        {"vocab_size": 96, "position_embedding_type": "rotary", "mask_token_id": 3, "token_dropout": False},
    ),
    "GPTNeoForCausalLM": (text, {"attention_types": [[["global", "local"], 1]], "window_size": 8}),
    "CodeGenForCausalLM": (text, {"rotary_dim": 8}),
    "FNetForSequenceClassification": (tokens, {}),
    "MambaForCausalLM": (tokens, {"state_size": 8, "time_step_rank": 4}),
    "MixtralForCausalLM": (text, {"num_local_experts": 2, "num_experts_per_tok": 1}),
    "T5ForConditionalGeneration": (translation, {}),
    "UMT5ForConditionalGeneration": (translation, {}),
    "BartForConditionalGeneration": (translation, {}),
    "PegasusForConditionalGeneration": (translation, {}),
    "MarianMTModel": (translation, {"decoder_vocab_size": 96}),
    "M2M100ForConditionalGeneration": (translation, {}),
    "BlenderbotForConditionalGeneration": (translation, {}),
}

SOUND: Table = {
    **dict.fromkeys(
        """Wav2Vec2ForCTC HubertForSequenceClassification WavLMForSequenceClassification UniSpeechForCTC
        Data2VecAudioForCTC""".split(),
        (sound, SPEECH),
    ),
    "Wav2Vec2ConformerForCTC": (sound, {**SPEECH, "vocab_size": 96}),
    "SEWForCTC": (sound, {**SPEECH, "squeeze_factor": 2}),
    "WhisperForConditionalGeneration": (mels(128, decoder=True), {"max_target_positions": 32}),
    "WhisperForAudioClassification": (mels(128), {"classifier_proj_size": 32}),
    "Speech2TextForConditionalGeneration": (
        mels(64, decoder=True, first=False),
        dict(input_feat_per_channel=16, conv_channels=32, max_target_positions=32),
    ),
    "ASTForAudioClassification": (lambda: {"input_values": torch.randn(2, 64, 16)}, dict(max_length=64, patch_size=8)),
    "Wav2Vec2BertForSequenceClassification": (
        mels(32, first=False),
        {"feature_projection_input_dim": 16, "classifier_proj_size": 32, "mask_time_prob": 0.0},
    ),
    "PatchTSTForClassification": (
        lambda: {"past_values": torch.randn(2, 32, 3)},
        dict(num_input_channels=3, context_length=32, patch_length=8, patch_stride=8, num_targets=10),
    ),
    "PatchTSMixerForPrediction": (
        lambda: {"past_values": torch.randn(2, 32, 3)},
        dict(num_input_channels=3, context_length=32, patch_length=8, patch_stride=8, prediction_length=8, d_model=16),
    ),
}

IMAGE: Table = {
    **dict.fromkeys(
        """ViTForImageClassification DeiTForImageClassification BeitForImageClassification Dinov2ForImageClassification
        Dinov2WithRegistersForImageClassification ViTMSNForImageClassification IJepaForImageClassification
        SiglipForImageClassification CLIPVisionModel""".split(),
        (pixels(), {}),
    ),
    "SiglipForImageClassification": (pixels(), {"vision_config": {}}),
    "SwinForImageClassification": (pixels(), SWIN),
    "Swinv2ForImageClassification": (pixels(), SWIN),
    "ConvNextForImageClassification": (pixels(), CONVNEXT),
    "ConvNextV2ForImageClassification": (pixels(), CONVNEXT),
    "ResNetForImageClassification": (pixels(), {**STAGES, "layer_type": "bottleneck"}),
    "RegNetForImageClassification": (pixels(), {**STAGES, "groups_width": 8}),
    "BitForImageClassification": (pixels(), {**STAGES, "num_groups": 4}),
    "SegformerForSemanticSegmentation": (pixels(), PYRAMID),
    "GLPNForDepthEstimation": (pixels(), PYRAMID),
    "PvtForImageClassification": (pixels(), {**PYRAMID, "patch_sizes": [4, 2, 2, 2]}),
    "PvtV2ForImageClassification": (pixels(), PYRAMID),
    "PoolFormerForImageClassification": (pixels(), dict(depths=[1, 1, 1, 1], hidden_sizes=[16, 24, 32, 48])),
    "MobileNetV1ForImageClassification": (pixels(), {"depth_multiplier": 0.25}),
    "MobileNetV2ForImageClassification": (pixels(), {"depth_multiplier": 0.35}),
    "MobileViTForImageClassification": (
        pixels(),
        dict(hidden_sizes=[32, 48, 64], neck_hidden_sizes=[8, 16, 24, 32, 48, 64, 96], patch_size=2, expand_ratio=2.0),
    ),
    "MobileViTV2ForImageClassification": (pixels(), {"width_multiplier": 0.25, "patch_size": 2}),
    "EfficientNetForImageClassification": (
        pixels(),
        dict(width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320),
    ),
    "LevitForImageClassification": (
        pixels(),
        dict(hidden_sizes=[32, 48, 64], num_attention_heads=[2, 3, 4], depths=[1, 1, 1], key_dim=[8, 8, 8]),
    ),
    "FocalNetForImageClassification": (
        pixels(),
        dict(embed_dim=16, depths=[1, 1], focal_levels=[2, 2], focal_windows=[3, 3], patch_size=4),
    ),
    "HieraForImageClassification": (
        pixels(),
        dict(
            embed_dim=16,
            image_size=[64, 64],
            depths=[1, 1, 1],
            num_heads=[1, 2, 4],
            num_query_pool=2,
            masked_unit_size=[4, 4],
        ),
    ),
    "SwiftFormerForImageClassification": (pixels(), dict(depths=[1, 1, 1, 1], embed_dims=[16, 24, 32, 48])),
    "HGNetV2ForImageClassification": (
        pixels(),
        dict(
            stem_channels=[3, 16, 24],
            stage_in_channels=[24, 32, 48, 64],
            stage_mid_channels=[16, 16, 24, 32],
            stage_out_channels=[32, 48, 64, 96],
            hidden_sizes=[32, 48, 64, 96],
            stage_num_blocks=[1, 1, 1, 1],
            stage_numb_of_layers=[2, 2, 2, 2],
        ),
    ),
    "TextNetForImageClassification": (pixels(), dict(stem_out_channels=16, hidden_sizes=[16, 16, 24, 32, 48])),
    "ViTMAEForPreTraining": (
        lambda: {**pixels()(), "noise": torch.rand(2, 16)},
        dict(
            decoder_hidden_size=32,
            decoder_num_hidden_layers=1,
            decoder_intermediate_size=64,
            decoder_num_attention_heads=2,
        ),
    ),
    "YolosForObjectDetection": (pixels(), dict(image_size=[64, 64], num_detection_tokens=10)),
    "DPTForDepthEstimation": (
        pixels(),
        dict(
            num_hidden_layers=4,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[16, 24, 32, 48],
            fusion_hidden_size=24,
        ),
    ),
    "DetrForObjectDetection": (pixels(), {"num_queries": 6, "backbone_config": RESNET}),
    "ConditionalDetrForObjectDetection": (pixels(), {"num_queries": 6, "backbone_config": RESNET}),
    "UperNetForSemanticSegmentation": (
        pixels(),
        {"hidden_size": 32, "auxiliary_channels": 16, "auxiliary_in_channels": 32, "backbone_config": RESNET},
    ),
    "DepthAnythingForDepthEstimation": (
        pixels(56),
        dict(
            patch_size=14,
            reassemble_hidden_size=64,
            neck_hidden_sizes=[16, 24, 32, 48],
            fusion_hidden_size=16,
            head_hidden_size=8,
            backbone_config=dict(
                image_size=56,
                patch_size=14,
                num_hidden_layers=4,
                reshape_hidden_states=False,
                apply_layernorm=True,
                out_features=["stage1", "stage2", "stage3", "stage4"],
            ),
        ),
    ),
    "Swin2SRForImageSuperResolution": (
        pixels(32),
        dict(
            embed_dim=24,
            depths=[1, 1],
            num_heads=[2, 2],
            window_size=4,
            image_size=32,
            patch_size=1,
            hidden_size=OWN,
            num_layers=OWN,
        ),
    ),
    "TimesformerForVideoClassification": (frames, dict(image_size=32, num_frames=8, patch_size=8)),
    "VideoMAEForVideoClassification": (frames, dict(image_size=32, num_frames=8, patch_size=8)),
    "VivitForVideoClassification": (frames, dict(image_size=32, num_frames=8, tubelet_size=[2, 8, 8])),
    "CLIPModel": (captioned, {**WINDOWS, "projection_dim": 32}),
    "SiglipModel": (lambda: {**tokens(), "pixel_values": torch.randn(2, 3, 64, 64)}, WINDOWS),
    "CLIPSegForImageSegmentation": (
        captioned,
        {**WINDOWS, "projection_dim": 32, "reduce_dim": 16, "extract_layers": [0, 1], "decoder_intermediate_size": 32},
    ),
    "ChineseCLIPModel": (captioned, {**WINDOWS, "projection_dim": 32}),
    "BlipModel": (captioned, {**WINDOWS, "projection_dim": 32}),
    "GitForCausalLM": (captioned, {"vision_config": {}}),
    "ViltForQuestionAnswering": (captioned, {"max_image_length": 20}),
}


MODELS = rows("transformers", transformer, TEXT, SOUND, IMAGE)
