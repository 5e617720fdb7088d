"""The masked autoencoder that brings dropped patches back (He et al. 2022; DQ 6.2), on timm's transformer blocks.

Parameter names are those of the published checkpoints (`cls_token`, `pos_embed`, `patch_embed.proj`, `blocks.N`,
`norm`, `decoder_embed`, `mask_token`, `decoder_pos_embed`, `decoder_blocks.N`, `decoder_norm`, `decoder_pred`).
The encoder sees kept patches only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from dqcodec.errors import OptionError

MAX_FIELD, MAX_DEPTH = 1 << 14, 128
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class MAEConfig:
    """Image size and patch in pixels, channels, and the sizes of encoder and decoder."""

    size: int = 224
    patch: int = 16
    channels: int = 3
    width: int = 192
    depth: int = 6
    heads: int = 3
    decoder_width: int = 128
    decoder_depth: int = 2
    decoder_heads: int = 4


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
        self.config = config
        side = config.size // config.patch
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.randn(1, 1, config.width) * 0.02)
        self.pos_embed = nn.Parameter(position_embedding(config.width, side), requires_grad=False)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, 4.0, qkv_bias=True) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.decoder_embed = nn.Linear(config.width, config.decoder_width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, config.decoder_width) * 0.02)
        self.decoder_pos_embed = nn.Parameter(position_embedding(config.decoder_width, side), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(config.decoder_width, config.decoder_heads, 4.0, qkv_bias=True) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(config.decoder_width, eps=1e-6)
        self.decoder_pred = nn.Linear(config.decoder_width, config.patch**2 * config.channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """
        x        float (N, C, H, W), normalised
        mask     bool (N, P), true = kept, equally many in every row
        returns  float (N, P, p*p*C), predicted patches in the order row, column, channel
        """
        tokens = self.patch_embed(x) + self.pos_embed[:, 1:]
        n, patches, _ = tokens.shape
        tokens = tokens[mask].reshape(n, -1, tokens.shape[2])
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(n, -1, -1)
        z = torch.cat([cls, tokens], 1)  # (N, 1 + kept, width)
        for block in self.blocks:
            z = block(z)
        z = self.decoder_embed(self.norm(z))
        full = self.mask_token.expand(n, patches, -1).to(z.dtype).clone()
        full[mask] = z[:, 1:].flatten(0, 1)
        z = torch.cat([z[:, :1], full], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            z = block(z)
        out: Tensor = self.decoder_pred(self.decoder_norm(z))[:, 1:]
        return out

    def loss(self, x: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error over the dropped patches."""
        error = (self(x, mask) - patchify(x, self.config.patch)) ** 2
        out: Tensor = error[~mask].mean()
        return out

    @torch.no_grad()
    def fill(self, images: Tensor, mask: Tensor) -> Tensor:
        """Dropped patches predicted from the kept ones, which stay as they are.

            images   uint8 (N, C, H, W)
            mask     bool (N, P), true = kept, at least one in each row
            returns  uint8 (N, C, H, W)

        Raises OptionError where the images do not fit this model.
        """
        config = self.config
        if (
            images.shape[1:] != (config.channels, config.size, config.size)
            or mask.shape[1] != (config.size // config.patch) ** 2
        ):
            raise OptionError(
                f"mae: it is for {config.channels} x {config.size} x {config.size} images, patch {config.patch}; "
                f"these are {' x '.join(map(str, images.shape[1:]))} with {mask.shape[1]} patches"
            )
        mean, std = (torch.tensor(v, device=images.device)[: config.channels, None, None] * 255 for v in (_MEAN, _STD))
        out = images.clone()
        kept = mask.sum(1)
        for count in sorted(set(kept.tolist())):  # rows of equally many kept patches go together
            rows = (kept == count).nonzero()[:, 0]
            if count == mask.shape[1]:
                continue
            predicted = self((images[rows].float() - mean) / std, mask[rows])
            pixels = unpatchify(predicted, config.patch, config.channels) * std + mean
            pixels = pixels.round().clamp(0, 255).to(torch.uint8)
            whole = unpatchify(
                mask[rows][:, :, None].expand(-1, -1, config.patch**2 * config.channels), config.patch, config.channels
            )
            out[rows] = torch.where(whole, images[rows], pixels)
        return out

    def save(self, path: str | Path) -> None:
        """Weights and configuration as safetensors."""
        from safetensors.torch import save_file

        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, path, {"dqcodec.mae": json.dumps(asdict(self.config))})


def load(path: str | Path) -> MAE:
    """A model written by `MAE.save`; OptionError where the file is missing, damaged or of another architecture."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("dqcodec.mae", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise OptionError(f"mae: cannot read {path}: {error}", path=path) from None
    names = {field.name for field in fields(MAEConfig)}
    if (
        not isinstance(about, dict)
        or set(about) != names
        or not all(isinstance(v, int) and v > 0 for v in about.values())
    ):
        raise OptionError(f"mae: {path} holds no dqcodec MAE configuration", path=path)
    if max(about.values()) > MAX_FIELD or about["depth"] + about["decoder_depth"] > MAX_DEPTH:
        raise OptionError(f"mae: {path}: sizes up to {MAX_FIELD} and {MAX_DEPTH} blocks are allowed", path=path)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise OptionError(f"mae: {path} holds weights that are not finite", path=path)
    try:
        with torch.device("meta"):  # nothing is allocated before the shapes are known to be those of the weights
            model = MAE(MAEConfig(**about))
        model.load_state_dict(tensors, assign=True)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(
            f"mae: the weights in {path} do not fit their configuration: {str(error)[:300]}", path=path
        ) from None
    return model.eval()


def patchify(x: Tensor, patch: int) -> Tensor:
    """(N, C, H, W) -> (N, P, p*p*C) in the order row, column, channel."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(n, -1, patch * patch * c)


def unpatchify(x: Tensor, patch: int, channels: int) -> Tensor:
    """The inverse of `patchify` for square images."""
    n, patches, _ = x.shape
    side = int(patches**0.5)
    x = x.reshape(n, side, side, patch, patch, channels)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(n, channels, side * patch, side * patch)


def position_embedding(width: int, side: int) -> Tensor:
    """Fixed two-dimensional sine-cosine embedding, float (1, 1 + side^2, width), zero for the class token."""
    if width % 4:
        raise OptionError(f"mae: width {width}; allowed: multiples of 4")
    omega = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    position = torch.arange(side, dtype=torch.float64)[:, None] * omega  # (side, width / 4)
    axis = torch.cat([position.sin(), position.cos()], 1)  # (side, width / 2)
    columns = axis[None].expand(side, -1, -1)
    rows = axis[:, None].expand(-1, side, -1)
    grid = torch.cat([columns, rows], 2).reshape(side * side, width)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), grid])[None].float()
