"""dqcodec: compact training sets.

dqcodec.encode("imagenet/", "out.dqz")     an image folder -> one file
dqcodec.encode_text("alpaca.json", "out.dqz")   records of text -> one file
dqcodec.DQZDataset("out.dqz")              a torch Dataset (needs torch)
dqcodec.DQZLoader("out.dqz", 128)          batches on the device, decoded by threads (needs torch)
dqcodec.to_float                           their transform from uint8 to 0..1 (needs torch)
dqcodec.each(transform)                    a transform of single images as one of batches (needs torch)
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
from dqcodec.options import PRESETS, EncodeOptions, TextOptions
from dqcodec.selection import Selection, select

if TYPE_CHECKING:
    from dqcodec.data.dataset import DQZDataset
    from dqcodec.data.loader import DQZLoader
    from dqcodec.data.transforms import each, to_float
    from dqcodec.encode_records import TextResult, encode_text
    from dqcodec.records import RecordFile

__all__ = [
    "PRESETS",
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
    "RecordFile",
    "Selection",
    "SourceError",
    "TextOptions",
    "TextResult",
    "TruncatedError",
    "UnsupportedFeatureError",
    "each",
    "encode",
    "encode_text",
    "open",
    "select",
    "to_float",
]


_LAZY = {  # what needs more packages than reading images does
    "DQZDataset": "dqcodec.data.dataset",
    "DQZLoader": "dqcodec.data.loader",
    "RecordFile": "dqcodec.records",
    "TextResult": "dqcodec.encode_records",
    "each": "dqcodec.data.transforms",
    "encode_text": "dqcodec.encode_records",
    "to_float": "dqcodec.data.transforms",
}


def __getattr__(name: str) -> Any:
    """What needs more is imported when it is asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_LAZY[name]), name)
    except ImportError as error:
        if "dqcodec[" in str(error):  # it says what to install
            raise
        raise ImportError(f"{name} needs torch: pip install 'dqcodec[torch]' ({error})") from error
