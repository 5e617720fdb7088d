"""DQZDataset: a .dqz as a torch Dataset of (image, target).

    dataset = DQZDataset("out.dqz", transform=...)
    loader = DataLoader(dataset, batch_size=128, shuffle=True, num_workers=4)

The entropy coding is undone on the CPU; dequantization, placing the patches and filling run on the dataset's device,
a batch at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from dqcodec.codec import quantize
from dqcodec.container.spec import MAE as MAE_COLUMN
from dqcodec.decode import DQZFile, Kept, check_index
from dqcodec.errors import FormatError, OptionError
from dqcodec.models import checkpoints
from dqcodec.models.mae import MAE
from dqcodec.patches import join, split
from dqcodec.smooth import smooth

Array = npt.NDArray[Any]

FILLS = ("mae", "smooth", "mean", "none")


class DQZDataset(Dataset[tuple[Any, Any]]):
    """The samples of a .dqz as (image, target): a uint8 tensor (C, H, W) and an int, before the transforms.

        path              the file, or its URL: https://, s3:// and what else fsspec knows
        transform         called with each image; target_transform with each target
        device            where images are decoded to, "cpu" by default. Another device works in the process that uses
                          it: num_workers=0
        fill              dropped patches: "mae" (a masked autoencoder predicts them), "smooth" (interpolated from the
                          pixels around them), "mean" (the image's mean colour), "none" (black)
        mae               for fill="mae", another model than the file wants: "hf:OWNER/NAME", "file:PATH", or an MAE
        cache             for a URL, a folder that keeps what was fetched; workers and processes may share it

        classes, class_to_idx, targets   as torchvision's ImageFolder has them; targets is an int64 array

    A batch is decoded at once through `__getitems__`. Pickles as the path; a worker opens the file anew, and refuses
    one that was replaced. Raises FormatError where the file is not a .dqz, ChecksumError for a damaged sample,
    OptionError for wrong arguments.
    """

    def __init__(
        self,
        path: str | Path,
        transform: Callable[[Tensor], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
        device: str | torch.device | None = None,
        fill: str = "mae",
        mae: str | Path | MAE | None = None,
        cache: str | Path | None = None,
    ) -> None:
        if fill not in FILLS:
            raise OptionError(f"fill: {fill!r}; allowed: {', '.join(FILLS)}")
        if mae is not None and fill != "mae":
            raise OptionError(f'mae: given with fill={fill!r}; only fill="mae" uses it')
        self.file = DQZFile(path, cache)
        self.transform, self.target_transform = transform, target_transform
        self.device = torch.device(device or "cpu")
        self.fill = fill
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
                found = mae_of(self.file) if source is None else checkpoints.load(source)
                if self._digest not in ("", found.sha256):
                    raise OptionError(f"mae: {source} was replaced by other weights while it was in use")
                model, self._digest = found.model, found.sha256
            self._model = copy.deepcopy(model).float().to(self.device).eval()  # one of the package is shared
        return self._model

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """Samples of a batch, decoded together."""
        wanted = [check_index(index, len(self)) for index in indices]
        return [self._sample(image, int(self.targets[i])) for i, image in zip(wanted, self.images(wanted), strict=True)]

    def images(self, indices: Sequence[int]) -> Tensor:
        """uint8 (n, C, H, W) on the dataset's device, without transforms."""
        if self.device.type != "cpu" and get_worker_info() is not None:
            raise OptionError(f"device: {self.device} cannot be used in DataLoader workers; set num_workers=0")
        header = self.file.reader.header
        if header.transform == "dct":
            decoded, kept = self.file.placed(indices)
            images, mask = torch.from_numpy(decoded).to(self.device), torch.from_numpy(kept).to(self.device)
        else:
            images, mask = place(self.file.kept(indices), header.grid, self.device)
        if not self.drops or self.fill == "none":
            return images
        if self.fill == "mae":
            return self.mae.fill(images, mask, header.patch)
        return (fill_smooth if self.fill == "smooth" else fill_mean)(images, mask, header.patch)

    def _sample(self, image: Tensor, target: int) -> tuple[Any, Any]:
        return (
            image if self.transform is None else self.transform(image),
            target if self.target_transform is None else self.target_transform(target),
        )

    def __repr__(self) -> str:
        return (
            f"DQZDataset({str(self.file.path)!r}, {len(self)} samples, {len(self.classes)} classes, fill={self.fill!r})"
        )


def place(kept: Kept, grid: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Dequantize and put the patches in place: images uint8 (n, C, H, W), black where dropped, and the mask (n, P).

    The same integers as DQZFile.placed, which is the reference.
    """
    scales = torch.from_numpy(quantize.SCALES[kept.scale]).to(device)[:, None, None, None]
    levels = torch.from_numpy(kept.levels).to(device)
    mask = torch.from_numpy(kept.mask).to(device)
    values = ((levels.float() * scales).round_() + quantize.ZERO).clamp_(0, 255).to(torch.uint8)
    n, count = mask.shape
    _, channels, side, _ = values.shape
    patches = torch.zeros((n, count, channels, side, side), dtype=torch.uint8, device=device)
    patches[mask] = values
    blocks = patches.reshape(n, *grid, channels, side, side).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(n, channels, grid[0] * side, grid[1] * side), mask


def fill_mean(images: Tensor, mask: Tensor, patch: int) -> Tensor:
    """Images (n, C, H, W) whose dropped patches, so far black, take the mean colour of the kept, rounded half up."""
    if bool(mask.all()):
        return images
    n, _, height, width = images.shape
    pixels = mask.sum(1)[:, None] * patch * patch
    total = images.sum((2, 3), dtype=torch.int64)
    colour = ((2 * total + pixels) // (2 * pixels)).to(torch.uint8)
    grid = mask.reshape(n, 1, height // patch, width // patch)
    kept = grid.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    return torch.where(kept, images, colour[:, :, None, None])


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
