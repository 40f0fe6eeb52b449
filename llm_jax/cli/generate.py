"""`llm-jax generate`: continue a prompt, write the target of a source, or fill masks."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import tyro

from llm_jax.cli.arguments import Arg, parse
from llm_jax.core.checks import check
from llm_jax.inference.beam_config import BeamConfig
from llm_jax.inference.sampling import SamplingConfig

_SAMPLING = SamplingConfig(temperature=0.8, top_p=0.95)
_NO_SEARCH = BeamConfig(beams=1)


@dataclasses.dataclass(frozen=True)
class Generate:
    """Write text with the model of a run or of a folder of transformers, as its kind of model does.

    A decoder continues the prompt, as it is generated. An encoder-decoder reads it and writes its target. An encoder
    with scores of the vocabulary fills each <mask> in it.

    Example: llm-jax generate runs/my_text --prompt "Once" --beams 4 --n-best 2
    """

    run: Arg[str]
    """Run directory, or a transformers folder."""
    prompt: str
    """Text to continue; the source of an encoder-decoder; for an encoder, text with <mask> or [MASK] for unknown
    tokens."""
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
    top: int = 5
    """Number of tokens to show for each mask."""
    sampling: SamplingConfig = _SAMPLING
    beam: tyro.conf.OmitArgPrefixes[BeamConfig] = _NO_SEARCH
    """With --beams of 2 or more: beam search instead of sampling."""


def run(arguments: list[str]) -> None:
    """Prints what the model writes."""
    options = parse(Generate, arguments)
    from llm_jax.trained_model import TrainedModel

    check(
        options.beam.beams > 1 or options.beam == _NO_SEARCH,
        "there are options of beam search and --beams is 1: set --beams to 2 or more, or omit them",
    )
    check(
        options.beam.beams == 1 or options.sampling == _SAMPLING,
        f"--beams is {options.beam.beams} and there are options of sampling: beam search does not sample; omit one "
        "of them",
    )
    trained = TrainedModel.of(options.run, options.step, options.best, options.dtype)
    _check_writes(trained, options)
    if trained.model.config.stacks[-1].causal:
        _generate(trained, options)
    else:
        _fill(trained, options)


def _check_writes(trained: Any, options: Generate) -> None:
    """ValueError for a model that writes no tokens."""
    from llm_jax.models.heads import HeadConfig, TiedHead

    config = trained.model.config.stacks[-1]
    remedy = f"`llm-jax predict {options.run} FILE` writes what it predicts for records"
    if trained.experiment is None:
        remedy = f"`llm-jax convert {options.run} FOLDER` writes it for transformers, which classifies with it"
    check(
        isinstance(config.head, HeadConfig | TiedHead),
        f"the model of {options.run} has a {type(config.head).__name__} and writes no text: {remedy}",
    )


def _generate(trained: Any, options: Generate) -> None:
    """Prints a continuation, or a target."""
    from llm_jax.models.config import EncoderDecoderConfig

    pair = isinstance(trained.model.config, EncoderDecoderConfig)
    check(options.top == Generate.top, "--top is of masks, and the model generates: omit it")
    prompt = trained.source(options.prompt) if pair else trained.prompt(options.prompt)
    shown, before = ("", []) if pair else (options.prompt, prompt)
    if options.beam.beams > 1:
        _search(trained, options, prompt, shown, before)
        return
    stream = _sampled(trained, options, prompt)
    print(shown, end="", flush=True)
    decoder = trained.tokenizer.stream(before)
    for token in stream:
        print(decoder.push(token), end="", flush=True)
    print(decoder.flush())


def _sampled(trained: Any, options: Generate, prompt: list[int]) -> Iterator[int]:
    """New tokens, as they are generated. Options are checked at the call."""
    from llm_jax.inference.generate import Generator

    generator = Generator(trained.model, options.sampling, *_vocabulary(trained))
    stream = generator.stream(trained.params, [prompt], options.new_tokens, options.seed)
    tokens = (int(tokens_B[0]) for tokens_B in stream)
    return iter(tokens.__next__, trained.tokenizer.eos_id)


def _search(trained: Any, options: Generate, prompt: list[int], shown: str, before: list[int]) -> None:
    from llm_jax.inference.beam import BeamSearch

    search = BeamSearch(trained.model, options.beam, *_vocabulary(trained))
    (found,) = search.search(trained.params, [prompt], options.new_tokens)
    for one in found:
        score = f"{one.score:.4f}\t" if options.beam.n_best > 1 else ""
        print(score + shown + trained.tokenizer.continuation(before, one.tokens))


def _vocabulary(trained: Any) -> tuple[Any, ...]:
    """What Generator and BeamSearch need to know of the tokens."""
    tokenizer = trained.tokenizer
    return tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size, trained.start


def _fill(trained: Any, options: Generate) -> None:
    """Prints a line for each mask: the likeliest tokens and their probabilities."""
    from llm_jax.inference.fill import MaskFiller

    check(
        (options.sampling, options.beam, options.new_tokens) == (_SAMPLING, _NO_SEARCH, Generate.new_tokens),
        f"the model of {options.run} is an encoder, which fills masks in one pass: omit --new-tokens and the options "
        "of sampling and beam search",
    )
    tokenizer = trained.tokenizer
    text = trained.masked(options.prompt)
    check(
        trained.mask_id in text,
        f"--prompt has no <mask>, and the model of {options.run} is an encoder, which fills masks: write <mask> for "
        "each unknown token, or use a decoder to continue a text",
    )
    filler = MaskFiller(trained.model, trained.mask_id, tokenizer.pad_id, tokenizer.vocab_size, options.top)
    (fillings,) = filler.fill(trained.params, [text])
    for filling in fillings:
        likely = zip(filling.tokens, filling.probabilities, strict=True)
        print("\t".join(f"{tokenizer.decode([token])!r} {probability:.4f}" for token, probability in likely))
