"""Folders of small images, and .dqz files made from arrays."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

from make_golden import image as synthetic  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 12, 8 and 1 smooth 24 x 24 RGB images as PNG files, read only."""
    root = tmp_path_factory.mktemp("photos")
    number = 0
    for name, count in (("a cat", 12), ("größe", 8), ("z", 1)):
        (root / name).mkdir()
        for k in range(count):
            Image.fromarray(synthetic(number, 24, 24, 3)).save(root / name / f"{k:02d}.png")
            number += 1
    return root


@pytest.fixture(scope="session")
def encoded(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photo folder through every stage of the encoder; read only."""
    import dqcodec

    path = tmp_path_factory.mktemp("encoded") / "photos.dqz"
    dqcodec.encode(photo_folder, path, dqcodec.EncodeOptions(keep=0.6, method="adq", bins=3, drop=0.3))
    return path


@pytest.fixture(scope="session")
def encoded_dct(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same by the transform dct; read only."""
    import dqcodec

    path = tmp_path_factory.mktemp("encoded") / "dct.dqz"
    options = dqcodec.EncodeOptions(keep=0.6, method="adq", bins=3, drop=0.3, transform="dct")
    dqcodec.encode(photo_folder, path, options)
    return path


def noisy_folder(root: Path, count: int, slope: float) -> Path:
    """Two classes of images of 32 x 32 as PNG files, from smooth to noisy: image k has a deviation of k * slope."""
    rng = np.random.default_rng(0)
    for k in range(count):
        (root / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        pixels = synthetic(k, 32, 32, 3) + rng.normal(0, k * slope, (32, 32, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "ab"[k % 2] / f"{k:02d}.png")
    return root


def originals(folder: Path) -> np.ndarray:
    """Images of one size in PNG files, uint8 (n, H, W, C), in the folder's order."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))])


def activity(image: np.ndarray) -> float:
    """Mean square of the differences of neighbours, the sum over colours."""
    differences = [np.diff(image.astype(float), axis=axis).reshape(-1, image.shape[2]) for axis in (0, 1)]
    return float((np.concatenate(differences) ** 2).sum(1).mean())


@pytest.fixture
def quick_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests in which it does not matter how much the network learns."""
    monkeypatch.setattr("dqcodec.models.proxy.MIN_STEPS", 20)


@pytest.fixture
def golden_copy(tmp_path: Path) -> Path:
    """A golden file that a test may damage."""
    path = tmp_path / "copy.dqz"
    path.write_bytes((GOLDEN / "pixel-rgb" / "file.dqz").read_bytes())
    return path


Rebuild = Callable[[Path, Mapping[str, bytes | None]], Path]


@pytest.fixture
def rebuild(tmp_path: Path) -> Rebuild:
    """Write an archive again with some members replaced, added or (None) left out; all ZIP checksums are right."""

    def write(path: Path, changes: Mapping[str, bytes | None]) -> Path:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name, data in {**members, **changes}.items():
                if data is not None:
                    archive.writestr(name, data)
        out = tmp_path / "rebuilt.dqz"
        out.write_bytes(buffer.getvalue())
        return out

    return write


def write_index(folder: Path, count: int) -> None:
    """An index that is right for the parts in a folder, whether they belong together or not."""
    from dqcodec.container.reader import Reader
    from dqcodec.container.shards import Part, index_json, part_name

    parts = []
    for number in range(count):
        with Reader(folder / part_name(number)) as reader:
            parts.append(Part(part_name(number), len(reader), reader.header.fingerprint))
    (folder / "index.json").write_bytes(index_json(parts))


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal shape, dtype and values."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
