"""FLOPs and bytes against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from dinojax.ops import flops
from dinojax.ops.attention import attention, splash
from dinojax.sharding import mesh


def of(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def product(a, b):
    return a @ b


def test_a_matrix_product_is_two_per_multiply_add():
    assert flops.count_flops(product, of(3, 5), of(5, 7)) == 2 * 3 * 5 * 7
    batched = lambda a, b: jnp.einsum("bnae,bmae->banm", a, b)  # noqa: E731
    assert flops.count_flops(batched, of(2, 3, 4, 5), of(2, 6, 4, 5)) == 2 * (2 * 4) * 3 * 6 * 5


def test_of_ways_for_several_platforms_the_cheapest_counts():
    twice = lambda a, b: a @ b + 2 * a @ b  # noqa: E731
    either = lambda *x: jax.lax.platform_dependent(*x, cpu=twice, default=product)  # noqa: E731
    assert flops.count_flops(either, of(3, 5), of(5, 7)) == 2 * 3 * 5 * 7


def test_elementwise_work_is_not_counted():
    assert flops.count_flops(lambda x: jnp.tanh(x) * x + jnp.sort(x), of(100)) == 0


@pytest.mark.parametrize("remat,times", [(False, 3), (True, 4)])
def test_a_gradient_costs_three_forwards_and_remat_a_fourth(remat, times):
    layer = lambda x, w: jnp.tanh(x @ w)  # noqa: E731
    if remat:
        layer = jax.checkpoint(layer, prevent_cse=False)

    def loss(ws, x):
        out, _ = jax.lax.scan(lambda x, w: (layer(x, w), None), x, ws)
        return jnp.sum(out)

    forward = 6 * 2 * 4 * 8 * 8  # six layers, scanned
    assert flops.count_flops(loss, of(6, 8, 8), of(4, 8)) == forward
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    assert flops.count_flops(gradient, of(6, 8, 8), of(4, 8)) == times * forward


def test_custom_derivatives_are_entered():
    @jax.custom_vjp
    def twice(a, b):
        return 2.0 * product(a, b)

    twice.defvjp(lambda a, b: (twice(a, b), (a, b)), lambda ab, g: (g @ ab[1].T, ab[0].T @ g))
    assert flops.count_flops(twice, of(3, 5), of(5, 7)) == 210
    loss = lambda a, b: jnp.sum(twice(a, b))  # noqa: E731
    assert flops.count_flops(jax.value_and_grad(loss, argnums=(0, 1)), of(3, 5), of(5, 7)) == 630


def test_of_two_branches_the_dearer_counts():
    def either(flag, a, b):
        return jax.lax.cond(flag, lambda: a @ b @ b.T @ b, lambda: a @ b)

    assert flops.count_flops(either, True, of(3, 5), of(5, 7)) == 3 * 210


def test_loops_count_when_their_length_is_known():
    def known(a):
        return jax.lax.fori_loop(0, 7, lambda _, x: x @ a, a)

    def unknown(a, n):
        return jax.lax.fori_loop(0, n, lambda _, x: x @ a, a)

    assert flops.count_flops(known, of(4, 4)) == 7 * 2 * 4**3
    with pytest.raises(ValueError, match="while loop whose length is not known.*use lax.scan"):
        flops.count_flops(unknown, of(4, 4), jax.ShapeDtypeStruct((), jnp.int32))
    assert flops.count_flops(lambda key: jax.random.permutation(key, 9), jax.random.key(0)) == 0


def test_a_program_per_device_counts_on_every_device():
    with mesh.use(mesh.make("fsdp")):
        both = lambda a, b: mesh.per_group(product, a, replicated=(b,))  # noqa: E731
        assert flops.count_flops(both, of(16, 5), of(5, 7)) == 2 * 16 * 5 * 7


def test_a_kernel_in_blocks_counts_every_block():
    x = of(3, 5, 2, 8)
    padded = 3 * 4 * 128 * 128 * 2 * 8  # 5 tokens, padded to one block of 128
    assert flops.count_flops(lambda q, k, v: splash(q, k, v, interpret=True), x, x, x) == padded


def test_a_kernel_of_another_library_is_refused():
    hidden = core.Primitive("dot_product_attention_fwd_wrapper")
    hidden.def_abstract_eval(lambda x: x)
    with pytest.raises(ValueError, match="hides its products: count with attention='xla' or"):
        flops.count_flops(hidden.bind, of(3, 5))


def convolve(x_BHWC, kernel_HWCD, stride, groups=1):
    return jax.lax.conv_general_dilated(
        x_BHWC,
        kernel_HWCD,
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def test_convolutions_and_their_gradients():
    patches = lambda x, k: jnp.sum(convolve(x, k, stride=4))  # noqa: E731
    args = of(2, 12, 8, 3), of(4, 4, 3, 10)
    forward = 2 * (2 * 3 * 2) * (4 * 4 * 3) * 10
    assert flops.count_flops(patches, *args) == forward
    assert flops.count_flops(jax.value_and_grad(patches, argnums=(0, 1)), *args) == 3 * forward

    depthwise = lambda x, k: convolve(x, k, stride=1, groups=6)  # noqa: E731
    assert flops.count_flops(depthwise, of(1, 9, 9, 6), of(7, 7, 1, 6)) == 2 * 9 * 6 * 49


# GFLOPs at 256 x 256 and 512 x 512 pixels, DINOv3 paper, table of the distilled family.
FAMILY = {
    "vits": (dict(depth=12, width=384, ffn_width=1536, ffn_matrices=2), 12.5, 63.8),
    "vits+": (dict(depth=12, width=384, ffn_width=1536, ffn_matrices=3), 16.2, 78.4),
    "vitb": (dict(depth=12, width=768, ffn_width=3072, ffn_matrices=2), 47.1, 215.0),
    "vitl": (dict(depth=24, width=1024, ffn_width=4096, ffn_matrices=2), 164.7, 727.2),
    "vith+": (dict(depth=32, width=1280, ffn_width=5120, ffn_matrices=3), 449.5, 1901.9),
    "vit7b": (dict(depth=40, width=4096, ffn_width=8192, ffn_matrices=3), 3549, 14511),
}


@pytest.mark.parametrize("name", FAMILY)
def test_the_closed_form_gives_the_family_s_figures(name):
    row, at_256, at_512 = FAMILY[name]
    assert flops.vit_flops(**row, num_patches=256) / 1e9 == pytest.approx(at_256, rel=5e-3)
    assert flops.vit_flops(**row, num_patches=1024) / 1e9 == pytest.approx(at_512, rel=5e-3)


@pytest.mark.parametrize("implementation", ["plain", "xla"])
def test_counting_a_scanned_vit_gives_the_closed_form(implementation):
    L, B, D, A, F = 3, 2, 8, 2, 32  # one cls token, eight patches

    def block(x_BND, p):
        q, k, v = jnp.moveaxis(jnp.einsum("bnd,dsae->bnsae", x_BND, p["qkv"]), 2, 0)
        out_BNAE = attention(q, k, v, implementation=implementation)
        x_BND = x_BND + jnp.einsum("bnae,aed->bnd", out_BNAE, p["proj"])
        return x_BND + jax.nn.gelu(x_BND @ p["fc1"]) @ p["fc2"], None

    def vit(params, images_BHWC):
        patches_BPD = convolve(images_BHWC, params["embed"], stride=4).reshape(B, -1, D)
        tokens_BND = jnp.concatenate([jnp.zeros((B, 1, D)), patches_BPD], 1)
        return jax.lax.scan(block, tokens_BND, params["blocks"])[0]

    blocks = {
        "qkv": of(L, D, 3, A, D // A),
        "proj": of(L, A, D // A, D),
        "fc1": of(L, D, F),
        "fc2": of(L, F, D),
    }
    params = {"embed": of(4, 4, 3, D), "blocks": blocks}
    want = B * flops.vit_flops(
        depth=L,
        width=D,
        ffn_width=F,
        ffn_matrices=2,
        num_patches=8,
        num_prefix=1,
        patch_values=4 * 4 * 3,
    )
    assert flops.count_flops(vit, params, of(B, 16, 8, 3)) == want


def test_compiled_memory_counts_bytes_of_one_device():
    layout = mesh.make("fsdp")
    with mesh.use(layout):
        x = jax.device_put(np.ones((16, 4), np.float32), layout.sharding("image"))
        compiled = jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile()
    memory = flops.compiled_memory(compiled)
    assert memory["argument"] == memory["output"] == memory["alias"] == 16 * 4 * 4 // 8
    assert set(memory) == {"argument", "output", "alias", "temp", "peak"}


def test_compiled_memory_sees_what_is_kept_in_between():
    wide = lambda x: jnp.sort(jnp.outer(x, x), axis=0).sum(0)  # noqa: E731
    small, large = (
        flops.compiled_memory(jax.jit(wide).lower(of(n)).compile())["temp"] for n in (8, 256)
    )
    assert large >= 256 * 256 * 4 > small
