"""Replicas on real Serve: one whose sampler hangs is replaced in time; all of them go back to a version from before."""

import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import httpx
import pytest

from raystitch.bench.chaos.processes import descendants
from raystitch.cluster.serve import application as module
from raystitch.cluster.serve.application import StitchService
from raystitch.cluster.serve.run import serving
from raystitch.commands.serve import roll_back
from raystitch.endpoint.config import EndpointConfig, LimitsConfig, ModelConfig
from raystitch.endpoint.models import Models
from raystitch.endpoint.tokens import Tokens
from raystitch.endpoint.versions import Versions
from raystitch.errors import UserError
from raystitch.models.bundle import Bundle

from .conftest import Walks
from .test_serve import call, free_port, request_body

DEADLINE = 15.0


class HangingService(StitchService):
    """A replica whose sampler can be told to hang."""

    def hang(self, *, holds_lock: bool) -> None:
        """From the next call on: in foreign code, which lets other threads run or does not."""
        import ctypes

        from raystitch.stitching.stitcher import Stitcher

        library: Any = ctypes.PyDLL(None) if holds_lock else ctypes.CDLL(None)
        type.__setattr__(Stitcher, "stitch", lambda *_: library.sleep(3600))


@pytest.mark.slow
@pytest.mark.parametrize("holds_lock", [False, True], ids=["a thread hangs", "the interpreter hangs"])
def test_a_hung_replica_is_replaced_in_less_than_three_deadlines(
    ray_session: None, walks: Walks, monkeypatch: pytest.MonkeyPatch, holds_lock: bool
) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(module, "StitchService", HangingService)
    config = EndpointConfig(
        models={"default": ModelConfig(stitcher=str(walks.stitcher))},
        device="cpu",
        num_threads=1,
        limits=LimitsConfig(deadline_seconds=DEADLINE),
    )
    with serving(config, "127.0.0.1", free_port(), num_cpus=0.5) as service:
        url = f"{service.url}/v1/stitch"
        assert call(url, request_body(walks))[0] == 200
        ((pid, _),) = service.ask("usage")
        service._handle.broadcast("hang", holds_lock=holds_lock).results()
        hung = time.monotonic()
        first = list[int]()
        thread = threading.Thread(target=lambda: first.append(call(url, request_body(walks))[0]))
        thread.start()
        seen, health = list[int](), set[int]()
        while True:
            seen.append(call(url, request_body(walks), Prefer="wait=5")[0])
            health.add(call(f"{service.url}/healthz")[0])
            if seen[-1] == 200:
                break
            assert time.monotonic() - hung < 3 * DEADLINE, seen
            time.sleep(0.2)
        recovered = time.monotonic() - hung
        thread.join()
        print(f"recovered after {recovered:.1f} s = {recovered / DEADLINE:.2f} deadlines; seen {seen}; health {health}")
        assert recovered < 3 * DEADLINE
        ((now, _),) = service.ask("usage")
        assert now != pid
        assert pid not in {process.pid for process in descendants(1)}, "the process that hung is still there"
        if not holds_lock:
            assert 503 in health, "it looked healthy"


@pytest.mark.slow
def test_every_replica_goes_back_to_the_version_from_before(
    ray_session: None, walks: Walks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "a-token-of-more-than-16"
    monkeypatch.setenv("RAYSTITCH_CACHE", str(tmp_path / "cache"))
    versions = Versions(tmp_path / "cache" / "bundles")
    folder = tmp_path / "stitcher"
    shutil.copytree(walks.stitcher, folder)
    config = EndpointConfig(models={"default": ModelConfig(stitcher=str(folder))}, device="cpu", num_threads=1)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(module, "StitchService", service_with(token, versions))
    with serving(config, "127.0.0.1", free_port(), replicas=(2, 2), num_cpus=0.5) as service:
        first = Bundle.load(folder, "cpu")
        replace(first, reward_high=first.reward_high + 1).save(folder)
        service.configure(replace(config, reload=1))

        def served() -> set[str]:
            known = {"Authorization": f"Bearer {token}"}
            return {call(f"{service.url}/v1/models/default", None, **known)[1]["hash"] for _ in range(20)}

        assert served() == {Bundle.load(folder, "cpu").hash} != {first.hash}
        monkeypatch.setenv("RAYSTITCH_TOKEN", token)
        roll_back(service.url, "default")
        assert served() == {first.hash}
        with pytest.raises(UserError, match="no version before"):
            roll_back(service.url, "default")
        unknown = httpx.put(
            f"{service.url}/v1/models/default/version",
            json={"hash": "sha256:" + "0" * 64},
            headers={"Authorization": f"Bearer {token}"},
        )
        assert unknown.status_code == 422 and "is not kept here" in unknown.json()["detail"]
        assert served() == {first.hash}


def service_with(token: str, versions: Versions) -> type[StitchService]:
    """The replica, with what it otherwise takes from the environment of a Ray that is started for it."""

    class Configured(StitchService):
        async def __init__(self) -> None:  # Serve makes that of an ingress a coroutine
            made: Any = super().__init__()
            await made
            self._tokens = Tokens.one(token)
            self._models = Models(versions)

    return Configured
