"""A trained model with its weights and its tokenizer, from a run or from a transformers folder."""

import dataclasses
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from llm_jax.core import paths
from llm_jax.core.checks import check, given
from llm_jax.core.dtypes import Float
from llm_jax.core.run_directory import RunDirectory
from llm_jax.evals import PerplexityConfig
from llm_jax.experiment import Experiment
from llm_jax.interop import decoder_start, load_hf
from llm_jax.models.build import Model, build
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.objectives import special_tokens
from llm_jax.objectives.objective import AnyBatch
from llm_jax.objectives.pair_objective import PairObjective
from llm_jax.objectives.sequence_to_sequence import SequenceToSequenceConfig
from llm_jax.starts.run_start import read_run, restored_weights
from llm_jax.tokenizers import Tokenizer
from llm_jax.tokenizers.folder import transformers_tokenizer
from llm_jax.tokenizers.tokenizer import Frame


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A model with its evaluation weights: for a run, the moving average if it has one. `of` reads it."""

    model: Model
    params: Any
    tokenizer: Tokenizer
    frame: Frame
    """Special tokens around a whole text, as in training. A prompt has those before it."""
    start: tuple[int, ...] = ()
    """First tokens of the decoder of an encoder-decoder; empty for other models."""
    experiment: Experiment | None = None
    """The experiment of the run; None for a transformers folder."""

    @classmethod
    def of(
        cls,
        where: RunDirectory | str | os.PathLike[str],
        step: int | None = None,
        best: bool = False,
        dtype: Float | None = None,
    ) -> Self:
        """Loads a model from a run or from a transformers folder.

        Args:
          where: a run directory, or a folder with `config.json`, safetensors files and a tokenizer.
          step: step of the checkpoint of a run; None: the newest.
          best: whether to use the checkpoint of a run with the lowest `checkpoint.best_metric`.
          dtype: dtype of parameters and computation for a transformers folder; None: float32. Must be None for a run.

        Raises:
          ValueError: if `where` is neither; for a run without a tokenizer or without such a checkpoint; for a folder
            whose model or tokenizer is not supported.
        """
        run = where if isinstance(where, RunDirectory) else RunDirectory(paths.at(where))
        check(step is None or not best, f"--step {step} and --best each choose a checkpoint: omit one of them")
        if not run.experiment_file.exists() and (run.path / "config.json").exists():
            check(
                step is None and not best,
                f"{run.path} is a folder of transformers: --step and --best choose a checkpoint of a run; omit them",
            )
            tokenizer, frame = transformers_tokenizer(run.path)
            model, params = load_hf(run.path, dtype or "float32")
            start = decoder_start(run.path) if isinstance(model, EncoderDecoder) else ()
            return cls(model, params, tokenizer, frame, start)
        check(dtype is None, f"{run.path} is a run, whose experiment states its precision: omit --dtype")
        experiment, tokenizer, step = read_run(run, step, best)
        tokenizer = given(
            tokenizer, f"{run.path} was trained on tokens and has no tokenizer for text: use a run with a tokenizer"
        )
        restored = restored_weights(run, experiment, experiment.precision, tokenizer.digest, step)
        model = build(experiment.model, experiment.precision)
        frame = Frame((tokenizer.bos_id,) * experiment.data.bos, (tokenizer.eos_id,) * experiment.data.eos)
        objective = experiment.objective
        start = (objective.decoder_start(tokenizer),) if isinstance(objective, PairObjective) else ()
        return cls(model, restored.state, tokenizer, frame, start, experiment)

    def prompt(self, text: str) -> list[int]:
        """Token ids of the beginning of a text, which a decoder continues."""
        return [*self.frame.before, *self.tokenizer.encode(text)]

    def source(self, text: str) -> list[int]:
        """Token ids of a whole text, which an encoder reads."""
        objective = self.experiment and self.experiment.objective
        if isinstance(objective, SequenceToSequenceConfig):
            return objective.encoded_source(self.tokenizer, text)
        return [*self.prompt(text), *self.frame.after]

    def masked(self, text: str) -> list[int]:
        """`source` for a text in which <mask> or [MASK] stands for an unknown token."""
        first, *others = re.split("|".join(map(re.escape, special_tokens.SPELLINGS[special_tokens.MASK])), text)
        if others and self.tokenizer.takes_space(self.mask_id):
            first, *others = *(part.rstrip() for part in (first, *others[:-1])), others[-1]
        ids = self.prompt(first)
        for part in others:
            ids += [self.mask_id, *self.tokenizer.encode(part)]
        return [*ids, *self.frame.after]

    @functools.cached_property
    def mask_id(self) -> int:
        """Id of the mask token: that of the tokenizer, or what masked language modelling uses where it has none.

        Raises:
          ValueError: if the model's vocabulary has no room for one.
        """
        return special_tokens.mask_id(self.tokenizer, self.model.config.vocab_size or 0)

    def held_out(self, cache: Path) -> Iterator[AnyBatch]:
        """Batches of the validation sets of the run's data, tokenised in `cache` if they are not there. With
        `max_bytes` in the run's PerplexityConfig, only that sample of each set.

        Raises:
          ValueError: for a transformers folder, which has no data.
        """
        experiment = given(self.experiment, "a folder of transformers has no held-out data: pass a run directory")
        limits = [one.max_bytes for one in experiment.evaluations if isinstance(one, PerplexityConfig)]
        dataset = experiment.dataset(self.tokenizer, cache)
        for found in dataset.evaluation("validation", 0, 1, limits[0] if limits else None):
            yield from map(experiment.objective.batch, found.batches)
