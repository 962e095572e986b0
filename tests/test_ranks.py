"""The trainer under torchrun: several processes train as one does, and a lost one is told of."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from morphogen import ranks
from morphogen.errors import TrainingError

HERE = Path(__file__).parent
SETTINGS = "--model test_ranks:Net --batch_size 96 --images 480 --test_images 101 --lr 0.3 --epochs 4".split()


class Net(nn.Sequential):
    """No batch norm: its statistics would be each rank's own."""

    def __init__(self, num_classes):
        convs = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*convs, nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, num_classes))


def start(count, folder, *more):
    many = ["-m", "torch.distributed.run", "--nproc_per_node", str(count), "--standalone"]
    command = [sys.executable, *(many if count > 1 else []), "-m", "morphogen", "train", *SETTINGS, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(
        [*command, "--output", str(folder)], cwd=HERE, env=environment, text=True, start_new_session=True, **pipes
    )


def finished(process, folder):
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert output.count("weights, ledger and schedule are in") == 1  # one rank speaks
    record = json.loads((folder / "results.json").read_text())[0]
    return torch.load(folder / "model.pt", weights_only=True)["state_dict"], record


@pytest.mark.parametrize("method", ["NetworkExpansion(stages=2)", "PruneTrain(ratio=0.9, interval=1, threshold=0.02)"])
def test_two_ranks_train_as_one_process_does(tmp_path, method):
    runs = [start(count, tmp_path / str(count), "--method", method) for count in (1, 2)]
    (one, alone), (two, together) = (finished(run, tmp_path / str(n)) for n, run in enumerate(runs, 1))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
    assert alone["history"] == together["history"] and len(alone["history"]) > 1
    for ours, theirs in zip(alone["epochs"], together["epochs"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=2)
    if method.startswith("NetworkExpansion"):  # the penalty of the other lets nothing be learnt in four epochs
        assert alone["epochs"][-1]["loss"] < 0.9 * alone["epochs"][0]["loss"]
    assert alone["flops"] == together["flops"]


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


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc")
def test_a_lost_rank_is_told_of_and_another_number_of_them_goes_on(tmp_path):
    settings = "--save_every", "0", "--epochs", "400"
    run = start(2, tmp_path, *settings)
    wait_for(lambda: saved(tmp_path))
    begin = time.monotonic()
    os.kill(workers(run)[1], signal.SIGKILL)
    output = run.communicate(timeout=120)[0]
    assert time.monotonic() - begin < 60 and run.returncode != 0
    assert "rank 0: another rank is gone" in output
    left = saved(tmp_path)
    again = start(1, tmp_path, *settings, "--resume", "true")
    wait_for(lambda: saved(tmp_path) - left)
    again.send_signal(signal.SIGTERM)
    output = again.communicate(timeout=60)[0]
    assert again.returncode == 128 + signal.SIGTERM and min(saved(tmp_path)) > max(left), output


def alone_and_wrong(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    same, other = torch.arange(3.0), torch.tensor([1.0, 2.0 + rank])
    ranks.check_same("a tensor", [same], "text")
    for tensors, rest in (([same, other], ()), ([same], (rank,)), ([same[: 3 - rank]], ())):
        with pytest.raises(TrainingError, match=r"different values of a tensor.*others on rank 1"):
            ranks.check_same("a tensor", tensors, *rest)
    ranks.spread([other])
    assert other.tolist() == [1.0, 2.0] and ranks.decided(rank) == 0 and ranks.gathered(rank) == [0, 1]
    assert ranks.mean(torch.tensor([float(rank)])).tolist() == [0.5]
    torch.distributed.destroy_process_group()


def test_what_ranks_hold_is_compared(tmp_path):
    torch.multiprocessing.spawn(alone_and_wrong, (str(tmp_path),), nprocs=2)
    assert ranks.ranks() == 1 and ranks.rank() == 0 and ranks.decided("x") == "x" and ranks.gathered(1) == [1]
