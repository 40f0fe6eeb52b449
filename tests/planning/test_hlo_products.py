"""FLOPs of products against counting them one by one."""

import functools
import itertools

import jax
import numpy as np
import pytest

from llm_jax.planning.program import read
from tests.planning.snippets import module


def _flops(left: str, right: str, operation: str) -> int:
    text = f"%x = {left} parameter(0)\n%y = {right} parameter(1)\n%z = {operation}"
    return read(module(text)).flops


def test_dot_with_batch_axes():
    operation = (
        "f32[4,6,5]{2,1,0} dot(%x, %y), lhs_batch_dims={0}, lhs_contracting_dims={2,3}, rhs_batch_dims={0}, "
        "rhs_contracting_dims={1,2}"
    )
    assert _flops("f32[4,6,3,2]{3,2,1,0}", "f32[4,3,2,5]{3,2,1,0}", operation) == 2 * 4 * 6 * 5 * 3 * 2


def test_an_outer_product_contracts_nothing():
    assert _flops("f32[6]", "f32[5]", "f32[6,5] dot(%x, %y), lhs_contracting_dims={}, rhs_contracting_dims={}") == 60


# What the TPU compiler makes of products with batch axes and several kept ones: axes of a window.
@pytest.mark.parametrize(
    ("left", "right", "result", "how", "flops"),
    [
        ("2,256,512", "512,128,1", "2,256,128", "window={size=1}, dim_labels=0bf_io0->0bf", 2 * 512 * 512 * 128),
        ("2048,512", "2048,64", "512,64", "dim_labels=fb_io->bf", 2 * 512 * 2048 * 64),
        ("2,8,1024", "2,8,512", "1024,512,1", "window={size=2}, dim_labels=0fb_0io->bf0", 2 * 16 * 1024 * 512),
        (
            *("2,256,512,1", "8,64,512,1", "2,256,8,64"),
            "window={size=1x8 pad=0_0x7_7 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f",
            2 * (2 * 256) * 512 * (8 * 64),
        ),
        (
            *("2,8,128,64", "2,8,256,64", "2,8,128,256"),
            "window={size=2x8 stride=1x7 lhs_dilate=2x8}, dim_labels=01bf_01oi->01bf",
            2 * (2 * 8) * 128 * 256 * 64,
        ),
        (
            *("2,8,128,64", "2,8,128,256", "2,8,64,256"),
            "window={size=2x8 stride=2x8 pad=1_1x7_7 lhs_dilate=1x7 rhs_reversal=1x1}, dim_labels=01fb_01io->01fb",
            2 * (2 * 8) * 64 * 128 * 256,
        ),
    ],
)
def test_products_written_as_convolutions(left, right, result, how, flops):
    assert _flops(f"bf16[{left}]", f"bf16[{right}]", f"bf16[{result}] convolution(%x, %y), {how}") == flops


_DIMENSIONS = (
    '{"gemm_backend_config":{"alpha_real":1,"dot_dimension_numbers":{"lhs_contracting_dimensions":["%s"],'
    '"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":[%s],"rhs_batch_dimensions":[]},"epilogue":"BIAS"}}'
)


@pytest.mark.parametrize("target", ["__cublas$gemm", "__cublas$lt$matmul", "__cublas$lt$matmul$f8"])
@pytest.mark.parametrize(
    "written", [str, lambda text: '"' + text.replace('"', '\\"') + '"', lambda text: text.replace('["2"]', "[2]")]
)
def test_products_by_cublas(target, written):
    """As XLA writes them for GPUs: with a workspace, and in older versions with escaped quotes or plain numbers."""
    how = f'custom_call_target="{target}", backend_config={written(_DIMENSIONS % (2, chr(34) + "0" + chr(34)))}'
    operation = f"(bf16[4,6,5]{{2,1,0}}, s8[33554432]{{0}}) custom-call(%x, %y), {how}"
    assert _flops("bf16[4,6,3]{2,1,0}", "bf16[4,3,5]{2,1,0}", operation) == 2 * 4 * 6 * 5 * 3


def test_products_by_onednn():
    operation = 'f32[4,6,5] custom-call(%x, %y), custom_call_target="__onednn$matmul", backend_config={}'
    assert _flops("f32[4,6,3]", "f32[3,5]", operation) == 2 * 4 * 6 * 5 * 3


@pytest.mark.parametrize(
    ("target", "left", "right", "result"),
    [
        ("__cudnn$convForward", "2,9,8,4", "3,2,4,6", "2,7,7,6"),
        ("__cudnn$convBackwardInput", "2,7,7,6", "3,2,4,6", "2,9,8,4"),
        ("__cudnn$convBackwardFilter", "2,9,8,4", "2,7,7,6", "3,2,4,6"),
    ],
)
def test_convolutions_by_cudnn_have_the_flops_of_the_forward_one(target, left, right, result):
    how = f'window={{size=3x2}}, dim_labels=b01f_01io->b01f, custom_call_target="{target}"'
    operation = f"(f32[{result}], u8[1024]) custom-call(%x, %y), {how}"
    forward = _counted((2, 9, 8, 4), (3, 2, 4, 6), (2, 7, 7, 6), (1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1))
    assert _flops(f"f32[{left}]", f"f32[{right}]", operation) == forward


def _counted(x, kernel, result, strides, padding, spread, dilation) -> int:
    """FLOPs of a convolution NHWC, HWIO, by walking over every output and every tap."""
    pairs = 0
    for place in itertools.product(*map(range, result[1:3])):
        for tap in itertools.product(*map(range, kernel[:2])):
            seen = [place[d] * strides[d] + tap[d] * dilation[d] - padding[d][0] for d in (0, 1)]
            pairs += all(0 <= seen[d] <= (x[1 + d] - 1) * spread[d] and seen[d] % spread[d] == 0 for d in (0, 1))
    return 2 * pairs * result[0] * result[3] * kernel[2]


def test_convolutions_of_every_kind():
    generator = np.random.default_rng(0)
    for _ in range(200):
        groups = int(generator.choice([1, 2]))
        x = (2, *generator.integers(3, 9, 2).tolist(), 4)
        kernel = (*generator.integers(1, 4, 2).tolist(), 4 // groups, 6)
        strides, low, high, spread, dilation = (generator.integers(least, 4, 2).tolist() for least in (1, 0, 0, 1, 1))
        padding = list(zip(low, high, strict=True))
        convolve = functools.partial(
            jax.lax.conv_general_dilated,
            window_strides=strides,
            padding=padding,
            lhs_dilation=spread,
            rhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        result = jax.eval_shape(convolve, *(jax.ShapeDtypeStruct(shape, "float32") for shape in (x, kernel))).shape
        window = f"size={kernel[0]}x{kernel[1]} stride={_by(strides)} pad={low[0]}_{high[0]}x{low[1]}_{high[1]} "
        window += f"lhs_dilate={_by(spread)} rhs_dilate={_by(dilation)}"
        attributes = f"window={{{window}}}, dim_labels=b01f_01io->b01f, feature_group_count={groups}"
        found = _flops(_f32(x), _f32(kernel), f"{_f32(result)} convolution(%x, %y), {attributes}")
        assert found == _counted(x, kernel, result, strides, padding, spread, dilation), (x, kernel, window)


def _f32(shape: tuple[int, ...]) -> str:
    return f"f32[{','.join(map(str, shape))}]"


def _by(numbers: list[int]) -> str:
    return "x".join(map(str, numbers))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_as_compiled(groups):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    shapes = (2, 8, 7, 4), (3, 2, 4 // groups, 6)
    compiled = jax.jit(convolve).lower(*(jax.ShapeDtypeStruct(shape, "float32") for shape in shapes)).compile()
    assert read(compiled).flops == 2 * (2 * 6 * 6 * 6) * (3 * 2 * 4 // groups)
