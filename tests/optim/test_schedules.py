import math

import jax
import numpy as np
import pytest

from llm_jax.optim.schedules import WSD, Constant, Cosine, InverseSqrt, Linear

STEPS = 200
PEAK = 3e-4
ALL = [
    Constant(warmup_steps=10),
    Cosine(warmup_steps=10),
    Linear(warmup_steps=10),
    InverseSqrt(warmup_steps=10),
    WSD(warmup_steps=10),
    WSD(warmup_steps=10, shape="linear"),
]
DECAYING = [(Cosine, {}), (Linear, {}), (WSD, {}), (WSD, {"shape": "linear"})]


def rates(schedule, steps=STEPS, peak=PEAK, beyond=50):
    return np.asarray(jax.vmap(schedule.build(peak, steps))(np.arange(steps + beyond)))


def nanogpt(step, peak, warmup, end, final):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if step > end:
        return final
    return final + 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (end - warmup))) * (peak - final)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_warmup_is_a_line_to_the_peak(schedule):
    values = rates(schedule)
    np.testing.assert_allclose(values[:10], PEAK * np.arange(1, 11) / 11, rtol=1e-6)
    assert values[10] == np.float32(PEAK)
    assert values.max() == np.float32(PEAK)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_never_rises_after_the_warmup(schedule):
    assert (np.diff(rates(schedule)[10:]) <= 0).all()


@pytest.mark.parametrize("kind, fields", DECAYING)
def test_ends_exactly_at_the_final_rate(kind, fields):
    values = rates(kind(final_fraction=0.25, **fields), peak=1.0)
    assert values[0] == 1
    assert values[STEPS - 1] > 0.25
    assert (values[STEPS:] == 0.25).all()


def test_cosine_is_nanogpt():
    values = rates(Cosine(warmup_steps=100, final_fraction=0.1), steps=2000, peak=1e-3)
    wanted = [nanogpt(step, 1e-3, 100, 2000, 1e-4) for step in range(2050)]
    np.testing.assert_allclose(values, wanted, rtol=1e-5)


def test_decay_steps_count_from_the_start_of_the_run():
    for kind in (Cosine, Linear):
        short = rates(kind(warmup_steps=10, final_fraction=0.5, decay_steps=60), peak=1.0)
        assert short[10] == 1 and short[59] > 0.5 and (short[60:] == 0.5).all()
        assert short[35] == pytest.approx(0.75)
        # A run may stop before its schedule does.
        np.testing.assert_array_equal(rates(kind(decay_steps=400))[:STEPS], rates(kind(), steps=400)[:STEPS])


def test_inverse_sqrt_halves_as_steps_quadruple():
    values = rates(InverseSqrt(warmup_steps=9), peak=1.0)
    assert values[39] == pytest.approx(0.5)
    assert values[159] == pytest.approx(0.25)
    assert rates(InverseSqrt(), peak=1.0)[99] == pytest.approx(0.1)


@pytest.mark.parametrize("shape, halfway", [("linear", 0.5), ("sqrt", 1 - math.sqrt(0.5))])
def test_wsd_is_stable_then_decays(shape, halfway):
    values = rates(WSD(decay_fraction=0.2, shape=shape), peak=1.0)
    assert (values[: STEPS - 40 + 1] == 1).all()
    assert values[STEPS - 40 + 1] < 1
    assert values[STEPS - 20] == pytest.approx(halfway)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_is_the_same_traced_and_not(schedule):
    rate = schedule.build(PEAK, STEPS)
    assert rate(77).dtype == np.float32
    np.testing.assert_allclose(jax.jit(rate)(77), rate(77), rtol=1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Constant(warmup_steps=-1), "warmup_steps is -1"),
        (lambda: InverseSqrt(warmup_steps=-1), "warmup_steps is -1"),
        (lambda: Cosine(final_fraction=1.5), "final_fraction is 1.5"),
        (lambda: Linear(final_fraction=-0.1), "final_fraction is -0.1"),
        (lambda: Cosine(warmup_steps=10, decay_steps=10), "decay_steps is 10 .* greater than warmup_steps"),
        (lambda: WSD(decay_fraction=0.0), "decay_fraction is 0.0.*use Constant"),
        (lambda: WSD(decay_fraction=1.1), "decay_fraction is 1.1"),
        (lambda: WSD(shape="cosin"), "shape is 'cosin'"),
        (lambda: WSD(shape="sqr"), "did you mean 'sqrt'"),
        (lambda: Cosine(warmup_steps=100).build(1.0, 100), "the run has 100 steps.*lower warmup_steps"),
        (lambda: Linear(warmup_steps=100).build(1.0, 50), "the run has 50 steps"),
        (lambda: WSD(warmup_steps=90).build(1.0, 100), "they must not overlap"),
        (lambda: Constant().build(0.0, 10), "peak is 0.0"),
        (lambda: Constant().build(1.0, 0), "steps is 0"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
