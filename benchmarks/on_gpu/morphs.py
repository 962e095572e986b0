"""Whether a morph on the device is right: carried bit for bit, filled with numbers, where and as it was."""

from __future__ import annotations

import copy
import io
import tempfile
from pathlib import Path
from typing import Any

import torch
import torchvision
from timm.utils import ModelEmaV3
from torch import nn

import morphogen
from morphogen.errors import ExportError

from .common import (
    Batches,
    batches,
    check_carried,
    check_channels_last,
    check_held,
    cnn,
    need,
    plain_steps,
    sgd,
    tensors_of,
    vit,
)
from .harness import Bench, check

WIDTHS = "orthogonal random replicate net2net fpi bert2bert".split()
DEPTHS = "random stack interpolate identity rezero momentum mogrow mostack".split()
KEEP_THE_FUNCTION = {"net2net", "fpi", "identity", "rezero"}


@check("device", 30, turn=0)
def device(bench: Bench) -> dict[str, Any]:
    """The device itself, and what the first use of it costs."""
    side = bench.pick(4096, 64)
    a = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
    conv = nn.Conv2d(8, 8, 3, device=bench.device).to(memory_format=torch.channels_last)
    assert torch.isfinite((a @ a).float()).all()
    assert torch.isfinite(conv(torch.randn(2, 8, 16, 16, device=bench.device))).all()
    assert torch.isfinite(torch.linalg.qr(torch.randn(64, 16, device=bench.device))[0]).all()
    return {"bfloat16": bench.cuda and torch.cuda.is_bf16_supported()}


def half_and_back(bench: Bench, model: nn.Module, optimizer: Any, data: Batches, **half: Any) -> dict[str, Any]:
    """Train, go to a part, train, come back, train; every invariant of a morph after each change."""
    ema = ModelEmaV3(model, decay=0.9)
    dense = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    objects = {name: id(parameter) for name, parameter in model.named_parameters()}
    last = all(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4)
    plain_steps(model, optimizer, data, ema)
    net = morphogen.trace(model, data[0][0])
    figures: dict[str, Any] = {"entries": 0}
    for target in (net.subnetwork(**half), net.dense):
        before, average, old = tensors_of(model, optimizer), tensors_of(ema.module), net.current
        receipt = morphogen.morph(net, target, optimizer=optimizer, ema=ema)
        figures["entries"] += check_carried(net, before, old, tensors_of(model, optimizer))
        figures["entries"] += check_carried(net, average, old, tensors_of(ema.module))
        check_held(model, optimizer)
        assert all(id(p) == objects[name] for name, p in model.named_parameters()), "parameters are other objects"
        for tensor in [*model.parameters(), *model.buffers(), *ema.module.parameters(), *ema.module.buffers()]:
            assert tensor.device.type == bench.device.type, tensor.device
        if last:
            check_channels_last(model)
            check_channels_last(ema.module)
        figures[f"ms {'back' if target == net.dense else 'half'}"] = 1000 * receipt.seconds
        plain_steps(model, optimizer, data, ema)
        assert all(torch.isfinite(p).all() for p in model.parameters()), "weights are no numbers after a step"
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == dense
    return figures


@check("morph ResNet-18, SGD", turn=0)
def morph_resnet(bench: Bench) -> dict[str, Any]:
    model = torchvision.models.resnet18(num_classes=10).to(bench.device).to(memory_format=torch.channels_last)
    data = batches(bench, side=bench.pick(64, 32), images=4)
    return half_and_back(bench, model, sgd(model), data, width=0.5, depth=0.5)


@check("morph ResNet-18, SGD fused", turn=0)
def morph_resnet_fused(bench: Bench) -> dict[str, Any]:
    model = cnn(bench)
    return half_and_back(bench, model, sgd(model, fused=True), batches(bench), width=0.5)


@check("morph ViT, AdamW fused", turn=0)
def morph_vit_fused(bench: Bench) -> dict[str, Any]:
    model = vit(bench)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    return half_and_back(bench, model, optimizer, batches(bench), width=0.5, depth=0.5)


@check("morph ViT, AdamW capturable", turn=0, cuda=True)
def morph_vit_capturable(bench: Bench) -> dict[str, Any]:
    model = vit(bench)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, capturable=True)
    figures = half_and_back(bench, model, optimizer, batches(bench), width=0.5, depth=0.5)
    steps = {state["step"].device.type for state in optimizer.state.values()}
    assert steps == {"cuda"}, f"the number of steps is on {steps}"
    return figures


@check("morph ViT, foreach and amsgrad", turn=0)
def morph_vit_foreach(bench: Bench) -> dict[str, Any]:
    model = vit(bench)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, foreach=True, amsgrad=True)
    return half_and_back(bench, model, optimizer, batches(bench), width=0.5, depth=0.5)


@check("morph bfloat16 weights", turn=0)
def morph_half_precision(bench: Bench) -> dict[str, Any]:
    model = cnn(bench).to(torch.bfloat16)
    data = [(images.to(torch.bfloat16), labels) for images, labels in batches(bench)]
    return half_and_back(bench, model, sgd(model), data, width=0.5)


@check("resolution of a ViT", turn=0)
def resolution(bench: Bench) -> dict[str, Any]:
    model = vit(bench)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    net = morphogen.trace(model, batches(bench)[0][0])
    for side in (16, 32):
        morphogen.morph(net, net.subnetwork(resolution=side), optimizer=optimizer)
        assert model.pos_embed.device.type == bench.device.type
        plain_steps(model, optimizer, batches(bench, side=side))
    check_held(model, optimizer)
    return {}


@check("growth operators", 40, turn=0)
def growth_operators(bench: Bench) -> dict[str, Any]:
    """Every one of them on a CNN, in the order of the table; those that keep the function do."""
    data, figures = batches(bench), {}
    for name in WIDTHS:
        model = cnn(bench)
        optimizer = sgd(model)
        net = morphogen.trace(model, data[0][0])
        morphogen.morph(net, net.subnetwork(width=0.5), optimizer=optimizer)
        plain_steps(model, optimizer, data)
        figures[name] = _grown(net, optimizer, data, operator=name)
    return {name: round(value, 6) for name, value in figures.items()}


@check("depth operators", 40, turn=0)
def depth_operators(bench: Bench) -> dict[str, Any]:
    """Every one of them on a ViT, whose blocks double."""
    data, figures = batches(bench), {}
    for name in DEPTHS:
        model = vit(bench)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
        net = morphogen.trace(model, data[0][0])
        morphogen.morph(net, net.subnetwork(depth=0.5), optimizer=optimizer)
        plain_steps(model, optimizer, data)
        average = morphogen.MomentumNetwork(model, 0.9) if name.startswith("mo") else None
        if average is not None:
            average.update_parameters(model)
        figures[name] = _grown(net, optimizer, data, depth_operator=name, momentum=average)
    return {name: round(value, 6) for name, value in figures.items()}


def _grown(net: morphogen.Network, optimizer: Any, data: Batches, **settings: Any) -> float:
    """Grow to the dense network and train on; returns the largest change of what it computes."""
    model, images = net.model.eval(), data[0][0]
    with torch.no_grad():
        before = model(images)
        morphogen.morph(net, net.dense, optimizer=optimizer, **settings)
        change = float((model(images) - before).abs().max())
    name = settings.get("depth_operator", settings.get("operator"))
    if name == "orthogonal":
        weight = model.layer1[0].conv2.weight[8:, :8].flatten(1).double()  # new outputs, old inputs
        gram = weight @ weight.T
        off = (gram - gram.diag().diag()).abs().max() / gram.diag().mean()
        assert off < 1e-4, f"new filters are not orthogonal: {float(off)}"
    for where, tensor in model.state_dict().items():
        assert tensor.device == images.device and torch.isfinite(tensor.float()).all(), f"{name}: {where}"
    if name in KEEP_THE_FUNCTION:
        assert change < 0.02, f"{name} changes the function by {change}"  # TF32 and bfloat16 have 3 digits
    plain_steps(model.train(), optimizer, data)
    assert all(torch.isfinite(p).all() for p in model.parameters()), name
    return change


@check("equals the masked dense network", turn=0)
def masked(bench: Bench) -> dict[str, Any]:
    """In float64, so that nothing hides in rounding."""
    model, images = cnn(bench).double().eval(), batches(bench)[0][0].double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        net = morphogen.trace(model, images)
        target = net.subnetwork(width=0.5)
        expected = morphogen.masked_dense(net, target)(images)
        morphogen.morph(net, target)
        error = float((model(images) - expected).abs().max() / expected.abs().max())
    assert error < 1e-8, error
    return {"relative error": error}


@check("trace on the device", turn=0)
def trace_there(bench: Bench) -> dict[str, Any]:
    """The same structure as on a CPU, and the model is afterwards what it was."""
    for make in (cnn, vit):
        model, images = make(bench), batches(bench)[0][0]
        before = tensors_of(model)
        net = morphogen.trace(model, images)
        other = morphogen.trace(copy.deepcopy(model).cpu(), images.cpu())
        assert net.structure.fingerprint() == other.structure.fingerprint()
        assert net.fake.device == images.device, net.fake.device
        assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(model).items())
        half = net.subnetwork(width=0.5)
        morphogen.morph(net, half)
        morphogen.morph(other, half)
        assert {n: t.shape for n, t in tensors_of(net.model).items()} == {
            n: t.shape for n, t in tensors_of(other.model).items()
        }
    return {}


@check("the device as default device", turn=0)
def default_device(bench: Bench) -> dict[str, Any]:
    """A user who has called `torch.set_default_device`."""
    torch.set_default_device(bench.device)
    for make, half in ((cnn, {"width": 0.5}), (vit, {"width": 0.5, "depth": 0.5, "resolution": 16})):
        model, images = make(bench), batches(bench)[0][0]
        optimizer = sgd(model)
        net = morphogen.trace(model, images)
        for target in (net.subnetwork(**half), net.dense):
            morphogen.morph(net, target, optimizer=optimizer)
        plain_steps(model, optimizer, batches(bench))
    return {}


@check("export, save and load", turn=0)
def export(bench: Bench) -> dict[str, Any]:
    """Out of the device into a file and back onto the device and a CPU, as safetensors and for torch.export."""
    model, images = cnn(bench), batches(bench)[0][0]
    net = morphogen.trace(model, images)
    morphogen.morph(net, net.subnetwork(width=0.5))
    expected = model.eval()(images)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        try:
            morphogen.save(net, path)
        except ExportError as error:
            need("safetensors" not in str(error), str(error))
            raise
        there = morphogen.load(cnn(bench), path).eval()
        assert next(there.parameters()).device == images.device
        torch.testing.assert_close(there(images), expected)
        here = morphogen.load(cnn(bench).cpu(), path).eval()
        error = float((here(images.cpu()) - expected.cpu()).abs().max().detach())
        assert error < 0.05, error
        morphogen.save_program(model, images, Path(folder) / "small.pt2")
        program = torch.export.load(Path(folder) / "small.pt2").module()
        program_error = float((program(images.cpu()) - expected.cpu()).abs().max().detach())
        assert program_error < 0.05, program_error
    buffer = io.BytesIO()
    torch.save(model, buffer)  # the module itself, as some do
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False).eval()
    torch.testing.assert_close(again(images), expected)
    return {"CPU against device": error, "program against device": program_error}
