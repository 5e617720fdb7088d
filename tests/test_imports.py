"""Who may import whom, and how light `import dqcodec` is."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dqcodec"
HEAVY = {
    "torch",
    "timm",
    "torchvision",
    "safetensors",
    "PIL",
    "zarr",
    "typer",
    "rich",
    "fsspec",
    "aiohttp",
    "msgpack",
    "pyarrow",
}

NEVER = {  # part -> what it must not import, anywhere in its files
    "container": {"dqcodec.codec", "dqcodec.data", "dqcodec.selection", "torch", "zarr", "PIL"},
    "codec": {"dqcodec.container", "dqcodec.data", "torch"},
    "selection": {"dqcodec.container", "dqcodec.codec", "dqcodec.data", "torch"},
    "sources": {"dqcodec.selection", "torch"},
    "patches.py": {"dqcodec.container", "torch"},
    "models": {"dqcodec.container", "dqcodec.cli"},
    "data": {"dqcodec.encode", "dqcodec.selection", "dqcodec.cli"},
    "decode.py": {"dqcodec.encode", "dqcodec.data", "dqcodec.models", "torch", "PIL"},
    "records.py": {"dqcodec.encode_records", "dqcodec.data", "dqcodec.models", "torch"},
    "encode_records.py": {"dqcodec.cli", "dqcodec.data", "rich", "typer"},
    "inspection.py": {"torch", "rich", "typer"},
    "stages": {"dqcodec.encode", "dqcodec.cli", "dqcodec.data", "rich", "typer"},
    "options.py": {"dqcodec.stages", "torch"},
    "encode.py": {"dqcodec.cli", "dqcodec.data", "rich", "typer"},
    "errors.py": {"dqcodec", "numpy"},
}


def imported(path, top_level=False):
    """Full names of the modules that a file imports, but for those under `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text())
    hidden = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in tree.body if top_level else ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("part", NEVER)
def test_import_directions(part):
    place = PACKAGE / part
    for path in [place] if place.is_file() else place.rglob("*.py"):
        for name in imported(path):
            broken = {no for no in NEVER[part] if name == no or name.startswith(f"{no}.")}
            assert not broken, f"{path.name} imports {name}"


def run(code):
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


FILE = PACKAGE.parent / "tests" / "golden" / "pixel-rgb" / "file.dqz"
LIGHT = f"""
import sys
import dqcodec
with dqcodec.open({str(FILE)!r}) as f:
    assert f.images([0, 1]).shape == (2, 3, 24, 32)
heavy = sorted({HEAVY!r} & set(sys.modules))
sys.exit(f"imported: {{heavy}}" if heavy else 0)
"""


def test_reading_is_light():
    done = run(LIGHT)
    assert done.returncode == 0, done.stderr


def test_that_check_can_fail():
    done = run("import torch\n" + LIGHT)
    assert done.returncode == 1
    assert "imported: ['torch'" in done.stderr


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "timm", "torchvision", "safetensors"):
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Blocker())
import dqcodec
"""


def test_without_torch(photo_folder, tmp_path):
    """Everything but selection, dropping and the torch dataset works, and those say what is missing."""
    out = str(tmp_path / "x.dqz")
    code = (
        BLOCKED
        + f"""
result = dqcodec.encode({str(photo_folder)!r}, {out!r})
print(result.kept)
try:
    dqcodec.encode({str(photo_folder)!r}, {out!r}, dqcodec.EncodeOptions(keep=0.6), overwrite=True)
except dqcodec.OptionError as error:
    print(error)
try:
    dqcodec.DQZDataset
except ImportError as error:
    print(error)
"""
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "21"
    assert "needs torch: pip install 'dqcodec[torch]'" in done.stdout.splitlines()[1]
    assert done.stdout.splitlines()[2].startswith("DQZDataset needs torch: pip install 'dqcodec[torch]'")
