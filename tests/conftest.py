import os

import numpy as np
import pytest
import torch
from PIL import Image

# As many processes as cores run the tests, so each, and what it starts, computes on one.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same random numbers, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """JPEGs of several sizes and shapes, too large for memory."""
    root, noise = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part in ("train", "val"):
        for label in ("a", "b"):
            (root / part / label).mkdir(parents=True)
            for i in range(6):
                coarse = noise.integers(0, 256, (6, 8, 3), dtype=np.uint8)
                Image.fromarray(coarse).resize((160 + 8 * i, 120), Image.Resampling.BICUBIC).save(
                    root / part / label / f"{i}.jpg", quality=95
                )
    return str(root)
