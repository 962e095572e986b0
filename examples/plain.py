"""A plain PyTorch loop; torch alone is enough. Seconds on a CPU."""

import torch
from torch import nn
from torch.nn import functional as F

import morphogen

torch.manual_seed(0)
epochs, labels = 6, torch.arange(512) % 4
images = F.interpolate(torch.randn(4, 3, 4, 4), 16)[labels] + 2 * torch.randn(512, 3, 16, 16)  # patterns in noise

convolutions = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, 2), nn.ReLU()
model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
method = morphogen.NetworkExpansion(width=0.5, stages=3) + morphogen.ProgressiveResizing()
run = morphogen.attach(model, optimizer, method, example=images[:64], epochs=epochs)


@torch.no_grad()
def figures() -> str:
    """Parameters and accuracy."""
    accuracy = (model.eval()(images).argmax(1) == labels).float().mean()
    return f"{sum(p.numel() for p in model.parameters()):,} parameters, accuracy {accuracy:.3f}"


for epoch in range(epochs):
    run.begin_epoch(epoch)
    print(f"epoch {epoch} begins: {figures()}")
    model.train()
    for batch in torch.randperm(512).split(64):
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch} is over: {figures()}")
print(f"at the end: {figures()}")
