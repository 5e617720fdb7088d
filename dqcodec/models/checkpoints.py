"""Weights of masked autoencoders: where they come from, what their parameters are called, and their hash.

    hf:OWNER/NAME    a repository in the layout of Hugging Face's ViTMAEForPreTraining (hf:facebook/vit-mae-large)
    file:PATH        a file of that kind (its config.json beside it), of the original code (mae_visualize_vit_*.pth), or
                     written by `to_bytes`; a PATH alone does as well
    the package      small models for patches of 4 and of 8 pixels and more

Nothing of a file is run: it is safetensors, or a state dict read with `weights_only`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqcodec.errors import OptionError
from dqcodec.models.mae import MAE, MAEConfig

MAX_FIELD, MAX_PATCH, MAX_DEPTH, MAX_SWEEPS = 1 << 14, 64, 128, 64
FOLDER = Path(__file__).parent / "weights"
BUILT_IN = {4: "small-4-1", 8: "small-8-1"}  # by patch; released weights never change
PUBLISHED = tuple(f"hf:facebook/vit-mae-{size}" for size in ("base", "large", "huge"))
_ABOUT = "dqcodec.mae"  # key of the configuration among a file's metadata
_HEADS = {1024: 16, 1280: 16}  # of the published encoders whose heads are not 64 wide
_DECODER_HEAD = 32
_DTYPES = ("float16", "bfloat16", "float32", "float64")

# Hugging Face's names -> the original ones; query, key and value become one matrix.
_NAMES = (
    (r"^vit\.embeddings\.cls_token$", "cls_token"),
    (r"^vit\.embeddings\.position_embeddings$", "pos_embed"),
    (r"^vit\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^vit\.layernorm\.", "norm."),
    (r"^vit\.encoder\.layer\.", "blocks."),
    (r"^decoder\.decoder_(layers|encoder\.layer)\.", "decoder_blocks."),  # on the hub; as transformers 5 saves
    (r"^decoder\.(?=decoder_|mask_token)", ""),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
_PARTS = ("query", "key", "value")


@dataclass(frozen=True)
class Checkpoint:
    """
    model   ready to fill
    sha256  of the bytes of its file, lower-case hexadecimal
    name    what it was asked for by
    data    the bytes, where they are few enough to be in a .dqz (small models)
    """

    model: MAE
    sha256: str
    name: str
    data: bytes = b""


def load(source: str | Path) -> Checkpoint:
    """From "hf:OWNER/NAME", "file:PATH" or a path.

    Raises OptionError where it cannot be fetched or read, is damaged or of another architecture.
    """
    if not isinstance(source, str | Path):
        raise OptionError(f"mae: {source!r}; allowed: hf:OWNER/NAME, file:PATH or a path")
    kind, _, rest = str(source).partition(":")
    if kind == "hf":
        path, config = _fetch(rest)
    else:
        path = Path(rest if kind == "file" else source)
        config = path.parent / "config.json"
    name = str(source) if kind == "hf" else f"file:{path.name}"
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise OSError("not a regular file")
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise OptionError(f"mae: cannot read {path}: {getattr(error, 'strerror', None) or error}", path=path) from None
    about, tensors = _read(path)
    if about:
        return Checkpoint(_model(about, tensors, str(path)), digest, name)
    hugging = any(name.startswith("vit.") for name in tensors)
    about = _json(config) if hugging and config.is_file() else {}
    tensors = original_names(tensors) if hugging else tensors
    return Checkpoint(_model(_published(tensors, about, hugging, path), tensors, str(path)), digest, name)


def from_bytes(data: bytes, what: str) -> Checkpoint:
    """A small model from what `to_bytes` wrote; `what` names it in errors."""
    from safetensors.torch import load as load_bytes

    try:
        tensors = load_bytes(data)
        about = _metadata(data)
    except Exception as error:  # whatever a forged file makes the reader do
        raise OptionError(f"mae: cannot read {what}: {_first_line(error)}") from None
    if not about:
        raise OptionError(f"mae: {what} holds no dqcodec MAE configuration")
    return Checkpoint(_model(about, tensors, what), hashlib.sha256(data).hexdigest(), what, data)


def to_bytes(model: MAE) -> bytes:
    """A small model as safetensors with its configuration, weights as float16."""
    from safetensors.torch import save

    tensors = {name: value.detach().cpu().half().contiguous() for name, value in model.state_dict().items()}
    return save(tensors, {_ABOUT: json.dumps(asdict(model.config), sort_keys=True)})


@lru_cache(len(BUILT_IN))
def built_in(patch: int) -> Checkpoint:
    """The small model of this package for such patches: the nearest of 4 and 8 pixels by ratio."""
    name = BUILT_IN[min(BUILT_IN, key=lambda own: max(own / patch, patch / own))]
    return from_bytes((FOLDER / f"{name}.safetensors").read_bytes(), name)


@lru_cache(len(BUILT_IN))
def by_hash(sha256: str) -> Checkpoint | None:
    """A model of this package by its hash, whichever version it came with; None where it has none."""
    for path in sorted(FOLDER.glob("*.safetensors")):
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == sha256:
            return from_bytes(data, path.stem)
    return None


def original_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's parameter names -> those of the original code."""
    renamed = {}
    for name, value in tensors.items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    joined = {}
    for name, value in renamed.items():
        match = re.fullmatch(r"(.*)\.attention\.attention\.(query|key|value)\.(weight|bias)", name)
        if not match:
            joined[name] = value
        elif match[2] == "query":
            parts = [renamed.get(f"{match[1]}.attention.attention.{part}.{match[3]}") for part in _PARTS]
            if any(part is None for part in parts):
                raise OptionError(f"mae: {match[1]} has a query without key and value")
            found = [part for part in parts if part is not None]
            if len({(part.shape, part.dtype) for part in found}) > 1 or found[0].ndim == 0:
                raise OptionError(f"mae: query, key and value of {match[1][:80]} are not alike")
            joined[f"{match[1]}.attn.qkv.{match[3]}"] = torch.cat(found)
    return joined


def _fetch(name: str) -> tuple[Path, Path]:
    """Weights and config.json of a Hugging Face repository, from its cache or the network."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    advice = "; where there is no network, copy model.safetensors and config.json here and give file:PATH"
    try:
        config = hf_hub_download(name, "config.json")
        try:
            weights = hf_hub_download(name, "model.safetensors")
        except EntryNotFoundError:
            weights = hf_hub_download(name, "pytorch_model.bin")
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise OptionError(f"mae: cannot fetch hf:{name}: {_first_line(error)}{advice}") from None
    return Path(weights), Path(config)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(configuration, empty where the file has none of ours; tensors by name)."""
    from safetensors import safe_open

    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get(_ABOUT, "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except Exception as error:  # whatever a forged file makes the reader do
            raise OptionError(f"mae: cannot read {path}: {_first_line(error)}", path=path) from None
        return _checked_about(about, str(path)) if about is not None else {}, tensors
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle raises whatever damaged bytes make it do
        raise OptionError(f"mae: cannot read {path}: {_first_line(error)}", path=path) from None
    state = state.get("model", state) if isinstance(state, dict) else {}
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise OptionError(f"mae: {path} holds no state dict", path=path)
    return {}, state


def _first_line(error: Exception) -> str:
    """What an exception says, on one line, with its kind where it says little."""
    text = " ".join(str(error).split())[:300]
    return text if len(text) > 10 else f"{type(error).__name__} {text}".strip()


def _metadata(data: bytes) -> dict[str, Any]:
    size = int.from_bytes(data[:8], "little")
    about = json.loads(data[8 : 8 + size]).get("__metadata__", {}).get(_ABOUT)
    return _checked_about(json.loads(about), "the file") if about else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"mae: cannot read {path}: {error}", path=path) from None
    return value if isinstance(value, dict) else {}


def _checked_about(about: Any, what: str) -> dict[str, Any]:
    """A configuration of ours with all its fields, positive and within limits."""
    kinds = {name: type(value) for name, value in asdict(MAEConfig()).items()}
    sound = isinstance(about, dict) and set(about) == set(kinds)
    if not sound or not all(
        type(value) is kinds[name] and (value > 0 or (name == "smooth" and value == 0)) for name, value in about.items()
    ):
        raise OptionError(f"mae: {what} holds no dqcodec MAE configuration")
    if about["channels"] != 3:
        raise OptionError(f"mae: {what} is for images of {about['channels']} channels; allowed: 3")
    depth = about["depth"] + about["decoder_depth"]
    limits = (
        (max(about.values()), MAX_FIELD),
        (about["patch"], MAX_PATCH),
        (depth, MAX_DEPTH),
        (about["smooth"], MAX_SWEEPS),
    )
    if any(value > limit for value, limit in limits):
        raise OptionError(
            f"mae: {what}: allowed are sizes up to {MAX_FIELD}, patches up to {MAX_PATCH}, {MAX_DEPTH} blocks and "
            f"{MAX_SWEEPS} sweeps"
        )
    return dict(about)


def _published(tensors: Mapping[str, Tensor], about: Mapping[str, Any], hugging: bool, path: Path) -> dict[str, Any]:
    """The configuration that published weights follow from, by their shapes; heads and eps from config.json or as
    published."""
    missing = [
        name
        for name in ("patch_embed.proj.weight", "pos_embed", "decoder_embed.weight", "decoder_pred.weight")
        if name not in tensors
    ]
    if missing:
        raise OptionError(
            f"mae: {path} is no masked autoencoder with its decoder: {', '.join(missing)} not found", path=path
        )
    projection, embed = tensors["patch_embed.proj.weight"], tensors["decoder_embed.weight"]
    if projection.ndim != 4 or projection.shape[2] != projection.shape[3] or embed.ndim != 2 or not projection.numel():
        shapes = f"{tuple(projection.shape)[:5]} and {tuple(embed.shape)[:5]}"
        raise OptionError(f"mae: {path}: patch_embed.proj and decoder_embed have shapes {shapes}", path=path)
    if about.get("norm_pix_loss"):
        raise OptionError(
            f"mae: {path} predicts patches that are normalised one by one (norm_pix_loss), which are no pixels; "
            "use weights that were trained on pixels, such as mae_visualize_vit_large.pth",
            path=path,
        )
    width, channels, patch, _ = projection.shape
    decoder_width = embed.shape[0]
    side = round(max(0, tensors["pos_embed"].numel() // width - 1) ** 0.5)

    def depth(prefix: str) -> int:
        found = (re.match(rf"{prefix}(\d{{1,6}})\.", name) for name in tensors)
        return 1 + max((int(match[1]) for match in found if match), default=0)

    value = {
        "size": side * patch, "patch": patch, "channels": channels, "width": width, "depth": depth(r"blocks\."),
        "heads": about.get("num_attention_heads", _HEADS.get(width, max(1, width // 64))),
        "decoder_width": decoder_width, "decoder_depth": depth(r"decoder_blocks\."),
        "decoder_heads": about.get("decoder_num_attention_heads", max(1, decoder_width // _DECODER_HEAD)),
        "eps": about.get("layer_norm_eps", 1e-12 if hugging else 1e-6), "smooth": 0,
    }  # fmt: skip
    return _checked_about(value, str(path))


def _model(about: Mapping[str, Any], tensors: dict[str, Tensor], what: str) -> MAE:
    """The model of a configuration with these weights, which must fit it exactly."""
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()} - set(_DTYPES)
    plain = all(tensor.layout == torch.strided and tensor.device.type == "cpu" for tensor in tensors.values())
    if kinds or not plain:
        found = ", ".join(sorted(kinds)) or "another layout"
        raise OptionError(f"mae: {what} holds weights of {found}; allowed: {', '.join(_DTYPES)}")
    try:
        config = MAEConfig(**about)
        with torch.device("meta"):  # nothing is allocated before the shapes are known to be those of the weights
            model = MAE(config)
        wanted = model.state_dict()
        given = {name: value.float() for name, value in tensors.items()}
        wrong = sorted(set(wanted) ^ set(given)) or [
            name for name, value in given.items() if value.shape != wanted[name].shape
        ]
        if wrong:
            raise RuntimeError(
                f"missing, unknown or of another shape: {', '.join(ascii(n)[1:-1][:80] for n in wrong[:5])}"
            )
        if not all(bool(torch.isfinite(value).all()) for value in given.values()):
            raise RuntimeError("some are not finite")
        model.load_state_dict(given, assign=True)
    except (RuntimeError, AssertionError, OptionError) as error:
        raise OptionError(f"mae: the weights in {what} do not fit their configuration: {str(error)[:300]}") from None
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()
