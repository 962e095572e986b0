"""Other libraries' loops train as a plain one with `morphogen.attach` does, bit for bit, and go on from checkpoints."""

import re
import runpy
import subprocess
import sys
from itertools import product
from pathlib import Path

import accelerate
import lightning
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import morphogen
from morphogen.integrations.hooks import LaterWeights
from morphogen.integrations.lightning import MorphogenCallback as LightningCallback
from morphogen.integrations.transformers import MorphogenCallback as TrainerCallback
from morphogen.machine import timing
from morphogen.methods import build_method
from morphogen.parts import Prune

from nets import Residual, deit
from nightly import often

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
EPOCHS, ACCUMULATE = 4, 2

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec:"),
]


@pytest.fixture(autouse=True)
def steps_take_as_long(monkeypatch):
    """The times of a search's candidates are those of the machine; here they are always the same."""
    monkeypatch.setattr(timing.StepClock, "medians", lambda clock: {k: 1.0 + k for k in clock.read()})


class Classifier(nn.Module):
    """A model as transformers wants it: it computes its own loss."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, pixel_values, labels=None):
        logits = self.net(pixel_values)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Setting:
    """A network, its optimizer and data; the same whenever it is made."""

    def __init__(self, text, seed=0):
        torch.manual_seed(seed)
        self.method = build_method(text)
        vit = text.startswith(("Prog", "AutoProg"))
        self.net = deit(depth=4, drop_path_rate=0.1) if vit else Residual()
        side = 16 if vit else 8
        self.steps = 9 if text.startswith("AutoProg") else 3  # one for each candidate
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(4 * self.steps * ACCUMULATE, 3, side, side, generator=generator)
        self.data = [(image, i % 4) for i, image in enumerate(self.images)]
        self.batches = list(DataLoader(self.data, 4))
        kind = torch.optim.SGD if "Prune" in text else torch.optim.AdamW
        self.optimizer = kind(self.net.parameters(), lr=0.1 if "Prune" in text else 1e-2)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.5)
        subset = [self.batches[0]]
        self.probe = morphogen.Probe(lambda x, y: F.cross_entropy(self.net(x), y), subset)

    def tensors(self):
        """All that training leaves."""
        names = {parameter: name for name, parameter in self.net.named_parameters()}
        moments = {
            f"{names[p]}.{key}": value for p, kept in self.optimizer.state.items() for key, value in kept.items()
        }
        return {**self.net.state_dict(), **moments}


def plain(text, **settings):
    """The loop that all others are to equal: it makes all calls itself."""
    here = Setting(text, **settings)
    net, optimizer = here.net, here.optimizer
    run = morphogen.attach(
        net,
        optimizer,
        here.method,
        example=here.images[:4],
        epochs=EPOCHS,
        steps_per_epoch=here.steps,
        probe=here.probe,
        hooks=False,
    )
    for epoch in range(EPOCHS):
        torch.manual_seed(epoch)
        run.begin_epoch(epoch)
        for number, (x, y) in enumerate(here.batches):
            net.train()
            loss = F.cross_entropy(net(run.begin_step(x)), y)
            (run.penalised(loss) / ACCUMULATE).backward()
            if (number + 1) % ACCUMULATE == 0:
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                run.end_step()
                optimizer.zero_grad()
        here.scheduler.step()
    run.end()
    return here, run


class Module(lightning.LightningModule):
    def __init__(self, here):
        super().__init__()
        self.here, self.net = here, here.net
        self.sizes = []

    def training_step(self, batch, _):
        return {"loss": F.cross_entropy(self.net(batch[0]), batch[1]), "also": 1}

    def validation_step(self, batch, _):
        self.sizes.append((self.current_epoch, self.net(batch[0]).shape))

    def configure_optimizers(self):
        return [self.here.optimizer], [self.here.scheduler]


class Reseed(lightning.Callback):
    """Lightning keeps no random numbers, and does not begin the epoch after a checkpoint of a last step."""

    random = epoch = None

    def on_train_epoch_start(self, trainer, pl_module):
        if self.epoch != trainer.current_epoch:
            self.epoch = trainer.current_epoch
            torch.manual_seed(self.epoch)

    def on_train_batch_start(self, trainer, pl_module, *_):
        if self.random is not None:
            torch.set_rng_state(self.random)
        self.random = None
        self.on_train_epoch_start(trainer, pl_module)

    def state_dict(self):
        return {"random": torch.get_rng_state(), "epoch": self.epoch}

    def load_state_dict(self, state):
        self.random, self.epoch = state["random"], state["epoch"]


class Loader(DataLoader):
    """Goes on within an epoch, as Lightning leaves it to loaders."""

    begin = at = 0

    def __iter__(self):
        begin, self.begin = self.begin, 0
        for number, batch in enumerate(super().__iter__()):
            if number >= begin:
                self.at = number + 1
                yield batch

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.begin = state["at"] % len(self)


QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def with_lightning(text, folder, resume=None, every=None, **settings):
    here = Setting(text, **settings)
    module = Module(here)
    callback = LightningCallback(here.method, "net", example=here.images[:4], probe=here.probe)
    keep = lightning.pytorch.callbacks.ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=every)
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accumulate_grad_batches=ACCUMULATE,
        gradient_clip_val=1.0,
        callbacks=[Reseed(), callback, *([keep] if every else [])],
        enable_checkpointing=bool(every),
        **QUIET,
    )
    loaders = Loader(here.data, 4, generator=torch.Generator()), Loader(here.data[:4], 4, generator=torch.Generator())
    trainer.fit(module, *loaders, ckpt_path=resume)
    assert len(module.sizes) >= (1 if resume else EPOCHS)  # evaluated at the present size
    return here, callback.run


class ReseedTrainer(transformers.TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if state.global_step % (state.max_steps // EPOCHS) == 0:
            torch.manual_seed(round(state.epoch or 0))


def with_transformers(text, folder, resume=None, every=None, **settings):
    here = Setting(text, **settings)
    model = Classifier(here.net)
    probe = morphogen.Probe(lambda x, y: model(x, y)["loss"], [here.batches[0]])
    example = {"pixel_values": here.images[:4]}
    callback = TrainerCallback(here.method, example=example, probe=probe)
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=ACCUMULATE,
            max_grad_norm=1.0,
            train_sampling_strategy="sequential",
            save_strategy="steps" if every else "no",
            save_steps=every or 500,
            eval_strategy="epoch",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=[{"pixel_values": image, "labels": label} for image, label in here.data],
        eval_dataset=[{"pixel_values": image, "labels": label} for image, label in here.data[:4]],
        optimizers=(
            here.optimizer,
            torch.optim.lr_scheduler.LambdaLR(here.optimizer, lambda step: 0.5 ** (step // here.steps)),
        ),
        callbacks=[ReseedTrainer(), callback],
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return here, callback.run


LOOPS = {"lightning": with_lightning, "transformers": with_transformers}
GROWS, SEARCHES = "Prog(stages=2)", "AutoProg(stages=2, search_epochs=1)"
PRUNES = "PruneTrain(ratio=0.9, interval=2, threshold=0.1)"
METHODS = [
    "NetworkExpansion(stages=2)",
    GROWS,
    SEARCHES,
    PRUNES,
    "PruneTrain(ratio=0.95, interval=2, threshold=0.1, proximal=True)",
]


def assert_same(found, expected):
    (here, run), (other, wanted) = found, expected
    changes, others = (
        [(epoch, part.to_json().replace('"net.', '"')) for epoch, part in each.history] for each in (run, wanted)
    )
    assert changes == others and len(changes) > 1
    ours, theirs = here.tensors(), other.tensors()
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.fixture(scope="module")
def expected():
    """The plain loop's outcome with each method, computed once."""
    known = {}
    return lambda text: known.setdefault(text, None) or known.update({text: plain(text)}) or known[text]


@pytest.mark.parametrize(
    ("loop", "text"),
    often(product(LOOPS, METHODS), lambda case: case[1] != SEARCHES and case != ("lightning", GROWS)),
)
def test_equals_a_plain_loop(loop, text, tmp_path, expected):
    found = LOOPS[loop](text, tmp_path)
    assert_same(found, expected(text))
    here, run = found
    model = run.network.model
    assert not model._forward_pre_hooks and not model._forward_hooks  # nothing of the callback stays
    assert not here.optimizer._optimizer_step_post_hooks and not model._load_state_dict_pre_hooks
    if "Prune" not in text:
        assert run.network.current == run.network.dense
        Setting(text).net.load_state_dict(here.net.state_dict())


@pytest.mark.parametrize(
    ("loop", "text"),
    often(product(LOOPS, (GROWS, PRUNES)), lambda case: case in [("lightning", PRUNES), ("transformers", GROWS)]),
)
def test_goes_on_from_a_checkpoint(loop, text, tmp_path):
    whole = LOOPS[loop](text, tmp_path, every=2)
    for step in (2, whole[0].steps * 2 - (whole[0].steps * 2) % 2):
        file = {"lightning": f"step={step}.ckpt", "transformers": f"checkpoint-{step}"}[loop]
        assert_same(LOOPS[loop](text, tmp_path, resume=tmp_path / file, every=100, seed=7), whole)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_grow_to_the_dense_size(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    threads = torch.get_num_threads()
    names = runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    torch.set_num_threads(threads)
    sizes = [int(size.replace(",", "")) for size in re.findall(r"([\d,]+) parameters", capsys.readouterr().out)]
    assert sizes == sorted(sizes) and sizes[0] < 0.6 * sizes[-1]
    run = names["run"] if "run" in names else names["callback"].run
    assert run.network.current == run.network.dense
    assert sizes[-1] == sum(tensor.numel() for tensor in run.network.model.parameters())


PAGE = (ROOT / "docs" / "integrations.md").read_text()
DIFFS = dict(re.findall(r"```diff title=\"(\w+)\.py\"\n(.*?)```", PAGE, re.DOTALL))


def ordinary(name):
    """An example with the difference taken back; every line of the difference is found, in order."""
    lines, place = (ROOT / "examples" / f"{name}.py").read_text().splitlines(), 0
    for mark, line in ((line[0], line[1:]) for line in DIFFS[name].splitlines()):
        if mark == "-":
            lines.insert(place, line)
            place += 1
            continue
        place = lines.index(line, place)
        if mark == "+":
            del lines[place]
        else:
            assert mark == " "
            place += 1
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_differences_in_the_documents_are_those_of_the_examples(name):
    script = ordinary(name).split('"""', 2)[2]
    assert "morphogen" not in script.lower() and not re.search(r"\brun\b|\bcallback\b|\bmethod\b", script)
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F", "-"]
    result = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout  # nothing is missing without those lines


CALLBACKS = {
    "lightning": lambda method: LightningCallback(method, "net", example=torch.zeros(1, 3, 8, 8)),
    "transformers": lambda method: TrainerCallback(method, example=torch.zeros(1, 3, 8, 8)),
}


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NetworkExpansion + DynamicBatch", r"DynamicBatch \+ NetworkExpansion: this method changes the batch"),
        ("AutoProg(recycle=False)", "AutoProg: this method throws the epochs of a search away"),
    ],
)
def test_what_a_trainer_keeps_to_itself_is_refused(name, text, message):
    with pytest.raises(morphogen.ConfigError, match=message):
        CALLBACKS[name](build_method(text))


def fit(module, callbacks, path=None, **settings):
    given = {"max_epochs": 2, "enable_checkpointing": False, **QUIET, **settings}
    trainer = lightning.Trainer(callbacks=callbacks, **given)
    trainer.fit(module, DataLoader(module.here.data, 4), ckpt_path=path)
    return trainer


def test_lightning_refuses_what_it_cannot_follow(tmp_path):
    text = "NetworkExpansion(stages=2)"
    example = Setting(text).images[:4]
    for network, change, settings, message in (
        ("nett", {}, {}, "Module: the LightningModule has no such part"),
        ("net", {"automatic_optimization": False}, {}, "expected automatic optimization.*found manual"),
        ("net", {}, {"max_epochs": -1, "max_steps": 1}, "the run's length is not known"),
    ):
        module = Module(Setting(text))
        for name, value in change.items():
            setattr(module, name, value)
        with pytest.raises(morphogen.ConfigError, match=message):
            fit(module, LightningCallback(build_method(text), network, example=example), **settings)
    module, pruning = Module(Setting(text)), build_method("PruneTrain(interval=2)")
    trainer = lightning.Trainer(strategy="ddp_spawn", devices=2, **QUIET | {"max_epochs": 4})
    trainer.strategy.connect(module)
    trainer.strategy.optimizers = [module.here.optimizer]
    with pytest.raises(morphogen.ConfigError, match=r"PruneTrain: .*the process that spawns the others"):
        LightningCallback(pruning, "net", example=example).on_fit_start(trainer, module)
    file = str(tmp_path / "other.ckpt")
    fit(Module(Setting(text)), []).save_checkpoint(file)
    with pytest.raises(morphogen.CheckpointError, match=r"other.ckpt: the checkpoint holds no run of Morphogen"):
        fit(Module(Setting(text)), LightningCallback(build_method(text), "net", example=example), file)


class Failing(Module):
    """It stops in its first step, once."""

    fails = True

    def training_step(self, batch, number):
        if Failing.fails:
            Failing.fails = False
            raise ValueError("no")
        return super().training_step(batch, number)


def test_training_that_failed_can_begin_again(monkeypatch):
    monkeypatch.setattr(Failing, "fails", True)
    text = "NetworkExpansion(stages=2)"
    module = Failing(Setting(text))
    callback = LightningCallback(build_method(text), "net", example=module.here.images[:4])
    with pytest.raises(ValueError, match="no"):
        fit(module, callback)
    callback.run.end(grow=True)
    fit(module, callback)
    assert callback.run.ended and len(callback.run.history) == 2
    module = Failing(Setting(text))
    monkeypatch.setattr(Failing, "fails", True)
    callback = LightningCallback(build_method(text), "net", example=module.here.images[:4])
    with pytest.raises(ValueError, match="no"):
        fit(module, callback)
    fit(module, callback)  # the same, without run.end(): from the network as it was left
    assert callback.run.ended and len(callback.run.history) == 2


def vit_trainer(folder, callback, **settings):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=4)
    model = transformers.ViTForImageClassification(config)
    generator = torch.Generator().manual_seed(1)
    data = [{"pixel_values": torch.randn(3, 8, 8, generator=generator), "labels": i % 4} for i in range(16)]
    given = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "save_strategy": "no", "max_grad_norm": 0.0}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), report_to="none", use_cpu=True, disable_tqdm=True, **{**given, **settings}
    )
    return transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data, callbacks=[callback])


PIXELS = {"pixel_values": torch.zeros(4, 3, 8, 8)}


def test_the_penalty_of_accumulated_gradients_is_that_of_one_step(tmp_path):
    """Where the Trainer divides the loss by the number of images itself, and where gradients are not accumulated."""
    found = []
    for accumulate in (1, 2):
        callback = TrainerCallback(morphogen.PruneTrain(ratio=0.5, interval=1, threshold=1e-6), example=PIXELS)
        settings = {"gradient_accumulation_steps": accumulate, "per_device_train_batch_size": 8 // accumulate}
        trainer = vit_trainer(tmp_path, callback, train_sampling_strategy="sequential", optim="sgd", **settings)
        assert trainer.model_accepts_loss_kwargs
        trainer.model.vit.eval()
        trainer.train()
        found.append((callback.run.part(Prune).pruner.coefficient, trainer.model.state_dict()))
    (one, whole), (two, parts) = found
    assert one == pytest.approx(two, rel=0.05)  # set on the first images: 8, or 4 of them
    assert all(torch.allclose(whole[name], parts[name], atol=2e-4) for name in whole)


def test_transformers_under_autocast(tmp_path):
    callback = TrainerCallback(morphogen.NetworkExpansion(depth=0.5, stages=2), example=PIXELS)
    trainer = vit_trainer(tmp_path, callback, bf16=True)
    trainer.train()
    assert callback.run.network.current == callback.run.network.dense and len(callback.run.history) == 2


def test_transformers_refuses_what_it_cannot_follow(tmp_path):
    method = morphogen.NetworkExpansion(stages=2)
    kept = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    callback = TrainerCallback(method, example=PIXELS)
    trainer = vit_trainer(tmp_path, callback, **kept)
    with pytest.raises(morphogen.ConfigError, match="load_best_model_at_end: the best checkpoint"):
        trainer.train()
    callback = TrainerCallback(morphogen.PruneTrain(ratio=0.5, interval=1), example=PIXELS)
    with pytest.raises(morphogen.ConfigError, match="the penalty cannot reach a loss that is computed outside"):
        vit_trainer(tmp_path, callback, label_smoothing_factor=0.1).train()
    trainer = vit_trainer(tmp_path / "without", transformers.TrainerCallback(), save_strategy="epoch")
    trainer.train()
    trainer = vit_trainer(tmp_path / "without", TrainerCallback(method, example=PIXELS))
    with pytest.raises(morphogen.CheckpointError, match=r"checkpoint-8.morphogen.pt: the run of this checkpoint"):
        trainer.train(resume_from_checkpoint=True)
    trainer = vit_trainer(tmp_path, TrainerCallback(method, example=PIXELS))
    trainer.model.load_state_dict({"classifier.bias": torch.zeros(3)}, strict=False)
    with pytest.raises(morphogen.CheckpointError, match=r"classifier.bias: weights were loaded that do not fit"):
        trainer.train()


def test_weights_of_another_size_pass_only_while_it_is_asked_for():
    net = Residual()
    narrow = {"0." + name: torch.zeros(1) for name in net.state_dict()} | {"0.more": torch.ones(1)}
    before, parent = {name: tensor.clone() for name, tensor in net.state_dict().items()}, nn.Sequential(net)
    later = LaterWeights(net)
    parent.load_state_dict(narrow)
    assert later.passed and all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    later.stop()
    with pytest.raises(RuntimeError, match="size mismatch"):
        parent.load_state_dict(narrow)
