"""`llm-jax convert`: write a model in the format of transformers."""

import dataclasses
from pathlib import Path
from typing import Literal

from llm_jax.cli.arguments import Arg, parse
from llm_jax.core.checks import check


@dataclasses.dataclass(frozen=True)
class Convert:
    """Write a checkpoint in the format of Hugging Face's transformers.

    The source is a run, or a folder in that format, to change its dtype or family.
    """

    source: Arg[str]
    """Run directory, or folder with config.json and safetensors files."""
    destination: Arg[Path]
    """Folder to write."""
    family: str | None = None
    """`model_type` to write; if not given, the first one that can express the model."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the weights in the files."""
    step: int | None = None
    """Checkpoint of a run; the newest if not given."""
    best: bool = False
    """Use the checkpoint with the lowest checkpoint.best_metric instead of the newest."""
    tokenizer: bool = True
    """Whether to write the tokenizer of the source, for AutoTokenizer."""


def run(arguments: list[str]) -> None:
    """Writes the folder, and prints its path."""
    options = parse(Convert, arguments)
    from llm_jax.core import paths
    from llm_jax.core.run_directory import RunDirectory
    from llm_jax.interop import load_hf, save_hf
    from llm_jax.trained_model import TrainedModel

    folder = paths.at(options.source)
    if RunDirectory(folder).experiment_file.exists():
        trained = TrainedModel.of(folder, options.step, options.best)
        model, params, tokenizer = trained.model, trained.params, trained.tokenizer
    else:
        check(
            (folder / "config.json").exists(), f"{folder} is neither a run nor a transformers folder: pass one of them"
        )
        check(options.step is None and not options.best, "--step and --best choose a checkpoint of a run: omit them")
        (model, params), tokenizer = load_hf(folder), folder
    tokenizer = tokenizer if options.tokenizer else None
    save_hf(model, params, options.destination, options.family, options.dtype, tokenizer=tokenizer)
    print(f"wrote {options.destination}")
