"""A mixer, an objective, an evaluation and a hook of one's own: how to try an idea without changing the package.

Paper:    none. The mixer is the simplest recurrence that learns anything: moving averages of the past, each feature
          at a rate of its own. The objective smooths its targets (Szegedy et al. 2016, arXiv:1512.00567, section 7).
          The evaluation is that of induction heads (Olsson et al. 2022, arXiv:2209.11895).
Claim:    it trains, resumes, generates, reports and is divided over devices like what the package brings.
Command:  llm-jax train experiments/examples/own_parts.py
Hardware: one CPU core, about a minute.

Each component is a config type, derived from the base that documents what it must have. The run directory keeps a copy
of this file, so that the run can be read back after the file has changed.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.core.checks import check_fraction, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.core.metrics import Ratio
from llm_jax.data import CorpusConfig, DataConfig, StandardLibraryConfig
from llm_jax.evals import EvaluatedRun, Evaluation, Evaluator, PerplexityConfig
from llm_jax.experiment import Experiment
from llm_jax.layers import GLUConfig, Mixer, RMSNormConfig
from llm_jax.layers.context import Context
from llm_jax.layers.initialisers import FanIn, annotated
from llm_jax.layers.linear import LinearLayer
from llm_jax.layers.recurrent.document_starts import documents
from llm_jax.layers.recurrent.linear_recurrence import linear_recurrence
from llm_jax.layers.roles import Role
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.block import BlockConfig
from llm_jax.models.build import applied
from llm_jax.models.config import TransformerConfig
from llm_jax.models.inputs import Inputs
from llm_jax.models.stack import Segment
from llm_jax.objectives import CausalLMConfig
from llm_jax.optim import AdamWConfig, Cosine
from llm_jax.sharding import axes
from llm_jax.tokenizers import ByteTokenizerConfig
from llm_jax.train import Hook, HookConfig, TrainingRun


@flax.struct.dataclass
class AverageState:
    """What generation carries from token to token."""

    average_BR: jax.Array
    segment_ids_B: jax.Array


@configclass
class MovingAverageConfig(Mixer):
    """out(sigmoid(gate(x)) * average(value(x))), where average_t = a average_(t-1) + (1 - a) value_t with a learned `a`
    of each feature. Legend: B batch, T length, D model width, R features."""

    features: int
    slowest: float = 0.99
    """Largest `a` at the beginning; the others are spread evenly between 0 and it."""

    def __post_init__(self):
        check_positive(features=self.features)
        check_fraction(slowest=self.slowest)

    def build(self, width: int, precision: Precision, name: str) -> "MovingAverage":
        return MovingAverage(self, width, precision, name=name)

    def parameters(self, width: int) -> int:
        return 3 * width * self.features + self.features

    def matrix_flops(self, width: int) -> float:
        return 6 * width * self.features

    def mixing_flops(self, length: int) -> float:
        return 0.0

    def allocate(self, batch: int, slots: int, dtype: jnp.dtype) -> AverageState:
        return AverageState(jnp.zeros((batch, self.features), jnp.float32), jnp.zeros(batch, jnp.int32))

    @property
    def causal(self) -> bool:
        return True

    @property
    def shape(self) -> str:
        return f"{self.features} moving averages"


class MovingAverage(nn.Module):
    """x [B, T, D] -> [B, T, D]."""

    config: MovingAverageConfig
    width: int
    precision: Precision

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, state: AverageState | None = None
    ) -> tuple[jax.Array, AverageState | None]:
        features = self.config.features
        # A word of sharding/axes.py for each axis of a parameter says how devices may divide it, and its role
        # (layers/roles.py) how optimizers treat it: weight decay spares a rate. The kernels of Linear have theirs.
        into = lambda name: LinearLayer(  # noqa: E731
            "BTD,DR->BTR", (self.width, features), (axes.EMBED, axes.MLP), FanIn(), self.precision, name=name
        )
        gate_BTR, value_BTR = into("gate")(x_BTD), into("value")(x_BTD).astype(jnp.float32)
        init = annotated(self._rates, (axes.MLP,), Role.RATE)
        rate_R = self.param("rate", init, (features,), self.precision.param_dtype)
        row = documents(context.queries, None if state is None else state.segment_ids_B)
        starts_BT1, real_BT1 = row.starts_BT[..., None], row.real_BT[..., None]
        a_R = jax.nn.sigmoid(rate_R.astype(jnp.float32))
        # A document begins at 0, and padding passes the average on.
        decay_BTR = jnp.where(starts_BT1, 0, jnp.where(real_BT1, a_R, 1))
        input_BTR = jnp.where(real_BT1, (1 - a_R) * value_BTR, 0)
        before_BR = jnp.zeros((len(x_BTD), features)) if state is None else state.average_BR
        average_BTR = linear_recurrence(decay_BTR, input_BTR, before_BR)
        out = LinearLayer(
            "BTR,RD->BTD", (features, self.width), (axes.MLP, axes.EMBED), FanIn(), self.precision, name="out"
        )
        y_BTD = out(jax.nn.sigmoid(gate_BTR) * average_BTR.astype(self.precision.dtype))
        return y_BTD, None if state is None else AverageState(average_BTR[:, -1], row.last_B)

    def _rates(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        a_R = jnp.linspace(0, self.config.slowest, shape[0] + 1)[1:]
        return jnp.log(a_R / (1 - a_R)).astype(dtype)


@configclass
class SmoothedConfig(CausalLMConfig):
    """Next-token prediction in which every other token has a share of the target."""

    smoothing: float = 0.1
    """Share that is spread over the whole vocabulary."""

    def __post_init__(self):
        super().__post_init__()
        check_fraction(smoothing=self.smoothing)

    def loss(self, model, params, batch, key=None, whole=None):
        """As `Objective.loss`; the metric 'loss' stays that of the true targets, to be compared with other runs."""
        rngs = None if key is None else {"dropout": key}
        logits_BTV = applied(model, params, batch.inputs, rngs=rngs).logits_BTV
        log_p_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.float32))
        true_BT = -jnp.take_along_axis(log_p_BTV, batch.targets_BT[..., None], axis=-1)[..., 0]
        others_BT = -jnp.mean(log_p_BTV, axis=-1)
        loss = Ratio.of(true_BT, batch.loss_weights_BT)
        spread = Ratio.of(others_BT, batch.loss_weights_BT)
        hit_BT = jnp.argmax(logits_BTV, axis=-1) == batch.targets_BT
        total = (1 - self.smoothing) * loss.total + self.smoothing * spread.total
        return total, {"loss": loss, "accuracy": Ratio.of(hit_BT, batch.loss_weights_BT), "spread": spread}


@configclass
class CopyingConfig(Evaluation):
    """How often the model mispredicts random bytes that it has read before in the same sequence. Legend: B sequences,
    T length, H half of it, V vocabulary."""

    rows: int = 8
    half: int = 32
    """Bytes that are drawn; each sequence holds them twice."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(rows=self.rows, half=self.half)

    def metrics(self, experiment: Experiment) -> tuple[str, ...]:
        return ("copying/error",)

    def build(self, run: EvaluatedRun) -> Evaluator:
        @jax.jit
        def error(params, key):
            drawn_BH = jax.random.randint(key, (self.rows, self.half), 0, 256)
            tokens_BT = jnp.concatenate([drawn_BH, drawn_BH], axis=1)
            positions_BT = jnp.broadcast_to(jnp.arange(2 * self.half), tokens_BT.shape)
            inputs = Inputs(tokens_BT, SequenceInfo(positions_BT, jnp.ones_like(tokens_BT)))
            logits_BTV = applied(run.programs.model, params, inputs).logits_BTV
            return jnp.mean(jnp.argmax(logits_BTV[:, self.half - 1 : -1], axis=-1) != drawn_BH)

        return lambda weights, key: {"copying": {"error": error(weights.params, key)}}


@configclass
class RatesConfig(HookConfig):
    """Records how long the averages of the first block remember."""

    every: int = 50
    """Updates between two records."""

    def __post_init__(self):
        check_positive(every=self.every)

    def build(self, run: TrainingRun) -> Hook:
        return Rates(self.every, run)


class Rates(Hook):
    """The shortest and the longest memory, 1 / (1 - a), in tokens."""

    def __init__(self, every: int, run: TrainingRun):
        self._every, self._run = every, run

    def due(self, step: int) -> bool:
        return step % self._every == 0

    def on_step(self, step, state):
        rates = [leaf for path, leaf in jax.tree.leaves_with_path(state.params) if "rate" in jax.tree_util.keystr(path)]
        memory = 1 + jnp.exp(rates[0].astype(jnp.float32))
        self._run.record("memory", step, shortest=float(memory.min()), longest=float(memory.max()))


def experiment() -> Experiment:
    block = BlockConfig(mixer=MovingAverageConfig(features=64), ffn=GLUConfig(hidden=192), norm=RMSNormConfig())
    return Experiment(
        name="own_parts",
        steps=200,
        tokenizer=ByteTokenizerConfig(),
        data=DataConfig(CorpusConfig(StandardLibraryConfig()), sequence_length=128, batch_size=8),
        model=TransformerConfig(
            vocab_size=260,  # that of bytes and three special ids, rounded up so that two devices can divide it
            width=64,
            max_length=128,
            segments=(Segment(blocks=(block,), repeats=2),),
            final_norm=RMSNormConfig(),
        ),
        objective=SmoothedConfig(),
        optimizer=AdamWConfig(peak_lr=3e-3, schedule=Cosine(warmup_steps=20)),
        evaluations=(PerplexityConfig(every=100, max_bytes=50_000), CopyingConfig(every=100)),
        hooks=(RatesConfig(),),
    )
