"""The layers import one way only, the public face is small and clear, and the core needs torch alone."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import morphogen
import morphogen.extend

ROOT = Path(__file__).parent.parent / "src" / "morphogen"
LAYERS = [
    {"errors"},
    {"spec"},
    {"machine"},
    {"dense"},
    {"graph", "morph", "cost"},
    {"operators", "schedule", "pruning"},
    {"search", "export"},
    {"run"},
    {"parts"},
    {"methods"},
    {"plan", "report", "integrations"},
    {"extend"},
    {"recipes"},
    {"train"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
INDEPENDENT = [("graph", "morph"), ("schedule", "operators"), ("report", "integrations"), ("train", "integrations")]


def imports(path: Path):
    """(importing part, imported part) of every import inside the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            target = [*parts[: len(parts) - node.level], *(node.module or "").split(".")]
            names = [target[0]] if target[0] else [alias.name for alias in node.names]
            yield from ((parts[0], name) for name in names if name in LEVEL)


def test_every_part_has_a_layer():
    parts = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"__init__"} == set(LEVEL)


def test_imports_go_one_way():
    found = [pair for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py" for pair in imports(path)]
    assert ("graph", "dense") in found and ("train", "report") in found  # the reader sees imports at all
    for source, target in found:
        assert source == target or LEVEL[target] < LEVEL[source], f"{source} imports {target}"
        assert (source, target) not in INDEPENDENT and (target, source) not in INDEPENDENT


def test_a_run_knows_neither_parts_nor_methods():
    found = {target for path in (ROOT / "run").rglob("*.py") for _, target in imports(path)}
    assert "dense" in found and not found & {"parts", "methods"}


def test_methods_do_not_import_each_other():
    folder = ROOT / "methods"
    for path in folder.rglob("*.py"):
        if path == folder / "__init__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                sums = (path.name, node.module) == ("method.py", "combined")  # A + B is one
                assert node.module == "method" or sums, f"{path} imports {node.module}"


def test_the_public_names():
    assert dir(morphogen) == sorted(morphogen.__all__) and len({*morphogen.__all__}) == 32
    for name in morphogen.extend.__all__:  # what an extender needs is found in both places
        assert getattr(morphogen, name) is getattr(morphogen.extend, name)
    for path in ROOT.iterdir():  # no function hides a package
        if (path / "__init__.py").exists():
            module = importlib.import_module(f"morphogen.{path.name}")
            assert getattr(morphogen, path.name) is module
    assert morphogen.morph.commit.morph.__doc__ and callable(morphogen.morph)
    assert inspect.signature(morphogen.morph) == inspect.signature(morphogen.morph.commit.morph)


def test_the_core_needs_torch_alone():
    blocked = "torchvision timm rich matplotlib jsonargparse sklearn PIL yaml safetensors onnx onnxscript".split()
    blocked += "accelerate lightning transformers".split()
    code = f"""
import sys
for name in {blocked}: sys.modules[name] = None
import morphogen, torch
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 2))
run = morphogen.attach(model, torch.optim.SGD(model.parameters(), 0.1), morphogen.NetworkExpansion(stages=2),
                       example=torch.zeros(2, 3, 8, 8), epochs=2)
run.begin_epoch(1)
from morphogen.__main__ import run as command
sys.exit(command())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "pip install 'morphogen[train]'" in result.stderr, result.stderr
