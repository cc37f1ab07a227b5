"""The pooling probe finds a patch that tells the class, wherever it lies."""

import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.eval.attention_pooling import PoolingSpec, logits, tokens_of, train


def test_it_learns_what_one_patch_in_many_tells():
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    tokens = 0.1 * rng.normal(size=(64, 9, 6)).astype(np.float32)
    tokens[np.arange(64), rng.integers(0, 9, 64), labels] += 3.0
    spec = PoolingSpec(inputs=6, classes=2, width=16, heads=2)
    rates = (1e-6, 0.2)
    found = dict(train(tokens, labels, spec, rates=rates, num_steps=60, batch_size=64))
    right = {
        rate: float(np.mean(np.argmax(logits(params, tokens, heads=2), -1) == labels))
        for rate, params in found.items()
    }
    assert right[0.2] > 0.95 and right[0.2] > right[1e-6]


@pytest.mark.parametrize("label", [-1, 2, 255])
def test_a_label_that_is_no_class_is_refused(label):
    spec = PoolingSpec(inputs=6, classes=2, width=16, heads=2)
    tokens, labels = np.zeros((4, 9, 6), np.float32), np.array([0, 1, 1, label])
    words = rf"labels run from .*{label}.* 0\.\.1\. Leave out"
    with pytest.raises(ValueError, match=words):
        next(train(tokens, labels, spec, rates=(0.1,), num_steps=1))


def test_cls_tokens_stand_first_and_may_have_unit_length():
    patches, cls = [jnp.ones((2, 3, 4))] * 2, [2.0 * jnp.ones((2, 4))] * 2
    assert tokens_of(patches).shape == (2, 3, 8)
    tokens = tokens_of(patches, cls, unit=True)
    assert tokens.shape == (2, 4, 8)
    np.testing.assert_allclose(tokens[:, 0], 0.5)
