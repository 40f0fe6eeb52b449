"""Time of models with experts against the dense model of the same active FLOPs, and against transformers' Mixtral.

Command: python experiments/benchmarks/moe.py [--size base] [--dtypes float32 bfloat16] [--rounds 9] [--publish]
Needs:   pip install torch transformers

All are LLaMAs of one shape on the same tokens, measured in turn, round after round: figures are medians, ratios are of
medians. K experts of a token together have the inner width of the dense ffn; all have the balance loss of Switch. A
step is the whole update, AdamW included, which goes over the parameters of all experts; forward and backward pass stand
beside it. transformers' Mixtral computes those alone, with the implementation of experts that it takes by default.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import tyro
from models import Size, require
from tables import alternate, machine, markdown, median, publish, threads
from train_step import NumberType, batch_of, our_step

from llm_jax.core.dtypes import MIXED, Precision
from llm_jax.layers.ffn.balance import LoadLoss
from llm_jax.layers.ffn.dispatch import Dispatch
from llm_jax.layers.ffn.dispatch.capacity import Capacity
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.dispatch.seats import ByProducts
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.models import count
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import with_experts
from llm_jax.models.families.llama import llama
from llm_jax.models.transformer import Transformer
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.train.compile import compiled

SIZES = {"tiny": Size(1, 2, 32, 64, 256, 2, 64), "base": Size(6, 6, 384, 1024, 8192, 4, 512)}
"""Their inner width is that of the dense ffn, and of all experts of a token together."""


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Experts in the place of the dense ffn."""

    experts: int
    top: int
    dispatch: Dispatch


MIXTURES = {
    "8 experts, top 2, dropless": Mixture(8, 2, Dropless()),
    "8 experts, top 2, capacity 1.25": Mixture(8, 2, Capacity(1.25)),
    "8 experts, top 2, capacity 1.25 by products": Mixture(8, 2, Capacity(1.25, moves=ByProducts())),
    "64 experts, top 8, dropless": Mixture(64, 8, Dropless()),
    "64 experts, top 8, capacity 1.25": Mixture(64, 8, Capacity(1.25)),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    size: str = "base"
    """One of SIZES."""
    dtypes: tuple[NumberType, ...] = ("float32",)
    mixtures: tuple[str, ...] = tuple(MIXTURES)
    """Those of MIXTURES that take part."""
    rounds: int = 9
    torch: bool = True
    """Whether transformers' Mixtral takes part."""
    publish: bool = False
    """Write the table into experiments/README.md."""
    table: str = "moe"
    """Name of the markers there: tables of several versions stand side by side."""
    smoke: bool = False
    """Only see that it runs: tiny models, no publishing."""


SMOKE = {
    "size": "tiny",
    "mixtures": ("8 experts, top 2, dropless", "64 experts, top 8, capacity 1.25"),
    "rounds": 1,
    "publish": False,
    "torch": False,
}


def config_of(size: Size, mixture: Mixture | None) -> TransformerConfig:
    """A LLaMA, its ffns dense if None."""
    config = llama(
        size.layers, size.heads, size.width, hidden=size.hidden, vocab_size=size.vocab_size, max_length=size.length
    )
    if mixture is None:
        return config
    ((block,),) = (segment.blocks for segment in config.segments)
    expert = dataclasses.replace(block.ffn, hidden=size.hidden // mixture.top)
    experts = MoEConfig(
        mixture.experts, expert, SoftmaxConfig(mixture.top), mixture.dispatch, balance=(LoadLoss(0.01),)
    )
    return with_experts(config, experts)


def our_gradients(config: TransformerConfig, dtype: NumberType, tokens: np.ndarray) -> Callable[[], object]:
    """Forward and backward pass on tokens [B, T + 1]."""
    precision = MIXED if dtype == "bfloat16" else Precision()
    model, batch = Transformer(config, precision), batch_of(tokens)
    params = jax.jit(lambda: model.init(jax.random.key(0), batch.inputs)["params"])()
    loss = jax.value_and_grad(lambda params, batch: CausalLMConfig().loss(model, params, batch)[0])
    gradients = compiled(loss, precision)
    return lambda: jax.block_until_ready(gradients(params, batch))


def torch_gradients(size: Size, mixture: Mixture, dtype: NumberType, tokens: np.ndarray) -> Callable[[], object]:
    """The same of transformers' Mixtral."""
    import torch
    import transformers

    torch.set_num_threads(threads())
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=size.vocab_size,
        max_position_embeddings=size.length,
        hidden_size=size.width,
        intermediate_size=size.hidden // mixture.top,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        num_local_experts=mixture.experts,
        num_experts_per_tok=mixture.top,
        tie_word_embeddings=False,
    )
    model = transformers.MixtralForCausalLM(config).train()
    ours, theirs = count.parameters(config_of(size, mixture)), sum(leaf.numel() for leaf in model.parameters())
    if ours != theirs:
        raise ValueError(f"our Mixtral has {ours:,} parameters and transformers' {theirs:,}: make the configs agree")
    inputs, targets = (torch.from_numpy(part.astype(np.int64)) for part in (tokens[:, :-1], tokens[:, 1:]))

    def run() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = model(input_ids=inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        model.zero_grad(set_to_none=True)
        return loss.item()

    return run


HEADER = (
    *("model", "type", "parameters", "active", "forward and backward, ms", "of dense", "step, ms", "of dense"),
    "transformers, forward and backward, ms",
    "transformers / ours",
)


def measure(arguments: Arguments, dtype: NumberType) -> list[tuple[str, ...]]:
    """Rows of the table."""
    size = SIZES[arguments.size]
    tokens = np.random.default_rng(0).integers(0, size.vocab_size, (size.batch, size.length + 1), dtype=np.int32)
    mixtures = {"dense": None} | {name: MIXTURES[name] for name in arguments.mixtures}
    configs = {name: config_of(size, mixture) for name, mixture in mixtures.items()}
    contenders = {}
    for name, config in configs.items():
        contenders[name, "gradients"] = our_gradients(config, dtype, tokens)
        contenders[name, "step"] = our_step(config, dtype, tokens)
        if arguments.torch and (mixture := mixtures[name]) is not None:
            # One for all of as many experts: it knows no capacity.
            peer = dataclasses.replace(mixture, dispatch=Dropless())
            if peer not in contenders:
                contenders[peer] = torch_gradients(size, peer, dtype, tokens)
    seconds = {key: median(times) for key, times in alternate(contenders, arguments.rounds).items()}

    def row(name: str) -> tuple[str, ...]:
        cells = [name, dtype, f"{count.parameters(configs[name]):,}", f"{count.active_parameters(configs[name]):,.0f}"]
        for part in ("gradients", "step"):
            time = seconds[name, part]
            cells += [f"{1000 * time:.1f}", f"{time / seconds['dense', part]:.3f}"]
        if not arguments.torch or mixtures[name] is None:
            return (*cells, "-", "-")
        time = seconds[dataclasses.replace(mixtures[name], dispatch=Dropless())]
        return (*cells, f"{1000 * time:.1f}", f"{time / seconds[name, 'gradients']:.2f}")

    return [row(name) for name in configs]


def main(arguments: Arguments) -> None:
    """Measures and prints the table."""
    if arguments.smoke:
        arguments = dataclasses.replace(arguments, **SMOKE)
    if arguments.torch:
        require("torch", "transformers")
    rows = [row for dtype in arguments.dtypes for row in measure(arguments, dtype)]
    packages = ("jax", "torch", "transformers") if arguments.torch else ("jax",)
    text = f"{machine(*packages)}\n\n{markdown(HEADER, rows)}"
    print(text)
    if arguments.publish:
        publish(arguments.table, text)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=Path(__file__).name + ": " + __doc__))
