"""Everything that a GPU can tell about Morphogen, in one command of at most 8 minutes.

    python benchmarks/gpu.py [--data cifar10.tar.gz] [--output FILE] [--only NAME] [--again] [--toy]

Checks come first, then what steps cost, then an accuracy study on CIFAR-10 where its images are given. Every check is
on its own: one that fails, hangs or takes its process down is recorded, and the rest goes on. Rows are appended to
benchmarks/results/gpu/runs.jsonl as they come; a second run leaves out what is done at the same commit and goes on with
the study. It needs torch, torchvision and timm, and nothing else. `--toy` runs all of it at toy size on a CPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products; read at the first one
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")]

import torch  # noqa: E402

from on_gpu import cifar, loops, morphs, steps, study, trainer  # noqa: E402, F401  (they enter their checks)
from on_gpu.harness import (  # noqa: E402
    BROKEN,
    CHECKS,
    Bench,
    Results,
    commit,
    header,
    in_turn,
    run_checks,
    supervise,
    table,
    worker_command,
)


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    default = Path(__file__).parent / "results" / "gpu" / "runs.jsonl"
    parser.add_argument("--output", type=Path, default=default, help="file of results, appended to")
    parser.add_argument("--data", type=Path, help="CIFAR-10: a folder, a .tar.gz of it, or a .pt of --prepare")
    parser.add_argument("--prepare", type=Path, help="write --data as a .pt file of tensors, and stop")
    parser.add_argument("--only", action="append", default=[], help="checks whose names begin so; may come again")
    parser.add_argument("--skip", action="append", default=[], help="checks whose names do not begin so")
    parser.add_argument("--again", action="store_true", help="run checks that are done as well")
    parser.add_argument("--toy", action="store_true", help="everything small, on the CPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="name the checks, and stop")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.list:
        print("\n".join(in_turn()))
        return 0
    if options.prepare is not None:
        if options.data is None:
            parser.error("--prepare needs --data")
        cifar.prepare(options.data, options.prepare)
        return 0
    if not options.toy and not torch.cuda.is_available():
        parser.error("no GPU is there; --toy runs on the CPU")
    names = [
        name
        for name in in_turn()
        if (not options.only or name.startswith(tuple(options.only)))
        and not (options.skip and name.startswith(tuple(options.skip)))
    ]
    if not names:
        parser.error(f"no such check; there are: {', '.join(in_turn())}")
    device = torch.device("cpu" if options.toy else "cuda:0")
    if options.worker is not None:
        return work(options, names, device)
    session, deadline = f"{time.time():.0f}", time.time() + 60 * options.minutes
    results = Results(options.output, session, commit())
    kind = "cpu" if options.toy else torch.cuda.get_device_name(0)
    results.add(header=header(device, options.seed, results.commit), toy=options.toy, minutes=options.minutes)
    supervise(worker_command(given, session, deadline), results, _marker(options.output), deadline, kind, options.toy)
    _marker(options.output).unlink(missing_ok=True)
    print("\n" + table(results.rows(), session))
    return 1 if any(row.get("status") == "failed" and row["session"] == session for row in results.rows()) else 0


def work(options: argparse.Namespace, names: list[str], device: torch.device) -> int:
    """What a worker does: the checks that are not done yet."""
    results = Results(options.output, options.worker, commit())
    bench = Bench(device, options.toy, options.seed, options.until, results, options.data)
    if bench.toy:
        torch.set_num_threads(1)
    done = results.done(bench.kind, bench.toy, options.again)
    over = results.done(bench.kind, bench.toy, again=True)
    left = [name for name in names if name not in (over if CHECKS[name].repeats else done)]
    answers = run_checks(bench, left, _marker(options.output))
    # What has been asked of the device or of a compiler may still be at work; nothing of it is wanted.
    sys.stdout.flush()
    os._exit(0 if answers else BROKEN)


def _marker(output: Path) -> Path:
    return output.with_name(output.name + ".now")


if __name__ == "__main__":
    sys.exit(main())
