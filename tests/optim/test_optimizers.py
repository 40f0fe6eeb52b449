import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax.core import config_text
from llm_jax.core.trees import named_leaves
from llm_jax.layers.roles import ParameterBox, Role
from llm_jax.optim.decay_masks import DecayAll, DecayMatching, DecayMatrices
from llm_jax.optim.optimizers import (
    AdafactorConfig,
    AdamConfig,
    AdamWConfig,
    LionConfig,
    MuonConfig,
    ScheduleFreeAdamWConfig,
    SGDConfig,
)
from llm_jax.optim.schedules import Constant, Cosine, Linear

STEPS = 40
LAYERS = 2
TABLE = {"embed": {"table": ((11, 8), ("vocab", "embed"), Role.EMBEDDING)}}
LAYER = {
    "query": {
        "kernel": ((8, 2, 6), ("embed", "heads", "head_dim"), Role.MATRIX),
        "bias": ((2, 6), ("heads", "head_dim"), Role.BIAS),
    },
    "out": {"kernel": ((2, 6, 8), ("heads", "head_dim", "embed"), Role.MATRIX)},
    "norm": {"scale": ((8,), ("norm",), Role.NORM)},
}
CONFIGS = [
    AdamWConfig(peak_lr=0.05),
    AdafactorConfig(peak_lr=0.05, min_factored_size=4, weight_decay=0.1),
    AdafactorConfig(peak_lr=0.05, min_factored_size=4, scale_by_parameter=False, momentum=0.9, clip_threshold=None),
    LionConfig(peak_lr=0.02, weight_decay=0.1),
    MuonConfig(peak_lr=0.1),
    MuonConfig(peak_lr=0.05, matched_rms=None, nesterov=False, adam=AdamConfig(peak_lr=0.1)),
    SGDConfig(peak_lr=0.05, clip_norm=None),
    SGDConfig(peak_lr=0.3, momentum=0.0, clip_norm=None, weight_decay=0.01),
    ScheduleFreeAdamWConfig(peak_lr=0.1),
]


def name(config):
    return type(config).__name__.removesuffix("Config")


def is_spec(node):
    return isinstance(node, tuple)


def stacked():
    """Shapes and axes of layers in one stack."""
    stack = jax.tree.map(lambda spec: ((LAYERS, *spec[0]), ("layers", *spec[1]), spec[2]), LAYER, is_leaf=is_spec)
    return {**TABLE, "stack": stack}


def separate():
    """Shapes and axes of the same layers, each with parameters of its own."""
    return {**TABLE, **{f"layer{index}": LAYER for index in range(LAYERS)}}


def random(specs, what, dtype=jnp.float32):
    rng = np.random.default_rng(len(what))
    return jax.tree.map(lambda spec: rng.normal(size=spec[0]).astype(dtype), specs, is_leaf=is_spec)


def unstack(tree):
    layers = {f"layer{index}": jax.tree.map(lambda x, i=index: x[i], tree["stack"]) for index in range(LAYERS)}
    return {"embed": tree["embed"], **layers}


def build(config, specs, steps=STEPS):
    def box(spec):
        shape, logical_axes, role = spec
        return ParameterBox(jax.ShapeDtypeStruct(shape, jnp.float32), logical_axes, role=role)

    return config.build(steps, jax.tree.map(box, specs, is_leaf=is_spec))


def run(transformation, params, gradient, steps=STEPS):
    """The parameters and state after some updates, in one compiled loop."""

    def step(carry, index):
        params, state = carry
        updates, state = transformation.update(gradient(params, index), state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def loop(params):
        return jax.lax.scan(step, (params, transformation.init(params)), jnp.arange(steps))[0]

    return jax.device_get(loop(params))


def swing(base):
    """A gradient that differs at every step and depends on the parameters."""
    return lambda params, index: jax.tree.map(lambda g, p: g * jnp.cos(index + g) + 0.3 * p, base, params)


def close(a, b, rtol=2e-5, atol=2e-6):
    a, b = dict(named_leaves(a)), dict(named_leaves(b))
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=rtol, atol=atol, err_msg=path)


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_descends_a_quadratic(config):
    specs = stacked()
    target, start = random(specs, "target"), random(specs, "initial")

    def distance(params):
        return sum(((a - b) ** 2).sum() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(target), strict=True))

    config = dataclasses.replace(config, weight_decay=0.0)
    params, state = run(build(config, specs), start, lambda params, _: jax.grad(distance)(params))
    assert distance(config.evaluation_params(state, params)) < 0.5 * distance(start)


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_a_stack_of_layers_is_updated_as_separate_layers_are(config):
    config = dataclasses.replace(config, clip_norm=2.0, decay_mask=DecayMatrices(), weight_decay=0.1)
    gradients, start = random(stacked(), "gradients"), random(stacked(), "start")
    together, state = run(build(config, stacked()), start, swing(gradients), steps=5)
    apart, apart_state = run(build(config, separate()), unstack(start), swing(unstack(gradients)), steps=5)
    assert jax.tree.structure(together) != jax.tree.structure(apart)
    # Muon's iteration has steep slopes: it magnifies the rounding of a product summed in another order.
    tolerance = 1e-3 if isinstance(config, MuonConfig) else 2e-5
    close(unstack(together), apart, rtol=tolerance, atol=tolerance / 10)
    averages = config.evaluation_params(state, together), config.evaluation_params(apart_state, apart)
    close(unstack(averages[0]), averages[1], rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_state_is_float32_and_abstract_and_compiles_once(config):
    specs = stacked()
    transformation = build(config, specs)
    params = random(specs, "params", jnp.bfloat16)
    abstract = jax.eval_shape(transformation.init, jax.eval_shape(lambda: params))
    state = jax.jit(transformation.init)(params)
    assert jax.eval_shape(lambda: state) == abstract
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} <= {"float32", "int32"}

    update = jax.jit(transformation.update)
    for _ in range(2):
        updates, state = update(params, state, params)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(updates)} == {"float32"}
    assert jax.eval_shape(lambda: state) == abstract
    assert update._cache_size() == 1
    average = config.evaluation_params(state, params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((params, average))} == {"bfloat16"}


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_moments_lie_under_their_parameters_paths(config):
    """Shardings of the optimizer state are found by these paths."""
    specs = stacked()
    state = jax.eval_shape(build(config, specs).init, random(specs, "params"))
    paths = [path for path, _ in named_leaves(random(specs, "params"))]
    for path, leaf in named_leaves(state):
        if leaf.ndim > 1:
            assert any(path.endswith("/" + parameter) for parameter in paths), path


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_survives_text(config):
    assert config_text.parse(config_text.to_text(config)) == config


def clipped(gradients, clip_norm):
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in gradients.values()))
    return {path: g * min(1, clip_norm / norm) for path, g in gradients.items()}


def numpy_run(direction, config, decayed, start, steps, run_steps):
    """The frame all optimizers share, in float64; `direction(path, gradient, count)` is the optimizer's own part."""
    params = {path: np.asarray(x, np.float64) for path, x in named_leaves(start)}
    for index in range(steps):
        gradients = {path: np.cos(index + x) + 0.1 * x for path, x in params.items()}
        if config.clip_norm is not None:
            gradients = clipped(gradients, config.clip_norm)
        rate = float(config.learning_rate(run_steps)(index))
        for path, gradient in gradients.items():
            decay = config.weight_decay * params[path] if path in decayed else 0
            params[path] = params[path] - rate * (direction(path, gradient, index + 1) + decay)
    return params


def compare_with_numpy(config, direction, decayed):
    start = random(stacked(), "start")
    wave = lambda params, index: jax.tree.map(lambda p: jnp.cos(index + p) + 0.1 * p, params)  # noqa: E731
    params, _ = run(build(config, stacked(), steps=8), start, wave, steps=5)
    wanted = numpy_run(direction, config, decayed, start, steps=5, run_steps=8)
    unmoved = dict(named_leaves(start))
    for path, x in named_leaves(params):
        assert np.abs(np.asarray(x - unmoved[path])).max() > 1e-3
        np.testing.assert_allclose(x, wanted[path], rtol=1e-5, atol=1e-5, err_msg=path)


MATRICES = {"embed/table", "stack/query/kernel", "stack/out/kernel"}


@pytest.mark.parametrize(
    "mask, decayed",
    [
        (DecayMatrices(), MATRICES),
        (DecayAll(exclude=("out",)), {"embed/table", "stack/query/kernel", "stack/query/bias", "stack/norm/scale"}),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_adamw_is_the_published_algorithm(mask, decayed):
    config = AdamWConfig(
        peak_lr=0.03, b2=0.99, weight_decay=0.5, decay_mask=mask, clip_norm=1.0, schedule=Cosine(warmup_steps=2)
    )
    mean, square = {}, {}

    def direction(path, g, count):
        mean[path] = 0.9 * mean.get(path, 0) + 0.1 * g
        square[path] = 0.99 * square.get(path, 0) + 0.01 * g**2
        return mean[path] / (1 - 0.9**count) / (np.sqrt(square[path] / (1 - 0.99**count)) + 1e-8)

    compare_with_numpy(config, direction, decayed)


def test_lion_is_the_published_algorithm():
    momentum = {}

    def direction(path, g, count):
        old = momentum.get(path, 0)
        momentum[path] = 0.98 * old + 0.02 * g
        return np.sign(0.9 * old + 0.1 * g)

    compare_with_numpy(LionConfig(peak_lr=0.01, b2=0.98, weight_decay=0.5), direction, MATRICES)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_the_published_algorithm(nesterov):
    velocity = {}

    def direction(path, g, count):
        velocity[path] = 0.8 * velocity.get(path, 0) + g
        return g + 0.8 * velocity[path] if nesterov else velocity[path]

    config = SGDConfig(peak_lr=0.1, momentum=0.8, nesterov=nesterov, weight_decay=0.5, schedule=Linear())
    compare_with_numpy(config, direction, MATRICES)


def test_schedule_free_is_the_published_algorithm():
    """Algorithm 1 of arXiv:2405.15682 with y, x and z written out; the warm-up weighs iterates by their own rates."""
    config = ScheduleFreeAdamWConfig(
        peak_lr=0.03, b1=0.8, b2=0.99, weight_decay=0.5, clip_norm=1.0, schedule=Constant(warmup_steps=3)
    )
    start = random(stacked(), "start")
    wave = lambda params, index: jax.tree.map(lambda p: jnp.cos(index + p) + 0.1 * p, params)  # noqa: E731
    params, state = run(build(config, stacked()), start, wave, steps=6)

    x = {path: np.asarray(leaf, np.float64) for path, leaf in named_leaves(start)}
    y, z, square, weights = dict(x), dict(x), dict.fromkeys(x, 0), 0
    for index in range(6):
        gradients = clipped({path: np.cos(index + p) + 0.1 * p for path, p in y.items()}, 1.0)
        rate = 0.03 * min(1, (index + 1) / 4)
        weights += rate**2
        for path, g in gradients.items():
            square[path] = 0.99 * square[path] + 0.01 * g**2
            step = g / (np.sqrt(square[path] / (1 - 0.99 ** (index + 1))) + 1e-8)
            z[path] = z[path] - rate * (step + (0.5 * y[path] if path in MATRICES else 0))
            x[path] = x[path] + rate**2 / weights * (z[path] - x[path])
            y[path] = 0.2 * z[path] + 0.8 * x[path]
    average = config.evaluation_params(state, params)
    assert max(np.abs(x[path] - y[path]).max() for path in x) > 1e-3
    for path, leaf in named_leaves(params):
        np.testing.assert_allclose(leaf, y[path], rtol=1e-5, atol=1e-5, err_msg=path)
    for path, leaf in named_leaves(average):
        np.testing.assert_allclose(leaf, x[path], rtol=1e-5, atol=1e-5, err_msg=path)


def test_only_schedule_free_evaluates_other_parameters():
    params = random(stacked(), "params")
    for config in CONFIGS:
        state = jax.eval_shape(build(config, stacked()).init, params)
        if not isinstance(config, ScheduleFreeAdamWConfig):
            assert config.evaluation_params(state, params) is params
    adam = jax.eval_shape(build(AdamWConfig(peak_lr=1.0), stacked()).init, params)
    with pytest.raises(ValueError, match="has 0 schedule-free states"):
        ScheduleFreeAdamWConfig(peak_lr=1.0).evaluation_params(adam, params)


def test_clipping_bounds_the_global_norm():
    params = random(stacked(), "params")
    huge = jax.tree.map(lambda x: 100 * x, params)
    for clip_norm in (0.5, None):
        config = SGDConfig(peak_lr=1.0, momentum=0.0, clip_norm=clip_norm)
        transformation = build(config, stacked())
        updates, _ = jax.jit(transformation.update)(huge, jax.jit(transformation.init)(params), params)
        assert optax.global_norm(updates) == pytest.approx(clip_norm or float(optax.global_norm(huge)), rel=1e-5)


def test_the_learning_rate_is_the_schedules():
    config = SGDConfig(peak_lr=0.2, momentum=0.0, clip_norm=None, schedule=Linear(warmup_steps=3))
    transformation, params = build(config, stacked()), random(stacked(), "params")
    state, ones = jax.jit(transformation.init)(params), jax.tree.map(np.ones_like, params)
    update = jax.jit(transformation.update)
    for index in range(6):
        updates, state = update(ones, state, params)
        assert -updates["embed"]["table"][0, 0] == config.learning_rate(STEPS)(index)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: AdamWConfig(peak_lr=0.0), "peak_lr is 0.0"),
        (lambda: AdamWConfig(peak_lr=1.0, weight_decay=-0.1), "weight_decay is -0.1"),
        (lambda: AdamWConfig(peak_lr=1.0, clip_norm=0.0), "clip_norm is 0.0.*None for no clipping"),
        (lambda: AdamWConfig(peak_lr=1.0, b1=1.0), "b1 is 1.0"),
        (lambda: AdamWConfig(peak_lr=1.0, b2=-0.1), "b2 is -0.1"),
        (lambda: AdamWConfig(peak_lr=1.0, epsilon=0.0), "epsilon is 0.0"),
        (lambda: LionConfig(peak_lr=1.0, b2=1.0), "b2 is 1.0"),
        (lambda: SGDConfig(peak_lr=1.0, momentum=1.0), "momentum is 1.0"),
        (lambda: SGDConfig(peak_lr=1.0, momentum=0.0, nesterov=True), "nesterov is True and momentum is 0"),
        (lambda: MuonConfig(peak_lr=1.0, iterations=0), "iterations is 0"),
        (lambda: MuonConfig(peak_lr=1.0, momentum=1.0), "momentum is 1.0"),
        (lambda: MuonConfig(peak_lr=1.0, matched_rms=0.0), "matched_rms is 0.0.*Jordan"),
        (lambda: AdamConfig(peak_lr=-1.0), "peak_lr is -1.0.*Muon's own"),
        (lambda: AdamConfig(b2=1.0), "b2 is 1.0"),
        (lambda: AdafactorConfig(peak_lr=1.0, exponent=0.0), "exponent is 0.0"),
        (lambda: AdafactorConfig(peak_lr=1.0, clip_threshold=-1.0), "clip_threshold is -1.0"),
        (lambda: AdafactorConfig(peak_lr=1.0, min_factored_size=0), "min_factored_size is 0"),
        (lambda: AdafactorConfig(peak_lr=1.0, momentum=1.0), "momentum is 1.0"),
        (lambda: ScheduleFreeAdamWConfig(peak_lr=1.0, b1=0.0), "b1 is 0.0: it must be greater than 0"),
        (lambda: ScheduleFreeAdamWConfig(peak_lr=1.0, rate_power=-1.0), "rate_power is -1.0"),
        (lambda: build(AdamWConfig(peak_lr=1.0, schedule=Cosine(warmup_steps=50)), stacked()), "the run has 40 steps"),
        (
            lambda: build(AdamWConfig(peak_lr=1.0, decay_mask=DecayMatching(("lm_head",))), stacked()),
            "'lm_head' matches none",
        ),
        (lambda: AdamWConfig(peak_lr=1.0).build(1, {"a": jnp.zeros(2)}), "parameter a has no role"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
