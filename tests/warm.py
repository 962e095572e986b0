"""What the processes of tests import of other libraries, and a first trace of PyTorch: those forked from one that has
imported this need not do so each.
"""

import accelerate  # noqa: F401
import jsonargparse  # noqa: F401
import lightning  # noqa: F401
import matplotlib.figure  # noqa: F401
import rich.console  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch
import transformers.trainer  # noqa: F401

import morphogen.cli  # noqa: F401

torch.export.export(torch.nn.Linear(1, 1), (torch.zeros(1, 1),), strict=False)
