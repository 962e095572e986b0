"""The trainer under torchrun: several processes train as one does, and a lost one is told of."""

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributed import BuiltinCommHookType
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from morphogen.cli import main
from morphogen.errors import CheckpointError, ConfigError, TrainingError
from morphogen.machine import ranks, timing
from morphogen.machine.parallel import check_wrappers, wrap_anew
from morphogen.methods import Dense
from morphogen.search.measure import _agreed
from morphogen.train import distributed
from morphogen.train.checkpoint import Checkpoints
from morphogen.train.config import TrainConfig
from morphogen.train.loop import Run
from morphogen.train.sources import load_data

from processes import be_rank, free_port, fresh, run_alone
from traced import traced_once

HERE = Path(__file__).parent
LAUNCHERS = ["processes", pytest.param("torchrun", marks=pytest.mark.nightly)]
SETTINGS = """--data digits --model test_ranks:Net --batch_size 96 --images 480 --test_images 101 --epochs 4 --ema 0.9
    --lr 0.3 --lr_schedule cosine""".split()


class Net(nn.Sequential):
    """No batch norm: its statistics would be each rank's own."""

    def __init__(self, num_classes):
        convs = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*convs, nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, num_classes))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x).relu() / 2


class Tower(nn.Sequential):
    """For a search, whose candidates always take the same times in a process that has made this model."""

    def __init__(self, num_classes):
        timing.StepClock.medians = lambda clock: {number: 1.0 + number for number in clock.read()}
        stem, blocks = nn.Conv2d(3, 16, 3, stride=2), nn.Sequential(*(Block(16) for _ in range(4)))
        super().__init__(stem, blocks, nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(64, num_classes))


def start(count, *runs):
    """Processes that make these runs, one after the other."""
    many = ["-m", "torch.distributed.run", "--nproc_per_node", str(count), "--standalone"]
    command = [sys.executable, *many, __file__, json.dumps(runs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=HERE, env=environment, text=True, start_new_session=True, **pipes)


def run_all(rank, count, runs, folder):
    """One rank of several that make these runs; what it says is written down."""
    with open(folder / f"{rank}.txt", "w") as said, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        for port, run in runs:
            be_rank(rank, count, port)
            with traced_once():
                if code := main(run):
                    sys.exit(code)


def arguments(folder, *more):
    return ["train", *SETTINGS, *more, "--output", str(folder)]


def outcome(folder):
    record = json.loads((folder / "results.json").read_text())[0]
    return torch.load(folder / "model.pt", weights_only=True)["state_dict"], record


PRUNED = "PruneTrain(ratio=0.9, interval=1, threshold=0.02)"
SEARCHED = ["--model", "test_ranks:Tower", "--batch_size", "48", "--epochs", "6", "--lr", "0.1"]
RUNS = {
    "growth": ("NetworkExpansion(stages=2)", []),
    "search": ("AutoProg(stages=3, search_epochs=1, subset=None)", SEARCHED),
    "pruning, and batches that grow": (PRUNED + " + DynamicBatch(step={each}, limit={most})", []),
}


def of(name, count, subset=None):
    """What a run is, for so many ranks; a search may look at a subset of the images."""
    method, settings = RUNS[name]
    method = method.replace("subset=None", f"subset={subset}")
    return *settings, "--method", method.format(each=72 // count, most=168 // count)


@pytest.mark.nightly
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_several_ranks_train_as_one_process_does(launcher, tmp_path, monkeypatch):
    monkeypatch.setattr(timing.StepClock, "medians", timing.StepClock.medians)  # which the model changes
    monkeypatch.syspath_prepend(HERE)
    subset, count = (None, 3) if launcher == "torchrun" else (144, 2)
    runs = [(free_port(), arguments(tmp_path / "together" / name, *of(name, count, subset))) for name in RUNS]
    if launcher == "torchrun":
        process = start(count, *runs)
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
    else:
        torch.multiprocessing.start_processes(run_all, (count, runs, tmp_path), nprocs=count, start_method=fresh())
        output = "".join((tmp_path / f"{rank}.txt").read_text() for rank in range(count))
    assert output.count("weights, ledger and schedule are in") == len(RUNS)  # one rank speaks
    for name in RUNS:
        with traced_once():
            assert main(arguments(tmp_path / "alone" / name, *of(name, 1, subset))) == 0
        same(name, outcome(tmp_path / "alone" / name), outcome(tmp_path / "together" / name))


def same(name, one, several):
    """One process and several ranks have come to the same."""
    (weights, alone), (others, together), method = one, several, RUNS[name][0]
    assert weights.keys() == others.keys()
    for key, tensor in weights.items():
        torch.testing.assert_close(others[key], tensor, rtol=1e-3, atol=1e-4)
    assert alone["history"] == together["history"] and len(alone["history"]) > 1
    for ours, theirs in zip(alone["epochs"], together["epochs"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=2)
    if not method.startswith("PruneTrain"):  # the penalty lets nothing be learnt in four epochs
        assert alone["epochs"][-1]["loss"] < 0.9 * alone["epochs"][0]["loss"]
    assert alone["flops"] == together["flops"]
    batches = [[stage["batch_size"] for stage in record["stages"]] for record in (alone, together)]
    assert batches[0] == batches[1] and (max(batches[0]) == 168) == ("DynamicBatch" in method)
    for ours, theirs in zip(alone["searches"], together["searches"], strict=True):
        assert ours["chosen"] == theirs["chosen"]
        for key in ("loss", "seconds", "score", "error"):
            ours_of, theirs_of = ([candidate[key] for candidate in each["candidates"]] for each in (ours, theirs))
            assert ours_of == pytest.approx(theirs_of, rel=1e-2, abs=1e-4), key


def test_images_that_cannot_be_dealt_out_are_refused(tmp_path, monkeypatch):
    for count, settings, message in (
        (3, {"batch_size": 64}, "batch_size: .*expected a multiple of 3 ranks, found 64"),
        (2, {"batch_size": 66, "mixup": 0.2}, "batch_size of each rank: mixup.*expected an even number, found 33"),
    ):
        monkeypatch.setattr("morphogen.train.distributed.ranks", lambda count=count: count)
        config = TrainConfig(model="resnet8(width=4)", data="digits", images=128, output=tmp_path, **settings)
        with pytest.raises(ConfigError, match=message) as refused:
            Run(config, load_data(config), Dense(), "Dense", 0)
        assert "\n" not in str(refused.value)


def test_a_rank_that_never_comes_is_told_of(monkeypatch):
    place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(distributed, "PATIENCE", timedelta(seconds=1))
    with pytest.raises(TrainingError, match=r"rank 0: another rank is gone, or does not answer .*1/2 clients joined"):
        with distributed.joined(torch.device("cpu")):
            raise AssertionError("nobody is there")


def workers(process):
    """The processes that torchrun has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children]


def saved(folder):
    return {path.name for path in folder.glob("checkpoints/*.safetensors")}


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_lost_rank_is_told_of_and_another_number_of_them_goes_on(launcher, tmp_path):
    """In the middle of a search, the longest part of a run in which ranks are not all alike."""
    if launcher == "torchrun" and not Path("/proc/self/task").exists():
        pytest.skip("no /proc")
    search = "--model", "test_ranks:Tower", "--method", "AutoProg(stages=2, search_epochs=190)"
    settings = *search, "--save_every", "0", "--epochs", "400", "--lr", "0.01"
    folder, context = tmp_path / "run", torch.multiprocessing.get_context(fresh())
    run = free_port(), arguments(folder, *settings)
    if launcher == "torchrun":
        process = start(2, run)
    else:
        both = [context.Process(target=run_all, args=(rank, 2, [run], tmp_path)) for rank in range(2)]
        for rank in both:
            rank.start()
    wait_for(lambda: len(saved(folder)) == 2)
    begin = time.monotonic()
    if launcher == "torchrun":
        os.kill(workers(process)[1], signal.SIGKILL)
        output = process.communicate(timeout=120)[0]
        code = process.returncode
    else:
        both[1].kill()
        both[0].join(120)
        output, code = (tmp_path / "0.txt").read_text(), both[0].exitcode
    assert time.monotonic() - begin < 60 and code not in (0, None)
    assert "rank 0: another rank is gone" in output
    left = saved(folder)
    command = arguments(folder, *settings, "--resume", "true")
    again = context.Process(target=run_alone, args=(command, tmp_path / "again.txt"))
    again.start()
    wait_for(lambda: saved(folder) - left)
    again.terminate()
    again.join(60)
    assert again.exitcode == 128 + signal.SIGTERM and min(saved(folder)) > max(left)


def alone_and_wrong(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    same, other = torch.arange(3.0), torch.tensor([1.0, 2.0 + rank])
    places_and_values(rank, same, other)
    ranks.spread([other])
    assert other.tolist() == [1.0, 2.0] and ranks.decided(rank) == 0 and ranks.gathered(rank) == [0, 1]
    assert ranks.mean(torch.tensor([float(rank)])).tolist() == [0.5]
    with pytest.raises(ConfigError, match=r"as many batches on each, found 1, 2 batches"):
        _agreed([[1.0] * (1 + rank)], [1.0])
    follow_the_size(rank)
    checkpoints = Checkpoints(Path(folder) / f"of node {rank}")
    checkpoints.save(0, 1, {})  # rank 0 writes it
    with pytest.raises(
        CheckpointError, match=r"folder that all nodes share, found epoch-00000-step-0000001.* and none"
    ):
        checkpoints.latest()
    config = TrainConfig(
        model="resnet8(width=4)", data="digits", epochs=1, batch_size=32, images=64, test_images=31, output=Path(folder)
    )
    run = Run(config, load_data(config), Dense(), "Dense", 0)
    list(run.epochs())
    ranks.check_same({}, dict([*run.result.named_parameters(), *run.result.named_buffers()]))
    with run._random.active():
        assert len({*ranks.gathered(float(torch.rand(())))}) == 2
    torch.distributed.destroy_process_group()


def places_and_values(rank, same, other):
    """What is equal passes; what is not raises on both ranks, and says where."""
    kinds = {"half": torch.ones(600, 2, dtype=torch.half), "bool": torch.ones(2, dtype=bool), "none": torch.ones(0)}
    ranks.check_same({"text": "a"}, {"a": same, **kinds})
    swapped = torch.arange(1000.0) if rank else torch.arange(1000.0).roll(1)
    for tensors in ({"a": same, "b": other}, {"a": same, "b": swapped}, {"a": same, "b": same[: 3 - rank]}):
        with pytest.raises(TrainingError, match=r"^b: .*values of 1 of 2 weights.*others on rank 1"):
            ranks.check_same({}, tensors)
    for facts, tensors in (({"epoch": rank}, {}), ({"epoch": rank}, {"a": other})):
        with pytest.raises(TrainingError, match=r"different places: another epoch.*found 0 on rank 0, 1 on rank 1"):
            ranks.check_same(facts, tensors)
    error, message = (ConfigError, "wrong") if rank else (TrainingError, "rank 1 has stopped; found ConfigError: wrong")
    with pytest.raises(error, match=message), ranks.as_one({"epoch": 0}):
        if rank:
            raise ConfigError("wrong")
    with pytest.raises(ConfigError, match=f"wrong {rank}"), ranks.as_one({"epoch": 0}):
        raise ConfigError(f"wrong {rank}")


def follow_the_size(rank):
    """A wrapper keeps what it was told, whoever holds it."""
    model, hooked = nn.Linear(3, 4), []
    kept = [nn.Sequential(DistributedDataParallel(nn.Sequential(model)))]
    wrapper = kept[0][0]
    wrapper.register_comm_hook(hooked, counted)
    wrapper.eval().register_forward_hook(lambda *_: hooked.append("forward"))
    for width, searching in ((5, True), (2, False)):
        model.weight, model.bias = nn.Parameter(torch.ones(width, 3)), nn.Parameter(torch.ones(width))
        gc.freeze()  # some programs do, to have less to look through
        wrap_anew(model, searching=searching)
        hooked.clear()
        wrapper(torch.full((1, 3), 1.0 + rank)).sum().backward()
        assert model.weight.grad.tolist() == [[1.5] * 3] * width  # the mean of both ranks
        assert hooked == ["forward", "gradients"] and wrapper.find_unused_parameters == searching
        assert not wrapper.training
        gc.disable()
        spare = DistributedDataParallel(nn.Sequential(model))
        vars(spare)["itself"] = spare
        del spare  # nobody holds it, and one rank has collected it
        if rank:
            gc.collect()
    gc.enable()
    gc.unfreeze()
    if rank:
        kept.clear()
        wrapper = None
    with pytest.raises(TrainingError, match=r"as many wrappers around it on each rank, found \[1, 0\]"):
        wrap_anew(model, searching=False)
    kept.clear()
    refuse_wrappers()


def refuse_wrappers():
    """Before anything is changed, and one message each."""
    half = [torch.distributed.new_group([number]) for number in (0, 1)][torch.distributed.get_rank()]
    hook, stateful = allreduce_hook, SimpleNamespace(process_group=None, errors={0: torch.zeros(2)})
    for settings, make, found in (
        ({"process_group": half}, lambda w: None, "a process group of 1 of 2 ranks"),
        ({}, lambda w: setattr(w, "mixed_precision", "fp16"), "mixed_precision"),  # which no CPU can
        ({}, lambda w: w.register_comm_hook(stateful, lambda state, bucket: hook(None, bucket)), "state holds tensors"),
        ({}, lambda w: w.register_comm_hook(PowerSGDState(None), powerSGD_hook), "PowerSGD in a search"),
        ({}, lambda w: w._register_builtin_comm_hook(BuiltinCommHookType.ALLREDUCE), "PyTorch's own"),
        ({"ignore": ["0.weight"]}, lambda w: None, "0.weight, which is trained and ignored"),
        ({"delay": True}, lambda w: None, "delay_all_reduce_named_params"),
    ):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        own = dict(settings)
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, own.pop("ignore", []))
        if own.pop("delay", False):
            delayed = [("1.bias", model[1].bias)]
            own = {"delay_all_reduce_named_params": delayed, "param_to_hook_all_reduce": model[0].weight}
        wrapper = DistributedDataParallel(model, **own)
        make(wrapper)
        reducer = vars(wrapper).get("reducer")
        for check in (check_wrappers, wrap_anew):
            with pytest.raises(ConfigError, match=f"DistributedDataParallel: .*{found}"):
                check(model, searching="search" in found)
        assert vars(wrapper).get("reducer") is reducer


def counted(hooked, bucket):
    hooked.append("gradients")
    return allreduce_hook(None, bucket)


def test_what_ranks_hold_is_compared(tmp_path):
    torch.multiprocessing.start_processes(alone_and_wrong, (str(tmp_path),), nprocs=2, start_method=fresh())
    assert ranks.ranks() == 1 and ranks.rank() == 0 and ranks.decided("x") == "x" and ranks.gathered(1) == [1]


if __name__ == "__main__":  # one of the ranks
    for port, run in json.loads(sys.argv[1]):
        # What ranks of one run have said to each other is not to be taken for another's.
        os.environ |= {"MASTER_PORT": f"{port}", "TORCHELASTIC_USE_AGENT_STORE": "False"}
        if code := main(run):
            sys.exit(code)
