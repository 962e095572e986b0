"""The command line: `morphogen train`, `compare`, `plan`, `inspect`, `export`, `label-maps`."""

from __future__ import annotations

import json
import signal
import sys
import time
import warnings
from argparse import SUPPRESS, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .errors import ConfigError, MorphogenError, TrainingError, first_line
from .export.finite import not_finite
from .machine.files import write_text
from .machine.folder import owned
from .machine.ranks import decided_by_first, rank
from .machine.reading import MALFORMED
from .methods import build_method
from .plan.show import stage_rows, told, total, width_rows
from .report.fronts import speedups_at_equal_accuracy
from .report.headline import front_rows, headline_rows, write_headline
from .report.inspect import describe
from .report.ledger import environment
from .report.render import as_table, summary, write_results
from .report.savings.rows import saving_rows
from .report.savings.write import draw_savings
from .report.searches import draw_searches, search_rows, search_title
from .train.checkpoint import Checkpoints, Stopped, listening
from .train.compare import compare
from .train.config import CompareConfig, ExportConfig, LabelMapsConfig, PlanConfig, TrainConfig, find_device
from .train.distributed import joined
from .train.earlier import Earlier
from .train.export import export_run
from .train.lengths import compare_lengths
from .train.loop import Run
from .train.models import build_model
from .train.planning import plan_recipe
from .train.settings import MODE
from .train.sources import load_data, training_images
from .train.token_labels.teacher import load_teacher, make_label_maps
from .train.trackers import tracking

EXAMPLES = {
    "train": """examples:
  morphogen train
  morphogen train --model "resnet20(width=32)" --data /data/cifar10 --epochs 60 --method "NetworkExpansion(stages=3)"
  morphogen train --config run.yaml --seed 1
  morphogen train --config recipes/volo_d1.yaml --data imagenet:/data/imagenet --token_labels maps""",
    "compare": """examples:
  morphogen compare
  morphogen compare --data /data/cifar10 --seeds 3 --epochs 30 \\
      --methods "[NetworkExpansion(operator='orthogonal'), NetworkExpansion(operator='random')]"
  morphogen compare --config study.yaml
speed at equal accuracy, from complete runs of several lengths (a minute on a CPU; then a study):
  morphogen compare --budgets "[0.5, 1, 1.5]" --seeds 3 --model "resnet8(width=8)" --epochs 10 \\
      --methods "[ProgressiveResizing(ratio=0.75)]" --output runs/fronts
  morphogen compare --config study.yaml --budgets "[0.3, 0.5, 0.75, 1, 1.25]" --seeds 5 --parallel 2""",
    "plan": """examples:
  morphogen plan resnet50 --method "Prog(ratio=0.5)" --batch_size 128 --images 1281167
  morphogen plan "resnet20(width=32)" --method "NetworkExpansion(stages=3)" --data cifar10:/data/cifar10 --epochs 60
  morphogen plan --config recipes/deit_small.yaml --method Prog --batch_size 128 --json true
  morphogen plan resnet50 --method PruneTrain --batch_size 128 --seconds 300""",
    "inspect": """examples:
  morphogen inspect resnet50
  morphogen inspect timm:convnext_nano --shares "[0.25, 0.5]"
  morphogen inspect mypackage.nets:build --image_size 64""",
    "export": """examples:
  morphogen export
  morphogen export runs/vit --onnx true
  morphogen export runs/vit --program true --output deploy""",
    "label-maps": """examples:
  morphogen label-maps --data imagenet:/data/imagenet --teacher dm_nfnet_f6 --image_size 576 --output maps
  morphogen label-maps --data /data/flowers \\
      --teacher "resnet50(checkpoint_path='teacher.safetensors', num_classes=102)" --output maps""",
}

GO_ON = {
    "train": "; go on with the same command and --resume true",
    "compare": "; go on with the same command",
    "export": "; nothing is half written, the same command writes what is missing",
    "label-maps": "; go on with the same command",
}
"""What to do when a command was stopped."""

OPTIONAL = {
    "plan": ("model", "as in train"),
    "export": ("run", "output folder of `morphogen train` (default: runs/train)"),
}
"""The settings that may be given without a name, first."""


@dataclass(frozen=True)
class InspectConfig:
    """What of a model can change size.

    Attributes:
        model: `resnet20(width=32)`, any torchvision or timm name, or `package.module:function`.
        image_size: side of the square input in pixels.
        num_classes: number of outputs.
        shares: of the width, the depth and the resolution, to count parameters and FLOPs at.
        exclude: module paths to leave whole.
        json: print JSON instead of tables.
    """

    model: str
    image_size: int = 224
    num_classes: int = 1000
    shares: tuple[float, ...] = (0.5, 0.75)
    exclude: tuple[str, ...] = ()
    json: bool = False

    def __post_init__(self) -> None:
        if self.image_size < 1 or self.num_classes < 1:
            raise ConfigError(
                "out of range",
                expected="image_size and num_classes at least 1",
                found=f"{self.image_size} and {self.num_classes}",
            )
        if not all(0 < share <= 1 for share in self.shares):
            raise ConfigError("shares out of range", expected="each above 0, at most 1", found=f"{self.shares}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for what the user can mend, 130 or 143 after Ctrl-C or SIGTERM."""
    command = ""
    try:
        with warnings.catch_warnings(), listening(_end):
            warnings.showwarning = _one_line
            command, settings = _parse(arguments)
            return COMMANDS[command][1](settings)
    except MorphogenError as error:
        print(f"morphogen: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be written to
        print(f"morphogen: cannot read or write a file ({first_line(error)})", file=sys.stderr)
        return 2
    except (Stopped, KeyboardInterrupt) as stop:
        stopped = stop if isinstance(stop, Stopped) else Stopped(_number(stop))
        print(f"morphogen: {stopped}{GO_ON.get(command, '')}", file=sys.stderr)
        return 128 + stopped.signal


def _end(number: int) -> None:
    """SIGTERM ends a command as Ctrl-C does."""
    raise KeyboardInterrupt(number)


def _number(stop: KeyboardInterrupt) -> int:
    """Of the signal."""
    return stop.args[0] if stop.args else signal.SIGINT


def _one_line(message: Warning | str, *_: object) -> None:
    """A warning as a user wants to read it, without the line of our code that gave it."""
    print(f"morphogen: {message}", file=sys.stderr)


def _parse(arguments: Sequence[str] | None) -> tuple[str, object]:
    parser = ArgumentParser(
        prog="morphogen",
        exit_on_error=False,
        parser_mode=MODE,  # of the commands too
        description="Train vision networks faster by changing their size while they train.",
        formatter_class=_Formatter,  # of the commands too
    )
    commands = parser.add_subcommands(dest="command", required=True)
    for name, (kind, run) in COMMANDS.items():
        sub = ArgumentParser(exit_on_error=False, description=run.__doc__, epilog=EXAMPLES[name])
        if name == "inspect":
            sub.add_argument("model", type=str, help="name of a model, or package.module:function")
            sub.add_class_arguments(kind, skip={"model"}, as_group=False)
        else:
            sub.add_argument("--config", action="config", help="YAML file with the keys below")
            first, told = OPTIONAL.get(name, ("", ""))
            if first:
                sub.add_argument(first, nargs="?", type=str, default=SUPPRESS, help=told)
            sub.add_class_arguments(kind, skip={first}, as_group=False)
        commands.add_subcommand(name, sub, help=str(run.__doc__).partition(";")[0].partition(".")[0])
    try:
        parsed = parser.parse_args(arguments)
        settings: Namespace = parsed[parsed.command]
        settings.pop("config", None)
        return parsed.command, COMMANDS[parsed.command][0](**vars(settings))
    except (ArgumentError, *MALFORMED) as error:
        raise ConfigError(" ".join(str(error).split())) from None


def run_train(config: TrainConfig) -> int:
    """Train one network by one method; weights and ledger go to the output folder."""
    with joined(config.torch_device()), owned(config.output):
        return _train(config)


def _train(config: TrainConfig) -> int:
    earlier = decided_by_first(lambda: Earlier.of(config))
    checkpoints = Checkpoints(config.output / "checkpoints", config.save_every, config.keep)
    if config.resume and earlier.finished:
        checkpoints.clear()  # which it may have been killed before
        if rank() == 0:
            print(
                f"the run in {config.output} is finished; to train it anew, --overwrite true in place of --resume true"
            )
        return 0
    method = build_method(config.method)
    try:
        run = Run(config, load_data(config), method, config.method, config.seed, checkpoints=checkpoints)
        if config.resume and (state := checkpoints.latest()) is not None:
            run.load_state_dict(state)
        places = config.track if rank() == 0 else []
        with (
            listening(checkpoints.ask),  # until all is written
            _bars() as tell,
            tracking(places, config.output, run.ledger, config.as_text()) as trackers,
        ):
            if config.overwrite and rank() == 0:
                earlier.remove()
            try:
                for epoch in run.epochs():
                    tell(config.method, epoch.epoch + 1, run.total_epochs, epoch.accuracy)
                    trackers.follow(run.ledger)
                trackers.end(run.ledger)
            except BaseException as error:
                run.ledger.stopped = run.ledger.stopped or first_line(error)
                raise
            finally:
                if rank() == 0:
                    _save(run, config)
            checkpoints.clear()
    except KeyboardInterrupt as stop:
        raise Stopped(_number(stop), checkpoints.told()) from None
    if rank():
        return 0
    seconds = {cause: f"{value:.1f}" for cause, value in run.ledger.seconds.items()}
    _console().print(as_table([{"method": config.method, "accuracy %": f"{run.ledger.accuracy or 0:.2f}", **seconds}]))
    for search in run.ledger.searches:
        _console().print(as_table(search_rows(search), search_title(search)))
    _tell_savings([run.ledger.record()])
    if run.ledger.predicted_speedup:
        print(f"by the step times in its searches, {run.ledger.predicted_speedup:.2f}x as fast as dense training")
    print(f"weights, ledger and schedule are in {config.output}")
    return 0


def _save(run: Run, config: TrainConfig) -> None:
    """Write all that a run leaves; last of all its record, which says whether it is finished."""
    try:
        record: dict[str, Any] = run.ledger.record() | {"settings": config.deciding()}
        if run.ledger.stopped and (name := not_finite(run.result)):
            warnings.warn(f"no model.pt is written: {name} is not finite", stacklevel=2)
        else:
            run.save(config.output / "model.pt")
        if record["schedule"]:
            write_text(config.output / "schedule.json", json.dumps(record["schedule"]) + "\n")
        if record["searches"]:
            draw_searches(record["searches"], config.output / "search.png")
        draw_savings([record], config.output)
        write_text(config.output / "results.json", json.dumps([record], indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write the results ({error})", where=str(config.output)) from error


def run_compare(config: CompareConfig) -> int:
    """Train the dense network and methods side by side; print and write what was saved."""
    with owned(config.output):
        return _compare_lengths(config) if config.budgets else _compare(config)


def _compare(config: CompareConfig) -> int:
    with _bars() as tell:
        records, failures = compare(config, tell)
    if not records:
        raise TrainingError("; ".join(failures))
    write_results(records, config.output)
    for record in records:
        for search in record.get("searches", ()) if record["seed"] == config.first_seed else ():
            _console().print(as_table(search_rows(search), f"{record['method']}, {search_title(search)}"))
    _console().print(as_table(summary(records), f"{config.model} on {records[0]['data']}, {config.epochs} epochs"))
    _tell_savings(records)
    print(f"results.json, results.csv, summary.md and accuracy.png are in {config.output}")
    if failures:
        raise TrainingError("; ".join(failures))
    return 0


def _compare_lengths(config: CompareConfig) -> int:
    with _bars() as tell:
        found = compare_lengths(config, tell)
    if not any(point.method == "Dense" and point.budget == 1 for point in found.points):
        raise TrainingError("; ".join(found.failures))
    speedups = speedups_at_equal_accuracy(found.points)
    timing = "step times, taken apart" if found.apart else "the runs themselves"
    head = {**found.head, "seconds_of": timing, "end_to_end": found.end_to_end}
    write_headline(found.points, speedups, head, config.output)
    title = f"{config.model} on {found.head['recipe']['data']}, seconds of {timing}"
    _console().print(as_table(front_rows(found.points), title))
    if speedups:
        _console().print(as_table(headline_rows(speedups, found.end_to_end), "speedup at equal accuracy"))
    print(f"fronts.json, fronts.csv, fronts.md and fronts.png are in {config.output}")
    if found.failures:
        raise TrainingError("; ".join(found.failures))
    return 0


def _tell_savings(records: Sequence[dict[str, Any]]) -> None:
    """A table of what pruning saved, where a run pruned."""
    rows = saving_rows(records)
    if rows:
        _console().print(as_table(rows, "what pruning left, in % of the dense network", narrow=True))


def run_plan(config: PlanConfig) -> int:
    """Measure each stage of a method here, and say what it would save before it is run."""
    console = Console(stderr=True)
    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("measuring", total=None)
        plan = plan_recipe(config, lambda done, total: bar.update(task, completed=done, total=total))
    where = environment(config.torch_device())
    if config.json:
        head = {"model": config.model, "method": config.method, "environment": where}
        print(json.dumps({**head, **plan.to_dict()}, indent=1))
        return 0
    print(f"{config.model}, {config.method}, batches of {config.batch_size}, {config.precision}, on {where['device']}")
    for run in plan.runs:
        if run.found:
            print(f"\nIf the searches find {run.found}:")
        _console().print(as_table(stage_rows(plan, run)))
        print(total(run))
        for line in told(run):
            print(f"  {line}")
    if plan.widths:
        title = "pruned networks, by the share of the channels left: a step's FLOPs and time, of dense"
        _console().print(as_table(width_rows(plan.widths), title))
        print(plan.widths.recommendation)
    for note in plan.notes:
        print(f"note: {note}")
    return 0


def run_inspect(config: InspectConfig) -> int:
    """Show the channel groups and block stacks of a model, what stays and why, and what its parts cost."""
    import torch

    from .graph.trace import trace

    model = build_model(config.model, config.num_classes)
    network = trace(model, torch.zeros(2, 3, config.image_size, config.image_size), exclude=config.exclude)
    tables = describe(network, config.shares)
    if config.json:
        print(json.dumps({"model": config.model, "extent": repr(network), **tables}, indent=1))
        return 0
    print(network)
    console = _console()
    for title, rows in tables.items():
        if rows:
            cells = [{key: f"{v:,}" if isinstance(v, int) else str(v) for key, v in row.items()} for row in rows]
            console.print(as_table(cells, title))
    return 0


def run_export(config: ExportConfig) -> int:
    """Write a trained network as safetensors with its sub-network, for ONNX and `torch.export` too if asked for."""
    for path in export_run(config):
        print(f"{path}, {path.stat().st_size / 1e6:.1f} MB")
    return 0


def run_label_maps(config: LabelMapsConfig) -> int:
    """Make label maps for token labelling with a teacher; a run that was stopped goes on where it was."""
    images = training_images(config.data)
    with owned(config.output):
        count, agreement = make_label_maps(
            load_teacher(config.teacher),
            images,
            config.output,
            top_k=config.top_k,
            image_size=config.image_size,
            batch_size=config.batch_size,
            workers=config.workers,
            device=find_device(config.device),
        )
    print(f"{count} label maps made, {len(images) - count} were there; they are in {config.output}")
    if count:
        print(f"the teacher ranks the image's own class first for {agreement:.1f} % of those made")
    return 0


def _console() -> Console:
    """Standard output; wide enough for a table where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


class _Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Help with defaults, and examples as they are written."""


QUIET = 10.0
"""Seconds without a line, at least, where progress goes to a file: one that grows by the second is not read."""


class _bars:
    """A progress bar for each run; where there is no terminal, a line after the first epoch of each, and then every few
    seconds."""

    def __enter__(self):
        self.console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[accuracy]:.2f} %"),
        )
        self.progress = Progress(*columns, console=self.console, disable=rank() > 0 or not self.console.is_terminal)
        self.progress.start()
        self.tasks, self.told = {}, time.monotonic()
        return self.tell

    def tell(self, label: str, done: int, total: int, accuracy: float) -> None:
        if self.progress.disable and rank() == 0 and (label not in self.tasks or time.monotonic() - self.told > QUIET):
            print(f"{label}: epoch {done} of {total} is over, accuracy {accuracy:.2f} %", flush=True)
            self.told = time.monotonic()
        if label not in self.tasks:
            self.tasks[label] = self.progress.add_task(label, total=total, accuracy=0.0)
        self.progress.update(self.tasks[label], completed=done, accuracy=accuracy)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


COMMANDS = {
    "train": (TrainConfig, run_train),
    "compare": (CompareConfig, run_compare),
    "plan": (PlanConfig, run_plan),
    "inspect": (InspectConfig, run_inspect),
    "export": (ExportConfig, run_export),
    "label-maps": (LabelMapsConfig, run_label_maps),
}
