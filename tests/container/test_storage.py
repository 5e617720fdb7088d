"""A .dqz on a server: the same samples as from the disk, in few requests, whatever the server does."""

import asyncio
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import GOLDEN, noisy_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dqcodec
from dqcodec.container import cache as caches
from dqcodec.container import remote, storage
from dqcodec.errors import ChecksumError, DQZError, FormatError, OptionError, OutputError, TruncatedError
from dqcodec.inspection import info, verify
from dqcodec.parallel import ordered_map

RGB = GOLDEN / "pixel-rgb" / "file.dqz"


@pytest.mark.parametrize("compiled", [True, False])
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ranges=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 400)), max_size=600), size=st.integers(0, 5000))
def test_ranges_of_a_local_file(compiled, ranges, size, tmp_path, monkeypatch):
    """Those before the first that the file does not have come as they are, by one call for many or one for each."""
    monkeypatch.setattr(storage, "beside_others", lambda: compiled)
    content = np.random.default_rng(0).bytes(size)
    (tmp_path / "file").write_bytes(content)
    local = storage.Local(tmp_path / "file")
    found = local.read_many(np.array(ranges, np.int64).reshape(-1, 2))
    for start, count in ranges:
        if start + count > size and count:
            with pytest.raises(TruncatedError, match=r"the file ends at byte \d+, \d+ bytes too early"):
                next(found)
            break
        assert next(found) == content[start : start + count]
    else:
        assert next(found, None) is None
    local.close()


def test_a_file_that_is_cut_while_its_samples_are_read(tmp_path, monkeypatch):
    """The samples that are still there come, and the first that is not is named."""
    monkeypatch.setattr(storage, "beside_others", lambda: True)
    path = tmp_path / "file"
    path.write_bytes(bytes(range(250)) * 40)
    local = storage.Local(path)
    places = np.array([(start, 100) for start in range(0, 10_000, 100)])
    found = local.read_many(places)
    assert next(found) == path.read_bytes()[:100]
    os.truncate(path, 9_950)
    assert len(list(local.read_many(places[:99]))) == 99
    with pytest.raises(TruncatedError, match="the file ends at byte 9950, 50 bytes too early"):
        list(local.read_many(places))
    local.close()


def test_only_a_loaders_threads_compile(monkeypatch, noisy, expected):
    """A process that is forked to read would wait for ever where another thread compiled when it was forked."""
    monkeypatch.setitem(sys.modules, "dqcodec.container.gather", None)
    with dqcodec.open(noisy) as file:
        np.testing.assert_array_equal(file.images(range(64)), expected[:64])
        with pytest.raises(ImportError):
            list(ordered_map(file.images, [range(64)], 1))


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A file of 240 samples and 0.7 MB, more than what opening fetches."""
    folder = noisy_folder(tmp_path_factory.mktemp("noisy"), 240, 1)
    path = tmp_path_factory.mktemp("out") / "noisy.dqz"
    dqcodec.encode(folder, path, dqcodec.EncodeOptions(keep=1, drop=0, transform="pixel", bits=8))
    assert path.stat().st_size > 2 * remote._TAIL
    return path


@pytest.fixture(scope="module")
def expected(noisy):
    with dqcodec.open(noisy) as file:
        return file.images(range(len(file)))


def first_byte(wanted):
    """Of a Range header."""
    return int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; each request takes the next entry of `server.faults`, if there is one."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append((self.command, wanted))
        fault = server.faults.popleft() if server.faults else server.always
        data = server.files.get(self.path)
        if data is None:
            fault = fault or 404
        if fault == "silence" or first_byte(wanted) >= server.silent_from:
            server.ended.wait()
            self.close_connection = True
            return
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        if isinstance(fault, int):
            self.send_response(fault)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        total, status = len(data), 200
        if wanted is not None and fault != "whole":
            first, last = wanted.removeprefix("bytes=").split("-")
            first, last = int(first), min(int(last), total - 1)
            status = 206 if first < total else 416
            data = data[first : last + 1] if first < total else b""
        if fault == "flip" and data:
            data = bytes([data[0] ^ 1]) + data[1:]
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if server.tag:
            self.send_header("ETag", server.tag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        self.end_headers()
        if self.command == "GET":
            cut = fault == "cut"
            self.wfile.write(data[: len(data) // 2] if cut else data)
            server.sent += len(data)
            self.close_connection = self.close_connection or cut

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.faults, self.always = {}, [], deque(), None
        self.tag, self.sent, self.ended = '"1"', 0, threading.Event()
        self.silent_from = float("inf")  # requests for what begins at this byte or later are never answered

    def serve(self, path):
        self.files["/file.dqz"] = path.read_bytes()
        return f"http://127.0.0.1:{self.server_port}/file.dqz"

    def handle_error(self, *_):  # a client that hangs up
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(remote, "_DELAY", 0.01)
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.ended.set()
        server.shutdown()


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def silent_requests(server):
    return sum(first_byte(wanted) >= server.silent_from for _, wanted in server.requests)


def shuffled(n, seed=0):
    return np.random.default_rng(seed).permutation(n)


INTERRUPTED = """
import signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
import dqcodec
loader = dqcodec.DQZLoader(sys.argv[1], 2, workers=4, device="cpu")
try:
    while True:
        for _ in loader:
            print("step", flush=True)
except KeyboardInterrupt:
    pass
print("left", sorted({thread.name for thread in threading.enumerate()}), flush=True)
"""


def test_ctrl_c_while_the_server_says_nothing(server, noisy):
    """The loader's threads wait for answers that would take minutes to be given up: they are not waited for."""
    command = [sys.executable, "-c", INTERRUPTED, server.serve(noisy)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "step\n"
    server.always = "silence"
    asked = len(server.requests)
    wait_for(lambda: len(server.requests) >= asked + 4)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=20)
    assert out.splitlines()[-1] == "left ['MainThread', 'fsspecIO']"
    assert (error, process.returncode) == ("", 0)


ENDING = """
import sys, dqcodec
loader = dqcodec.DQZLoader(sys.argv[1], 8, shuffle=False, workers=4, device="cpu")
print("open", flush=True)
sys.stdin.readline()
batches = iter(loader)
next(batches)
sys.stdin.readline()
"""


def test_a_script_that_ends_while_the_server_says_nothing(server, noisy):
    """Its iterator lives as long as the interpreter, which waits for threads first."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", ENDING, server.serve(noisy)], text=True, **pipes)
    assert process.stdout.readline() == "open\n"
    with dqcodec.open(noisy) as file:
        server.silent_from = int(file.reader.offsets[8])
    process.stdin.write("\n")
    process.stdin.flush()
    wait_for(lambda: silent_requests(server) >= 3)
    assert process.communicate("\n", timeout=20) == ("", "")
    assert process.returncode == 0


def test_the_end_of_a_loop_leaves_no_request(server, noisy, expected, monkeypatch):
    """And the next one finds the server free."""
    monkeypatch.setattr(remote, "_AHEAD", 0)
    dataset = dqcodec.DQZDataset(server.serve(noisy))
    server.silent_from = int(dataset.file.reader.offsets[8])
    batches = iter(dqcodec.DQZLoader(dataset, 8, shuffle=False, workers=4))
    next(batches)
    wait_for(lambda: silent_requests(server) >= 3)
    batches.close()
    loop = dataset.file.reader._storage._filesystem.loop
    wait_for(lambda: not asyncio.all_tasks(loop))
    server.silent_from = float("inf")
    images = np.concatenate([images for images, _ in dqcodec.DQZLoader(dataset, 8, shuffle=False, workers=4)])
    np.testing.assert_array_equal(images, expected)


# ---- the same samples


@pytest.mark.parametrize("name", ["pixel-rgb", "pixel-grey", "pixel-large"])
def test_golden_files(server, name):
    path = GOLDEN / name / "file.dqz"
    with dqcodec.open(path) as local, dqcodec.open(server.serve(path)) as file:
        order = shuffled(len(local))
        np.testing.assert_array_equal(file.images(order), local.images(order))
        for column, values in local.reader.columns.items():
            np.testing.assert_array_equal(file.reader.columns[column], values)
        assert file.reader.identity == local.reader.identity
        assert file.reader.fingerprint() == local.fingerprint


def test_random_order(server, noisy, expected):
    with dqcodec.open(server.serve(noisy)) as file:
        for batch in np.array_split(shuffled(240), 7):
            np.testing.assert_array_equal(file.images(batch), expected[batch])
        for index in shuffled(240, 1)[:20]:
            np.testing.assert_array_equal(file[index][0], expected[index])
        assert file.images([]).shape == (0, 3, 32, 32)


def test_the_whole_pipeline(server, encoded):
    url = server.serve(encoded)
    with dqcodec.open(encoded) as local, dqcodec.open(url) as file:
        np.testing.assert_array_equal(file.images(range(len(file))), local.images(range(len(file))))
    assert verify(url).ok
    assert info(url).members == info(encoded).members


def test_several_threads(server, noisy, expected):
    with dqcodec.open(server.serve(noisy)) as file, ThreadPoolExecutor(4) as pool:
        batches = [shuffled(240, seed)[:32] for seed in range(12)]
        batches += [np.arange(start, start + 20) for start in range(0, 240, 20)]
        for batch, images in zip(batches, pool.map(file.images, batches), strict=True):
            np.testing.assert_array_equal(images, expected[batch])


def test_any_file_system(tmp_path, noisy, expected):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/storage-test/file.dqz", noisy.read_bytes())
    try:
        for url in ("memory://storage-test/file.dqz", noisy.as_uri()):
            with dqcodec.open(url) as file:
                np.testing.assert_array_equal(file.images(shuffled(240)), expected[shuffled(240)])
        with pytest.raises(FormatError, match="a folder, not a file"):
            dqcodec.open("memory://storage-test")
    finally:
        memory.rm("/storage-test", recursive=True)


def test_a_folder_of_parts(server, tmp_path):
    """A URL that ends with a slash: the same samples as from the folder itself, by a loader with threads too."""
    options = dqcodec.EncodeOptions(keep=1, drop=0, shard_size=16_000)
    dqcodec.encode(noisy_folder(tmp_path / "photos", 40, 1), tmp_path / "out", options)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(names) > 2
    for name in names:
        server.files[f"/out/{name}"] = (tmp_path / "out" / name).read_bytes()
    url = f"http://127.0.0.1:{server.server_port}/out/"
    here = dqcodec.DQZDataset(tmp_path / "out")
    there = dqcodec.DQZDataset(url, cache=tmp_path / "cache")
    order = shuffled(40).tolist()
    np.testing.assert_array_equal(there.images(order).numpy(), here.images(order).numpy())
    for (a, _), (b, _) in zip(dqcodec.DQZLoader(there, 7), dqcodec.DQZLoader(here, 7), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert verify(url).ok
    del server.files[f"/out/{names[-1]}"]
    with pytest.raises(FormatError, match=r"/out/part-0000\d\.dqz: missing, index\.json names it"):
        dqcodec.open(url)
    server.files.clear()
    with pytest.raises(FormatError, match=r"/out/: a folder without index\.json"):
        dqcodec.open(url)


# ---- few requests


def test_requests_of_a_small_file(server):
    dqcodec.open(server.serve(RGB)).close()
    assert [method for method, _ in server.requests] == ["HEAD", "GET"]


@pytest.mark.parametrize("tail", [100, 1000, remote._TAIL])
def test_requests_of_opening(server, noisy, monkeypatch, tail):
    monkeypatch.setattr(remote, "_TAIL", tail)
    with dqcodec.open(server.serve(noisy)) as file:
        assert len(server.requests) <= 4 + (tail < 1000)
        assert server.sent < noisy.stat().st_size
        assert file.reader._storage._held == []


def test_requests_of_a_batch(server, noisy, expected):
    with dqcodec.open(server.serve(noisy)) as file:
        server.requests.clear()
        file.images(shuffled(240))
        assert len(server.requests) == 1
        file.images([0, 239])
        assert len(server.requests) <= 3


def test_reading_ahead(server, noisy, expected, monkeypatch):
    monkeypatch.setattr(remote, "_AHEAD", 200_000)
    with dqcodec.open(server.serve(noisy)) as file:
        server.requests.clear()
        for index in range(240):
            np.testing.assert_array_equal(file[index][0], expected[index])
        size = int(file.reader.offsets[-1])
        assert len(server.requests) <= 2 + -(-size // 150_000)
        assert server.sent < 1.7 * noisy.stat().st_size


# ---- failures


@pytest.mark.parametrize("fault", [503, 429, 500, "reset", "cut"])
def test_transient_failures(server, noisy, expected, fault):
    url = server.serve(noisy)
    server.faults.extend([fault, None, fault, fault, None])
    with dqcodec.open(url) as file:
        for batch in np.array_split(shuffled(240), 4):
            server.faults.extend([fault, fault])
            np.testing.assert_array_equal(file.images(batch), expected[batch])


@pytest.mark.parametrize("fault", [503, "reset", "cut"])
def test_lasting_failures(server, noisy, fault):
    url = server.serve(noisy)
    with dqcodec.open(url) as file:
        server.always = fault
        server.requests.clear()
        with pytest.raises(ConnectionError, match=r"file\.dqz: cannot be read after 5 tries: .+ try again"):
            file.images([3])
        assert sum(method == "GET" and wanted is not None for method, wanted in server.requests) in (
            5,
            10,
        )  # aiohttp tries a reset again
        with pytest.raises(ConnectionError):
            verify(url)
        server.always = None
        file.images([3])


def test_no_server(monkeypatch):
    monkeypatch.setattr(remote, "_DELAY", 0.01)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_port
    with pytest.raises(ConnectionError, match="cannot be read"):
        dqcodec.open(f"http://127.0.0.1:{port}/file.dqz")


@pytest.mark.parametrize(
    ("status", "kind", "match"),
    [(404, FileNotFoundError, "no such file"), (403, PermissionError, "denied"), (400, OSError, "answers 400")],
)
def test_final_failures_are_not_tried_again(server, status, kind, match):
    url = server.serve(RGB)
    server.always = status
    with pytest.raises(kind, match=match) as caught:
        dqcodec.open(url)
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(server.requests) <= 2  # fsspec asks by HEAD, then by GET


def test_a_server_without_ranges(server, noisy):
    url = server.serve(noisy)
    server.always = "whole"
    with pytest.raises(OSError, match=r"file\.dqz: the server sends whole files only"):
        dqcodec.open(url)
    assert len(server.requests) == 2


def test_not_a_dqz(server):
    url = server.serve(RGB)
    for content, kind in ((b"", TruncatedError), (b"<html>" * 20, FormatError), (RGB.read_bytes()[:-30], FormatError)):
        server.files["/file.dqz"] = content
        with pytest.raises(kind, match=url):
            dqcodec.open(url)
    assert "is this a .dqz" in verify(url).damage[0] or "cut off" in verify(url).damage[0]


def test_every_header_damaged(server, tmp_path):
    """A forged file costs no more over the network: an error, or the same data."""
    data = RGB.read_bytes()
    url = server.serve(RGB)
    with dqcodec.open(RGB) as file:
        wanted = file.images(range(len(file)))
    rng = np.random.default_rng(0)
    for place in rng.choice(len(data), 30, replace=False):
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.integers(8)
        server.files["/file.dqz"], server.tag = bytes(damaged), f'"{place}"'
        try:
            with dqcodec.open(url) as file:
                np.testing.assert_array_equal(file.images(range(len(file))), wanted)
        except DQZError as error:
            assert url in str(error)


def test_a_damaged_sample_is_named(server, golden_copy):
    with dqcodec.open(golden_copy) as file:
        place = file.reader.members["payload/c/0"].start + int(file.reader.offsets[5])
    data = bytearray(golden_copy.read_bytes())
    data[place] ^= 0x10
    golden_copy.write_bytes(data)
    url = server.serve(golden_copy)
    with dqcodec.open(url) as file, pytest.raises(ChecksumError, match=f"{url}: sample 5: payload bytes .* checksum"):
        file[5]
    found = verify(url)
    assert [index for index, _ in found.bad] == [5]


def test_damage_on_the_way_is_read_again(server, noisy, expected):
    with dqcodec.open(server.serve(noisy)) as file:
        server.faults.append("flip")
        np.testing.assert_array_equal(file[7][0], expected[7])


@pytest.mark.parametrize("tag", ['"2"', '"1"', ""])
@pytest.mark.parametrize("size", ["the same", "another", "nothing"])
def test_a_replaced_file(server, noisy, tag, size):
    """Noticed by its tag, its size, or at the latest by the checksum."""
    url = server.serve(noisy)
    server.tag = tag and '"1"'
    with dqcodec.open(url) as file:
        start = file.reader.members["payload/c/0"].start
        data = bytearray(noisy.read_bytes())
        for place in range(start, start + 600_000, 100):
            data[place] ^= 0xFF
        server.files["/file.dqz"] = {"the same": bytes(data), "another": bytes(data[:-5]), "nothing": b""}[size]
        server.tag = tag
        for batch in ([5], shuffled(240)[:20], range(30)):
            with pytest.raises(FormatError, match=f"{url}: .*(replaced by another|checksum)"):
                file.images(batch)


def test_another_process_refuses_a_replaced_file(server, noisy):
    file = dqcodec.open(server.serve(noisy))
    data = pickle.dumps(file)
    assert len(data) < 10_000
    with pickle.loads(data) as again:
        assert again.path == file.path
        again.images([1])
    server.serve(RGB)
    with pytest.raises(FormatError, match="replaced by another file"):
        pickle.loads(data).images([1])
    file.close()
    with pytest.raises(ValueError, match="is closed"):
        file.images([1])


# ---- the cache


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(remote, "_TAIL", 16 << 10)
    monkeypatch.setattr(caches, "BLOCK", 16 << 10)


def counted(server, file, order, expected):
    """Requests of reading all samples in some order, each right."""
    server.requests.clear()
    for batch in np.array_split(order, 9):
        np.testing.assert_array_equal(file.images(batch), expected[batch])
    return len(server.requests)


def test_the_second_epoch_makes_no_request(server, noisy, expected, tmp_path, small_blocks):
    url = server.serve(noisy)
    with dqcodec.open(url, cache=tmp_path / "new" / "cache") as file:
        assert counted(server, file, shuffled(240), expected) > 0
        assert counted(server, file, shuffled(240, 1), expected) == 0
        assert server.sent <= noisy.stat().st_size + remote._TAIL + caches.BLOCK
    server.requests.clear()
    with dqcodec.open(url, cache=str(tmp_path / "new" / "cache")) as file:
        assert [method for method, _ in server.requests] == ["HEAD"]
        assert counted(server, file, np.arange(240), expected) == 0


def test_a_replaced_file_is_fetched_anew(server, noisy, expected, tmp_path, small_blocks):
    url = server.serve(noisy)
    with dqcodec.open(url, cache=tmp_path) as file:
        file.images(range(240))
    server.serve(RGB)
    server.tag = '"2"'
    with dqcodec.open(url, cache=tmp_path) as file, dqcodec.open(RGB) as local:
        np.testing.assert_array_equal(file.images(range(21)), local.images(range(21)))
    server.serve(noisy)
    server.tag = '"1"'
    with dqcodec.open(url, cache=tmp_path) as file:
        assert counted(server, file, shuffled(240), expected) == 0


def test_a_damaged_cache(server, noisy, expected, tmp_path, small_blocks):
    """Any damage is fetched anew, before the file is opened and while it is open."""
    url = server.serve(noisy)
    with dqcodec.open(url, cache=tmp_path) as file:
        file.images(range(240))
    rng = np.random.default_rng(0)
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(path.suffix for path in whole) == [".bytes", ".crc32"]
    for path, content in whole.items():
        for kind in ("flip", "cut", "zero", "longer", "empty"):
            data = bytearray(content)
            if kind == "flip":
                for place in rng.integers(0, len(data), 5):
                    data[place] ^= 1 << rng.integers(8)
            data = {"cut": data[: len(data) // 3], "zero": bytes(len(data)), "longer": data + b"x", "empty": b""}.get(
                kind, data
            )
            path.write_bytes(data)
            with dqcodec.open(url, cache=tmp_path) as file:
                counted(server, file, shuffled(240), expected)
                path.write_bytes(data)  # and again, when its blocks are known to be good
                counted(server, file, shuffled(240, 1), expected)
    with dqcodec.open(url, cache=tmp_path) as file:
        shutil.rmtree(tmp_path)
        counted(server, file, shuffled(240), expected)


def test_damage_on_the_way_does_not_stay_in_the_cache(server, noisy, expected, tmp_path, small_blocks):
    url = server.serve(noisy)
    with dqcodec.open(url, cache=tmp_path) as file:
        server.faults.append("flip")
        counted(server, file, np.arange(240), expected)
    for path in tmp_path.iterdir():
        path.unlink()
    server.faults.extend([None, "flip", "flip", "flip"])
    with pytest.raises(FormatError):
        dqcodec.open(url, cache=tmp_path)
    server.faults.clear()
    with dqcodec.open(url, cache=tmp_path) as file:
        counted(server, file, np.arange(240), expected)


KILLED = """
import sys
import numpy as np
import dqcodec
from dqcodec.container import cache, remote
cache.BLOCK = remote._TAIL = 16 << 10
url, folder, seed = sys.argv[1:]
with dqcodec.open(url, cache=folder) as file:
    for index in np.random.default_rng(int(seed)).permutation(240):
        file[index]
print("done")
"""


def test_killed_processes_share_a_cache(server, noisy, expected, tmp_path, small_blocks):
    url = server.serve(noisy)
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(dqcodec.__file__))}

    def start(seed):
        command = [sys.executable, "-c", KILLED, url, str(tmp_path), str(seed)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)

    for seed in range(4):
        processes = [start(seed), start(seed + 10)]
        server.requests.clear()
        until = time.monotonic() + 30
        while len(server.requests) < 3 + seed and time.monotonic() < until:
            time.sleep(0.001)
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        with dqcodec.open(url, cache=tmp_path) as file:
            np.testing.assert_array_equal(file.images([seed, 100, 239]), expected[[seed, 100, 239]])
        for path in tmp_path.iterdir():
            path.unlink()
    processes = [start(0), start(1)]
    assert [process.communicate()[0] for process in processes] == [b"done\n", b"done\n"]
    with dqcodec.open(url, cache=tmp_path) as file:
        assert counted(server, file, shuffled(240), expected) == 0


def test_a_block_without_its_checksum_is_missing(tmp_path):
    data = np.random.default_rng(0).bytes(3 * caches.BLOCK - 7)

    def new():
        return caches.Cache(tmp_path, "http://host/a b?key=1", len(data), "1")

    first, second = new(), new()
    assert first.read(0, 10) is None
    first.write(caches.BLOCK, data[caches.BLOCK :])
    assert second.read(caches.BLOCK + 5, 1000) == data[caches.BLOCK + 5 :][:1000]
    assert second.read(caches.BLOCK - 1, 2) is None
    assert second.read(len(data) - 3, 3) == data[-3:]
    second.forget(caches.BLOCK, 1)
    assert new().read(caches.BLOCK, 1) is None
    assert new().read(2 * caches.BLOCK, 1) == data[2 * caches.BLOCK :][:1]
    assert all("key" not in path.name and path.name.startswith("a_b-") for path in tmp_path.iterdir())


def test_wrong_caches(server, noisy, tmp_path):
    with pytest.raises(OptionError, match=r"cache: .* given for the local file"):
        dqcodec.open(noisy, cache=tmp_path)
    url = server.serve(noisy)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cache: cannot write to .*; choose another folder"):
        dqcodec.open(url, cache=tmp_path / "file")
    server.tag = ""
    with pytest.raises(OptionError, match="neither ETag nor time"):
        dqcodec.open(url, cache=tmp_path)


# ---- torch


@pytest.mark.parametrize(("method", "cached"), [("fork", False), ("fork", True), ("spawn", True)])
def test_loader_workers(server, noisy, expected, tmp_path, method, cached):
    from torch.utils.data import DataLoader

    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    dataset = dqcodec.DQZDataset(server.serve(noisy), cache=tmp_path if cached else None)
    dataset.images(range(4))  # connections that the workers inherit
    loader = DataLoader(dataset, batch_size=32, shuffle=True, num_workers=2, multiprocessing_context=method)
    for _ in range(2 if method == "fork" else 1):
        found = np.concatenate([images.numpy() for images, _ in loader])
        assert sorted(image.tobytes() for image in found) == sorted(image.tobytes() for image in expected)
        np.testing.assert_array_equal(dataset.images([3, 200]).numpy(), expected[[3, 200]])  # while they live
    if method == "fork":
        server.serve(RGB)
        with pytest.raises(FormatError, match="replaced"):
            next(iter(loader))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_leaves_the_connections_of_its_parent_alone(server, noisy):
    with dqcodec.open(server.serve(noisy)) as file:
        file.images([100])
        child = os.fork()
        if not child:
            file.images([3])
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        server.requests.clear()
        file.images([200])
        assert len(server.requests) == 1  # a lost connection would be waited for, then tried again


def test_errors_of_workers(server, noisy):
    from torch.utils.data import DataLoader

    dataset = dqcodec.DQZDataset(server.serve(noisy))
    server.always = 403
    with pytest.raises(PermissionError, match="access was denied"):
        next(iter(DataLoader(dataset, num_workers=1)))


# ---- S3


@pytest.fixture(scope="module")
def bucket(noisy, tmp_path_factory):
    """An S3 server in a process of its own, with the noisy file in a bucket."""
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_MAX_ATTEMPTS": "2",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with pytest.MonkeyPatch.context() as patch, open(os.devnull, "wb") as nowhere:
        for name, value in values.items():
            patch.setenv(name, value)
        process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere)
        try:
            wait_for(lambda: listens(port))
            client = boto3.client("s3")
            client.create_bucket(Bucket="sets")
            client.upload_file(str(noisy), "sets", "a/noisy.dqz")
            yield client
        finally:
            process.terminate()
            process.wait()


def test_s3(bucket, noisy, expected, tmp_path):
    url = "s3://sets/a/noisy.dqz"
    for cache in (None, tmp_path, tmp_path):
        with dqcodec.open(url, cache=cache) as file:
            for batch in np.array_split(shuffled(240), 5):
                np.testing.assert_array_equal(file.images(batch), expected[batch])
            assert verify(url).ok
    with pytest.raises(FileNotFoundError, match=r"s3://sets/a/none\.dqz: there is no such file"):
        dqcodec.open("s3://sets/a/none.dqz")
    with pytest.raises(OSError, match="s3://none/a"):
        dqcodec.open("s3://none/a.dqz")


def test_s3_loader(bucket, noisy, expected):
    from torch.utils.data import DataLoader

    dataset = dqcodec.DQZDataset("s3://sets/a/noisy.dqz")
    dataset.images([0])
    loader = DataLoader(dataset, batch_size=50, num_workers=2, multiprocessing_context="fork")
    np.testing.assert_array_equal(np.concatenate([images.numpy() for images, _ in loader]), expected)
    np.testing.assert_array_equal(dataset.images([9]).numpy(), expected[[9]])


def test_s3_replaced(bucket, noisy, tmp_path, small_blocks):
    bucket.upload_file(str(noisy), "sets", "b.dqz")
    data = bytearray(noisy.read_bytes())
    with dqcodec.open("s3://sets/b.dqz", cache=tmp_path) as file:
        for place in range(100, 600_000, 100):
            data[place] ^= 0xFF
        bucket.put_object(Bucket="sets", Key="b.dqz", Body=bytes(data))
        with pytest.raises(FormatError, match=r"s3://sets/b\.dqz: replaced by another file"):
            file.images(range(100))
        bucket.put_object(Bucket="sets", Key="b.dqz", Body=b"short")
        with pytest.raises(FormatError, match=r"s3://sets/b\.dqz: replaced by another file"):
            file.images([1])
        bucket.upload_file(str(noisy), "sets", "b.dqz")
        file.images(range(240))  # what was fetched of the other file does not stay


# ---- what it is made of


def test_stream(noisy):
    data, source = noisy.read_bytes(), storage.connect(noisy)
    stream = storage.Stream(source)
    assert stream.read() == data
    assert stream.seek(-10, 2) == len(data) - 10
    assert stream.read(20) == data[-10:]
    assert stream.read(1) == b""
    assert stream.seek(5) == stream.tell() == 5
    assert stream.seek(5, 1) == 10
    assert stream.read(3) == data[10:13]
    with pytest.raises(OSError, match="position"):
        stream.seek(-1)
    source.close()


def test_merging():
    gap = remote._GAP
    assert remote._merge([]) == []
    assert remote._merge([(5, 5), (0, 5), (0, 2)]) == [(0, 10)]
    assert remote._merge([(0, 1), (gap, 1)]) == [(0, gap + 1)]
    assert remote._merge([(0, 1), (gap + 1, 1)]) == [(0, 1), (gap + 1, 1)]


def test_cutting():
    blocks = [(0, b"abc"), (10, b"klmno")]
    assert remote._cut(blocks, 1, 2) == b"bc"
    assert remote._cut(blocks, 12, 3) == b"mno"
    assert remote._cut(blocks, 2, 2) is None
    assert remote._cut(blocks, 9, 2) is None
    assert remote._cut([], 0, 1) is None


def test_what_is_a_url(tmp_path):
    for url in ("https://a/b", "s3://a", "simplecache::s3://a/b"):
        assert storage.place(url) == url
    for path in ("a/b.dqz", "/a:b//c.dqz", "c:\\x.dqz"):
        assert not isinstance(storage.place(path), str)


def test_missing_packages():
    code = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[2:]:
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Blocker())
import dqcodec
try:
    dqcodec.open(sys.argv[1])
except dqcodec.OptionError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(dqcodec.__file__))}
    for url, package in (("https://host/a.dqz", "fsspec"), ("https://host/a.dqz", "aiohttp"), ("s3://a/b", "s3fs")):
        command = [sys.executable, "-c", code, url, package]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"reading {url} needs more packages: pip install 'dqcodec[remote]'" in done.stdout
    with pytest.raises(OptionError, match="reading abc://x: Protocol not known"):
        dqcodec.open("abc://x")
