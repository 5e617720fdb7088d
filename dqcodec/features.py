"""Features for the bins: the proxy (default), any timm model, or a .npy file (DQ 4.1).

proxy                         trained on the set itself; see models/proxy.py
timm:NAME                     pretrained weights, fetched by timm
timm:NAME@FILE                weights from a file
FILE.npy                      one row a file of the source, in source order
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dqcodec.errors import OptionError
from dqcodec.run import Progress

if TYPE_CHECKING:
    import torch

    from dqcodec.models.proxy import Proxy

Array = npt.NDArray[Any]

BATCH = 256


def check(features: str) -> None:
    """Raise OptionError unless `features` has one of the four forms."""
    if features != "proxy" and not features.endswith(".npy") and not features.startswith("timm:"):
        raise OptionError(f"features: {features!r}; allowed: proxy, timm:NAME, timm:NAME@WEIGHTS, FILE.npy")


def from_npy(path: str, rows: int) -> Array:
    """The rows of a .npy file, memory-mapped; OptionError where it is not `rows` rows of numbers."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TokenError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a .npy file of numbers"
        raise OptionError(f"features: {path}: {reason}") from None
    if not isinstance(array, np.ndarray):
        raise OptionError(f"features: {path} is an archive; expected one array")
    if array.ndim != 2 or len(array) != rows or array.dtype.kind not in "fiu":
        raise OptionError(
            f"features: {path} holds {array.dtype} {array.shape}; expected {rows} rows of numbers, one for each "
            "file in the class folders, in the order of dqcodec.sources.folder.scan(SOURCE).names"
        )
    return np.asarray(array)


def from_proxy(model: Proxy, images: Array, progress: Progress | None = None) -> Array:
    """float32 (N, 96): the proxy's last feature map, averaged over its cells."""
    import torch

    from dqcodec.models.proxy import normalise

    out = []
    device = model.head.weight.device
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            x = normalise(images[start : start + BATCH], device)
            out.append(model.maps(x).mean((2, 3)).cpu().numpy())
            if progress:
                progress("features", min(start + BATCH, len(images)), len(images))
    return np.concatenate(out)


def from_timm(
    features: str, images: Iterable[Array], count: int, device: torch.device, progress: Progress | None = None
) -> Array:
    """float32 (N, D): pooled features of a timm model.

    images   uint8 (H, W, C), `count` of them; scaled to the model's input size in batches
    """
    import torch
    import torch.nn.functional as F

    model, size, mean, std = _timm_model(features, device)
    mean_, std_ = (torch.tensor(v, device=device)[:, None, None] * 255 for v in (mean, std))
    out, batch = [], []
    with torch.inference_mode():
        for done, image in enumerate(images, 1):
            batch.append(image)
            if len(batch) == 64 or done == count:
                x = torch.from_numpy(np.stack(batch)).to(device).permute(0, 3, 1, 2).float()
                x = x.expand(-1, 3, -1, -1)  # grey as three equal channels
                x = F.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True)
                out.append(model((x - mean_) / std_).float().cpu().numpy())
                batch.clear()
            if progress:
                progress("features", done, count)
    return np.concatenate(out)


def _timm_model(features: str, device: torch.device) -> tuple[Any, tuple[int, int], Any, Any]:
    import timm
    from timm.data.config import resolve_data_config

    name, _, weights = features.removeprefix("timm:").partition("@")
    if weights and not Path(weights).is_file():
        raise OptionError(f"features: the weights {weights} do not exist")
    if not weights and "/" not in name and not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:4])
        raise OptionError(f"features: timm has no model {name!r}" + (f"; it has {close}" if close else ""))
    source: dict[str, Any] = {"pretrained_cfg_overlay": {"file": weights}} if weights else {}
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0, **source)
    except Exception as error:  # downloads and checkpoints fail in as many ways as there are libraries below
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise OptionError(
            f"features: cannot load timm:{name}: {reason}. Without network use timm:{name}@WEIGHTS.safetensors or proxy"
        ) from error
    config = resolve_data_config({}, model=model)
    return model.to(device).eval(), config["input_size"][1:], config["mean"], config["std"]
