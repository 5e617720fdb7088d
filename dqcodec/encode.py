"""The encoder: an image folder goes in, a .dqz comes out.

    read -> features -> bins -> sampling -> patch scores -> mask -> quantize -> pack -> fill -> write

This module is the only place that knows that order. A stage that the options make needless does not run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dqcodec import features
from dqcodec.container.spec import MAE, MAX_NAME, Header
from dqcodec.container.writer import Writer
from dqcodec.errors import OptionError, OutputError
from dqcodec.options import EncodeOptions
from dqcodec.parallel import default_workers
from dqcodec.run import Progress, Run
from dqcodec.selection import Selection
from dqcodec.sources.folder import Folder, scan
from dqcodec.stages.choose import choose, extract, keep_patches, make_bins, train_proxy
from dqcodec.stages.code import Packer, pack_all, with_dct, with_pixel
from dqcodec.stages.fill import train_mae, wanted_mae
from dqcodec.stages.images import Images, look, read_all
from dqcodec.stages.widths import set_widths
from dqcodec.work import Work

if TYPE_CHECKING:
    from dqcodec.models.checkpoints import Checkpoint

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class EncodeResult:
    """What was done.

    path, options    the file, and the options with size and patch filled in
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
    """Encode the image folder `source` (one folder a class) into the .dqz file `output`.

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
    options.check()
    if workers is not None and workers < 1:
        raise OptionError(f"workers: {workers}; allowed: at least 1")
    run = Run(workers or default_workers(), strict, progress)
    with run.stage("scan"):
        folder = scan(source, run.progress)
        for name, reason in folder.skipped:
            run.skip(name, reason)
    for place in (output, work):
        _check_outside(folder, place)
    if work and Path(work).resolve() == Path(output).resolve():
        raise OutputError(f"{work} is both the output and the work folder; choose two names", path=work)
    if options.keep < 1 and options.method != "random":  # what is wrong with them should be known now
        features.check_source(options.features, folder.names)

    with Writer(output, overwrite) as writer, Work(work, Path(output).parent) as saved:
        with run.stage("read"):
            images = look(folder, options, device, saved, run)
            mae = wanted_mae(images) if images.drops else None
            if images.selects or images.needs_proxy:
                images = read_all(images, run)
        proxy = selection = masks = None
        if images.sees_by_proxy:
            proxy = train_proxy(images, run)
        if images.selects:
            with run.stage("features"):
                found = extract(images, proxy, run)
            with run.stage("bins"):
                binning = make_bins(images, found, run)
            with run.stage("sampling"):
                selection = choose(images, binning, found, run)
        kept = np.arange(len(images)) if selection is None else selection.kept
        if proxy is None and images.needs_proxy:
            proxy = train_proxy(images, run)
        if proxy is not None and images.drops:
            with run.stage("patch scores"):
                masks = keep_patches(images, proxy, kept, run)
        with run.stage("bits"):
            widths = set_widths(images, proxy, kept, masks, run)
        if images.transform == "dct":
            with run.stage("tables"):
                pack = with_dct(images, kept, masks, widths.bits, run)
        else:
            pack = with_pixel(images)
        with run.stage("pack"):
            written, coded = pack_all(images, kept, masks, widths.bits, pack, writer, run)
        if mae is not None and masks is not None and options.mae == "train":
            with run.stage("mae"):
                mae = train_mae(images, mae, kept[written], masks[written], widths.bits[written], pack, run)
        with run.stage("write"):
            kept, masks = kept[written], None if masks is None else masks[written]
            columns = {**_columns(images, kept, masks, selection), **coded, **pack.tables}
            if widths.distance is not None:
                columns["distance"] = widths.distance[written]
            if mae is not None and options.mae == "train":
                columns[MAE] = np.frombuffer(mae.data, np.uint8)
            if saved.found:
                run.notes.append(f"found in the work folder: {', '.join(saved.found)}")
            header = writer.finish(_header(images, pack, mae, run), columns)

    return EncodeResult(
        Path(output), images.options, header, len(images), len(kept),
        bytes_in=images.bytes, bytes_kept=int(folder.sizes[images.usable[kept]].sum()),
        bytes_out=Path(output).stat().st_size, skipped=tuple(run.skipped), notes=tuple(run.notes),
        seconds=run.seconds, selection=selection,
    )  # fmt: skip


def _columns(images: Images, kept: Array, masks: Array | None, selection: Selection | None) -> dict[str, Array]:
    """The columns of the samples in the file that do not depend on the transform."""
    columns = {"label": images.labels[kept], "source_index": images.usable[kept]}
    if masks is not None:
        columns["mask"] = masks
    if selection is not None:
        size, taken = np.zeros((2, len(images.folder.classes), selection.size.shape[1]), np.int64)
        np.add.at(size, (images.labels, selection.bin), 1)
        np.add.at(taken, (images.labels[kept], selection.bin[kept]), 1)
        columns |= {"bin": selection.bin[kept], "bins/size": size, "bins/taken": taken}
        scored = {"bins/rs": selection.rs, "bins/ds": selection.ds, "bins/is": selection.is_}
        columns |= {name: score for name, score in scored.items() if score is not None}
    return columns


def _header(images: Images, packer: Packer, mae: Checkpoint | None, run: Run) -> Header:
    from PIL import __version__ as pillow

    from dqcodec import __version__

    options = images.options
    about = {
        "source": {"images": len(images), "bytes": images.bytes, "skipped": len(run.skipped)},
        "encode": {
            **asdict(options),
            "features": Path(options.features).name if images.selects else None,
            "mae": options.mae if options.mae in ("small", "train") else mae and mae.name,
        },
        "creator": f"dqcodec {__version__}, Pillow {pillow}",
    }
    size = images.size
    return Header(
        0, size, size, images.channels, images.patch, 1, images.folder.classes, images.transform, (images.transform,),
        parameters=packer.parameters, extra=about,
        mae=None if mae is None else {"sha256": mae.sha256, "name": mae.name[-MAX_NAME:]},
    )  # fmt: skip


def _check_outside(folder: Folder, place: str | Path | None) -> None:
    """What is written among the images might replace one, and would be taken for one in the next run."""
    root, path = folder.root.resolve(), Path(place or "").resolve()
    if place and (root == path or root in path.parents):
        raise OutputError(f"{place} is inside the source folder {folder.root}; choose a place outside", path=place)
