import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from llm_jax.data.sources import TFDSConfig
from llm_jax.data.splits import HashSplit

REPOSITORY = Path(__file__).parents[3]

BUILDER = """
    import numpy as np
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"body": tfds.features.Text(), "label": tfds.features.Scalar(np.int64)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, downloads):
            odd = ((i, {"body": body, "label": i}) for i, body in enumerate(["", "\\ufeffone", b"\\xff"]))
            return {"train": self._generate_examples(20), "validation": self._generate_examples(5), "odd": odd}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"body": f"document {i} é", "label": i}
"""
WRITE = """
    import sys
    from sets.tiny_set.tiny_set_dataset_builder import Builder
    Builder(data_dir="data", file_format="array_record").download_and_prepare()
    assert "tensorflow" not in sys.modules
"""
READ = """
    import sys
    from llm_jax.data.sources import TFDSConfig
    documents = list(TFDSConfig("tiny_set", "validation", field="body", data_dir="data").build())
    assert len(documents) == 5 and documents[0].text.endswith("é"), documents
    assert "tensorflow" not in sys.modules
    assert "tensorflow_datasets" in sys.modules
"""


def run(script, folder):
    path = f"{folder}:{REPOSITORY}"
    environment = {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder in which TFDS has prepared a tiny data set, written without TensorFlow."""
    folder = tmp_path_factory.mktemp("tfds")
    package = folder / "sets" / "tiny_set"
    package.mkdir(parents=True)
    for path in (package.parent / "__init__.py", package / "__init__.py"):
        path.touch()
    (package / "tiny_set_dataset_builder.py").write_text(textwrap.dedent(BUILDER))
    run(WRITE, folder)
    return folder


def source(prepared, split="train", **settings):
    settings = {"field": "body", **settings}
    return TFDSConfig("tiny_set", split, data_dir=str(prepared / "data"), **settings).build()


def read(prepared, split="train", **settings):
    return list(source(prepared, split, **settings))


def test_tensorflow_is_never_imported(prepared):
    run(READ, prepared)


def test_splits_and_slices_are_read_whole(prepared):
    train = read(prepared)
    assert sorted(document.text for document in train) == sorted(f"document {i} é" for i in range(20))
    assert train[0].name == "tiny_set/train:0"
    assert [d.text for d in read(prepared, "train[:25%]")] == [d.text for d in train[:5]]
    assert len(read(prepared, "train+validation")) == 25


def test_a_document_has_one_name_in_every_slice(prepared):
    texts = {document.name: document.text for document in read(prepared)}
    assert list(texts) == [f"tiny_set/train:{index}" for index in range(20)]
    for split in ("train[:10%]", "train[50%:]", "train[-3:]", "train[0shard]", "validation+train[5:7]"):
        found = [document for document in read(prepared, split) if "/train:" in document.name]
        assert found and all(texts[document.name] == document.text for document in found)
    versioned = TFDSConfig("tiny_set:1.0.0", "train", "body", str(prepared / "data"))
    assert [document.name for document in versioned.build()] == list(texts)


def test_held_out_documents_of_a_slice_are_no_training_documents_of_a_larger_one(prepared):
    def part(split, part):
        return {document.text for document in HashSplit(0.3, 0.2).part(source(prepared, split), part)}

    for slice_ in ("train[:75%]", "train[25%:]", "train[10:]"):
        assert part(slice_, "validation") and part(slice_, "test")
        assert part(slice_, "validation") <= part("train", "validation")
        assert part(slice_, "train") <= part("train", "train")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"field": "bdy"}, r"tiny_set/train:0 has no feature 'bdy'; did you mean 'body'\?.*\['body', 'label'\]"),
        ({"field": "label"}, "feature 'label' holds int, not text"),
        ({"split": "train[:10"}, r"no split 'train\[:10' .*a slice is written train\[:10%\]"),
        ({"split": "train+tset"}, r"no split 'train\+tset' .*: its splits are"),
        ({"split": "tset"}, r"no split 'tset' .*: its splits are \['odd', 'train', 'validation'\]"),
    ],
)
def test_what_the_set_does_not_have_is_named_with_what_it_has(prepared, settings, message):
    with pytest.raises(ValueError, match=message):
        read(prepared, **settings)


def test_text_that_is_no_text_follows_the_policies(prepared):
    with pytest.raises(ValueError, match=r"tiny_set/odd:\d is not UTF-8: byte 0 is 0xff"):
        read(prepared, "odd")
    assert [d.text for d in read(prepared, "odd", invalid_utf8="skip")] == ["one"]
    assert {d.text for d in read(prepared, "odd", invalid_utf8="replace", empty="keep")} == {"", "one", "\ufffd"}
    with pytest.raises(ValueError, match=r"tiny_set/odd:\d: the text is empty"):
        read(prepared, "odd", invalid_utf8="skip", empty="error")


def test_an_unknown_set_is_named_with_its_folder(tmp_path):
    with pytest.raises(ValueError, match=f"no data set 'no_such_set' in {tmp_path}"):
        list(TFDSConfig("no_such_set", "train", data_dir=str(tmp_path)).build())


def test_a_set_that_is_not_prepared_says_how_to_prepare_it(tmp_path):
    with pytest.raises(ValueError, match="not prepared as array_record.*download"):
        list(TFDSConfig("ag_news_subset", "train", data_dir=str(tmp_path)).build())


def test_without_a_field_a_document_is_the_whole_example(prepared):
    found = [json.loads(document.text) for document in read(prepared, field=None)]
    assert found == [{"body": d.text, "label": int(d.text.split()[1])} for d in read(prepared)]
    with pytest.raises(ValueError, match=r"tiny_set/odd:\d is not UTF-8: byte 9 is 0xff"):
        read(prepared, "odd", field=None)
    records = [json.loads(d.text) for d in read(prepared, "odd", field=None, invalid_utf8="replace")]
    assert sorted(record["body"] for record in records) == ["", "\ufeffone", "\ufffd"]
    with pytest.raises(ValueError, match="field is ''"):
        TFDSConfig("tiny_set", "train", field="")


def test_the_digest_of_a_text_is_that_of_earlier_versions(prepared):
    # Computed before readers had records: token caches stay valid.
    assert source(prepared, "train").digest == "d2882bb5bb0a06c8"
    assert source(prepared, "validation").digest == "e4e2ff55fcd84ab3"
    assert source(prepared, "train", field=None).digest != "d2882bb5bb0a06c8"
