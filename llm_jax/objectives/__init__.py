"""What training minimises. An objective is a config type; derive one from `Objective` to use one of your own.

An objective is one file and one row of data:

    objectives/my_objective.py      a configclass with `needs`, `examples`, `batch` and `loss`, and its examples
    objectives/compatibility.py     OBJECTIVES["my objective"] = MyObjectiveConfig(): `llm-jax objectives` lists it, and
                                    tests train it on every architecture that its `check` admits

    text    TextSource -> token cache -> Examples.document -> packing -> Examples.row -> batch -> loss
    records TextSource -> RecordExamples.encode -> token cache -> RecordExamples.document -> packing -> batch -> loss

`TokenObjective` has the loss of objectives with one target for each token, `PairObjective` the batch of
encoder-decoders, and `LabelledTextObjective` the sequence of a text, or of two, with a label. Tokens besides text, such
as a mask, are declared by name (`special_tokens`).
"""

from llm_jax.objectives.batch import Batch
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.objectives.chat_template import ChatML, ChatTemplate, PlainTemplate
from llm_jax.objectives.classification import ClassificationConfig, RegressionConfig
from llm_jax.objectives.contrastive import ContrastiveConfig
from llm_jax.objectives.conversations import InstructionFields, MessageFields
from llm_jax.objectives.denoising import DenoisingConfig
from llm_jax.objectives.fill_in_the_middle import FillInTheMiddleConfig
from llm_jax.objectives.fine_tuning import FineTuningConfig
from llm_jax.objectives.masked_diffusion import MaskedDiffusionConfig
from llm_jax.objectives.masked_lm import MaskedLMConfig
from llm_jax.objectives.mixture_of_denoisers import Denoiser, MixtureOfDenoisersConfig
from llm_jax.objectives.multi_token import MultiTokenConfig
from llm_jax.objectives.objective import Needs, Objective
from llm_jax.objectives.pair_objective import PairObjective
from llm_jax.objectives.permutation_lm import PermutationLMConfig
from llm_jax.objectives.prefix_lm import PrefixLMConfig
from llm_jax.objectives.question_answering import QuestionAnsweringConfig
from llm_jax.objectives.replaced_tokens import ReplacedTokensConfig
from llm_jax.objectives.sentence_order import SentenceOrderConfig
from llm_jax.objectives.sequence_to_sequence import SequenceToSequenceConfig
from llm_jax.objectives.span_corruption import SpanCorruptionConfig
from llm_jax.objectives.token_classification import TokenClassificationConfig
from llm_jax.objectives.token_objective import TokenObjective

__all__ = [
    "Batch",
    "CausalLMConfig",
    "ChatML",
    "ChatTemplate",
    "ClassificationConfig",
    "ContrastiveConfig",
    "Denoiser",
    "DenoisingConfig",
    "FillInTheMiddleConfig",
    "FineTuningConfig",
    "InstructionFields",
    "MaskedDiffusionConfig",
    "MaskedLMConfig",
    "MessageFields",
    "MixtureOfDenoisersConfig",
    "MultiTokenConfig",
    "Needs",
    "Objective",
    "PairObjective",
    "PermutationLMConfig",
    "PlainTemplate",
    "PrefixLMConfig",
    "QuestionAnsweringConfig",
    "RegressionConfig",
    "ReplacedTokensConfig",
    "SentenceOrderConfig",
    "SequenceToSequenceConfig",
    "SpanCorruptionConfig",
    "TokenClassificationConfig",
    "TokenObjective",
]
