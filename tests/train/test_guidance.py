"""Guides: what they add to a loss and send to the backbone, gaps, and the step on any devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax import config
from dinojax.data.metadata import Column
from dinojax.losses.specs import GuideSpec
from dinojax.sharding import mesh
from dinojax.train import program
from dinojax.train.guidance import PART, Guidance
from dinojax.train.ramps import guide_ramp, trunk_factor
from tests.support import small

B, G, D = 6, 2, 5
SPECS = (
    GuideSpec("place", "prototypes", reverse=False, weight=0.3, outputs=4),
    GuideSpec("year", "classification", reverse=True, weight=0.1, outputs=3, hidden=(4,)),
    GuideSpec("size", "regression", reverse=False, weight=0.2, outputs=1, hidden=(4,), high=2.0),
)
METADATA = {
    "place": np.array([0, 1, 1, -1, 3, 0], np.int32),
    "year": np.array([0, 2, 1, 1, -1, 0], np.int32),
    "size": np.array([0.1, 1.9, np.nan, 1.0, 0.5, np.nan], np.float32),
}


@pytest.fixture(scope="module")
def guided():
    guidance = Guidance(SPECS, D, "none")
    keys = jax.random.split(jax.random.key(0), len(guidance.heads))
    student = {
        name: jax.tree.map(
            lambda x: 10 * x,
            jax.tree.map(
                lambda box: box.value,
                head.init(key, jnp.zeros((1, D)))["params"],
                is_leaf=lambda x: hasattr(x, "names"),
            ),
        )
        for (name, head), key in zip(guidance.heads.items(), keys, strict=True)
    }
    return guidance, student, guidance.new_prototypes(jax.random.key(1))


def tokens(seed=0):
    return np.random.default_rng(seed).normal(size=(B, G, D)).astype(np.float32)


def pull(guided, metadata, *, ramp=1.0, equalize="none", only=None):
    """(gradient of what guides add at the cls tokens, their terms)."""
    guidance, student, prototypes = guided
    specs = tuple(s for s in guidance.specs if only is None or s.name == only)
    guidance = dataclasses.replace(guidance, equalize=equalize, specs=specs)
    place = {"whole": {"prototypes": prototypes}, "now": {"guide": ramp}}

    @jax.jit
    def added(cls_BGD, metadata):
        rows = guidance.rows(metadata)
        squares = None
        if equalize != "none":
            squares = guidance.squares(student, cls_BGD, rows, *place.values())
        return guidance.total(student, cls_BGD, rows, squares=squares, **place)

    return jax.grad(added, has_aux=True)(tokens(), metadata)


@pytest.mark.parametrize("name", METADATA)
def test_an_image_without_a_value_changes_nothing_but_that_guides_own_terms(guided, name):
    gaps = {**METADATA, name: METADATA[name].copy()}
    gaps[name][1] = np.nan if name == "size" else -1
    before, terms = pull(guided, METADATA)
    after, found = pull(guided, gaps)
    changed = {term for term in terms if not np.allclose(terms[term], found[term], rtol=1e-6)}
    assert changed <= {f"guide/{name}", f"guide_metric/{name}"} and f"guide/{name}" in changed
    own, _ = pull(guided, gaps, only=name)
    assert not np.any(own[1]) and np.any(own[0]), "an image without a value is not pulled"
    assert not np.allclose(before, after)


def test_the_loss_is_a_mean_over_images_that_have_a_value(guided):
    kept = METADATA["year"] >= 0
    guidance, student, _ = guided
    spec = SPECS[1]
    head = guidance.heads[PART + spec.name]
    logits = head.apply({"params": student[PART + spec.name]}, tokens())[kept]
    log = np.asarray(jax.nn.log_softmax(logits))
    wanted = -np.mean([log[i, :, c].mean() for i, c in enumerate(METADATA["year"][kept])])
    _, terms = pull(guided, METADATA)
    np.testing.assert_allclose(terms["guide/year"], wanted, rtol=1e-5)


def test_without_any_value_a_guide_says_nothing(guided):
    grad, terms = pull(guided, {**METADATA, "size": np.full(B, np.nan, np.float32)}, only="size")
    assert not np.any(grad) and terms["guide/size"] == 0


def test_what_is_removed_pulls_the_other_way_and_the_ramp_scales_it(guided):
    whole, _ = pull(guided, METADATA, only="year")
    half, _ = pull(guided, METADATA, only="year", ramp=0.5)
    np.testing.assert_allclose(half, 0.5 * whole, rtol=1e-5, atol=1e-9)
    guidance, student, prototypes = guided
    kept = dataclasses.replace(SPECS[1], reverse=False)
    there = dataclasses.replace(guidance, specs=(kept,)), student, prototypes
    np.testing.assert_allclose(pull(there, METADATA)[0], -whole, rtol=1e-5, atol=1e-9)


def norms(guided, equalize):
    found = {}
    _, terms = pull(guided, METADATA, equalize=equalize)
    for spec in SPECS:
        grad, _ = pull(guided, METADATA, only=spec.name)
        found[spec.name] = np.linalg.norm(grad) * terms[f"guide_factor/{spec.name}"]
    return found


def test_weights_mean_what_they_say_and_as_released_they_do_not(guided):
    equal = norms(guided, "norms")
    np.testing.assert_allclose(list(equal.values()), equal["place"], rtol=1e-4)
    weighted = norms(guided, "weights")
    shares = [weighted[spec.name] / spec.weight for spec in SPECS]
    np.testing.assert_allclose(shares, shares[0], rtol=1e-4)


def test_prototypes_move_by_images_that_have_a_class(guided):
    guidance, _, prototypes = guided
    rows = guidance.rows({name: jnp.asarray(x) for name, x in METADATA.items()})
    moved = guidance.moved(prototypes, jnp.asarray(tokens()), rows)[PART + "place"]
    before = prototypes[PART + "place"]
    assert moved["counts"].tolist() == [4, 4, 0, 2], "every image counts once for each crop"
    np.testing.assert_array_equal(moved["centroids"][2], before["centroids"][2])
    assert not np.allclose(moved["centroids"][0], before["centroids"][0])


def test_ramps_begin_and_end_where_they_should():
    ramp = {"shape": "sigmoid", "start": 10, "num_steps": 110}
    assert [guide_ramp(step, **ramp) for step in (0, 9, 10)] == [0, 0, 0]
    assert guide_ramp(110, **ramp) == guide_ramp(500, **ramp) > 0.999
    assert [trunk_factor(s, frozen=4, warmup=4) for s in (0, 3, 4, 6, 7, 99)] == [
        0,
        0,
        0.25,
        0.75,
        1,
        1,
    ]
    assert trunk_factor(0, frozen=0, warmup=0) == 1.0


ROWS = tuple((s.name, s.kind, "remove" if s.reverse else "keep", s.weight) for s in SPECS)
GUIDED = (
    f"guides.rows={ROWS}",
    "guides.hidden=(6,)",
    "guides.equalize=weights",
    "losses.sigreg=0.5",
)
GUIDED += ("losses.sigreg_directions=32", "optim.freeze_trunk=2", "optim.trunk_warmup=4")
GUIDED += ("num_steps=8", "model.depth=1")
COLUMNS = {
    "place": Column("place", np.arange(3, dtype=np.int32), ("a", "b", "c")),
    "year": Column("year", np.arange(3, dtype=np.int32), ("1", "2", "3")),
    "size": Column("size", np.array([0.0, 2.0], np.float32), ()),
}


def step(*overrides):
    loaded = small.config(*GUIDED, *overrides)
    layout = mesh.from_section(loaded.mesh)
    return small.compiled_program(program.build(loaded, layout, columns=COLUMNS))


@pytest.mark.exhaustive
def test_devices_and_micro_batches_change_nothing_of_a_guided_step():
    """Statistics of the whole batch would differ if parts or devices took their own."""
    one = step("mesh.devices=1", "mesh.strategy=dp")
    before = small.numbers(one.program)
    state, seen = one()
    moved, found = step("mesh.devices=8", "mesh.strategy=fsdp", "accumulate=2")()
    small.assert_close(found, seen)
    small.assert_close(moved, state)
    assert seen["scalars"]["sigreg"] > 0 and seen["scalars"]["guide/year"] > 0
    assert {"guide_year", "guide_size"} == state.student.keys() - state.ema.keys()
    assert not small.same(state.student["guide_year"], before.student["guide_year"])
    assert (
        state.centers["guide_place"]["counts"].sum() > before.centers["guide_place"]["counts"].sum()
    )
    assert {"grad_norm/guide_year", "grad_norm/guide_size"} <= seen["scalars"].keys()


def test_rows_that_make_no_guide_are_refused_by_name():
    for row, message in (
        ("('a b','prototypes','keep',1.0)", "is no name"),
        ("('a','proto','keep',1.0)", "has kind 'proto'"),
        ("('a','prototypes','drop',1.0)", "has effect 'drop'"),
        ("('a','prototypes','keep',0.0)", "has weight=0.0"),
    ):
        with pytest.raises(config.ConfigError, match=message):
            config.load("tiny", [f"guides.rows=({row},)"])
