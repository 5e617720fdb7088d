"""Sources of records that are damaged or odd: an error that names file and place, or everything as it was."""

import datetime
import decimal
import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

import dqcodec
from dqcodec.data.dataset import DQZDataset
from dqcodec.errors import OptionError, OutputError, SourceError
from dqcodec.export import export
from dqcodec.options import TextOptions

ALL = TextOptions(keep=1.0)
LINE = b'{"instruction": "add", "output": "sum"}\n'


def encoded(path, data=None, options=ALL):
    """The result of encoding a file of this content, and the records that were kept."""
    if data is not None:
        path.write_bytes(data)
    out = path.with_name("out.dqz")
    result = dqcodec.encode_text(path, out, options, overwrite=True)
    with dqcodec.open(out) as file:
        return result, list(file)


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_packed_source_that_is_cut_off(tmp_path, ending):
    """Else the rest of the records would be lost in silence."""
    lines = b"".join(b'{"text": "%d"}\n' % (k * 7919) for k in range(5000))
    packed = gzip.compress(lines) if ending == "gz" else zstandard.ZstdCompressor().compress(lines)
    path = tmp_path / f"x.jsonl.{ending}"
    for size in (len(packed) - 1, len(packed) - 5, len(packed) // 2, 20):
        with pytest.raises(SourceError, match=rf"x\.jsonl\.{ending}: .*(ended before|cut off)"):
            encoded(path, packed[:size])
    assert encoded(path, packed * 2)[0].kept == 10_000
    for junk in (b"junk, and more of it", packed[:-1]):
        with pytest.raises(SourceError, match=rf"x\.jsonl\.{ending}: "):
            encoded(path, packed + junk)


def test_a_large_packed_source(tmp_path):
    """A few bytes that become a lot are read in pieces."""
    line = b'{"text": "%s"}\n' % (b"word " * 200_000)
    path = tmp_path / "x.jsonl.zst"
    result, records = encoded(path, zstandard.ZstdCompressor().compress(line * 40))
    assert result.kept == 40
    assert {record["text"] for record in records} == {"word " * 200_000}


def test_numbers_that_do_not_fit(tmp_path):
    lines = [b'{"text": "a", "n": %s}' % n for n in (b"9" * 4300, b"9" * 4301, b"9" * 10**6, b"1e999", b"1e-999")]
    result, records = encoded(tmp_path / "x.jsonl", b"\n".join(lines))
    assert [record["n"] for record in records] == [int("9" * 4300), 0.0]
    assert [name for name, _ in result.skipped] == ["line 2", "line 3", "line 4"]
    assert all("integer of more than 4,300 digits" in reason for _, reason in result.skipped[:2])


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (json.dumps({"data": [{"text": "a"}]}, indent=1).encode(), "expected an array of records, or a record on each"),
        (b"[" + LINE, r"broken in record 1, line 2: expected , or \]"),
        (b"[" + LINE + b"] x", "something stands after the array"),
        (b"[" + b"[" * 100_000, "broken in record 0, line 1: nested too deep"),
        (b'[{"a": ' + b"1" * 5000 + b"}]", "record 0, line 1: an integer of more than 4,300 digits"),
        (("[" + LINE.decode() + "]").encode("utf-16"), "line 1: not UTF-8"),
        (b'{"a": 1}', r"no text in the fields .*; --text '\{field\} \{field\}' says which, of a"),
        (b"", "it is empty"),
        (b"[ ]", "it is empty"),
    ],
)
def test_a_source_without_a_record(tmp_path, data, match):
    with pytest.raises(SourceError, match=rf"x\.json: .*{match}"):
        encoded(tmp_path / "x.json", data)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_timestamps_in_nanoseconds(tmp_path):
    """As pandas writes them: read where nothing is lost."""
    path = tmp_path / "x.parquet"
    times = pyarrow.array([0, 1_500_000, None], pyarrow.timestamp("ns", "UTC"))
    _, records = encoded(parquet(path, text=["a", "b", "c"], time=times))
    begin = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    assert [r["time"] for r in records] == [begin, begin + datetime.timedelta(microseconds=1500), None]
    with pytest.raises(SourceError, match=r"x\.parquet: .*would lose data: 1"):
        encoded(parquet(path, text=["a"], time=pyarrow.array([1], pyarrow.timestamp("ns"))))


@pytest.mark.parametrize(("kind", "value"), [(pyarrow.timestamp("s"), 10**12), (pyarrow.date32(), 10**9)])
def test_times_beyond_the_year_9999(tmp_path, kind, value):
    with pytest.raises(SourceError, match=r"x\.parquet: "):
        encoded(parquet(tmp_path / "x.parquet", text=["a"], time=pyarrow.array([value], kind)))


def test_labels_of_every_type(tmp_path):
    day, price = datetime.date(2026, 11, 25), decimal.Decimal("1.50")
    path = parquet(tmp_path / "x.parquet", text=["a", "b"], day=[day, None], price=[price, price], data=[b"x", b"y"])
    for field, classes in (("day", ("2026-11-25",)), ("price", ("1.50",)), ("text", ("a", "b"))):
        result, _ = encoded(path, options=TextOptions(keep=1.0, label=field))
        assert result.header.classes == classes
    assert result.skipped == ()
    with pytest.raises(SourceError, match=r"row 0: no label: data is b'x'; its fields are text, day, price, data"):
        encoded(path, options=TextOptions(keep=1.0, label="data"))


def test_columns_of_one_name(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(SourceError) as caught:
        encoded(tmp_path / "x.parquet")
    assert str(caught.value) == f"{tmp_path / 'x.parquet'}: two columns have the same name"


# ---- options and exports


@pytest.mark.parametrize(("name", "value"), [("bins", True), ("text", 5), ("text", b"{a}"), ("label", 5)])
def test_options_of_another_type(tmp_path, name, value):
    with pytest.raises(OptionError, match=f"{name}: "):
        encoded(tmp_path / "x.jsonl", LINE, TextOptions(**{name: value}))


@pytest.mark.parametrize(
    ("record", "match"),
    [
        (b'{"text": "a", "v": {}}', "the records do not fit Parquet: .*; JSON lines hold them"),
        (b'{"text": "a", "\\ud800": 1}', "the field '.ud800' does not make a column"),
        (b'{"text": "\\ud800"}', "the field 'text' does not make a column"),
        (b'{"text": "a", "v": 18446744073709551616}', "the field 'v' does not make a column"),
        (b'{"text": "a", "v": [1, "b"]}', "the field 'v' does not make a column"),
    ],
)
def test_records_that_make_no_table(tmp_path, record, match):
    """They stay whole as JSON."""
    _, records = encoded(tmp_path / "x.jsonl", record)
    with pytest.raises(OptionError, match=match):
        export(tmp_path / "out.dqz", tmp_path / "y.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.dqz", "x.jsonl"]
    if b"{}" not in record:
        with pytest.raises(OptionError, match=match):
            DQZDataset(tmp_path / "out.dqz").to_hf()
    export(tmp_path / "out.dqz", tmp_path / "y.jsonl")
    assert encoded(tmp_path / "y.jsonl")[1] == records


def test_an_export_to_what_is_there(tmp_path):
    encoded(tmp_path / "x.jsonl", LINE)
    for place in (tmp_path / "x.jsonl", tmp_path / "folder.json"):
        (tmp_path / "folder.json").mkdir(exist_ok=True)
        with pytest.raises(OutputError, match=r"exists; choose another name$"):
            export(tmp_path / "out.dqz", place)
    assert (tmp_path / "x.jsonl").read_bytes() == LINE
    with pytest.raises(OptionError, match="fill: .*holds records of text"):
        export(tmp_path / "out.dqz", tmp_path / "y.jsonl", fill="mean")
