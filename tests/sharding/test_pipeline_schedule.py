"""The figures of a pipeline, against its steps counted one by one."""

import itertools

import pytest

from llm_jax.sharding.pipeline_schedule import PipelineSchedule

PLANS = [
    PipelineSchedule(s, groups * s, v)
    for s, groups, v in itertools.product((1, 2, 3, 4, 6), (1, 2, 4), (1, 2, 3, 4, 6))
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_the_bubble_is_the_share_of_idle_steps(plan):
    """Each stage begins a step after the one before it, and then works on all microbatches in all rounds."""
    work = plan.microbatches * plan.virtual_stages
    busy = [[stage <= time < stage + work for time in range(plan.steps)] for stage in range(plan.stages)]
    assert busy[-1][-1] and sum(map(sum, busy)) == plan.stages * work
    assert plan.bubble == pytest.approx(1 - work / plan.steps)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_run_of_layers_comes_to_its_stage_and_round_one_to_each_stage_at_a_time(plan):
    stages, found = set(range(plan.stages)), []
    for runs in plan.exchanges():
        assert {run.source for run in runs} == {run.target for run in runs} == stages
        found += runs
    layers = {run.source * plan.virtual_stages + run.place: (run.turn, run.target) for run in found}
    # In the order of the layers: all stages of the first round, then all of the second.
    assert [layers[number] for number in sorted(layers)] == list(
        itertools.product(range(plan.virtual_stages), range(plan.stages))
    )


def test_more_microbatches_and_rounds_make_a_smaller_bubble():
    assert PipelineSchedule(4, 4, 1).bubble == 3 / 7
    assert PipelineSchedule(4, 16, 1).bubble == 3 / 19
    assert PipelineSchedule(4, 16, 2).bubble == 3 / 35
    assert PipelineSchedule(1, 4, 1).bubble == 0


def test_segments_are_cut_where_stages_and_rounds_divide_them_and_short_ones_are_left():
    plan = PipelineSchedule(4, 4, 2)
    assert [plan.cuts(repeats) for repeats in (1, 3, 8, 16)] == [False, False, True, True]
    for repeats in (4, 12, 9):
        with pytest.raises(
            ValueError, match=f"{repeats} repeats, mesh.stage is 4 .* virtual_stages 2: .* virtual_stages = 8"
        ):
            plan.cuts(repeats)
    with pytest.raises(ValueError, match=r"\(stage, virtual_stages\) that divide 6, the nearest first: .*\(2, 3\)"):
        plan.cuts(6)


def test_more_stages_than_layers_are_refused():
    PipelineSchedule(4, 4, 1).check([1, 8, 2])
    for repeats in ([2, 3], []):
        with pytest.raises(ValueError, match="mesh.stage is 4 and the segments .* as many repeats as there are stages"):
            PipelineSchedule(4, 4, 1).check(repeats)


def test_rows_and_microbatches_that_do_not_divide_are_refused():
    PipelineSchedule(2, 4, 1).check_rows(16, 4)
    with pytest.raises(ValueError, match="a batch has 8 sequences on 4 .* microbatches 4: .* multiple of 16"):
        PipelineSchedule(2, 4, 1).check_rows(8, 4)
    with pytest.raises(ValueError, match="microbatches 6 and mesh.stage is 4: .* multiple of 4"):
        PipelineSchedule(4, 6, 1)


def test_the_remedy_names_what_fits_the_stages_that_there_are():
    with pytest.raises(ValueError, match=r"the nearest first: \[\(8, 1\), \(8, 2\), \(8, 4\)"):
        PipelineSchedule(8, 8, 8).cuts(32)
