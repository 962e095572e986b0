"""`morphogen label-maps`: what token labelling learns from."""

from __future__ import annotations

from ..machine.device import find_device
from ..machine.folder import owned
from ..train.config import LabelMapsConfig
from ..train.sources import training_images
from ..train.token_labels.teacher import load_teacher, make_label_maps
from .command import Command


def run_label_maps(config: LabelMapsConfig) -> int:
    """Make label maps for token labelling with a teacher; a run that was stopped continues where it stopped."""
    images = training_images(config.data)
    with owned(config.output):
        count, agreement = make_label_maps(
            load_teacher(config.teacher),
            images,
            config.output,
            top_k=config.top_k,
            image_size=config.image_size,
            batch_size=config.batch_size,
            workers=config.workers,
            device=find_device(config.device),
        )
    print(f"{count} label maps made, {len(images) - count} were there; they are in {config.output}")
    if count:
        print(f"the teacher ranks the image's own class first for {agreement:.1f} % of those made")
    return 0


LABEL_MAPS = Command(
    "label-maps",
    LabelMapsConfig,
    run_label_maps,
    """examples:
  morphogen label-maps --data imagenet:/data/imagenet --teacher dm_nfnet_f6 --image_size 576 --output maps
  morphogen label-maps --data /data/flowers \\
      --teacher "resnet50(checkpoint_path='teacher.safetensors', num_classes=102)" --output maps""",
    again="continue with the same command",
)
