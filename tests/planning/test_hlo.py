"""Reading operations off the text, and following values."""

import pytest

from llm_jax.planning.hlo import Array, Module, Scope, origin
from tests.planning.snippets import computation, module


def _entry(body: str) -> Scope:
    return Scope(Module.parse(module(body)).entry)


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        ("pred", 8), ("s4", 4), ("u8", 8), ("f8e4m3fn", 8), ("f4e2m1fn", 4), ("bf16", 16), ("f16", 16),
        ("f32", 32), ("u32", 32), ("s64", 64), ("c64", 64), ("c128", 128), ("token", 0),
    ],
)  # fmt: skip
def test_bytes_of_types(dtype, bits):
    assert Array(dtype, (6, 4)).bytes == 24 * bits // 8


def test_bytes_below_one_round_up():
    assert Array("s4", (3,)).bytes == 2 and Array("f32", ()).bytes == 4 and Array("f32", (0, 9)).bytes == 0


def test_tuples_layouts_and_comments_of_types():
    scope = _entry("%x = ((bf16[8,<=64]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}), /*index=5*/pred[3]{0}) parameter(0)")
    assert scope.computation.root.arrays == (Array("bf16", (8, 64)), Array("u32", ()), Array("pred", (3,)))


def test_operations_may_span_lines():
    text = module('%x = f32[4]{0} parameter(0)\n%y = f32[4]{0} custom-call(%x), custom_call_target="a"')
    cut = text.replace(', custom_call_target="a"', ',\nbackend_config="first\n  second", custom_call_target="a"')
    root = Module.parse(cut).entry.root
    assert root.name == "y" and root.operands == ("x",)
    assert root.attribute(r', custom_call_target="(\w)"') == "a"


def test_lines_of_a_kernels_description_do_not_end_its_computation():
    text = module("%x = f32[4]{0} parameter(0)\n%k = f32[4]{0} custom-call(%x)\n%y = f32[4]{0} negate(%k)")
    described = text.replace(
        "custom-call(%x)", 'custom-call(%x), custom_call_target="a", frontend={kernel={\n"size": 1\n}}, after={}'
    )
    parsed = Module.parse(described).entry
    assert parsed.root.name == "y" and parsed.operations["k"].operands == ("x",)


def test_the_root_need_not_be_the_last():
    text = module("%x = f32[] parameter(0)\n%y = f32[] negate(%x)").replace("ROOT ", "").replace("%x = ", "ROOT %x = ")
    assert Module.parse(text).entry.root.name == "x"
    assert Module.parse(text.replace("ROOT ", "")).entry.root.name == "y"


def test_shapes_written_beside_operands():
    scope = _entry("%x = f32[4]{0:T(128)} parameter(0)\n%y = f32[4] negate(f32[4]{0:T(128)} %x)")
    assert scope.operand(scope.computation.root, 0).name == "x"


def test_other_threads_end_their_computations():
    other = computation("thread", "%t = f32[] constant(1)").replace("}\n", '}, execution_thread="sparsecore"\n')
    parsed = Module.parse(module("%x = f32[] constant(2)", other))
    assert [*parsed.computations] == ["thread", "main"] and parsed.entry.root.argument == "2"
    assert parsed.computations["thread"].root.argument == "1"


@pytest.mark.parametrize(("header", "devices"), [("", 1), (", num_partitions=4", 4), (", replica_count=8", 8)])
def test_devices(header, devices):
    text = module("%x = f32[] constant(2)").replace(", num_partitions=1", header)
    assert Module.parse(text).devices == devices


def test_a_value_is_followed_to_where_it_is_made():
    swap = computation(
        "swap",
        """%p1 = s32[] parameter(1)
        %p0 = s32[] parameter(0)
        %both = (s32[], s32[]) tuple(%p1, %p0)""",
    )
    body = """%five = s32[] constant(5)
        %other = s32[] constant(6)
        %copy = s32[] copy(%five)
        %pair = (s32[], s32[]) tuple(%other, %copy)
        %kept = (s32[], s32[]) opt-barrier(%pair)
        %second = s32[] get-tuple-element(%kept), index=1
        %fused = (s32[], s32[]) fusion(%other, %second), kind=kLoop, calls=%swap
        %last = s32[] get-tuple-element(%fused), index=0"""
    parsed = Module.parse(module(body, swap))
    assert origin(parsed, (Scope(parsed.entry), parsed.entry.root))[1].name == "five"


@pytest.mark.parametrize("text", ["", "module @jit_step { func.func public @main() }", "HloModule empty\n"])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="no ENTRY computation"):
        Module.parse(text)


def test_cut_text_is_refused():
    text = module("%x = f32[4] parameter(0)\n%y = f32[4] add(%x, %x)").replace("add(%x, %x)", "add(%x, %x")
    with pytest.raises(ValueError, match="is truncated"):
        Module.parse(text)


def test_an_element_without_its_index_is_refused():
    body = "%one = s32[] constant(1)\n%pair = (s32[]) tuple(%one)\n%first = s32[] get-tuple-element(%pair)"
    parsed = Module.parse(module(body))
    with pytest.raises(ValueError, match="%?first has no index"):
        origin(parsed, (Scope(parsed.entry), parsed.entry.root))
