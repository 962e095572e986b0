"""What a trained network sees on images: from a run's weights, or from its ONNX file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from ..errors import ConfigError, ExportError, first_line
from ..machine.reading import MALFORMED, parse_json, within, words
from .boxes import FITTED
from .config import PredictConfig
from .data import WHOLE
from .export import WEIGHTS, load_run
from .find import Finder, draw_found
from .images import centre_crop, read_image
from .predictions import Detected, Prediction
from .tasks import Detection, task_of

ONNX = "model.onnx"
TODO = "Export it with `morphogen export RUN --onnx`, which keeps them"


@dataclass(frozen=True)
class Predictor:
    """A network and what it expects.

    Attributes:
        scores: of normalised images (N, 3, H, W), float32: (N, classes).
        size: height and width of the images.
        mean, std: of the training images, by channel, of values from 0 to 1.
        classes: names; empty where they are not known.
        crop: share of an image's shorter side that is looked at; None is the whole image, resized.
        interpolation: by which it is resized.
        batch: images at once that it takes and no others; None for any number.
    """

    scores: Callable[[Tensor], Tensor]
    size: tuple[int, int]
    mean: list[float]
    std: list[float]
    classes: list[str]
    crop: float | None
    interpolation: str
    batch: int | None = None

    def image(self, path: str) -> Tensor:
        """A file as the network was tested on: cut out, brought to its size, normalised."""
        image: Any = read_image(path)
        if self.crop is None:
            cut = v2.Resize(self.size, v2.InterpolationMode(self.interpolation))(image)
        else:
            cut = centre_crop(image, self.size, self.crop, self.interpolation)
        pixels = v2.functional.pil_to_tensor(cut).float() / 255
        return v2.functional.normalize(pixels, self.mean, self.std)

    def probabilities(self, images: Tensor) -> Tensor:
        """Of each class, (N, classes)."""
        count = len(images)
        if self.batch is not None:
            images = torch.cat([images, images.new_zeros(self.batch - count, *images.shape[1:])])
        scores = self.scores(images)[:count]
        if scores.ndim != 2:
            raise ConfigError(
                "the network gives no score for each class of an image",
                expected="an output of shape (images, classes)",
                found=f"{tuple(scores.shape)}",
            )
        return scores[:, : len(self.classes) or None].float().softmax(1)

    def predict(self, images: Mapping[str, Tensor], top: int) -> list[Prediction]:
        """The best classes of each of the images, which are as `image` gives them."""
        shares = self.probabilities(torch.stack(list(images.values())))
        best = shares.topk(min(top, len(self.classes) or top))
        found: list[Prediction] = []
        for path, values, numbers in zip(images, best.values.tolist(), best.indices.tolist(), strict=True):
            names = [self.classes[number] if self.classes else str(number) for number in numbers]
            found.append(Prediction(path, list(zip(names, values, strict=True))))
        return found


def predict(config: PredictConfig) -> tuple[list[Prediction | Detected], list[str]]:
    """What the network says of each image, drawn where a picture is asked for; and what went wrong with images that
    cannot be read, which stop no others.

    Raises:
        ExportError, ConfigError: the network cannot be read; there are no images; a picture of what has no boxes.
    """
    network, *given = config.given
    predictor = open_predictor(Path(network), best=config.best, model=config.model)
    if config.picture is not None and not isinstance(predictor, Finder):
        raise ConfigError("only a detector's boxes are drawn", where="picture", expected="none", found=network)
    found: list[Prediction | Detected] = []
    failures: list[str] = []
    batch = predictor.batch or config.batch_size
    paths = list(_images(given))
    for first in range(0, len(paths), batch):
        images: dict[str, Any] = {}
        for path in paths[first : first + batch]:
            try:
                images[path] = predictor.image(path)
            except ConfigError as error:
                failures.append(str(error))
        found += predictor.predict(images, config.top) if images else []
    if config.picture is not None:
        draw_found([each for each in found if isinstance(each, Detected)], config.picture)
    return found, failures


def open_predictor(path: Path, *, best: bool = False, model: str | None = None) -> Predictor | Finder:
    """A run's folder, or its weights, or an ONNX file that `morphogen export` wrote. No code that a file names is run.

    Raises:
        ExportError: it is none of these, or damaged.
        ConfigError: its model cannot be built here; onnxruntime is not installed.
    """
    if path.is_dir():
        weights = path / WEIGHTS[best]
        path = path / ONNX if not weights.exists() and not best and (path / ONNX).exists() else weights
    return _onnx(path) if path.suffix == ".onnx" else _run(path, model)


def _run(path: Path, model: str | None) -> Predictor | Finder:
    network, built, notes = load_run(path, model)
    args, _ = network.fake.inputs(None)
    if [getattr(value, "ndim", 0) for value in args] != [4]:
        raise ExportError("the model is not called with images alone", where=str(path))
    size = network.current.resolution or tuple(args[0].shape[-2:])
    trained, noted = built.eval(), _noted(notes, str(path))
    if task_of(notes.get("metric", "")) is Detection:
        return Finder(trained, (size[0], size[1]), noted["classes"])

    def scores(images: Tensor) -> Tensor:
        with torch.inference_mode():
            output = trained(images)
        return output if isinstance(output, Tensor) else torch.empty(0)

    return Predictor(scores, (size[0], size[1]), **noted)


def _onnx(path: Path) -> Predictor:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ConfigError("this needs 'onnxruntime'", where=str(path), todo="pip install onnxruntime") from None
    try:
        # From its bytes, so that it names no other file.
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        (given,), notes = session.get_inputs(), session.get_modelmeta().custom_metadata_map
        batch, channels, height, width = given.shape
        if channels != 3 or type(height) is not int or type(width) is not int:
            raise ValueError(f"its input is of shape {given.shape}, and not of images of three channels")
    except Exception as error:  # whatever onnxruntime raises on a damaged file
        raise ExportError(
            f"cannot read the file ({first_line(error)})", where=str(path), expected="an ONNX model"
        ) from error

    def scores(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {given.name: images.numpy()})[0])

    fixed = batch if type(batch) is int else None
    return Predictor(scores, (height, width), batch=fixed, **_noted(notes, str(path)))


def _noted(notes: dict[str, str], where: str) -> dict[str, Any]:
    """What a file says of the images and the classes."""
    try:
        mean, std = ([within(value, 0, 1) for value in parse_json(notes[name])] for name in ("mean", "std"))
        if len(mean) != 3 or len(std) != 3 or not all(std):
            raise ValueError("mean and std are not those of three channels")
        classes = words(parse_json(notes.get("classes", "[]")))
        noted = notes.get("crop", WHOLE)
        crop = None if noted in (WHOLE, FITTED) else within(float(noted), 0.01, 1)
        interpolation = v2.InterpolationMode(notes.get("interpolation", "bilinear")).value
    except MALFORMED as error:
        raise ExportError(
            f"the file does not say what images it expects ({first_line(error)})", where=where, todo=TODO
        ) from error
    return {"mean": mean, "std": std, "classes": classes, "crop": crop, "interpolation": interpolation}


def _images(given: Sequence[str]) -> Iterator[str]:
    """The files, and those in the folders."""
    for name in given:
        path = Path(name)
        inside = (
            sorted(each for each in path.rglob("*") if each.suffix.lower() in IMG_EXTENSIONS)
            if path.is_dir()
            else [path]
        )
        if not inside:
            warnings.warn(f"{name}: no images in this folder", stacklevel=2)
        yield from map(str, inside)
