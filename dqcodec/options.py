"""What decides the content of a file."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from dqcodec import checks, embeddings, features
from dqcodec.bits import parse
from dqcodec.codec.dct.tables import EFFORTS
from dqcodec.container.spec import MAX_SIDE
from dqcodec.errors import OptionError
from dqcodec.selection import ALPHA, check_sampling
from dqcodec.selection.binning import check_bin_sizes, check_bins
from dqcodec.sources.images import RESIZES
from dqcodec.sources.records import template_parts

DEFAULT_BINS = 10
DEFAULT_BITS = {"dct": 4.0, "pixel": 6.0}
TRANSFORMS = ("dct", "pixel")
AUTO = "auto"
_UNITS = {"": 1, "b": 1} | {
    f"{letter}{binary}b": (1024 if binary else 1000) ** power
    for power, letter in enumerate("kmgt", 1)
    for binary in ("", "i")
}


def parse_size(name: str, text: int | str, source: int | None = None) -> int:
    """Bytes of an option: 2_000_000, "2MB", "1.5GiB", or where `source` bytes are given "0.1x" of them.

    Raises OptionError where it is none of these, or not above 0.
    """
    form = r"\s*((?:[0-9]+_)*[0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z]*)\s*"
    number = isinstance(text, int) and not isinstance(text, bool) and text > 0
    written = str(min(text, 10**30)) if number else text
    found = re.fullmatch(form, written, re.IGNORECASE) if isinstance(written, str) else None
    value, unit = found.groups() if found else ("0", "")
    relative = unit.lower() == "x" and source is not None
    factor = (source or 0) if relative else _UNITS.get(unit.lower(), 0)
    size = int(min(float(value), 1e15) * factor)
    if size < 1 and (not relative or not float(value)):
        share = "" if source is None else ", or 0.1x of the source"
        raise OptionError(f"{name}: {text!r}; allowed: bytes above 0, as in 2GB, 500MiB, 120000{share}")
    return size


class _Options:
    def __post_init__(self) -> None:
        """Numbers of numpy become Python's, which JSON knows."""
        for name, value in vars(self).items():
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())


@dataclass(frozen=True)
class EncodeOptions(_Options):
    """What decides the content of the file; the file stores it.

    keep      share of the samples that are kept, 0 < keep <= 1; "auto": as many as fit the target size at these bits
    bins      bins a class; None: 10, or as many as there are images
    drop      share of the patches dropped of each image, 0 <= drop < 1
    transform "dct" (smaller), "pixel" (the papers' own); None: dct at 32 pixels and up
    bits      nominal width of a value, 1..8: a step of 2^(8 - bits) grey levels, with dct more of images that are
              busier than usual, less of calmer ones (codec/dct/pack.py). 6 or "6": of all samples; "auto:6": by
              sample, where it makes least difference to gradients, with this mean, up to a bit less and more (half a
              bit with dct and a target size); "rank:6": one bit more or less for the samples with the largest and
              smallest difference. pixel takes whole bits only, from 2 on. "fixed", "auto", "rank": with the default
              number, 4 with dct and 6 with pixel, or the one that the target size leaves. None: "fixed"
    target_size
              bytes of the file at most, and at least 97% of them: 2_000_000_000, "2GB", "500MiB", or "0.1x" of the
              source files. The number of bits follows from it; with keep "auto" the share that is kept, and the bits
              only as far as that leaves a rest. None: whatever the other options give
    shard_size
              bytes of a part at most, as for target_size: the output is a folder of parts and an index. None: one file
    effort    "fast", "default" or "best": how long dct searches
    size      pixels a side; None: as the data, at most 224
    resize    how other shapes become square: "squash", "crop" or "pad"
    patch     side of a patch in pixels; None: 16 at 224, 8 at 64, 4 at 32
    features  "proxy", "timm:NAME", "timm:NAME@WEIGHTS" or "FILE.npy"
    method    "graphcut": one bin, the first picks; "dq": the same share of every bin; "adq": bins by their importance;
              "random"
    alpha     0..1, the weight of the importance with "adq"
    normalize features are divided by their L2 norm: the cosine GraphCut of the papers' public code
    bin_sizes "equal"; "geometric" as in that code: a bins-th of what remains for each, the rest for the last
    mae       the masked autoencoder that brings dropped patches back: "small" (of this package), "train" (that one,
              trained further on the set; its weights are stored in the file), "hf:OWNER/NAME" or "file:PATH" (the file
              names it by its hash)
    soft_labels
              "proxy": the file also holds what a classifier that is trained on all images says of each, for
              DQZDataset(..., soft_labels=True); "FILE.npy": what another one says, a row of probabilities for every
              file; None: labels only
    seed      of every random choice
    """

    keep: float | str = 1.0
    bins: int | None = None
    drop: float = 0.0
    transform: str | None = None
    bits: float | str | None = None
    target_size: int | str | None = None
    shard_size: int | str | None = None
    effort: str = "default"
    size: int | None = None
    resize: str = "squash"
    patch: int | None = None
    features: str = "proxy"
    method: str = "graphcut"
    alpha: float = ALPHA
    normalize: bool = False
    bin_sizes: str = "equal"
    mae: str = "small"
    soft_labels: str | None = None
    seed: int = 0

    def inputs(self) -> dict[str, str]:
        """The files that options name, by option."""
        weights = self.features.partition("@")[2] if self.features.startswith("timm:") else self.features
        mae = self.mae.removeprefix("file:") if self.mae.startswith("file:") else ""
        found = {"features": weights, "mae": mae, "soft_labels": self.soft_labels or ""}
        return {name: place for name, place in found.items() if place not in ("", "proxy")}

    def check(self) -> None:
        """Raise OptionError where a value is outside its range."""
        checks.number("drop", self.drop)
        checks.boolean("normalize", self.normalize)
        if self.keep == AUTO and self.target_size is None:
            raise OptionError("keep: auto needs a target_size, which decides how many samples fit")
        if isinstance(self.keep, str) and self.keep != AUTO:
            raise OptionError(f"keep: {self.keep!r}; allowed: 0 < keep <= 1, or auto with a target_size")
        check_sampling(1.0 if isinstance(self.keep, str) else self.keep, self.method, self.seed, self.alpha)
        if self.bins is not None:
            check_bins(self.bins)
        check_bin_sizes(self.bin_sizes)
        if not 0 <= self.drop < 1:
            raise OptionError(f"drop: {self.drop}; allowed: 0 <= drop < 1")
        if self.transform is not None:
            checks.choice("transform", self.transform, TRANSFORMS)
        bits = parse("fixed" if self.bits is None else self.bits)
        if self.target_size is not None:
            parse_size("target_size", self.target_size, 1)
            if bits.mean is not None and self.keep != AUTO:
                raise OptionError(
                    f"bits: {self.bits!r} and a target_size; the size decides how many bits: give auto, rank or fixed "
                    "without a number, or keep auto"
                )
        if self.shard_size is not None:
            parse_size("shard_size", self.shard_size)
        checks.choice("effort", self.effort, EFFORTS)
        checks.choice("resize", self.resize, RESIZES)
        for name in ("size", "patch"):
            if getattr(self, name) is not None:
                checks.integer(name, getattr(self, name), 1, MAX_SIDE)
        features.check(self.features)
        if not isinstance(self.mae, str) or not re.fullmatch(r"small|train|(hf|file):.+", self.mae, re.S):
            raise OptionError(f"mae: {self.mae!r}; allowed: small, train, hf:OWNER/NAME, file:PATH")
        if self.soft_labels is not None and not re.fullmatch(r"proxy|.+\.npy", str(self.soft_labels), re.S):
            raise OptionError(f"soft_labels: {self.soft_labels!r}; allowed: proxy, FILE.npy")


# By name. The papers' ones keep pixels: DQ drops patches and does not quantize, ADQ gives samples their own widths.
PRESETS = {
    "balanced": EncodeOptions(),
    "smallest": EncodeOptions(keep=0.25, transform="dct", bits=2.5),
    "paper-dq": EncodeOptions(keep=0.6, drop=0.25, method="dq", transform="pixel", bits=8),
    "paper-adq": EncodeOptions(keep=0.6, drop=0.25, method="adq", transform="pixel", bits="auto:6"),
}


@dataclass(frozen=True)
class TextOptions(_Options):
    """What decides the content of a file of records; the file stores it.

    keep      share of the records that are kept, 0 < keep <= 1
    bins      bins a class; None: 10, or as many as there are records
    text      "{instruction} {output}": what records are compared by; None: found, see sources/records.py
    label     name of the field that is the class; None: one class
    features  a sentence-transformers model by name or folder, "package:NAME" or "FILE.npy"; see embeddings.py
    shard_size, method, alpha, normalize, bin_sizes, seed   as for EncodeOptions
    """

    keep: float = 1.0
    bins: int | None = None
    text: str | None = None
    label: str | None = None
    features: str = embeddings.MODEL
    shard_size: int | str | None = None
    method: str = "adq"
    alpha: float = ALPHA
    normalize: bool = False
    bin_sizes: str = "equal"
    seed: int = 0

    def inputs(self) -> dict[str, str]:
        """The files that options name, by option."""
        return {"features": self.features}

    def check(self) -> None:
        """Raise OptionError where a value is outside its range."""
        check_sampling(self.keep, self.method, self.seed, self.alpha)
        if self.bins is not None:
            check_bins(self.bins)
        check_bin_sizes(self.bin_sizes)
        checks.boolean("normalize", self.normalize)
        if self.text is not None:
            template_parts(self.text)
        if self.label is not None and not isinstance(self.label, str):
            raise OptionError(f"label: {self.label!r}; expected the name of a field")
        for name in ("text", "label"):
            if (given := getattr(self, name)) is not None and given != given.encode(errors="replace").decode():
                raise OptionError(f"{name}: {given!r}; expected text that UTF-8 can write")
        if not isinstance(self.features, str) or not self.features or re.match(r"proxy$|timm:", self.features):
            raise OptionError(
                f"features: {self.features!r}; allowed for records: NAME of sentence-transformers, FOLDER, "
                "package:NAME, FILE.npy"
            )
        if self.shard_size is not None:
            parse_size("shard_size", self.shard_size)


def idle(options: EncodeOptions | TextOptions) -> list[str]:
    """Sentences on options that were given and change nothing beside the others."""
    standard = type(options)()
    by_features = "bins", "features", "normalize", "bin_sizes", "text"
    found = []
    for off, names, why in (
        (options.keep == 1, ("method", "alpha", *by_features), "all samples are kept; for fewer give keep below 1"),
        (options.keep != 1 and options.method == "random", ("alpha", *by_features), "samples are chosen at random"),
        (options.keep != 1 and options.method == "dq", ("alpha",), "the method is not adq"),
        (options.keep != 1 and options.method == "graphcut", ("alpha", "bins", "bin_sizes"), "the method has one bin"),
        (getattr(options, "drop", 1) == 0, ("mae",), "no patch is dropped; to drop some give drop above 0"),
        (getattr(options, "transform", None) == "pixel", ("effort",), "the transform is not dct"),
    ):
        given = [name for name in names if getattr(options, name, None) != getattr(standard, name, None)]
        if off and given:
            found.append(f"without effect: {', '.join(given)}, because {why}")
    return found
