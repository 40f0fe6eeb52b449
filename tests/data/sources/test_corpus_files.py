import bz2
import gzip
import lzma

import pyarrow
import pytest

from llm_jax.data.sources import JsonLinesConfig, TextFilesConfig

COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True),
}
LINES = b"".join(b'{"text": "line %d of many"}\n' % number for number in range(5000))


def read(path):
    return [document.text for document in JsonLinesConfig((str(path),)).build()]


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_compressed_file_holds_the_documents_of_the_plain_one(tmp_path, kind):
    path = tmp_path / f"a.jsonl.{kind}"
    path.write_bytes(COMPRESS[kind](LINES))
    assert read(path) == [f"line {number} of many" for number in range(5000)]
    # Files that are compressed in parallel, or appended to, hold several frames.
    path.write_bytes(COMPRESS[kind](LINES[: len(LINES) // 2]) + COMPRESS[kind](LINES[len(LINES) // 2 :]))
    assert len(read(path)) == 5000


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize(
    "damage", [lambda data: b"no such format", lambda data: data[:-9], lambda data: data[: len(data) // 2]]
)
def test_a_damaged_compressed_file_is_named_and_never_read_in_part(tmp_path, kind, damage):
    path = tmp_path / f"a.txt.{kind}"
    path.write_bytes(damage(COMPRESS[kind](LINES)))
    with pytest.raises(ValueError, match=rf"cannot read .*a\.txt\.{kind}: "):
        list(TextFilesConfig((str(path),)).build())


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_missing_compressed_file_is_named(tmp_path, kind):
    (tmp_path / f"a.txt.{kind}").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=rf"cannot read .*a\.txt\.{kind}: No such file"):
        list(TextFilesConfig((str(tmp_path),)).build())
