"""Writes what raystitch itself makes of a buffer, for train_elsewhere.py: python describe.py BUFFER OUT.npz

The stitched episodes come straight from the buffer and its dataset, not from an export.
"""

import sys

import numpy as np

from raystitch.buffer.episodes import rebuild
from raystitch.buffer.opening import open_buffer
from raystitch.commands.options import buffer_dataset


def main(uri: str, out: str) -> None:
    buffer = open_buffer(uri)
    dataset = buffer_dataset(buffer, None)
    stitched = rebuild(dataset, buffer.bridges())
    episodes = stitched.episodes
    np.savez(
        out,
        observations=episodes.observations,
        actions=episodes.actions,
        rewards=episodes.rewards,
        lengths=episodes.lengths,
        returns=episodes.returns,
        terminated=episodes.terminated,
        is_synthetic=stitched.is_synthetic,
        action_low=episodes.action_low,
        action_high=episodes.action_high,
        env_id="" if episodes.env is None else episodes.env.env_id,
    )
    print(f"{out}: {episodes.num_episodes:,} episodes, {episodes.num_transitions:,} transitions")


if __name__ == "__main__":
    main(*sys.argv[1:])
