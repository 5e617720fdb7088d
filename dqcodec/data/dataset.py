"""DQZDataset: a .dqz as a torch Dataset of (image, target), or of records of text.

    dataset = DQZDataset("out.dqz", transform=...)
    loader = DataLoader(dataset, batch_size=128, shuffle=True, num_workers=4)

    read -> checksum -> entropy decode | dequantize -> place patches -> fill
            on the CPU                 | on the dataset's device, a batch at once

On a CUDA device the entropy decoding of images of the transform dct is done there, too, where `dqcodec[torch,cuda]` is
installed.

The first half, `decode`, holds no interpreter lock for long and runs in any thread; `finish` is the second. Another
process may also read only: `dataset.packed` gives coded samples, and `dataset.collate` decodes a batch of them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from dqcodec import checks, memory
from dqcodec.codec import quantize
from dqcodec.codec.dct import coder
from dqcodec.container.spec import MAE as MAE_COLUMN
from dqcodec.data import dct
from dqcodec.decode import DQZFile, check_index, check_indices
from dqcodec.decode import open as open_dqz
from dqcodec.errors import FormatError, OptionError
from dqcodec.features import torch_device
from dqcodec.models import checkpoints
from dqcodec.models.mae import MAE
from dqcodec.patches import join, split, to_pixels
from dqcodec.smooth import smooth

if TYPE_CHECKING:
    from dqcodec.records import RecordFile

Array = npt.NDArray[Any]
T = TypeVar("T")

FILLS = ("mae", "smooth", "mean", "none")
ON_ERROR = ("raise", "skip", "warn")


@dataclass(frozen=True)
class Decoded:
    """A batch after entropy decoding, as tensors on the CPU; images that a GPU decoded stay there.

    indices   the samples that it holds, without those that were left out
    values    images uint8 (n, C, H, W), black where dropped (dct), or levels int8 (K, C, p, p) of all kept patches
    scale     float32 (K,) of each kept patch (pixel), or None
    mask      bool (n, P), true where a patch is kept
    """

    indices: list[int]
    values: Tensor
    scale: Tensor | None
    mask: Tensor

    def pin_memory(self) -> Decoded:
        """In pinned memory, from where a GPU fetches it beside other work."""
        values = self.values if self.values.is_cuda else self.values.pin_memory()
        scale = None if self.scale is None else self.scale.pin_memory()
        return Decoded(self.indices, values, scale, self.mask.pin_memory())


@dataclass(frozen=True)
class DecodedRecords:
    """A batch of records: the samples that it holds, and the dicts."""

    indices: list[int]
    values: list[dict[str, Any]]


class DQZDataset(Dataset[Any]):
    """The samples of a .dqz as (image, target): a uint8 tensor (C, H, W) and an int, before the transforms.

    Of a file of text, a sample is the record: a dict with all its fields, before the transform. What concerns images
    only (fill, mae, filter, soft_labels, target_transform) may not be given then, and `device` means nothing.

        path              the file, or its URL: https://, s3:// and what else fsspec knows
        transform         called with each image; target_transform with each target
        device            where images are decoded to, "cpu" by default. Another device works in the process that uses
                          it: num_workers=0
        fill              dropped patches: "mae" (a masked autoencoder predicts them), "smooth" (interpolated from the
                          pixels around them), "mean" (the image's mean colour), "none" (black)
        mae               for fill="mae", another model than the file wants: "hf:OWNER/NAME", "file:PATH", or an MAE
        filter            images of the transform dct with the file's filter: 0.2 to 0.3 dB nearer to the originals, for
                          1.3 times the time of decoding on a CPU; networks train as well without it
        soft_labels       targets are what a classifier that saw the whole source says of a sample, float32 (classes,)
                          of sum 1, as torch's cross_entropy takes them; the file must have them (dqcodec encode
                          --soft-labels)
        on_error          a damaged sample in a batch: "raise" (FormatError names file and sample), "skip" (the batch
                          is smaller), "warn" (and a warning names it). By itself, `dataset[i]`, it always raises, and
                          so does a batch in which nothing is left
        cache             for a URL, a folder that keeps what was fetched; workers and processes may share it

        classes, class_to_idx, targets   as torchvision's ImageFolder has them; targets is an int64 array
        skipped                          indices of the samples that this process left out so far

    A batch is decoded at once through `__getitems__`. Pickles as the path; a worker opens the file anew, and refuses
    one that was replaced. Raises FormatError where the file is not a .dqz, ChecksumError for a damaged sample,
    OptionError for wrong arguments.
    """

    def __init__(
        self,
        path: str | Path,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        device: str | torch.device | None = None,
        fill: str = "mae",
        mae: str | Path | MAE | None = None,
        filter: bool = False,
        soft_labels: bool = False,
        on_error: str = "raise",
        cache: str | Path | None = None,
    ) -> None:
        checks.choice("fill", fill, FILLS)
        checks.choice("on_error", on_error, ON_ERROR)
        checks.boolean("soft_labels", soft_labels)
        if mae is not None and fill != "mae":
            raise OptionError(f'mae: given with fill={fill!r}; only fill="mae" uses it')
        self.file: DQZFile | RecordFile = open_dqz(path, cache, filter)
        self.transform, self.target_transform = transform, target_transform
        self.device = torch_device("cpu" if self.is_text else str(device or "cpu"))
        if self.is_text:
            given = {
                "target_transform": target_transform,
                "mae": mae,
                "fill": None if fill == "mae" else fill,
                "soft_labels": soft_labels or None,
            }
            wrong = [name for name, value in given.items() if value is not None]
            if wrong:
                raise OptionError(f"{wrong[0]}: {self.file.path} holds records of text; it is for images")
        self.fill, self.on_error, self.soft_labels = fill, on_error, soft_labels
        if self.soft_labels:
            self._images_of().soft_labels([])  # whether it has them
        self.skipped: set[int] = set()
        self._source = mae
        self._model: MAE | None = None
        self._digest = ""  # of the weights, so that all processes use the same
        if self.drops and fill == "mae":
            header = self.file.reader.header  # what does not fit should be known now
            self.mae.check((header.channels, header.height, header.width), header.patch)
        self.classes = list(self.file.classes)
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}
        self.targets: Array = self.file.label.astype(np.int64)

    @property
    def is_text(self) -> bool:
        """Whether the samples are records of text."""
        return not isinstance(self.file, DQZFile)

    @property
    def drops(self) -> bool:
        """Whether patches are dropped in the file."""
        return "mask" in self.file.reader.columns

    @property
    def mae(self) -> MAE:
        """The model that fills, on the dataset's device; loaded where it is first used in a process."""
        if self._model is None:
            source = self._source
            if isinstance(source, MAE):
                model = source
            else:
                found = mae_of(self._images_of()) if source is None else checkpoints.load(source)
                if self._digest not in ("", found.sha256):
                    raise OptionError(f"mae: {source} was replaced by other weights while it was in use")
                model, self._digest = found.model, found.sha256
            self._model = copy.deepcopy(model).float().to(self.device).eval()  # one of the package is shared
        return self._model

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        return self._samples(self._decode([check_index(index, len(self))], None))[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Samples of a batch, decoded together."""
        return self._samples(self.decode(indices))

    def images(self, indices: Sequence[int]) -> Tensor:
        """uint8 (n, C, H, W) on the dataset's device, without transforms."""
        self._images_of()
        images: Tensor = self.finish(self.decode(indices))
        return images

    def to_hf(self) -> Any:
        """The records as a Hugging Face `Dataset`; a field that some records do not have is None there.

        Needs `dqcodec[text]`. Raises OptionError for images, and where the values of a field do not make a column.
        """
        if isinstance(self.file, DQZFile):
            raise OptionError(f"to_hf: {self.file.path} holds images; it is for records of text")
        from datasets import Dataset as HFDataset
        from datasets.table import InMemoryTable

        return HFDataset(InMemoryTable(self.file.to_arrow()))

    @property
    def packed(self) -> Packed:
        """The samples as they are coded, for DataLoader workers that leave decoding to `collate`."""
        return Packed(self)

    def collate(self, batch: tuple[Any, Sequence[bytes]]) -> Any:
        """A batch of `packed` samples, indices and coded bytes, as a batch of (image, target) on the dataset's device.

        Of records, a list of them.

        for packed in DataLoader(dataset.packed, batch_size=128, shuffle=True, num_workers=4):
            images, targets = dataset.collate(packed)
        """
        indices, payloads = batch
        samples = self._samples(self.decode(indices, payloads))
        if self.is_text:
            return samples
        images, targets = default_collate(samples)
        return images, targets.to(self.device) if isinstance(targets, Tensor) else targets

    def decode(self, indices: Sequence[int], payloads: Sequence[bytes] | None = None) -> Decoded | DecodedRecords:
        """Read, check and entropy-decode a batch, without damaged samples as `on_error` says.

        payloads are the coded bytes where another process has read them. Safe to call from several threads.
        """
        if payloads is None:
            return self._undamaged(indices, lambda wanted: self._decode(wanted, None))
        given = dict(zip(check_indices(indices, len(self)), payloads, strict=True))
        return self._undamaged(indices, lambda wanted: self._decode(wanted, [given[i] for i in wanted]))

    def finish(self, batch: Decoded | DecodedRecords) -> Any:
        """The images of a batch, uint8 (n, C, H, W) on the dataset's device: placed and filled. Or its records."""
        if isinstance(batch, DecodedRecords):
            return batch.values
        if self.device.type != "cpu" and get_worker_info() is not None:
            raise OptionError(
                f"device: {self.device} cannot be used in DataLoader workers; set num_workers=0, or let them read "
                "dataset.packed"
            )
        header = self.file.reader.header
        images, mask = batch.values.to(self.device, non_blocking=True), batch.mask.to(self.device, non_blocking=True)
        if images.is_cuda:
            images.record_stream(torch.cuda.current_stream(images.device))  # they may come from another one
        if batch.scale is not None:
            images = place(images, batch.scale.to(self.device, non_blocking=True), mask, header.grid)
        if not self.drops or self.fill == "none":
            return images
        if self.fill == "mae":
            return self.mae.fill(images, mask, header.patch)
        return (fill_smooth if self.fill == "smooth" else fill_mean)(images, mask, header.patch)

    @property
    def _decoder(self) -> Callable[..., Any]:
        """What decodes the transform dct: the GPU where it is the device and numba can compile for it, or the CPU."""
        if self.device.type == "cuda" and get_worker_info() is None and dct.available():
            return partial(dct.decode, device=self.device)
        return coder.decode

    def _images_of(self) -> DQZFile:
        """The file, which must be one of images."""
        if isinstance(self.file, DQZFile):
            return self.file
        raise OptionError(f"{self.file.path}: it holds records of text, not images")

    def _decode(self, wanted: list[int], payloads: Sequence[bytes] | None) -> Decoded | DecodedRecords:
        if not isinstance(self.file, DQZFile):
            return DecodedRecords(wanted, self.file.records(wanted, payloads))
        if self.file.reader.header.transform == "dct":
            images, mask = self.file.placed(wanted, payloads, self._decoder)
            return Decoded(wanted, torch.as_tensor(images), None, torch.from_numpy(mask))
        kept = self.file.kept(wanted, payloads)
        scale = torch.from_numpy(quantize.SCALES[kept.scale])
        return Decoded(wanted, torch.from_numpy(kept.levels), scale, torch.from_numpy(kept.mask))

    def _undamaged(self, indices: Sequence[int], task: Callable[[list[int]], T]) -> T:
        """The task of these samples, without those that are found damaged and may be left out."""
        wanted = check_indices(indices, len(self))
        try:
            return task(wanted)
        except FormatError as error:
            if self.on_error == "raise" or error.sample not in wanted:
                raise
            last = error
        damaged = set()
        for index in dict.fromkeys(wanted):  # each by itself: there may be many, and a batch names one
            try:
                task([index])
            except FormatError as error:
                if error.sample != index:
                    raise
                last = error
                damaged.add(index)
                self.skipped.add(index)
                if self.on_error == "warn":
                    warnings.warn(f"left out: {error}", RuntimeWarning, stacklevel=2)
        left = [index for index in wanted if index not in damaged]
        if not left:
            raise last
        return task(left)

    def _samples(self, batch: Decoded | DecodedRecords) -> list[Any]:
        if isinstance(batch, DecodedRecords):
            return batch.values if self.transform is None else [self.transform(record) for record in batch.values]
        targets = self.targets_of(batch.indices)
        every = targets if self.soft_labels else targets.tolist()
        return [self._sample(image, target) for image, target in zip(self.finish(batch), every, strict=True)]

    def targets_of(self, indices: list[int]) -> Tensor:
        """int64 (n,), or with soft labels float32 (n, classes), on the CPU."""
        if self.soft_labels:
            return torch.from_numpy(self._images_of().soft_labels(indices))
        return torch.from_numpy(self.targets[indices])

    def _sample(self, image: Tensor, target: int | Tensor) -> tuple[Any, Any]:
        return (
            image if self.transform is None else self.transform(image),
            target if self.target_transform is None else self.target_transform(target),
        )

    def __repr__(self) -> str:
        return (
            f"DQZDataset({str(self.file.path)!r}, {len(self)} samples, {len(self.classes)} classes, fill={self.fill!r})"
        )


class Packed(Dataset[tuple[int, bytes]]):
    """The samples of a dataset as (index, coded bytes), after their checksums."""

    def __init__(self, dataset: DQZDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, bytes]:
        index = check_index(index, len(self))
        return index, self.dataset.file.reader.read([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[int, bytes]]:
        """Samples of a batch, without damaged ones as the dataset's `on_error` says."""
        read = self.dataset.file.reader.read
        return self.dataset._undamaged(indices, lambda wanted: list(zip(wanted, read(wanted), strict=True)))


def place(levels: Tensor, scale: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Dequantize and put the patches in place: images uint8 (n, C, H, W), black where dropped; see Decoded.

    The same integers as DQZFile.placed, which is the reference.
    """
    values = ((levels.float() * scale[:, None, None, None]).round_() + quantize.ZERO).clamp_(0, 255).to(torch.uint8)
    n, count = mask.shape
    _, channels, side, _ = values.shape
    patches = torch.zeros((n, count, channels, side, side), dtype=torch.uint8, device=levels.device)
    patches[mask] = values
    return join(patches, grid)


def fill_mean(images: Tensor, mask: Tensor, patch: int) -> Tensor:
    """Images (n, C, H, W) whose dropped patches, so far black, take the mean colour of the kept, rounded half up."""
    if bool(mask.all()):
        return images
    height, width = images.shape[2:]
    flat = images.flatten(2)
    if images.device.type == "cpu":  # numpy is five times as fast here
        total = torch.from_numpy(flat.numpy().sum(2, dtype=np.uint32).astype(np.int64))
        out = torch.from_numpy(memory.empty(tuple(images.shape), np.uint8))
    else:
        total, out = flat.sum(2, dtype=torch.int64), torch.empty_like(images)
    pixels = mask.sum(1)[:, None] * patch * patch
    colour = ((2 * total + pixels) // (2 * pixels)).to(torch.uint8)
    dropped = to_pixels((~mask).to(torch.uint8), (height // patch, width // patch), patch)
    return torch.addcmul(images, dropped, colour[:, :, None, None], out=out)


def fill_smooth(images: Tensor, mask: Tensor, patch: int) -> Tensor:
    """Images (n, C, H, W) whose dropped patches are interpolated; DQZFile.images is the reference."""
    grid = images.shape[2] // patch, images.shape[3] // patch
    filled: Tensor = smooth(split(images.float(), patch), mask, grid)
    return join((filled + 0.5).clamp(0, 255).to(torch.uint8), grid)


def mae_of(file: DQZFile) -> checkpoints.Checkpoint:
    """The masked autoencoder that a file wants: its own, one of this package, or one of a hub.

    OptionError where it is to be had nowhere, FormatError where its own is damaged.
    """
    weights = file.mae_weights
    if weights is not None:
        try:
            return checkpoints.from_bytes(weights, "mae/weights")
        except OptionError as error:
            raise FormatError(
                f"{file.path}: {str(error).removeprefix('mae: ')}", path=file.path, member=MAE_COLUMN
            ) from None
    patch = file.reader.header.patch
    if file.mae is None:  # a file that leaves it to its reader
        return checkpoints.built_in(patch)
    digest, name = file.mae
    found = checkpoints.by_hash(digest)
    if found is None and name in checkpoints.PUBLISHED:  # and no other place that a file may name
        found = checkpoints.load(name)
    if found is None or found.sha256 != digest:
        raise OptionError(
            f"mae: {file.path} wants the weights {name} with SHA-256 {digest[:16]}..., which are not here; give "
            'mae="file:PATH" with them, or fill="smooth"'
        )
    return found
