"""The encoder: an image folder goes in, a .dqz comes out.

    read -> features -> bins -> sampling -> patch scores -> mask -> soft labels
         -> bits -> quantize -> pack -> fill -> write

This module is the only place that knows that order. A stage that the options make needless does not run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dqcodec import checks, features
from dqcodec.bits import Bits
from dqcodec.container.shards import ShardWriter, bytes_on_disk
from dqcodec.container.spec import LEAST_BITS, Header
from dqcodec.container.writer import Writer
from dqcodec.errors import OptionError, OutputError
from dqcodec.options import AUTO, EncodeOptions, idle
from dqcodec.run import Progress, Run
from dqcodec.selection import Selection
from dqcodec.sources.folder import Folder, scan
from dqcodec.stages import soften
from dqcodec.stages.budget import Ladder, approach, find_keep, find_mean, fit, wanted_bytes
from dqcodec.stages.choose import choose, extract, keep_patches, make_bins, score_bins, train_proxy
from dqcodec.stages.code import Samples, make_packer, quick_packer
from dqcodec.stages.fill import train_mae, wanted_mae
from dqcodec.stages.images import look, read_all
from dqcodec.stages.widths import set_widths, step
from dqcodec.stages.write import Draft, write
from dqcodec.work import Work


@dataclass(frozen=True)
class EncodeResult:
    """What was done.

    path, options    the file, and the options with what was left open filled in
    header           the header as written
    images           usable images in the source
    kept             samples in the file
    bytes_in         bytes of the usable source files
    bytes_kept       bytes of the source files whose images were kept
    bytes_out        bytes of the file
    skipped          (name, reason) of everything that was left out because it is no usable image
    notes            sentences that a person should read
    seconds          by stage
    selection        the selection over the usable images, or None where all were kept
    """

    path: Path
    options: EncodeOptions
    header: Header
    images: int
    kept: int
    bytes_in: int
    bytes_kept: int
    bytes_out: int
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    seconds: dict[str, float]
    selection: Selection | None


def encode(
    source: str | Path,
    output: str | Path,
    options: EncodeOptions | None = None,
    *,
    work: str | Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> EncodeResult:
    """Encode the image folder `source` (one folder a class) into the .dqz file `output`, or a folder of parts.

        work       folder for thumbnails, proxy, features, bins and scores, so that the next run on the same source
                   does not make them again, and one that was killed goes on
        device     "auto", "cpu", "cuda", "cuda:N" or "mps", for the proxy
        workers    threads that decode and pack images; None: one a processor
        strict     unusable files are an error instead of being skipped and listed
        overwrite  replace an existing output
        progress   called with (stage, done, total)

    Raises OptionError, SourceError or OutputError; then `output` is as it was before.
    """
    options = options or EncodeOptions()
    if not isinstance(options, EncodeOptions):
        raise OptionError(f"options: {type(options).__name__}; expected EncodeOptions, for images")
    options.check()
    run = Run(workers, strict, progress)
    run.notes += idle(options)
    with run.stage("scan"):
        folder = scan(source, run.progress)
        for name, reason in folder.skipped:
            run.skip(name, reason)
    for place in (output, work):
        _check_outside(folder, place)
    checks.apart(output, {"the work folder": work, **options.inputs()})
    if options.keep != 1 and options.method != "random":  # what is wrong with them should be known now
        features.check_source(options.features, folder.names)
    if options.soft_labels is not None and len(folder.classes) == 1:
        run.notes.append("no soft labels: they say how classes resemble each other, and there is one")
        options = replace(options, soft_labels=None)
    if options.soft_labels is not None:
        soften.check_source(options.soft_labels, folder.names, len(folder.classes))

    make = Writer if options.shard_size is None else ShardWriter
    with make(output, overwrite) as writer, Work(work, Path(output).parent) as saved:
        with run.stage("read"):
            images = look(folder, options, device, saved, run)
            mae = wanted_mae(images) if images.drops else None
            if images.selects or images.needs_proxy:
                images = read_all(images, run)
        budget = wanted_bytes(images, run)
        proxy = selection = masks = None
        if images.sees_by_proxy:
            proxy = train_proxy(images, run)
        if images.selects:
            with run.stage("features"):
                found = extract(images, proxy, run)
            with run.stage("bins"):
                binning = make_bins(images, found, run)
            with run.stage("sampling"):
                scored = score_bins(images, binning, found, run)
        if proxy is None and images.needs_proxy:
            proxy = train_proxy(images, run)
        if budget is not None and images.options.keep == AUTO:
            with run.stage("budget"):
                images = images.having(keep=find_keep(images, binning, scored, proxy, mae, budget, writer, run))
        if images.selects:
            with run.stage("sampling"):
                selection = choose(images, binning, scored, run)
        kept = np.arange(len(images)) if selection is None else selection.kept
        if proxy is not None and images.drops:
            with run.stage("patch scores"):
                masks = keep_patches(images, proxy, kept, run)
        soft_labels = {}
        if images.options.soft_labels is not None:
            with run.stage("soft labels"):
                soft_labels = soften.soft_labels(images, proxy, kept, run)
        if budget is not None and images.bits.mean is None:
            with run.stage("budget"):
                draft = Draft(images, kept, masks, selection, quick_packer(images), None, mae, soft_labels, run)
                images = images.having(bits=str(Bits(images.bits.mode, find_mean(draft, budget, writer))))
        with run.stage("bits"):
            widths = set_widths(images, proxy, kept, masks, run)
        packer = make_packer(images, kept, masks, widths.bits, run)
        draft = Draft(images, kept, masks, selection, packer, widths, mae, soft_labels, run)
        ladder, shift = Ladder.of(widths.bits, step(images), LEAST_BITS[images.transform], options.seed), 0.0
        trim = options.keep == AUTO
        if budget is not None:
            with run.stage("budget"):
                shift = approach(draft, ladder, budget, trim, writer)
        with Samples(images, kept, masks, packer, writer, run) as samples:
            with run.stage("pack"):
                coded = samples.code(ladder.at(shift))
            if mae is not None and masks is not None and options.mae == "train":
                with run.stage("mae"):
                    draft = replace(draft, mae=train_mae(images, mae, kept, masks, samples, coded, run))
            if budget is not None:
                with run.stage("budget"):
                    coded = fit(draft, samples, ladder, shift, budget, trim)
            with run.stage("write"):
                if saved.found:
                    run.notes.append(f"found in the work folder: {', '.join(saved.found)}")
                header = write(draft, samples, coded, writer)

    return EncodeResult(
        Path(output), draft.options(coded), header, draft.usable, len(coded.places),
        bytes_in=images.bytes, bytes_kept=int(folder.sizes[images.usable[kept[coded.places]]].sum()),
        bytes_out=bytes_on_disk(output), skipped=tuple(run.skipped), notes=tuple(run.notes),
        seconds=run.seconds, selection=selection,
    )  # fmt: skip


def _check_outside(folder: Folder, place: str | Path | None) -> None:
    """What is written among the images might replace one, and would be taken for one in the next run."""
    root, path = folder.root.resolve(), Path(place or "").resolve()
    if place and (root == path or root in path.parents):
        raise OutputError(f"{place} is inside the source folder {folder.root}; choose a place outside", path=place)
