import os

import pytest
import torch

# As many processes as cores run the tests, so each, and what it starts, computes on one.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same random numbers, alone or among others."""
    torch.manual_seed(0)
