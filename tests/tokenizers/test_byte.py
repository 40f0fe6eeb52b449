import pytest


def test_ids_are_the_utf8_bytes(byte):
    assert byte.encode("aé") == [0x61, 0xC3, 0xA9]
    assert (byte.vocab_size, byte.bos_id, byte.eos_id, byte.pad_id) == (259, 256, 257, 258)


@pytest.mark.parametrize("ids", [[0xFF], [0xC3], [0xE2, 0x28], [0xED, 0xA0, 0x80], [0xC0, 0xAF]])
def test_bytes_that_are_no_utf8_are_replaced(byte, ids):
    text = byte.decode([0x61, *ids, 0x62])
    assert text == b"".join([b"a", bytes(ids), b"b"]).decode(errors="replace")
    assert "\ufffd" in text
