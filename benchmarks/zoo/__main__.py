"""Any list of models of timm, torchvision and others: traced, narrowed to half, trained a step, grown back, checked.

    python benchmarks/zoo --models 'timm:resnet1*' torchvision:vgg11 --output FOLDER
    python benchmarks/zoo --set timm-files --peer           one model of each of timm's files, Torch-Pruning beside
    python benchmarks/zoo --set torchvision timm-30m --workers 8 --memory 6
    python benchmarks/zoo --largest                         the largest there are: traced and narrowed
    python benchmarks/zoo --set timm-files --again refused failed    these once more
    python benchmarks/zoo --set wild --peer --output FOLDER                  of other packages (see wild/__init__.py)
    python benchmarks/zoo --table                           the tables and the figure alone, from runs.jsonl

Every model runs in a process of its own, on one thread, with a limit of time and memory. Its outcome is a line of
runs.jsonl in the output folder; what is there is not run again. Outcomes:

ok        every step went well, something really became narrower, and the check (see correct.py) found it right
refused   Morphogen said that it cannot, before anything was changed, or nothing became narrower
wrong     the narrower or the grown network computes something else than it should
failed    an error, the limit of time or of memory

Times are honest only if no more processes run than there are cores. --peer needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"  # before anything starts threads: a process with threads cannot be forked

PACKAGES = """transformers diffusers monai segmentation-models-pytorch ultralytics open-clip-torch effdet vit-pytorch
    x-transformers pytorchcv spandrel dynamic-network-architectures""".split()

Job = tuple[str, str]
"""A model and the tool that narrows it."""

HERE = Path(__file__).parent
FORK = multiprocessing.get_context("fork")  # what tracing needs is loaded once, by the parent


@dataclass
class Child:
    """A process at work on one job, and what it has told so far."""

    job: Job
    process: ForkProcess
    pipe: Any
    start: float
    record: dict[str, Any] = field(default_factory=dict)

    def listen(self) -> None:
        """Take in what the process has told."""
        while not self.pipe.closed and self.pipe.poll():
            try:
                told = self.pipe.recv()
            except EOFError:
                self.pipe.close()
            else:
                steps = {**self.record.get("steps", {}), **told.pop("steps", {})}
                self.record |= told | {"steps": steps}

    def outcome(self, limit: float) -> dict[str, Any] | None:
        """The finished record; None while the process is at work.

        It ends itself when it has computed for too long. One that only waits is killed after ten times as long.
        """
        seconds = time.monotonic() - self.start
        over = seconds > 10 * limit
        if over:
            self.process.kill()
            self.process.join()
        ended = not self.process.is_alive()
        self.listen()
        if not ended:
            return None
        if "outcome" not in self.record:
            code = self.process.exitcode or 0
            over = over or code == -signal.SIGXCPU
            why = f"over the limit of {limit:g} s" if over else f"the process ended with code {code}"
            self.record |= {"outcome": "failed", "message": why}
        name, tool = self.job
        return {"model": name, "tool": tool, **self.record, "seconds": seconds}


def start(job: Job, options: dict[str, Any]) -> Child:
    """Begin a job in a process of its own."""
    ours, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=in_child, args=(job, options, theirs))
    process.start()
    theirs.close()
    return Child(job, process, ours, time.monotonic())


def in_child(job: Job, options: dict[str, Any], pipe: Any) -> None:
    """The work of one process; Ctrl-C is the parent's to answer, and whatever models print is nobody's."""
    from measure import work

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    work(*job, options, pipe.send)


def load_what_tracing_needs(jobs: list[Job]) -> None:
    """Trace a small net, so that no model's time has PyTorch's own start in it; import the packages of the models."""
    import torch

    import morphogen

    importlib.import_module("measure")  # what the processes forked from this one will run
    import wild

    for name in {name.partition(":")[0]: name for name, _ in jobs if name in wild.models()}.values():
        with suppress(Exception):  # it is told as that model's outcome
            wild.build(name)

    net = morphogen.trace(
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 4, 1)), torch.ones(2, 3, 4, 4)
    )
    morphogen.morph(net, net.subnetwork(width=0.5))


def run_all(jobs: list[Job], options: argparse.Namespace, runs: Path) -> None:
    """Run the jobs side by side; each finished one is a line of the file."""
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from morphogen.report.ledger import environment

    load_what_tracing_needs(jobs)
    settings = {key: getattr(options, key) for key in ("width", "check", "until", "memory", "limit")}
    about = {"environment": environment(torch.device("cpu")), "settings": settings}
    about["environment"] |= versions()
    counts: dict[str, int] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Refreshed by hand: a thread that draws could be at work while a process is forked.
    with Progress(*columns, console=Console(), auto_refresh=False) as progress, open(runs, "a") as file:
        task = progress.add_task("", total=len(jobs))
        waiting, children = jobs[::-1], list[Child]()
        try:
            while waiting or children:
                while waiting and len(children) < options.workers:
                    children.append(start(waiting.pop(), settings))
                wait([child.process.sentinel for child in children], timeout=0.2)
                for child in list(children):
                    record = child.outcome(options.limit)
                    if record is None:
                        continue
                    children.remove(child)
                    file.write(json.dumps(record | about) + "\n")
                    file.flush()
                    key = record["outcome"]
                    counts[key] = counts.get(key, 0) + 1
                    if key != "ok":
                        progress.console.print(
                            f"{key:>8} {record['tool']} {record['model']}: {record['message']}"[:240]
                        )
                    progress.advance(task)
                at = " ".join(child.job[0].partition(":")[2] for child in children)
                progress.update(task, description=", ".join(f"{n} {k}" for k, n in counts.items()) + f" [dim]{at[:60]}")
                progress.refresh()
        except KeyboardInterrupt:
            progress.console.print("stopped; what is done is kept, the same command goes on from here")
        finally:
            for child in children:
                child.process.kill()


def versions() -> dict[str, str]:
    """Of the packages beside PyTorch that figures are true for."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("timm", "torchvision", "torch-pruning", *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def free_memory() -> float:
    """GiB that are free now; 8 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20
    except (OSError, StopIteration):
        return 8.0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="*", default=[], help="names or globs: timm:NAME, torchvision:NAME, PACKAGE:NAME"
    )
    parser.add_argument(
        "--set", nargs="*", default=[], choices=("torchvision", "timm-files", "timm-30m", "largest", "wild")
    )
    parser.add_argument("--largest", action="store_true", help="the same as --set largest --until narrow --limit 1800")
    parser.add_argument("--output", type=Path, default=HERE.parent / "results" / "zoo", help="folder of runs.jsonl")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes; default: cores")
    parser.add_argument(
        "--limit", type=float, default=120.0, help="seconds on the processor for one model with one tool"
    )
    parser.add_argument("--memory", type=float, help="GiB for one process; default: the free memory shared out")
    parser.add_argument("--width", type=float, default=0.5, help="share of the channels to keep")
    parser.add_argument("--until", choices=("narrow", "check"), default="check", help="the last step")
    parser.add_argument("--check", action=argparse.BooleanOptionalAction, default=True, help="check what is computed")
    parser.add_argument("--peer", action="store_true", help="Torch-Pruning on the same models, too")
    parser.add_argument("--again", nargs="*", default=[], help="outcomes that are run once more: refused failed ...")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    if options.largest:
        options.set, options.until, options.limit = [*options.set, "largest"], "narrow", max(options.limit, 1800.0)
    if options.memory is None:
        options.memory = 0.9 * free_memory() / options.workers
    if not (options.models or options.set or options.table):
        parser.error("say which models: --models or --set")
    return options


def main() -> None:
    options = parse()
    options.output.mkdir(parents=True, exist_ok=True)
    runs = options.output / "runs.jsonl"
    from render import read, render

    if not options.table:
        from catalogue import matching, preset

        names = matching(options.models)
        for each in options.set:
            names += preset(each, options.output / "sizes.json")
        tools = ["morphogen", *(["torch-pruning"] if options.peer else [])]
        done = {job for job, record in read(runs).items() if record["outcome"] not in options.again}
        jobs = [(name, tool) for name in dict.fromkeys(names) for tool in tools if (name, tool) not in done]
        run_all(jobs, options, runs)
    render(read(runs), options.output)


if __name__ == "__main__":
    main()
