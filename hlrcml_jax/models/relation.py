"""The latent relation memory and the attention over relations (paper, section 3).

The relation of two vectors is read from a memory of M slots,

    rel(a, b) = softmax((a * b) A) V,

and a hierarchy of relations is an attention-weighted sum of such reads. Every relation is
therefore a mixture of the M value rows, so this module carries the mixture weights (`_M`)
and leaves the D-dimensional vector unbuilt: with q = V x, the product <rel, x> is weights . q.

Training has one target an example (`BxSxM`); scoring has a block of T targets that all users
share, and works on the relations of item pairs (`XxMxT`), user by user.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from hlrcml_jax import devices

# Rows whose relations with a block of targets are computed at a time: they stay in cache.
PIECE = 256


class RelationMemory(nn.Module):
    """M slots of keys A (D, M) and values V (M, D).

    They are drawn from N(0, 1/D), times the scales: with products t * p of rows in a unit ball the
    paper's keys leave all mixture weights almost equal when training begins, and values of zero let
    it begin as CML.
    """

    dim: int
    slots: int
    key_scale: float = 1.0
    value_scale: float = 1.0

    def setup(self):
        def init(scale):
            return nn.initializers.normal(stddev=scale * self.dim**-0.5)

        shapes = (self.dim, self.slots), (self.slots, self.dim)
        self.keys_DxM = self.param("keys", init(self.key_scale), shapes[0])
        self.values_MxD = self.param("values", init(self.value_scale), shapes[1])

    def weights(self, a_BxD: jax.Array, b_BxD: jax.Array) -> jax.Array:
        """Mixture weights (B, M) of rel(a, b)."""
        return jax.nn.softmax((a_BxD * b_BxD) @ self.keys_DxM)

    def slot_weights(self, a_BxD: jax.Array, slots_BxSxD: jax.Array) -> jax.Array:
        """Mixture weights (B, S, M) of rel(a, b) for the S slots b of each example."""
        return jax.nn.softmax((a_BxD[:, None] * slots_BxSxD) @ self.keys_DxM)

    def block_weights(self, a_BxD: jax.Array, target_TxD: jax.Array) -> jax.Array:
        """Mixture weights of rel(a, t) for every pair: one matrix product to (B, M, T)."""
        keyed_DxMxT = self.keys_DxM[:, :, None] * target_TxD.T[:, None, :]
        return jax.nn.softmax(jnp.tensordot(a_BxD, keyed_DxMxT, axes=1), axis=1)

    def write_block_weights(
        self, a_XxD: jax.Array, target_TxD: jax.Array, out_XxMxT: jax.Array
    ) -> jax.Array:
        """`block_weights` of many rows, written over an array and in its type.

        The rows are taken in pieces that stay in cache, and no fresh memory is needed: to get
        pages for an array of this size takes longer than the arithmetic.
        """
        n_rows = len(a_XxD)
        rows = PIECE if n_rows % PIECE == 0 else n_rows

        def write(piece, out_XxMxT):
            start = piece * rows
            a_BxD = jax.lax.dynamic_slice_in_dim(a_XxD, start, rows)
            weights_BxMxT = self.block_weights(a_BxD, target_TxD).astype(out_XxMxT.dtype)
            return jax.lax.dynamic_update_slice_in_dim(out_XxMxT, weights_BxMxT, start, axis=0)

        return jax.lax.fori_loop(0, n_rows // rows, write, out_XxMxT)

    def query(self, x_BxD: jax.Array) -> jax.Array:
        """V x, (B, M): the inner product of x with each value row."""
        return x_BxD @ self.values_MxD.T

    def read(self, weights_BxM: jax.Array) -> jax.Array:
        """The relation itself, (B, D), from its mixture weights (B, M)."""
        return weights_BxM @ self.values_MxD


def attend(
    slots_BxSxM: jax.Array, query_BxM: jax.Array, mask_BxS: jax.Array, beta: float = 1.0
) -> jax.Array:
    """Attention-weighted sum of relations, in mixture form (paper, equations of both attentions).

    The weight of relation r_k for the vector x is exp(<r_k, x>) / (sum_j exp(<r_j, x>)) ** beta
    over the slots that the mask keeps; without any kept slot the sum is zero.

    Args:
      slots_BxSxM: mixture weights of the relations.
      query_BxM: V x for the vector x that attends.
      mask_BxS: True for real slots.
      beta: power of the denominator, 1 for the softmax.

    Returns:
      Mixture weights (B, M) of the sum.
    """
    weights_BxS = attention(slots_BxSxM, query_BxM, mask_BxS, beta)
    return jnp.sum(slots_BxSxM * weights_BxS[:, :, None], axis=1)


def attention(
    slots_BxSxM: jax.Array,
    query_BxM: jax.Array,
    mask_BxS: jax.Array,
    beta: float = 1.0,
    prior_BxS: jax.Array | float = 0.0,
) -> jax.Array:
    """The weights (B, S) of `attend`, with logits that start from a prior."""
    logits_BxS = prior_BxS + jnp.sum(slots_BxSxM * query_BxM[:, None], axis=2)
    return normalize(logits_BxS.T, mask_BxS.T, beta).T


def normalize(logits_SxB: jax.Array, mask_SxB: jax.Array, beta: float = 1.0) -> jax.Array:
    """exp(x_k) / (sum_j exp(x_j)) ** beta over the first axis; exactly zero outside the mask."""
    nonempty_1xB = jnp.any(mask_SxB, axis=0, keepdims=True)
    peak_1xB = jnp.max(logits_SxB, axis=0, keepdims=True, where=mask_SxB, initial=-jnp.inf)
    # The weights do not depend on the peak, which only keeps exp in range.
    peak_1xB = jax.lax.stop_gradient(jnp.where(nonempty_1xB, peak_1xB, 0.0))
    mass_SxB = jnp.where(mask_SxB, jnp.exp(jnp.where(mask_SxB, logits_SxB - peak_1xB, 0.0)), 0.0)
    total_1xB = jnp.where(nonempty_1xB, jnp.sum(mass_SxB, axis=0, keepdims=True), 1.0)
    if beta == 1.0:
        return mass_SxB / total_1xB
    return mass_SxB * jnp.exp((1.0 - beta) * peak_1xB) / total_1xB**beta


def attend_shared(
    pairs_XxMxN: jax.Array,
    place_BxS: jax.Array,
    slot_0_BxMxN: jax.Array,
    query_BxM: jax.Array,
    mask_BxS1: jax.Array,
    beta: float = 1.0,
) -> jax.Array:
    """`attend` of B examples over relations of N targets that they share, (B, M, N).

    Args:
      pairs_XxMxN: relations of every item with every target.
      place_BxS: the items among them that an example attends to.
      slot_0_BxMxN: the relations of slot 0.
      query_BxM: as in `attend`.
      mask_BxS1: True for real slots, slot 0 before the others.
      beta: as in `attend`.
    """
    examples = (place_BxS, slot_0_BxMxN, query_BxM, mask_BxS1)
    if devices.on_cpu():
        return _attend_shared(pairs_XxMxN, *examples, beta)
    attend_one = functools.partial(_attend_one, pairs_XxMxN, beta)
    return jax.vmap(lambda *example: attend_one(example)[0])(*examples)


def _attend_one(pairs_XxMxN, beta, example):
    """(mixture weights (M, N), weights of the slots (S + 1, N)) of one example."""
    place_S, slot_0_MxN, query_M, mask_S1 = example
    logits_SxN = pair_logits(pairs_XxMxN, place_S, query_M)
    logits_S1xN = jnp.concatenate([(query_M @ slot_0_MxN)[None], logits_SxN])
    weights_S1xN = normalize(logits_S1xN, mask_S1[:, None], beta)
    mix_MxN = mix_pairs(pairs_XxMxN, place_S, weights_S1xN[1:])
    return slot_0_MxN * weights_S1xN[:1] + mix_MxN, weights_S1xN


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend_shared(pairs_XxMxN, place_BxS, slot_0_BxMxN, query_BxM, mask_BxS1, beta):
    """Neither this nor its derivative ever gathers the relations of an example's slots.

    They are taken from the pairs, and their gradients added to the pairs' own, one slot in cache at
    a time.
    """
    examples = (place_BxS, slot_0_BxMxN, query_BxM, mask_BxS1)
    return _attend_shared_forward(pairs_XxMxN, *examples, beta)[0]


def _attend_shared_forward(pairs_XxMxN, place_BxS, slot_0_BxMxN, query_BxM, mask_BxS1, beta):
    examples = (place_BxS, slot_0_BxMxN, query_BxM, mask_BxS1)
    attend_one = functools.partial(_attend_one, pairs_XxMxN, beta)
    mix_BxMxN, weights_BxS1xN = jax.lax.map(attend_one, examples)
    saved = (pairs_XxMxN, place_BxS, slot_0_BxMxN, query_BxM, weights_BxS1xN, mix_BxMxN)
    return mix_BxMxN, saved


def _attend_shared_back(beta, saved, back_BxMxN):
    """d w_k = w_k dl_k - beta p_k sum_j w_j dl_j for p = w / sum w; so the sum needs no slots."""
    pairs_XxMxN, *examples = saved

    def back_one(pairs_back_XxMxN, example):
        place_S, slot_0_MxN, query_M, weights_S1xN, mix_MxN, back_MxN = example
        total_1xN = jnp.sum(weights_S1xN, axis=0, keepdims=True)
        share_S1xN = weights_S1xN / jnp.where(total_1xN > 0, total_1xN, 1.0)
        along_0_1xN = jnp.sum(back_MxN * slot_0_MxN, axis=0, keepdims=True)
        along_SxN = pair_products(pairs_XxMxN, place_S, back_MxN)
        along_S1xN = jnp.concatenate([along_0_1xN, along_SxN])
        along_mix_1xN = jnp.sum(back_MxN * mix_MxN, axis=0, keepdims=True)
        logits_back_S1xN = weights_S1xN * along_S1xN - beta * share_S1xN * along_mix_1xN

        def add(pairs_back_XxMxN, slot):
            place, weights_N, logits_back_N = slot
            back = weights_N[None] * back_MxN + logits_back_N[None] * query_M[:, None]
            return pairs_back_XxMxN.at[place].add(back), None

        slots = (place_S, weights_S1xN[1:], logits_back_S1xN[1:])
        pairs_back_XxMxN, _ = jax.lax.scan(add, pairs_back_XxMxN, slots)
        mix_back_MxN = mix_pairs(pairs_XxMxN, place_S, logits_back_S1xN[1:])
        query_back_M = jnp.sum(mix_back_MxN + slot_0_MxN * logits_back_S1xN[:1], axis=1)
        slot_0_back_MxN = weights_S1xN[:1] * back_MxN + logits_back_S1xN[:1] * query_M[:, None]
        return pairs_back_XxMxN, (slot_0_back_MxN, query_back_M)

    pairs_back_XxMxN, (slot_0_back_BxMxN, query_back_BxM) = jax.lax.scan(
        back_one, jnp.zeros_like(pairs_XxMxN), (*examples, back_BxMxN)
    )
    return pairs_back_XxMxN, None, slot_0_back_BxMxN, query_back_BxM, None


_attend_shared.defvjp(_attend_shared_forward, _attend_shared_back)


def pair_logits(pairs_XxMxT: jax.Array, place_S: jax.Array, query_M: jax.Array) -> jax.Array:
    """<r, x> (S, T) for the relations at some places of a block."""
    return pair_products(pairs_XxMxT, place_S, query_M[:, None])


def pair_products(pairs_XxMxT: jax.Array, place_S: jax.Array, with_MxT: jax.Array) -> jax.Array:
    """Their products (S, T) with a mixture (M, T) or (M, 1); a CPU keeps one slot in cache."""
    if not devices.on_cpu():
        return jnp.sum(pairs_XxMxT[place_S].astype(float) * with_MxT[None], axis=1)
    return jax.lax.map(
        lambda place: jnp.sum(pairs_XxMxT[place].astype(float) * with_MxT, axis=0), place_S
    )


def mix_pairs(pairs_XxMxT: jax.Array, place_S: jax.Array, weights_SxT: jax.Array) -> jax.Array:
    """Mixture weights (M, T) of the weighted sum of those relations."""
    if not devices.on_cpu():
        return jnp.sum(pairs_XxMxT[place_S].astype(float) * weights_SxT[:, None], axis=0)

    def add(sum_MxT, slot):
        place, weights_T = slot
        return sum_MxT + pairs_XxMxT[place].astype(float) * weights_T[None], None

    zeros_MxT = jnp.zeros(pairs_XxMxT.shape[1:])
    return jax.lax.scan(add, zeros_MxT, (place_S, weights_SxT))[0]
