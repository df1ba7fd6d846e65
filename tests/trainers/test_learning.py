"""The algorithms learn what they claim to, on a task whose best policy is known."""

import numpy as np

from raystitch.data.episodes import EpisodeDataset
from raystitch.trainers.config import BCConfig, DataSpec, DTConfig, IQLConfig, TD3BCConfig
from raystitch.trainers.data import build_data
from raystitch.trainers.evaluate import evaluate
from raystitch.trainers.loop import train_policy


def test_decision_transformer_obeys_the_return_asked_for(line: EpisodeDataset) -> None:
    assert line.env is not None
    config = DTConfig(
        train_steps=350,
        batch_size=32,
        context=5,
        width=32,
        num_layers=2,
        dropout=0.0,
        learning_rate=3e-3,
        decay="cosine",
    )
    policy = train_policy(build_data(line, DataSpec(kind="sequences", device="cpu")), "dt", config)
    reached = [evaluate(policy, line.env, 10, 10, 0, target).return_mean for target in (10.0, 0.0, -10.0)]
    assert np.abs(np.array(reached) - [10, 0, -10]).max() < 3


def test_td3bc_beats_the_policy_it_learns_from(line: EpisodeDataset) -> None:
    assert line.env is not None
    data = build_data(line, DataSpec(kind="transitions", device="cpu"))
    cloning = train_policy(data, "bc", BCConfig(train_steps=300, hidden=32))
    config = TD3BCConfig(train_steps=800, batch_size=128, hidden=32, gamma=0.9, learning_rate=2e-3, tau=0.02)
    policy = train_policy(data, "td3bc", config)
    cloned, learned = (evaluate(p, line.env, 10, 10, 0).return_mean for p in (cloning, policy))
    assert learned > cloned + 5
    assert learned > 7


def test_iql_beats_the_policy_it_learns_from(line: EpisodeDataset) -> None:
    assert line.env is not None
    data = build_data(line, DataSpec(kind="transitions", device="cpu"))
    cloning = train_policy(data, "bc", BCConfig(train_steps=300, hidden=32))
    config = IQLConfig(train_steps=800, batch_size=128, hidden=32, gamma=0.9, learning_rate=2e-3, tau=0.02)
    policy = train_policy(data, "iql", config)
    cloned, learned = (evaluate(p, line.env, 10, 10, 0).return_mean for p in (cloning, policy))
    assert learned > cloned + 5
    assert learned > 7


def test_cloning_the_best_episodes_beats_cloning_all(line: EpisodeDataset) -> None:
    assert line.env is not None
    reached = []
    for top_fraction in (1.0, 0.1):
        data = build_data(line, DataSpec(kind="transitions", top_fraction=top_fraction, device="cpu"))
        policy = train_policy(data, "bc", BCConfig(train_steps=400, hidden=32, learning_rate=2e-3))
        reached.append(evaluate(policy, line.env, 10, 10, 0).return_mean)
    assert reached[1] > reached[0] + 5
    assert reached[1] > 9
