"""Features of images: from the proxy (default), any timm model, or a .npy file (DQ 4.1).

proxy                         trained on the set itself; see models/proxy.py
timm:NAME                     pretrained weights, fetched by timm
timm:NAME@FILE                weights from a file
FILE.npy                      one row a file of the source, in source order
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dqcodec.errors import OptionError
from dqcodec.selection.bins import check_features

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dqcodec.models.proxy import Proxy

Array = npt.NDArray[Any]
Embed = Callable[["Tensor"], "Tensor"]  # float (n, C, h, w), 0..255 -> float (n, D)

BATCH = 64


def check(features: str) -> None:
    """Raise OptionError unless `features` has one of the four forms."""
    if not isinstance(features, str):
        raise OptionError(f"features: {features!r}; expected text")
    if features != "proxy" and not features.endswith(".npy") and not features.startswith("timm:"):
        raise OptionError(f"features: {features!r}; allowed: proxy, timm:NAME, timm:NAME@WEIGHTS, FILE.npy")


def check_source(features: str, names: Sequence[str]) -> None:
    """Raise OptionError for what can be known to be wrong before any image is read.

    names  of the files of the source
    """
    if features.endswith(".npy"):
        check_features(from_npy(features, len(names)), names)
    elif features.startswith("timm:"):
        _timm_name(features)


_OF_FOLDER = "each file in the class folders, in the order of dqcodec.sources.folder.scan(SOURCE).names"


def from_npy(path: str, rows: int, each: str = _OF_FOLDER, option: str = "features") -> Array:
    """The rows of a .npy file, memory-mapped; OptionError, of this option, where it is not `rows` rows of numbers, one
    for `each`."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, OverflowError, TokenError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a .npy file of numbers"
        raise OptionError(f"{option}: {path}: {reason}") from None
    if not isinstance(array, np.ndarray):
        raise OptionError(f"{option}: {path} is an archive; expected one array")
    if array.ndim != 2 or len(array) != rows or array.dtype.kind not in "fiu":
        raise OptionError(
            f"{option}: {path} holds {array.dtype} {array.shape}; expected {rows} rows of numbers, one for {each}"
        )
    return np.asarray(array)


def of_proxy(model: Proxy) -> Embed:
    """The proxy's last feature map, averaged over its cells: (n, 96)."""
    from dqcodec.models.proxy import normalise

    return lambda x: model.maps(normalise(x)).mean((2, 3))


def of_proxy_pools(model: Proxy) -> Embed:
    """The averages of all its feature maps: (n, 168), what the discriminator of diversity sees."""
    from dqcodec.models.proxy import normalise

    return lambda x: model.pools(normalise(x))


def of_timm(features: str, device: torch.device) -> Embed:
    """The pooled features of a timm model; images are scaled to its input size, grey ones seen as three channels."""
    import torch
    import torch.nn.functional as F

    model, size, mean, std = _timm_model(features, device)
    mean_, std_ = (torch.tensor(v, device=device)[:, None, None] * 255 for v in (mean, std))

    def embed(x: Tensor) -> Tensor:
        x = F.interpolate(x.expand(-1, 3, -1, -1), size, mode="bicubic", align_corners=False, antialias=True)
        out: Tensor = model((x - mean_) / std_)
        return out

    return embed


def extract(
    embed: Embed, images: Iterable[Array], device: torch.device, views: int = 0, seed: int = 0
) -> Iterator[Array]:
    """Features, BATCH images after another.

    images  uint8 (H, W, C)
    views   augmented views of each image beside it; see models/views.py
    seed    of the views
    yields  float32 (1 + views, n, D)
    """
    import torch

    from dqcodec.models.proxy import to_tensor
    from dqcodec.models.views import augment

    rng = np.random.default_rng(seed)
    with torch.inference_mode():
        for batch in _batches(images):
            x = to_tensor(batch, device)
            rows = [embed(x), *(embed(augment(x, rng)) for _ in range(views))]
            yield torch.stack(rows).float().cpu().numpy()


def _batches(images: Iterable[Array]) -> Iterator[Array]:
    batch: list[Array] = []
    for image in images:
        batch.append(image)
        if len(batch) == BATCH:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def _timm_name(features: str) -> tuple[str, str]:
    """Name and file of weights, "" for none."""
    try:
        import timm
    except ImportError as error:
        raise OptionError(f"features: {features} needs timm: pip install 'dqcodec[torch]' ({error})") from None

    name, _, weights = features.removeprefix("timm:").partition("@")
    if weights and not Path(weights).is_file():
        raise OptionError(f"features: the weights {weights} do not exist")
    if not weights and "/" not in name and not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:4])
        raise OptionError(f"features: timm has no model {name!r}" + (f"; it has {close}" if close else ""))
    return name, weights


def _timm_model(features: str, device: torch.device) -> tuple[Any, tuple[int, int], Any, Any]:
    import timm
    from timm.data.config import resolve_data_config

    name, weights = _timm_name(features)
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


def torch_device(name: str) -> torch.device:
    """A torch device; OptionError where torch or the device is not to be had."""
    try:
        import torch
    except ImportError:
        raise OptionError(
            "a network is to be trained, which needs torch: pip install 'dqcodec[torch]'; without it there are all "
            "samples or random ones, all patches, equal bits, and soft labels of a file"
        ) from None
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("not a kind of device that is used here")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        allowed = "auto, cpu, cuda, cuda:N, mps, as far as the machine has them"
        raise OptionError(f"device: {name!r} is not to be had here; allowed: {allowed}") from error
    return device
