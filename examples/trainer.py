"""The Trainer of Hugging Face's transformers with a callback. Needs morphogen[transformers]; seconds on a CPU."""

import torch
from torch.nn import functional as F
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

import morphogen
from morphogen.integrations.transformers import MorphogenCallback

torch.manual_seed(0)
labels = torch.arange(512) % 4
images = F.interpolate(torch.randn(4, 3, 4, 4), 16)[labels] + 2 * torch.randn(512, 3, 16, 16)  # patterns in noise
data = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]

sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
model = ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=4, num_labels=4))


class Sizes(TrainerCallback):
    """Prints what trains."""

    def on_step_end(self, args, state, control, **kwargs):
        """After the first step of an epoch."""
        if state.global_step % 8 == 1:
            print(f"epoch {state.epoch:.0f} has begun: {sum(p.numel() for p in model.parameters()):,} parameters")

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        """At the end of an epoch."""
        print(f"epoch {state.epoch - 1:.0f} is over: loss {metrics['eval_loss']:.3f}")


method = morphogen.NetworkExpansion(depth=0.5, stages=2)
callback = MorphogenCallback(method, example={"pixel_values": images[:64]})
arguments = TrainingArguments(
    output_dir="trainer",
    num_train_epochs=6,
    per_device_train_batch_size=64,
    per_device_eval_batch_size=512,
    learning_rate=2e-3,
    eval_strategy="epoch",
    save_strategy="no",
    report_to="none",
    use_cpu=True,
    disable_tqdm=True,
)
trainer = Trainer(
    model,
    arguments,
    train_dataset=data,
    eval_dataset=data,
    callbacks=[Sizes(), callback],
)
trainer.remove_callback(PrinterCallback)
trainer.train()
print(f"at the end: {sum(p.numel() for p in model.parameters()):,} parameters")
