"""A loop with Hugging Face's Accelerate, on any number of processes. Needs morphogen[accelerate]; seconds on a CPU."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import morphogen
from morphogen.integrations.accelerate import carry

torch.manual_seed(0)
epochs, labels = 6, torch.arange(512) % 4
images = F.interpolate(torch.randn(4, 3, 4, 4), 16)[labels] + 2 * torch.randn(512, 3, 16, 16)  # patterns in noise

accelerator = Accelerator(gradient_accumulation_steps=2)
convolutions = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, 2), nn.ReLU()
model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 4)).to(accelerator.device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
method = morphogen.NetworkExpansion(width=0.5, stages=3)
run = morphogen.attach(model, optimizer, method, example=images[:64].to(accelerator.device), epochs=epochs)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
loader = DataLoader(TensorDataset(images, labels), batch_size=32, shuffle=True)
model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
carry(accelerator, run)  # save_state and load_state


@torch.no_grad()
def figures() -> str:
    """Parameters and accuracy."""
    x = images.to(accelerator.device)
    accuracy = (model.eval()(x).argmax(1).cpu() == labels).float().mean()
    return f"{sum(p.numel() for p in model.parameters()):,} parameters, accuracy {accuracy:.3f}"


for epoch in range(epochs):
    run.begin_epoch(epoch)
    accelerator.print(f"epoch {epoch} begins: {figures()}")
    model.train()
    for x, y in loader:
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(x), y)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    scheduler.step()
    accelerator.print(f"epoch {epoch} is over: {figures()}")
accelerator.print(f"at the end: {figures()}")
