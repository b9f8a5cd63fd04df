# SPDX-License-Identifier: GPL-3.0-or-later
"""The network reads a set: order and padding change nothing; the preset has the published shape."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstem.diffraction.geometry import Disks
from jaxstem.network.transformer import ModelConfig, OrientationTransformer, init_params

pytestmark = pytest.mark.usefixtures("quick_compile")

K_MAX = 1.5
SMALL = ModelConfig(width=16, blocks=2, heads=2, feedforward=32, n_disks=12)
VARIANTS = {
    "default": SMALL,
    "published": replace(SMALL, embedding="digitised", head="matrix"),
}


@pytest.fixture(scope="module", params=VARIANTS)
def network(request):
    """The function of disks that a network with random parameters is."""
    config = VARIANTS[request.param]
    module = OrientationTransformer(config, K_MAX, 40 if config.head == "grid" else 9)
    params = jax.jit(partial(init_params, module))(jax.random.key(1))
    return jax.jit(partial(module.apply, {"params": params}))


@pytest.fixture
def disks(rng):
    """Five patterns of 3 to 12 disks."""
    q = rng.uniform(-1, 1, (2, 5, 12))
    mask = np.arange(12) < np.array([3, 12, 7, 8, 5])[:, None]
    intensity = np.where(mask, rng.uniform(0.01, 1, mask.shape), 0)
    q = np.where(mask, q, 0)
    return Disks(*(jnp.asarray(x, jnp.float32) for x in (*q, intensity)), jnp.asarray(mask))


def assert_same(a, b):
    np.testing.assert_allclose(a, b, atol=1e-5 * (1 + np.abs(a).max()))


def test_order_changes_nothing(network, disks, rng):
    before = network(disks)
    order = np.argsort(rng.random((5, 12)), axis=1)
    assert_same(before, network(Disks(*(jnp.take_along_axis(x, order, 1) for x in disks))))


def test_neither_padding_nor_batch_axes_matter(network, disks):
    before = network(disks)
    longer = Disks(*(jnp.pad(x, ((0, 0), (0, 9))) for x in disks))
    assert_same(before, network(longer))
    alone = Disks(*(x[3, :8] for x in disks))
    assert_same(before[3], network(alone))


def test_garbage_in_padding_changes_nothing(network, disks, rng):
    before = network(disks)
    for garbage in (100 * rng.normal(size=(3, *disks.mask.shape)), jnp.full((3, 1, 1), jnp.nan)):
        spoilt = (
            jnp.where(disks.mask, x, y).astype(jnp.float32)
            for x, y in zip(disks[:3], garbage, strict=True)
        )
        np.testing.assert_array_equal(before, network(Disks(*spoilt, disks.mask)))


def test_disks_do_matter(network, disks):
    """The comparisons above can fail."""
    moved = disks._replace(qx=disks.qx + 0.05 * disks.mask)
    assert np.abs(network(disks) - network(moved)).max() > 1e-3
    fewer = disks._replace(mask=disks.mask.at[:, 2].set(False))
    assert np.abs(network(disks) - network(fewer)).max() > 1e-3


def test_unit_of_intensity_changes_nothing(network, disks):
    assert_same(network(disks), network(disks._replace(intensity=1e5 * disks.intensity)))


def test_whole_turns_change_nothing(network, disks):
    """k_theta and k_theta + 2π are the same disk; a sliver on either side of 0 nearly so."""
    angle = np.deg2rad(1e-3)
    up, down = (disks._replace(qx=jnp.abs(disks.qx), qy=s * angle * disks.qx) for s in (1, -1))
    np.testing.assert_allclose(network(up), network(down), atol=5e-3)


def test_empty_pattern_is_finite(network, disks):
    nothing = jnp.zeros(disks.mask.shape)
    assert np.isfinite(network(Disks(*3 * [nothing], disks.mask & False))).all()


@pytest.fixture(scope="module")
def shallow():
    """A network of one block that drops half of its numbers, and its parameters."""
    module = OrientationTransformer(replace(SMALL, blocks=1, dropout=0.5), K_MAX, 9)
    return module, jax.jit(partial(init_params, module))(jax.random.key(0))


def test_gradient_is_finite_for_padded_and_empty_patterns(shallow, disks):
    module, params = shallow
    partly = disks._replace(mask=disks.mask.at[0].set(False))
    total = lambda p: (module.apply({"params": p}, partly) ** 2).sum()  # noqa: E731
    for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(params)):
        assert np.isfinite(leaf).all()


def test_dropout_follows_its_key_and_not_the_padding(shallow, disks):
    module, params = shallow

    @jax.jit
    def apply(disks, key):
        rngs = {"dropout": jax.random.key(key)}
        return module.apply({"params": params}, disks, deterministic=False, rngs=rngs)

    first = Disks(*(x[0] for x in disks))  # of three disks
    whole = apply(first, 3)
    assert np.abs(whole - apply(first, 4)).max() > 1e-3
    assert_same(whole, apply(Disks(*(x[:5] for x in first)), 3))


def test_paper_preset_has_the_published_shape():
    config = ModelConfig.paper()
    assert (config.n_disks, config.dropout) == (76, 0.001)
    module = OrientationTransformer(config, 2.99, 9)
    params = jax.eval_shape(partial(init_params, module), jax.random.key(0))
    assert sum(name.startswith("Block_") for name in params) == 3
    block = params["Block_0"]
    attention = block["MultiHeadDotProductAttention_0"]
    assert attention["query"]["kernel"].shape == (384, 8, 48)
    assert block["Dense_0"]["kernel"].shape == (384, 768)
    assert block["Dense_1"]["kernel"].shape == (768, 384)
    series = params["DigitisedEmbedding_0"]["harmonic_series"]
    assert series["kernel"].shape == (15 + 15, 384)
    assert series["bias"].shape == (384,)
    assert set(params["DigitisedEmbedding_0"]) == {"harmonic_series", "LayerNorm_0"}
    assert "LayerNorm_0" in params
    dense = [params[f"Dense_{i}"]["kernel"].shape for i in range(5)]
    assert [out for _, out in dense] == [384, 192, 96, 48, 9]
    disks = Disks(*(jax.ShapeDtypeStruct((2, 76), t) for t in (*3 * [jnp.float32], bool)))
    output = jax.eval_shape(lambda p, d: module.apply({"params": p}, d), params, disks)
    assert output.shape == (2, 9)
