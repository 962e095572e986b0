"""What a first trace imports of PyTorch: processes forked from one that has imported this need not do so each."""

import torch

torch.export.export(torch.nn.Linear(1, 1), (torch.zeros(1, 1),), strict=False)
