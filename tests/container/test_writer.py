import os
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from dataclasses import replace

import numpy as np
import pytest

from dqcodec.container.reader import Reader
from dqcodec.container.spec import Header
from dqcodec.container.writer import Writer, size_of, sweep
from dqcodec.errors import OutputError

HEADER = Header(0, 4, 4, 1, 4, 1, ("a", "b"))


def write(path, payloads, overwrite=False):
    n = len(payloads)
    with Writer(path, overwrite) as writer:
        for payload in payloads:
            writer.append(payload)
        return writer.finish(HEADER, {"label": np.arange(n) % 2, "bits": np.full(n, 6), "scale": np.zeros(n, int)})


def test_what_is_written_is_read(tmp_path):
    payloads = [bytes([k]) * (k + 1) for k in range(20)]
    header = write(tmp_path / "x.dqz", payloads)
    with Reader(tmp_path / "x.dqz") as reader:
        assert reader.read(range(20)) == payloads
        assert reader.read([7, 3, 7]) == [payloads[7], payloads[3], payloads[7]]
        assert reader.header == header
        assert reader.fingerprint() == header.fingerprint
        assert reader.columns["label"].tolist() == [0, 1] * 10


@pytest.mark.parametrize("count", [1, 2, 19, 500, 3000])
@pytest.mark.parametrize("length", [1, 37, 4000])
def test_the_size_is_known_before(tmp_path, count, length):
    rng = np.random.default_rng(count)
    lengths = rng.integers(1, 2 * length, count)
    columns = {"label": np.arange(count) % 2, "bits": np.full(count, 6), "scale": rng.integers(0, 9, count)}
    with Writer(tmp_path / "x.dqz") as writer:
        for size in lengths.tolist():
            writer.append(b"x" * size)  # whose checksums are equal where lengths are
        writer.finish(HEADER, columns)
    assert size_of(HEADER, lengths, columns) == (tmp_path / "x.dqz").stat().st_size


@pytest.mark.parametrize("limit", [30_000, 33_000, 36_000, 50_000])
def test_the_size_of_large_files_is_known_too(tmp_path, monkeypatch, limit):
    """Large is what ZIP keeps elsewhere, over 2 GiB; here it begins with these bytes."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    lengths = np.full(300, 100)
    columns = {"label": np.arange(300) % 2, "bits": np.full(300, 6), "scale": np.arange(300) % 256}
    with Writer(tmp_path / "x.dqz") as writer:
        for size in lengths.tolist():
            writer.append(bytes(size))
        writer.finish(HEADER, columns)
    assert size_of(HEADER, lengths, columns) == (tmp_path / "x.dqz").stat().st_size


def test_same_content_same_bytes(tmp_path):
    write(tmp_path / "x.dqz", [b"abc", b"d"])
    write(tmp_path / "y.dqz", [b"abc", b"d"])
    assert (tmp_path / "x.dqz").read_bytes() == (tmp_path / "y.dqz").read_bytes()


@pytest.mark.spec("R-13")
@pytest.mark.parametrize("size", [1, 3, 50, 399, 400, 5000])
def test_checksums_cost_one_percent(tmp_path, size):
    payloads = [bytes([k % 256]) * size for k in range(1001)]
    header = write(tmp_path / "x.dqz", payloads)
    g = header.checksum_group
    assert 4 / (g * size) <= 0.01
    assert g == 1 or 4 / ((g - 1) * size) > 0.01
    with Reader(tmp_path / "x.dqz") as reader:
        expected = [zlib.crc32(b"".join(payloads[j : j + g])) for j in range(0, 1001, g)]
        assert reader.columns["checksum"].tolist() == expected
        assert reader.read([1000, 0]) == [payloads[1000], payloads[0]]


@pytest.mark.spec("R-1", "R-2")
def test_the_archive_is_plain(tmp_path):
    write(tmp_path / "x.dqz", [b"abc", b"d"])
    with zipfile.ZipFile(tmp_path / "x.dqz") as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {info.flag_bits for info in archive.infolist()} == {0}
        assert archive.comment == b""


def test_left_without_finish_nothing_remains(tmp_path):
    with pytest.raises(RuntimeError, match="boom"), Writer(tmp_path / "x.dqz") as writer:
        writer.append(b"abc")
        raise RuntimeError("boom")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_stays(tmp_path):
    path = tmp_path / "x.dqz"
    write(path, [b"abc"])
    before = path.read_bytes()
    with pytest.raises(OutputError, match="exists; choose another name or add --overwrite"):
        Writer(path)
    with pytest.raises(RuntimeError), Writer(path, overwrite=True) as writer:
        writer.append(b"other")
        raise RuntimeError
    assert path.read_bytes() == before
    write(path, [b"other"], overwrite=True)
    assert path.read_bytes() != before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.dqz"]


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "x.dqz"
    with pytest.raises(OutputError, match="exists"), Writer(path) as writer:
        writer.append(b"abc")
        path.write_bytes(b"somebody else's")
        writer.finish(HEADER, {"label": [0], "bits": [6], "scale": [0]})
    assert path.read_bytes() == b"somebody else's"


def test_wrong_targets(tmp_path):
    with pytest.raises(OutputError, match="is a folder"):
        Writer(tmp_path)
    with pytest.raises(OutputError, match=r"the folder .*missing does not exist"):
        Writer(tmp_path / "missing" / "x.dqz")


def test_a_folder_that_cannot_be_written(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):  # root may write anywhere but here
        folder = type(tmp_path)("/proc/self")
    with pytest.raises(OutputError, match="cannot write"):
        Writer(folder / "x.dqz")


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
from dqcodec.errors import OutputError
sys.path.insert(0, {tests!r})
from test_writer import write
try:
    write({path!r}, [bytes(1000)] * {count}, overwrite=True)
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize("count", [150, 199, 5000])
def test_a_full_disk(tmp_path, count):
    """A real limit on the size of files, met in the payload, in the columns and at once."""
    path = tmp_path / "x.dqz"
    write(path, [b"old"])
    before = path.read_bytes()
    code = LIMITED.format(tests=os.path.dirname(__file__), path=str(path), count=count)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""
    if count == 150:  # fits
        assert path.read_bytes() != before
    else:
        assert "cannot write" in done.stdout
        assert "File too large" in done.stdout
        assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.dqz"]


ENDLESS = """
import sys
from dqcodec.container.writer import Writer, size_of
with Writer({path!r}, overwrite=True) as writer:
    print("ready", flush=True)
    while True:
        writer.append(bytes(1000))
"""


def test_a_killed_writer_leaves_the_old_file_whole(tmp_path):
    """What it leaves beside is removed by the next one, once it is old, and never while the writer lives."""
    path = tmp_path / "x.dqz"
    write(path, [b"old"])
    before = path.read_bytes()
    process = subprocess.Popen([sys.executable, "-c", ENDLESS.format(path=str(path))], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    time.sleep(0.1)
    (temporary,) = tmp_path.glob(".x.dqz.*.part")
    process.send_signal(signal.SIGSTOP)  # it writes no more, so that it looks old
    os.utime(temporary, (0, 0))
    sweep(path)
    assert temporary.exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert path.read_bytes() == before
    left = [entry.name for entry in tmp_path.iterdir() if entry != path]
    assert all(name.startswith(".x.dqz.") and name.endswith(".part") for name in left)
    for name in left:
        with pytest.raises(ValueError, match="no ZIP directory|too few"):
            Reader(tmp_path / name)
    os.utime(temporary)
    write(path, [b"new"], overwrite=True)
    assert temporary.exists()  # it might be one that is just being made
    os.utime(temporary, (0, 0))
    write(path, [b"newer"], overwrite=True)
    assert list(tmp_path.iterdir()) == [path]


def test_an_empty_sample_is_refused(tmp_path):
    with Writer(tmp_path / "x.dqz") as writer, pytest.raises(ValueError, match="at least one byte"):
        writer.append(b"")


def test_a_wrong_column_is_refused(tmp_path):
    with Writer(tmp_path / "x.dqz") as writer:
        writer.append(b"abc")
        with pytest.raises(ValueError, match="column label has shape"):
            writer.finish(HEADER, {"label": [0, 1], "bits": [6], "scale": [0]})
    assert list(tmp_path.iterdir()) == []


def test_a_header_that_no_reader_takes_is_not_written(tmp_path):
    with pytest.raises(OutputError, match="a header of"), Writer(tmp_path / "x.dqz") as writer:
        writer.append(b"abc")
        header = replace(HEADER, user={"notes": "a" * (17 << 20)})
        writer.finish(header, {"label": [0], "bits": [6], "scale": [0]})
    assert list(tmp_path.iterdir()) == []
