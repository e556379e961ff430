"""Draws are exact: who may be drawn, how often, and the same on any number of devices."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scipy.stats

from hlrcml_jax import registry
from hlrcml_jax.data.dataset import Known
from hlrcml_jax.errors import UserError
from hlrcml_jax.training import interactions, sampling

N_DRAWS = 100_000
ITEMS = np.array([1, 2, 5, 6, 9, 11])
N_ITEMS = 14


@pytest.fixture
def known():
    """Three users: one with ITEMS, one with nothing, one with all."""
    dense = np.zeros((3, N_ITEMS), bool)
    dense[0, ITEMS] = True
    dense[2] = True
    return scipy.sparse.csr_array(dense)


def make(known, **options):
    return jax.device_put(sampling.Sampler.of(known, **{"max_prefs": 3, **options}))


def keys(n=N_DRAWS):
    return jax.random.split(jax.random.key(7), n)


def assert_frequencies(counts, expected_share):
    """Chi-square: a right sampler fails one time in ten thousand, and the seed is fixed."""
    expected = np.asarray(expected_share) * counts.sum()
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-4


def test_negatives_are_uniform_over_what_the_user_does_not_have(known):
    sampler = make(known, candidates=2)
    drawn, _ = jax.vmap(lambda key: sampler.negatives(key, jnp.int32(0)))(keys())
    free = np.setdiff1d(np.arange(N_ITEMS), ITEMS)
    counts = np.bincount(np.asarray(drawn).ravel(), minlength=N_ITEMS)
    assert counts[ITEMS].sum() == 0
    assert_frequencies(counts[free], np.full(len(free), 1 / len(free)))


def test_a_sampler_of_ones_own_gets_each_items_number_of_users(known):
    def draw(key, n, count_I):
        return jnp.arange(n), count_I[:n]

    sampler = make(known, candidates=N_ITEMS, candidate_weights=draw)
    _, count_I = sampler.any_items(jax.random.key(0))
    np.testing.assert_array_equal(count_I, np.maximum(known.toarray().sum(axis=0), 1))


def test_one_item_is_left_to_draw():
    known = np.ones((2, N_ITEMS), bool)
    known[0, 5] = known[1, 3:7] = False
    sampler = make(scipy.sparse.csr_array(known), candidates=8, correction=True)
    item_N, log_weight_N = sampler.negatives(jax.random.key(0), jnp.int32(0))
    np.testing.assert_array_equal(item_N, 5)
    np.testing.assert_allclose(log_weight_N, -np.log(8), rtol=1e-6)  # stands for one item


def test_the_candidates_of_an_example_are_independent(known):
    sampler = make(known, candidates=2)
    drawn = np.asarray(jax.vmap(lambda key: sampler.negatives(key, jnp.int32(0))[0])(keys()))
    table = np.histogram2d(drawn[:, 0], drawn[:, 1], bins=N_ITEMS)[0]
    table = table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-4


def draw_preferences(sampler, left_out):
    place = jnp.int32(0 if left_out is None else left_out)

    def draw(key):
        return sampler.preferences(key, jnp.int32(0), place, jnp.bool_(left_out is not None))

    items, mask = jax.vmap(draw)(keys())
    return np.asarray(items), np.asarray(mask)


@pytest.mark.parametrize("left_out", [None, 0, 3, 5])
def test_uniform_preferences_give_every_subset_the_same_chance(known, left_out):
    items, mask = draw_preferences(make(known), left_out)
    assert mask.all()
    allowed = ITEMS if left_out is None else np.delete(ITEMS, left_out)
    subsets, counts = np.unique(np.sort(items, axis=1), axis=0, return_counts=True)
    assert np.isin(subsets, allowed).all()
    assert (np.diff(subsets, axis=1) > 0).all()  # without replacement
    n_subsets = int(scipy.special.comb(len(allowed), 3))
    assert len(subsets) == n_subsets
    assert_frequencies(counts, np.full(n_subsets, 1 / n_subsets))


@pytest.mark.parametrize("left_out", [None, 1])
def test_unpop_preferences_follow_one_over_popularity(left_out):
    """The exact probability of each ordered pair drawn by weight without replacement."""
    # User 0 has items 0..3, which have 1, 2, 4 and 8 users.
    dense = np.zeros((9, 5), bool)
    for item, users in enumerate((1, 2, 4, 8)):
        dense[:users, item] = True
    sampler = make(scipy.sparse.csr_array(dense), max_prefs=2, weights="unpop")
    items, mask = draw_preferences(sampler, left_out)
    assert mask.all()
    weight = {item: 1 / users for item, users in enumerate((1, 2, 4, 8)) if item != left_out}
    total = sum(weight.values())
    pairs = list(itertools.permutations(weight, 2))
    share = [weight[a] / total * weight[b] / (total - weight[a]) for a, b in pairs]
    counts = np.array([((items == pair).all(axis=1)).sum() for pair in pairs])
    assert counts.sum() == N_DRAWS
    assert_frequencies(counts, share)


@pytest.mark.parametrize("weights", registry.PREFERENCE_WEIGHTS)
@pytest.mark.parametrize("left_out", [None, 2])
def test_short_lists_are_taken_whole_and_masked(known, weights, left_out):
    sampler = make(known, max_prefs=20, weights=weights)
    items, mask = draw_preferences(sampler, left_out)
    allowed = ITEMS if left_out is None else np.delete(ITEMS, left_out)
    assert (mask.sum(axis=1) == len(allowed)).all()
    assert all(
        set(row[keep]) == set(allowed) for row, keep in zip(items[:200], mask[:200], strict=False)
    )


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 17])
@pytest.mark.parametrize("n", [0, 1, 2, 7, 40])
def test_subsets_are_distinct_numbers_below_n(n, size):
    draw = jax.vmap(lambda key: sampling.uniform_subset(key, jnp.int32(n), size))
    numbers, mask = (np.asarray(x) for x in draw(keys(2000)))
    assert (mask.sum(axis=1) == min(n, size)).all()
    for row, keep in zip(numbers, mask, strict=True):
        assert len(set(row[keep])) == keep.sum()
    assert (numbers[mask] < n).all()
    assert (numbers >= 0).all()


def random_known(seed=0, users=60, items=90):
    matrix = scipy.sparse.random_array((users, items), density=0.2, rng=np.random.default_rng(seed))
    matrix = scipy.sparse.csr_array(matrix > 0)
    matrix.sort_indices()
    return matrix


def epoch_of(known, place_B, **options):
    sampler = make(known, candidates=3, **options)
    positives = jax.device_put(interactions.Positives.of(known))
    draw = jax.jit(sampling.draw_batch)
    return draw(sampler, positives, jax.random.key(2), jnp.asarray(place_B))


@pytest.mark.parametrize("weights", registry.PREFERENCE_WEIGHTS)
def test_an_epoch_visits_every_pair_once_with_right_company(weights):
    known = random_known()
    batch = epoch_of(known, np.arange(known.nnz), max_prefs=5, weights=weights)
    pairs = np.stack([batch.user_B, batch.positive_B], axis=1)
    assert len(np.unique(pairs, axis=0)) == known.nnz
    dense = known.toarray()
    user_B = np.asarray(batch.user_B)
    assert dense[user_B, batch.positive_B].all()
    assert not dense[user_B[:, None], batch.negative_BxN].any()
    prefs, mask = np.asarray(batch.prefs_BxS), np.asarray(batch.mask_BxS)
    assert dense[np.broadcast_to(user_B[:, None], prefs.shape)[mask], prefs[mask]].all()
    assert not ((prefs == np.asarray(batch.positive_B)[:, None]) & mask).any()
    assert (np.asarray(batch.weight_B) == 1).all()


def test_a_draw_depends_on_its_place_and_on_nothing_else():
    known = random_known()
    whole = epoch_of(known, np.arange(100))
    part = epoch_of(known, np.arange(37, 53))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
        np.testing.assert_array_equal(a[37:53], b)


def test_places_past_the_end_and_users_with_all_items_weigh_nothing(known):
    batch = epoch_of(known, np.arange(known.nnz + 5))
    full = np.asarray(batch.user_B) == 2
    past = np.arange(known.nnz + 5) >= known.nnz
    np.testing.assert_array_equal(np.asarray(batch.weight_B), ~(full | past))
    # A weight of 0 does not stop a logarithm of 0 in the gradient.
    sampler = make(known, correction=True)
    _, log_weight_N = sampler.negatives(jax.random.key(0), jnp.int32(2))
    assert log_weight_N.shape == (1,)  # unless more are asked for
    assert np.isfinite(log_weight_N).all()


@pytest.mark.parametrize("shared", [False, True])
def test_the_positive_of_validation_is_no_negative(known, shared):
    """It is not among the user's items, so it may be drawn; then it does not count."""
    sampler, item = make(known, candidates=40, shared=shared), jnp.int32(0)
    drawn = sampler.any_items(jax.random.key(0)) if shared else None
    example = sampler.example(jax.random.key(1), jnp.int32(0), item, drawn)
    is_positive = np.asarray(example.negative_N) == 0
    assert is_positive.any()
    assert np.isneginf(example.log_weight_N)[is_positive].all()
    others = np.setdiff1d(example.negative_N, [0, *ITEMS])
    assert np.isfinite(example.log_weight_N)[np.isin(example.negative_N, others)].all()


def test_more_interactions_than_fit_are_refused():
    many = types.SimpleNamespace(shape=(3, 4), nnz=2**31)
    with pytest.raises(UserError, match="2,147,483,648 interactions"):
        interactions.UserItems.parts(many, 1, range(1))


def test_find_knows_every_cell():
    known = random_known(3)
    rows = jax.device_put(interactions.UserItems.of(known))
    users, items = np.indices(known.shape)
    find = jax.jit(jax.vmap(lambda user, item: rows.find(user, item)[1]))
    found = find(jnp.asarray(users.ravel()), jnp.asarray(items.ravel()))
    np.testing.assert_array_equal(np.asarray(found).reshape(known.shape), known.toarray())


@pytest.mark.parametrize("weights", registry.PREFERENCE_WEIGHTS)
def test_evaluation_preferences_depend_on_the_user_alone(weights):
    known = random_known()
    longest = int(np.diff(known.indptr).max())

    def draw(users, known, longest=longest):
        rows = interactions.UserItems.rows(known[users], longest)
        sampler = sampling.Sampler(rows, sampling.rarity(known), 4, weights=weights)
        numbers = jnp.array(users)
        found = sampling.evaluation_preferences(
            jax.device_put(sampler), jax.random.key(0), numbers, np.arange(len(numbers))
        )
        return np.where(found[1], found[0], -1)

    both = draw([3, 8], known)
    assert set(both[1]) - {-1} <= set(known[[8]].indices)
    np.testing.assert_array_equal(both[1:], draw([8], known))
    parts = [known.multiply(np.arange(90) % 2 == k).tocsr() for k in (0, 1)]
    np.testing.assert_array_equal(both, draw([3, 8], Known(tuple(parts))))


@pytest.mark.parametrize(
    ("shared", "most_bits"), [(False, 0), (True, 0), (True, 2**31)], ids=["own", "search", "bits"]
)
@pytest.mark.parametrize("weights", registry.NEGATIVE_WEIGHTS)
def test_what_is_allowed_is_what_the_user_does_not_have(weights, shared, most_bits, monkeypatch):
    monkeypatch.setattr(sampling, "MOST_BITS", most_bits)
    known = random_known()
    batch = epoch_of(known, np.arange(50), candidate_weights=weights, shared=shared)
    assert batch.shared == shared
    negative = np.broadcast_to(batch.negative_BxN, (50, 3))
    has = known.toarray()[np.asarray(batch.user_B)[:, None], negative]
    np.testing.assert_array_equal(batch.log_weight_BxN, np.where(has, -np.inf, 0))
    if weights == "uniform" and not shared:
        assert not has.any()


@pytest.mark.parametrize("weights", registry.NEGATIVE_WEIGHTS)
def test_shared_candidates_have_the_weights_of_all_items(weights):
    known = random_known(items=20)
    sampler = make(known, candidates=4, candidate_weights=weights)
    drawn = np.asarray(jax.vmap(sampler.any_items)(keys())[0])
    counts = np.bincount(drawn.ravel(), minlength=20)
    popularity = np.bincount(known.indices, minlength=20) / known.nnz
    assert_frequencies(counts, popularity if weights == "popularity" else np.full(20, 1 / 20))


def by_number(key, n, count_I):
    """A sampler of one's own: later items more often."""
    share_I = jnp.arange(1.0, 1.0 + len(count_I))
    log_q_I = jnp.log(share_I / jnp.sum(share_I))
    item_N = jax.random.categorical(key, log_q_I, shape=(n,))
    return item_N, log_q_I[item_N]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("weights", [*registry.NEGATIVE_WEIGHTS, by_number])
def test_corrected_candidates_stand_for_all_items_that_a_user_lacks(weights, shared):
    """The mean of sum_n w_n f(item_n) over many draws is the sum of f over those items."""
    known = random_known(items=20)
    options = dict(candidates=4, candidate_weights=weights, shared=shared, correction=True)
    sampler = make(known, **options)
    drawable = known.toarray().any(axis=0) if weights == "popularity" else np.ones(20, bool)
    f = np.random.default_rng(1).random(20)

    def estimate(key, user):
        if shared:
            negative, log_q = sampler.any_items(key)
            log_weight = sampler.log_weights(user, negative, log_q)
        else:
            negative, log_weight = sampler.negatives(key, user)
        return jnp.sum(jnp.exp(log_weight) * jnp.asarray(f)[negative])

    for user in (0, 1):
        found = np.asarray(jax.vmap(estimate, (0, None))(keys(), jnp.array(user)))
        expected = f[~known.toarray()[user] & drawable].sum()
        assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(len(found))


def test_steps_have_shared_candidates_of_their_own():
    sampler = make(random_known(), candidates=6, shared=True)
    positives = jax.device_put(interactions.Positives.of(random_known()))
    places = jnp.arange(4)
    draws = [
        np.asarray(
            sampling.draw_batch(sampler, positives, jax.random.key(2), places, step).negative_BxN
        )
        for step in (0, 1, 0)
    ]
    assert (draws[0] != draws[1]).any()
    np.testing.assert_array_equal(draws[0], draws[2])


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 65, 1000, 4097])
def test_an_order_has_every_place_once(n):
    order = jax.jit(sampling.shuffled, static_argnums=2)
    found = [np.asarray(order(jax.random.key(seed), jnp.arange(n), n)) for seed in (0, 1)]
    for places in found:
        np.testing.assert_array_equal(np.sort(places), np.arange(n))
    assert n < 7 or (found[0] != found[1]).any()


def test_places_in_an_order_are_uniform_and_neighbours_independent():
    """Chi-squared over many keys, of where an element is, and of two together."""
    n, n_keys = 11, 20_000
    order = jax.vmap(lambda key: sampling.shuffled(key, jnp.arange(n), n))
    place_KxN = np.asarray(jax.jit(order)(jax.random.split(jax.random.key(5), n_keys)))
    for element in (0, 4, 10):
        count_N = np.bincount(place_KxN[:, element], minlength=n)
        assert scipy.stats.chisquare(count_N).pvalue > 1e-4
    pairs = place_KxN[:, 3] * n + place_KxN[:, 4]
    count_P = np.bincount(pairs, minlength=n * n).reshape(n, n)
    different = ~np.eye(n, dtype=bool)
    assert not count_P[~different].any()
    assert scipy.stats.chisquare(count_P[different]).pvalue > 1e-4
