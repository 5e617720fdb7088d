"""features -> bins -> sampling -> patch scores -> mask: which samples are kept, and which of their patches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dqcodec import features
from dqcodec.container.spec import pack_mask
from dqcodec.parallel import ordered_map
from dqcodec.patches import keep_mask
from dqcodec.run import Run
from dqcodec.selection import Selection, sample, scores
from dqcodec.selection.binning import Binning, at_random, divide
from dqcodec.stages.images import Images, class_list

if TYPE_CHECKING:
    from dqcodec.models.proxy import Proxy

Array = npt.NDArray[Any]

SCORE_BATCH, TEXTURE_BATCH = 64, 1024


def train_proxy(images: Images, run: Run) -> Proxy:
    place = images.place
    from dqcodec.models import proxy

    if len(np.unique(images.labels)) == 1:
        run.notes.append("all images are of one class, so the proxy classifier has nothing to learn from")
    classes, seed = len(images.folder.classes), images.options.seed
    with run.stage("proxy"):
        weights = images.work.arrays(
            "proxy", images.about_proxy,
            lambda: proxy.train(images.seen, images.labels, classes, place, seed, run.progress),
        )  # fmt: skip
        return proxy.restore(weights, place)


@dataclass(frozen=True)
class Features:
    """
    rows   float (N, D)
    views  of some samples, int64 (n,): float32 (3, n, D'), plain and augmented twice, for their diversity
    """

    rows: Array
    views: Callable[[Array], Array]


def extract(images: Images, proxy: Proxy | None, run: Run) -> Features | None:
    """From where the options say; None where none are needed."""
    source, seed = images.options.features, images.options.seed
    if images.options.method == "random":
        return None
    if source.endswith(".npy"):
        rows = features.from_npy(source, len(images.folder))
        rows = rows if len(images) == len(rows) else rows[images.usable]
        return Features(rows, lambda chosen: scores.with_views(rows[chosen], seed))

    if proxy is not None and source == "proxy":
        embed, embed_views = (cache(partial(make, proxy)) for make in (features.of_proxy, features.of_proxy_pools))

        def see(chosen: Array) -> Iterator[Array]:
            return (images.seen[row] for row in chosen)
    else:
        embed = embed_views = cache(partial(features.of_timm, source, images.place))

        def see(chosen: Array) -> Iterator[Array]:
            return ordered_map(images.pixels, images.usable[chosen].tolist(), run.workers)

    def views(chosen: Array) -> Array:
        return np.concatenate(list(features.extract(embed_views(), see(chosen), images.place, 2, seed)), 1)

    with images.work.rows("features", images.about_features) as found:
        left = np.arange(found.done, len(images))
        for block in features.extract(embed(), see(left), images.place) if left.size else ():
            found.append(block[0])
            run.progress("features", found.done, len(images))
        return Features(found.finish(), views)


def make_bins(images: Images, found: Features | None, run: Run) -> Binning:
    options = images.options
    if found is None:
        return at_random(images.groups, len(images), options.seed)

    small = np.bincount(images.groups) < images.bins
    if small.any():
        run.notes.append(f"{small.sum():,} of {len(small):,} classes have fewer images than bins")

    def make() -> dict[str, Array]:
        device = str(images.place) if find_spec("torch") and images.place.type == "cuda" else "cpu"
        return dict(vars(divide(
            found.rows, images.groups, images.bins, normalize=options.normalize, bin_sizes=options.bin_sizes,
            device=device, progress=run.progress,
        )))  # fmt: skip

    return Binning(**images.work.arrays("bins", images.about_bins, make))


def score_bins(images: Images, binning: Binning, found: Features | None, run: Run) -> dict[str, Array]:
    """RS and DS of every bin; nothing where they are not needed."""
    if found is None or images.options.method != "adq":
        return {}
    about = [images.about_bins, images.options.seed]
    return images.work.arrays("scores", about, lambda: _scores(images, binning, found, run))


def sample_bins(images: Images, binning: Binning, scored: dict[str, Array], keep: float) -> Selection:
    """This share of the samples, from the bins."""
    options = images.options
    return sample(binning, images.groups, keep, options.method, options.seed, options.alpha, **scored)


def choose(images: Images, binning: Binning, scored: dict[str, Array], run: Run) -> Selection:
    """The share that the options say; a note where a class loses all its images."""
    folder, selection = images.folder, sample_bins(images, binning, scored, float(images.options.keep))
    count = len(folder.classes)
    before = np.bincount(images.labels, minlength=count)
    after = np.bincount(images.labels[selection.kept], minlength=count)
    lost = np.flatnonzero((before > 0) & (after == 0))
    if lost.size:
        run.notes.append(
            f"no image is kept of {class_list(folder, lost)}: too few for a share; a larger --keep keeps some"
        )
    return selection


def _scores(images: Images, binning: Binning, found: Features, run: Run) -> dict[str, Array]:
    from dqcodec.models.contrast import diversity

    starts = range(0, len(images), TEXTURE_BATCH)
    levels = []
    for level in ordered_map(lambda n: scores.texture(images.seen[n : n + TEXTURE_BATCH]), starts, run.workers):
        levels.append(level)
        run.progress("texture", len(levels), len(starts))
    rows = scores.sampled(binning.bin, images.options.seed)
    views = found.views(rows)
    ds = diversity(
        views, binning.bin[rows], images.bins, images.options.seed, device=images.place, progress=run.progress
    )
    return {"rs": scores.mean_of_bins(np.concatenate(levels), binning.bin, images.bins), "ds": ds}


def keep_patches(images: Images, proxy: Proxy, kept: Array, run: Run) -> Array:
    """uint8 (n, ceil(P/8)): the packed masks of the kept samples, from the proxy's attention."""
    from dqcodec.models.gradcam import patch_scores

    out = []
    for start in range(0, len(kept), SCORE_BATCH):
        rows = kept[start : start + SCORE_BATCH]
        found = patch_scores(proxy, images.seen[rows], images.labels[rows], images.size, images.patch)
        mask = keep_mask(found, images.options.drop, images.grid)
        out.append(pack_mask(mask))
        run.progress("patch scores", start + len(rows), len(kept))
    return np.concatenate(out)
