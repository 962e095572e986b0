"""What the papers share on ImageNet: the data, and how DeiT is trained (Touvron et al., ICML 2021)."""

from __future__ import annotations

IMAGENET = {"image_size": 224, "workers": 16}

TRANSFORMER = IMAGENET | {
    "batch_size": 1024,
    "optimizer": "adamw",
    "lr": 1e-3,
    "lr_schedule": "cosine",
    "weight_decay": 0.05,
    "label_smoothing": 0.1,
    "randaugment": 9,
    "erasing": 0.25,
}

DEIT = TRANSFORMER | {
    "warmup_epochs": 5,
    "mixup": 0.8,
    "cutmix": 1.0,
    "repeated_augmentation": 3,
    "drop_path": 0.1,
}
