import gc
import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import is_hypothesis_test, settings
from PIL import Image

from traced import traced_once

# As many processes as cores run the tests, so each, and what it starts, computes on one.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
if not torch.cuda.is_available():  # Lightning has PyTorch look for a driver at every fake tensor's op; this ends it
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


def pytest_configure(config):
    """Three times as many examples of what is drawn at random with `-m nightly`."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell's background job begins
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.register_profile("nightly", max_examples=300)
    if nightly(config):
        settings.load_profile("nightly")


def pytest_collection_finish():
    """What the test files import stays: no need to look through it, every time, for what may go."""
    gc.collect()
    gc.freeze()


def nightly(config):
    return config.option.markexpr == "nightly"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """What draws at random runs in both, with more examples at night."""
    if nightly(config):
        for item in items:
            if is_hypothesis_test(getattr(item, "function", None)):
                item.add_marker(pytest.mark.nightly)


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same random numbers, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def timed_briefly():
    """How fast a pruned network is, is measured at the end of every run that prunes: three rounds will do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("morphogen.cost.inference.SECONDS", 0.0)
        yield


TRACED_ONCE = frozenset(
    f"test_{name}"
    for name in """
        accelerate any_config autoprog autoprog_bad autoprog_steps averages bad_states batches checkpoint checks
        command_line conformance contents depth_averages depth_identity depth_loops depth_models depth_optimizers
        depth_tables detection distributed docs drop_path elastic endings export faults figures folded folder frozen
        gating golden grow_once image_sizes integrations label_maps lasso lengths memory methods_bad_input
        methods_together mini_batch morph operators optimizer_states own_averages own_checkpoints own_endings
        own_loops own_masks own_tasks part plan pretrained protocol proximal prunetrain pruning rates readme recipe
        recipes recommend report rescue resolution restore resume retrain rezero room savings search segmentation
        shares_of_sizes small_images space stepper structured_init subnet token_label_training trackers train
        trainers_ranks unfreezing watching widening zero_cost
    """.split()
)
"""Tests of what is done with a structure, not of how it is found."""


@pytest.fixture(autouse=True)
def traces(request):
    """Models that are alike are read once, where that is not what is tested; see `traced.py`."""
    if request.module.__name__ not in TRACED_ONCE:
        yield
        return
    with traced_once():
        yield


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
