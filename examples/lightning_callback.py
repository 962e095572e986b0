"""Lightning's Trainer with a callback. Needs morphogen[lightning]; seconds on a CPU."""

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import morphogen
from morphogen.integrations.lightning import MorphogenCallback

torch.manual_seed(0)
epochs, labels = 6, torch.arange(512) % 4
images = F.interpolate(torch.randn(4, 3, 4, 4), 16)[labels] + 2 * torch.randn(512, 3, 16, 16)  # patterns in noise
data = TensorDataset(images, labels)


class Classifier(L.LightningModule):
    """An ordinary LightningModule."""

    def __init__(self):
        super().__init__()
        convolutions = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, 2), nn.ReLU()
        self.net = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 4))

    def training_step(self, batch, _):
        """The loss of a batch."""
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, _):
        """The accuracy of a batch."""
        self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def on_train_epoch_start(self):
        """What trains from here on."""
        print(f"epoch {self.current_epoch} begins: {sum(p.numel() for p in self.net.parameters()):,} parameters")

    def on_validation_epoch_end(self):
        """What it has become."""
        print(f"epoch {self.current_epoch} is over: accuracy {self.trainer.callback_metrics['accuracy']:.3f}")

    def configure_optimizers(self):
        """AdamW, and a cosine."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)]


module, quiet = Classifier(), dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
method = morphogen.NetworkExpansion(width=0.5, stages=3) + morphogen.ProgressiveResizing()
callback = MorphogenCallback(method, "net", example=images[:64])
trainer = L.Trainer(
    callbacks=[callback],
    accelerator="cpu",
    max_epochs=epochs,
    num_sanity_val_steps=0,
    **quiet,
)
trainer.fit(module, DataLoader(data, 64, shuffle=True), DataLoader(data, 512))
print(f"at the end: {sum(p.numel() for p in module.net.parameters()):,} parameters")
