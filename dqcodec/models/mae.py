"""The masked autoencoder that brings dropped patches back (He et al. 2022; DQ 6.2), on timm's transformer blocks.

Parameter names are those of the published checkpoints (`cls_token`, `pos_embed`, `patch_embed.proj`, `blocks.N`,
`norm`, `decoder_embed`, `mask_token`, `decoder_pos_embed`, `decoder_blocks.N`, `decoder_norm`, `decoder_pred`).
The encoder sees kept patches only.

The small models of this package go beyond that layout in one place, `smooth`: they predict what is to be added to the
smooth fill of the dropped patches (`decoder_smooth` shows it to the decoder), which a network of this size learns in
minutes instead of days, and they take any grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqcodec.errors import OptionError
from dqcodec.patches import join, split, to_pixels
from dqcodec.smooth import smooth

Array = npt.NDArray[Any]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, what published weights are trained with
WINDOW = 14  # patches a side that a small model looks at together
MAX_ENLARGED = 8  # times that patches are enlarged for a network, at most
BATCH_TOKENS = (1 << 13, 1 << 17)  # patches that are filled at once, on a CPU and on a GPU


@dataclass(frozen=True)
class MAEConfig:
    """Image size and patch in pixels, channels, sizes of encoder and decoder.

    eps     of the layer norms
    smooth  sweeps of the smooth fill to which the network predicts a difference; then `size` is only the one that it
            was made for. 0: the published layout
    """

    size: int = 224
    patch: int = 16
    channels: int = 3
    width: int = 192
    depth: int = 4
    heads: int = 3
    decoder_width: int = 128
    decoder_depth: int = 2
    decoder_heads: int = 4
    eps: float = 1e-6
    smooth: int = 0


class PatchEmbed(nn.Module):
    """(N, C, H, W) -> (N, P, width)."""

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.channels, config.width, config.patch, config.patch)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x)
        return out.flatten(2).transpose(1, 2)


class MAE(nn.Module):
    """Images with dropped patches -> all patches."""

    def __init__(self, config: MAEConfig) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        if config.size % config.patch:
            raise OptionError(f"mae: patch {config.patch} does not divide size {config.size}")
        if config.width % 4 or config.decoder_width % 4:
            raise OptionError(f"mae: widths {config.width} and {config.decoder_width}; allowed: multiples of 4")
        self.config = config
        values = config.patch**2 * config.channels
        norm = partial(nn.LayerNorm, eps=config.eps)

        def blocks(width: int, depth: int, heads: int) -> nn.ModuleList:
            made = (Block(width, heads, 4.0, qkv_bias=True, norm_layer=norm) for _ in range(depth))  # type: ignore[arg-type]
            return nn.ModuleList(made)

        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.randn(1, 1, config.width) * 0.02)
        self.blocks = blocks(config.width, config.depth, config.heads)
        self.norm = norm(config.width)
        self.decoder_embed = nn.Linear(config.width, config.decoder_width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, config.decoder_width) * 0.02)
        self.decoder_blocks = blocks(config.decoder_width, config.decoder_depth, config.decoder_heads)
        self.decoder_norm = norm(config.decoder_width)
        self.decoder_pred = nn.Linear(config.decoder_width, values)
        if config.smooth:
            self.decoder_smooth = nn.Linear(values, config.decoder_width)
            nn.init.zeros_(self.decoder_pred.weight)
            nn.init.zeros_(self.decoder_pred.bias)
        else:  # published weights bring their own
            count = 1 + (config.size // config.patch) ** 2
            self.pos_embed = nn.Parameter(torch.zeros(1, count, config.width), requires_grad=False)
            self.decoder_pos_embed = nn.Parameter(torch.zeros(1, count, config.decoder_width), requires_grad=False)

    def forward(self, patches: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        """
        patches  float (N, P, C, p, p), normalised; with `smooth` dropped ones hold the smooth fill
        mask     bool (N, P), true = kept, equally many in every row
        grid     rows and columns of patches
        returns  float (N, P, p*p*C), predicted patches in the order row, column, channel
        """
        z = self.decoder_blocks[-1](self._decoded(patches, mask, grid))[:, 1:]
        out: Tensor = self.decoder_pred(self.decoder_norm(z))
        return out + by_pixel(patches) if self.config.smooth else out

    def predict(self, patches: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        """The rows of `forward` that belong to dropped patches, in their order: float (N, dropped, p*p*C)."""
        dropped = places(~mask)
        z = some(self.decoder_blocks[-1], self._decoded(patches, mask, grid), dropped + 1)
        out: Tensor = self.decoder_pred(self.decoder_norm(z))
        return out + by_pixel(take(patches, dropped)) if self.config.smooth else out

    def _decoded(self, patches: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        """What the last decoder block is given: the class token and each patch, float (N, 1 + P, decoder width)."""
        kept, dropped = places(mask), places(~mask)
        pos, decoder_pos = self._positions(grid, patches)
        embed = self.patch_embed.proj
        tokens = F.linear(take(patches, kept).flatten(2), embed.weight.flatten(1), embed.bias)
        tokens = tokens + pos[0, 1:][kept]
        z = torch.cat([(self.cls_token + pos[:, :1]).expand(len(mask), -1, -1), tokens], 1)  # (N, 1 + kept, width)
        for block in self.blocks:
            z = block(z)
        z = self.decoder_embed(self.norm(z))

        blank = self.mask_token.to(z.dtype).expand(*dropped.shape, -1)
        if self.config.smooth:
            blank = blank + self.decoder_smooth(by_pixel(take(patches, dropped)))
        order = torch.cat([kept, dropped], 1).argsort(dim=1)
        z = torch.cat([z[:, :1], take(torch.cat([z[:, 1:], blank], 1), order)], 1) + decoder_pos
        for block in self.decoder_blocks[:-1]:
            z = block(z)
        return z

    @torch.no_grad()
    def fill(self, images: Tensor, mask: Tensor, patch: int) -> Tensor:
        """Dropped patches predicted from the kept ones, which stay as they are.

            images   uint8 (N, C, H, W), C = 1 or 3; what dropped patches hold does not matter
            mask     bool (N, P), true = kept, at least one in each row
            patch    side of a patch in pixels
            returns  uint8 (N, C, H, W)

        On a GPU the network computes in bfloat16. Raises OptionError where images and mask do not fit each other or
        this model.
        """
        self.check(tuple(images.shape[1:]), patch)
        grid = images.shape[2] // patch, images.shape[3] // patch
        if mask.shape != (len(images), grid[0] * grid[1]):
            raise OptionError(
                f"mask: {tuple(mask.shape)}; these are {len(images)} images with {grid[0] * grid[1]} patches of {patch}"
            )
        if not bool(mask.any(1).all()):
            raise OptionError(f"mask: image {int((~mask.any(1)).nonzero()[0])} keeps no patch; at least one is needed")
        gaps = (~mask.all(1)).nonzero()[:, 0]
        if not len(gaps):
            return images
        tokens = BATCH_TOKENS[images.device.type == "cuda"]
        out: Tensor = images.clone()
        for rows in gaps.split(max(1, tokens // mask.shape[1])):
            found = self._filled(images[rows].float(), mask[rows], grid, patch)
            out[rows] = torch.where(to_pixels(mask[rows], grid, patch), images[rows], found)
        return out

    def check(self, shape: tuple[int, ...], patch: int) -> None:
        """Raise OptionError where images (C, H, W) with such patches do not fit this model; small ones take any."""
        config = self.config
        if patch < 1 or shape[1] % patch or shape[2] % patch:
            raise OptionError(f"patch: {patch} does not divide {shape[1]} x {shape[2]}")
        if config.smooth and config.patch > MAX_ENLARGED * patch:
            raise OptionError(
                f"mae: it is for patches of {config.patch}; these have {patch}, which would be enlarged too far"
            )
        if not config.smooth and (shape[1:] != (config.size, config.size) or patch != config.patch):
            raise OptionError(
                f"mae: it is for images of {config.size} x {config.size} with patches of {config.patch}; "
                f"these are {shape[1]} x {shape[2]} with patches of {patch}"
            )

    def _filled(self, images: Tensor, mask: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
        """uint8 (N, C, H, W) with all patches as the network has them, from float images."""
        channels = images.shape[1]
        patches = split(images.expand(-1, self.config.channels, -1, -1), patch)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.device.type == "cuda"):
            if self.config.smooth:
                found = self._corrected(smooth(patches, mask, grid, self.config.smooth), mask, grid, patch)
            else:
                centre, spread = (patches.new_tensor(v).reshape(1, 1, -1, 1, 1) * 255 for v in (_MEAN, _STD))
                found = join(self._complete((patches - centre) / spread, mask, grid) * spread + centre, grid)
        found = found if channels == found.shape[1] else found.mean(1, keepdim=True)
        filled: Tensor = found.nan_to_num().round().clamp(0, 255).to(torch.uint8)
        return filled

    def _corrected(self, filled: Tensor, mask: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
        """Images from patches with the smooth fill, to which the network's difference is added.

        Patches of another side than the network's are looked at resized, and the difference is resized back.
        """
        images = join(filled, grid)
        x, _, spread = prepare(self.native(images, grid, patch))
        difference = join((self._complete(x, mask, grid) - x) * spread, grid)
        return images + (difference if patch == self.config.patch else resize(difference, images.shape[2:]))

    def native(self, images: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
        """Patches of the model's own side, float (N, P, C, p, p), from float images whose holes are filled somehow."""
        side = self.config.patch
        return split(images if patch == side else resize(images, (grid[0] * side, grid[1] * side)), side)

    def _complete(self, patches: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        """Normalised patches, the dropped ones predicted; rows of equally many kept patches go together."""
        out = patches.clone()
        for index, shape in windows(grid, WINDOW if self.config.smooth else max(grid)):
            index = index.to(mask.device)
            kept = mask[:, index]
            counts = kept.sum(1)
            for count in counts.unique().tolist():
                if count == len(index):
                    continue
                rows = (counts == count).nonzero()[:, 0]
                seen = patches if len(rows) == len(patches) else patches.index_select(0, rows)
                seen = seen if shape == grid else seen.index_select(1, index)
                predicted = self.predict(seen, kept[rows], shape)
                where = index[places(~kept[rows])]
                out[rows[:, None], where] = by_channel(predicted.to(out.dtype), self.config.patch)
        return out

    def _positions(self, grid: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
        if not self.config.smooth:
            return self.pos_embed, self.decoder_pos_embed
        widths = self.config.width, self.config.decoder_width
        first, second = (torch.from_numpy(position_embedding(width, *grid)).to(like) for width in widths)
        return first, second


def some(block: Any, z: Tensor, where: Tensor) -> Tensor:
    """Rows of what a transformer block makes of z (N, T, width), which look at all others: where int64 (N, k) ->
    (N, k, width)."""
    attention, width = block.attn, z.shape[2]

    def heads(tokens: Tensor, part: slice) -> Tensor:
        weight, bias = attention.qkv.weight[part], attention.qkv.bias[part]
        out: Tensor = F.linear(tokens, weight, bias).unflatten(
            2, (-1, attention.num_heads, width // attention.num_heads)
        )
        return out

    seen = block.norm1(z)
    query = heads(take(seen, where), slice(width))[:, :, 0].transpose(1, 2)
    key, value = heads(seen, slice(width, None)).permute(2, 0, 3, 1, 4).unbind(0)
    found = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    rows = take(z, where) + attention.proj(found)
    out: Tensor = rows + block.mlp(block.norm2(rows))
    return out


def prepare(filled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a small model is shown: patches with the smooth fill, float (N, P, C, p, p), 0..255, normalised by the mean
    and the deviation of each image; and these two, float (N, 1, 1, 1, 1)."""
    centre = filled.mean((1, 2, 3, 4), keepdim=True)
    spread = filled.std((1, 2, 3, 4), keepdim=True) + 8
    return (filled - centre) / spread, centre, spread


def places(mask: Tensor) -> Tensor:
    """int64 (N, k): where each row of a mask is true; k in every row."""
    return mask.nonzero()[:, 1].reshape(len(mask), -1) if len(mask) else mask.new_zeros((0, 0), dtype=torch.int64)


def take(x: Tensor, where: Tensor) -> Tensor:
    """Rows of each sample: x (N, P, ...), where int64 (N, k) -> (N, k, ...)."""
    n, count = x.shape[:2]
    flat = (where + count * torch.arange(n, device=x.device)[:, None]).flatten()
    return x.flatten(0, 1).index_select(0, flat).reshape(*where.shape, *x.shape[2:])


def by_pixel(patches: Tensor) -> Tensor:
    """(N, P, C, p, p) -> (N, P, p*p*C) in the order row, column, channel."""
    return patches.permute(0, 1, 3, 4, 2).flatten(2)


def by_channel(pixels: Tensor, patch: int) -> Tensor:
    """The inverse of `by_pixel`."""
    out: Tensor = pixels.unflatten(2, (patch, patch, -1)).permute(0, 1, 4, 2, 3)
    return out


def windows(grid: tuple[int, int], most: int) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """The patch grid cut into windows of at most `most` patches a side: places int64 (k,), rows and columns of each."""
    number = torch.arange(grid[0] * grid[1]).reshape(grid)
    for rows in number.tensor_split(-(-grid[0] // most), 0):
        for window in rows.tensor_split(-(-grid[1] // most), 1):
            yield window.flatten(), (window.shape[0], window.shape[1])


def resize(images: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(images, list(size), mode="bilinear", align_corners=False, antialias=True)


@lru_cache(64)
def position_embedding(width: int, rows: int, columns: int) -> Array:
    """Fixed sine-cosine embedding of a grid, float32 (1, 1 + rows * columns, width), zero for the class token.

    The first half is of the column, the second of the row; width is a multiple of 4.
    """
    omega = 1 / 10000 ** (np.arange(width // 4) / (width // 4))

    def axis(count: int) -> Array:
        angle = np.arange(count)[:, None] * omega
        return np.concatenate([np.sin(angle), np.cos(angle)], 1)  # (count, width / 2)

    across = np.broadcast_to(axis(columns)[None], (rows, columns, width // 2))
    down = np.broadcast_to(axis(rows)[:, None], (rows, columns, width // 2))
    grid = np.concatenate([across, down], 2).reshape(-1, width)
    return np.concatenate([np.zeros((1, width)), grid])[None].astype(np.float32)
