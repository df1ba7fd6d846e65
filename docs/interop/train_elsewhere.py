"""Trains d3rlpy's TD3+BC and a plain one (td3_bc.py) on exports of raystitch, and compares what they read with what
raystitch has. raystitch is not imported. It ends with status 1 at the first difference.

    python train_elsewhere.py FOLDER MINARI_ID [--steps 3000] [--eval-episodes 5]

run.sh makes what it reads: expected.npz (describe.py) and stitched.hdf5 (export --format d4rl) in FOLDER, and the
Minari dataset MINARI_ID (export --format minari).
"""

import argparse
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import structlog
from td3_bc import Arrays, Config, evaluate, qlearning_dataset, train

PACKAGES = ("d3rlpy", "torch", "numpy", "gymnasium", "minari", "h5py")
FLAT = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")


def check(holds: Any, what: str) -> None:
    """Print what holds; end the program with what does not."""
    if not bool(np.all(holds)):
        raise SystemExit(f"DIFFERS  {what}")
    print(f"same     {what}")


class Expected:
    """The stitched episodes as raystitch has them in memory: E episodes, N transitions."""

    def __init__(self, path: Path) -> None:
        self.arrays = dict(np.load(path))
        self.lengths, self.terminated = self.arrays["lengths"], self.arrays["terminated"]
        self.ends = np.cumsum(self.lengths) - 1  # last transition of each
        self.states = np.arange(self.lengths.sum()) + np.repeat(np.arange(len(self.lengths)), self.lengths)

    def flat(self) -> Arrays:
        """The D4RL layout of the same episodes, without any file between."""
        terminals, timeouts = (np.zeros(self.lengths.sum(), bool) for _ in range(2))
        terminals[self.ends], timeouts[self.ends] = self.terminated, ~self.terminated
        return {
            "observations": self.arrays["observations"][self.states],
            "next_observations": self.arrays["observations"][self.states + 1],
            "actions": self.arrays["actions"],
            "rewards": self.arrays["rewards"],
            "terminals": terminals,
            "timeouts": timeouts,
        }


def read_hdf5(path: Path, expected: Expected) -> Arrays:
    """The arrays of a file in the D4RL layout, checked."""
    with h5py.File(path) as file:
        arrays = {name: np.asarray(file[name]) for name in FLAT}
        is_synthetic = np.asarray(file["is_synthetic"])
        low, high = np.asarray(file.attrs["action_low"]), np.asarray(file.attrs["action_high"])
    floats, flags = FLAT[:4], FLAT[4:]
    check([arrays[name].dtype == np.float32 for name in floats], f"float32: {', '.join(floats)}")
    check([arrays[name].dtype == bool for name in flags], f"bool: {', '.join(flags)}")
    check([np.isfinite(arrays[name]).all() for name in floats], "every number is finite")
    for name, values in expected.flat().items():
        check(np.array_equal(arrays[name], values), f"{name} {list(values.shape)}, bit for bit")
    check_marks(is_synthetic, expected)
    ends = arrays["terminals"] | arrays["timeouts"]
    check(not (arrays["terminals"] & arrays["timeouts"]).any(), "no row is both terminal and timeout")
    check(ends[-1] and ends.sum() == len(expected.lengths), "as many ends as episodes, one in the last row")
    inside = ~ends[:-1]
    check(
        np.array_equal(arrays["next_observations"][:-1][inside], arrays["observations"][1:][inside]),
        "next_observations are the next row inside episodes",
    )
    bounds = [expected.arrays["action_low"], expected.arrays["action_high"]]
    check(np.array_equal([low, high], bounds), f"action bounds {low.tolist()} to {high.tolist()}")
    outside = ((arrays["actions"] < low) | (arrays["actions"] > high)).any(1)
    recorded = int((outside & ~is_synthetic).sum())
    check(not (outside & is_synthetic).any(), f"no generated action is out of bounds (recorded ones: {recorded:,})")
    return arrays


def read_minari(minari_id: str, expected: Expected) -> Arrays:
    """The same arrays from the Minari dataset, read with Minari, checked."""
    import minari

    dataset = minari.load_dataset(minari_id)
    episodes = list(dataset.iterate_episodes())
    check_lengths([len(episode) for episode in episodes], expected)
    check(
        [len(episode.observations) == len(episode.actions) + 1 for episode in episodes],
        "every episode has one observation more than actions",
    )
    parts = {
        "observations": [episode.observations[:-1] for episode in episodes],
        "next_observations": [episode.observations[1:] for episode in episodes],
        **{name: [getattr(episode, name) for episode in episodes] for name in ("actions", "rewards")},
        "terminals": [episode.terminations for episode in episodes],
        "timeouts": [episode.truncations & ~episode.terminations for episode in episodes],
    }
    arrays = {name: np.concatenate(values) for name, values in parts.items()}
    for name, values in expected.flat().items():
        check(np.array_equal(arrays[name], values), f"{name} {list(values.shape)}, bit for bit")
    marks = np.concatenate([episode.infos["is_synthetic"][1:] for episode in episodes])
    check_marks(marks, expected)
    return arrays


def check_marks(marks: np.ndarray, expected: Expected) -> None:
    check(np.array_equal(marks, expected.arrays["is_synthetic"]), f"is_synthetic, {marks.sum():,} generated steps")


def check_lengths(lengths: list[int], expected: Expected) -> None:
    check(np.array_equal(lengths, expected.lengths), f"{len(lengths):,} episodes of the same lengths")


def check_transitions(data: Arrays, arrays: Arrays, expected: Expected) -> None:
    """What ``d4rl.qlearning_dataset`` makes of the file: all but the last transition of episodes that were cut."""
    count = expected.lengths.sum() - (~expected.terminated[:-1]).sum() - 1
    check(len(data["rewards"]) == count, f"{count:,} transitions: all but the last of each time-out, and the last row")
    kept = np.flatnonzero(~arrays["timeouts"])
    kept = kept[kept < len(arrays["timeouts"]) - 1]
    check(data["terminals"].sum() == expected.terminated[:-1].sum(), f"{int(data['terminals'].sum()):,} terminals")
    alive = data["terminals"] == 0
    check(
        np.array_equal(data["next_observations"][alive], arrays["next_observations"][kept][alive]),
        "its next observations are those of the file wherever the return goes on",
    )


def mdp_dataset(arrays: Arrays, expected: Expected) -> Any:
    """A dataset of d3rlpy, which has to see the same episodes and returns as raystitch."""
    from d3rlpy.dataset import MDPDataset

    dataset = MDPDataset(**{name: arrays[name] for name in FLAT if name != "next_observations"})
    episodes = dataset.episodes
    check_lengths([episode.size() for episode in episodes], expected)
    returns = np.array([episode.compute_return() for episode in episodes])
    same = np.allclose(returns, expected.arrays["returns"], rtol=1e-5)
    check(same, f"returns, {returns.min():.5g} to {returns.max():.5g}, mean {returns.mean():.5g}")
    terminated = [episode.terminated for episode in episodes]
    check(np.array_equal(terminated, expected.terminated), f"{sum(terminated):,} episodes terminated")
    count = expected.lengths.sum() - (~expected.terminated).sum()
    check(dataset.transition_count == count, f"{count:,} transitions: d3rlpy leaves out the last of each time-out")
    return dataset


def look_at_get_minari(minari_id: str, expected: Expected) -> None:
    """Say how many episodes d3rlpy's own reader of Minari gets wrong; nothing here is trained on what it reads."""
    from d3rlpy.datasets import get_minari

    episodes = get_minari(minari_id)[0].episodes
    begins = np.cumsum(expected.lengths + 1) - (expected.lengths + 1)
    own = [
        expected.arrays["observations"][start : start + len(ep.observations)]
        for start, ep in zip(begins, episodes, strict=True)
    ]
    wrong = [not np.array_equal(ep.observations, rows) for ep, rows in zip(episodes, own, strict=True)]
    print(f"note     d3rlpy's get_minari: {sum(wrong):,} of {len(episodes):,} episodes have other observations")


def train_d3rlpy(dataset: Any, steps: int, env_id: str, num_episodes: int) -> None:
    """Train d3rlpy's TD3+BC and print its losses and returns."""
    import d3rlpy
    import gymnasium as gym

    d3rlpy.seed(0)
    scalers = {"observation_scaler": d3rlpy.preprocessing.StandardObservationScaler()}
    learner = d3rlpy.algos.TD3PlusBCConfig(**scalers).create(device="cpu:0")
    options = {"logger_adapter": d3rlpy.logging.NoopAdapterFactory(), "show_progress": False}
    epochs = learner.fit(dataset, n_steps=steps, n_steps_per_epoch=steps // 6, **options)
    report([{"step": epoch * (steps // 6), **metrics} for epoch, metrics in epochs])
    if env_id and num_episodes:
        env = gym.make(env_id)
        mean = d3rlpy.metrics.EnvironmentEvaluator(env, n_trials=num_episodes)(learner, dataset)
        print(f"         return {mean:,.0f} in {env_id}, mean of {num_episodes} episodes")


def report(history: list[dict[str, float]]) -> None:
    """Print the losses; end the program where one is not finite, or where cloning does not improve."""
    names = [name for name in history[0] if name.endswith("loss")]
    for name in names:
        values = [row[name] for row in history]
        print(f"         {name}: " + ", ".join(f"{value:.4g}" for value in values))
        if not np.isfinite(values).all():
            raise SystemExit(f"{name} is not finite")
    if "bc_loss" in names and not history[-1]["bc_loss"] < history[0]["bc_loss"]:
        raise SystemExit("bc_loss did not fall")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("minari_id")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--eval-episodes", type=int, default=5)
    args = parser.parse_args()
    if args.steps < 12:
        parser.error("--steps must be at least 12: losses are printed six times")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))  # d3rlpy's log
    print(", ".join(f"{name} {version(name)}" for name in PACKAGES))
    expected = Expected(args.folder / "expected.npz")
    env_id = str(expected.arrays["env_id"])

    print("\n== the D4RL export")
    hdf5 = read_hdf5(args.folder / "stitched.hdf5", expected)
    print("\n== the Minari export")
    stored = read_minari(args.minari_id, expected)
    if env_id:
        look_at_get_minari(args.minari_id, expected)
    for name, arrays in (("D4RL", hdf5), ("Minari", stored)):
        print(f"\n== d3rlpy on the {name} export")
        train_d3rlpy(mdp_dataset(arrays, expected), args.steps, env_id, args.eval_episodes)
        print(f"\n== a plain TD3+BC on the {name} export")
        data = qlearning_dataset(arrays)
        check_transitions(data, arrays, expected)
        low, high = expected.arrays["action_low"], expected.arrays["action_high"]
        policy, history = train(data, low, high, Config(num_steps=args.steps, report_every=args.steps // 6))
        report(history)
        if env_id and args.eval_episodes:
            mean = evaluate(policy, env_id, args.eval_episodes)
            print(f"         return {mean:,.0f} in {env_id}, mean of {args.eval_episodes} episodes")
    print("\nall the same")


if __name__ == "__main__":
    main()
