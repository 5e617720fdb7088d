"""The command line as a person uses it: a process, its status, what it prints where."""

import json
import subprocess
import sys
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN
from PIL import Image

import dqcodec
from dqcodec.export import export
from dqcodec.inspection import verify

RGB = GOLDEN / "pixel-rgb" / "file.dqz"
DQCODEC = Path(sys.executable).with_name("dqcodec")


def run(*arguments):
    return subprocess.run([DQCODEC, *map(str, arguments)], capture_output=True, text=True)


def test_encode_prints_a_table(photo_folder, tmp_path):
    done = run("encode", photo_folder, tmp_path / "x.dqz", "--keep", 1, "--drop", 0)
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("images in", "skipped", "kept", "ratio", "24 x 24 x 3", "pack", "all"):
        assert words in done.stdout
    again = run("encode", photo_folder, tmp_path / "x.dqz", "--keep", 1, "--drop", 0)
    assert again.returncode == 1
    assert again.stdout == ""
    assert again.stderr == f"Error: {tmp_path / 'x.dqz'} exists; choose another name or add --overwrite\n"
    assert run("encode", photo_folder, tmp_path / "x.dqz", "--keep", 1, "--drop", 0, "--overwrite").returncode == 0


def test_encode_as_json_with_skips(tmp_path):
    folder = tmp_path / "src [1]"
    (folder / "a").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "a" / "1.png")
    for k in range(30):
        (folder / "a" / f"bad {k:02d} [red].png").write_bytes(b"x")
    done = run("encode", folder, tmp_path / "x.dqz", "--keep", 1, "--drop", 0, "--json")
    assert done.returncode == 0
    value = json.loads(done.stdout)
    assert (value["images"], value["kept"], len(value["skipped"])) == (1, 1, 30)
    assert "Skipped 30 files" in done.stderr
    assert "a/bad 00 [red].png: not an image in a known format" in done.stderr
    assert "and 10 more" in done.stderr
    strict = run("encode", folder, tmp_path / "y.dqz", "--keep", 1, "--drop", 0, "--strict")
    assert strict.returncode == 1
    assert "a/bad 00 [red].png" in strict.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", "2"], "Error: --keep: 2.0; allowed: 0 < keep <= 1"),
        (["--bits", "9"], "Error: --bits: '9'; allowed: 1 to 8 bits, as in 6, auto:6, rank:6"),
        (["--patch", "5"], "Error: --patch: 5 does not divide the size 24; allowed here: 1, 2, 3"),
        (["--features", "magic"], "Error: --features: 'magic'; allowed: proxy"),
        (["--keep", "0.6", "--device", "toaster"], "Error: --device: 'toaster' is not to be had here"),
    ],
)
def test_wrong_values(photo_folder, tmp_path, arguments, message):
    done = run("encode", photo_folder, tmp_path / "x.dqz", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--keep", "much"], ["--resize", "stretch"], ["--colour"]])
def test_usage_errors(photo_folder, tmp_path, arguments):
    done = run("encode", photo_folder, tmp_path / "x.dqz", *arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr


def test_info():
    done = run("info", RGB)
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("21", "24 x 32 x 3", "pixel", "payload", "größe", "snow dog"):
        assert words in done.stdout
    value = json.loads(run("info", RGB, "--json").stdout)
    assert value["samples"] == 21
    assert sum(value["members"].values()) == value["bytes"] == RGB.stat().st_size
    assert value["per_class"] == {"cat": 7, "größe": 7, "snow dog": 7}


def test_verify_good():
    done = run("verify", RGB)
    assert (done.returncode, done.stdout) == (0, f"{RGB}: 21 samples, all good\n")
    assert json.loads(run("verify", RGB, "--json").stdout)["ok"] is True


def test_progress_is_shown_before_the_first_sample_is_decoded(tmp_path):
    """Which may wait half a minute until the decoder is compiled."""
    seen = []
    verify(RGB, lambda *step: seen.append(step))
    export(RGB, tmp_path / "out", progress=lambda *step: seen.append(step))
    assert seen == [("verify", 0, 21), ("verify", 21, 21), ("export", 0, 21), ("export", 21, 21)]


def test_verify_names_each_bad_sample(golden_copy):
    with dqcodec.open(golden_copy) as file:
        start, offsets = file.reader.members["payload/c/0"].start, file.reader.offsets
    data = bytearray(golden_copy.read_bytes())
    for sample in (3, 17):
        data[start + int(offsets[sample])] ^= 0x40
    golden_copy.write_bytes(data)
    done = run("verify", golden_copy)
    assert done.returncode == 1
    assert "sample 3: payload bytes" in done.stdout
    assert "sample 17: payload bytes" in done.stdout
    assert "2 of 21 samples are damaged" in done.stdout
    value = json.loads(run("verify", golden_copy, "--json").stdout)
    assert (value["ok"], [index for index, _ in value["bad"]]) == (False, [3, 17])


def test_verify_a_changed_member(golden_copy, rebuild):
    """All checksums are right, but it is not the file that was written."""
    path = rebuild(golden_copy, {"scale/c/0": bytes(21)})
    done = run("verify", path)
    assert done.returncode == 1
    assert "the fingerprint is not that of the content" in done.stdout


def test_verify_what_is_no_file(tmp_path):
    (tmp_path / "x.dqz").write_bytes(b"hello")
    done = run("verify", tmp_path / "x.dqz")
    assert done.returncode == 1
    assert "too few for a .dqz file" in done.stdout
    missing = run("verify", tmp_path / "y.dqz")
    assert missing.returncode == 1
    assert missing.stderr == f"Error: {tmp_path / 'y.dqz'}: No such file or directory\n"
    assert "a folder without index.json, so no .dqz" in run("verify", tmp_path).stdout
    folder = run("info", tmp_path)
    assert folder.returncode == 1
    assert folder.stderr == f"Error: {tmp_path}: a folder without index.json, so no .dqz\n"


def test_export(tmp_path):
    done = run("export", RGB, tmp_path / "out", "--fill", "smooth", "--json")
    assert (done.returncode, json.loads(done.stdout)["samples"]) == (0, 21)
    with dqcodec.open(RGB) as file:
        expected = file.images(range(21))
    names = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert names[0] == "cat/00.png"
    assert len(names) == 21
    for index, name in enumerate(["cat"] * 7 + ["größe"] * 7 + ["snow dog"] * 7):
        found = np.asarray(Image.open(tmp_path / "out" / name / f"{index:02d}.png"))
        np.testing.assert_array_equal(found.transpose(2, 0, 1), expected[index])
    filtered = GOLDEN / "dct-rgb"
    assert run("export", filtered / "file.dqz", tmp_path / "dct").returncode == 0
    expected = np.load(filtered / "expected.npz")["images"]
    found = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "dct").rglob("*.png"), key=lambda p: p.name)]
    assert np.abs(np.stack(found).transpose(0, 3, 1, 2).astype(int) - expected).max() <= 1
    again = run("export", RGB, tmp_path / "out")
    assert again.returncode == 1
    assert "exists and is not an empty folder" in again.stderr
    wrong = run("export", RGB, tmp_path / "x.json")
    assert wrong.returncode == 2
    assert "target: 'x.json'; images are exported to a folder" in wrong.stderr


def test_export_and_encode_again(tmp_path):
    """8 bits and a file of PNGs: the same images within a grey level."""
    run("export", RGB, tmp_path / "out")
    done = run("encode", tmp_path / "out", tmp_path / "x.dqz", "--keep", 1, "--drop", 0, "--bits", 8, "--size", 24)
    assert done.returncode == 0
    with dqcodec.open(tmp_path / "x.dqz") as file:
        assert len(file) == 21
        assert file.classes == ("cat", "größe", "snow dog")


def test_help_names_every_option():
    text = run("encode", "--help").stdout
    options = {field.name.replace("_", "-") for field in fields(dqcodec.EncodeOptions)}
    options |= {"work", "device", "workers", "strict", "overwrite"}
    assert [option for option in options if f"--{option}" not in text] == []
    assert all(command in run("--help").stdout for command in ("encode", "info", "verify", "export"))
    assert run("--version").stdout == f"dqcodec {dqcodec.__version__}\n"


def test_a_damaged_file_exports_nothing_false(golden_copy, tmp_path):
    data = bytearray(golden_copy.read_bytes())
    data[60] ^= 1
    golden_copy.write_bytes(data)
    done = run("export", golden_copy, tmp_path / "out")
    assert done.returncode == 1
    assert "sample 0" in done.stderr or "local header" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_export_that_fails_leaves_nothing(golden_copy, tmp_path):
    """A folder that was there stays, and so does a link to it, into which images are exported."""
    payload = zipfile.ZipFile(golden_copy).getinfo("payload/c/0")
    data = bytearray(golden_copy.read_bytes())
    data[payload.header_offset + 30 + len(payload.filename) + payload.file_size // 2] ^= 1
    golden_copy.write_bytes(data)
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    for target in (tmp_path / "new", tmp_path / "there"):
        with pytest.raises(dqcodec.ChecksumError):
            export(golden_copy, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == [golden_copy.name, "link", "there"]
    assert not list((tmp_path / "there").iterdir())
    assert export(RGB, tmp_path / "link") == len(list((tmp_path / "there").rglob("*.png")))


def test_names_are_printed_harmlessly(tmp_path):
    """Markup, control and direction characters in names of files and in the header of a forged file."""
    folder = tmp_path / "src" / "a["
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "1.png")
    (folder / "red]\n\x1b[31m[bold]\u202e.jpg").write_bytes(b"x")
    done = run("encode", tmp_path / "src", tmp_path / "x.dqz", "--keep", 1, "--drop", 0)
    assert done.returncode == 0
    assert "a[/red]\\n\\x1b[31m[bold]\\u202e.jpg: not an image" in done.stderr
    strict = run("encode", tmp_path / "src", tmp_path / "y.dqz", "--keep", 1, "--drop", 0, "--strict")
    assert strict.returncode == 1
    assert "\x1b" not in done.stderr + strict.stderr


@pytest.mark.parametrize(
    "entries",
    [
        {"source": {"images": "x", "bytes": None}},
        {"source": [1]},
        {"creator": "\ud800\x1b[31m", "encode": {"a": {"b": ["[/c]"]}}},
        {"creator": 5, "encode": "all"},
    ],
)
def test_info_of_odd_informative_entries(golden_copy, rebuild, entries):
    with dqcodec.open(golden_copy) as file:
        root = json.loads(b"".join(file.reader.blocks("zarr.json")))
    root["attributes"]["dqz"].update(entries)
    path = rebuild(golden_copy, {"zarr.json": json.dumps(root).encode()})
    done = run("info", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert json.loads(run("info", path, "--json").stdout)["samples"] == 21


def test_a_preset_gives_what_is_not_given(photo_folder, tmp_path):
    done = run("encode", photo_folder, tmp_path / "a.dqz", "--preset", "smallest", "--method", "random", "--json")
    options = json.loads(done.stdout)["options"]
    assert {name: options[name] for name in ("keep", "drop", "transform", "bits", "method")} == {
        "keep": 0.25, "drop": 0.0, "transform": "dct", "bits": "2.5", "method": "random"
    }  # fmt: skip
    done = run(
        "encode", photo_folder, tmp_path / "b.dqz", "--preset", "smallest", "--keep", "1", "--bits", "3", "--json"
    )
    options = json.loads(done.stdout)["options"]
    assert (options["keep"], options["bits"], options["transform"]) == (1.0, "3", "dct")


@pytest.mark.parametrize("name", dqcodec.PRESETS)
def test_presets_are_options_that_may_be_given(name):
    dqcodec.PRESETS[name].check()
