"""`llm-jax generate`: continue a prompt."""

import dataclasses
from typing import Literal

from llm_jax.cli.arguments import Arg, parse
from llm_jax.inference.sampling import SamplingConfig


@dataclasses.dataclass(frozen=True)
class Generate:
    """Continue a prompt with the model of a run or of a folder of transformers, as it is generated."""

    run: Arg[str]
    """Run directory, or a transformers folder."""
    prompt: str
    """Text to continue."""
    new_tokens: int = 128
    """Maximum number of new tokens."""
    step: int | None = None
    """Checkpoint; the newest if not given."""
    best: bool = False
    """Use the checkpoint with the lowest checkpoint.best_metric instead of the newest."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype for a transformers folder; float32 if not given."""
    seed: int = 0
    """Seed of the sampling."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.8, top_p=0.95)


def run(arguments: list[str]) -> None:
    """Prints prompt and continuation."""
    options = parse(Generate, arguments)
    from llm_jax.inference.generate import Generator
    from llm_jax.trained_model import TrainedModel

    trained = TrainedModel.of(options.run, options.step, options.best, options.dtype)
    tokenizer = trained.tokenizer
    generator = Generator(trained.model, options.sampling, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size)
    prompt = trained.prompt(options.prompt)
    decoder = tokenizer.stream(prompt)
    stream = generator.stream(trained.params, [prompt], options.new_tokens, options.seed)
    print(options.prompt, end="", flush=True)
    for tokens_B in stream:
        if tokens_B[0] == tokenizer.eos_id:
            break
        print(decoder.push(int(tokens_B[0])), end="", flush=True)
    print(decoder.flush())
