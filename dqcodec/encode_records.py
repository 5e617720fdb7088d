"""The encoder of records: a JSON, JSON lines or Parquet file goes in, a .dqz comes out.

    read -> embed -> bins -> sampling -> pack -> dictionary -> compress -> write

What `encode.py` is for images. The source is gone through once for each of read, embed and pack, so that of a large
one only the embeddings and the packed records that are kept are in memory; a JSON array is as a whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dqcodec import checks, embeddings
from dqcodec.codec import text
from dqcodec.container.shards import Output, ShardWriter, bytes_on_disk, write_parts
from dqcodec.container.spec import DICTIONARY, MAX_CLASSES, Header, plain_name
from dqcodec.container.writer import Writer, size_of
from dqcodec.errors import OptionError, SourceError
from dqcodec.features import from_npy, torch_device
from dqcodec.options import DEFAULT_BINS, TextOptions, idle, parse_size
from dqcodec.parallel import ordered_map
from dqcodec.run import Progress, Run
from dqcodec.selection import Selection, select
from dqcodec.sources.records import Records, scan, text_maker
from dqcodec.stages.write import bin_columns, cut, last_name
from dqcodec.work import Work

Array = npt.NDArray[Any]

NO_TEXT = "no text in the fields that records are compared by"
STEP = 1000  # records between two reports of progress
SHOWN = 20  # fields that a message names, about


@dataclass(frozen=True)
class TextResult:
    """What was done.

    path, options, header   the file, the options, the header as written
    records     usable records in the source
    kept        records in the file
    bytes_in    bytes of the source file
    bytes_kept  bytes of the kept records as lines of JSON
    bytes_out   bytes of the file
    skipped     (place, reason) of everything that was left out because it is no usable record
    notes       sentences that a person should read
    seconds     by stage
    selection   the selection over the usable records, or None where all were kept
    """

    path: Path
    options: TextOptions
    header: Header
    records: int
    kept: int
    bytes_in: int
    bytes_kept: int
    bytes_out: int
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    seconds: dict[str, float]
    selection: Selection | None


@dataclass(frozen=True)
class Usable:
    """
    places   int64 (N,), places of the usable records in the source
    entries  how many places the source has
    labels   int64 (N,)
    classes  class names, by label
    """

    source: Records
    places: Array
    entries: int
    labels: Array
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.places)

    def records(self, wanted: Array) -> Iterator[text.Record]:
        """Some of the usable records, given by their numbers among them, ascending."""
        left = iter(self.places[wanted].tolist())
        place = next(left, None)
        for number, entry in enumerate(self.source):
            if number == place and entry.record is not None:
                yield entry.record
                place = next(left, None)


def encode_text(
    source: str | Path,
    output: str | Path,
    options: TextOptions | None = None,
    *,
    work: str | Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TextResult:
    """Encode a file of records (.json, .jsonl, .ndjson, also .gz and .zst, or .parquet) into the .dqz file `output`.

    The other arguments are those of `encode`; `work` keeps the embeddings. Raises OptionError, SourceError or
    OutputError; then `output` is as it was before.
    """
    options = options or TextOptions()
    if not isinstance(options, TextOptions):
        raise OptionError(f"options: {type(options).__name__}; expected TextOptions, for records")
    options.check()
    checks.apart(output, {"the source": source, "the work folder": work, **options.inputs()})
    run = Run(workers, strict, progress)
    run.notes += idle(options)
    found = scan(source)

    make = Writer if options.shard_size is None else ShardWriter
    with make(output, overwrite) as writer, Work(work, Path(output).parent) as saved:
        with run.stage("read"):
            usable = look(found, options, run)
        selection = None
        if options.keep < 1:
            with run.stage("features"):
                features = embed(usable, options, device, saved, run)
            with run.stage("bins"):
                selection = choose(usable, features, options, run)
        kept = np.arange(len(usable)) if selection is None else selection.kept
        with run.stage("pack"):
            packed, lines = pack(usable, kept, run)
        with run.stage("dictionary"):
            frame = text.frame_of([len(data) for data in packed])
            dictionary = text.train(packed, frame, options.seed)
        with run.stage("compress"):
            frames = compress(packed, frame, dictionary, run)
        with run.stage("write"):
            if saved.found:
                run.notes.append(f"found in the work folder: {', '.join(saved.found)}")
            header = write(writer, frames, frame, dictionary, usable, kept, selection, options, run)
    return TextResult(
        Path(output), options, header, len(usable), len(kept), found.size, lines, bytes_on_disk(output),
        tuple(run.skipped), tuple(run.notes), run.seconds, selection,
    )  # fmt: skip


def look(source: Records, options: TextOptions, run: Run) -> Usable:
    """Which records can be used; the others are skipped with their place and reason."""
    as_text = text_maker(options.text)
    places, labels, entries = [], [], 0
    seen: set[bytes] = set()
    fields: dict[str, None] = {}
    for place, entry in enumerate(source):
        entries += 1
        reason, label = entry.reason, ""
        if entry.record is not None:
            if len(fields) < SHOWN:
                fields.update(dict.fromkeys(list(entry.record)[:SHOWN]))
            try:
                packed = text.pack(entry.record)
                if as_text(entry.record) is None:
                    reason = NO_TEXT
                if options.label is not None:
                    label = _label(entry.record, options.label)
            except ValueError as error:
                reason = str(error)
        if reason:
            run.skip(entry.name, reason)
            continue
        seen.add(hashlib.blake2b(packed, digest_size=16).digest())
        places.append(place)
        labels.append(label)
        if place % STEP == 0:
            run.progress("read", place + 1, place + 1)
    if not places:
        raise _no_record(source, run.skipped, list(fields))
    if len(seen) < len(places):
        run.notes.append(f"{len(places) - len(seen):,} records are exact copies of others; they count like all others")
    classes, numbers = np.unique(np.array(labels, object), return_inverse=True)
    names = tuple(classes.tolist()) if options.label is not None else ("all",)
    if len(names) > MAX_CLASSES:
        raise SourceError(f"{source.path}: {len(names):,} values of {options.label}; allowed: {MAX_CLASSES:,} classes")
    return Usable(source, np.array(places), entries, numbers.astype(np.int64), names)


def embed(usable: Usable, options: TextOptions, device: str, work: Work, run: Run) -> Array:
    """float (N, D), of every usable record; zeros with `random`, which looks at none."""
    if options.method == "random":
        return np.zeros((len(usable), 1), np.float32)
    if options.features.endswith(".npy"):
        rows = from_npy(options.features, usable.entries, "each record of the source, usable or not, in its order")
        return rows if len(usable) == len(rows) else rows[usable.places]
    chosen = hashlib.sha256(usable.places.tobytes()).hexdigest()
    source, place = usable.source, torch_device(device)
    about = [source.size, source.time, str(source.path.resolve()), options.text, chosen, place.type]
    about += [options.features, embeddings.about(options.features)]
    as_text = text_maker(options.text)
    with work.rows("embeddings", about) as found:
        left = np.arange(found.done, len(usable))
        if left.size:
            model = embeddings.embedder(options.features, place)
            texts = (as_text(record) or "" for record in usable.records(left))
            while block := list(islice(texts, embeddings.BLOCK)):
                found.append(model(block))
                run.progress("features", found.done, len(usable))
        return found.finish()


def choose(usable: Usable, features: Array, options: TextOptions, run: Run) -> Selection:
    bins = min(DEFAULT_BINS, len(usable)) if options.bins is None else options.bins
    return select(
        features, usable.labels, options.keep, bins, options.method, options.seed, alpha=options.alpha,
        normalize=options.normalize, bin_sizes=options.bin_sizes, progress=run.progress,
    )  # fmt: skip


def pack(usable: Usable, kept: Array, run: Run) -> tuple[list[bytes], int]:
    """The kept records as msgpack, and their bytes as lines of JSON."""
    packed, lines = [], 0
    for record in usable.records(kept):
        packed.append(text.pack(record))
        lines += len(json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")) + 1
        if len(packed) % STEP == 0:
            run.progress("pack", len(packed), len(kept))
    return packed, lines


def compress(packed: list[bytes], frame: int, dictionary: bytes, run: Run) -> list[bytes]:
    coder = text.Coder(dictionary)
    starts = range(0, len(packed), frame)
    frames = []
    for data in ordered_map(lambda n: coder.compress(text.join(packed[n : n + frame])), starts, run.workers):
        frames.append(data)
        if len(frames) % STEP == 0:
            run.progress("compress", len(frames), len(starts))
    return frames


def write(
    writer: Output,
    frames: list[bytes],
    frame: int,
    dictionary: bytes,
    usable: Usable,
    kept: Array,
    selection: Selection | None,
    options: TextOptions,
    run: Run,
) -> Header:
    """The file, or the parts; returns the header of all."""
    from dqcodec import __version__

    stored = {name: value for name, value in asdict(options).items() if name != "shard_size"}
    stored["features"] = last_name(options.features) if selection is not None else None
    about = {
        "source": {"records": len(usable), "bytes": usable.source.size, "skipped": len(run.skipped)},
        "encode": stored,
        "creator": f"dqcodec {__version__}",
    }
    header = Header(0, 0, 0, 0, 1, 1, usable.classes, "text", ("text",), parameters={"frame": frame}, extra=about)
    lengths = np.array([len(data) for data in frames])
    shared = {DICTIONARY: np.frombuffer(text.stored_dictionary(dictionary), np.uint8)} if dictionary else {}

    def columns(rows: Array) -> dict[str, Array]:
        """Of a file with these frames."""
        own = kept[int(rows[0]) * frame : (int(rows[-1]) + 1) * frame]
        found = {"label": usable.labels[own], "source_index": usable.places[own], **shared}
        if selection is not None:
            found |= bin_columns(usable.labels, len(usable.classes), selection, own)
        return found

    def put(rows: Array, file: Writer) -> Header:
        for row in rows.tolist():
            file.append(frames[row])
        return file.finish(header, columns(rows))

    def parts() -> list[Array]:
        most = parse_size("shard_size", options.shard_size or 0)
        return cut(lengths, lambda rows: size_of(header, lengths[rows], columns(rows)), most)

    return write_parts(writer, np.arange(len(frames)), parts, put)


def _no_record(source: Records, skipped: list[tuple[str, str]], fields: list[str]) -> SourceError:
    """What to do about a source without a usable record."""
    name, why = skipped[0] if skipped else ("", "it is empty")
    first = f"the first: {name}: " if name else ""
    if why == NO_TEXT:
        why += f"; --text '{{field}} {{field}}' says which, of {', '.join(fields)}"
    elif fields:
        why += f"; its fields are {', '.join(fields)}"
    elif name.startswith("line"):
        why += "; expected an array of records, or a record on each line"
    return SourceError(f"{source.path}: no usable record; {first}{why}", path=source.path)


def _label(record: text.Record, field: str) -> str:
    """The class of a record; ValueError where it has none."""
    value = record.get(field)
    if not isinstance(value, str | int | float | date | Decimal):
        raise ValueError(f"no label: {field} is {'missing' if field not in record else str(value)[:40]}")
    name = json.dumps(value) if isinstance(value, int | float) else str(value)
    if not plain_name(name):
        raise ValueError(f"its label {name[:80]!r} cannot be a class name: 1 to 255 bytes without / \\ and controls")
    return name
