"""The training options of a config.json: dropout rates and the scale of initial values.

They do not change what a model with given weights computes. Both are read into the model and written with it.
"""

import dataclasses
from collections.abc import Iterator, Set
from typing import Any

from llm_jax.core.checks import check
from llm_jax.interop.family import Family
from llm_jax.interop.settings import Settings
from llm_jax.layers.initialisers import Init, Normal
from llm_jax.models.config import ModelConfig
from llm_jax.models.dropout import Rates, rates_of, with_dropout
from llm_jax.models.heads import ClassHead

Option = tuple[str, float]
"""(name of an option, transformers' default). A dot separates the names of nested options.

transformers requires the type of its default: if the default is an integer, a whole rate is written as an integer."""


def _alike(option: Option, *fields: str) -> dict[str, Option]:
    return dict.fromkeys(fields, option)


_ATTENTION: dict[str, Option] = {"attention": ("attention_dropout", 0.0)}
_GPT2 = {"residual": ("resid_pdrop", 0.1), "embed": ("embd_pdrop", 0.1), "attention": ("attn_pdrop", 0.1)}
_GPTJ = {field: (name, 0.0) for field, (name, _) in _GPT2.items()}
_DBRX = {"residual": ("resid_pdrop", 0.0), "embed": ("emb_pdrop", 0.0), "attention": ("attn_config.attn_pdrop", 0.0)}
_MPT = _DBRX | {"attention": ("attn_config.attn_pdrop", 0)}
_BERT = {
    "residual": ("hidden_dropout_prob", 0.1),
    "embed": ("hidden_dropout_prob", 0.1),
    "attention": ("attention_probs_dropout_prob", 0.1),
    "head": ("classifier_dropout", 0.1),
}
_DISTILBERT = {
    "residual": ("dropout", 0.1),
    "embed": ("dropout", 0.1),
    "attention": ("attention_dropout", 0.1),
    "head": ("seq_classif_dropout", 0.2),
}
_ALBERT = {field: (name, 0.0) for field, (name, _) in _BERT.items()} | {"head": ("classifier_dropout_prob", 0.1)}
_BART = {
    "residual": ("dropout", 0.1),
    "embed": ("dropout", 0.1),
    "attention": ("attention_dropout", 0.0),
    "ffn": ("activation_dropout", 0.0),
}
_T5 = _alike(("dropout_rate", 0.1), "residual", "embed", "attention", "ffn", "final")

_RATES: dict[str, dict[str, Option]] = {
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gptj": _GPTJ,
    "gpt_neox": _ATTENTION | _alike(("hidden_dropout", 0.0), "residual", "embed"),
    "opt": _ATTENTION | {"residual": ("dropout", 0.1), "layers": ("layerdrop", 0.0)},
    "phi3": _ATTENTION | {"residual": ("resid_pdrop", 0.0), "embed": ("embd_pdrop", 0.0)},
    "starcoder2": _ATTENTION | {"residual": ("residual_dropout", 0.0), "embed": ("embedding_dropout", 0.0)},
    "falcon": _ATTENTION | {"residual": ("hidden_dropout", 0.0)},
    "bloom": _ATTENTION | {"residual": ("hidden_dropout", 0.0)},
    "mpt": _MPT,
    "dbrx": _DBRX,
    "phi": _ATTENTION | {"residual": ("resid_pdrop", 0.0), "embed": ("embd_pdrop", 0.0)},
    "gpt_neo": _ATTENTION | {"residual": ("resid_dropout", 0.0), "embed": ("embed_dropout", 0.0)},
    "persimmon": _ATTENTION | {"residual": ("hidden_dropout", 0.0)},
    "stablelm": _ATTENTION | {"residual": ("hidden_dropout", 0.0)},
    "codegen": _GPTJ,
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "mpnet": _BERT | {"head": ("hidden_dropout_prob", 0.1)},
    # DistilBERT has dropout after the ffn only; here `residual` applies to both branches.
    "distilbert": _DISTILBERT,
    "electra": _BERT,
    "albert": _ALBERT,
    # ModernBERT drops what attention writes at the rate of its weights too; here that is `residual`, and left alone.
    "modernbert": _ATTENTION
    | {"embed": ("embedding_dropout", 0.0), "ffn": ("mlp_dropout", 0.0), "head": ("classifier_dropout", 0.0)},
    "bart": _BART,
    "mbart": _BART,
    "pegasus": _BART,
    "marian": _BART,
    "t5": _T5,
    "mt5": _T5,
    "umt5": _T5,
    "switch_transformers": _T5 | {"experts": ("dropout_rate", 0.1)},
    "xlnet": _alike(("dropout", 0.1), "residual", "embed", "attention", "ffn", "final")
    | {"head": ("summary_last_dropout", 0.1)},
    "mamba2": {},
}
"""{model_type: {field of `Rates`: its option}}. A type that is missing has only `attention_dropout`."""

_LAYER_DROP = {"encoder": "encoder_layerdrop", "decoder": "decoder_layerdrop"}
"""Options of layer dropout in BART and the families of `_OF_BART`."""

_OF_BART = ("bart", "mbart", "pegasus", "marian")

_DEVIATIONS = {"opt": "init_std", "bart": "init_std", "mbart": "init_std"}
"""{model_type: option of the standard deviation of initial values}; for other types it is `initializer_range`."""
_FACTORS = {"t5", "mt5", "umt5", "switch_transformers"}
"""Types whose `initializer_factor` multiplies all initial values."""
_BY_SIZE = {"gpt_neox", "gptj", "mpt", "marian", "pegasus", "recurrent_gemma"}
"""Types whose initial values follow from their sizes. Their option was not used in training and is ignored."""


def read(family: Family, options: dict[str, Any], tensors: Set[str] | None = None) -> ModelConfig:
    """The model of a config.json, with its dropout rates and initial values.

    Args:
      tensors: as in `Settings`.

    Raises:
      ValueError: as `family.read`, and for an invalid rate or scale; the message names the option.
    """
    config = family.read(Settings(options, tensors=tensors))
    config = _with_initial_values(config, family.model_type, options)
    rates, kind = {}, family.model_type
    for field, (name, default) in _RATES.get(kind, _ATTENTION).items():
        stated = _stated(options, name)
        if stated is None and name == "classifier_dropout":
            # transformers uses the rate of hidden states.
            stated = _stated(options, "hidden_dropout_prob")
        rates[field] = _share(name, default if stated is None else stated)
    present = rates_of(config)
    if not _drops_before_scores(config, kind):
        rates.pop("head", None)
    config = with_dropout(config, Rates(**{name: rate for name, rate in rates.items() if _has(present, name)}))
    if kind in _OF_BART:
        for side, name in _LAYER_DROP.items():
            layers = Rates(layers=_share(name, _stated(options, name) or 0.0))
            config = dataclasses.replace(config, **{side: with_dropout(getattr(config, side), layers)})
    return config


def write(family: Family, config: ModelConfig) -> dict[str, Any]:
    """The options that `read` reads. If fields that share an option differ, the first is written."""
    options, rates, kind = dict(family.write(config)), rates_of(config), family.model_type
    for field, (name, default) in reversed(_RATES.get(kind, _ATTENTION).items()):
        if (field != "head" or _drops_before_scores(config, kind)) and (rate := getattr(rates, field)) is not None:
            rate = int(rate) if isinstance(default, int) and rate == int(rate) else rate
            parent, _, leaf = name.rpartition(".")
            options |= {parent: (_stated(options, parent) or {}) | {leaf: rate}} if parent else {leaf: rate}
    if kind in _OF_BART:
        options |= {name: rates_of(getattr(config, side)).layers for side, name in _LAYER_DROP.items()}
    table = config.stacks[-1].embed.init
    if kind in _FACTORS and isinstance(table, Normal):
        options["initializer_factor"] = table.stddev
    elif kind not in _BY_SIZE and isinstance(table, Normal):
        options[_DEVIATIONS.get(kind, "initializer_range")] = table.stddev
    return options


def _stated(options: dict[str, Any], name: str) -> Any:
    """The value of an option, nested or not; None if it is absent."""
    found: Any = options
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _has(rates: Rates, name: str) -> bool:
    return getattr(rates, name) is not None


def _drops_before_scores(config: ModelConfig, kind: str) -> bool:
    """Whether the transformers class with this head has dropout before the output projection."""
    head = config.stacks[-1].head
    if not isinstance(head, ClassHead):
        return False
    return (
        head.of == "sequence"
        or kind == "modernbert"
        or (head.of == "token" and head.transform is None and kind != "xlnet")
    )


def _share(name: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    check(
        number and 0 <= value < 1,
        f"config.json has {name} = {value!r}: a dropout rate must be at least 0 and less than 1",
    )
    return float(value)


def _with_initial_values(config: ModelConfig, kind: str, options: dict[str, Any]) -> ModelConfig:
    """The model with the initial scale of the options; without that option, the published one of the family."""
    name = "initializer_factor" if kind in _FACTORS else _DEVIATIONS.get(kind, "initializer_range")
    stated, table = _stated(options, name), config.stacks[-1].embed.init
    if stated is None or kind in _BY_SIZE or not isinstance(table, Normal):
        return config
    number = isinstance(stated, int | float) and not isinstance(stated, bool)
    check(number and stated > 0, f"config.json has {name} = {stated!r}: it must be greater than 0")
    if kind in _FACTORS:
        return _scaled(config, float(stated), (Init,))
    return _scaled(config, stated / table.stddev, (Normal,))


def _scaled(config: Any, factor: float, kinds: tuple[type, ...]) -> Any:
    """The config with the initial distributions of these types multiplied by `factor`."""
    if factor == 1:
        return config
    if isinstance(config, tuple):
        return tuple(_scaled(item, factor, kinds) for item in config)
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return config
    if isinstance(config, kinds):
        return dataclasses.replace(config, **{name: value * factor for name, value in _scales(config)})
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{name: _scaled(value, factor, kinds) for name, value in values.items()})


def _scales(init: Any) -> Iterator[tuple[str, float]]:
    """The name and value of a distribution's scale, its first field."""
    yield from [(field.name, getattr(init, field.name)) for field in dataclasses.fields(init)[:1]]
