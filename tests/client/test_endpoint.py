"""The client against the endpoint itself, under uvicorn, with a bundle that was fitted for two seconds."""

import asyncio
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

import raystitch.client
from raystitch.client import Client, DeadlineExceeded, InvalidRequest, Result, StitchError, Trajectory, Unauthorized
from raystitch.data.episodes import EpisodeDataset
from raystitch.endpoint.app import create_app
from raystitch.endpoint.config import EndpointConfig, LimitsConfig
from raystitch.endpoint.models import Models, ModelSet, ServedModel
from raystitch.endpoint.service import Endpoint
from raystitch.endpoint.tokens import Tokens
from raystitch.models.bundle import Bundle
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle
from raystitch.stitching.stitcher import Stitcher
from tests.client.conftest import Ask

TOKEN = "the-t0ken-of-tests"
MAX_STEPS = 500


@pytest.fixture(scope="module")
def bundle(drift: EpisodeDataset, tiny_fit: FitConfig) -> Bundle:
    return fit_bundle(drift, tiny_fit)


@contextmanager
def running(bundle: Bundle, dataset: EpisodeDataset | None, token: str | None = None) -> Iterator[str]:
    """The address of an endpoint that serves one model."""
    config = EndpointConfig(limits=LimitsConfig(max_steps=MAX_STEPS))
    models = Models()
    models._now = ModelSet({"default": ServedModel("default", bundle, Stitcher(bundle, config.stitch), dataset)})
    with socket.create_server(("127.0.0.1", 0)) as listening:
        app = create_app(Endpoint(config, models), None if token is None else Tokens.one(token))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def url(bundle: Bundle, drift: EpisodeDataset) -> Iterator[str]:
    with running(bundle, drift) as url, Client(url) as client:
        end = time.monotonic() + 30
        while not client.ready() and time.monotonic() < end:
            time.sleep(0.05)
        yield url


@pytest.fixture(params=["arrow", "json"])
def wire(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"wire": request.param}


def given(dataset: EpisodeDataset, index: int, *, bare: bool = False) -> Trajectory:
    episode = dataset.episode(index)
    if bare:
        return Trajectory(episode.observations)
    return Trajectory(episode.observations, episode.actions, episode.rewards, episode.terminated)


def test_the_answer_is_source_bridge_target(url: str, ask: Ask, drift: EpisodeDataset, wire: dict[str, Any]) -> None:
    source, target = given(drift, 1), given(drift, 2)
    result = ask(url, "stitch", source, target, client=wire, delta="off", seed=5, return_all=True, request_id="mine")
    assert (result.request_id, result.seed, result.delta, result.inferred) == ("mine", 5, None, ())
    leave, enter, gap, path = result.source_step, result.target_step, result.gap, result.trajectory
    np.testing.assert_array_equal(path.observations[: leave + 1], source.observations[: leave + 1])
    np.testing.assert_array_equal(path.observations[leave + gap + 1 :], target.observations[enter:])
    assert target.actions is not None and target.rewards is not None
    np.testing.assert_array_equal(path.actions[leave + gap + 1 :], target.actions[enter:])
    np.testing.assert_array_equal(path.rewards[leave + gap + 1 :], target.rewards[enter:])
    assert np.flatnonzero(path.is_synthetic).tolist() == list(range(leave, leave + gap + 1))
    assert len(result.residuals) == gap + 1
    best = result.candidates[0]
    assert (best.gap, best.source_step, best.target_step, best.reason) == (gap, leave, enter, result.reason)
    np.testing.assert_array_equal(best.observations[1:-1], path.observations[leave + 1 : leave + gap + 1])
    assert len(result.candidates) == result.num_candidates >= 16
    assert sum(each.accepted for each in result.candidates) == result.num_accepted


def test_all_ways_of_asking_have_one_answer(url: str, ask: Ask, drift: EpisodeDataset) -> None:
    """Both clients, both formats, compressed or not, with columns left out."""
    source, target = given(drift, 3, bare=True), given(drift, 4)
    with Client(url) as client:
        expected = client.stitch(source, target, num_candidates=4, return_all=True)
    assert expected.inferred == ("source.actions", "source.rewards")
    for settings in ({"wire": "json"}, {"compression": "zstd"}, {"wire": "json", "compression": "gzip"}):
        _assert_same(ask(url, "stitch", source, target, client=settings, num_candidates=4, return_all=True), expected)


def test_neither_has_actions_or_rewards(url: str, ask: Ask, drift: EpisodeDataset, wire: dict[str, Any]) -> None:
    result = ask(url, "stitch", given(drift, 5, bare=True), given(drift, 6, bare=True), client=wire)
    assert result.inferred == ("source.actions", "source.rewards", "target.actions", "target.rewards")
    assert np.isfinite(result.trajectory.actions).all() and np.isfinite(result.trajectory.rewards).all()


def test_large_bodies_are_compressed(url: str, drift: EpisodeDataset, wire: dict[str, Any]) -> None:
    long = Trajectory(np.resize(drift.observations, (MAX_STEPS, drift.obs_dim)))
    answers = []
    for codec in (None, "gzip", "zstd"):
        with Client(url, **wire, compression=codec) as client:
            answers.append(client.stitch(long, long, num_candidates=2))
    for compressed in answers[1:]:
        _assert_same(compressed, answers[0])


def test_a_termination_is_told(url: str, ask: Ask, drift: EpisodeDataset, wire: dict[str, Any]) -> None:
    """A source is not left near its termination, so telling it changes where it may be left."""
    episode, target = drift.episode(0), given(drift, 2)
    assert episode.terminated
    steps = {}
    for terminated in (True, False):
        source = Trajectory(episode.observations, episode.actions, episode.rewards, terminated)
        result = ask(url, "stitch", source, target, client=wire, num_candidates=64, return_all=True)
        steps[terminated] = max(each.source_step for each in result.candidates)
    assert steps[True] < steps[False]


def test_what_is_accepted_at_another_delta_is_what_the_server_says(url: str, drift: EpisodeDataset) -> None:
    with Client(url) as client:
        everything = client.stitch(given(drift, 7), given(drift, 8), return_all=True, delta="off")
        assert everything.candidates is not None
        middle = float(np.median([each.residual_max for each in everything.candidates]))
        again = client.stitch(given(drift, 7), given(drift, 8), return_all=True, delta=middle)
    assert len(everything.accepted_at(middle)) == again.num_accepted < len(everything.candidates)
    assert len(everything.accepted_at(None)) == everything.num_accepted


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        ({"gap": 99}, "options.gap", "99 is outside 2..8"),
        ({"num_candidates": 0}, "options.num_candidates", "greater than or equal to 1"),
        ({"model": "other"}, "options.model", "there is no model 'other'"),
        ({"delta": "q101"}, "options.delta", "options.delta: "),
    ],
)
def test_the_server_names_what_is_wrong(
    url: str, ask: Ask, drift: EpisodeDataset, wire: dict[str, Any], options: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(message)) as caught:
        ask(url, "stitch", given(drift, 1), given(drift, 2), client=wire, request_id="mine", **options)
    assert (caught.value.status, caught.value.request_id) == (422, "mine")
    assert caught.value.errors[0]["field"] == field


def test_trajectories_of_another_model(url: str, ask: Ask, wire: dict[str, Any]) -> None:
    three = Trajectory(np.zeros((5, 3)))
    with pytest.raises(InvalidRequest, match=r"422: source\.observations.*has .*3 numbers, the model needs 4"):
        ask(url, "stitch", three, three, client=wire)
    long = Trajectory(np.zeros((MAX_STEPS + 1, 4)))
    with pytest.raises(InvalidRequest, match=r"422: source\.observations.*501 states, more than 500"):
        ask(url, "stitch", long, long, client=wire)


def test_the_server_keeps_to_the_time_that_is_left(url: str, ask: Ask, drift: EpisodeDataset) -> None:
    """Far more work than the timeout has room for; nothing is left to do for the next request either."""
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        ask(url, "stitch", given(drift, 1), given(drift, 2), client={"timeout": 0.01}, num_candidates=256)
    assert time.monotonic() - begun < 2
    assert ask(url, "stitch", given(drift, 1), given(drift, 2), num_candidates=1).num_candidates >= 1


def test_models_and_episodes(url: str, ask: Ask, drift: EpisodeDataset, bundle: Bundle) -> None:
    (model,) = ask(url, "models")
    assert model == ask(url, "model")
    assert (model["name"], model["hash"], model["obs_dim"], model["act_dim"]) == ("default", bundle.hash, 4, 2)
    page = ask(url, "episodes", order="return", descending=True, limit=3)
    assert page["total"] == drift.num_episodes
    assert [each["index"] for each in page["episodes"]] == np.argsort(-drift.returns, kind="stable")[:3].tolist()
    best = page["episodes"][0]["index"]
    episode, expected = ask(url, "episode", best), drift.episode(best)
    np.testing.assert_array_equal(episode.observations, expected.observations)
    np.testing.assert_array_equal(episode.actions, expected.actions)
    np.testing.assert_array_equal(episode.rewards, expected.rewards)
    assert episode.terminated == expected.terminated
    for call, arguments in (("model", ["no-such"]), ("episode", [10**6])):
        with pytest.raises(InvalidRequest, match="404: there is no "):
            ask(url, call, *arguments)


def test_many_at_once_have_their_own_answers(url: str, drift: EpisodeDataset) -> None:
    async def run() -> list[Result]:
        async with raystitch.client.AsyncClient(url) as client:
            asked = [client.stitch(given(drift, 1), given(drift, i), num_candidates=2, seed=i) for i in range(2, 14)]
            return await asyncio.gather(*asked)

    together = asyncio.run(run())
    with Client(url, wire="json") as client:
        for index, result in zip(range(2, 14), together, strict=True):
            assert result.seed == index
            _assert_same(client.stitch(given(drift, 1), given(drift, index), num_candidates=2, seed=index), result)


def test_a_server_with_a_token(bundle: Bundle, ask: Ask, drift: EpisodeDataset) -> None:
    pair = given(drift, 1), given(drift, 2)
    with running(bundle, None, TOKEN) as url:
        assert ask(url, "stitch", *pair, client={"token": TOKEN, "max_retries": 1000}).num_candidates >= 16
        for token in (None, "other"):
            with pytest.raises(Unauthorized, match="401: this endpoint needs a token"):
                ask(url, "stitch", *pair, client={"token": token})
        with pytest.raises(InvalidRequest, match="404: no dataset is served"):
            ask(url, "episodes", client={"token": TOKEN})
        assert ask(url, "ready")


@pytest.mark.parametrize(
    "document", [Path(raystitch.client.__file__), Path(__file__).parents[2] / "docs" / "client.md"]
)
def test_the_examples_run(document: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = document.read_text(encoding="utf-8")
    if document.suffix == ".md":
        blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    else:
        blocks = [re.sub(r"^ {4}", "", block, flags=re.M) for block in re.findall(r":\n\n((?: {4}.*\n|\n)+)", text)]
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace("http://127.0.0.1:8000", url), names)  # noqa: S102
    assert "Error" not in capsys.readouterr().out


def _assert_same(one: Result, other: Result) -> None:
    """The same answer: equal decisions, floats to 1e-4."""
    for name in (
        "accepted",
        "reason",
        "gap",
        "source_step",
        "target_step",
        "num_candidates",
        "num_accepted",
        "inferred",
    ):
        assert getattr(one, name) == getattr(other, name), name
    assert one.trajectory.is_synthetic.tolist() == other.trajectory.is_synthetic.tolist()
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_allclose(getattr(one.trajectory, name), getattr(other.trajectory, name), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(one.residuals, other.residuals, rtol=1e-3, atol=1e-4)
    assert (one.candidates is None) == (other.candidates is None)
    for mine, theirs in zip(one.candidates or (), other.candidates or (), strict=True):
        assert (mine.pair, mine.attempt, mine.failed) == (theirs.pair, theirs.attempt, theirs.failed)


def test_a_server_that_stops(bundle: Bundle, ask: Ask) -> None:
    with running(bundle, None) as url:
        assert ask(url, "models", client={"max_retries": 1000})
    assert ask(url, "ready") is False
    with pytest.raises(StitchError, match="no answer from"):
        ask(url, "models", client={"max_retries": 1})
