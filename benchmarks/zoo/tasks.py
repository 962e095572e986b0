"""Whole tasks on models of other packages, each a line of a file: growth and pruning as a user would have them.

    python benchmarks/zoo/tasks.py --output benchmarks/results/zoo/tasks.jsonl [NAME ...]

    detector      YOLO11n, its own loss: traced, halved, trained, pruned, grown, exported to ONNX, and the ONNX run
    unet, dit     of diffusers: steps of noise prediction at half width, grown back, the pipeline's folder loaded again
    bert, gpt2, llama     two growths of depth and width; the loss goes down
    volumes       MONAI's U-Net and Swin UNETR: resolution, width, and a run that is killed and resumed, bit for bit

The environment is that of the wild set (wild/__init__.py). A task that fails has the error in its line.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

import morphogen
from morphogen.errors import first_line

import wild

Row = dict[str, Any]
HERE = Path(__file__).parent


def parameters(model: nn.Module) -> int:
    """Of all kinds."""
    return sum(parameter.numel() for parameter in model.parameters())


def detector() -> Row:
    """YOLO11n: half width, a step, pruned by magnitude, a step, dense again, a step; ONNX of each."""
    import onnxruntime
    from ultralytics.cfg import get_cfg

    model = wild.build("ultralytics:yolo11n")
    model.args = get_cfg()
    batch = {
        "img": torch.rand(2, 3, 64, 64),
        "cls": torch.tensor([[1.0], [2.0], [3.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.3, 0.2, 0.3], [0.6, 0.5, 0.5, 0.5]]),
        "batch_idx": torch.tensor([0.0, 1.0, 1.0]),
    }
    dense = parameters(model)
    keys = {name: tensor.shape for name, tensor in model.state_dict().items()}
    net = morphogen.trace(model, batch["img"])
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    row: Row = {}
    strongest = half_of_the_strongest(net)
    for name, target in (("half", net.subnetwork(width=0.5)), ("pruned", strongest), ("dense", net.dense)):
        morphogen.morph(net, target, optimizer=optimizer)
        model.train()
        for _ in range(2):
            optimizer.zero_grad()
            loss, _ = model.loss(batch)
            loss.sum().backward()
            optimizer.step()
        row |= {f"{name} parameters": parameters(model) / dense, f"{name} loss": float(loss.sum())}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            morphogen.save_onnx(model, batch["img"], file)
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            found = session.run(None, {session.get_inputs()[0].name: batch["img"].numpy()})[0]
        with torch.no_grad():
            expected = model.eval()(batch["img"])[0]
        row[f"{name} ONNX differs by"] = float((torch.from_numpy(found) - expected).abs().max() / expected.abs().max())
        assert row[f"{name} ONNX differs by"] < 1e-3, row
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == keys
    return row


def half_of_the_strongest(net: morphogen.Network) -> morphogen.SubNetwork:
    """Of every channel group the half with the largest weights, told by the first tensor that has one row a unit."""
    tensors, alive = dict(net.model.named_parameters()), {}
    for group in net.groups:
        for member in group.members:
            name, _, dim = member.removesuffix("]").rpartition("[")
            if name in tensors and tensors[name].shape[int(dim)] == group.size and not group.inner:
                strength = tensors[name].detach().square().transpose(0, int(dim)).flatten(1).sum(1)
                alive[group.name] = sorted(strength.topk(max(1, group.size // 2)).indices.tolist())
                break
    return net.subnetwork(alive=alive)


def denoiser(name: str) -> Row:
    """Noise prediction at half width, grown back; the saved pipeline is the same class with the same configuration."""
    import diffusers

    model = wild.build(f"diffusers:{name}")
    config = dict(model.config)
    key = "sample" if name.startswith("UNet") else "hidden_states"
    example = wild.models()[f"diffusers:{name}"].example()
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100)
    net = morphogen.trace(model, example)
    half = net.subnetwork(width=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    dense = parameters(model)
    morphogen.morph(net, half, optimizer=optimizer)
    row: Row = {"half parameters": parameters(model) / dense}
    images = torch.randn(example[key].shape).clamp(-1, 1) * 0.5

    def steps(count: int) -> list[float]:
        losses = []
        for _ in range(count):
            noise, when = torch.randn_like(images), torch.randint(0, 100, (2,))
            noisy = scheduler.add_noise(images, noise, when)
            found = model(**{**example, key: noisy, "timestep": when}).sample[:, : images.shape[1]]
            loss = nn.functional.mse_loss(found, noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    model.train()
    losses = steps(20)
    morphogen.morph(net, net.dense, optimizer=optimizer)
    losses += steps(20)
    row |= {"first loss": sum(losses[:5]) / 5, "half loss": sum(losses[15:20]) / 5, "dense loss": sum(losses[-5:]) / 5}
    assert row["first loss"] > row["half loss"] > row["dense loss"], row
    assert dict(model.config) == config
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        if name.startswith("UNet"):
            diffusers.DDPMPipeline(model, scheduler).save_pretrained(folder)
            again = diffusers.DDPMPipeline.from_pretrained(folder).unet
        else:
            model.save_pretrained(folder)
            again = type(model).from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(again.eval()(**example).sample, model(**example).sample)
    return row


def words(name: str) -> Row:
    """Two growths of depth and width on a language of repeated words; the loss goes down."""
    model = deeper(f"transformers:{name}", layers=4)
    torch.manual_seed(0)
    language = torch.randint(5, 96, (16, 4)).repeat(1, 3)  # each sentence says four words three times
    batch = {"input_ids": language, "attention_mask": torch.ones_like(language)}
    net = morphogen.trace(model, batch)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    dense = parameters(model)
    row: Row = {"stacks": [len(stack.blocks) for stack in net.stacks]}
    losses = []
    classes = language[:, 0] % 10
    for stage, target in enumerate(
        (dict(width=0.5, depth=0.5), dict(width=0.75, depth=0.75), dict(width=1.0, depth=1.0))
    ):
        morphogen.morph(
            net, net.subnetwork(**target), optimizer=optimizer, operator="quiet", depth_operator="interpolate"
        )
        model.train()
        for step in range(20):
            logits = model(**batch).logits
            loss = (
                nn.functional.cross_entropy(logits, classes)
                if logits.ndim == 2
                else nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), language[:, 1:].flatten())
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step == 0:
                row[f"stage {stage}, first loss"] = loss.item()
        losses.append(loss.item())
        row |= {f"stage {stage}, parameters": parameters(model) / dense, f"stage {stage}, loss": loss.item()}
    assert losses == sorted(losses, reverse=True), losses
    assert net.current == net.dense
    return row


def deeper(name: str, layers: int) -> nn.Module:
    """A model of transformers with more layers than the wild set has."""
    config = wild.build(name).config
    config.num_hidden_layers = layers
    torch.manual_seed(0)
    return getattr(importlib.import_module("transformers"), name.partition(":")[2])(config)


def volumes(name: str) -> Row:
    """Half the side and half the width, then the whole, killed in the middle and resumed: the same bit for bit."""
    from morphogen import GrowOnce

    target = torch.rand(2, 3, 64, 64, 64).softmax(1) if name == "SwinUNETR" else torch.rand(2, 3, 32, 32, 32)
    images = wild.models()[f"monai:{name}"].example()

    def begin() -> tuple[Any, nn.Module, torch.optim.Optimizer]:
        model = wild.build(f"monai:{name}")
        optimizer = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9)
        method = GrowOnce(at=0.5, resolution=0.5, depth=None, width=0.5)
        return morphogen.attach(model, optimizer, method, example=images, epochs=4), model, optimizer

    def epochs(run: Any, model: nn.Module, optimizer: torch.optim.Optimizer, which: range) -> list[float]:
        found = []
        for epoch in which:
            run.begin_epoch(epoch)
            torch.manual_seed(epoch)
            for _ in range(2):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(images), target)
                loss.backward()
                optimizer.step()
            found.append(loss.item())
        return found

    run, model, optimizer = begin()
    losses = epochs(run, model, optimizer, range(3))
    state = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "run": run.state_dict()})
    losses += epochs(run, model, optimizer, range(3, 4))
    run, again, optimizer = begin()
    run.load_state_dict(state["run"])
    again.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    resumed = epochs(run, again, optimizer, range(3, 4))
    assert resumed == losses[3:], (resumed, losses)
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())
    return {"losses": losses, "resumed": resumed}


TASKS: dict[str, Callable[[], Row]] = {
    "detector": detector,
    "unet": lambda: denoiser("UNet2DModel"),
    "dit": lambda: denoiser("DiTTransformer2DModel"),
    "bert": lambda: words("BertForSequenceClassification"),
    "gpt2": lambda: words("GPT2LMHeadModel"),
    "llama": lambda: words("LlamaForCausalLM"),
    "unet-3d": lambda: volumes("UNet"),
    "swin-unetr": lambda: volumes("SwinUNETR"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*TASKS, []], help="tasks; default: all")
    parser.add_argument("--output", type=Path, default=HERE.parent / "results" / "zoo" / "tasks.jsonl")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    from morphogen.report.ledger import environment

    about = environment(torch.device("cpu"))
    for name in options.names or TASKS:
        torch.manual_seed(0)
        start = time.process_time()
        try:
            row = {"task": name, "outcome": "ok", **TASKS[name]()}
        except Exception as error:  # whatever a model, Morphogen or an exporter raises is the task's outcome
            row = {"task": name, "outcome": type(error).__name__, "message": first_line(error)[:400]}
        print(row, flush=True)
        with open(options.output, "a") as file:
            file.write(json.dumps({**row, "seconds": time.process_time() - start, "environment": about}) + "\n")


if __name__ == "__main__":
    main()
