"""A folder of safetensors is read as its index says, or refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from llm_jax.interop.weights import WeightFolder

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def _tensor(value: float) -> np.ndarray:
    return np.full(3, value, np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards that both hold b; the index names one of them."""
    save_file({"a": _tensor(1), "b": _tensor(2)}, tmp_path / FIRST)
    save_file({"b": _tensor(3), "c": _tensor(4)}, tmp_path / SECOND)
    return tmp_path


def _index(folder: Path, places: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize(("file", "value"), [(FIRST, 2), (SECOND, 3)])
def test_a_tensor_in_two_shards_is_read_from_the_one_that_the_index_names(folder: Path, file: str, value: float):
    _index(folder, {"a": FIRST, "b": file, "c": SECOND})
    with WeightFolder(folder) as stored:
        np.testing.assert_array_equal(stored.read("b"), _tensor(value))
        assert stored.names == {"a", "b", "c"}


def test_a_tensor_that_the_index_does_not_list_is_no_part_of_the_model(folder: Path):
    _index(folder, {"a": FIRST, "c": SECOND})
    with WeightFolder(folder) as stored:
        assert stored.names == {"a", "c"}


def test_without_an_index_a_tensor_in_two_files_is_refused(folder: Path):
    with pytest.raises(ValueError, match=f"b is in both .*{FIRST} and .*{SECOND}, and there is no {INDEX}"):
        WeightFolder(folder)


def test_a_link_into_a_download_cache_is_followed(folder: Path):
    (folder / "blobs").mkdir()
    (folder / FIRST).rename(folder / "blobs" / "1f3a")
    (folder / "snapshot").mkdir()
    (folder / "snapshot" / FIRST).symlink_to("../blobs/1f3a")
    _index(folder / "snapshot", {"a": FIRST, "b": FIRST})
    with WeightFolder(folder / "snapshot") as stored:
        np.testing.assert_array_equal(stored.read("a"), _tensor(1))


@pytest.mark.parametrize(
    "file",
    ["../other.safetensors", "/etc/passwd", "a/../../b.safetensors", "..\\b.safetensors", "C:\\b", "\\b", "", "a\0"],
)
def test_a_shard_outside_the_folder_is_refused(folder: Path, file: str):
    save_file({"a": _tensor(9)}, folder.parent / "other.safetensors")
    _index(folder, {"a": file})
    with pytest.raises(ValueError, match="has a in .*: it must be the name of a file inside the folder"):
        WeightFolder(folder)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"a": SECOND}, f"has a in {SECOND}, which does not contain it"),
        ({"a": FIRST, "d": SECOND}, f"has d in {SECOND}, which does not contain it"),
        ({"a": "model-3.safetensors"}, f"lacks model-3.safetensors, which its {INDEX} lists"),
        ({"a": "."}, "it must be the name of a file|lacks"),
        ({}, "has weight_map = {}: it must map each tensor to a file"),
        ([FIRST], "has weight_map = .*: it must map each tensor to a file"),
        (None, "has weight_map = None"),
        ({"a": 1}, "has a in 1: it must be the name of a file"),
        ({"a": None}, "has a in None: it must be the name of a file"),
        ({"a": [FIRST]}, "has a in .*: it must be the name of a file"),
    ],
)
def test_an_index_that_does_not_belong_to_the_shards_is_refused(folder: Path, places: object, message: str):
    _index(folder, places)
    with pytest.raises(ValueError, match=message):
        WeightFolder(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "is not JSON"),
        (b"", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"weight_map": ' + b"1" * 5000 + b"}", "is not JSON|has weight_map = 1"),
        (b"[]", "it must be a JSON object"),
        (b"null", "it must be a JSON object"),
        (b"{}", "has weight_map = None"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_malformed_index_is_refused(folder: Path, text: bytes, message: str):
    (folder / INDEX).write_bytes(text)
    with pytest.raises(ValueError, match=message):
        WeightFolder(folder)


def test_two_models_in_one_folder_are_refused(folder: Path):
    save_file({"a": _tensor(5)}, folder / "model.safetensors")
    _index(folder, {"a": FIRST})
    with pytest.raises(ValueError, match="model.safetensors and an .* that does not list it: remove one of these two"):
        WeightFolder(folder)
    _index(folder, {"a": "model.safetensors"})
    with WeightFolder(folder) as stored:
        np.testing.assert_array_equal(stored.read("a"), _tensor(5))
