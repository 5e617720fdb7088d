"""fill: which masked autoencoder brings the dropped patches of the file back, where need be one trained on the set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dqcodec.parallel import ordered_map
from dqcodec.patches import join, split
from dqcodec.run import Run
from dqcodec.smooth import smooth
from dqcodec.stages.code import Coded, Samples, mask_of
from dqcodec.stages.images import Images

if TYPE_CHECKING:
    from dqcodec.models.checkpoints import Checkpoint
    from dqcodec.models.mae import MAE
    from dqcodec.models.training import Batch

Array = npt.NDArray[Any]

TRAINING_PATCHES = 2_000_000  # that `train` looks at, dropped and kept: a few minutes on two cores
STEP_PATCHES = 8192  # of one step
MAX_STEPS = 500
RATE = 0.3  # of the learning rates that the small models were made with


def wanted_mae(images: Images) -> Checkpoint:
    """The weights that the options name; for "train" those that the training begins with.

    Raises OptionError where they cannot be had, or are for other images.
    """
    from dqcodec.models import checkpoints

    source = images.options.mae
    found = checkpoints.built_in(images.patch) if source in ("small", "train") else checkpoints.load(source)
    found.model.check((images.channels, images.size, images.size), images.patch)
    return found


def train_mae(
    images: Images, start: Checkpoint, kept: Array, masks: Array, samples: Samples, coded: Coded, run: Run
) -> Checkpoint:
    """The small model, trained further on the kept images as the file gives them, with the patches that it drops.

    kept     int64 (n,), places among the usable images
    masks    uint8 (n, ceil(P/8)), packed
    samples  what was coded of them, and `coded`: which, and their columns
    """
    import copy

    from dqcodec.models import checkpoints
    from dqcodec.models.training import fit

    patches = images.grid[0] * images.grid[1]
    batch = max(1, min(128, STEP_PATCHES // patches))  # of few images some come twice
    steps = max(1, min(MAX_STEPS, TRAINING_PATCHES // (batch * patches)))
    model = copy.deepcopy(start.model).to(images.place)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("pos_embed" not in name)
    shown = _batches(images, model, kept, masks, samples, coded, batch, run)
    for step, _ in enumerate(fit(model, shown, steps, RATE)):
        run.progress("mae", step + 1, steps)
    return checkpoints.from_bytes(checkpoints.to_bytes(model), f"{start.name}, trained on the set")


def _batches(
    images: Images, model: MAE, kept: Array, masks: Array, samples: Samples, coded: Coded, size: int, run: Run
) -> Iterator[Batch]:
    """Endless batches of random kept images; of large grids a window."""
    import torch

    from dqcodec.models.training import Batch

    rng, grid = np.random.default_rng(images.options.seed), images.grid
    while True:
        some = coded.some(rng.integers(0, len(coded.places), size))
        files = images.usable[kept[some.places]].tolist()
        target = np.stack([*ordered_map(images.pixels, files, run.workers)]).transpose(0, 3, 1, 2)
        mask = np.stack([mask_of(images, masks, place) for place in some.places.tolist()])
        seen = samples.unpack(some, mask)
        there = torch.from_numpy(mask).to(images.place)
        whole = torch.from_numpy(np.ascontiguousarray(target)).to(images.place).float().expand(-1, 3, -1, -1)
        holes = split(torch.from_numpy(seen).to(images.place).float().expand(-1, 3, -1, -1), images.patch)
        shown = [model.native(x, grid, images.patch) for x in (join(smooth(holes, there, grid), grid), whole)]
        index = _window(grid, rng)
        mask = mask[:, index.ravel()]
        rows = np.flatnonzero(mask.any(1))
        if len(rows):
            even = torch.from_numpy(_even(mask[rows], rng)).to(images.place)
            seen_rows, target_rows = (part[rows][:, index.ravel()] for part in shown)
            yield Batch(seen_rows, target_rows, even, index.shape)


def _window(grid: tuple[int, int], rng: np.random.Generator) -> Array:
    """int64 (rows, columns): the places of a random part of the patch grid, of the size that the network sees."""
    from dqcodec.models.mae import WINDOW

    first = rng.integers(0, np.maximum(1, np.array(grid) - WINDOW + 1))
    part: Array = np.arange(grid[0] * grid[1]).reshape(grid)[first[0] :, first[1] :][:WINDOW, :WINDOW]
    return part


def _even(mask: Array, rng: np.random.Generator) -> Array:
    """The mask with further patches dropped at random, so that all rows keep equally many, and not all."""
    least = min(int(mask.sum(1).min()), mask.shape[1] - 1)
    order = np.argsort(-(rng.random(mask.shape) + mask), 1)
    out = np.zeros_like(mask)
    np.put_along_axis(out, order[:, :least], True, 1)
    return out
