"""Full queues, deadlines, stopping, faults, reloading: what others notice of them, and that nothing is left behind."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import pytest

from raystitch.endpoint.app import create_app
from raystitch.endpoint.config import BatchingConfig, EndpointConfig, LimitsConfig, ModelConfig
from raystitch.endpoint.models import Models
from raystitch.endpoint.service import Endpoint
from raystitch.errors import UserError
from raystitch.stitching.config import QualifyConfig, StitchConfig
from raystitch.stitching.stitcher import Stitcher
from tests.endpoint.conftest import JSON, STITCH, Counts, Served, assert_same, body, refused, serving

Post = Callable[[httpx.AsyncClient], Any]


def post(count: int = 1, **changes: Any) -> Post:
    request = body(num_candidates=count, **changes)
    return lambda client: client.post(STITCH, json=request)


def after(seconds: float, request: Post) -> Post:
    async def later(client: httpx.AsyncClient) -> Any:
        await asyncio.sleep(seconds)
        return await request(client)

    return later


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The stitcher's calls wait until the event is set."""
    release, real = threading.Event(), Stitcher.stitch

    def stitch(self: Stitcher, *args: Any) -> Any:
        assert release.wait(20)
        return real(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Stitcher, "stitch", stitch)
        try:
            yield release
        finally:
            release.set()


def test_a_full_queue_is_429_and_says_when_to_come_back(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(models, batching=BatchingConfig(max_queued_candidates=20)) as served:
        with held(monkeypatch) as release:
            timer = threading.Timer(1.0, release.set)
            timer.start()
            # 12 are computed, 8 wait: exactly full. One more is too many.
            kinds = [post(12), after(0.2, post(8)), after(0.4, post(1)), after(0.4, post(21))]
            first, fits, one_more, large = served.together(kinds)
        assert first.status_code == fits.status_code == 200
        for response in (one_more, large):
            assert "20 candidates are waiting" in refused(response, 429)["detail"]
            assert int(response.headers["retry-after"]) >= 1
        assert served.is_idle()
        # Larger than the queue, and alone.
        assert served.post(body(num_candidates=21)).status_code == 200
        assert sorted(served.counts.outcomes)[:2] == ["429", "429"]


def test_past_its_deadline_a_request_is_504_and_the_queue_recovers(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = LimitsConfig(deadline_seconds=0.4)
    with serving(models, limits=limits, batching=BatchingConfig(max_queued_candidates=30)) as served:
        with held(monkeypatch) as release:
            begun = time.monotonic()
            late = served.together([post(10), after(0.1, post(10)), after(0.1, post(10))])
            assert 0.4 <= time.monotonic() - begun < 2
            for response in late:
                assert "deadline" in refused(response, 504)["detail"]
            assert served.endpoint.batcher.num_queued == 10  # what is being computed cannot be stopped
            release.set()
        assert served.is_idle()
        # The one that was being computed was finished for nobody, the two that waited were never begun.
        assert served.counts.calls == [(1, 10)]
        assert served.post(body(num_candidates=30)).status_code == 200


def test_a_call_that_went_away_is_dropped(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(models) as served:

        async def give_up(client: httpx.AsyncClient) -> str:
            task = asyncio.create_task(post(5)(client))
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return "gone"

        with held(monkeypatch) as release:
            threading.Timer(0.8, release.set).start()
            answers = served.together([post(3), after(0.1, give_up), after(0.2, post(2))])
        assert [answers[0].status_code, answers[1], answers[2].status_code] == [200, "gone", 200]
        assert served.counts.calls == [(1, 3), (1, 2)]
        assert "disconnected" in served.counts.outcomes
        assert served.is_idle()


def test_stopping_is_503_and_finishes_what_was_begun(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(models) as served:
        with held(monkeypatch) as release:

            async def drain(client: httpx.AsyncClient) -> list[httpx.Response]:
                served.endpoint.stopping = True
                threading.Timer(0.2, release.set).start()
                return [await post()(client), await client.get("/readyz"), await client.get("/healthz")]

            begun, (new, ready, health) = served.together([post(2), after(0.2, drain)])
        assert begun.status_code == health.status_code == 200
        for response in (new, ready):
            assert "stopping" in refused(response, 503)["detail"] and int(response.headers["retry-after"]) >= 1
        assert served.is_idle()


def test_closing_refuses_what_waits(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(models) as served:
        with held(monkeypatch) as release:

            async def close(client: httpx.AsyncClient) -> None:
                threading.Timer(0.2, release.set).start()
                await asyncio.to_thread(served.endpoint.batcher.close)

            kinds = [post(2), after(0.1, post(3)), after(0.1, post(4, seed=1)), after(0.3, close)]
            begun, *waited, _ = served.together(kinds)
        assert begun.status_code == 200
        for response in waited:
            refused(response, 503)
        assert served.is_idle()
        assert served.endpoint.batcher.alive
        refused(served.post(body()), 503)


def test_before_the_models_are_loaded_it_is_503() -> None:
    with serving(Models()) as served:
        for response in (served.get("/readyz"), served.post(body())):
            assert "being loaded" in refused(response, 503)["detail"]
            assert int(response.headers["retry-after"]) >= 1
        assert served.get("/healthz").status_code == 200
        assert served.get("/v1/models").json() == {"models": []}
        refused(served.get("/v1/models/default"), 404)


def test_a_fault_of_the_stitcher_costs_nobody_else_an_answer(
    models: Models, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Stitcher.stitch

    def stitch(self: Stitcher, pairs: Any, seeds: Any) -> Any:
        if 3 in pairs.gap:
            raise FloatingPointError("secret insides")
        time.sleep(0.2)
        return real(self, pairs, seeds)

    monkeypatch.setattr(Stitcher, "stitch", stitch)
    with serving(models) as own:
        # The first call keeps the sampler busy; the others are computed together.
        answers = own.together([post(2), *(after(0.1, post(gap=gap)) for gap in (2, 3, 4))])
        assert [response.status_code for response in answers] == [200, 200, 503, 200]
        problem = refused(answers[2], 503)
        assert "logged under" in problem["detail"] and "secret" not in answers[2].text
        assert own.counts.faults == [[problem["request_id"]]]
        assert int(answers[2].headers["retry-after"]) >= 1
        assert own.endpoint.batcher.alive
        assert own.is_idle()
        monkeypatch.undo()
        assert_same(served.post(body(num_candidates=1, gap=3)).json(), own.post(body(num_candidates=1, gap=3)).json())


def test_a_fault_while_a_request_is_prepared_is_its_own(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    from raystitch.endpoint import batcher

    real = batcher.cut_trajectories

    def cut(*args: Any, gap: int | None = None, **kwargs: Any) -> Any:
        if gap == 3:
            raise IndexError("secret insides")
        time.sleep(0.2)
        return real(*args, gap=gap, **kwargs)

    monkeypatch.setattr(batcher, "cut_trajectories", cut)
    with serving(models) as own:
        answers = own.together([post(2), *(after(0.1, post(gap=gap)) for gap in (2, 3, 4))])
        assert [response.status_code for response in answers] == [200, 200, 503, 200]
        assert own.is_idle()


@pytest.mark.parametrize("where", ["reading", "answering"])
def test_any_other_fault_is_a_503_problem_too(
    models: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("secret insides")

    names = {"reading": "raystitch.endpoint.service.read_body", "answering": "raystitch.endpoint.service.make_answer"}
    with serving(models) as served:
        monkeypatch.setattr(names[where], fail)
        with caplog.at_level(logging.ERROR):
            response = served.post(body(num_candidates=1), headers={"X-Request-ID": "find-me"})
        assert "secret" not in response.text
        assert refused(response, 503)["request_id"] == "find-me"
        assert int(response.headers["retry-after"]) >= 1
        assert response.headers["x-frame-options"] == "DENY"
        assert any("find-me" in record.getMessage() and record.exc_info for record in caplog.records)
        assert served.counts.outcomes == ["fault"]
        monkeypatch.undo()
        assert served.post(body(num_candidates=1)).status_code == 200
        assert served.is_idle()


def test_waiting_requests_share_a_call_up_to_its_size(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(models, batching=BatchingConfig(max_candidates=10)) as served:
        with held(monkeypatch) as release:
            threading.Timer(1.0, release.set).start()
            kinds = [post(1), *(after(0.2, post(count)) for count in (4, 6)), after(0.4, post(1)), after(0.6, post(11))]
            answers = served.together(kinds)
        assert {response.status_code for response in answers} == {200}
        assert served.counts.calls == [(1, 1), (2, 10), (1, 1), (1, 11)]


def test_requests_with_and_without_a_gap_and_of_two_models_are_called_apart(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(models) as served:
        with held(monkeypatch) as release:
            threading.Timer(0.6, release.set).start()
            options: list[dict[str, Any]] = [{}, {"gap": 4}, {"model": "bare"}, {"gap": 5}, {}]
            served.together([post(1), *(after(0.2, post(2, **one)) for one in options)])
        assert served.counts.calls == [(1, 1), (2, 4), (2, 4), (1, 2)]


@pytest.fixture
def two(files: ModelConfig, tmp_path: Path) -> dict[str, ModelConfig]:
    """The bundle twice; the second one's folder may be broken."""
    copytree(files.stitcher, tmp_path / "other")
    return {"default": files, "other": replace(files, stitcher=str(tmp_path / "other"))}


def _damage(folder: Path, how: str) -> None:
    description = folder / "stitcher.json"
    if how == "gone":
        description.unlink()
    elif how == "no JSON":
        description.write_text("{")
    elif how == "edited":
        description.write_text(description.read_text().replace('"gamma"', '"gama"'))
    elif how == "list":
        description.write_text("[]")
    elif how == "cut":
        for weights in folder.glob("*.safetensors"):
            weights.write_bytes(weights.read_bytes()[:100])
    elif how == "swapped":
        (folder / "inverse.safetensors").write_bytes((folder / "value.safetensors").read_bytes())
    elif how == "binary":
        description.write_bytes(b"\xff\xfe\x00")
    elif how == "version":
        content = json.loads(description.read_text())
        description.write_text(json.dumps(content | {"schema_version": 99}))


@pytest.mark.parametrize("how", ["gone", "no JSON", "edited", "list", "cut", "swapped", "binary", "version"])
def test_a_bundle_that_cannot_be_reloaded_is_served_as_it_was(two: dict[str, ModelConfig], how: str) -> None:
    models = Models()
    config = EndpointConfig(models=two, device="cpu")
    models.load(config)
    endpoint = Endpoint(config, models)
    served = Served(endpoint, create_app(endpoint), Counts())
    request = body(num_candidates=2, model="other")
    before = served.post(request).json()
    _damage(Path(two["other"].stitcher), how)
    models.load(config)
    said = {one["name"]: one["error"] for one in served.get("/v1/models").json()["models"]}
    assert said["default"] is None and two["other"].stitcher in said["other"]
    assert_same(before, served.post(request).json())
    endpoint.close()
    with pytest.raises(UserError):
        Models().load(config)


def test_models_come_and_go_by_name(two: dict[str, ModelConfig]) -> None:
    models = Models()
    models.load(EndpointConfig(models=two, device="cpu"))
    with serving(models) as served:
        names = [one["name"] for one in served.get("/v1/models").json()["models"]]
        assert names == ["default", "other"]
        models.load(EndpointConfig(models={"default": two["default"]}, device="cpu"))
        problem = refused(served.post(body(model="other")), 422)
        assert problem["errors"] == [
            {"field": "options.model", "message": "there is no model 'other'; there is: default"}
        ]
        assert "there is: default" in refused(served.get("/v1/models/other"), 404)["detail"]
        assert served.post(body(num_candidates=1)).status_code == 200


def test_a_request_keeps_the_model_that_it_began_with(files: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    before = EndpointConfig(models={"default": files}, device="cpu")
    after_ = replace(before, stitch=StitchConfig(qualify=QualifyConfig(delta="off")))
    models = Models()
    models.load(before)
    with serving(models) as served:
        with held(monkeypatch) as release:

            async def reload(client: httpx.AsyncClient) -> None:
                await asyncio.to_thread(models.load, after_)
                release.set()

            begun, _ = served.together([post(2), after(0.2, reload)])
        assert begun.status_code == 200 and begun.json()["delta"] is not None
        assert served.post(body(num_candidates=2)).json()["delta"] is None
        assert served.get("/v1/models/default").json()["delta"]["default"] == "off"


def test_settings_change_from_the_next_request_on(models: Models) -> None:
    with serving(models) as served:
        assert served.post(body(num_candidates=3)).status_code == 200
        served.endpoint.configure(EndpointConfig(limits=LimitsConfig(max_candidates=2), device="cpu"))
        assert refused(served.post(body(num_candidates=3)), 422)["errors"][0]["field"] == "options.num_candidates"
        assert served.get("/v1/models/default").json()["limits"]["max_candidates"] == 2


def test_many_threads_ask_at_once(served: Served) -> None:
    """Event loops of their own, as several servers in one process would have."""
    expected = served.post(body(num_candidates=2), headers={"Accept": JSON}).json()
    said: list[Any] = []

    def ask() -> None:
        said.append(served.post(body(num_candidates=2)).json())

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 16
    for one in said:
        assert_same(expected, one)
    assert served.is_idle()
