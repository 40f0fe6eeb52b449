"""The transformer, assembled from the components of `llm_jax.layers`. Sizes of published models are in families/."""

from llm_jax.models.block import BlockConfig, Chain, Parallel, Serial
from llm_jax.models.build import Model, applied, build
from llm_jax.models.config import EncoderDecoderConfig, GeneratorDiscriminatorConfig, ModelConfig, TransformerConfig
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.generator_discriminator import GeneratorDiscriminator
from llm_jax.models.heads import ClassHead, HeadConfig, TiedHead, TransformConfig
from llm_jax.models.inputs import Inputs
from llm_jax.models.multi_token_heads import ChainedHeads, MultiTokenHeads, ParallelHeads
from llm_jax.models.outputs import EncoderOutput, Output
from llm_jax.models.stack import Execution, Segment
from llm_jax.models.transformer import Transformer

__all__ = [
    "BlockConfig",
    "Chain",
    "ChainedHeads",
    "ClassHead",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "EncoderOutput",
    "Execution",
    "GeneratorDiscriminator",
    "GeneratorDiscriminatorConfig",
    "HeadConfig",
    "Inputs",
    "Model",
    "ModelConfig",
    "MultiTokenHeads",
    "Output",
    "Parallel",
    "ParallelHeads",
    "Segment",
    "Serial",
    "TiedHead",
    "TransformConfig",
    "Transformer",
    "TransformerConfig",
    "applied",
    "build",
]
