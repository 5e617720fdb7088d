"""A .dqz on a server, through fsspec: few requests, tried again where they fail, of one version of the file only."""

from __future__ import annotations

import asyncio
import bisect
import io
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from dqcodec.container.cache import Cache
from dqcodec.container.storage import Array, Range, Storage
from dqcodec.errors import FormatError, OptionError
from dqcodec.parallel import stopped

T = TypeVar("T")

_TAIL = 256 << 10  # fetched first: the directory, and all columns of a small file
_GAP = 64 << 10  # bytes between two ranges that are cheaper to fetch than to leave out
_AHEAD = 4 << 20  # fetched at once where a file is read from front to back
_WEB = ("http://", "https://")
_TRIES = 5
_DELAY = 0.2  # seconds before the second try; doubled for each further one
_LOOK = 0.1  # seconds after which a thread that waits for a server sees that nobody waits for it any more
_VERSIONS = ("ETag", "etag", "Last-Modified", "LastModified", "last_modified", "updated", "mtime", "created")

# A forked process must not close the connections that it inherits: they belong to its parent's event loop. So no file
# system is ever dropped; fsspec keeps them too, but only until the first fork.
_filesystems: set[Any] = set()


class Remote(Storage):
    """A file at a URL that fsspec knows.

    Raises FileNotFoundError, PermissionError, or ConnectionError when _TRIES tries failed; FormatError when the file
    was replaced since it was opened; OptionError where packages are missing. Each names the URL.
    """

    def __init__(self, url: str, cache: Path | None = None) -> None:
        self.url = url
        self._filesystem, self._path, self._concurrent = _connect(url)
        # File systems with a number of retries of their own are left to it.
        self._tries = 1 if hasattr(self._filesystem, "retries") else _TRIES
        self._web = url.startswith(_WEB)
        self.size, self._version = self._look()
        self._options = self._web_options() if self._web else {}
        self._held: list[tuple[int, bytes]] = []  # what was fetched last: first bytes, in order, and the bytes
        self._end = -1  # of the last read
        self._opening = False
        if cache is not None and not self._version:
            raise OptionError(
                f"cache: {url} has neither ETag nor time, so a copy could be out of date; leave cache out"
            )
        self._cache = None if cache is None else Cache(cache, url, self.size, self._version)

    def read_many(self, ranges: Array) -> Iterator[bytes]:
        wanted: list[Range] = [(start, size) for start, size in ranges.tolist()]
        known = [self._known(start, size) for start, size in wanted]
        missing = [each for each, data in zip(wanted, known, strict=True) if data is None]
        fetched = self._load(missing, wanted) if missing else []
        self._end = max((start + size for start, size in wanted), default=-1)
        for (start, size), data in zip(wanted, known, strict=True):
            found = _cut(fetched, start, size) if data is None else data
            assert found is not None  # _load fetches all that is missing
            yield found

    def read_again(self, start: int, size: int) -> bytes:
        self._held = []
        if self._cache is not None:
            self._cache.forget(*self._cache.widen(start, size))
        if self._look() != (self.size, self._version):
            raise self._replaced()
        return self.read(start, size)

    @contextmanager
    def opening(self) -> Iterator[None]:
        self._opening = True
        try:
            self.expect([(max(0, self.size - _TAIL), min(_TAIL, self.size))])
            yield
        except FormatError:
            if self._cache is not None:  # whatever is wrong, the next try begins anew
                self._cache.forget(0, self.size)
            raise
        finally:
            self._opening, self._held, self._end = False, [], -1

    def expect(self, ranges: Sequence[Range]) -> None:
        missing = [wanted for wanted in ranges if self._known(*wanted) is None]
        if missing:
            self._load(missing, ())

    def close(self) -> None:
        self._held = []
        if self._cache is not None:
            self._cache.close()

    def _known(self, start: int, size: int) -> bytes | None:
        """A range from memory or the cache."""
        if not size:
            return b""
        found = _cut(self._held, start, size)
        return self._cache.read(start, size) if found is None and self._cache is not None else found

    def _load(self, missing: Sequence[Range], ranges: Sequence[Range]) -> list[tuple[int, bytes]]:
        """Fetch the missing ones of some ranges, more where the reading goes on where it last ended."""
        spans, whole = _merge(missing), _merge(ranges)
        if len(whole) == 1 and whole[0][0] <= self._end < sum(whole[0]):
            start, size = spans[0][0], sum(spans[-1]) - spans[0][0]
            spans = [(start, min(max(size, _AHEAD), self.size - start))]
        if self._cache is not None:
            spans = _merge([self._cache.widen(*span) for span in spans])
        blocks = [(start, data) for (start, _), data in zip(spans, self._fetch(spans), strict=True)]
        if self._cache is not None:
            for start, data in blocks:
                self._cache.write(start, data)
        else:
            self._held = sorted(self._held + blocks) if self._opening else blocks
        return blocks

    def _fetch(self, spans: Sequence[Range]) -> list[bytes]:
        """The bytes of ranges, one request each, several at a time."""

        def run(spans: Sequence[Range]) -> list[Any]:
            return [
                ConnectionError(f"sent {len(data)} of {size} bytes")
                if isinstance(data, bytes) and len(data) != size
                else data
                for data, (_, size) in zip(self._cat(spans), spans, strict=True)
            ]

        try:
            return self._persist(run, spans)
        except ConnectionError:
            with suppress(OSError):
                if self._look(tries=1) != (self.size, self._version):
                    raise self._replaced() from None
            raise

    def _look(self, tries: int = 0) -> tuple[int, str]:
        """Size and version of the file on the server now; the version is empty where the server states none."""

        def run(_: Sequence[str]) -> list[Any]:
            try:
                self._filesystem.invalidate_cache(self._path)
                filesystem, path = self._filesystem, self._path
                return [self._wait(filesystem._info(path)) if self._concurrent else filesystem.info(path)]
            except Exception as error:
                return [error]

        [info] = self._persist(run, [self.url], tries)
        if info.get("type") == "directory":
            raise FormatError("a folder, not a file")
        if info.get("size") is None:
            raise OSError(f"{self.url}: the server does not state the file's size; download the file and open that")
        return int(info["size"]), _version(info)

    def _cat(self, spans: Sequence[Range]) -> list[Any]:
        """The bytes of ranges, or an exception in their place."""
        filesystem, path = self._filesystem, self._path
        starts, ends = [start for start, _ in spans], [start + size for start, size in spans]
        if not self._concurrent:
            return list(filesystem.cat_ranges([path] * len(spans), starts, ends, on_error="return", **self._options))

        async def requests() -> list[Any]:  # all end with this one; those of `_cat_ranges` would go on
            tasks = [
                filesystem._cat_file(path, start=start, end=end, **self._options)
                for start, end in zip(starts, ends, strict=True)
            ]
            return await asyncio.gather(*tasks, return_exceptions=True)

        return self._wait(requests())

    def _wait(self, task: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine of the file system; CancelledError, and nothing left of it, once nobody waits."""
        future = asyncio.run_coroutine_threadsafe(task, self._filesystem.loop)
        try:
            while not stopped():
                if wait([future], _LOOK).done:
                    return future.result()
            raise CancelledError
        finally:
            future.cancel()

    def _persist(self, run: Callable[[Sequence[T]], list[Any]], tasks: Sequence[T], tries: int = 0) -> list[Any]:
        """The results of tasks; `run` gives a result or an exception for each, and gets those that failed again."""
        tries = tries or self._tries
        done: dict[T, Any] = {}
        reason = ""
        for attempt in range(tries):
            if attempt:
                time.sleep(_DELAY * 2 ** (attempt - 1))
            left = [task for task in tasks if task not in done]
            for task, result in zip(left, run(left), strict=True):
                if isinstance(result, BaseException):
                    error = self._said(result)
                    self._raise_final(error)
                    reason = " ".join(str(error).split()) or type(error).__name__
                else:
                    done[task] = result
            if len(done) == len(tasks):
                return [done[task] for task in tasks]
        after = f" after {tries} tries" if tries > 1 else ""
        raise ConnectionError(f"{self.url}: cannot be read{after}: {reason}. Check the connection and try again")

    def _raise_final(self, error: BaseException) -> None:
        """Raise where another try would not help."""
        final = FormatError | io.UnsupportedOperation | CancelledError
        if isinstance(error, final) or not isinstance(error, Exception):
            raise error
        status = getattr(error, "status", 0)
        if status in (404, 410) or isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"{self.url}: there is no such file; check the address") from None
        if status in (401, 403) or isinstance(error, PermissionError):
            raise PermissionError(f"{self.url}: access was denied; check the address and your credentials") from None
        if 400 <= status < 500 and status not in (408, 425, 429):
            raise OSError(f"{self.url}: the server answers {status}; check the address") from None

    def _said(self, error: BaseException) -> BaseException:
        """What a web server said: fsspec hides it behind a FileNotFoundError."""
        hidden = self._web and isinstance(error, FileNotFoundError) and error.__cause__ is not None
        return error.__cause__ or error if hidden else error

    def _replaced(self) -> FormatError:
        return FormatError(f"{self.url}: replaced by another file while it was in use; open it anew", path=self.url)

    def _web_options(self) -> dict[str, Any]:
        """For each request to a web server: no packing on the way, and nothing but a range of the same file."""
        headers = {**self._filesystem.kwargs.get("headers", {}), "Accept-Encoding": "identity"}

        async def check(response: Any) -> None:
            error: Exception | None = None
            if response.status == 206:
                total = response.headers.get("Content-Range", "").rpartition("/")[2]
                same = total in ("", "*", str(self.size)) and _version(response.headers) == self._version
                error = None if same else self._replaced()
            elif response.status == 416:
                error = self._replaced()
            elif response.ok:
                error = io.UnsupportedOperation(
                    f"{self.url}: the server sends whole files only (it ignores Range); download the file and open that"
                )
            if error is not None:
                response.close()
                raise error

        return {"headers": headers, "raise_for_status": check}


def _connect(url: str) -> tuple[Any, str, bool]:
    """File system and path of a URL, and whether its methods are coroutines at bottom."""
    try:
        import fsspec
        from fsspec.asyn import AsyncFileSystem

        filesystem, path = fsspec.url_to_fs(url, **(_web_arguments() if url.startswith(_WEB) else {}))
    except ImportError as error:
        raise OptionError(
            f"reading {url} needs more packages: pip install 'dqcodec[remote]' ({error})", path=url
        ) from None
    except ValueError as error:
        raise OptionError(f"reading {url}: {error}", path=url) from None
    _filesystems.add(filesystem)
    return filesystem, path, isinstance(filesystem, AsyncFileSystem)


def _web_arguments() -> dict[str, Any]:
    """A web server that says nothing for so long is tried again, however long the whole takes."""
    import aiohttp
    from fsspec.config import conf

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
    client = {**conf.get("http", {}).get("client_kwargs", {}), **conf.get("https", {}).get("client_kwargs", {})}
    return {"client_kwargs": {"timeout": timeout, **client}}


def _version(info: Mapping[str, Any]) -> str:
    return next((str(info[name]) for name in _VERSIONS if info.get(name)), "")


def _merge(ranges: Sequence[Range]) -> list[Range]:
    """Disjoint ranges in order that contain all those given, and gaps below _GAP."""
    merged: list[Range] = []
    for start, size in sorted(ranges):
        if merged and start - sum(merged[-1]) < _GAP:
            first, before = merged[-1]
            merged[-1] = first, max(before, start + size - first)
        else:
            merged.append((start, size))
    return merged


def _cut(blocks: Sequence[tuple[int, bytes]], start: int, size: int) -> bytes | None:
    """A range from blocks in order, None where no one of them has all of it."""
    place = bisect.bisect_right(blocks, start, key=lambda block: block[0]) - 1
    if place < 0:
        return None
    first, data = blocks[place]
    return data[start - first : start - first + size] if start + size <= first + len(data) else None
