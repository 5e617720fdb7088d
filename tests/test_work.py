"""The work folder: what is found again, what is not, and runs that were killed."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from dqcodec import EncodeOptions, OutputError, encode
from dqcodec.sources.folder import scan
from dqcodec.stages.images import Images
from dqcodec.work import Work

pytestmark = pytest.mark.usefixtures("quick_proxy")

BLOCKS = [np.arange(k * 6, k * 6 + 6, dtype=np.float32).reshape(3, 2) for k in range(4)]
WHOLE = np.concatenate(BLOCKS)


def fill(rows, until=4):
    for block in BLOCKS[rows.done // 3 : until]:
        rows.append(block)


@pytest.mark.parametrize("kept", [True, False])
def test_rows_come_back(tmp_path, kept):
    folder = tmp_path / "a" / "work" if kept else None
    with Work(folder, tmp_path) as work:
        with work.rows("x", [1]) as rows:
            fill(rows)
            array = rows.finish()
        assert array.tolist() == WHOLE.tolist()
        with work.rows("x", [1]) as rows:
            assert rows.complete == kept
            if kept:
                assert rows.finish().tolist() == WHOLE.tolist()
        with work.rows("x", [2]) as rows:
            assert (rows.done, rows.complete) == (0, False)
    if kept:
        (path,) = (p for p in folder.glob("x-*.npy") if p.stat().st_size)
        assert np.load(path).tolist() == WHOLE.tolist()
        assert not list(folder.glob("*.part"))
    else:
        assert list(tmp_path.iterdir()) == []


def test_rows_go_on_where_an_exception_stopped_them(tmp_path):
    with Work(tmp_path, tmp_path) as work:
        with pytest.raises(KeyboardInterrupt), work.rows("x", 0) as rows:
            fill(rows, 2)
            rows.notes.append([7, "why"])
            raise KeyboardInterrupt
        with work.rows("x", 0) as rows:
            assert (rows.done, rows.notes, rows.complete) == (6, [[7, "why"]], False)
            fill(rows)
            assert rows.finish().tolist() == WHOLE.tolist()


def damaged(whole):
    """Every way in which a file may be damaged."""
    yield from (whole[:cut] for cut in range(0, len(whole), 7))
    for place in range(len(whole)):
        yield whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :]
    yield from (b"", b"{}", b"null", os.urandom(100))


def test_damaged_rows_are_made_again(tmp_path):
    """Whatever happens to data or state, the rows are whole in the end."""
    with Work(tmp_path, tmp_path) as work:
        with work.rows("x", 0) as rows:
            fill(rows, 2)
            header = rows._end(0)
        files = {path: path.read_bytes() for path in tmp_path.glob("x-*")}
        for file, whole in files.items():
            for bad in damaged(whole):
                for path, content in files.items():
                    path.write_bytes(bad if path == file else content)
                with work.rows("x", 0) as rows:
                    in_header = file.suffix == ".npy" and len(bad) == len(whole) and bad[header:] == whole[header:]
                    assert rows.done == (6 if in_header else 0)  # the header is written again
                    fill(rows)
                    assert rows.finish().tolist() == WHOLE.tolist()
                (data,) = tmp_path.glob("x-*.npy")
                assert np.load(data).tolist() == WHOLE.tolist()


def test_rows_of_another_shape_are_refused(tmp_path):
    with Work(None, tmp_path) as work, work.rows("x", 0) as rows:
        rows.append(BLOCKS[0])
        with pytest.raises(ValueError, match=r"rows of float64 \(2,\) after float32 \(2,\)"):
            rows.append(BLOCKS[1].astype(float))


def test_rows_without_values(tmp_path):
    with Work(None, tmp_path) as work, work.rows("x", 0) as rows:
        for _ in range(3):
            rows.append(np.zeros((1, 0), np.uint8))
        assert rows.finish().shape == (3, 0)


def test_arrays_come_back(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"a": np.arange(3), "b": np.array(2.5)}

    with Work(tmp_path, tmp_path) as work:
        for about in (1, 1, 2, 1):
            found = work.arrays("x", about, make)
            assert found["a"].tolist() == [0, 1, 2]
            assert float(found["b"]) == 2.5
        assert len(made) == 2


def test_damaged_arrays_are_made_again(tmp_path):
    arrays = {"a": np.arange(3), "b": np.array(["x", "yy"])}
    with Work(tmp_path, tmp_path) as work:
        work.arrays("x", 0, lambda: arrays)
        (file,) = tmp_path.glob("x-*.saved")
        for bad in damaged(file.read_bytes()):
            file.write_bytes(bad)
            found = work.arrays("x", 0, lambda: arrays)
            assert {name: array.tolist() for name, array in found.items()} == {"a": [0, 1, 2], "b": ["x", "yy"]}
        work.arrays("y", 0, lambda: {"c": np.zeros(1)})
        (other,) = tmp_path.glob("y-*.saved")
        other.write_bytes(file.read_bytes())  # whole, but another's
        assert work.arrays("y", 0, lambda: {"c": np.ones(1)})["c"].tolist() == [1]


def test_a_full_disk(tmp_path):
    """The error says what could not be written; what was there before stays good."""
    code = """
import resource, sys
import numpy as np
from dqcodec import OutputError
from dqcodec.work import Work
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
folder = None if sys.argv[1] == "none" else sys.argv[1]
from pathlib import Path
try:
    with Work(folder, Path(sys.argv[2])) as work, work.rows("x", 0) as rows:
        for _ in range(100):
            rows.append(np.zeros((10, 100), np.float32))
        rows.finish()
except OutputError as error:
    sys.exit(0 if "cannot write" in str(error) else str(error))
sys.exit("no error")
"""
    for folder in ("none", str(tmp_path / "work")):
        done = subprocess.run([sys.executable, "-c", code, folder, str(tmp_path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_one_run_at_a_time(tmp_path):
    message = "another run is using the work folder"
    with Work(tmp_path, tmp_path), pytest.raises(OutputError, match=message), Work(tmp_path, tmp_path):
        pass
    with Work(tmp_path, tmp_path):
        pass


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write .*file"), Work(tmp_path / "file" / "work", tmp_path):
        pass
    with pytest.raises(OutputError, match="file is a file; expected a folder"), Work(tmp_path / "file", tmp_path):
        pass


def test_the_work_folder_is_never_inside_the_source(photo_folder, tmp_path):
    before = sorted(photo_folder.rglob("*"))
    for work in (photo_folder / "work", photo_folder):
        with pytest.raises(OutputError, match="is inside the source folder"):
            encode(photo_folder, tmp_path / "x.dqz", OPTIONS, work=work)
    assert sorted(photo_folder.rglob("*")) == before


OPTIONS = EncodeOptions(keep=0.5, method="adq", bins=3, drop=0.3)
SLOW = {"proxy", "features", "bins", "texture", "diversity", "read", "look"}


def stages_of(source, output, options, work=None):
    """The stages that had something to do."""
    stages = set()
    encode(source, output, options, work=work, progress=lambda stage, *_: stages.add(stage))
    return stages


def test_another_keep_ratio_makes_nothing_again(photo_folder, tmp_path):
    work = tmp_path / "work"
    assert stages_of(photo_folder, tmp_path / "a.dqz", OPTIONS, work) >= SLOW
    for name, options in {
        "keep": replace(OPTIONS, keep=0.3), "alpha": replace(OPTIONS, alpha=0.1), "same": OPTIONS,
        "method": replace(OPTIONS, method="dq"), "bits": replace(OPTIONS, bits=3),
    }.items():  # fmt: skip
        assert not stages_of(photo_folder, tmp_path / f"{name}.dqz", options, work) & SLOW
        note = encode(photo_folder, tmp_path / "note.dqz", options, work=work, overwrite=True).notes[-1]
        assert note.startswith("found in the work folder: headers, thumbnails, proxy, features, bins")
        encode(photo_folder, tmp_path / "fresh.dqz", options, overwrite=True)
        assert (tmp_path / f"{name}.dqz").read_bytes() == (tmp_path / "fresh.dqz").read_bytes()
    assert "bins" in stages_of(photo_folder, tmp_path / "4.dqz", replace(OPTIONS, bins=4), work)
    assert "proxy" in stages_of(photo_folder, tmp_path / "seed.dqz", replace(OPTIONS, seed=1), work)
    assert "read" in stages_of(photo_folder, tmp_path / "size.dqz", replace(OPTIONS, size=16), work)


def test_changed_files_are_seen(photo_folder, tmp_path):
    source, work = tmp_path / "source", tmp_path / "work"
    shutil.copytree(photo_folder, source)
    stages_of(source, tmp_path / "a.dqz", OPTIONS, work)
    file = source / "z" / "00.png"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert stages_of(source, tmp_path / "b.dqz", OPTIONS, work) >= SLOW


def test_skipped_files_are_named_again(tmp_path):
    from test_encode import broken_folder

    bad = broken_folder(tmp_path / "source")
    for name in ("a", "b"):
        result = encode(
            tmp_path / "source",
            tmp_path / f"{name}.dqz",
            EncodeOptions(keep=0.5, method="adq", bins=2, drop=0.25),
            work=tmp_path / "work",
        )
        assert {name for name, _ in result.skipped} == bad
        assert all(reason for _, reason in result.skipped)
    assert (tmp_path / "a.dqz").read_bytes() == (tmp_path / "b.dqz").read_bytes()


def test_another_list_of_classes_is_another_set(photo_folder, tmp_path):
    """An empty class that sorts last changes no label, but the network."""
    source, work = tmp_path / "source", tmp_path / "work"
    shutil.copytree(photo_folder, source)
    stages_of(source, tmp_path / "a.dqz", OPTIONS, work)
    (source / "zz").mkdir()
    assert "proxy" in stages_of(source, tmp_path / "b.dqz", OPTIONS, work)


def test_a_file_that_can_be_read_again_is_read(photo_folder, tmp_path, monkeypatch):
    """Whatever kept it from being read before was no fault of its content."""
    from dqcodec import SourceError
    from dqcodec.sources import folder

    whole = folder.Folder.open

    def refuses(self, index):
        if index == 3:
            raise SourceError(f"{self.names[index]}: no memory")
        return whole(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(folder.Folder, "open", refuses)
        first = encode(photo_folder, tmp_path / "a.dqz", OPTIONS, work=tmp_path / "work")
    assert [reason for _, reason in first.skipped] == ["no memory"]
    again = encode(photo_folder, tmp_path / "b.dqz", OPTIONS, work=tmp_path / "work")
    assert (again.images, again.skipped) == (21, ())
    encode(photo_folder, tmp_path / "c.dqz", OPTIONS)
    assert (tmp_path / "b.dqz").read_bytes() == (tmp_path / "c.dqz").read_bytes()


KILLED = """
import os, signal, sys
import dqcodec, dqcodec.work, dqcodec.features
dqcodec.work.SAVE = 0
dqcodec.features.BATCH = 4
import dqcodec.models.proxy
dqcodec.models.proxy.MIN_STEPS = 20
source, output, work, stage, limit = sys.argv[1:]

def progress(name, done, total):
    if name == stage and done >= int(limit):
        os.kill(os.getpid(), signal.SIGKILL)

options = dqcodec.EncodeOptions(keep=0.5, method="adq", bins=3, drop=0.3)
dqcodec.encode(source, output, options, work=work, progress=progress)
"""


@pytest.mark.parametrize(("stage", "limit"), [("look", 5), ("read", 11), ("features", 9), ("diversity", 100)])
def test_a_killed_run_goes_on(photo_folder, tmp_path, monkeypatch, stage, limit):
    """kill -9 in the middle of a stage: the next run does the rest only, and the file is that of an undisturbed run."""
    arguments = [str(photo_folder), str(tmp_path / "x.dqz"), str(tmp_path / "work"), stage, str(limit)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "x.dqz").exists()
    monkeypatch.setattr("dqcodec.features.BATCH", 4)
    steps: dict[str, list[int]] = {}
    encode(
        photo_folder, tmp_path / "x.dqz", OPTIONS, work=tmp_path / "work",
        progress=lambda name, done, total: steps.setdefault(name, []).append(done),
    )  # fmt: skip
    order = ["look", "read", "features"]
    if stage in order:
        assert min(steps[stage]) >= limit
    for before in order[: order.index(stage) if stage in order else 3]:
        assert before not in steps
    encode(photo_folder, tmp_path / "y.dqz", OPTIONS)
    assert (tmp_path / "x.dqz").read_bytes() == (tmp_path / "y.dqz").read_bytes()


def test_features_of_a_fetched_model_do_not_follow_from_the_working_directory(photo_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, found = scan(photo_folder), []
    for features in ("timm:a", "timm:a", "timm:a@w", "timm:a@w"):
        options = EncodeOptions(features=features)
        images = Images(folder, np.arange(len(folder)), options, 24, 4, 3, "cpu", Work(None, tmp_path))
        found.append(images.about_features)
        (tmp_path / "w").write_bytes(bytes(len(found)))
    assert found[0] == found[1]
    assert found[2] != found[3]
