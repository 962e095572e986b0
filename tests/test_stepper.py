"""The ordinary speed-ups change the speed; a batch that does not fit goes in pieces with the same gradients."""

import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensor

import morphogen
from morphogen.errors import ConfigError, TrainingError
from morphogen.machine.private import compilations
from morphogen.methods import build_method
from morphogen.train import compiled
from morphogen.train.config import Recipe
from morphogen.train.loop import Run
from morphogen.train.sources import load_data

from nets import deit


class Plain(nn.Sequential):
    """No batch norm, which would see the pieces of a batch one by one."""

    room = 1_000
    """Images that memory is there for."""

    def __init__(self, num_classes):
        convs = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()
        super().__init__(*convs, nn.Flatten(), nn.Linear(16 * 144, num_classes))

    def forward(self, x):
        if self.training and len(x) > Plain.room and not isinstance(x, FakeTensor):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 EiB")
        return super().forward(x)


def run_of(method="NetworkExpansion(stages=3)", model="test_stepper:Plain", **settings):
    own = {"epochs": 3, "batch_size": 32, "images": 96, "test_images": 50, "lr": 0.05}
    recipe = Recipe(model, **{**own, **settings})
    return Run(recipe, load_data(recipe), build_method(method), method, 0)


def losses(run):
    return [epoch.loss for epoch in run.epochs()]


def same(one, other, **tolerance):
    left, right = one.result.state_dict(), other.result.state_dict()
    for name, tensor in left.items():
        torch.testing.assert_close(right[name], tensor, **(tolerance or {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize("clip_grad", [0.0, 0.5])
def test_a_batch_in_pieces_has_the_same_gradients(monkeypatch, clip_grad):
    whole, cut = (run_of(clip_grad=clip_grad) for _ in range(2))
    assert losses(whole)[-1] < losses(run_of(clip_grad=clip_grad, lr=1e-6))[-1]
    monkeypatch.setattr(Plain, "room", 10)
    with pytest.warns(UserWarning, match="does not fit into memory: they go in") as told:
        losses(cut)
    assert [str(w.message).split(" go in ")[1][:8] for w in told] == ["2 pieces", "4 pieces"] * 3  # once a size
    assert cut.stepper.pieces == 4
    same(whole, cut, rtol=1e-4, atol=1e-5)


def test_a_batch_whose_smallest_piece_does_not_fit_is_told_of(monkeypatch):
    monkeypatch.setattr(Plain, "room", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(TrainingError, match="does not fit into memory; expected memory for one image"):
            losses(run_of())


def test_other_errors_of_a_step_are_not_taken_for_want_of_memory(monkeypatch):
    run = run_of()
    monkeypatch.setattr(Plain, "forward", lambda self, x: x.view(3, 3))
    with pytest.raises(RuntimeError, match="shape"):
        losses(run)


@pytest.fixture
def eager_backend(monkeypatch):
    """What is compiled runs as it was written: compiling takes minutes, and how often does not depend on it."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


@pytest.mark.parametrize(
    "method",
    [
        "NetworkExpansion(stages=3)",
        pytest.param("PruneTrain(ratio=0.9, interval=1, threshold=0.02)", marks=pytest.mark.nightly),
    ],
)
def test_every_size_is_compiled_once(eager_backend, method):
    torch.compiler.reset()
    plain, fast = run_of(method), run_of(method, compile=True)
    before = compilations()
    losses(fast)
    sizes = len({subnetwork for epoch, subnetwork in fast.attached.history if epoch < 3})
    assert compilations() - before == sizes > 1
    assert fast.ledger.seconds["compile"] > 0 == run_of().ledger.seconds["compile"]
    losses(plain)
    same(plain, fast)
    again = run_of(method, compile=True)
    losses(again)
    assert compilations() - before == sizes  # sizes that were seen before


def test_the_limit_of_recompilations_never_falls_back_silently(eager_backend, monkeypatch):
    torch.compiler.reset()
    run = run_of(compile=True)
    monkeypatch.setattr(compiled, "ROOM", 0)
    with torch._dynamo.config.patch(recompile_limit=1):
        with pytest.raises(TrainingError, match="the model cannot be compiled"):
            losses(run)


VIT = "timm:vit_tiny_patch16_224(img_size=16, patch_size=8, embed_dim=16, depth=4, num_heads=2)"


@pytest.mark.parametrize(
    "model, settings, images",
    [("nets:Tower", ", dimensions=('depth',)", 96), pytest.param(VIT, "", 288, marks=pytest.mark.nightly)],
    ids=["tower", "vit"],
)
def test_a_search_runs_as_it_is(model, settings, images, eager_backend):
    torch.compiler.reset()
    method = f"AutoProg(ratio=0.5, stages=2, search_epochs=1{settings})"
    before = compilations()
    run = run_of(method, model, compile=True, epochs=6, images=images, optimizer="adamw", lr=1e-3)
    losses(run)
    assert len(run.ledger.searches) == 1
    assert compilations() - before == len({s for _, s in run.attached.history[1:]})


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fused_updates_are_the_same(optimizer):
    settings = {"optimizer": optimizer, "lr": 0.05 if optimizer == "sgd" else 1e-3}
    plain, fused = run_of(**settings), run_of(**settings, fused=True)
    losses(plain), losses(fused)
    assert fused.optimizer.param_groups[0]["fused"] and not plain.optimizer.param_groups[0]["fused"]
    same(plain, fused, rtol=1e-3, atol=1e-4)


def test_blocks_that_enter_join_a_fused_optimizer():
    """One call steps all: it takes no parameter without momentum beside others with it."""
    ends = []
    for fused in (False, True):
        torch.manual_seed(0)
        model, x = deit(depth=4), torch.randn(2, 3, 16, 16)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, fused=fused)
        method = morphogen.NetworkExpansion(depth=0.5, stages=2, depth_operator="interpolate")
        run = morphogen.attach(model, optimizer, method, example=x, epochs=2, steps_per_epoch=2)
        for epoch in range(2):
            run.begin_epoch(epoch)
            for _ in range(2):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
        ends.append(model.state_dict())
        assert all("momentum_buffer" in optimizer.state[p] for p in model.parameters())
    assert len(run.history) == 2
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor)


def test_float16_scales_the_loss(tmp_path):
    run = run_of(precision="float16", clip_grad=1.0)
    found = losses(run)
    assert found[-1] < found[0]
    scaler = run.stepper.state_dict()["scaler"]
    assert scaler["scale"] >= 1024 and scaler["_growth_tracker"] > 0
    other = run_of(precision="float16", clip_grad=1.0)
    other.load_state_dict(run.state_dict())
    assert other.stepper.state_dict() == run.stepper.state_dict()


def test_fast_is_everything_that_the_device_has():
    fast = Recipe(fast=True, device="cpu")
    assert (fast.precision, fast.fused, fast.compile, fast.cuda_graphs) == ("bfloat16", True, True, False)
    plain = Recipe(device="cpu")
    assert (plain.precision, plain.fused, plain.compile, plain.cuda_graphs) == ("float32", False, False, False)
    apart = Recipe(fast=True, compile=False, precision="float16", device="cpu")
    assert (apart.precision, apart.fused, apart.compile) == ("float16", True, False)
    for settings, message in (
        ({"cuda_graphs": True}, "CUDA graphs are made by torch.compile, on a GPU"),
        ({"compile": True, "token_labels": "maps"}, "only its whole forward pass is compiled"),
    ):
        with pytest.raises(ConfigError, match=message):
            Recipe(**settings, device="cpu")
