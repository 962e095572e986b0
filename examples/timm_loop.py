"""The loop of timm's train.py, with its parts. Needs morphogen[timm]; seconds on a CPU."""

import torch
from timm import create_model
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, NativeScaler
from torch.nn import functional as F

import morphogen

torch.manual_seed(0)
epochs, labels = 6, torch.arange(512) % 4
images = F.interpolate(torch.randn(4, 3, 4, 4), 16)[labels] + 2 * torch.randn(512, 3, 16, 16)  # patterns in noise

sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2}
model = create_model("vit_tiny_patch16_224", **sizes, num_classes=4, drop_path_rate=0.1)
optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3, weight_decay=0.05)
scheduler, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=epochs, warmup_epochs=1)
model_ema, loss_scaler = ModelEmaV3(model, decay=0.9), NativeScaler(device="cpu")
mixup, train_loss = Mixup(mixup_alpha=0.1, label_smoothing=0.1, num_classes=4), SoftTargetCrossEntropy()
method = morphogen.NetworkExpansion(depth=0.5, stages=2)
run = morphogen.attach(model, optimizer, method, example=images[:64], epochs=epochs, ema=model_ema)


@torch.no_grad()
def figures() -> str:
    """Parameters and accuracy of the average."""
    accuracy = (model_ema.module.eval()(images).argmax(1) == labels).float().mean()
    return f"{sum(p.numel() for p in model.parameters()):,} parameters, accuracy {accuracy:.3f}"


for epoch in range(epochs):
    run.begin_epoch(epoch)
    print(f"epoch {epoch} begins: {figures()}")
    model.train()
    for batch in torch.randperm(512).split(64):
        x, y = mixup(images[batch], labels[batch])
        with torch.autocast("cpu", torch.bfloat16):
            loss = train_loss(model(x), y)
        optimizer.zero_grad()
        loss_scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())
        model_ema.update(model)
    scheduler.step(epoch + 1)
    print(f"epoch {epoch} is over: {figures()}")
print(f"at the end: {figures()}")
