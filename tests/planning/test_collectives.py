"""Every form in which compilers write a collective: what kind it is, among how many, how many bytes."""

import pytest

from llm_jax.planning.collectives import Collective
from llm_jax.planning.program import read
from tests.planning.snippets import computation, loop, module


def _only(body: str, *others: str, devices: int = 8) -> Collective:
    (found,) = read(module(body, *others, devices=devices)).collectives
    return found


X = "%x = f32[16,4]{1,0} parameter(0)\n"  # 256 bytes
ALL, HALVES = "replica_groups={}", "replica_groups={{0,1,2,3},{4,5,6,7}}"


@pytest.mark.parametrize(
    ("operation", "kind", "group", "result", "moved"),
    [
        (f"f32[128,4] all-gather(%x), {ALL}, dimensions={{0}}", "all-gather", 8, 2048, 7 * 256),
        (f"f32[64,4] all-gather(%x), {HALVES}, dimensions={{0}}", "all-gather", 4, 1024, 3 * 256),
        (f"f32[2,4] reduce-scatter(%x), {ALL}, dimensions={{0}}, to_apply=%add", "reduce-scatter", 8, 32, 7 * 32),
        (f"f32[16,4] all-reduce(%x), {ALL}, to_apply=%add", "all-reduce", 8, 256, 2 * 7 * 32),
        (f"f32[16,4] all-reduce(%x), {HALVES}, to_apply=%add", "all-reduce", 4, 256, 2 * 3 * 64),
        (f"f32[16,4] all-to-all(%x), {ALL}, dimensions={{0}}", "all-to-all", 8, 256, 7 * 32),
        ("f32[16,4] collective-permute(%x), source_target_pairs={{0,1},{1,0}}", "collective-permute", 2, 256, 256),
        (f"f32[16,4] collective-broadcast(%x), {ALL}", "collective-broadcast", 8, 256, 256),
    ],
)
def test_kinds(operation, kind, group, result, moved):
    found = _only(f"{X}%c = {operation}")
    assert (found.kind, found.group, found.operand_bytes) == (kind, group, 256)
    assert (found.result_bytes, found.moved_bytes) == (result, moved)
    assert (found.executions, found.loops, found.asynchronous) == (1, (), False)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{}", 8),
        ("{{0,1},{2,3},{4,5},{6,7}}", 2),
        ("[2,4]<=[8]", 4),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("mesh['data'=2,'fsdp'=4] {'fsdp'}", 4),
        ("mesh['data'=2,'fsdp'=4] {'data','fsdp'}", 8),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", 2),
        ("mesh['a'=2,'b'=4] {'a','b':(2)2}", 4),
    ],
)
def test_groups(groups, size):
    found = _only(f"{X}%c = f32[16,4] all-reduce(%x), channel_id=1, replica_groups={groups}, to_apply=%add")
    assert found.group == size


@pytest.mark.parametrize(
    ("pairs", "size"),
    [
        ("{0,1},{1,0},{2,3},{3,2},{4,5},{5,4},{6,7},{7,6}", 2),  # four rings of two
        ("{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}", 4),  # two rings of four
        ("{0,2},{2,4},{4,6},{6,0},{1,3},{3,5},{5,7},{7,1}", 4),
        ("{0,1},{1,2},{2,3},{3,4},{4,5},{5,6},{6,7}", 8),  # a line of stages
        ("{6,7},{0,1},{2,3},{1,2}", 4),  # pairs that a later one connects
        ("{0,0},{1,2},{2,1}", 2),
        ("{0,0},{1,1}", None),  # nothing leaves a device
    ],
)
def test_groups_of_a_permute_are_those_that_its_pairs_connect(pairs, size):
    text = module(f"{X}%c = f32[16,4] collective-permute(%x), source_target_pairs={{{pairs}}}", devices=8)
    assert [found.group for found in read(text).collectives] == ([] if size is None else [size])


def test_of_uneven_groups_the_largest_counts():
    assert (
        _only(f"{X}%c = f32[16,4] all-reduce(%x), replica_groups={{{{0}},{{1,2,3}},{{4,5}}}}, to_apply=%add").group == 3
    )


def test_groups_not_known_are_an_error():
    with pytest.raises(ValueError, match="replica_groups=iota"):
        _only(f"{X}%c = f32[16,4] all-reduce(%x), channel_id=1, replica_groups=iota(8), to_apply=%add")


def test_alone_in_its_group_a_device_exchanges_nothing():
    alone = "replica_groups={{0},{1}}, to_apply=%add"
    assert read(module(f"{X}%c = f32[16,4] all-reduce(%x), {alone}", devices=2)).collectives == ()
    assert read(module(f"{X}%c = f32[16,4] all-reduce(%x), {ALL}, to_apply=%add")).collectives == ()
    still = "source_target_pairs={{0,0},{1,1}}"
    assert read(module(f"{X}%c = f32[16,4] collective-permute(%x), {still}", devices=2)).collectives == ()


@pytest.mark.parametrize(
    ("dtype", "size"), [("bf16", 128), ("f32", 256), ("u32", 256), ("pred", 64), ("f8e4m3fn", 64), ("s4", 32)]
)
def test_types(dtype, size):
    found = _only(f"%x = {dtype}[16,4] parameter(0)\n%c = {dtype}[16,4] all-to-all(%x), {ALL}, dimensions={{0}}")
    assert found.operand_bytes == found.result_bytes == size


MANY = """%x = f32[16,4]{1,0} parameter(0)
%y = bf16[10]{0} parameter(1)
%z = pred[] parameter(2)
"""


def test_several_arrays_in_one():
    types = "(f32[16,4]{1,0}, bf16[10]{0}, /*index=2*/pred[])"
    found = _only(f"{MANY}%c = {types} all-reduce(%x, %y, /*index=2*/%z), {ALL}, to_apply=%add")
    assert found.operand_bytes == 256 + 20 + 1
    types = "(f32[128,4], bf16[80])"
    assert _only(f"{MANY}%c = {types} all-gather(%x, %y), {ALL}, dimensions={{0}}").result_bytes == 2048 + 160
    shares = "(f32[2,4], f32[2,4])"
    found = _only(f"{X}%y = f32[2,4] parameter(1)\n%c = {shares} all-to-all(%y, %y), replica_groups={{{{0,1}}}}")
    assert (found.operand_bytes, found.moved_bytes) == (64, 32)


@pytest.mark.parametrize(
    ("start", "kind", "result"),
    [
        (f"(f32[16,4], f32[128,4]) all-gather-start(%x), {ALL}, dimensions={{0}}", "all-gather", 2048),
        (f"f32[16,4] all-reduce-start(%x), {ALL}, to_apply=%add", "all-reduce", 256),
        (f"((f32[16,4]), f32[2,4]) reduce-scatter-start(%x), {ALL}, dimensions={{0}}", "reduce-scatter", 32),
        (
            "(f32[16,4], f32[16,4], u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,2}}",
            "collective-permute",
            256,
        ),
        (f"((f32[16,4]), f32[16,4], u32[]) all-to-all-start(%x), {ALL}, dimensions={{0}}", "all-to-all", 256),
    ],
)
def test_started_and_awaited_apart_they_count_once(start, kind, result):
    body = f"{X}%s = {start}\n%other = f32[16,4] negate(%x)\n%d = f32[16,4] {kind}-done(%s)"
    found = _only(body)
    assert (found.kind, found.operand_bytes, found.result_bytes) == (kind, 256, result)
    assert found.asynchronous


def test_started_with_several_arrays():
    types = "((f32[16,4], bf16[10]), (f32[128,4], bf16[80]))"
    start = f"%s = {types} all-gather-start(%x, %y), {ALL}, dimensions={{0}}"
    found = _only(f"{MANY}{start}\n%d = (f32[128,4], bf16[80]) all-gather-done(%s)")
    assert (found.operand_bytes, found.result_bytes, found.asynchronous) == (276, 8 * 276, True)


def test_a_start_that_the_gpu_compiler_runs_at_once():
    config = 'backend_config={"collective_backend_config":{"is_sync":true}}'
    found = _only(f"{X}%s = f32[16,4] all-reduce-start(%x), {ALL}, to_apply=%add, {config}")
    assert not found.asynchronous


def test_wrapped_in_a_computation():
    wrapped = computation(
        "wrapped", f"%p = f32[16,4] parameter(0)\n%c = f32[2,4] reduce-scatter(%p), {ALL}, dimensions={{0}}"
    )
    body = """%s = ((f32[16,4]), f32[2,4], u32[]) async-start(%x), calls=%wrapped
    %u = ((f32[16,4]), f32[2,4], u32[]) async-update(%s), calls=%wrapped
    %d = f32[2,4] async-done(%u), calls=%wrapped"""
    found = _only(X + body, wrapped)
    assert (found.kind, found.result_bytes, found.asynchronous) == ("reduce-scatter", 32, True)


def test_on_a_sparse_core():
    handed = computation(
        "handed", f"%p = bf16[16,4] parameter(0)\n%c = bf16[128,4] all-gather(%p), {ALL}, dimensions={{0}}"
    ).replace("\n}\n", '\n}, execution_thread="sparsecore"\n')
    body = """%s = ((), (), s32[9]) custom-call-start(), custom_call_target="t", called_computations={%handed}
    %u = ((f32[16,4]), f32[128,4], s32[9]) custom-call-update(%s, %x)
    %d = f32[128,4] custom-call-done(%u)"""
    program = read(module(X + body, handed, devices=8))
    (found,) = program.collectives
    assert (found.kind, found.result_bytes, found.asynchronous) == ("all-gather", 1024, True)
    assert program.kernels == ()


def test_spread_over_the_fusions_that_run_meanwhile():
    gather = f"f32[128,4] all-gather(%p), channel_id=3, {ALL}, dimensions={{0}}"
    piece = gather + ', backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}'
    first = f"""%p = f32[16,4] parameter(0)
    %c = {piece}
    %m = (f32[16,4], f32[128,4], u32[]) custom-call(%c), custom_call_target="AsyncCollectiveStart\""""
    last = f"""%p = f32[16,4] parameter(0)
    %c = {piece}
    %m = f32[128,4] custom-call(%p, %c), custom_call_target="AsyncCollectiveDone\""""
    parts = [computation("first", first), computation("last", last)]
    parts.append(computation("meanwhile", f"%p = f32[16,4] parameter(0)\n%c = {piece}"))
    body = "\n".join(
        f"%{name}.f = f32[] fusion(%x), kind=kCustom, calls=%{name}" for name in ("first", "meanwhile", "last")
    )
    program = read(module(X + body, *parts, devices=8))
    (found,) = program.collectives
    assert (found.result_bytes, found.executions, found.asynchronous) == (2048, 1, True)
    assert program.kernels == ()


def test_a_reduce_scatter_written_as_a_fusion():
    inner = f"""%p = bf16[16,4] parameter(0)
    %r = bf16[16,4] all-reduce(%p), channel_id=1, {ALL}, to_apply=%add
    %zero = s32[] constant(0)
    %s = bf16[2,4] dynamic-slice(%r, %zero, %zero), dynamic_slice_sizes={{2,4}}"""
    body = "%x = bf16[16,4] parameter(0)\n%f = bf16[2,4] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.7.clone"
    found = _only(body, computation("all-reduce-scatter.7.clone", inner))
    assert (found.kind, found.operand_bytes, found.result_bytes) == ("reduce-scatter", 128, 16)
    assert found.moved_bytes == 128 * 7 / 8


def test_a_ragged_exchange_is_bounded_by_the_smaller_side():
    body = f"""%x = bf16[32,4] parameter(0)
    %room = bf16[256,4] parameter(1)
    %o = s32[8] parameter(2)
    %c = bf16[256,4] ragged-all-to-all(%x, %room, %o, %o, %o, %o), {ALL}"""
    assert _only(body).operand_bytes == 256


def test_in_a_loop():
    exchange = f"""%share = bf16[16] constant({{...}})
      %r = bf16[16] all-reduce(%share), {ALL}, to_apply=%add
      %s = (bf16[16], bf16[128]) all-gather-start(%share), {ALL}, dimensions={{0}}
      %d = bf16[128] all-gather-done(%s)
      %step = """
    text = loop(replaced={"%step = ": exchange, "num_partitions=1": "num_partitions=8"})
    program = read(text)
    reduce, gather = program.collectives
    assert reduce.executions == gather.executions == 7 and reduce.loops == gather.loops == ("while.1",)
    assert program.blocking == (reduce,)
    assert program.result_bytes("all-gather") == 7 * 256 and program.result_bytes("all-reduce") == 7 * 32
    assert program.moved_bytes() == 7 * (7 * 32 + 2 * 7 / 8 * 32) == program.moved_bytes("all-gather", "all-reduce")
    assert program.of_kind("all-to-all") == () and program.of_kind() == program.collectives
