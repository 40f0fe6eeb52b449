"""Converts loaded weights to the parameters of the experiment's model."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core import config_text, rng, trees
from llm_jax.core.checks import check, did_you_mean
from llm_jax.models.architecture import architecture
from llm_jax.models.build import Model, abstract_parameters, build, initial_parameters
from llm_jax.models.config import GeneratorDiscriminatorConfig
from llm_jax.models.upcycle import check_upcycles, has_experts, upcycled
from llm_jax.sharding import axes
from llm_jax.starts.start import Start, Weights


@dataclasses.dataclass(frozen=True)
class Fit:
    """Weights for a model, and the parameters that they do not fill. Built and checked by `of`."""

    weights: Weights
    model: Model
    drawn: tuple[str, ...]
    """Names of the parameters that are randomly initialised."""
    resized: tuple[str, ...]
    """Names of the parameters with a vocabulary axis of another size. Only the rows that both models have are loaded.
    """
    upcycles: bool
    """Whether experts are initialised as copies of a dense ffn (sparse upcycling)."""

    @classmethod
    def of(cls, start: Start, model: Model) -> "Fit":
        """Checks the weights of `start` against a model.

        Raises:
          ValueError: if the weights belong to a model that differs in more than what `start` allows, or `start` names a
            parameter that the model does not have.
        """
        weights = _of_discriminator(start.find(), model)
        shapes, logical_axes = abstract_parameters(model)
        wanted, named = dict(trees.named_leaves(shapes)), dict(_named(logical_axes))
        _check_names(start.fresh, list(wanted))
        drawn = tuple(name for name in wanted if _is_fresh(name, start.fresh))
        if has_experts(model.config) and not has_experts(weights.config):
            check(
                not start.fresh and not start.resized_vocabulary,
                f"{weights.origin} is dense and the model has MoE layers: upcycling permits no other difference; "
                "remove start.fresh and start.resized_vocabulary",
            )
            check_upcycles(weights.config, model.config)
            return cls(weights, model, tuple(name for name in wanted if "/ffn/router/" in name), (), True)
        _check_config(start, weights, model)
        found = dict(trees.named_leaves(abstract_parameters(build(weights.config, model.precision))[0]))
        tables = [name for name in wanted if axes.VOCAB in named[name] and name not in drawn]
        resized = tuple(name for name in tables if name in found and found[name].shape != wanted[name].shape)
        for name in wanted.keys() - set(drawn) - set(resized):
            there = f"has {found[name].shape}" if name in found else "does not have it"
            check(
                name in found and found[name].shape == wanted[name].shape,
                f"{name} has shape {wanted[name].shape} in the experiment's model, and {weights.origin} {there}: add "
                "it to start.fresh to initialise it",
            )
        return cls(weights, model, drawn, resized, False)

    def parameters(self, seed: int) -> Any:
        """Reads the weights. Drawn parameters are those of a run with this seed and without a start."""
        precision = self.model.precision
        given = self.weights.load(precision)
        if self.upcycles:
            source = build(self.weights.config, precision)
            return upcycled(source.config, given, self.model, rng.key(seed, "upcycle"))
        shapes, logical_axes = abstract_parameters(self.model)
        there, named = dict(trees.named_leaves(given)), dict(_named(logical_axes))
        drawn = _drawn(self.model, {*self.drawn, *self.resized}, rng.key(seed, "parameters"))

        def leaf(path: tuple, wanted: jax.ShapeDtypeStruct) -> Any:
            name = trees.path_name(path)
            if name in self.drawn:
                return drawn[name]
            value = there[name]
            if name in self.resized:
                axis = named[name].index(axes.VOCAB)
                rows = min(value.shape[axis], wanted.shape[axis])
                common = (slice(None),) * axis + (slice(rows),)
                value = drawn[name].at[common].set(jnp.asarray(value)[common])
            return jnp.asarray(value, wanted.dtype)

        return jax.tree_util.tree_map_with_path(leaf, shapes)

    def facts(self) -> dict[str, Any]:
        """Facts about the initial weights for the run card."""
        count = len(list(trees.named_leaves(abstract_parameters(self.model)[0])))
        return {
            "weights": self.weights.origin,
            "loaded": count - len(self.drawn),
            "drawn": list(self.drawn),
            "resized": list(self.resized),
        }

    def __str__(self) -> str:
        facts = self.facts()
        text = f"{facts['loaded']} arrays from {facts['weights']}"
        for word in ("resized", "drawn"):
            if names := facts[word]:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                text += f"; {word}: {', '.join(names[:3])}{more}"
        return text


def _of_discriminator(weights: Weights, model: Model) -> Weights:
    """The weights of a discriminator without its generator, if `model` is another kind of model (Clark et al. 2020,
    arXiv:2003.10555, 3.1: the generator is thrown out after pretraining)."""
    config, load = weights.config, weights.load
    if not isinstance(config, GeneratorDiscriminatorConfig) or isinstance(model.config, GeneratorDiscriminatorConfig):
        return weights
    part = lambda precision: load(precision)["discriminator"]  # noqa: E731
    return dataclasses.replace(weights, config=config.discriminator, load=part)


def _check_config(start: Start, weights: Weights, model: Model) -> None:
    """Checks that the configs agree, except in what `start` allows."""
    found, wanted = architecture(weights.config), architecture(model.config)
    fields = {name.split("/")[0] for name in start.fresh} | ({"vocab_size"} if start.resized_vocabulary else set())
    if wanted.stacks[-1].multi_token is None:
        # The forward pass does not run these modules: a model without them is trained from the rest of the weights.
        fields.add("multi_token")
    lines = [line for line in config_text.diff(wanted, found) if line.partition(":")[0].split(".")[0] not in fields]
    check(
        not lines,
        f"{weights.origin} holds another model than the experiment's: {'; '.join(lines[:4])}; use its model "
        "(read_config of a folder), or add the parameters to initialise to start.fresh",
    )


def _check_names(fresh: tuple[str, ...], names: list[str]) -> None:
    """Checks that each of `fresh` is a prefix of a parameter's name."""
    parts = sorted({"/".join(name.split("/")[:depth]) for name in names for depth in range(1, name.count("/") + 2)})
    for one in fresh:
        check(
            one in parts,
            f"start.fresh has {one!r}, and no parameter name of the model starts with it{did_you_mean(one, parts)}; "
            "`llm-jax shardings` lists the names",
        )


def _is_fresh(name: str, fresh: tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(f"{one}/") for one in fresh)


def _drawn(model: Model, names: set[str], key: jax.Array) -> dict[str, jax.Array]:
    """The parameters `names` as initialised without a start. The compiler removes the computation of all others."""
    if not names:
        return {}

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        found = trees.named_leaves(nn.unbox(initial_parameters(model, key)))
        return {name: value for name, value in found if name in names}

    return jax.jit(draw)(key)


def _named(logical_axes: Any) -> Any:
    """(name, logical axes) of every parameter."""
    return trees.named_leaves(logical_axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
