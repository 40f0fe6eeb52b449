"""However a stack is run, it computes the same."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.models.build import abstract_parameters
from llm_jax.models.stack import Execution, Segment, in_stages, unstack, unstacked
from llm_jax.models.transformer import Transformer
from llm_jax.sharding.pipeline_schedule import PipelineSchedule
from llm_jax.sharding.platforms import tracing_for
from tests.helpers import tiny
from tests.helpers.published import PUBLISHED, executed

TOKENS = tiny.tokens(2, 8)


class Run:
    """Loss and gradients of a tiny model under one execution; every figure is made once."""

    def __init__(self, family: str, execution: Execution):
        self.family = family
        self.model = Transformer(dataclasses.replace(tiny.FAMILIES[family](), execution=execution))
        self.params = tiny.parameters(self.model)

    def loss(self, params: Any) -> jax.Array:
        logits_BTV = self.model.apply({"params": params}, TOKENS).logits_BTV
        return jnp.mean(jax.nn.logsumexp(logits_BTV, axis=-1) - logits_BTV[..., 0])

    @functools.cached_property
    def traced(self) -> Any:
        with tracing_for("cpu"):
            return jax.jit(jax.value_and_grad(self.loss)).trace(self.params)

    @functools.cached_property
    def result(self) -> Any:
        return self.traced.lower().compile()(self.params)

    @functools.cached_property
    def saved_bytes(self) -> int:
        """What the forward pass keeps for the backward pass."""
        return trees.size_bytes(jax.eval_shape(lambda params: jax.vjp(self.loss, params)[1], self.params))

    @functools.cached_property
    def program(self) -> str:
        return str(self.traced.jaxpr)

    @property
    def products(self) -> int:
        """Matrix products of forward and backward pass, one repeat counted."""
        return self.program.count("dot_general[")

    @property
    def loops(self) -> bool:
        """Whether a loop is left in what the compiler gets."""
        return "stablehlo.while" in self.traced.lower().as_text()


run = functools.cache(Run)


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def plain(request):
    return run(request.param, Execution(unroll=1))


def _same_result(one: Run, other: Run) -> None:
    (loss, gradient), (expected_loss, expected) = one.result, other.result
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for (name, actual), (_, wanted) in zip(trees.named_leaves(gradient), trees.named_leaves(expected), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5, err_msg=name)
        assert np.abs(wanted).max() > 0, name


def test_unrolled_is_scanned(plain):
    unrolled = run(plain.family, Execution(unroll=2))
    assert plain.loops and not unrolled.loops
    _same_result(unrolled, plain)


def test_unless_told_otherwise_only_few_layers_are_unrolled():
    assert not run("gpt2", Execution()).loops
    assert [Execution().turns(repeats) for repeats in (1, 8, 9, 96)] == [1, 8, 1, 1]
    assert [Execution(unroll=4).turns(repeats) for repeats in (1, 8, 9, 96)] == [1, 4, 4, 4]


def test_unrolling_keeps_the_layout_of_parameters():
    shapes = [abstract_parameters(run("llama", Execution(unroll=unroll)).model) for unroll in (1, 2, 99, None)]
    assert all(shape == shapes[0] for shape in shapes)
    assert {axes[0] for axes in jax.tree.leaves(shapes[0][1]["stack"], is_leaf=lambda x: isinstance(x, tuple))} == {
        "layers"
    }


@pytest.mark.parametrize("remat", ["full", "dots", "projections"])
def test_recomputation_changes_no_result(plain, remat):
    other = run(plain.family, Execution(remat, unroll=1))
    assert other.saved_bytes < plain.saved_bytes and other.products > plain.products
    _same_result(other, plain)


def test_policies_differ_in_what_they_keep_and_compute_again(plain):
    runs = {remat: run(plain.family, Execution(remat, unroll=1)) for remat in ("none", "dots", "projections", "full")}
    kept = {remat: one.saved_bytes for remat, one in runs.items()}
    assert kept["none"] > kept["dots"] >= kept["projections"] > kept["full"]
    products = {remat: one.products for remat, one in runs.items()}
    assert products["none"] < products["dots"] <= products["projections"] < products["full"]
    # Both middle policies keep what the weights made of query, key, value and ffn; of the pair context and output
    # projection one keeps the former, the other the latter.
    assert len({one.program for one in runs.values()}) == 4


def test_segments_may_keep_different_things():
    config = dataclasses.replace(tiny.tiny_llama(), segments=2 * tiny.tiny_llama().segments)

    def kept(remat: Any) -> int:
        model = Transformer(dataclasses.replace(config, execution=Execution(remat, unroll=1)))
        loss = lambda params: jnp.sum(model.apply({"params": params}, TOKENS).logits_BTV)  # noqa: E731
        return trees.size_bytes(jax.eval_shape(lambda params: jax.vjp(loss, params)[1], abstract_parameters(model)[0]))

    none, first, both = kept("none"), kept(("full", "none")), kept("full")
    assert none > first > both and none - first == pytest.approx(first - both, rel=0.05)
    with pytest.raises(ValueError, match="execution.remat is .* there are 2 segments: set one policy"):
        kept(("full", "none", "none"))


def _equations(program: Any, primitive: str) -> Iterator[Any]:
    """Those of one primitive, in the programs within it too."""
    for equation in program.eqns:
        if equation.primitive.name == primitive:
            yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner, primitive)


@pytest.mark.parametrize("name", ["llama", "mamba2", "opt", "recurrent_gemma", "retnet"])
def test_kept_projections_spare_the_backward_pass_all_products_with_matrices_but_those_to_the_stream(name):
    config = PUBLISHED[name]
    params = tiny.parameters(Transformer(config))

    def products(remat: str) -> int:
        """Products with matrices, which have no batch dimensions, of forward and backward pass."""
        model = Transformer(executed(config, Execution(remat, unroll=1)))
        loss = lambda params: jnp.sum(jnp.sin(model.apply({"params": params}, TOKENS).logits_BTV))  # noqa: E731
        with tracing_for("cpu"):
            program = jax.make_jaxpr(jax.grad(loss))(params).jaxpr
        found = [equation.params for equation in _equations(program, "dot_general")]
        # Products of the highest precision are those of layers/reuse.py, of cosines with an identity; some versions of
        # jax compute them again.
        highest = (jax.lax.Precision.HIGHEST,) * 2
        return sum(one["dimension_numbers"][1] == ((), ()) and one["precision"] != highest for one in found)

    branches = sum(len(block.branches) for segment in config.segments for block in segment.blocks)
    assert products("projections") - products("none") < branches


def test_unrolled_with_recomputation_is_the_same_too():
    plain = run("gpt2", Execution(unroll=1))
    other = run("gpt2", Execution(remat="full", unroll=2))
    assert other.saved_bytes < plain.saved_bytes
    # The compiler would merge an unrolled recomputation with the forward pass again, were there no barrier.
    assert "optimization_barrier" in other.traced.lower().as_text()
    _same_result(other, plain)


def test_several_blocks_and_segments_are_their_layers_in_order():
    """(a b)(a b) c equals the five blocks one after the other."""
    config = tiny.tiny_llama()
    a = config.segments[0].blocks[0]
    b = dataclasses.replace(a, ffn=dataclasses.replace(a.ffn, hidden=8))
    c = dataclasses.replace(a, mixer=dataclasses.replace(a.mixer, kv_heads=1))
    grouped = dataclasses.replace(config, segments=(Segment((a, b), 2), Segment((c,), 1)))
    flat = dataclasses.replace(config, segments=tuple(Segment((block,), 1) for block in (a, b, a, b, c)))
    assert grouped.depth == flat.depth == 5
    params = tiny.parameters(Transformer(grouped))
    stack = params["stack"]
    layers = [
        jax.tree.map(lambda leaf, repeat=repeat: leaf[repeat : repeat + 1], stack["segment_0"][block])
        for repeat in range(2)
        for block in ("block_0", "block_1")
    ]
    layers.append(stack["segment_1"]["block_0"])
    flat_params = params | {"stack": {f"segment_{i}": {"block_0": layer} for i, layer in enumerate(layers)}}
    one = jax.jit(Transformer(grouped).apply)({"params": params}, TOKENS).logits_BTV
    run_flat = jax.jit(Transformer(flat).apply)
    two = run_flat({"params": flat_params}, TOKENS).logits_BTV
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    first, third = ({"block_0": layers[index]} for index in (0, 2))
    swapped = flat_params | {"stack": flat_params["stack"] | {"segment_0": third, "segment_2": first}}
    other = run_flat({"params": swapped}, TOKENS).logits_BTV
    assert np.abs(one - other).max() > 1e-3


def test_shared_layers_run_the_same_whole_cut_and_with_a_cache():
    config = tiny.tiny_llama()
    (segment,) = config.segments
    shared = dataclasses.replace(config, segments=(Segment(segment.blocks * 2, 3, shared=True), segment))
    model = Transformer(shared)
    params = tiny.parameters(model)
    whole = jax.jit(model.apply)({"params": params}, TOKENS).logits_BTV
    cut = Transformer(dataclasses.replace(shared, segments=unstacked(shared.segments)))
    assert [(one.repeats, one.shared) for one in cut.config.segments] == [(1, True)] * 3 + [(1, False)] * 2
    cut_params = params | {"stack": unstack(params["stack"], shared.segments)}
    np.testing.assert_allclose(
        jax.jit(cut.apply)({"params": cut_params}, TOKENS).logits_BTV, whole, rtol=1e-4, atol=1e-5
    )
    cache = model.allocate(2, 8)
    for start in (0, 4):
        output = jax.jit(model.apply)({"params": params}, TOKENS[:, start : start + 4], cache)
        np.testing.assert_allclose(output.logits_BTV, whole[:, start : start + 4], rtol=1e-4, atol=1e-4)
        cache = output.cache


def test_long_segments_with_weights_of_their_own_are_cut_into_stages():
    blocks = tiny.tiny_gpt2().segments[0].blocks
    shared = Segment(blocks, 4, shared=True)
    segments = (shared, Segment(blocks, 4), Segment(blocks, 1))
    assert in_stages(segments, PipelineSchedule(2, 2, 2)) == [False, True, False]
    with pytest.raises(ValueError, match="at least one segment must have as many repeats"):
        in_stages((shared,), PipelineSchedule(2, 2, 1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Segment((), 1), "segment.blocks is empty"),
        (lambda: Segment(tiny.tiny_gpt2().segments[0].blocks, 0), "repeats is 0"),
        (lambda: Execution(unroll=0), "unroll is 0"),
        (lambda: Execution(remat="ful"), "remat is 'ful'.*did you mean 'full'"),
    ],
)
def test_bad_values_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
