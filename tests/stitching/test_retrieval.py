import numpy as np
import pytest

from raystitch.stitching.retrieval import NearestTargets, limit_reuse

RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(300, 3)).astype(np.float32)
EPISODES = np.repeat(np.arange(10), 30)


def brute_force(queries: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """Distance of the nearest target of another episode over all queries, one row at a time."""
    nearest = []
    for row, own in zip(queries, episodes, strict=True):
        distance = np.linalg.norm(row[:, None] - STATES[None], axis=-1)
        nearest.append(np.where(EPISODES[None] == own[:, None], np.inf, distance).min())
    return np.array(nearest)


@pytest.mark.parametrize("overlap", [False, True])
def test_best_alternative_is_the_nearest_over_all_queries(overlap: bool) -> None:
    queries = RNG.normal(size=(50, 6, 3)).astype(np.float32)
    episodes = RNG.integers(0, 10, (50, 6)) if overlap else np.full((50, 6), 99)
    found = NearestTargets(STATES, EPISODES, slack=0.0).find(queries, episodes, overlap=overlap)
    np.testing.assert_allclose(found.distance[:, 0], brute_force(queries, episodes), rtol=1e-5)
    assert (found.distance[:, 1:] >= found.distance[:, :-1]).all()
    chosen = queries[np.arange(50), found.query[:, 0]]
    np.testing.assert_allclose(
        np.linalg.norm(chosen - STATES[found.target[:, 0]], axis=-1), found.distance[:, 0], rtol=1e-5
    )
    usable = np.isfinite(found.distance)
    own = np.take_along_axis(episodes, found.query, 1)
    assert (EPISODES[found.target] != own)[usable].all()


def test_slack_bounds_the_distance_and_costs_little() -> None:
    states = RNG.normal(size=(5000, 8)).astype(np.float32)
    queries = RNG.normal(size=(400, 1, 8)).astype(np.float32)
    elsewhere = np.full((400, 1), -1)
    exact, quick = (
        NearestTargets(states, np.zeros(5000, np.int64), slack=slack).query(queries, elsewhere, 1)[1]
        for slack in (0, 1)
    )
    assert (quick >= exact - 1e-6).all()
    assert (quick <= 2 * exact + 1e-6).all()
    assert quick.mean() < 1.03 * exact.mean()


def test_a_row_is_found_alike_in_any_batch() -> None:
    """Equal targets and all: the search knows no batch-mates."""
    states = np.repeat(STATES, 3, axis=0)
    index = NearestTargets(states, np.repeat(EPISODES, 3))
    queries = STATES[:64, None] + RNG.normal(0, 0.01, (64, 1, 3)).astype(np.float32)
    target, _ = index.query(queries, np.full((64, 1), 99), 4)
    for rows in (slice(0, 1), slice(5, 12), slice(40, 64)):
        np.testing.assert_array_equal(index.query(queries[rows], np.full((64, 1), 99)[rows], 4)[0], target[rows])


def test_non_finite_queries_are_never_matched() -> None:
    queries = RNG.normal(size=(2, 2, 3)).astype(np.float32)
    queries[0, 0, 1] = np.nan
    queries[1, :] = np.inf
    found = NearestTargets(STATES, EPISODES).find(queries, np.full((2, 2), 99), overlap=False)
    finite = np.isfinite(found.distance)
    assert finite[0].any()
    assert (found.query[0][finite[0]] == 1).all()
    assert not finite[1].any()


def test_fewer_targets_than_neighbours() -> None:
    found = NearestTargets(STATES[:3], EPISODES[:3]).find(STATES[None, :2], np.full((1, 2), 99), overlap=True)
    assert found.target.shape == (1, 6)


def reuse_loop(targets: np.ndarray, usable: np.ndarray, limit: int) -> np.ndarray:
    """Rounds as documented: whoever still wants a target gets it in row order."""
    used: dict[int, int] = {}
    wanted = [[c for c in range(targets.shape[1]) if usable[r, c]] for r in range(len(targets))]
    chosen, position = np.full(len(targets), -1), [0] * len(targets)
    pending = [r for r in range(len(targets)) if wanted[r]]
    while pending:
        taken = dict(used)
        later = []
        for r in pending:
            target = int(targets[r, wanted[r][position[r]]])
            if taken.get(target, 0) < limit:
                taken[target] = taken.get(target, 0) + 1
                chosen[r] = wanted[r][position[r]]
            else:
                position[r] += 1
                if position[r] < len(wanted[r]):
                    later.append(r)
        used, pending = taken, later
    return chosen


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_limit_reuse_matches_a_plain_loop(limit: int) -> None:
    targets = RNG.integers(0, 20, (80, 6))
    usable = RNG.random((80, 6)) < 0.7
    chosen = limit_reuse(targets, usable, limit, np.zeros(20, np.int64))
    np.testing.assert_array_equal(chosen, reuse_loop(targets, usable, limit))
    settled = np.flatnonzero(chosen >= 0)
    assert usable[settled, chosen[settled]].all()
    assert np.bincount(targets[settled, chosen[settled]]).max() <= limit


def test_no_limit_takes_everybodys_first() -> None:
    targets = np.zeros((9, 4), np.int64)
    usable = np.tile([False, True, True, False], (9, 1))
    assert limit_reuse(targets, usable, 0, np.zeros(1, np.int64)).tolist() == [1] * 9
