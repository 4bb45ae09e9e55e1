"""matching.minimum_cost_match against all permutations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvision.ops import matching


def reference(cost, valid):
    """The least total over every way to give as many valid rows as possible a column each."""
    rows = np.flatnonzero(valid)
    number = min(len(rows), cost.shape[1])
    return number, min(
        sum(cost[row, column] for row, column in zip(chosen, columns))
        for chosen in itertools.combinations(rows, number)
        for columns in itertools.permutations(range(cost.shape[1]), number)
    )


def check(match, cost, valid):
    match = np.asarray(match)
    number, least = reference(cost, valid)
    taken = match >= 0
    assert taken.sum() == number and not (taken & ~valid).any()
    assert len(set(match[taken])) == number
    np.testing.assert_allclose(cost[np.flatnonzero(taken), match[taken]].sum(), least, rtol=1e-5, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(3, 5), (5, 3), (4, 4), (1, 1)]), st.sampled_from([0.01, 1, 100]))
def test_no_other_choice_is_cheaper(seed, shape, scale):
    rng = np.random.default_rng(seed)
    cost = (scale * (rng.integers(-6, 6, shape) + rng.integers(-2, 2))).astype(np.float32)  # ties abound
    valid = rng.random(shape[0]) < 0.7
    match = matching.minimum_cost_match(cost, valid)
    assert match.dtype == jnp.int32
    check(match, cost, valid)
    batch = jax.vmap(matching.minimum_cost_match)(np.stack([cost] * 2), np.stack([valid, ~valid]))
    np.testing.assert_array_equal(batch[0], match)
    check(batch[1], cost, ~valid)


def test_greedy_choice_is_dearer():
    cost = np.array([[1.0, 2.0], [1.5, 9.0]], np.float32)
    np.testing.assert_array_equal(matching.minimum_cost_match(cost, np.ones(2, bool)), [1, 0])
    np.testing.assert_array_equal(matching.bipartite_match(-cost, np.ones(2, bool)), [0, 1])


def test_padding_leaves_the_columns_to_objects():
    cost = np.array([[-9.0, -8.0], [5.0, 7.0], [6.0, 9.0]], np.float32)
    valid = np.array([False, True, True])
    np.testing.assert_array_equal(matching.minimum_cost_match(cost, valid), [-1, 1, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_costs_that_are_not_finite_end_and_come_last(bad):
    cost = np.array([[bad, 3.0, 1.0], [2.0, bad, 0.0]], np.float32)
    np.testing.assert_array_equal(matching.minimum_cost_match(cost, np.ones(2, bool)), [2, 0])
    everything = np.full((2, 3), bad, np.float32)
    assert len(set(np.asarray(matching.minimum_cost_match(everything, np.ones(2, bool))))) == 2


def test_nothing_to_match():
    none = np.zeros((0, 3), np.float32)
    assert matching.minimum_cost_match(none, np.zeros(0, bool)).shape == (0,)
    np.testing.assert_array_equal(matching.minimum_cost_match(none.T, np.ones(3, bool)), [-1] * 3)
    np.testing.assert_array_equal(matching.minimum_cost_match(np.ones((2, 3)), np.zeros(2, bool)), [-1, -1])


def test_float64(x64):
    rng = np.random.default_rng(0)
    cost, valid = rng.normal(size=(4, 5)), np.array([True, True, False, True])
    match = matching.minimum_cost_match(cost, valid)
    assert match.dtype == jnp.int32
    check(match, cost, valid)
