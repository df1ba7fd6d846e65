import numpy as np

from raystitch.seeding import child_seeds, integers, uniforms

SEEDS = np.arange(20_000) * 7 - 3


def test_rows_depend_on_their_seed_alone() -> None:
    drawn = uniforms(SEEDS, 3, 5)
    order = np.random.default_rng(0).permutation(len(SEEDS))
    np.testing.assert_array_equal(uniforms(SEEDS[order], 3, 5), drawn[order])
    np.testing.assert_array_equal(uniforms(SEEDS[4:5], 3, 5), drawn[4:5])
    np.testing.assert_array_equal(uniforms(SEEDS, 9, 5)[:, :3], drawn)


def test_uniform_and_uncorrelated() -> None:
    drawn = np.concatenate([uniforms(SEEDS, 3, 5), uniforms(SEEDS, 1, 6), uniforms(SEEDS + 1, 1, 5)], 1)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    np.testing.assert_allclose(drawn.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(drawn.var(0), 1 / 12, atol=0.002)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 0.03


def test_golden_numbers() -> None:
    golden = [[0.9850879530339955, 0.5385560528693344], [0.2435182750514877, 0.2309190877133478]]
    np.testing.assert_array_equal(uniforms(np.array([0, 42]), 2, 1), golden)


def test_integers_stay_below_their_bound() -> None:
    assert integers(np.array([0.0, 0.5, 1 - 2.0**-53]), 7).tolist() == [0, 3, 6]
    assert integers(np.array([0.99, 0.99]), np.array([1, 100])).tolist() == [0, 99]


def test_child_seeds_differ() -> None:
    children = child_seeds(SEEDS, 4, 0)
    assert children.dtype == np.int64
    assert len(np.unique(children)) == children.size
