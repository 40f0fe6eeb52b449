"""Tokens per second of each objective's batches, against those that the training of a 10M model consumes.

Command: python experiments/benchmarks/input_pipeline.py [--length 256] [--publish]

A batch is made as in a run: rows are packed from the token cache, changed by the objective's examples, stacked, and
made a batch of numpy arrays. One thread makes them, without reading ahead. The text is made of random letters, spaces,
stops and line ends; tokens are its bytes. The step is that of a causal LLaMA on the same number of tokens, compiled, on
all cores. Batches and steps take turns; figures are medians over rounds. Bar: batches are made five times as fast.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tyro
from models import SIZES, SizeName, our_config
from tables import alternate, machine, markdown, median, publish
from train_step import our_step

from llm_jax.data.corpus import CorpusConfig
from llm_jax.data.pipeline import DataConfig
from llm_jax.data.sources import TextFilesConfig
from llm_jax.data.splits import RangeSplit
from llm_jax.models.config import ModelConfig
from llm_jax.models.families.bert import bert
from llm_jax.models.families.t5 import t5
from llm_jax.objectives import (
    CausalLMConfig,
    DenoisingConfig,
    MaskedLMConfig,
    MixtureOfDenoisersConfig,
    Objective,
    SpanCorruptionConfig,
)
from llm_jax.tokenizers import ByteTokenizerConfig

VOCAB = 4096
"""Of the models: bytes, and room for the special tokens of all objectives."""

OBJECTIVES: dict[str, tuple[Objective, str]] = {
    "causal": (CausalLMConfig(), "decoder"),
    "masked": (MaskedLMConfig(), "encoder"),
    "masked, whole words": (MaskedLMConfig(units="words"), "encoder"),
    "span corruption": (SpanCorruptionConfig(), "pair"),
    "BART's large model: infilling, sentences": (DenoisingConfig(), "pair"),
    "all of BART's noise": (DenoisingConfig(masked=0.1, deleted=0.1, rotated=True), "pair"),
    "BERT-style": (DenoisingConfig.bert_style(), "pair"),
    "deshuffling": (DenoisingConfig.deshuffling(), "pair"),
    "UL2's mixture of denoisers": (MixtureOfDenoisersConfig(), "pair"),
}
"""(objective, kind of its model) by name."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    size: SizeName = "10M"
    """Of the model that is trained; it has the batch size."""
    length: int = 256
    """Tokens of a row."""
    batches: int = 20
    """Batches in a round."""
    rounds: int = 9
    publish: bool = False
    """Write the table into experiments/README.md."""
    smoke: bool = False
    """Only see that it runs: a tiny model, two rounds, no publishing."""


SMOKE = {"size": "tiny", "length": 64, "batches": 2, "rounds": 2, "publish": False}


def model_of(kind: str, length: int) -> ModelConfig:
    """A model of which an objective reads the vocabulary; it is never run."""
    longest = 2 * length
    if kind == "pair":
        return t5(1, 1, 8, hidden=8, vocab_size=VOCAB, max_length=longest)
    if kind == "encoder":
        return bert(1, 1, 8, vocab_size=VOCAB, max_length=longest)
    return our_config("llama", dataclasses.replace(SIZES["tiny"], vocab_size=VOCAB, length=longest))


def write_text(path: Path, characters: int = 1_000_000) -> None:
    """Random letters, a fifth of them spaces, with stops and line ends."""
    text = np.random.default_rng(0).choice(list("etaoinshrdlu   .\n"), characters)
    path.write_text("".join(text), encoding="utf-8")


def reading(name: str, arguments: Arguments, folder: Path) -> Callable[[], object]:
    """Makes the batches of a round."""
    objective, kind = OBJECTIVES[name]
    model, tokenizer = model_of(kind, arguments.length), ByteTokenizerConfig().build(lambda: (), folder, "")
    objective.check(model, arguments.length)
    source = CorpusConfig(TextFilesConfig((str(folder / "text.txt"),)), split=RangeSplit(validation=0.1))
    data = DataConfig(source, arguments.length, SIZES[arguments.size].batch, read_ahead=0)
    examples = objective.examples(model, tokenizer, arguments.length)
    iterator = data.build(tokenizer, folder / "cache", 0, examples).train_iterator()

    def run() -> object:
        return [objective.batch(next(iterator)) for _ in range(arguments.batches)]

    return run


def measure(arguments: Arguments, folder: Path) -> tuple[float, dict[str, float]]:
    """Tokens per second of the step, and of the batches of each objective."""
    write_text(folder / "text.txt")
    size = dataclasses.replace(SIZES[arguments.size], length=arguments.length)
    shape = (size.batch, size.length + 1)
    tokens = np.random.default_rng(0).integers(0, size.vocab_size, shape, dtype=np.int32)
    contenders = {name: reading(name, arguments, folder) for name in OBJECTIVES}
    contenders["step"] = our_step(our_config("llama", size), "float32", tokens)
    seconds = {name: median(times) for name, times in alternate(contenders, arguments.rounds).items()}
    batch = size.batch * size.length
    return batch / seconds.pop("step"), {name: arguments.batches * batch / time for name, time in seconds.items()}


def main(arguments: Arguments) -> None:
    """Measures and prints the table."""
    if arguments.smoke:
        arguments = dataclasses.replace(arguments, **SMOKE)
    with tempfile.TemporaryDirectory() as folder:
        step, rates = measure(arguments, Path(folder))
    rows = [(name, f"{rate:,.0f}", f"{rate / step:.1f}") for name, rate in rates.items()]
    sizes = f"rows of {arguments.length} tokens; the {arguments.size} model trains on {step:,.0f} tokens/s"
    header = ("objective", "batches, tokens/s", "of the step's")
    text = f"{machine('jax', 'numpy')}\n\n{sizes}\n\n{markdown(header, rows)}"
    print(text)
    if arguments.publish:
        publish("input_pipeline", text)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=Path(__file__).name + ": " + __doc__))
