"""The same file in the hands of others: zarr-python and TensorStore read every column."""

import numpy as np
import pytest
import tensorstore
import zarr
from conftest import GOLDEN, assert_same

import dqcodec

FILES = sorted(GOLDEN.glob("*/file.dqz"))


def columns(path):
    """Every array that the file has, the payload too, as the package reads it."""
    with dqcodec.open(path) as file:
        payload = b"".join(file.reader.read(range(0, len(file), file.reader.header.frame)))
        return {**file.reader.columns, "payload": np.frombuffer(payload, np.uint8)}


@pytest.mark.spec("R-10", "R-16")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_zarr_python(path, encoded):
    for file in (path, encoded):
        with zarr.storage.ZipStore(file, mode="r") as store:
            group = zarr.open_group(store, mode="r")
            found = {name: node for name, node in group.members(max_depth=None) if isinstance(node, zarr.Array)}
            expected = columns(file)
            assert found.keys() == expected.keys()
            for name, column in expected.items():
                assert_same(np.asarray(found[name][...]), column)
            assert group.attrs["dqz"]["samples"] == len(expected["label"])


@pytest.mark.spec("R-10", "R-16")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_tensorstore(path, encoded):
    for file in (path, encoded):
        for name, column in columns(file).items():
            kvstore = {"driver": "zip", "base": f"file://{file}", "path": f"{name}/"}
            array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True, read=True).result()
            assert_same(array.read().result(), column)
