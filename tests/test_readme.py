"""The README's examples, run as they stand."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import GOLDEN

README = (Path(__file__).parent.parent / "README.md").read_text()
BIN = Path(sys.executable).parent


def test_the_command_line(photo_folder, tmp_path):
    (tmp_path / "photos").symlink_to(photo_folder)
    commands = re.findall(r"^    (dqcodec .*?)(?:  +#.*)?$", README, re.M)
    assert len(commands) == 7
    for command in commands:
        done = subprocess.run([BIN / shlex.split(command)[0], *shlex.split(command)[1:]], cwd=tmp_path)
        assert done.returncode == 0, command
    assert len(list((tmp_path / "folder").rglob("*.png"))) == 13


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S))
def test_python(code, tmp_path):
    (tmp_path / "out.dqz").symlink_to(GOLDEN / "pixel-rgb" / "file.dqz")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_layout_of_a_file_is_as_described():
    described = README.partition("## What is in a file")[2]
    for member in ("payload/c/0", "length", "checksum", "label", "bits", "scale", "mask", "bin", "zarr.json"):
        assert member in described


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)(.*?)\)", README):
        assert (Path(__file__).parent.parent / target).exists(), target
