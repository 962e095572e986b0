"""The wheel: it has what a user needs, and installs into an empty environment."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("uv") is None, reason="needs uv, and the network")
def test_the_wheel_installs_into_an_empty_environment(tmp_path):
    def run(*command):
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    run("uv", "build", "--wheel", "--out-dir", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "morphogen/py.typed" in names and "morphogen/methods/cards/grow_once.md" in names
    assert not [name for name in names if name.startswith(("tests", "docs", "benchmarks"))]
    run("uv", "venv", "-q", "--python", sys.executable, "bare")
    python = str(tmp_path / "bare" / "bin" / "python")
    pins = str(ROOT / "constraints.txt")
    run("uv", "pip", "install", "-q", "--python", python, "-c", pins, f"morphogen[train] @ {wheel.as_uri()}")
    assert "--methods" in run(python, "-m", "morphogen", "compare", "--help")
    assert "GrowOnce" in run(python, "-c", "import morphogen; print(morphogen.GrowOnce())")
