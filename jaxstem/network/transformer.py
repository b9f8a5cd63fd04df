# SPDX-License-Identifier: GPL-3.0-or-later
"""The network: a masked transformer encoder over Bragg disks, with a head for orientations.

Follows Je et al. (arXiv 2602.12420) in its shape: token embedding, pre-norm encoder without
positional order, masked mean, head. Disks are a set, so that their order and the amount of padding
change nothing. What the output means is the head's business (`heads.py`): "matrix" gives the nine
numbers whose nearest rotation is the published answer; "grid" gives log-probabilities over a
symmetry-reduced grid of orientations, which has no tears and knows its own doubt. What templates
say of a pattern (`matching.py`) can be given to the grid head as a prior, which the network then
corrects: it need not learn where disks lie, only what templates get wrong. `ModelConfig.paper()` is
the published network, the default a smaller one with continuous channels and the grid head over
templates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from jaxstem.diffraction.geometry import Disks
from jaxstem.network import tokens
from jaxstem.network.finalists import init_finalists


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the network.

    embedding: "continuous" or "digitised"; head: a name of `HEADS`; n_disks: the most disks a
    pattern may have; spacing_deg: of the orientation grid, degrees (grid head only); templates:
    whether the grid head corrects templates or stands alone; knows_reach: whether a continuous
    embedding is told how far out disks can be seen; knows_exposure: and how weak ones;
    finalists: how many of the likeliest orientations are then laid on the disks and judged
    (`finalists.py`; 0: none; grid head only).
    """

    embedding: str = "continuous"
    head: str = "grid"
    width: int = 96
    blocks: int = 3
    heads: int = 4
    feedforward: int = 192
    dropout: float = 0.0
    n_disks: int = 20
    spacing_deg: float = 5.5
    templates: bool = True
    knows_reach: bool = True
    knows_exposure: bool = True
    finalists: int = 4

    @property
    def corrects_templates(self) -> bool:
        """Whether what the network gives is added to what templates say."""
        return self.templates and self.head == "grid"

    @property
    def settles(self) -> bool:
        """Whether the likeliest orientations are laid on the disks and judged."""
        return self.finalists > 0 and self.head == "grid"

    @staticmethod
    def paper() -> ModelConfig:
        """The published network: digitised channels, width 384, nine-number head."""
        return ModelConfig(
            embedding="digitised",
            head="matrix",
            width=384,
            blocks=3,
            heads=8,
            feedforward=768,
            dropout=0.001,
            n_disks=76,
            templates=False,
            knows_reach=False,
            knows_exposure=False,
            finalists=0,
        )


class DigitisedEmbedding(nn.Module):
    """The published embedding: three embeddings of the bins, summed, then LayerNorm."""

    width: int

    @nn.compact
    def __call__(self, disks: Disks) -> Float[Array, "... K width"]:
        k_r, k_theta, intensity = tokens.digitise(disks)
        angle = k_theta * (2 * jnp.pi / tokens.K_THETA_BINS)
        total = (
            tokens.sinusoidal(k_r.astype(jnp.float32), self.width, 5_000.0)
            + nn.Dense(self.width, name="harmonic_series")(tokens.harmonics(angle))
            + tokens.sinusoidal(intensity.astype(jnp.float32), self.width, 10_000.0)
        )
        return nn.LayerNorm()(total)


class ContinuousEmbedding(nn.Module):
    """Smooth features of the three channels through a small perceptron, then LayerNorm."""

    width: int
    k_max: float
    exposure: bool

    @nn.compact
    def __call__(
        self, disks: Disks, seen: tokens.Sight | None = None
    ) -> Float[Array, "... K width"]:
        features = tokens.continuous_features(disks, self.k_max, seen, self.exposure)
        hidden = nn.Dense(self.width)(features)
        return nn.LayerNorm()(nn.Dense(self.width)(nn.gelu(hidden)))


def attend(
    query: Float[Array, "... K heads d"],
    key: Float[Array, "... K heads d"],
    value: Float[Array, "... K heads d"],
    mask: Bool[ArrayLike, "... 1 1 K"],
    dropout_rng: PRNGKeyArray | None,
    dropout_rate: float,
    deterministic: bool,
    dtype: Any,
    precision: Any,
    *,
    n_disks: int,
) -> Float[Array, "... K heads d"]:
    """Scaled dot-product attention (Vaswani et al., arXiv 1706.03762) among `K` disks.

    Dropout (of attention's weights, alike for all heads) is cut from rows of `n_disks` numbers, so
    that what a key drops does not depend on how far a pattern is padded, up to `n_disks`.
    """
    weights = nn.dot_product_attention_weights(
        query, key, mask=mask, dtype=dtype, precision=precision
    )
    if not deterministic:
        kept, length = 1.0 - dropout_rate, key.shape[-3]
        drawn = jax.random.bernoulli(dropout_rng, kept, (length, n_disks))[:, :length]
        weights = weights * (drawn / kept).astype(weights.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", weights, value, precision=precision)


class Block(nn.Module):
    """Pre-norm encoder block (Xiong et al., arXiv 2002.04745): attention, then feed-forward.

    The same key drops the same of a pattern however far it is padded, up to `n_disks`.
    """

    heads: int
    feedforward: int
    dropout: float
    n_disks: int
    dtype: Any = None
    precision: Any = None

    @nn.compact
    def __call__(self, x, mask, deterministic: bool):
        norm = partial(nn.LayerNorm, dtype=self.dtype)
        dense = partial(nn.Dense, dtype=self.dtype, precision=self.precision)
        attended = nn.MultiHeadDotProductAttention(
            num_heads=self.heads,
            dropout_rate=self.dropout,
            deterministic=deterministic,
            dtype=self.dtype,
            precision=self.precision,
            attention_fn=partial(attend, n_disks=self.n_disks),
        )(norm()(x), mask=mask[..., None, None, :])
        x = x + nn.Dropout(self.dropout, deterministic=deterministic)(attended)
        hidden = nn.gelu(dense(self.feedforward)(norm()(x)))
        hidden = nn.Dropout(self.dropout, deterministic=deterministic)(hidden)
        return x + dense(x.shape[-1])(hidden)


class OrientationTransformer(nn.Module):
    """Disks (..., K) to the `n_out` numbers of the head's output.

    (`heads.py` says what they mean.) A pattern without any disk gives finite numbers, too, which
    mean something only if there were such patterns in training. To the logits of a grid head is
    added `prior`, the log-probabilities of templates, times a trust that the network sets for each
    pattern (one before training); without a prior they stand alone. `seen` says which disks of a
    pattern could be seen (None: those up to `k_max` [1/Å], as weak as the weakest).

    `dtype` is that of encoder and head (None: the parameters'); the embedding, whose waves and
    harmonics need the precision, and the pooling stay in float32, and so does what comes out.
    `precision` is that of their matrix products (None: what jax is set to).
    """

    config: ModelConfig
    k_max: float
    n_out: int
    dtype: Any = None
    precision: Any = None

    @nn.compact
    def __call__(
        self,
        disks: Disks,
        prior: Float[Array, "... n_out"] | None = None,
        seen: tokens.Sight | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "... n_out"]:
        c = self.config
        clear = lambda x: jnp.where(disks.mask, x, 0.0)  # noqa: E731
        disks = Disks(clear(disks.qx), clear(disks.qy), clear(disks.intensity), disks.mask)
        if c.embedding == "digitised":
            x = DigitisedEmbedding(c.width)(disks)
        else:
            seen = tokens.plain_sight(disks, self.k_max) if seen is None else seen
            embed = ContinuousEmbedding(c.width, self.k_max, c.knows_exposure)
            x = embed(disks, seen if c.knows_reach else None)
        for _ in range(c.blocks):
            block = Block(c.heads, c.feedforward, c.dropout, c.n_disks, self.dtype, self.precision)
            x = block(x, disks.mask, deterministic)
        x = nn.LayerNorm()(x)
        weight = disks.mask.astype(x.dtype)
        count = jnp.maximum(weight.sum(axis=-1, keepdims=True), 1.0)
        pooled = jnp.einsum("...k,...kw->...w", weight, x) / count
        return self._head(pooled, prior)

    def _head(self, pooled, prior):
        c = self.config
        dense = partial(nn.Dense, dtype=self.dtype, precision=self.precision)
        if c.head != "grid":
            # as published for nine numbers; more of them must not pass through fewer
            narrowest = 1 if c.head == "matrix" else min(c.width, self.n_out)
            for narrowing in (1, 2, 4, 8):
                pooled = nn.gelu(dense(max(c.width // narrowing, narrowest))(pooled))
            return dense(self.n_out)(pooled).astype(pooled.dtype)
        hidden = nn.gelu(dense(2 * c.width)(pooled))
        hidden = nn.LayerNorm(dtype=self.dtype)(hidden)
        logits = dense(self.n_out)(hidden).astype(pooled.dtype)
        if prior is None:
            return logits
        trust = 1.0 + nn.Dense(1, kernel_init=nn.initializers.zeros, name="trust")(hidden)
        return logits + trust * prior


def init_params(network: OrientationTransformer, key: jax.Array) -> Any:
    """Fresh parameters (a pytree of arrays) for patterns of `config.n_disks` disks."""
    shape = (1, network.config.n_disks)
    disks = Disks(jnp.ones(shape), jnp.zeros(shape), jnp.ones(shape), jnp.ones(shape, bool))
    prior = jnp.zeros((1, network.n_out)) if network.config.corrects_templates else None
    params = network.init(key, disks, prior)["params"]
    if not network.config.settles:
        return params
    return params | {"finalists": init_finalists(jax.random.fold_in(key, 1))}
