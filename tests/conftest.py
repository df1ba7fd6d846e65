"""Fixtures that several packages' tests share: small data, a small bundle, one Ray."""

import logging
import os
import socket
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

# Before numpy and torch are imported: tiny work on many threads is slower, and Ray's workers inherit these.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Serve's proxy has five seconds to start before it is replaced; a busy machine needs longer.
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
# Workers would give way to whatever else this machine does, the other half of the tests above all.
os.environ.setdefault("RAY_worker_niceness", "0")
if _process := os.environ.get("PYTEST_XDIST_WORKER"):
    # A process finds the clusters of its own tests alone. Short: Ray's sockets lie below it.
    os.environ["RAY_TMPDIR"] = f"{os.environ.get('RAY_TMPDIR', '/tmp')}/tests-{os.getuid()}-{_process}"
    os.makedirs(os.environ["RAY_TMPDIR"], exist_ok=True)

with socket.socket() as _free:
    _free.bind(("127.0.0.1", 0))
    S3_PORT = _free.getsockname()[1]
# Ray's workers and other processes that the tests start find the test session's own S3 server by these.
os.environ |= {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{S3_PORT}",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}

import numpy as np
import pytest
import torch

from raystitch.cli import main
from raystitch.data.episodes import Episode, EpisodeDataset, from_episodes
from raystitch.envs.spec import EnvSpec
from raystitch.models.config import DiffusionConfig, EmbeddingConfig, FitConfig, HeadConfig

Run = Callable[..., tuple[int, str, str]]

torch.set_num_threads(1)

_FILES_WITH_RAY = ("tests/cluster", "tests/cli", "tests/contract/test_cli_bad_input")
_LONG = ("tests/bench", "tests/browser", "tests/buffer", "tests/docs", "tests/endpoint")


@pytest.fixture(scope="session", autouse=True)
def minari_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Minari root of the test session's own; a user's datasets are neither seen nor touched."""
    root = tmp_path_factory.mktemp("minari")
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    yield root
    if before is None:
        del os.environ["MINARI_DATASETS_PATH"]
    else:
        os.environ["MINARI_DATASETS_PATH"] = before


def make_drift(num_episodes: int = 40, seed: int = 0, name: str = "drift") -> EpisodeDataset:
    """Points pushed about in a plane (O = 4: position, velocity; A = 2), 12 to 40 steps; reward for going right.

    Every fourth episode terminates, the others are cut.
    """
    rng = np.random.default_rng(seed)
    episodes = []
    for index in range(num_episodes):
        length = int(rng.integers(12, 41))
        state = np.concatenate([rng.uniform(-1, 1, 2), rng.normal(0, 0.2, 2)])
        heading = rng.uniform(-1, 1, 2)
        observations, actions, rewards = [state], [], []
        for _ in range(length):
            action = np.clip(heading + 0.4 * rng.normal(size=2), -1, 1)
            velocity = 0.9 * state[2:] + 0.1 * action
            state = np.concatenate([state[:2] + 0.2 * velocity, velocity])
            observations.append(state)
            actions.append(action)
            rewards.append(velocity[0])
        terminated = index % 4 == 0
        episodes.append(
            Episode(
                np.array(observations, np.float32),
                np.array(actions, np.float32),
                np.array(rewards, np.float32),
                terminated,
                not terminated,
            )
        )
    return from_episodes(
        episodes,
        name=name,
        action_low=-np.ones(2, np.float32),
        action_high=np.ones(2, np.float32),
        env=EnvSpec(env_id="raystitch/PointMaze-v0", max_episode_steps=60, observation_keys=("observation",)),
    )


@pytest.fixture(scope="session")
def drift() -> EpisodeDataset:
    """40 episodes without any simulator; see ``make_drift``."""
    return make_drift()


@pytest.fixture(scope="session")
def maze() -> EpisodeDataset:
    """2,000 transitions of the demo's point maze, from the real simulator."""
    from raystitch.data.demo import make_pointmaze

    return make_pointmaze(num_steps=2000, seed=0)


def small_fit(gap_max: int = 8, diffusion_steps: int = 200, head_steps: int = 200, hidden: int = 32) -> FitConfig:
    """Settings of a fit that takes a second or two and knows a little about lines and walks."""
    head = HeadConfig(hidden=hidden, num_layers=1, train_steps=head_steps, batch_size=64)
    return FitConfig(
        diffusion=DiffusionConfig(
            horizon=16,
            width=8,
            multipliers=(1, 2),
            gap_min=2,
            gap_max=gap_max,
            train_steps=diffusion_steps,
            batch_size=32,
        ),
        dynamics=replace(head, num_members=3),
        num_judges=2,
        inverse=head,
        reward=head,
        termination=replace(head, num_members=1),
        value=replace(head, num_members=1),
        embedding=EmbeddingConfig(size=4, hidden=16, num_layers=1, train_steps=20, batch_size=32),
        calibration_windows=100,
    )


@pytest.fixture(scope="session")
def tiny_fit() -> FitConfig:
    """Settings that fit in two seconds and teach nothing."""
    head = HeadConfig(num_members=1, hidden=16, num_layers=1, train_steps=30, batch_size=32)
    return FitConfig(
        diffusion=DiffusionConfig(
            horizon=16, width=8, multipliers=(1, 2), gap_min=2, gap_max=8, train_steps=30, batch_size=16
        ),
        dynamics=HeadConfig(num_members=3, hidden=16, num_layers=1, train_steps=30, batch_size=32),
        num_judges=2,
        inverse=head,
        reward=HeadConfig(num_members=2, hidden=16, num_layers=1, train_steps=30, batch_size=32),
        termination=head,
        value=head,
        embedding=EmbeddingConfig(size=4, hidden=16, num_layers=1, train_steps=30, batch_size=32),
        calibration_windows=60,
    )


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One small Ray for all tests that need one: two CPUs, no dashboard, a 200 MB object store."""
    from raystitch.cluster.runtime import ensure_ray

    with ensure_ray(num_cpus=2, object_store_gib=0.2):
        yield


@pytest.fixture(scope="session")
def host_address() -> str:
    """See ``raystitch.bench.chaos.processes.host_address``."""
    from raystitch.bench.chaos.processes import host_address

    return host_address()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``s3://raystitch-tests`` on a local S3 server, with a cache of the session's own; add ``/name`` to it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    os.environ["RAYSTITCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=S3_PORT, verbose=False)
    server.start()
    bucket = urllib.request.Request(f"{os.environ['AWS_ENDPOINT_URL']}/raystitch-tests", method="PUT")
    urllib.request.urlopen(bucket).close()
    yield "s3://raystitch-tests"
    server.stop()
    del os.environ["RAYSTITCH_CACHE"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process: (status, stdout, stderr)."""

    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(arg) for arg in argv])
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps the tests of a file, which share expensive fixtures, in one process (``pytest -n 2``), and all tests that
    need Ray in the same one: they share a Ray and its ports. Files go out in the order of collection, the long ones
    first, so that both processes end at about the same time.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "Ray" if file.startswith(_FILES_WITH_RAY) else file

    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests that take minutes for a file before the others."""
    groups = (_FILES_WITH_RAY, _LONG, "")
    items.sort(key=lambda item: next(place for place, names in enumerate(groups) if item.nodeid.startswith(names)))
