"""The formats that `loading.py` sets beside the .dqz: the same images written in each, and an epoch of batches from it.

    pip install webdataset mosaicml-streaming litdata simplejpeg

Each package is needed by its own opponent only; LEFT_OUT names those that cannot run here, and why. All JPEGs have the
same bytes. The batches are made by the worker processes, and each opponent decodes as its documentation says, on the
CPU. Two are not among them: FFCV has no wheels and builds only where pkg-config finds OpenCV, and Hugging Face datasets
(5.2, Python 3.11) stops when it makes a Dataset, as dill cannot pickle a type of pyarrow.

Streaming and LitData shuffle each epoch the same way here, as each is the first of a newly opened set.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import to_tensor

from dqcodec.container.spec import Array

BATCH = 128
WORKERS = 2
SHARD = 1000  # samples in a tar, at most
SHUFFLE = 1000  # samples that WebDataset shuffles among, as its documentation has it

Batch = tuple[Tensor, Tensor]  # float32 (n, 3, H, W) in 0..1, int64 (n,)


@dataclass(frozen=True)
class Opponent:
    """A format with the loader that belongs to it.

    package, module  what is installed, what is imported
    write            (new folder, uint8 (N, H, W, 3), int64 (N,), JPEG quality): labels 0..K-1, each of them present
    epoch            (that folder) -> each sample once, shuffled. The call opens the set; the workers start with the
                     first batch, and are gone when the iterator has ended or is closed
    """

    name: str
    package: str
    module: str
    write: Callable[[Path, Array, Array, int], None]
    epoch: Callable[[Path], Iterator[Batch]]

    @property
    def version(self) -> str:
        return f"{self.package} {version(self.package)}"


def bytes_on_disk(folder: Path) -> int:
    """Of all files in the folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def jpeg(image: Array, quality: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality, optimize=True)
    return stream.getvalue()


def png(image: Array, quality: int) -> bytes:
    """Lossless: the quality does not count."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def batches(loader: Iterable[Any], clean: Callable[[], None] = lambda: None) -> Iterator[Batch]:
    """The loader's batches; `clean` is called once its workers are gone."""
    try:
        yield from map(tuple, loader)
    finally:
        clean()


# One file an image.


def write_files(folder: Path, images: Array, labels: Array, quality: int, suffix: str) -> None:
    encode = {"jpg": jpeg, "png": png}[suffix]
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / f"{label:04}" / f"{index:07}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image, quality))


def files_epoch(folder: Path) -> Iterator[Batch]:
    dataset = ImageFolder(folder, transform=to_tensor)
    return batches(DataLoader(dataset, BATCH, shuffle=True, num_workers=WORKERS))


def read_jpeg(path: str) -> Tensor:
    """uint8 (H, W, 3)."""
    import simplejpeg

    with open(path, "rb") as file:
        return torch.from_numpy(simplejpeg.decode_jpeg(file.read()))


def stack(samples: list[tuple[Tensor, int]]) -> Batch:
    """uint8 (H, W, 3) to a float batch in one pass, right into the memory that is shared with the main process."""
    images, targets = zip(*samples, strict=True)
    height, width, _ = images[0].shape
    shape = (len(images), 3, height, width)
    memory = torch.UntypedStorage._new_shared(4 * len(images) * 3 * height * width)  # as default_collate does
    batch = torch.empty(0).set_(memory).view(shape)
    for place, image in zip(batch, images, strict=True):
        torch.div(image.permute(2, 0, 1), 255, out=place)
    return batch, torch.tensor(targets)


def fast_epoch(folder: Path) -> Iterator[Batch]:
    """The fastest decoder and the least copies that we know of."""
    dataset = ImageFolder(folder, loader=read_jpeg)
    return batches(DataLoader(dataset, BATCH, shuffle=True, num_workers=WORKERS, collate_fn=stack))


# WebDataset: tars.


def write_tars(folder: Path, images: Array, labels: Array, quality: int) -> None:
    """As many shards for each worker, of equal size."""
    import webdataset

    shards = WORKERS * -(-len(images) // (WORKERS * SHARD))
    folder.mkdir(parents=True)
    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxcount=-(-len(images) // shards), verbose=0) as writer:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            writer.write({"__key__": f"{index:07}", "jpg": jpeg(image, quality), "cls": int(label)})


def tars_epoch(folder: Path) -> Iterator[Batch]:
    import webdataset

    tars = sorted(map(str, folder.glob("*.tar")))
    dataset = (
        webdataset.WebDataset(tars, shardshuffle=len(tars))
        .shuffle(SHUFFLE)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(to_tensor, int)
        .batched(BATCH, collation_fn=default_collate)
    )
    return batches(webdataset.WebLoader(dataset, batch_size=None, num_workers=WORKERS))


# MosaicML Streaming: MDS.


def write_mds(folder: Path, images: Array, labels: Array, quality: int) -> None:
    from streaming import MDSWriter

    with (
        tempfile.TemporaryDirectory() as place,
        MDSWriter(out=str(folder), columns={"image": "jpeg", "label": "int"}) as writer,
    ):
        path = Path(place) / "image.jpg"
        for image, label in zip(images, labels, strict=True):
            path.write_bytes(jpeg(image, quality))
            with Image.open(path) as file:  # a file is taken as it is, other images are coded with quality 75
                writer.write({"image": file, "label": int(label)})


def forget(prefix: str, locks: Path) -> None:
    """Remove what Streaming keeps until the process ends, or for ever: shared memory and lock files.

    Its own clean_stale_shared_memory() also removes that of other processes.
    """
    from streaming.base.constant import (
        BARRIER_FILELOCK,
        CACHE_FILELOCK,
        SHM_TO_CLEAN,
    )

    for name in SHM_TO_CLEAN:
        with suppress(FileNotFoundError):
            memory = SharedMemory(f"{prefix}_{name}")
            memory.close()
            memory.unlink()
    for name in (BARRIER_FILELOCK, CACHE_FILELOCK):
        (locks / f"{prefix}_{name}").unlink(missing_ok=True)


def mds_epoch(folder: Path) -> Iterator[Batch]:
    from streaming import StreamingDataset

    class Pairs(StreamingDataset):  # type: ignore[misc,unused-ignore]
        def __getitem__(self, index: int) -> tuple[Tensor, int]:  # type: ignore[override,unused-ignore]
            sample = super().__getitem__(index)
            return to_tensor(sample["image"]), sample["label"]

    dataset = Pairs(local=str(folder), shuffle=True, batch_size=BATCH)
    clean = partial(forget, f"{dataset._shm_prefix_int:06}", Path(dataset._filelock_root))
    return batches(DataLoader(dataset, BATCH, num_workers=WORKERS), clean)


# LitData: chunks.


def chunk_sample(index: int, images: Array, labels: Array, quality: int) -> tuple[Any, int]:
    from litdata import Jpeg

    return Jpeg(bytes=jpeg(images[index], quality), max_quality=None), int(labels[index])


@contextmanager
def own_cache() -> Iterator[None]:
    """`optimize` first DELETES its cache folders, by default <TMPDIR>/chunks and <TMPDIR>/data, whosever they are."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as place:
        os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = f"{place}/chunks"
        os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = f"{place}/data"
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def write_chunks(folder: Path, images: Array, labels: Array, quality: int) -> None:
    from litdata import optimize

    sample = partial(chunk_sample, images=images, labels=labels, quality=quality)
    indices = list(range(len(images)))
    with own_cache():  # fork: the images are not to be pickled
        optimize(sample, indices, str(folder), chunk_bytes="64MB", num_workers=1, start_method="fork", verbose=False)


def scaled(sample: tuple[Tensor, int]) -> tuple[Tensor, int]:
    """LitData decodes JPEGs itself, to uint8 (3, H, W)."""
    image, label = sample
    return image.float().div_(255), label


def chunks_epoch(folder: Path) -> Iterator[Batch]:
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(str(folder), shuffle=True, transform=scaled)
    return batches(StreamingDataLoader(dataset, batch_size=BATCH, num_workers=WORKERS))


def missing(opponent: Opponent) -> str | None:
    """Why it cannot run here."""
    try:
        import_module(opponent.module)
    except ImportError as error:
        return f"pip install {opponent.package}: {error}"
    return None


_KNOWN = (
    Opponent("JPEG files, Pillow", "pillow", "PIL", partial(write_files, suffix="jpg"), files_epoch),
    Opponent("JPEG files, simplejpeg", "simplejpeg", "simplejpeg", partial(write_files, suffix="jpg"), fast_epoch),
    Opponent("PNG files, Pillow", "pillow", "PIL", partial(write_files, suffix="png"), files_epoch),
    Opponent("WebDataset", "webdataset", "webdataset", write_tars, tars_epoch),
    Opponent("MosaicML Streaming", "mosaicml-streaming", "streaming", write_mds, mds_epoch),
    Opponent("LitData", "litdata", "litdata", write_chunks, chunks_epoch),
)
LEFT_OUT = {opponent.name: reason for opponent in _KNOWN if (reason := missing(opponent)) is not None}
OPPONENTS = tuple(opponent for opponent in _KNOWN if opponent.name not in LEFT_OUT)
