"""dqcodec: compact training sets.

dqcodec.encode("imagenet/", "out.dqz")     an image folder -> one file
dqcodec.DQZDataset("out.dqz")              a torch Dataset (needs torch)
dqcodec.DQZLoader("out.dqz", 128)          batches on the device, decoded by threads (needs torch)
dqcodec.open("out.dqz")                    numpy arrays, for edge devices
dqcodec.select(features, labels)           dataset quantization by itself
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from dqcodec.decode import DQZFile, open
from dqcodec.encode import EncodeResult, encode
from dqcodec.errors import (
    ChecksumError,
    DQZError,
    FormatError,
    OptionError,
    OutputError,
    SourceError,
    TruncatedError,
    UnsupportedFeatureError,
)
from dqcodec.options import EncodeOptions
from dqcodec.selection import Selection, select

if TYPE_CHECKING:
    from dqcodec.data.dataset import DQZDataset
    from dqcodec.data.loader import DQZLoader

__all__ = [
    "ChecksumError",
    "DQZDataset",
    "DQZError",
    "DQZFile",
    "DQZLoader",
    "EncodeOptions",
    "EncodeResult",
    "FormatError",
    "OptionError",
    "OutputError",
    "Selection",
    "SourceError",
    "TruncatedError",
    "UnsupportedFeatureError",
    "encode",
    "open",
    "select",
]


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for."""
    homes = {"DQZDataset": "dqcodec.data.dataset", "DQZLoader": "dqcodec.data.loader"}
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(homes[name]), name)
    except ImportError as error:
        raise ImportError(f"{name} needs torch: pip install 'dqcodec[torch]' ({error})") from error
