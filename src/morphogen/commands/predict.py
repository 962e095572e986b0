"""`morphogen predict`: the classes of images by a trained network."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict

from ..errors import TrainingError
from ..machine.files import write_text
from ..train.config import PredictConfig
from ..train.predict import Prediction, predict
from .command import Command


def run_predict(config: PredictConfig) -> int:
    """Name the classes of images, the best first; from a run, or from the ONNX file that was exported of it."""
    found, failures = predict(config)
    text = {"text": _text, "json": _json, "csv": _csv}[config.format](found)
    if config.output is None:
        print(text, end="")
    else:
        write_text(config.output, text)
    if failures:
        raise TrainingError("; ".join(failures))
    return 0


def _text(found: list[Prediction]) -> str:
    """A line an image, without what would command a terminal."""
    lines = (
        f"{each.image}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in each.classes) for each in found
    )
    return "".join("".join(c if c.isprintable() else " " for c in line) + "\n" for line in lines)


def _json(found: list[Prediction]) -> str:
    return json.dumps([asdict(each) for each in found], indent=1) + "\n"


def _csv(found: list[Prediction]) -> str:
    """A row for each class of each image."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["image", "rank", "class", "probability"])
    for each in found:
        for place, (name, share) in enumerate(each.classes, 1):
            writer.writerow([each.image, place, name, f"{share:.6f}"])
    return file.getvalue()


PREDICT = Command(
    "predict",
    PredictConfig,
    run_predict,
    """examples:
  morphogen predict runs/train photo.jpg
  morphogen predict runs/train photos --top 3 --format csv --output predictions.csv
  morphogen predict runs/train/model.onnx photo.jpg --format json""",
    first=("given", "output folder of `morphogen train`, or its ONNX file; then images, or folders of them"),
    needs_first=True,
    many=True,
    from_file=False,
)
