"""`morphogen export`: a trained network as a file that needs no Morphogen."""

from __future__ import annotations

from ..train.config import ExportConfig
from ..train.export import export_run
from .command import Command
from .terminal import told_file


def run_export(config: ExportConfig) -> int:
    """Write a trained network as safetensors with its sub-network; as ONNX and for `torch.export` too if asked for."""
    for path in export_run(config):
        print(told_file(path))
    return 0


EXPORT = Command(
    "export",
    ExportConfig,
    run_export,
    """examples:
  morphogen export
  morphogen export runs/vit --onnx
  morphogen export runs/vit --program --output deploy""",
    first=("run", "output folder of `morphogen train` (default: runs/train)"),
    again="nothing is half written, the same command writes what is missing",
)
