"""`morphogen predict`: what a trained network says of images."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict

from ..errors import TrainingError
from ..machine.files import write_text
from ..train.config import PredictConfig
from ..train.predict import predict
from ..train.predictions import Detected, Prediction
from .command import Command

Found = list[Prediction | Detected]


def run_predict(config: PredictConfig) -> int:
    """Name the classes of images, the best first, or the objects in them; from a run, or from its ONNX file."""
    found, failures = predict(config)
    text = {"text": _text, "json": _json, "csv": _csv}[config.format](found)
    if config.output is None:
        print(text, end="")
    else:
        write_text(config.output, text)
    if failures:
        raise TrainingError("; ".join(failures))
    return 0


def _text(found: Found) -> str:
    """A line an image, without what would command a terminal."""
    lines = (f"{each.image}: " + ", ".join(each.words()) for each in found)
    return "".join("".join(c if c.isprintable() else " " for c in line) + "\n" for line in lines)


def _json(found: Found) -> str:
    return json.dumps([asdict(each) for each in found], indent=1) + "\n"


def _csv(found: Found) -> str:
    """A row for each class, or object, of each image."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerows([found[0].columns] if found else [Prediction.columns])
    for each in found:
        writer.writerows(each.rows())
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
