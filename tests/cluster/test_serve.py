"""The endpoint on Ray Serve: what only a real replica, proxy and controller can show."""

import json
import os
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import serve

from raystitch.client import Client, Trajectory
from raystitch.cluster.serve.application import app
from raystitch.cluster.serve.metrics import merge
from raystitch.cluster.serve.run import Service, _reload, serving, stop_endpoint
from raystitch.endpoint.config import BatchingConfig, EndpointConfig, LimitsConfig, ModelConfig
from raystitch.errors import UserError
from raystitch.io.config_file import plain

from .conftest import Walks


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def call(url: str, body: dict[str, Any] | None = None, **headers: str) -> tuple[int, Any]:
    """Status and JSON (text where it is none)."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return 0, ""
    try:
        return status, json.loads(text)
    except json.JSONDecodeError:
        return status, text


def request_body(walks: Walks, seed: int = 0, **options: Any) -> dict[str, Any]:
    source, target = walks.dataset.episode(1), walks.dataset.episode(35)
    return {
        "source": {"observations": source.observations.tolist()},
        "target": {"observations": target.observations.tolist()},
        "options": {"seed": seed, "num_candidates": 4, "delta": "off", **options},
    }


@pytest.fixture(scope="module")
def config(walks: Walks) -> EndpointConfig:
    return EndpointConfig(
        models={"default": ModelConfig(stitcher=str(walks.stitcher))},
        device="cpu",
        num_threads=1,
        limits=LimitsConfig(deadline_seconds=60),  # two cold replicas beside other tests on two cores
        batching=BatchingConfig(max_queued_candidates=64),
    )


def test_more_replicas_than_fit_are_refused_at_once(ray_session: None, config: EndpointConfig) -> None:
    with (
        pytest.raises(
            UserError, match=r"5 times a replica with CPU 1 do not fit: there is room for [0-4]; ask for fewer"
        ),
        serving(config, "127.0.0.1", free_port(), replicas=(5, 5)),
    ):
        pass


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Theirs:
    """Another team's application."""

    def __call__(self) -> str:
        return "theirs"


def test_any_replica_gives_the_same_answer(ray_session: None, walks: Walks, config: EndpointConfig) -> None:
    with serving(config, "127.0.0.1", free_port(), replicas=(2, 2), num_cpus=0.5) as two:
        answers = list[tuple[int, Any]]()

        def ask() -> None:
            answers.append(call(f"{two.url}/v1/stitch", request_body(walks)))

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        worked = [seconds > 0 for _, seconds in two.ask("usage")]
        serve.run(Theirs.bind(), name="theirs", route_prefix="/theirs")
    # The last endpoint to stop has started Serve, and leaves it to what others serve.
    assert call(f"{two.url}/theirs")[1] == "theirs"
    serve.shutdown()
    assert worked == [True, True], answers[0]
    first = answers[0][1]
    for status, answer in answers:
        assert status == 200, answer
        for name in ("accepted", "reason", "gap", "source_step", "target_step", "num_accepted"):
            assert answer[name] == first[name]
        np.testing.assert_allclose(answer["trajectory"]["observations"], first["trajectory"]["observations"], atol=1e-4)


@pytest.fixture(scope="module")
def service(ray_session: None, config: EndpointConfig) -> Iterator[Service]:
    with serving(config, "127.0.0.1", free_port(), num_cpus=0.5) as up:
        yield up


def test_an_answer_and_its_id(service: Service, walks: Walks) -> None:
    body = request_body(walks)
    request = urllib.request.Request(
        f"{service.url}/v1/stitch",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "X-Request-ID": "mine-1"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        result = json.load(answer)
        assert answer.headers.get_all("X-Request-ID") == ["mine-1"]
    assert result["request_id"] == "mine-1"
    again = call(f"{service.url}/v1/stitch", body)[1]
    assert again["trajectory"] == result["trajectory"]
    assert call(f"{service.url}/readyz")[0] == 200
    assert "Stitch" in call(f"{service.url}/")[1]


def test_overload_is_answered_with_429_and_nothing_is_stuck(service: Service, walks: Walks) -> None:
    seen: Counter[int] = Counter()

    def ask(number: int) -> None:
        seen[call(f"{service.url}/v1/stitch", request_body(walks, number, num_candidates=32))[0]] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen.keys() == {200, 429}, seen
    assert call(f"{service.url}/v1/stitch", request_body(walks))[0] == 200
    assert service.ask("ongoing") == [0]


def test_a_second_one_on_the_same_cluster_is_refused(service: Service, config: EndpointConfig) -> None:
    with (
        pytest.raises(
            UserError,
            match=r"an endpoint named 'raystitch' runs on this cluster already, or was left by .* that was killed: "
            r"`raystitch serve --stop --name raystitch` stops it; --name and --route-prefix run another one",
        ),
        serving(config, "127.0.0.1", free_port(), num_cpus=0.5),
    ):
        pass
    with (
        pytest.raises(UserError, match="the application 'raystitch' on this cluster answers at / already"),
        serving(config, "127.0.0.1", free_port(), name="other", num_cpus=0.5),
    ):
        pass
    assert call(f"{service.url}/readyz")[0] == 200


@pytest.mark.slow
def test_another_team_s_application_outlives_two_endpoints_that_stop(
    service: Service, walks: Walks, config: EndpointConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    serve.run(Theirs.bind(), name="theirs", route_prefix="/theirs")
    theirs = f"{service.url}/theirs"
    with serving(config, "127.0.0.1", free_port(), name="second", prefix="/team/two", num_cpus=0.5) as second:
        assert second.url == f"{service.url}/team/two"  # where Serve listens already
        assert "note: Ray Serve runs on this cluster already, and listens on 127.0.0.1:" in capsys.readouterr().err
        with Client(second.url) as client:
            assert client.ready()
            source, target = (Trajectory(walks.dataset.episode(number).observations) for number in (1, 35))
            assert client.stitch(source, target, num_candidates=2).trajectory.observations.shape[1] == 2
        document = call(f"{second.url}/openapi.json")[1]
        assert [server["url"] for server in document["servers"]] == ["/team/two"]
        assert 'src="studio/main.js"' in call(second.url)[1]  # sent on to the page with the slash
        assert 'src="studio/docs.js"' in call(f"{second.url}/docs")[1]
        assert call(f"{second.url}/studio/main.js")[0] == 200
        wait_for_metric(second, 'application="second"')
        assert 'application="raystitch"' not in call(f"{second.url}/metrics")[1]
        assert call(theirs)[1] == "theirs"
    assert call(second.url)[0] == 404
    assert call(theirs)[1] == "theirs"
    assert call(f"{service.url}/v1/stitch", request_body(walks))[0] == 200
    with pytest.raises(UserError, match="the application 'theirs' on this cluster is not an endpoint of raystitch"):
        stop_endpoint("theirs", None)
    with pytest.raises(UserError, match="no endpoint named 'second' runs on this cluster; there is: raystitch"):
        stop_endpoint("second", None)
    serve.delete("theirs")


def wait_for_metric(service: Service, part: str) -> str:
    """The metrics once they have a part; Ray's agents export within ten seconds."""
    until, text = time.monotonic() + 60, ""
    while part not in text and time.monotonic() < until:
        time.sleep(0.5)
        text = str(call(f"{service.url}/metrics")[1])
    assert part in text
    return text


def test_a_deadline_is_504(service: Service, walks: Walks) -> None:
    status, problem = call(f"{service.url}/v1/stitch", request_body(walks), Prefer="wait=0")
    assert (status, problem["title"]) == (504, "Gateway Timeout")


def test_a_reload_drops_no_request(service: Service, walks: Walks, config: EndpointConfig) -> None:
    url, seen, done = f"{service.url}/v1/stitch", Counter[int](), threading.Event()

    def ask() -> None:
        while not done.is_set():
            seen[call(url, request_body(walks))[0]] += 1

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    (before,) = service.ask("usage")
    service.configure(replace(config, reload="again", limits=LimitsConfig(max_candidates=7)))
    status, problem = call(url, request_body(walks, num_candidates=8))
    done.set()
    for thread in threads:
        thread.join()
    assert status == 422
    assert "more than 7" in problem["detail"]
    assert seen.keys() == {200}
    assert service.ask("usage")[0][0] == before[0], "the replica was replaced, not configured"
    service.configure(config)


def test_a_bundle_that_cannot_be_read_leaves_the_one_before(
    service: Service, walks: Walks, config: EndpointConfig, tmp_path: Path
) -> None:
    gone = replace(config, models={"default": ModelConfig(stitcher=str(tmp_path / "gone"))})
    service.configure(gone)
    model = call(f"{service.url}/v1/models/default")[1]
    assert "is not a stitcher bundle" in model["error"]
    assert call(f"{service.url}/v1/stitch", request_body(walks))[0] == 200
    service.configure(config)
    assert call(f"{service.url}/v1/models/default")[1]["error"] is None


def test_metrics_of_the_application(service: Service, walks: Walks) -> None:
    assert call(f"{service.url}/v1/stitch", request_body(walks))[0] == 200
    assert call(f"{service.url}/v1/stitch", {})[0] == 422
    until, text = time.monotonic() + 60, ""
    wanted = ('outcome="accepted"', 'outcome="422"', "sampler_seconds_bucket", "batch_candidates_sum", 'reason="ok"')
    while time.monotonic() < until:
        text = str(call(f"{service.url}/metrics")[1])
        if all(part in text for part in wanted):
            break
        time.sleep(1)
    assert all(part in text for part in wanted), text
    assert all("raystitch_serve_" in line for line in text.splitlines())


def test_a_killed_replica_is_back_in_time(service: Service, walks: Walks) -> None:
    url = f"{service.url}/v1/stitch"
    ((pid, _),) = service.ask("usage")
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    while call(url, request_body(walks))[0] != 200:
        assert time.monotonic() - killed < 60
        time.sleep(0.1)
    ((now, _),) = service.ask("usage")
    assert now != pid


def reload_says(service: Service, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    _reload(service)
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_reload_that_fails_is_a_line(
    service: Service, walks: Walks, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = r"the reload failed \(.+\); what was served before is served on, and SIGHUP tries again"
    url = f"{service.url}/v1/stitch"
    with monkeypatch.context() as changed:
        changed.setattr("raystitch.cluster.serve.run._LOAD_SECONDS", 0.001)
        assert re.fullmatch(failed, reload_says(service, capsys))
    assert call(url, request_body(walks))[0] == 200
    ((pid, _),) = service.ask("usage")
    os.kill(pid, signal.SIGKILL)
    assert re.fullmatch(failed, reload_says(service, capsys))
    killed = time.monotonic()
    while call(url, request_body(walks))[0] != 200:
        assert time.monotonic() - killed < 120
        time.sleep(0.1)
    assert reload_says(service, capsys).startswith("done; ")


def test_stopping_finishes_what_was_taken_on(service: Service, walks: Walks, config: EndpointConfig) -> None:
    """The last test: the replica takes on nothing any more."""
    url, answers = f"{service.url}/v1/stitch", list[int]()
    threads = [
        threading.Thread(target=lambda n=n: answers.append(call(url, request_body(walks, n, num_candidates=16))[0]))
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 20
    while service.ask("ongoing") == [0] and time.monotonic() < until:
        time.sleep(0.02)
    service.drain()
    late = call(url, request_body(walks))
    for thread in threads:
        thread.join()
    assert set(answers) <= {200, 503}
    assert 200 in answers
    assert late[0] == 503
    assert service.ask("ongoing") == [0]


class TestBuilder:
    def test_arguments_of_serve_run(self, walks: Walks) -> None:
        built = app({"stitcher": str(walks.stitcher), "limits.max_steps": "50", "num_cpus": "0.5"})
        deployment: Any = built._bound_deployment  # type: ignore[attr-defined]
        assert deployment.user_config["limits"]["max_steps"] == 50
        assert deployment.user_config["models"]["default"]["stitcher"] == str(walks.stitcher)
        assert deployment.ray_actor_options["num_cpus"] == 0.5

    def test_a_whole_configuration(self, config: EndpointConfig) -> None:
        from dataclasses import asdict

        built = app(plain(asdict(config)))
        deployment: Any = built._bound_deployment  # type: ignore[attr-defined]
        assert deployment.user_config == plain(asdict(config))

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ({"dataset": "demo:pointmaze"}, "dataset without stitcher"),
            ({"stitcher": "x", "limits.max_stepz": "5"}, "max_stepz"),
            ({"stitcher": "x", "limits": {"max_steps": 1}}, "max_steps must be at least 2"),
        ],
    )
    def test_wrong_arguments_are_named(self, args: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            app(args)


def test_pages_of_several_nodes_are_one_and_other_applications_on_none() -> None:
    page = "# HELP ray_raystitch_serve_x a\n# TYPE ray_raystitch_serve_x counter\n" + "".join(
        f'ray_raystitch_serve_x{{application="{name}",n="%d"}} 1\n' for name in ("mine", "theirs")
    )
    text = merge([page % (1, 1) + "# HELP other o\nother 3\n", page % (2, 2)], "mine")
    assert text.splitlines() == [
        "# HELP ray_raystitch_serve_x a",
        "# TYPE ray_raystitch_serve_x counter",
        'ray_raystitch_serve_x{application="mine",n="1"} 1',
        'ray_raystitch_serve_x{application="mine",n="2"} 1',
    ]
