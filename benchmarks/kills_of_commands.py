"""Commands that are killed at random moments, twice in a row, and must end as if nothing had been.

    python benchmarks/kills_of_commands.py [--commands train compare ...] [--moments 15] [--seconds 600]

For each command and way of ending it so many moments. A way is a list of signals: KILL; KILL KILL, of which the second
comes to the process that goes on; TERM KILL and INT INT, of which the second comes to the same process, within 0.2 s of
the first. A moment lies at a random place of the time that the command takes when it is left alone, one in three in its
last fifth, in which results are written. After it the same command goes on (`train` with `--resume true`), and what it
leaves must be what it leaves alone: weights, tables of results (without times) and exported tensors, bit for bit.

It says of each process that was stopped and could speak that it ended with 130 or 143 and in one line, and that no file
is left that is half written. A process that was over before its signal came is no moment.

The commands run in processes that are forked from one which has imported everything and waits: a moment takes a second
or two. Appends a line for each moment to benchmarks/results/kills/runs.jsonl; those that are there are not made again.
"""

from __future__ import annotations

import argparse
import csv
import faulthandler
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from morphogen.cli import main as morphogen
from morphogen.report.ledger import environment
from morphogen.report.render import as_markdown

RESULTS = Path(__file__).parent / "results" / "kills" / "runs.jsonl"
SMALL = (
    "--model resnet8(width=4) --images 128 --test_images 32 --batch_size 32 --image_size 8 --save_every 0 "
    "--epochs 2 --method NetworkExpansion(stages=2)"
).split()
COMPARED = [word for word in SMALL if word not in ("--save_every", "0", "--method", "NetworkExpansion(stages=2)")]
METHODS = ["--methods", "[NetworkExpansion(stages=2)]"]
COMMANDS = {
    "train": ["train", *SMALL, "--resume", "true"],
    "compare": ["compare", *COMPARED, *METHODS],
    "budgets": ["compare", *COMPARED, "--epochs", "4", "--budgets", "[0.5, 1]", *METHODS],
    "parallel": ["compare", *COMPARED, "--epochs", "4", "--budgets", "[0.5, 1]", "--parallel", "2", *METHODS],
    "export": ["export", "RUN", "--onnx", "true", "--program", "true"],
}
WAYS = {"KILL": ["KILL"], "KILL KILL": ["KILL", "KILL"], "TERM KILL": ["TERM", "KILL"], "INT INT": ["INT", "INT"]}
TIMES = re.compile("second|time|memory|speed|realised|accuracy_before|environment|ratio|low|high|interval")
"""Figures that are the machine's."""


def start(arguments: list[str], said: Path) -> int:
    """The number of a process that runs a command; what it says goes to a file."""
    process = os.fork()
    if process:
        return process
    os.setsid()
    faulthandler.enable()  # a process that aborts says where
    # After a fork PyTorch makes its thread pool anew for the first thread that asks, without a lock: two at once abort.
    torch.set_num_threads(torch.get_num_threads())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so do we then
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1), os.dup2(file, 2)
    try:
        code = morphogen(arguments)
    except BaseException as error:
        print(f"not caught: {error!r}", flush=True)
        code = 99
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


def over(process: int) -> int | None:
    """Its exit code, where it is gone."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def end(process: int, seconds: float = 300) -> int:
    """Wait for it; a process that hangs is a finding."""
    until = time.monotonic() + seconds
    while (code := over(process)) is None:
        if time.monotonic() > until:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return 124
        time.sleep(0.005)
    return code


def stop(arguments: list[str], said: Path, moments: list[float], names: list[str], together: bool) -> list[int]:
    """Run a command and end it by signals: all of them to one process, or each to one that goes on; the exit codes."""
    codes = []
    process = start(arguments, said)
    for number, (moment, name) in enumerate(zip(moments, names, strict=True)):
        if number and not together:
            process = start(arguments, said)
        time.sleep(moment)
        code = over(process)
        if code is not None:
            return [*codes, code]
        os.kill(process, signal.Signals[f"SIG{name}"])
        if not together or number == len(names) - 1:
            codes.append(end(process))
    return codes


def outcome(command: str, folder: Path) -> str:
    """A hash of all that must not depend on how it was made."""
    digest = hashlib.sha256()

    def tensors(found: dict[str, torch.Tensor]) -> None:
        for name, tensor in sorted(found.items()):
            digest.update(f"{name} {tensor.shape}".encode() + tensor.contiguous().numpy().tobytes())

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items() if not TIMES.search(key)}
        return [plain(each) for each in value] if isinstance(value, list) else value

    if command == "train":
        tensors(torch.load(folder / "model.pt", weights_only=True)["state_dict"])
        digest.update(json.dumps(plain(json.loads((folder / "results.json").read_text()))).encode())
    elif command == "export":
        tensors(load_file(folder / "model.safetensors"))
        for name, least in (("model.onnx", 1000), ("model.pt2", 1000)):
            assert (folder / name).stat().st_size > least
        torch.export.load(folder / "model.pt2")
    else:
        records = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
        kept = {(r["method"], r.get("budget", 1), r["seed"]): [e["loss"] for e in r["epochs"]] for r in records}
        assert len(kept) == len(records), "a run is there twice"
        # A dense run in the time of another is as long as the machine was fast.
        digest.update(repr(sorted(item for item in kept.items() if " in the time of " not in item[0][0])).encode())
        tables = ["results.csv"] if command == "compare" else ["fronts.csv"]
        for name in tables:
            assert len(list(csv.DictReader((folder / name).open()))) == len(records)
        pictures = ["accuracy.png"] if command == "compare" else ["fronts.png"]
        assert all((folder / name).stat().st_size > 1000 for name in pictures)
    return digest.hexdigest()


def moment(command: str, way: str, seed: int, alone: str, takes: float, where: Path, run: Path) -> dict:
    """One of them."""
    dice, names = random.Random(f"{command} {way} {seed}"), WAYS[way]
    together = way in ("TERM KILL", "INT INT")
    share = 0.8 + 0.2 * dice.random() if seed % 3 == 0 else dice.random()
    moments = [takes * share, dice.random() * (0.2 if together else takes * (1 - share))][: len(names)]
    folder, said = where / "out", where / "said"
    arguments = [str(run) if word == "RUN" else word for word in COMMANDS[command]] + ["--output", str(folder)]
    shutil.rmtree(folder, ignore_errors=True)
    codes = stop(arguments, said, moments, names, together)
    lines = [line for line in said.read_text().splitlines() if "morphogen: " in line or "Traceback" in line]
    code = end(start(arguments, said))
    said_again = said.read_text().strip().splitlines()
    last = [line for line in said_again if "what():" in line] + said_again[-1:]
    equal = code == 0 and outcome(command, folder) == alone
    parts = [path.name for path in folder.rglob("*.part")] if folder.exists() else []
    silent = sum(code not in (0, -signal.SIGKILL) for code in codes)
    return {
        "command": command,
        "signal": way,
        "seed": seed,
        "at": [round(each, 3) for each in moments],
        "exit": codes,
        "said": [line[-160:].replace(str(where), "") for line in lines] if silent else [],
        "again": code,
        "equal": equal,
        "half_written": parts,
        "last": [] if equal else last,
    }


def table(records: list[dict]) -> list[dict[str, str]]:
    """A row for each command and way."""
    kinds = dict.fromkeys((r["command"], r["signal"]) for r in records)
    rows = []
    for command, way in kinds:
        mine = [r for r in records if (r["command"], r["signal"]) == (command, way)]
        met = [r for r in mine if any(code for code in r["exit"])]
        rows.append(
            {
                "command": command,
                "signals": way,
                "moments": f"{len(met)}",
                "equal": f"{sum(r['equal'] for r in met)}",
                "over before it came": f"{len(mine) - len(met)}",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--moments", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1e9, help="to begin new moments in")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        where = Path(place)
        run, warm = where / "run", where / "warm"
        assert end(start([*COMMANDS["train"], "--output", str(run)], where / "said")) == 0, (where / "said").read_text()
        for command in options.commands:
            arguments = [str(run) if word == "RUN" else word for word in COMMANDS[command]] + ["--output", str(warm)]
            shutil.rmtree(warm, ignore_errors=True)
            started = time.monotonic()
            assert end(start(arguments, where / "said")) == 0, (where / "said").read_text()
            takes, alone = time.monotonic() - started, outcome(command, warm)
            print(command, f"takes {takes:.1f} s", flush=True)
            for way in options.ways:
                there = {r["seed"] for r in recorded() if (r["command"], r["signal"]) == (command, way)}
                for seed in (seed for seed in range(options.moments) if seed not in there):
                    if time.monotonic() - begin > options.seconds:
                        break
                    made = moment(command, way, seed, alone, takes, where, run)
                    made["environment"] = environment(torch.device("cpu"))
                    with open(RESULTS, "a") as file:
                        file.write(json.dumps(made) + "\n")
                    print(command, way, seed, made["exit"], made["equal"], made["said"], made["last"], flush=True)
    print(as_markdown(table(recorded())))


def recorded() -> list[dict]:
    """The moments so far."""
    records = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    return [r for r in records if "command" in r]


if __name__ == "__main__":
    main()
