"""Unusual models and inputs: each works, or is refused with one message, and the model is untouched."""

import dataclasses
import threading
import warnings
from typing import NamedTuple

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

import morphogen
from morphogen.dense.fake import as_call, tensor_named

from checks import assert_equals_masked_dense, assert_same, snapshot
from nets import Tower, image


class Net(nn.Module):
    """conv (16) - `middle` - conv (6) - mean - linear; `middle` and `setup` are what a row is about."""

    def __init__(self, middle=None, setup=None, after=None):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 6, 1), nn.Linear(6, 5)
        self.middle, self.after = middle or (lambda net, x: x.relu()), after or (lambda net, x: x)
        if setup:
            setup(self)

    def forward(self, x):
        return self.after(self, self.fc(self.second(self.middle(self, self.first(x))).mean((2, 3))))


def scaled(make, use=lambda net, x: x * net.k):
    """A net whose middle reads a parameter `k`."""
    return lambda: Net(
        use, lambda net: setattr(net, "k", nn.Parameter(make(), requires_grad=make().is_floating_point()))
    )


def setting(**attributes):
    """Gives a net attributes, each made anew."""
    return lambda net: [setattr(net, name, make()) for name, make in attributes.items()]


def given(use, make):
    """A net whose middle uses its attribute `k`, made anew."""
    return lambda: Net(use, setting(k=make))


def buffer(make, **settings):
    return lambda net: net.register_buffer("k", make(), **settings)


def sequence(wrap=lambda layer: layer):
    return nn.Sequential(
        wrap(nn.Conv2d(3, 16, 3, padding=1)), nn.ReLU(), wrap(nn.Conv2d(16, 8, 1)), nn.Flatten(), nn.Linear(512, 5)
    )


class Double(nn.Module):
    """A parametrisation."""

    def forward(self, weight):
        return 2 * weight


class Dispatching(torch.Tensor):
    """A wrapper, as quantisation libraries make them."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return cls(args[0].inner) if "detach" in str(function) else NotImplemented


class Slotted(nn.Module):
    """Its attribute is not in `__dict__`, and PyTorch does not copy it."""

    __slots__ = ("factor",)

    def __init__(self):
        super().__init__()
        self.factor = 3

    def forward(self, x):
        return x * self.factor


class TwoImages(Net):
    """Several inputs, some of which are not tensors."""

    def forward(self, x, y=None, *, flag=True, name="a"):
        return super().forward(x if y is None else x + y) if flag and name == "a" else x


class NoInput(Net):
    """Makes its own input."""

    def forward(self):
        return super().forward(torch.ones(2, 3, 8, 8))


class Pair(NamedTuple):
    """A named tuple."""

    a: torch.Tensor
    b: torch.Tensor


@dataclasses.dataclass
class Output:
    """A dataclass that nobody registered."""

    logits: torch.Tensor


class HalfRelu(torch.autograd.Function):
    """Differentiated by hand."""

    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


@torch.library.custom_op("refusals::no_fake", mutates_args=())
def no_fake(x: torch.Tensor) -> torch.Tensor:
    """An op of the user's own that nobody told the shape of."""
    return x * 2


@torch.library.custom_op("refusals::relu", mutates_args=())
def named_relu(x: torch.Tensor) -> torch.Tensor:
    """Has the name of an op with a rule, but mixes channels."""
    return x.flip(1)


named_relu.register_fake(torch.empty_like)


def while_large(net, x):
    while x.abs().max() > 1:
        x = x / 2
    return x


def in_data(net, x):
    net.k.data.mul_(2)
    return x * net.k


def under_inference_mode(make):
    with torch.inference_mode():
        return make()


def on_meta():
    with torch.device("meta"):
        return Net()


def hooked(hook, pre=False):
    net = Net()
    net.first.register_forward_pre_hook(hook) if pre else net.first.register_forward_hook(hook)
    return net


def forward_compiled():
    net = Net()
    net.forward = torch.compile(net.forward, backend="eager")
    return net


def scripted_inside():
    net = Net()
    net.second = torch.jit.script(net.second)
    return net


def quantised():
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 4)), {nn.Linear})


def distributed_tensor():
    net = Net()
    fully_shard(net.second, mesh=init_device_mesh("cpu", (1,)))
    return net


def refused(make, message, example=image, **settings):
    return make, example, settings, message


def works(make, groups=frozenset(["first", "second"]), example=image):
    return make, example, groups


REFUSED = {
    "no module": refused(lambda: print, "not a model; expected a torch.nn.Module"),
    "a class": refused(lambda: Net, "not a model"),
    "exclude is a string": refused(Net, r"one string.*Write exclude=\['first'\]", exclude="first"),
    "exclude is the model": refused(Net, "no module to exclude", exclude=[""]),
    "branch on data": refused(lambda: Net(lambda _, x: x if x.sum() > 0 else -x), "does not branch.*torch.where"),
    "loop on data": refused(lambda: Net(while_large), "does not branch"),
    "item": refused(lambda: Net(lambda _, x: x * x.mean().item()), "reads no numbers out of tensors"),
    "numbers in a size": refused(lambda: Net(lambda _, x: x[:, : int(x.max().item())]), "does not branch"),
    "numpy": refused(lambda: Net(lambda _, x: x * float(x.detach().numpy().mean())), "PyTorch's ops alone.*custom_op"),
    "code that fails": refused(lambda: Net(lambda _, x: {}["x"]), "KeyError.*Call model"),
    "lazy layer": refused(
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.LazyLinear(5)), "2.weight: .*no shape yet.*Call"
    ),
    "lock": refused(lambda: Net(None, setting(k=threading.Lock)), "cannot be copied"),
    "slots": refused(given(lambda net, x: net.k(x), Slotted), "k: .*without __slots__"),
    "op without shapes": refused(lambda: Net(lambda _, x: no_fake(x)), "register_fake"),
    "quantised": refused(quantised, "quantise it afterwards", lambda: torch.randn(2, 3)),
    "tensor subclass": refused(
        lambda: Net(None, setting(k=lambda: nn.Parameter(Dispatching(torch.ones(2)), False))), "k: .*found Dispatching"
    ),
    "nested tensor": refused(
        lambda: Net(None, buffer(lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))), "k: a nested"
    ),
    "DDP": refused(lambda: nn.parallel.DistributedDataParallel(Net()), "Trace model.module; a run's wrapper follows"),
    "DDP inside": refused(lambda: nn.Sequential(nn.parallel.DistributedDataParallel(Net())), "^0: .*wrapped"),
    "DataParallel": refused(lambda: nn.DataParallel(Net()), "Trace model.module"),
    "FSDP": refused(lambda: FullyShardedDataParallel(Net(), device_id=torch.device("cpu")), "as it was before"),
    "fully_shard": refused(distributed_tensor, "^second: .*as it was before fully_shard"),
    "scripted": refused(lambda: torch.jit.script(sequence()), "script it after training"),
    "traced by jit": refused(lambda: torch.jit.trace(sequence(), image()), "script it after training"),
    "scripted inside": refused(scripted_inside, "^second: "),
    "forward compiled": refused(forward_compiled, r"Net.forward: .*use model.compile\(\)"),
    "meta model, real example": refused(on_meta, "^first: .*model and example on one device"),
    "torch's pruning": refused(
        lambda: sequence(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)), "^0: .*prune.remove"
    ),
    "dataclass returned": refused(lambda: Net(after=lambda _, x: Output(x)), "register_dataclass"),
    "dataclass taken": refused(Net, "register_dataclass.*", lambda: (Output(image()),)),
    "no example": refused(Net, "^first: .*found no tensors", lambda: None),
    "too many inputs": refused(Net, "too many positional arguments", lambda: [image(), image()]),
    "wrong shape": refused(
        Net, r"^first: .*found inputs of shape \(2, 4, 8, 8\) \(float32 on cpu\)", lambda: torch.randn(2, 4, 8, 8)
    ),
    "wrong type": refused(Net, r"^first: .*\(float64 on cpu\)", lambda: image().double()),
    "wrong device": refused(Net, "^first: .*one device.*float32 on meta", lambda: image().to("meta")),
    "made in inference mode": refused(lambda: under_inference_mode(Net), "first.weight: .*inference_mode"),
    "inference mode inside": refused(lambda: Net(lambda _, x: under_inference_mode(x.relu)), "torch.no_grad in place"),
}
WITHOUT_VALUES = ["lazy layer", "tensor subclass", "nested tensor", "meta model, real example"]
"""Models whose tensors cannot be compared."""


@pytest.fixture
def one_rank():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def attributes(model):
    """Everything on the modules: modes, hooks, whatever a forward pass may have stored."""
    containers = (dict, list, set)
    return {
        path: {name: (id(v), v.copy() if isinstance(v, containers) else v) for name, v in vars(module).items()}
        for path, module in model.named_modules()
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("row", REFUSED)
def test_refused_with_one_message_and_untouched(row, one_rank, capfd):
    make, example, settings, message = REFUSED[row]
    model, example = make(), example()
    plain = isinstance(model, nn.Module) and not isinstance(model, torch.jit.ScriptModule)
    there = attributes(model) if plain else None
    before = snapshot(model) if plain and row not in WITHOUT_VALUES else None
    capfd.readouterr()
    with pytest.raises(morphogen.TraceError, match=message) as caught:
        morphogen.trace(model, example, **settings)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # no graph, no stack, nothing but the error
    assert not plain or attributes(model) == there
    if before is not None:
        assert_same(before, model)


def test_sharding_between_morphs_is_refused_and_changes_nothing(one_rank):
    net = morphogen.trace(Net(), image())
    fully_shard(net.model.second, mesh=init_device_mesh("cpu", (1,)))
    before, current = dict(net.model.named_parameters()), net.current
    with pytest.raises(morphogen.MorphError, match=r"^second\.\w+: .*found DTensor. .*fully_shard") as caught:
        morphogen.morph(net, net.subnetwork(width=0.5))
    assert "\n" not in str(caught.value) and net.current == current
    assert all(parameter is before[name] for name, parameter in net.model.named_parameters())


class Follows(nn.Conv2d):
    """Counts its groups from the weight."""

    groups = property(lambda self: self.weight.shape[0], lambda self, value: None)


def tied(net):
    net.a, net.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
    net.b.weight = net.a.weight


def replaced(net, x):
    net.k = nn.Parameter(net.k.detach())
    return x * net.k


class Autoencoder(nn.Module):
    """Its decoder uses the encoder's weights, transposed."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.bias = nn.Linear(10, 16), nn.Linear(16, 8), nn.Parameter(torch.rand(16))

    def forward(self, x):
        x = self.b(self.a(x).relu()).relu()
        return F.linear(F.linear(x, self.b.weight.t(), self.bias).relu(), self.a.weight.t())


class Siamese(nn.Module):
    """One network on two inputs."""

    def __init__(self):
        super().__init__()
        self.both, self.fc = Net(), nn.Linear(10, 2)

    def forward(self, x, y):
        return self.fc(torch.cat([self.both(x), self.both(y)], 1))


def mixed_precision(net, x):
    return net.k(x.double()).float()


def autocast(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        return net.k(x).float()


def views(net):
    """A parameter in another one's memory."""
    net.k = nn.Parameter(net.second.bias.detach()[:3])


def complex_net():
    return nn.Sequential(nn.Linear(4, 16, dtype=torch.cfloat), nn.Linear(16, 3, dtype=torch.cfloat))


def called_once(model, example):
    model(example)
    return model


def compiled_in_place():
    net = Net()
    net.compile(backend="eager")
    return called_once(net, image())


def frozen():
    return Net().requires_grad_(False)


def conv():
    return nn.Conv2d(16, 16, 1)


WORK = {
    "named parameters in lists": works(
        given(lambda n, x: x * n.k[0] + n.k[1], lambda: nn.ParameterList(torch.ones(2, 16, 1, 1).unbind()))
    ),
    "parameter made in forward": works(lambda: Net(lambda _, x: x * nn.Parameter(torch.ones(16, 1, 1))), {"second"}),
    "picked by a mask": works(lambda: Net(lambda _, x: x + x[x > 0].sum()), frozenset(["second"])),
    "writes to parameter.data": works(scaled(lambda: torch.ones(16, 1, 1), in_data)),
    "parameter replaced in forward": works(scaled(lambda: torch.ones(16, 1, 1), replaced)),
    "buffer written in forward": works(
        lambda: Net(lambda n, x: x + n.k.add_(1), buffer(lambda: torch.zeros(16, 1, 1)))
    ),
    "plain tensor": works(given(lambda n, x: x * n.k, lambda: torch.rand(16, 1, 1)), {"first", "second"}),
    "initialised lazy layer": works(
        lambda: called_once(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.LazyLinear(5)), image()), {"0"}
    ),
    "autograd function": works(lambda: Net(lambda _, x: HalfRelu.apply(x))),
    "custom op": works(lambda: Net(lambda _, x: named_relu(x.detach())), {"second"}),
    "module twice": works(given(lambda n, x: n.k(n.k(x)), conv)),
    "module in two places": works(
        lambda: Net(lambda n, x: n.k(x).relu() + n.l(x), lambda n: setattr(n, "k", conv()) or setattr(n, "l", n.k)),
        {"first", "second", "k"},
    ),
    "batch norm twice": works(given(lambda n, x: n.k(n.k(x).relu()), lambda: nn.BatchNorm2d(16))),
    "siamese": works(Siamese, {"both.first", "both.second", "both.fc"}, example=lambda: (image(), image())),
    "tied convolutions": works(lambda: Net(lambda n, x: n.b(n.a(x).relu()), tied)),
    "tied autoencoder": works(Autoencoder, {"a", "b"}, example=lambda: torch.randn(2, 10)),
    "weight times itself": works(
        given(lambda n, x: F.conv2d(x, (n.k @ n.k.t())[:, :, None, None]), lambda: nn.Parameter(torch.rand(16, 16))),
        {"second", "k", "k'"},
    ),
    "shared memory": works(lambda: Net(None, views), {"first"}),
    "compiled": works(lambda: torch.compile(Net(), backend="eager"), {"_orig_mod.first", "_orig_mod.second"}),
    "compiled in place": works(compiled_in_place),
    "symbolically traced": works(lambda: torch.fx.symbolic_trace(sequence()), {"0", "2"}),
    "half": works(lambda: Net().half(), example=lambda: image().half()),
    "bfloat16": works(lambda: Net().bfloat16(), example=lambda: image().bfloat16()),
    "double": works(lambda: Net().double(), example=lambda: image().double()),
    "mixed precision": works(
        lambda: Net(mixed_precision, setting(k=lambda: conv().double())), {"first", "second", "k"}
    ),
    "nothing can change": works(lambda: nn.Linear(3, 4), set(), example=lambda: torch.randn(2, 3)),
    "no parameters": works(nn.ReLU, set()),
    "empty": works(nn.Sequential, set()),
    "weight norm": works(given(lambda n, x: n.k(x), lambda: parametrizations.weight_norm(conv())), None),
    "spectral norm": works(given(lambda n, x: n.k(x), lambda: parametrizations.spectral_norm(conv())), None),
    "orthogonal": works(given(lambda n, x: n.k(x), lambda: parametrizations.orthogonal(conv())), None),
    "own parametrisation": works(
        lambda: sequence(lambda layer: parametrize.register_parametrization(layer, "weight", Double())),
        {"0.parametrizations.weight", "2.parametrizations.weight"},
    ),
    "whole numbers": works(lambda: Net(lambda n, x: x * n.k, buffer(lambda: torch.randint(1, 5, (16, 1, 1))))),
    "truth values": works(lambda: Net(lambda n, x: x.masked_fill(n.k, 0), buffer(lambda: torch.rand(16, 1, 1) > 0.5))),
    "frozen whole numbers": works(scaled(lambda: torch.randint(1, 5, (16, 1, 1)))),
    "complex": works(complex_net, {"0"}, example=lambda: torch.randn(2, 4, dtype=torch.cfloat)),
    "temperature": works(scaled(lambda: torch.tensor(2.0))),
    "empty parameter": works(scaled(lambda: torch.empty(0), lambda n, x: x + n.k.sum())),
    "missing parameter": works(lambda: Net(None, lambda n: n.register_parameter("k", None))),
    "not in the state": works(
        lambda: Net(lambda n, x: x * n.k, buffer(lambda: torch.rand(16, 1, 1), persistent=False))
    ),
    "size that follows by itself": works(given(lambda n, x: n.k(x), lambda: Follows(16, 16, 1, groups=16))),
    "frozen": works(frozen),
    "dictionary returned": works(lambda: Net(after=lambda _, x: {"a": x, "b": [x, None, 3]})),
    "named tuple returned": works(lambda: Net(after=lambda _, x: Pair(x, x))),
    "several inputs": works(TwoImages, example=lambda: (image(), image())),
    "named inputs": works(TwoImages, example=lambda: {"x": image(), "flag": True, "name": "a"}),
    "no inputs": works(NoInput, example=tuple),
    "batch of none": works(Net, example=lambda: image(0)),
    "not a batch": works(
        lambda: nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1)), {"0"}, example=lambda: image()[0]
    ),
    "needs a gradient": works(Net, example=lambda: image().requires_grad_()),
    "example of inference mode": works(Net, example=lambda: under_inference_mode(image)),
    "autocast inside": works(lambda: Net(autocast, setting(k=conv)), None),
    "checkpoint inside": works(
        given(lambda n, x: checkpoint(n.k, x, use_reentrant=False), conv), {"first", "second", "k"}
    ),
    "no_grad inside": works(given(lambda n, x: torch.no_grad()(n.k)(x), conv), None),
}
"""Model, example, and the groups; None where that is a matter of rules."""


def numbers(result):
    leaves = torch.utils._pytree.tree_leaves(result)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("row", WORK)
def test_unusual_models_narrow_and_grow(row):
    """Poison: what goes is NaN before, so that whatever of it were still read would be seen."""
    make, example, groups = WORK[row]
    model, example = make().eval(), example()
    before, there = snapshot(model), attributes(model)
    net = morphogen.trace(model, example)
    assert_same(before, model)
    assert attributes(model) == there
    assert groups is None or {group.name for group in net.groups} == groups
    args, kwargs = as_call(example)
    needs = {name: (p.requires_grad, p.dtype, p.shape) for name, p in model.named_parameters()}
    target = net.subnetwork(alive={g.name: torch.randperm(g.size)[: g.size // 2].tolist() for g in net.groups})
    kept = net.structure.alive_mask(target)
    with torch.no_grad():
        expected = numbers(morphogen.masked_dense(net, target)(*args, **kwargs))
        for name, layout in net.structure.tensors.items():
            for dim, axis in enumerate(layout.axes):
                tensor = tensor_named(model, name)
                if axis is not None and (tensor.is_floating_point() or tensor.is_complex()):
                    tensor.index_fill_(dim, (~kept[axis]).nonzero().flatten(), float("nan"))
        morphogen.morph(net, target)
        assert net.current == target and (groups == set() or target != net.dense)
        found = numbers(model(*args, **kwargs))
        assert all(bool(tensor.isfinite().all()) for tensor in found)
        tolerance = 1e-2 if row in ("half", "bfloat16") else 1e-5
        if row not in ("weight norm", "spectral norm"):  # a row of zeros has no direction; the estimate is made anew
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        morphogen.morph(net, net.dense)
        assert all(bool(tensor.isfinite().all()) for tensor in numbers(model(*args, **kwargs)))
    assert {name: (p.requires_grad, p.dtype, p.shape) for name, p in model.named_parameters()} == needs


def test_a_sparse_tensor_stays_whole():
    model = Net(lambda net, x: x + (net.k @ x.mean((2, 3)).t()).t()[:, :, None, None])
    model.register_buffer("k", torch.eye(16).to_sparse_csr())
    net = morphogen.trace(model, image())
    assert [group.name for group in net.groups] == ["second"]
    assert any(pin.axis == "k[0]" and pin.reason == "a sparse tensor" for pin in net.pinned)
    morphogen.morph(net, net.subnetwork(width=0.5))
    morphogen.morph(net, net.dense)


class Fixed(nn.Conv2d):
    """Has the number of its outputs written into its code."""

    @property
    def out_channels(self):
        return 16

    @out_channels.setter
    def out_channels(self, value):
        if "_modules" in self.__dict__ and value != 16:
            raise AttributeError("fixed")


def test_a_size_that_cannot_be_set_is_refused():
    model = Net(lambda net, x: net.k(x), setting(k=lambda: Fixed(16, 16, 1)))
    net = morphogen.trace(model, image())
    before, there = snapshot(model), attributes(model)
    with pytest.raises(morphogen.MorphError, match=r"k: the size out_channels cannot be set .*exclude"):
        morphogen.morph(net, net.subnetwork(width=0.5))
    assert_same(before, model)
    assert attributes(model) == there


@pytest.mark.parametrize("pre", [False, True])
def test_hooks_that_change_values_are_warned_of(pre):
    seen = []

    def watch(*call):
        seen.append(call)

    with pytest.warns(UserWarning, match="^first: forward hooks are not read"):
        morphogen.trace(hooked(lambda _, x, *y: (x[0] * 2,) if pre else y[0] * 2, pre), image())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        morphogen.trace(hooked(watch, pre), image())
    assert not seen


def test_no_values_are_needed():
    """A model on the meta device changes size as any other, its blocks too."""
    with torch.device("meta"):
        model, example = Tower(rate=0.0), image()
    net = morphogen.trace(model, example)
    whole = {name: tensor.shape for name, tensor in model.state_dict().items()}
    half = net.subnetwork(width=0.5, depth=0.5)
    morphogen.morph(net, half)
    assert model.conv1.weight.shape[0] == 6 and model.conv1.weight.is_meta
    morphogen.morph(net, net.dense)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == whole
    real = Tower(rate=0.0)
    model.to_empty(device="cpu").load_state_dict(real.state_dict())
    x = image()
    torch.testing.assert_close(model.eval()(x), real.eval()(x))
    assert_equals_masked_dense(net, net.subnetwork(width=0.5), x)
    morphogen.morph(net, net.dense)


def test_contexts_around_tracing_change_nothing():
    model = Net()
    groups = [group.name for group in morphogen.trace(model, image()).groups]
    with torch.inference_mode():
        net = morphogen.trace(model, image())
    assert [group.name for group in net.groups] == groups
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert [group.name for group in morphogen.trace(model, image()).groups] == groups
    morphogen.morph(net, net.subnetwork(width=0.5))
    morphogen.morph(net, net.dense)
    model(image()).sum().backward()


def test_views_of_a_batch_pin_whatever_the_example_was():
    for batch in (1, 2, 3):
        for middle in (
            lambda _, x: x.reshape(-1, 16, 8, 8),  # at half width, a batch of two would be one of half as many
            lambda _, x, batch=batch: x.view(batch, 16, 8, 8),
            lambda _, x: x.permute(2, 3, 0, 1).reshape(8, 8, -1, 16).permute(2, 3, 0, 1),
        ):
            net = morphogen.trace(Net(middle), image(batch))
            assert "first" not in {group.name for group in net.groups}
