"""Collectives of compiled programs: how many, among whom, and how many bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.plan.hlo import Collective, collectives
from dinojax.sharding import gather, mesh

LOOP = """\
HloModule step

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %ag = f32[32,8]{1,0} all-gather(%x), channel_id=1, replica_groups=[2,8]<=[16], dimensions={0}
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

%all-reduce-scatter.1.clone (q: bf16[64]) -> bf16[8] {
  %ar.1 = bf16[64]{0:T(8,128)S(1)} all-reduce(%q), channel_id=2, \
replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}

%started (r: f32[2]) -> f32[16] {
  %ag.2 = f32[16]{0} all-gather(%r), channel_id=4, replica_groups=[2,8]<=[8,2]T(1,0), \
frontend_attributes={chain_id="4"}
}

%async_collective_fusion.1 (r: f32[2]) -> f32[16] {
  %ag.3 = f32[16]{0} all-gather(%r), channel_id=4, replica_groups=[2,8]<=[8,2]T(1,0), \
frontend_attributes={chain_id="4"}
}

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %w = (s32[], f32[4,8]) while(%t), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"40"}}
  %fusion.1 = bf16[8] fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1.clone
  %fusion.2 = f32[16] fusion(%g), kind=kCustom, calls=%async_collective_fusion.1
  %async-collective-start = f32[16] fusion(%h), kind=kCustom, calls=%started
  %async-collective-done = f32[16] fusion(%h), kind=kCustom, calls=%started
  %rs = ((f32[64]{0}, f32[32]{0}), (f32[8]{0}, f32[4]{0})) reduce-scatter-start(%a, %b), \
channel_id=7, replica_groups=mesh['r'=8,'f'=2], device_ids=([2,8]T(1,0)) {'r'}, to_apply=%add
  %s = (f32[4]{0}, f32[32]{0}) all-gather-start(%b), channel_id=5, \
replica_groups=mesh['r'=2,'f'=8] {'f'}
  ROOT %ar = f32[100]{0} all-reduce(%y), channel_id=2, replica_groups={{0,8},{1,9}}, to_apply=%add
}
"""


def test_loops_channels_groups_and_fusions():
    found = {(one.kind, one.group, one.overlapped): one for one in collectives(LOOP)}
    assert len(found) == 5
    loop = found["all-gather", 8, False]
    assert loop == Collective("all-gather", 8, True, False, 40, 40 * 1024 * 7 / 8, 1024)
    kept = found["reduce-scatter", 8, False]
    assert (kept.wire, kept.largest, kept.near) == (16 * 7, 128, True)
    # Numbers of devices run along `r` first; a start's result holds the operands too.
    started = found["reduce-scatter", 8, True]
    assert (started.wire, started.largest, started.near) == (7 * 12 * 4, 96 * 4, True)
    pair = found["all-reduce", 2, False]
    assert (pair.wire, pair.near) == (400, False)
    # The fusion's channel once although two fusions hold it; the start's result without operand.
    far, near = (one for one in collectives(LOOP) if one.overlapped and one.kind == "all-gather")
    assert {(far.near, far.count, far.wire), (near.near, near.count, near.wire)} == {
        (False, 1, 64 * 7 / 8),
        (True, 1, 128 * 7 / 8),
    }


def test_a_collective_that_nothing_calls_is_an_error():
    with pytest.raises(ValueError, match="A collective in body is never called"):
        collectives(LOOP.replace("body=%body", "body=%other"))


def test_groups_in_an_unknown_form_are_an_error():
    with pytest.raises(ValueError, match="Groups of devices that cannot be read: %ag = f32"):
        collectives(LOOP.replace("[2,8]<=[16]", "(0,1)"))


def test_a_loop_counts_by_its_condition_or_is_an_error():
    stated = 'backend_config={"known_trip_count":{"n":"40"}}'
    condition = "%c (p: s32[]) -> pred[] {\n  %n = s32[]{:T(128)} constant(7)\n}\n\nENTRY"
    found = collectives(LOOP.replace(stated, "").replace("ENTRY", condition))
    assert [one.count for one in found if not one.overlapped and one.kind == "all-gather"] == [7]
    with pytest.raises(ValueError, match="A loop of unknown length sends something: %w ="):
        collectives(LOOP.replace(stated, ""))


def test_bytes_of_a_real_program():
    """Eight devices gather a weight of each of three scanned layers, and reduce its gradient."""
    layout = mesh.make("fsdp")
    kernels, x = np.ones((3, 64, 64), np.float32), np.ones((16, 64), np.float32)
    place = layout.sharding("depth", "width", None)

    def loss(kernels, x):
        def layer(x, kernel):
            x = mesh.constrain(x, "image", "channel")
            return jnp.tanh(x @ gather.gather(kernel, "width", None)), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, kernels)[0])

    with mesh.use(layout):
        args = jax.device_put(kernels, place), jax.device_put(x, layout.sharding("image"))
        text = jax.jit(jax.grad(loss), out_shardings=place).lower(*args).compile().as_text()
    gathered = [one for one in collectives(text or "") if one.kind == "all-gather"]
    assert sum(one.count for one in gathered) == 6, "forward and backward of three layers"
    assert sum(one.wire for one in gathered) == 6 * 64 * 64 * 4 * 7 / 8
    assert {one.group for one in gathered} == {8}
