"""The GPU benchmark at toy size: a check that fails or is cut short is recorded, and the rest goes on."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from on_gpu import harness, loops, morphs  # noqa: F401
from on_gpu.harness import Bench, Check, OutOfTime, Results, run_checks, table


@pytest.fixture
def bench(tmp_path):
    results = Results(tmp_path / "gpu" / "runs.jsonl", "session 1", "commit 1")
    return Bench(torch.device("cpu"), True, 0, time.time() + 60, results)


def planted(monkeypatch, name, run, **settings):
    entry = Check(name, run, **{"budget": 20, "least": 1, "cuda": False, "repeats": False, "turn": 0} | settings)
    monkeypatch.setitem(harness.CHECKS, name, entry)


def fails(bench):
    bench.note(seen=3)
    raise ValueError("planted")


def hangs(bench):
    while True:
        time.sleep(0.01)


def test_checks_run_fail_and_run_on(monkeypatch, bench):
    planted(monkeypatch, "fails", fails)
    planted(monkeypatch, "hangs", hangs, budget=0.2)
    planted(monkeypatch, "gpu", fails, cuda=True)
    names = ["device", "fails", "hangs", "gpu", "morph ResNet-18, SGD fused"]
    assert run_checks(bench, names)
    rows = {row["check"]: row for row in bench.results.rows() if row["status"] != "part"}
    assert [rows[name]["status"] for name in names] == ["ok", "failed", "failed", "skipped", "ok"]
    assert rows["fails"]["figures"] == {"seen": 3} and "ValueError: planted" in rows["fails"]["error"]
    assert OutOfTime.__name__ in rows["hangs"]["error"] and rows["hangs"]["seconds"] < 5
    assert rows["morph ResNet-18, SGD fused"]["figures"]["entries"] > 10_000
    assert "2 ok, 2 failed, 1 skipped" in table(bench.results.rows(), "session 1")
    text = bench.results.path.read_text()
    assert str(Path.cwd()) not in text and sys.prefix not in text


def test_what_is_done_is_not_run_again(bench):
    results, here = bench.results, {"device": "cpu", "toy": True}
    results.add(check="a", status="ok", **here)
    results.add(check="b", status="failed", **here)
    results.add(check="c", status="part", **here)
    with open(results.path, "a") as file:
        file.write('{"check": "cut sh')
    later = Results(results.path, "session 2", "commit 1")
    assert results.done("cpu", True, False) == {"a", "b"}
    assert later.done("cpu", True, False) == {"a"}
    assert later.done("cpu", True, True) == later.done("gpu", True, False) == set()
    assert Results(results.path, "session 3", "commit 2").done("cpu", True, False) == set()
    later.add(check="d", status="ok", **here)
    assert [row["check"] for row in later.rows()] == ["a", "b", "c", "d"]
    assert json.loads(results.path.read_text().splitlines()[-1])["session"] == "session 2"
