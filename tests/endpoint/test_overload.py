"""More load than the sampler can take: who is refused, when, and that it goes on answering as much as it can."""

import asyncio
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from raystitch.endpoint.config import BatchingConfig, LimitsConfig
from raystitch.endpoint.models import Models
from raystitch.stitching.stitcher import Stitcher
from tests.endpoint.conftest import STITCH, Served, body, refused, serving

EACH = 0.01
"""Seconds that a candidate takes here at least, so that the capacity is about the same on any machine."""


@dataclass
class Sampler:
    """What the stitcher's calls took: candidates and seconds of each."""

    calls: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])

    @property
    def rate(self) -> float:
        """Candidates per second."""
        return sum(count for count, _ in self.calls) / sum(seconds for _, seconds in self.calls)


@pytest.fixture
def sampler(served: Served, monkeypatch: pytest.MonkeyPatch) -> Sampler:
    """The stitcher, warm, with calls of at least ``EACH`` per candidate."""
    assert served.post(body(num_candidates=20)).status_code == 200
    real, sampler = Stitcher.stitch, Sampler()

    def stitch(self: Stitcher, pairs: Any, seeds: Any) -> Any:
        begun = time.monotonic()
        found = real(self, pairs, seeds)
        time.sleep(max(0.0, EACH * len(pairs) - (time.monotonic() - begun)))
        sampler.calls.append((len(pairs), time.monotonic() - begun))
        return found

    monkeypatch.setattr(Stitcher, "stitch", stitch)
    return sampler


async def timed(client: httpx.AsyncClient, count: int, wait: float | None = None) -> tuple[int, float, httpx.Response]:
    """Status and seconds of one request."""
    begun = time.monotonic()
    headers = {} if wait is None else {"Prefer": f"wait={wait}"}
    response = await client.post(STITCH, json=body(num_candidates=count), headers=headers)
    return response.status_code, time.monotonic() - begun, response


@dataclass
class Arrivals:
    """When each request came, its status and its seconds; and how late the machine woke up a timer meanwhile."""

    seen: list[tuple[float, int, float]]
    lag: float


def arrivals(served: Served, rate: float, seconds: float, count: int) -> Arrivals:
    """Requests that come at a steady rate whatever becomes of those before."""

    async def one(client: httpx.AsyncClient, at: float) -> tuple[float, int, float]:
        await asyncio.sleep(at)
        status, taken, _ = await timed(client, count)
        return at, status, taken

    async def lag(_: httpx.AsyncClient) -> float:
        most, begun = 0.0, time.monotonic()
        while (before := time.monotonic()) < begun + seconds:
            await asyncio.sleep(0.02)
            most = max(most, time.monotonic() - before - 0.02)
        return most

    times = [number / rate for number in range(int(rate * seconds))]
    *seen, most = served.together([*(lambda client, at=at: one(client, at) for at in times), lag])
    return Arrivals(seen, most)


@pytest.mark.parametrize("load", [2.5, 10.0])
def test_past_its_capacity_an_endpoint_answers_as_much_as_it_can(
    models: Models, sampler: Sampler, load: float
) -> None:
    count, deadline, seconds = 20, 2.0, 5.0
    limits, batching = LimitsConfig(deadline_seconds=deadline), BatchingConfig(max_candidates=40)
    with serving(models, limits=limits, batching=batching) as served:
        for _ in range(3):
            assert served.post(body(num_candidates=count)).status_code == 200
        capacity = sampler.rate / count
        came = arrivals(served, load * capacity, seconds, count)
        seen = came.seen
        statuses = Counter(status for _, status, _ in seen)
        late = Counter(status for at, status, _ in seen if at > seconds / 2)
        assert late[200] > 0, f"nobody is answered in the second half: {late}"
        assert statuses[200] >= 0.8 * sampler.rate / count * seconds, statuses
        assert statuses.keys() <= {200, 429, 504} and statuses[504] <= 0.05 * len(seen), statuses
        assert max(taken for _, _, taken in seen) < deadline + 0.1 + 2 * came.lag
        refusals = sorted(taken for _, status, taken in seen if status == 429)
        assert refusals[len(refusals) // 2] < 0.1 + came.lag, "a refusal comes at once"
        assert served.is_idle()
