"""Where arrays live: the axis table, its errors, and work that never leaves a device."""

import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from dinojax.sharding import axes, gather, mesh
from dinojax.sharding.batch import (
    check_groups,
    global_batch,
    images_per_shard,
    merge_batch,
    split_batch,
)

DATA = ("replica", "fsdp")
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def rows(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def collectives(function, *args):
    text = jax.jit(function).lower(*args).compile().as_text() or ""
    return [name for name in COLLECTIVES if name in text]


def test_a_strategy_puts_all_devices_on_its_axis():
    assert mesh.make("dp").mesh.shape == {"replica": 8, "fsdp": 1, "tensor": 1}
    assert mesh.make("fsdp", 4).mesh.shape == {"replica": 1, "fsdp": 4, "tensor": 1}
    some = mesh.make("fsdp", jax.devices()[2:5])
    assert list(some.mesh.devices.flat) == jax.devices()[2:5] and some.num_shards == 3


@pytest.mark.parametrize(
    "strategy,sizes,want",
    [
        ("hsdp", {}, (2, 4, 1)),
        ("hsdp", {"replicas": 4}, (4, 2, 1)),
        ("fsdp_tp", {}, (1, 1, 8)),
        ("fsdp_tp", {"tensor": 2}, (1, 4, 2)),
        ("fsdp_tp", {"replicas": 2, "tensor": 2}, (2, 2, 2)),
    ],
)
def test_replicas_and_tensor_share_the_devices(strategy, sizes, want):
    layout = mesh.make(strategy, **sizes)
    assert tuple(layout.mesh.shape.values()) == want
    assert layout.num_shards == 8, "every device has images of its own"


@pytest.mark.parametrize(
    ("devices", "copies"), [(2, 1), (5, 5), (6, 3), (15, 15), (48, 6), (240, 15), (256, 16)]
)
def test_a_copy_of_hsdp_is_spread_over_a_power_of_two(devices, copies):
    """Sizes of networks divide by those, whatever share of the devices a student has."""
    assert axes.grid("hsdp", devices) == {
        **{"replica": copies, "fsdp": devices // copies, "tensor": 1}
    }


def test_an_odd_number_of_devices_shards_nothing_and_that_is_said(caplog):
    mesh.make("hsdp", 6)
    assert not caplog.messages
    mesh.make("hsdp", 7)
    assert "weights are whole on each of 7 devices" in caplog.text


def test_all_that_is_wrong_with_a_mesh_is_one_message():
    with pytest.raises(ValueError) as error:
        mesh.make("hsdp", replicas=3, tensor=2)
    assert "mesh.replicas=3 does not divide the 8 devices there are; use one of {1, 2, 4, 8}" in (
        str(error.value)
    )
    assert "mesh.tensor=2, but mesh.strategy=hsdp has no such axis; set it to None, or use " in (
        str(error.value)
    )
    with pytest.raises(ValueError, match="mesh.tensor=8 does not divide the 4 devices left"):
        mesh.make("fsdp_tp", replicas=2, tensor=8)


def test_the_devices_of_a_host_stay_together(monkeypatch):
    interleaved = [SimpleNamespace(platform="gpu", process_index=i % 2, number=i) for i in range(6)]
    monkeypatch.setattr(jax, "devices", lambda: interleaved)
    monkeypatch.setattr(mesh, "Mesh", lambda grid, *args, **kwargs: grid)
    grid: Any = mesh.make("fsdp").mesh
    assert [device.number for device in grid.flat] == [0, 2, 4, 1, 3, 5]


def test_impossible_meshes_are_refused():
    with pytest.raises(ValueError, match="mesh.strategy='tp' is not one of dp, fsdp"):
        mesh.make("tp")
    with pytest.raises(
        ValueError, match="mesh.devices=9, but jax sees 8 devices .cpu.; use 1 to 8"
    ):
        mesh.make("dp", 9)


@pytest.mark.parametrize(
    "strategy,names,want",
    [
        ("fsdp", ("image", "token", "channel"), P(DATA, None, None)),
        ("dp", ("image",), P(DATA)),
        ("fsdp", ("depth", "width", "qkv", "heads", "head_width"), P(None, ("fsdp",))),
        ("fsdp", ("bottleneck", "prototype"), P(None, ("fsdp",))),
        ("fsdp", ("width", "hidden_out"), P(("fsdp",), None)),
        ("hsdp", ("width", "mlp"), P(("fsdp",), None)),
        ("fsdp_tp", (None, "prototype"), P(None, ("tensor", "fsdp"))),
        ("fsdp_tp", ("image", "channel"), P(("replica", "fsdp", "tensor"), None)),
        ("fsdp", (None,), P(None)),
        ("dp", ("width", "mlp"), P(None, None)),
    ],
)
def test_the_table_maps_names_to_device_axes(strategy, names, want):
    got = mesh.spec(strategy, *names)
    assert tuple(got) == tuple(want) + (None,) * (len(names) - len(want))


def test_unknown_names_and_collisions_are_refused():
    with pytest.raises(ValueError, match="unknown axis 'widht', not one of image, token"):
        mesh.spec("fsdp", "widht")
    with pytest.raises(ValueError, match="axes 'width' and 'hidden' both go to fsdp"):
        mesh.spec("fsdp", "width", "hidden")
    with pytest.raises(ValueError, match="axes 'image' and 'width' both go to fsdp"):
        mesh.spec("fsdp", "image", "token", "width")
    assert mesh.spec("dp", "width", "hidden") == P(None, None)


def test_every_row_of_the_table_uses_known_names():
    for strategy, table in axes.TABLE.items():
        assert set(table) <= set(axes.AXES)
        assert {axis for row in table.values() for axis in row} <= set(axes.DEVICE_AXES)
        assert axes.SPREAD[strategy] in axes.DEVICE_AXES


def test_check_lists_every_violation_with_what_would_fit():
    params = {
        "backbone/blocks/attn/qkv/kernel": ((2, 98, 3, 2, 7), ("depth", "width", None, None, None)),
        "dino_head/prototypes/kernel": ((256, 98304), ("bottleneck", "prototype")),
        "dino_head/layer1/kernel": ((2048, 2048), ("hidden", "hidden")),
        "dino_head/layer0/bias": ((2048,), (None,)),
        "backbone/norm/scale": ((98, 1), ("widths",)),
    }
    with pytest.raises(ValueError) as error:
        mesh.check(mesh.make("fsdp", 7), params)
    lines = str(error.value).splitlines()
    assert lines[0] == "Cannot shard with mesh.strategy=fsdp:"
    assert lines[1].startswith(
        "  dino_head/prototypes/kernel axis 1 'prototype' = 98304 over fsdp=7 does not divide; "
        "use 98301 or 98308, or fsdp in {1, 2, 3, 4, 6, 8,"
    )
    assert "dino_head/layer1/kernel axes 'hidden' and 'hidden' both go to fsdp" in lines[2]
    assert sum("dino_head/layer1/kernel axis" in line for line in lines) == 2
    assert any("backbone/norm/scale unknown axis 'widths'" in line for line in lines)
    assert any("backbone/norm/scale 1 axis names for the shape (98, 1)" in line for line in lines)
    assert not any("qkv/kernel" in line or "layer0/bias" in line for line in lines)
    assert lines[-1].startswith("Every sharded size here divides over {1, 2} devices: set mesh.dev")


def test_check_accepts_what_fits():
    params = {"dino_head/prototypes/kernel": ((256, 98304), ("bottleneck", "prototype"))}
    mesh.check(mesh.make("fsdp", 8), params)
    mesh.check(mesh.make("dp", 7), params)


def test_groups_that_fit_are_accepted():
    layout = mesh.make("fsdp")
    assert images_per_shard(layout, 64) == 8
    check_groups(layout, batch_size=64, group_size=4, accumulate=2)


@pytest.mark.parametrize(
    "batch_size,group_size,accumulate,message",
    [
        (96, 5, 1, r"group_size=5 does not divide the 12 images.*use one of \{1, 2, 3, 4, 6, 12\}"),
        (96, 12, 2, r"group_size=12 does not divide the 6 images.*use one of \{1, 2, 3, 6\}"),
        (96, 24, 1, "group_size=24 does not divide .* a batch_size that is a multiple of 192"),
        (96, 4, 5, r"accumulate=5 does not divide the 12 images.*\{1, 2, 3, 4, 6, 12\}"),
        (20, 1, 1, r"batch_size=20 .* over 8 devices; use 16 or 24, or .* \{1, 2, 4, 5, 10, 20\}"),
    ],
)
def test_groups_that_straddle_devices_are_refused(batch_size, group_size, accumulate, message):
    with pytest.raises(ValueError, match=message):
        check_groups(
            mesh.make("fsdp"),
            batch_size=batch_size,
            group_size=group_size,
            accumulate=accumulate,
        )


def test_everything_is_a_no_op_without_a_layout_and_on_one_device():
    x = jnp.asarray(rows((6, 3)))
    assert mesh.constrain(x, "image", "channel") is x
    assert mesh.per_group(lambda a, b: a + b, x, replicated=(1.0,)).shape == (6, 3)
    assert gather.gather(x, "width") is x
    with mesh.use(mesh.make("fsdp", 1)):
        assert mesh.active() is None
        assert mesh.constrain(x, "image", "channel") is x


def test_constrain_places_and_refuses_what_does_not_divide():
    layout = mesh.make("fsdp")
    with mesh.use(layout):
        got = jax.jit(lambda x: mesh.constrain(x, "image", "channel"))(rows((16, 3)))
        assert got.sharding.is_equivalent_to(layout.sharding("image"), 2)
        with pytest.raises(ValueError, match="axis 0 'image' = 6 over replica=1 x fsdp=8 does not"):
            mesh.constrain(jnp.asarray(rows((6, 3))), "image", "channel")
        with pytest.raises(ValueError, match=r"3 axis names for the shape \(8, 3\)"):
            mesh.constrain(jnp.asarray(rows((8, 3))), "image", "token", "channel")
    assert mesh.active() is None


def test_a_trace_of_one_layout_is_not_reused_in_another():
    place = jax.jit(lambda x: mesh.constrain(x, "image"))
    with mesh.use(mesh.make("fsdp", 8)):
        assert len(place(rows((8, 2))).sharding.device_set) == 8
    with mesh.use(mesh.make("fsdp", 4)):
        assert len(place(rows((8, 2))).sharding.device_set) == 4
    assert len(place(rows((8, 2))).sharding.device_set) == 1


def sort_and_project(group_UVD, kernel_DD):
    """Something that mixes the images of a group, and only those."""
    sorted_UVD = jnp.sort(group_UVD, axis=1) - group_UVD.mean(1, keepdims=True)
    return mesh.constrain(sorted_UVD, "image") @ kernel_DD


def test_per_group_equals_one_device_in_value_and_gradient_without_communication():
    x, kernel, weight = rows((16, 4, 3)), rows((3, 3), seed=1), rows((16, 4, 3), seed=2)

    def loss(x, kernel):
        return jnp.sum(mesh.per_group(sort_and_project, x, replicated=(kernel,)) * weight)

    want = jax.value_and_grad(loss, argnums=(0, 1))(x, kernel)
    layout = mesh.make("fsdp")
    with mesh.use(layout):
        x_sharded = jax.device_put(x, layout.sharding("image"))
        got = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x_sharded, kernel)
        forward = lambda x, k: mesh.per_group(sort_and_project, x, replicated=(k,))  # noqa: E731
        assert collectives(forward, x_sharded, kernel) == []
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=2e-5, atol=1e-5)


def test_per_group_works_inside_scan_and_remat_with_keys_and_closed_over_weights():
    x, kernels = rows((16, 4)), rows((3, 4, 4), seed=1)
    keys = jax.random.split(jax.random.key(0), 16)

    def loss(kernels, x):
        def layer(x, kernel):
            def drop(x, keys):
                kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (4,)))(keys)
                return jnp.tanh(x @ kernel) * kept

            return mesh.per_group(drop, x, keys), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), x, kernels)[0] ** 2)

    want = jax.grad(loss)(kernels, x)
    with mesh.use(mesh.make("fsdp")):
        got = jax.jit(jax.grad(loss))(kernels, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_fsdp_gathers_the_weights_of_a_scanned_layer_and_never_the_images():
    layout = mesh.make("fsdp")
    kernels, x = rows((3, 8, 24)), rows((16, 5, 8), seed=1)
    place = layout.sharding("depth", "width", "mlp")

    def loss(kernels, x):
        def layer(x, kernel):
            x = mesh.constrain(x, "image", "token", "channel")
            return jnp.tanh(x @ kernel)[..., :8], None

        return jnp.mean(jax.lax.scan(layer, x, kernels)[0] ** 2)

    with mesh.use(layout):
        args = jax.device_put(kernels, place), jax.device_put(x, layout.sharding("image"))
        text = jax.jit(jax.grad(loss), out_shardings=place).lower(*args).compile().as_text() or ""
    moved = re.findall(r"f32\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)\(", text)
    assert set(moved) <= {"8,24", "1,8,24"} and moved


def test_per_group_refuses_groups_that_do_not_divide():
    with mesh.use(mesh.make("fsdp")):
        with pytest.raises(ValueError, match=r"leading axis 6 of \[0\]\['x'\] \(6, 2\) does not"):
            mesh.per_group(lambda tree: tree["x"], {"x": jnp.asarray(rows((6, 2)))})


def test_split_batch_takes_slices_of_each_device_and_moves_nothing():
    batch = {"images": rows((32, 3)), "groups": np.arange(16)}  # two images per group
    layout = mesh.make("fsdp")
    with mesh.use(layout):
        batch = jax.device_put(batch, layout.sharding("image"))
        split = jax.jit(lambda tree: split_batch(tree, 2))(batch)
        assert split["images"].sharding.is_equivalent_to(
            jax.NamedSharding(layout.mesh, P(None, DATA)), 3
        )
        assert collectives(lambda tree: split_batch(tree, 2), batch) == []
        assert collectives(merge_batch, split) == []
        merged = jax.jit(merge_batch)(split)
    np.testing.assert_array_equal(split["groups"], [range(0, 16, 2), range(1, 16, 2)])
    owners = np.repeat(split["groups"], 2, axis=1)  # images follow their group
    want = np.asarray(batch["images"]).reshape(16, 2, 3)[owners[:, ::2]].reshape(2, 16, 3)
    np.testing.assert_array_equal(split["images"], want)
    for name in batch:
        np.testing.assert_array_equal(merged[name], batch[name])


def test_split_batch_without_a_layout_is_a_reshape():
    x = jnp.arange(12).reshape(6, 2)
    np.testing.assert_array_equal(split_batch(x, 3), x.reshape(3, 2, 2))
    np.testing.assert_array_equal(merge_batch(split_batch(x, 3)), x)
    with pytest.raises(ValueError, match="leading axis 6 .* does not divide into 4 parts"):
        split_batch(x, 4)


def test_global_batch_keeps_the_order_of_rows():
    layout = mesh.make("fsdp")
    batch = global_batch(layout, {"images": np.arange(32).reshape(16, 2), "ids": np.arange(16)})
    np.testing.assert_array_equal(batch["images"], np.arange(32).reshape(16, 2))
    for shard in batch["ids"].addressable_shards:
        position = list(layout.mesh.devices.flat).index(shard.device)
        np.testing.assert_array_equal(shard.data, [2 * position, 2 * position + 1])


@pytest.mark.parametrize("strategy", ["dp", "fsdp", "hsdp", "fsdp_tp"])
def test_a_sharded_gradient_equals_that_of_one_device(strategy):
    x, kernel = rows((16, 8)), rows((8, 24), seed=1)

    def loss(kernel, x):
        kernel = gather.gather(kernel, "width", "mlp")
        return jnp.mean(jnp.tanh(mesh.constrain(x, "image", "channel") @ kernel) ** 2)

    want = jax.grad(loss)(kernel, x)
    layout = mesh.make(strategy)
    place = layout.sharding("width", "mlp")
    with mesh.use(layout):
        got = jax.jit(jax.grad(loss), out_shardings=place)(jax.device_put(kernel, place), x)
    parts = {"dp": 1, "fsdp": 8, "hsdp": 4, "fsdp_tp": 8}[strategy]
    assert got.addressable_shards[0].data.shape == (8 // parts, 24)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_the_gradient_of_a_gathered_weight_is_held_where_it_is_stored():
    """Without out_shardings: what a caller does with the gradient must not decide."""
    layout = mesh.make("hsdp")
    place = layout.sharding("width")

    def grad(kernel, x):
        loss = lambda kernel: jnp.sum(x @ gather.gather(kernel, "width", None))  # noqa: E731
        return jax.grad(loss)(kernel)

    with mesh.use(layout):
        args = (
            jax.device_put(rows((8, 24)), place),
            jax.device_put(rows((16, 8)), layout.sharding("image")),
        )
        assert jax.jit(grad)(*args).sharding.is_equivalent_to(place, 2)
