"""How a decoder begins in transformers: options of generation, which no model config has."""

from pathlib import Path

from llm_jax.core.checks import check
from llm_jax.core.files import read_json_object

_FILES = ("generation_config.json", "config.json")
"""Files that state the options; what the first states counts."""


def decoder_start(directory: str | Path) -> tuple[int, ...]:
    """The first tokens of the decoder of an encoder-decoder, with which `generate` of transformers begins:
    `decoder_start_token_id`, without it `bos_token_id`; then `forced_bos_token_id`, if there is one.

    Raises:
      ValueError: if the folder states neither of the first two, or for a value that is no id.
    """
    folder = Path(directory)
    first = _stated(folder, "decoder_start_token_id")
    first = _stated(folder, "bos_token_id") if first is None else first
    check(
        first is not None,
        f"{folder} states no decoder_start_token_id: add it to config.json, such as the padding token for T5",
    )
    return tuple(token for token in (first, _stated(folder, "forced_bos_token_id")) if token is not None)


def _stated(folder: Path, option: str) -> int | None:
    for path in (path for name in _FILES if (path := folder / name).exists()):
        value = read_json_object(path, "download it again").get(option)
        whole = isinstance(value, int) and not isinstance(value, bool)
        check(value is None or (whole and value >= 0), f"{path} has {option} = {value!r}: it must be a token id")
        if value is not None:
            return value
    return None
