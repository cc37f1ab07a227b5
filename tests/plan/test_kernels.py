"""Bytes and FLOPs of kernels, from programs short enough to count by hand."""

import dataclasses

import pytest

from benchmarks import roofline
from dinojax.plan import targets
from dinojax.plan.kernels import kernels

# Blocks in a loop of three: a product, a result saved into a stack, a part of one read back.
PROGRAM = """
HloModule jit_step

%saved (p0: bf16[3,8,4], p1: s32[], p2: f32[8,4]) -> bf16[3,8,4] {
  %p0 = bf16[3,8,4]{2,1,0} parameter(0)
  %p2 = f32[8,4]{1,0} parameter(2)
  %small = bf16[8,4]{1,0} convert(%p2)
  %one = bf16[1,8,4]{2,1,0} bitcast(%small)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %put = bf16[3,8,4]{2,1,0} dynamic-update-slice(%p0, %one, %p1, %zero, %zero)
}

%taken (q0: bf16[3,8,4], q1: s32[]) -> (bf16[8,4], /*index=1*/f32[8,4]) {
  %q0 = bf16[3,8,4]{2,1,0} parameter(0)
  %q1 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  %part = bf16[1,8,4]{2,1,0} dynamic-slice(%q0, %q1, %zero.1, %zero.1), dynamic_slice_sizes={1,8,4}
  %flat = bf16[8,4]{1,0} bitcast(%part)
  %wide = f32[8,4]{1,0} convert(%flat)
  ROOT %both = (bf16[8,4]{1,0}, f32[8,4]{1,0}) tuple(%flat, %wide)
}

%zeros () -> bf16[3,8,4] {
  %nought = bf16[] constant(0)
  ROOT %fill = bf16[3,8,4]{2,1,0} broadcast(%nought), dimensions={}
}

%body (state: STATE) -> STATE {
  %state = STATE parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %stack = bf16[3,8,4]{2,1,0} get-tuple-element(%state), index=1
  %x = f32[8,4]{1,0} get-tuple-element(%state), index=2
  %w = f32[4,4]{1,0} get-tuple-element(%state), index=3
  %y = (f32[8,4]{1,0}, s8[64]{0}) custom-call(%x, %w), custom_call_target="__cublas$lt$matmul", FC1
  %y0 = f32[8,4]{1,0} get-tuple-element(%y), index=0
  %new = bf16[3,8,4]{2,1,0} fusion(%stack, %i, %y0), kind=kLoop, calls=%saved
  %back = (bf16[8,4]{1,0}, f32[8,4]{1,0}) fusion(%stack, %i), kind=kLoop, calls=%taken, NORM
  %back1 = f32[8,4]{1,0} get-tuple-element(%back), index=1
  ROOT %next = STATE tuple(%i, %new, %back1, %w)
}

%condition (at: STATE) -> pred[] {
  %at = STATE parameter(0)
  %j = s32[] get-tuple-element(%at), index=0
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%j, %three), direction=LT
}

ENTRY %main (x0: f32[8,4], w0: f32[4,4]) -> f32[8,4] {
  %x0 = f32[8,4]{1,0} parameter(0)
  %w0 = f32[4,4]{1,0} parameter(1)
  %begin = s32[] constant(0)
  %empty = bf16[3,8,4]{2,1,0} fusion(), kind=kLoop, calls=%zeros
  %first = STATE tuple(%begin, %empty, %x0, %w0)
  %loop = STATE while(%first), LOOP, TRIPS
  ROOT %last = f32[8,4]{1,0} get-tuple-element(%loop), index=2
}
"""
VIT = "jit(step)/student/jvp(Vit)/Vit._run/while"
BACK = VIT.replace("jvp(Vit)", "transpose(jvp(Vit))")
SHORT = {
    "STATE": "(s32[], bf16[3,8,4]{2,1,0}, f32[8,4]{1,0}, f32[4,4]{1,0})",
    "LOOP": f'condition=%condition, body=%body, metadata={{op_name="{VIT}"}}',
    "NORM": f'metadata={{op_name="{BACK}/Block/norm1/mul"}}',
    "FC1": f'metadata={{op_name="{VIT}/Block/mlp/fc1/dot_general"}}, backend_config={{'
    '"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]},'
    '"precision_config":{"operand_precision":["HIGHEST","HIGHEST"]}}}',
}
STATED = 'backend_config={"known_trip_count":{"n":"3"}}'
for word, words in SHORT.items():
    PROGRAM = PROGRAM.replace(word, words)
H100 = targets.parse("h100:1x1")


@pytest.mark.parametrize("trips", [STATED, ""])
def test_kernels_of_a_loop_count_as_often_as_it_runs_and_only_what_they_touch(trips):
    found = {x.name: x for x in kernels(PROGRAM.replace("TRIPS", trips))}
    assert set(found) == {"empty", "y", "new", "back"}
    assert [found[name].times for name in ("empty", "y", "new", "back")] == [1, 3, 3, 3]
    product = found["y"]
    assert (product.kind, product.flops) == ("product", 2 * 8 * 4 * 4)
    assert (product.read, product.written) == (4 * (32 + 16), 4 * 32), "without the work space"
    assert product.dtypes == ("f32", "f32")
    # A third of the stack is written, what was there is not read; the number of the row is.
    assert (found["new"].kind, found["new"].read, found["new"].written) == (
        "update",
        132,
        64,
    )
    assert (found["back"].read, found["back"].written) == (64 + 4, 64 + 128)
    assert (found["empty"].kind, found["empty"].written) == ("fill", 192)


def test_a_product_in_a_loop_of_unknown_length_is_refused():
    text = PROGRAM.replace("TRIPS", "").replace(
        "constant(3)", "constant(3)\n  %k = s32[] constant(4)"
    )
    with pytest.raises(ValueError, match="unknown length"):
        kernels(text)


def test_rows_of_the_table_add_up_and_name_places_and_passes():
    found = kernels(PROGRAM.replace("TRIPS", STATED))
    rows = roofline.summary(found, H100)
    assert set(rows) == {"block products", roofline.SAVED, "norms", "rest"}
    assert rows[roofline.SAVED]["kernels"] == 3, "it has no name, the loop around it has"
    assert rows["norms"]["backward"] == rows["norms"]["ms"] > 0
    sums = roofline.totals(found, H100, peak=10**9)
    assert sums["kernels"] == 10
    assert sums["GB"] == pytest.approx((192 + 3 * (320 + 196 + 260)) / 1e9)
    assert sums["products ms"] == pytest.approx(rows["block products"]["ms"])
    assert sums["stack share of bytes"] == pytest.approx(3 * 196 / (sums["GB"] * 1e9))
    assert "| block products | 3 |" in roofline.table(rows, sums)


def test_a_kernel_takes_the_longer_of_its_bytes_and_its_products():
    product = next(x for x in kernels(PROGRAM.replace("TRIPS", STATED)) if x.name == "y")
    assert roofline.seconds(product, H100) == pytest.approx(320 / 3.35232e12)

    large = dataclasses.replace(product, flops=1e12, dtypes=("bf16", "bf16"))
    assert roofline.seconds(large, H100) == pytest.approx(1e12 / (0.8 * 989e12))
    exact = dataclasses.replace(large, dtypes=("f32", "f32"))
    assert roofline.seconds(exact, H100) == pytest.approx(1e12 / (0.05 * 989e12))


def test_figures_that_moved_by_more_than_two_per_cent_are_told():
    before = {"GB": 100.0, "kernels": 50.0}
    assert roofline.differences({"GB": 101.0, "kernels": 50.0}, before) == []
    assert roofline.differences({"GB": 103.0, "kernels": 50.0}, before) == ["GB was 100, is 103"]
