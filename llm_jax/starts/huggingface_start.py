"""Initial weights in the format of Hugging Face's transformers."""

import functools
from pathlib import Path
from typing import Any

from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.interop import load_hf, read_config
from llm_jax.starts.start import Start, Weights
from llm_jax.tokenizers.folder import exported_digest, exported_tokens


@configclass
class HuggingFaceStart(Start):
    """A folder with `config.json` and safetensors files, such as `llm-jax convert` writes."""

    folder: str

    def find(self) -> Weights:
        return Weights(
            self.folder,
            read_config(self.folder),
            functools.partial(exported_tokens, Path(self.folder)),
            exported_digest(Path(self.folder)),
            self._load,
        )

    def _load(self, precision: Precision) -> Any:
        return load_hf(self.folder, precision.params)[1]
