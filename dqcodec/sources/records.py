"""A file of records: a JSON array, JSON lines (also .gz, .zst) or Parquet, one record after the other.

Nothing is lost in silence: what is no usable record comes with its place and the reason.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import string
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dqcodec.errors import OptionError, SourceError

Record = dict[str, Any]

ENDINGS = (".json", ".jsonl", ".ndjson", ".parquet")
PACKED = (".gz", ".zst")
MAX_LINE = 1 << 26  # bytes
MAX_TEXT = 100_000  # characters that features are made of: more than any model sees

LAYOUTS = (
    ("instruction", "input", "output"),  # Alpaca
    ("instruction", "context", "response"),  # Dolly
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("text",),
)
CHATS = ("messages", "conversations")  # lists of turns; the text of a turn is its `content` or `value`
_OPTIONAL = ("input", "context")


@dataclass(frozen=True)
class Entry:
    """What stands at one place of the source: a record, or None and the reason why it is none."""

    name: str
    record: Record | None
    reason: str = ""


@dataclass(frozen=True)
class Records:
    """A source file that can be gone through several times, and must not change meanwhile."""

    path: Path
    size: int
    time: int

    def __iter__(self) -> Iterator[Entry]:
        self.check_same()
        kind = ending(self.path)
        with _opening(self.path):
            if kind == ".parquet":
                yield from _rows(self.path)
            else:
                with _open(self.path) as file:
                    start = file.peek(1 << 12).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]  # type: ignore[attr-defined]
                    if kind == ".json" and start == b"[":
                        yield from _elements(file, self.path)
                    else:
                        yield from _lines(file)
        self.check_same()

    def check_same(self) -> None:
        """SourceError where the file is not as it was."""
        with _opening(self.path):
            found = os.stat(self.path)
        if (found.st_size, found.st_mtime_ns) != (self.size, self.time):
            raise SourceError(f"{self.path}: changed while it was read; run again", path=self.path)


def ending(path: str | Path) -> str:
    """ ".json", ".jsonl", ".ndjson" or ".parquet", whatever it is packed with; "" for other names."""
    name = Path(path).name.lower()
    for packed in PACKED:
        if name.endswith(packed):
            inner = Path(name.removesuffix(packed)).suffix
            return inner if inner in ENDINGS[:-1] else ""
    return Path(name).suffix if Path(name).suffix in ENDINGS else ""


def scan(path: str | Path) -> Records:
    """The source; SourceError where there is no such file."""
    path = Path(path)
    if not ending(path):
        allowed = f"{', '.join(ENDINGS)}, and all but Parquet with {' or '.join(PACKED)}"
        raise SourceError(f"{path}: not a file of records by its name; allowed: {allowed}", path=path)
    with _opening(path):
        found = os.stat(path)
    if not path.is_file():
        raise SourceError(f"{path}: not a regular file", path=path)
    return Records(path, found.st_size, found.st_mtime_ns)


def text_maker(template: str | None) -> Callable[[Record], str | None]:
    """Record -> the text that it is compared by; None where it has none.

    template  "{instruction} {output}": fields in braces, a missing one is empty; None: the first of LAYOUTS whose
              fields the record has, or a chat of CHATS
    """
    if template is None:
        return _text_by_layout
    parts = template_parts(template)

    def fill(record: Record) -> str | None:
        found = ["" if name is None else _plain(record.get(name)) for _, name in parts]
        filled = "".join(before + value for (before, _), value in zip(parts, found, strict=True))
        return filled.strip()[:MAX_TEXT] if any(found) else None

    return fill


def template_parts(template: object) -> list[tuple[str, str | None]]:
    """Text and the field after it, None at the end; OptionError where it is no template."""
    reason, parts = "", []
    try:
        parts = list(string.Formatter().parse(template)) if isinstance(template, str) else []
    except ValueError as error:
        reason = f": {error}"
    fields = [name for _, name, _, _ in parts if name is not None]
    if not fields or "" in fields or any(form or conversion for _, _, form, conversion in parts):
        raise OptionError(f"text: {template!r}{reason}; expected fields in braces, as in '{{prompt}} {{answer}}'")
    return [(before, name) for before, name, _, _ in parts]


def _text_by_layout(record: Record) -> str | None:
    for layout in LAYOUTS:
        if all(name in record or name in _OPTIONAL for name in layout):
            return _together(record.get(name) for name in layout)
    for name in CHATS:
        turns = record.get(name)
        if isinstance(turns, list):
            return _together(_of_turn(turn) for turn in turns)
    return None


def _of_turn(turn: Any) -> Any:
    if not isinstance(turn, dict):
        return turn
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):  # of parts, some of which have text
        return " ".join(_plain(part.get("text")) for part in content if isinstance(part, dict))
    return content


def _together(values: Iterator[Any]) -> str | None:
    text = " ".join(filter(None, map(_plain, values))).strip()
    return text[:MAX_TEXT] or None


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


class _Json:
    """JSON as RFC 8259 has it; what Python reads otherwise, or loses, is a problem of the record."""

    def __init__(self) -> None:
        self._problem = ""
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float
        )

    def entry(self, name: str, text: str, start: int) -> tuple[Entry, int]:
        """What stands at `start`, and where it ends; ValueError where it is no JSON."""
        self._problem = ""
        try:
            value, end = self._decoder.raw_decode(text, start)
        except RecursionError:
            raise ValueError("nested too deep") from None
        except ValueError as error:
            if isinstance(error, json.JSONDecodeError):
                raise
            raise ValueError(f"an integer of more than {sys.get_int_max_str_digits():,} digits") from None
        if not isinstance(value, dict):
            self._problem = f"{_KINDS[type(value)]}; expected an object with fields"
        return Entry(name, None if self._problem else value, self._problem), end

    def _object(self, pairs: list[tuple[str, Any]]) -> Record:
        value = dict(pairs)
        if len(value) != len(pairs):
            names = [name for name, _ in pairs]
            self._problem = f"the field {next(n for n in names if names.count(n) > 1)[:80]!r} occurs twice"
        return value

    def _constant(self, name: str) -> None:
        self._problem = f"{name} is not JSON; null is"

    def _float(self, text: str) -> float:
        number = float(text)
        if abs(number) == float("inf"):
            self._problem = f"{text[:40]} is out of range"
        return number


_KINDS = {list: "a list", str: "text", int: "a number", float: "a number", bool: "a truth value", type(None): "null"}


def _lines(file: IO[bytes]) -> Iterator[Entry]:
    parser, number = _Json(), 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        name = f"line {number}"
        if len(line) > MAX_LINE:
            while not line.endswith(b"\n") and (line := file.readline(MAX_LINE)):
                pass
            yield Entry(name, None, f"more than {MAX_LINE:,} bytes")
            continue
        try:
            text = line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").decode().strip(" \t\r\n")
            if not text:
                continue
            entry, end = parser.entry(name, text, 0)
            if end < len(text):
                entry = Entry(name, None, f"something after the object, at character {end + 1}")
        except UnicodeDecodeError as error:
            entry = Entry(name, None, f"not UTF-8 at byte {error.start + 1}")
        except ValueError as error:
            entry = Entry(name, None, f"not JSON: {error}")
        yield entry


def _elements(file: IO[bytes], path: Path) -> Iterator[Entry]:
    """Of a JSON array, which is held in memory; one that is broken cannot be read beyond that place."""
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not UTF-8 at byte {error.start + 1}", path=path) from None
    parser, blank = _Json(), re.compile(r"[ \t\r\n]*")

    def after(place: int) -> int:
        found = blank.match(text, place)
        return found.end() if found else place

    place, number = after(after(0) + 1), 0
    try:
        while text[place : place + 1] != "]" or number:
            entry, place = parser.entry(f"record {number}", text, place)
            yield entry
            number, place = number + 1, after(place)
            if text[place : place + 1] == "]":
                break
            if text[place : place + 1] != ",":
                raise ValueError("expected , or ]")
            place = after(place + 1)
    except ValueError as error:
        line = text.count("\n", 0, place) + 1
        raise SourceError(f"{path}: broken in record {number}, line {line}: {error}", path=path) from None
    if after(place + 1) != len(text):
        raise SourceError(f"{path}: something stands after the array", path=path)


def _rows(path: Path) -> Iterator[Entry]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise OptionError(f"{path}: Parquet needs pyarrow: pip install 'dqcodec[text]' ({error})") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) != len(names):
                raise ValueError("two columns have the same name")
            schema, number = _without_nanoseconds(file.schema_arrow), 0
            for batch in file.iter_batches(1024):
                for row in pyarrow.Table.from_batches([batch]).cast(schema).to_pylist(maps_as_pydicts="strict"):
                    yield Entry(f"row {number}", row)
                    number += 1
    except (pyarrow.ArrowException, KeyError, ValueError, OverflowError) as error:
        raise SourceError(f"{path}: {str(error).splitlines()[0]}", path=path) from None


def _without_nanoseconds(schema: Any) -> Any:
    """Python's datetime has microseconds: those of timestamps that need more are an error of the cast."""
    import pyarrow

    for number, field in enumerate(schema):
        if pyarrow.types.is_timestamp(field.type) and field.type.unit == "ns":
            schema = schema.set(number, field.with_type(pyarrow.timestamp("us", field.type.tz)))
    return schema


def _open(path: Path) -> IO[bytes]:
    name = path.name.lower()
    if name.endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if name.endswith(".zst"):
        return io.BufferedReader(_Zstd(path))
    return open(path, "rb")


class _Zstd(io.RawIOBase):
    """Frames of zstd as one file. zstandard's own reader takes a file that is cut off for one that ends there."""

    def __init__(self, path: Path) -> None:
        import zstandard

        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        self._frame: Any = None  # that is not at its end
        self._packed, self._plain = b"", io.BytesIO()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not (size := self._plain.readinto(buffer)):
            self._packed = self._packed or self._file.read(1 << 12)  # few: they may become a lot
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the file is cut off")
                return 0
            frame = self._frame or self._decompressor.decompressobj()
            self._plain = io.BytesIO(frame.decompress(self._packed))
            self._packed, self._frame = (frame.unused_data, None) if frame.eof else (b"", frame)
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    """What cannot be read is a SourceError."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise SourceError(f"{path}: {reason}", path=path) from error
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        raise SourceError(f"{path}: {error}", path=path) from None
