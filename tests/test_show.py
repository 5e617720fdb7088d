import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN
from PIL import Image

import dqcodec
from dqcodec import DQZDataset, OptionError, OutputError, SourceError
from dqcodec.show import show

RGB = GOLDEN / "pixel-rgb" / "file.dqz"


def run(*arguments):
    return subprocess.run(
        [Path(sys.executable).with_name("dqcodec"), *map(str, arguments)], capture_output=True, text=True
    )


@pytest.mark.parametrize("transform", ["pixel", "dct"])
def test_with_the_originals(encoded, encoded_dct, photo_folder, tmp_path, transform):
    """PSNR is against the source; the tiles are the pixels themselves, filtered."""
    path = encoded if transform == "pixel" else encoded_dct
    shown = show(path, tmp_path / "a.png", [0, -1], photo_folder)
    with dqcodec.open(path) as file:
        last = len(file) - 1
        source = int(file.source_index[last])
        assert [(s.index, s.bits, s.bin) for s in shown] == [(i, file.bits[i], file.bin[i]) for i in (0, last)]
        assert shown[1].label == file.classes[file.label[last]]
    names = sorted((folder.name, path) for folder in photo_folder.iterdir() for path in sorted(folder.iterdir()))
    original = np.asarray(Image.open(names[source][1])).transpose(2, 0, 1).astype(float)
    filled = DQZDataset(path, filter=True).images([last])[0].numpy()
    square = (filled - original) ** 2
    kept = DQZDataset(path, fill="none").file.mask([last]).reshape(6, 6).repeat(4, 0).repeat(4, 1)
    assert shown[1].whole == pytest.approx(10 * math.log10(255**2 / square.mean()))
    assert shown[1].kept == pytest.approx(10 * math.log10(255**2 / square[:, kept].mean()))
    assert shown[1].kept > shown[1].whole

    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    scale = -(-224 // 24)
    tile = filled.transpose(1, 2, 0).repeat(scale, 0).repeat(scale, 1)
    row, column = 12 + 18 + 24 * scale + 36 + 12, 12 + 2 * (24 * scale + 12)
    np.testing.assert_array_equal(picture[row : row + 24 * scale, column : column + 24 * scale], tile)


def test_without_them(tmp_path):
    shown = show(RGB, tmp_path / "b.jpg", fill="mean")
    assert [s.index for s in shown] == [0, 3, 6, 9, 11, 14, 17, 20]
    assert all(s.kept is None and s.whole is None for s in shown)
    grey = show(GOLDEN / "pixel-grey" / "file.dqz", tmp_path / "c.png", [2])
    assert grey[0].bin is None
    with Image.open(tmp_path / "b.jpg") as picture:
        assert picture.format == "JPEG"
        assert picture.width < picture.height


def test_what_is_refused(encoded, photo_folder, tmp_path):
    with pytest.raises(OptionError, match=r"output: 'x\.gif'; allowed: names that end in \.png"):
        show(encoded, tmp_path / "x.gif")
    with pytest.raises(OptionError, match="index: sample 999 of"):
        show(encoded, tmp_path / "x.png", [999])
    with pytest.raises(OptionError, match="index: 65 samples; allowed: 1 to 64"):
        show(encoded, tmp_path / "x.png", [0] * 65)
    with pytest.raises(OptionError, match="fill: 'magic'; allowed: mae, smooth, mean, none"):
        show(encoded, tmp_path / "x.png", fill="magic")
    with pytest.raises(OutputError, match="no does not exist; create it first"):
        show(encoded, tmp_path / "no" / "x.png")
    assert not list(tmp_path.iterdir())
    (tmp_path / "x.png").write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        show(encoded, tmp_path / "x.png")
    show(encoded, tmp_path / "x.png", [0], overwrite=True)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.format == "PNG"


def test_another_source(encoded, photo_folder, tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        show(encoded, tmp_path / "x.png", [0], tmp_path / "nowhere")
    for name in ("a cat", "größe"):
        (tmp_path / "other" / name).mkdir(parents=True)
        Image.new("RGB", (24, 24)).save(tmp_path / "other" / name / "0.png")
    with pytest.raises(SourceError, match="has other classes than"):
        show(encoded, tmp_path / "x.png", [0], tmp_path / "other")
    (tmp_path / "other" / "z").mkdir()
    with pytest.raises(SourceError, match="is not what sample .* was made from"):
        show(encoded, tmp_path / "x.png", [-1], tmp_path / "other")


def test_on_the_command_line(encoded, photo_folder, tmp_path):
    done = run("show", encoded, "-o", tmp_path / "x.png", "--index", 0, "--index", 1, "--source", photo_folder)
    assert (done.returncode, done.stdout) == (0, f"2 samples in {tmp_path / 'x.png'}\n"), done.stderr
    again = run("show", encoded, "-o", tmp_path / "x.png")
    assert again.returncode == 1
    assert "exists; choose another name or add --overwrite" in again.stderr
    wrong = run("show", encoded, "-o", tmp_path / "y.png", "--index", 99)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("Error: --index: sample 99 of ")
    assert json.loads(run("info", encoded, "--json").stdout)["mae"] == "small-4-1"


def test_a_long_name(tmp_path):
    output = tmp_path / ("n" * 250 + ".png")
    show(RGB, output, [0])
    assert list(tmp_path.iterdir()) == [output]
