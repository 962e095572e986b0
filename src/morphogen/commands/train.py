"""`morphogen train`: one network by one method."""

from __future__ import annotations

import json
import warnings
from typing import Any

from ..errors import ConfigError, first_line
from ..export.finite import not_finite
from ..machine.files import write_text
from ..machine.folder import owned
from ..machine.ranks import decided_by_first, rank
from ..methods import build_method
from ..recipes.use import what_changed, with_recipe
from ..report.ledger import environment
from ..report.render import as_table
from ..report.savings.write import draw_savings
from ..report.searches import draw_searches, search_rows, search_title
from ..report.training import TRAINING_PICTURE, draw_training, extent_of
from ..spec import parse_call
from ..train.best import BEST, extent_at, is_best, keep_best, waited
from ..train.checkpoint import Checkpoints, Stopped, listening, number_of
from ..train.config import TrainConfig
from ..train.distributed import joined
from ..train.earlier import Earlier
from ..train.loop import Run
from ..train.models import OPEN_SOURCES
from ..train.saved import save_network
from ..train.sources import load_data
from ..train.trackers import tracking
from .command import Command
from .terminal import console, tell_savings
from .watching import Watching


def run_train(config: TrainConfig) -> int:
    """Train one network by one method; weights and ledger go to the output folder."""
    with joined(config.torch_device()), owned(config.output):
        return _train(config)


def configure(given: dict[str, Any]) -> TrainConfig:
    """The settings of a run: those given, on top of a recipe's."""
    return TrainConfig(**with_recipe(given))


def _train(config: TrainConfig) -> int:
    if rank() == 0 and (told := what_changed(config)):
        print(told)
    earlier = decided_by_first(lambda: Earlier.of(config))
    checkpoints = Checkpoints(config.output / "checkpoints", config.save_every, config.keep)
    if config.resume and earlier.finished:
        checkpoints.clear()  # which it may have been killed before
        if rank() == 0:
            print(
                f"the run on {earlier.data} in {config.output} is finished; "
                "to train it anew, --overwrite in place of --resume"
            )
        return 0
    method = build_method(config.method)
    try:
        run = Run(config, load_data(config), method, config.method, config.seed, checkpoints=checkpoints)
        if config.resume and (state := checkpoints.latest()) is not None:
            run.load_state_dict(state)
        last = run.attached.stages[-1].start
        if config.patience >= run.total_epochs - last and last > 0 and config.patience > 0:
            warnings.warn(
                f"patience {config.patience} never counts so far: it counts in the last stage alone, which has "
                f"{run.total_epochs - last} of the {run.total_epochs} epochs",
                stacklevel=2,
            )
        places = config.track if rank() == 0 else []
        with (
            listening(checkpoints.ask),  # until all is written
            Watching(run) as tell,
            tracking(places, config.output, run.ledger, config.as_text()) as trackers,
        ):
            if config.overwrite and rank() == 0:
                earlier.remove()
            try:
                for epoch in run.epochs():
                    if config.keep_best and rank() == 0 and is_best(run.ledger):
                        keep_best(run, config.output / BEST)
                    tell(epoch)
                    if config.patience and waited(run) >= config.patience:
                        run.stop_early()
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
        raise Stopped(number_of(stop), checkpoints.told()) from None
    if rank():
        return 0
    _say_best(run, config)
    last, scaled = run.ledger.epochs[-1], {} if config.scale is None else {"scaled": f"{config.scale:g}"}
    figures = {
        f"{name} %": f"{value:.2f}" for name, value in {run.ledger.metric: last.accuracy, **last.figures}.items()
    }
    row = {"method": config.method, **scaled, **figures, **_also(run)}
    row["training s"] = f"{run.ledger.training_seconds:.1f}"
    console().print(as_table([row], narrow=True))
    causes = {cause: value for cause, value in run.ledger.seconds.items() if value >= 0.05}
    print("seconds: " + ", ".join(f"{cause} {value:.1f}" for cause, value in causes.items()))
    print(f"tested on {run.ledger.protocol}")
    for search in run.ledger.searches:
        console().print(as_table(search_rows(search), search_title(search)))
    tell_savings([run.ledger.record()])
    if run.ledger.predicted_speedup:
        print(f"by the step times in its searches, {run.ledger.predicted_speedup:.2f}x as fast as dense training")
    print(f"weights, ledger and schedule are in {config.output}; next:")
    task, own = run.data.task, _own_model(config)
    print(f"  morphogen report {config.output}")
    if task.predicts:
        print(f"  morphogen predict {config.output} IMAGE{own}")
    print(f"  morphogen export {config.output}{'' if task.boxes else ' --onnx'}{own}")
    return 0


def _own_model(config: TrainConfig) -> str:
    """How the model is named to a command that reads the run: code of the user's own is run when its user says so."""
    name, _ = parse_call(config.model)
    return "" if name.rpartition(":")[0] in OPEN_SOURCES else f" --model {config.model!r}"


def _say_best(run: Run, config: TrainConfig) -> None:
    epochs = run.ledger.epochs
    if len(epochs) < run.total_epochs:
        size = extent_of(run.attached.network.current, run.attached.network.dense)
        print(
            f"stopped after epoch {len(epochs)} of {run.total_epochs}: no better test in {config.patience} epochs; "
            f"the network is at {size}"
        )
    if (kept := run.ledger.kept) is not None:
        print(
            f"{BEST} is of epoch {kept['epoch'] + 1}, {run.ledger.metric} {kept['accuracy']:.2f} %, at the size it had "
            f"then ({extent_at(run, kept['epoch'])}); morphogen export {config.output} --best{_own_model(config)}"
        )


def _also(run: Run) -> dict[str, str]:
    """What else a run was tested for."""
    ledger, at = run.ledger, run.ledger.tested_at
    best = {"best epoch %": f"{max(epoch.accuracy for epoch in ledger.epochs):.2f}"}
    average = {"average": f"{ledger.average:g}"} if len(run.recipe.decays) > 1 else {}
    return best | average | ({f"at {at['size']} %": f"{at['accuracy']:.2f}"} if at else {})


def _save(run: Run, config: TrainConfig) -> None:
    """Write all that a run leaves; last of all its record, which says whether it is finished."""
    try:
        record: dict[str, Any] = run.ledger.record() | {"settings": config.deciding()}
        record["environment"] = environment(config.torch_device())
        if run.ledger.stopped and (name := not_finite(run.result)):
            warnings.warn(f"no model.pt is written: {name} is not finite", stacklevel=2)
        else:
            save_network(run, config.output / "model.pt")
        if record["schedule"]:
            write_text(config.output / "schedule.json", json.dumps(record["schedule"]) + "\n")
        if record["searches"]:
            draw_searches(record["searches"], config.output / "search.png")
        draw_savings([record], config.output)
        draw_training(record, config.output / TRAINING_PICTURE)
        if not run.ledger.stopped:
            run.tester.draw(run.result, run.attached.network.current.resolution, config.output)
        write_text(config.output / "results.json", json.dumps([record], indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write the results ({error})", where=str(config.output)) from error


TRAIN = Command(
    "train",
    TrainConfig,
    run_train,
    """examples:
  morphogen train
  morphogen train --model "resnet20(width=32)" --data /data/cifar10 --epochs 60 --method "NetworkExpansion(stages=3)"
  morphogen train --config run.yaml --seed 1
  morphogen train --recipe network-expansion/4/0.375 --data cifar100:/data/cifar100
  morphogen train --recipe network-expansion/4/0.375 --data /data/cifar10 --scale 0.05
  morphogen train --recipe autoprog/2/volo-d1-100-autoprog-0.4 --data imagenet:/data/imagenet --token_labels maps""",
    configure=configure,
    again="continue with the same command and --resume",
)
