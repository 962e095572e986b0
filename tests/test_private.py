"""A canary for each private part of PyTorch, and of a trainer, that is used: what it must be and do."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import BaseTorchFunctionMode, _get_current_function_mode_stack

from morphogen.machine import private

ROOT = Path(private.__file__).parents[1]


def test_the_kinds_of_modules():
    assert issubclass(nn.BatchNorm2d, private.NormBase) and not issubclass(nn.GroupNorm, private.NormBase)
    assert issubclass(nn.Dropout2d, private.DropoutBase) and issubclass(nn.ConvTranspose1d, private.ConvBase)


def test_trees():
    value = {"a": (1, [2]), "b": 3}
    leaves, spec = private.tree_flatten(value)
    assert leaves == private.tree_leaves(value) == [1, 2, 3]
    assert (
        private.tree_unflatten([4, 5, 6], spec) == {"a": (4, [5]), "b": 6} == private.tree_map(lambda x: x + 3, value)
    )
    assert isinstance(spec, private.TreeSpec) and isinstance(private.tree_flatten(1)[1], private.LeafSpec)


def test_modes_can_be_left():
    with private.FakeTensorMode(), private.for_real():
        assert torch.tensor([True, False, True]).nonzero().tolist() == [[0], [2]]


def test_ops_and_fake_tensors():
    assert isinstance(torch.ops.aten.add.Tensor, private.OpOverload)
    assert issubclass(type(torch.ops.higher_order.cond), private.HigherOrderOperator)
    with private.FakeTensorMode():
        assert torch.zeros(3).untyped_storage() is not None
    seen = []

    class Seen(private.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Seen():
        torch.zeros(2) + 1
    assert torch.ops.aten.add.Tensor in seen


def test_an_export_makes_graphs_alone():
    def nodes():
        program = torch.export.export(nn.Linear(2, 3), (torch.zeros(1, 2),), strict=False)
        return [node for node in program.graph.nodes if node.op == "call_function"]

    with private.graphs_only():
        bare = nodes()
    told = nodes()
    assert [node.target for node in bare] == [node.target for node in told]
    assert all(node.stack_trace for node in told)
    if hasattr(torch.fx.config, "do_not_emit_stack_traces"):
        assert not any(node.stack_trace for node in bare)


@pytest.mark.parametrize("kind", [torch.Tensor, nn.Parameter])
def test_a_new_fake_tensor_is_what_new_empty_gives(kind):
    mode = private.FakeTensorMode()
    with mode:
        like = kind(torch.empty(2, 3, 4, 5, dtype=torch.half).contiguous(memory_format=torch.channels_last))
        slow = like.detach().new_empty((3, 4, 5, 6))
        fast = private.new_fake(like, (3, 4, 5, 6), mode)
        assert (fast @ fast.mT).shape == (3, 4, 5, 5)
    assert type(like) is type(fast) is type(slow) and fast.fake_mode is mode
    for name in ("shape", "dtype", "device", "layout", "requires_grad", "is_leaf"):
        assert getattr(fast, name) == getattr(slow, name), name
    assert fast.stride() == slow.stride() and fast.untyped_storage().nbytes() == slow.untyped_storage().nbytes()


@pytest.mark.parametrize("requires_grad", [True, False])
def test_a_fake_parameter_is_what_a_parameter_of_it_gives(requires_grad):
    mode = private.FakeTensorMode()
    with mode:
        like = torch.empty(2, 3)
    slow = nn.Parameter(private.new_fake(like, (3, 4), mode), requires_grad)
    fast = private.as_parameter(private.new_fake(like, (3, 4), mode), requires_grad)
    layer = nn.Linear(4, 3, bias=False)
    layer.weight = fast
    assert dict(layer.named_parameters()) == {"weight": fast} and isinstance(fast, nn.Parameter)
    for name in ("shape", "dtype", "device", "layout", "requires_grad", "is_leaf", "fake_mode"):
        assert getattr(fast, name) == getattr(slow, name), name
    assert type(fast) is type(slow) and vars(fast).keys() == vars(slow).keys()
    with mode:
        made = layer(torch.empty(2, 4))
        assert made.shape == (2, 3) and made.requires_grad == requires_grad


def test_storages_have_keys():
    one = torch.zeros(3)
    keys = [private.storage_key(tensor.untyped_storage()) for tensor in (one, one.view(3, 1), torch.zeros(3))]
    assert keys[0] == keys[1] != keys[2]


def test_hooks():
    module = nn.Linear(2, 2)
    module.register_forward_hook(print)
    module.register_forward_pre_hook(print)
    assert len(private.forward_hooks(module)) == len(private.forward_pre_hooks(module)) == 1
    module.register_full_backward_pre_hook(print)
    assert [len(t) for t in (*private.forward_hook_tables(module), *private.backward_hook_tables(module))] == [
        1,
        1,
        1,
        0,
    ]
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    optimizer.register_step_post_hook(lambda *_: pytest.fail("a hook is left"))
    private.without_step_hooks(optimizer)
    optimizer.step()


def test_spectral_norm_estimates_a_step_at_a_time():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    norm, weight = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    assert isinstance(norm, private.SpectralNormToday)
    norm._u.copy_(torch.eye(4)[0])
    for _ in range(200):
        private.power_iteration(norm, weight.detach())
    torch.testing.assert_close(norm._u @ weight @ norm._v, torch.linalg.matrix_norm(weight, 2))


def test_copies_of_data_parallel_say_so_and_keep_hooks():
    module = nn.Linear(2, 2)
    handle = module.register_forward_pre_hook(lambda *_: None)
    copy = module._replicate_for_data_parallel()
    assert private.is_replica(copy) and not private.is_replica(module)
    assert [*private.forward_pre_hooks(copy)] == [handle.id]


def test_assigning_is_told_to_hooks():
    told = []
    module = nn.Linear(2, 2)
    module.register_load_state_dict_pre_hook(lambda module, state, prefix, metadata, *_: told.append({**metadata}))
    module.load_state_dict(module.state_dict(), assign=True)
    module.load_state_dict(module.state_dict())
    assert [metadata.get(private.ASSIGNS, False) for metadata in told] == [True, False]


def test_gradients_are_being_computed():
    seen = []
    tensor = torch.ones(1, requires_grad=True)
    tensor.register_hook(lambda grad: seen.append(private.in_backward()))
    tensor.sum().backward()
    assert seen == [True] and not private.in_backward()


def test_settings_of_the_compiler_come_back():
    config = torch._dynamo.config
    names = "recompile_limit accumulated_recompile_limit fail_on_recompile_limit_hit".split()
    names.append("skip_tensor_guards_with_matching_dict_tags")
    before = {name: getattr(config, name) for name in names}
    with private.compiling(3):
        assert config.recompile_limit == before["recompile_limit"] + 3 and config.fail_on_recompile_limit_hit
    private.more_compilations(2)
    assert config.recompile_limit == before["recompile_limit"] + 2
    private.more_compilations(-2)
    assert {name: getattr(config, name) for name in names} == before


def test_compilations_are_counted():
    before = private.compilations()
    try:
        torch.compile(lambda x: x + 1, backend="eager")(torch.zeros(2))
        assert private.compilations() == before + 1
    finally:
        torch.compiler.reset()


def test_a_wrapper_rebuilds_itself_as_when_it_is_unpickled():
    source = "".join(map(inspect.getsource, (private.rebuild, private.joined, private.fixed_settings)))
    for name in re.findall(r"wrapper\.(\w+)", source):
        assert name in KEPT or hasattr(DistributedDataParallel, name), name


KEPT = """_accum_grad_hooks _bucket_config _comm_hooks _ddp_sink_clone _delay_all_reduce_all_params
    _delay_all_reduce_params _delay_grad_buffer _delay_grad_views _has_rebuilt_buckets _join_config _lazy_init_ran
    _use_python_reducer
    _require_manual_backward_finalization batched_grad_copy broadcast_bucket_size broadcast_buffers bucket_bytes_cap
    bucket_bytes_cap_default bucket_bytes_cap_list device device_ids device_type dim find_unused_parameters
    forward_sync_buffers gradient_as_bucket_view is_multi_device_module lazy_bucket_allocation mixed_precision module
    output_device parameters_to_ignore process_group require_backward_grad_sync require_forward_param_sync
    skip_all_reduce_unused_params static_graph use_side_stream_for_tensor_copies _static_graph_delay_allreduce_enqueued
    """.split()


def test_all_that_a_wrapper_keeps_is_known(tmp_path):
    """What is new in a PyTorch to come is to be renewed at a morph, kept, or refused: somebody has to look."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        held = vars(DistributedDataParallel(nn.Linear(2, 2), static_graph=True))
    finally:
        torch.distributed.destroy_process_group()
    assert not held.keys() - {*KEPT, *private.RENEWED, *vars(nn.Module())}


def test_ops_are_seen_as_an_export_sees_them():
    seen = []
    with private.FakeTensorMode():
        layer, x = nn.Linear(2, 3), torch.zeros(4, 2)
        with private.ops_seen(lambda op, *_: seen.append(op)):
            layer(x).relu_()
    assert seen == [torch.ops.aten.linear.default, torch.ops.aten.relu_.default]


def test_lightnings_launcher():
    launchers = pytest.importorskip("lightning.pytorch.strategies.launchers")
    assert inspect.isclass(launchers._MultiProcessingLauncher)


def test_nothing_private_is_imported_elsewhere():
    allowed = {("integrations/lightning.py", "_MultiProcessingLauncher")}
    for path in ROOT.rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if name in ("machine/private.py", "machine/sharded.py"):  # whose canary is test_sharded.py
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                private_ones = [a.name for a in node.names if a.name.startswith("_")]
                parts = (node.module or "").removeprefix("__future__").split(".")
                private_ones += [part for part in parts if part.startswith("_")]
                assert all((name, each) in allowed for each in private_ones), f"{name} imports {private_ones}"
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch":
                assert not node.attr.startswith("_") or node.attr.startswith(("_foreach", "__version")), (
                    f"{name}: torch.{node.attr}"
                )


def test_modes_that_nobody_left():
    leave = private.modes_from_here()
    with BaseTorchFunctionMode():
        inner = private.modes_from_here()
        for mode in (BaseTorchFunctionMode(), private.FakeTensorMode(), BaseTorchFunctionMode()):
            mode.__enter__()
        assert isinstance(torch.zeros(2), FakeTensor)
        inner()
        assert not isinstance(torch.zeros(2), FakeTensor) and len(_get_current_function_mode_stack()) == 1
    leave()
    assert not _get_current_function_mode_stack()
