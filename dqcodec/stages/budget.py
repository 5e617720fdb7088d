"""budget: the share of samples and the widths with which the finished file is as large as it may be.

First the share (with keep "auto") and the mean width are estimated from a few samples. When all samples are coded the
exact size is known, and widths are moved by the smallest step that there is, of as many samples as it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dqcodec.codec.quantize import MAX_BITS
from dqcodec.container.shards import Output
from dqcodec.container.spec import LEAST_BITS
from dqcodec.errors import OptionError
from dqcodec.options import parse_size
from dqcodec.run import Run
from dqcodec.selection.binning import Binning
from dqcodec.stages.choose import keep_patches, sample_bins
from dqcodec.stages.code import Coded, Samples, quick_packer, some_of
from dqcodec.stages.images import Images
from dqcodec.stages.soften import soft_labels
from dqcodec.stages.widths import step, whole
from dqcodec.stages.write import Draft

if TYPE_CHECKING:
    from dqcodec.models.checkpoints import Checkpoint
    from dqcodec.models.proxy import Proxy

Array = npt.NDArray[Any]

LEAST = 0.97  # of the budget, what the file has at least
CLEARLY = 1.05  # times the budget, of an estimate that need not be checked
AIM = 0.99  # of the budget, where the search goes
SLOPE = 0.5  # by which ln(bytes) grows with a bit, about
FEW, MANY = 64, 1000  # samples that estimates are made from: of a first width, and of the last one before all are coded
KEEP_ROUNDS = 3  # selecting changes what a sample takes, so the share is estimated again


def wanted_bytes(images: Images, run: Run) -> int | None:
    """Bytes that the file may have; None where no target size is given."""
    text = images.options.target_size
    if text is None:
        return None
    found = parse_size("target_size", text, images.bytes)
    if found < 1:
        raise OptionError(f"target_size: {text} of the source is less than a byte")
    if found > images.bytes:
        run.notes.append(f"the target of {found:,} bytes is more than the {images.bytes:,} of the source files")
    return found


@dataclass(frozen=True)
class Ladder:
    """Widths that rise one sample after another, in random order, step by step.

    base    float64 (n,), where they start
    step    bits
    lowest  bits that a sample may have
    turn    float64 (n,), 0 <= turn < 1, when it is a sample's turn
    """

    base: Array
    step: float
    lowest: float
    turn: Array

    @classmethod
    def of(cls, base: Array, step: float, lowest: float, seed: int) -> Ladder:
        return cls(base, step, lowest, np.random.default_rng(seed).permutation(len(base)) / len(base))

    def at(self, shift: float) -> Array:
        """The widths when their mean has risen by `shift` bits, within the limits."""
        moved: Array = self.base + self.step * np.floor(shift / self.step + self.turn)
        return moved.clip(self.lowest, MAX_BITS)

    def apart(self, low: float, high: float) -> int:
        """Steps of single samples from one shift to a higher one."""
        return round(float((self.at(high) - self.at(low)).sum()) / self.step)

    def between(self, low: float | None, high: float | None, guess: float) -> float:
        """The guess, if its widths are other than those of both bounds, or a shift in their middle. None: no bound,
        where the smallest or largest widths may be."""
        span = MAX_BITS - self.lowest + self.step
        below, above = -span if low is None else low, span if high is None else high
        guess = float(np.clip(guess, below, above))
        apart = (low is None or self.apart(low, guess)) and (high is None or self.apart(guess, high))
        return guess if apart else (below + above) / 2


def climb(ladder: Ladder, size: Callable[[Array], float], most: float, start: float = 0.0) -> float:
    """The shift of a ladder, in bits, with which the size is at most `most` and, where widths allow, at least LEAST of
    it; where even the smallest widths are too large, one that gives these.

    size  of the file at widths float64 (n,), which grows with them
    """
    low, high = None, None  # shifts whose size is known, one that fits and one that does not
    shift = start
    while True:
        widths = ladder.at(shift)
        found = size(widths)
        if found <= most:
            low = shift
            if found >= LEAST * most or (widths == MAX_BITS).all():
                return shift
        else:
            high = shift
            if (widths == ladder.lowest).all():
                return shift
        if low is not None and high is not None and ladder.apart(low, high) <= 1:
            return low
        shift = ladder.between(low, high, shift + float(np.log(AIM * most / found)) / SLOPE)


def growth(draft: Draft, coded: Coded) -> tuple[float, float]:
    """Bytes of a file of one sample, and of each further one like these."""
    one, of_all = draft.size(coded.some(np.arange(1))), draft.size(coded)
    return one, (of_all - one) / max(len(coded.places) - 1, 1)


def expected(draft: Draft, coded: Coded, count: int) -> float:
    """Bytes of a file of `count` samples like these."""
    one, each = growth(draft, coded)
    return one + each * (count - 1)


def find_keep(
    images: Images, binning: Binning, scored: dict[str, Array], proxy: Proxy | None, mae: Checkpoint | None,
    budget: int, writer: Output, run: Run,
) -> float:  # fmt: skip
    """The share of the samples, at most 1, with which the file at the wanted mean width has `budget` bytes."""
    seed, count, packer = images.options.seed, len(images), quick_packer(images)
    width, keep = whole(images, images.mean_width), 1.0
    for _ in range(KEEP_ROUNDS):
        chosen = sample_bins(images, binning, scored, keep)
        kept = chosen.kept[some_of(len(chosen.kept), MANY, seed)]
        masks = keep_patches(images, proxy, kept, run) if proxy is not None and images.drops else None
        soft = soft_labels(images, proxy, kept, run)
        draft = Draft(images, kept, masks, chosen, packer, None, mae, soft, run)
        with some_samples(draft, writer, MANY) as samples:
            coded = samples.code(np.full(len(kept), width))
        one, each = growth(draft, coded)
        found = (1 + (budget - one) / max(each * (count - 1), 1) * (count - 1)) / count
        before, keep = keep, float(np.clip(found, 1 / count, 1))
        if abs(keep - before) < (1 - AIM) * before:
            break
    return keep


def find_mean(draft: Draft, budget: int, writer: Output) -> float:
    """The mean width with which the file has `budget` bytes, estimated from a few samples."""
    images, count = draft.images, len(draft.kept)
    lowest = LEAST_BITS[images.transform]
    middle = (lowest + MAX_BITS) / 2
    ladder = Ladder.of(np.full(count, middle), step(images), lowest, images.options.seed)
    with some_samples(draft, writer, FEW) as samples:
        shift = climb(ladder, lambda bits: expected(draft, samples.code(bits), count), budget)
    return float(np.clip(middle + shift, lowest, MAX_BITS))


def approach(draft: Draft, ladder: Ladder, budget: int, trim: bool, writer: Output) -> float:
    """The shift of the ladder with which the file has `budget` bytes, estimated from some of the samples.

    Raises OptionError where even the smallest widths take clearly more, and samples cannot be left out.
    """
    count = len(draft.kept)
    with some_samples(draft, writer, MANY) as samples:

        def size(bits: Array) -> float:
            return expected(draft, samples.code(bits), count)

        shift = climb(ladder, size, budget)
        least = size(ladder.at(shift))
    if least > CLEARLY * budget and not trim:
        raise _too_small(draft, budget, f"{'about ' if count > MANY else ''}{least:,.0f}", trim)
    return shift


def fit(draft: Draft, samples: Samples, ladder: Ladder, start: float, budget: int, trim: bool) -> Coded:
    """The samples, coded so that the file has at most `budget` bytes, and LEAST of them where widths allow.

        trim  leave out random samples where even the smallest widths take more, as the share that is kept is free

    Raises OptionError where the smallest widths, or one sample of them, take more.
    """
    shift = climb(ladder, lambda bits: draft.size(samples.code(bits)), budget, start)
    coded = samples.code(ladder.at(shift))
    size = draft.size(coded)
    if trim and size > budget:
        coded = _trimmed(draft, coded, budget)
        size = draft.size(coded)
    if size > budget:
        raise _too_small(draft, budget, f"{size:,}", trim)
    if size < LEAST * budget:
        most = (coded.bits == MAX_BITS).all()
        why = f"{MAX_BITS} bits are the most there are" if most else "nothing comes closer"
        draft.run.notes.append(f"the file has {size:,} bytes, less than the target of {budget:,}: {why}")
    return coded


def _trimmed(draft: Draft, coded: Coded, budget: int) -> Coded:
    """As many of the samples, at random, as fit; at least one."""
    order = np.random.default_rng(draft.images.options.seed).permutation(len(coded.places))
    low, high = 1, len(order)  # the first is taken anyhow, so many do not fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if draft.size(coded.some(np.sort(order[:middle]))) <= budget else (low, middle)
    return coded.some(np.sort(order[:low]))


def _too_small(draft: Draft, budget: int, least: str, trim: bool) -> OptionError:
    text = draft.images.options.target_size
    wanted = f"{budget:,} bytes" if str(text) == str(budget) else f"{text} ({budget:,} bytes)"
    samples, advice = ("one sample", "") if trim else ("all samples", "with keep auto as many as fit are taken; ")
    return OptionError(
        f"target_size: {wanted} is too small; with these options the smallest file has {least} bytes, {samples} as "
        f"coarse as it gets; {advice}a smaller size makes it smaller"
    )


def some_samples(draft: Draft, writer: Output, most: int) -> Samples:
    """At most so many of the draft's, at random, to estimate with."""
    images = draft.images
    places = some_of(len(draft.kept), most, images.options.seed)
    return Samples(images, draft.kept, draft.masks, draft.packer, writer, draft.run, places)
