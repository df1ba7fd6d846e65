"""More load than the sampler can take: who is refused, when, and that it goes on answering as much as it can."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from raystitch.endpoint.config import BatchingConfig, LimitsConfig
from raystitch.endpoint.models import Models
from raystitch.endpoint.pace import Pace
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


def learn(served: Served, count: int) -> None:
    """Three calls, after which the endpoint knows its sampler."""
    for _ in range(3):
        assert served.post(body(num_candidates=count)).status_code == 200


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


@pytest.mark.parametrize("load", [2.5, pytest.param(10.0, marks=pytest.mark.slow)])
def test_past_its_capacity_an_endpoint_answers_as_much_as_it_can(models: Models, sampler: Sampler, load: float) -> None:
    count, deadline, seconds = 15, 1.5, 4.0
    limits, batching = LimitsConfig(deadline_seconds=deadline), BatchingConfig(max_candidates=30)
    with serving(models, limits=limits, batching=batching) as served:
        learn(served, count)
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


def test_what_cannot_be_answered_in_time_is_refused_at_once(models: Models, sampler: Sampler) -> None:
    with serving(models, limits=LimitsConfig(deadline_seconds=2)) as served:
        learn(served, 100)

        async def third(client: httpx.AsyncClient) -> tuple[int, float, httpx.Response]:
            await asyncio.sleep(0.2)
            return await timed(client, 100)

        # 100 candidates take a second, so 100 more do not fit with what may go wrong.
        answers = served.together([*(lambda client: timed(client, 50) for _ in range(2)), third])
        assert [status for status, _, _ in answers] == [200, 200, 429]
        _, taken, response = answers[2]
        assert taken < 0.4
        problem = refused(response, 429)
        assert "candidates are waiting already" in problem["detail"] and "deadline" in problem["detail"]
        before = list(sampler.calls)
        _, taken, response = served.together([lambda client: timed(client, 256, 1.0)])[0]
        assert taken < 0.4 and "ask for fewer candidates or a longer wait" in refused(response, 504)["detail"]
        assert "retry-after" not in response.headers, "coming back would not help"
        assert sampler.calls == before, "it cost the sampler nothing"


@pytest.mark.slow
def test_retry_after_is_when_there_is_room(models: Models, sampler: Sampler) -> None:
    with serving(models, limits=LimitsConfig(deadline_seconds=5)) as served:
        learn(served, 200)

        async def again(client: httpx.AsyncClient) -> tuple[int, int]:
            await asyncio.sleep(0.3)
            response = await client.post(STITCH, json=body(num_candidates=200))
            assert response.status_code == 429
            await asyncio.sleep(int(response.headers["retry-after"]))
            return int(response.headers["retry-after"]), (await timed(client, 200))[0]

        # 3.5 s of work; 2 s more with 5 s until the deadline fit in about 1.5 s from now.
        *first, (said, then) = served.together([*(lambda client: timed(client, 175) for _ in range(2)), again])
        assert [status for status, _, _ in first] == [200, 200]
        assert 1 <= said <= 3 and then == 200


def test_a_deadline_that_comes_first_goes_first_and_nobody_is_late_by_it(models: Models, sampler: Sampler) -> None:
    batching = BatchingConfig(max_candidates=25)
    with serving(models, limits=LimitsConfig(deadline_seconds=4), batching=batching) as served:
        learn(served, 25)

        def hurried(count: int, wait: float) -> Callable[[httpx.AsyncClient], Any]:
            async def ask(client: httpx.AsyncClient) -> tuple[int, float, httpx.Response]:
                await asyncio.sleep(0.1)
                return await timed(client, count, wait)

            return ask

        # Three calls of a quarter of a second wait; behind them it would be too late.
        *patient, (status, taken, _) = served.together(
            [*(lambda client: timed(client, 25) for _ in range(4)), hurried(5, 0.8)]
        )
        assert status == 200 and taken < 0.8
        assert [status for status, _, _ in patient] == [200] * 4
        # As many calls as the deadline allows: whoever overtakes would make the last ones late.
        *patient, (status, _, _) = served.together(
            [*(lambda client: timed(client, 25) for _ in range(13)), hurried(75, 3.5)]
        )
        assert status == 429
        seen = Counter(status for status, _, _ in patient)
        assert seen[200] >= 3 and seen.keys() <= {200, 429}, seen


@pytest.mark.slow
def test_large_requests_find_room_among_small_ones(models: Models, sampler: Sampler) -> None:
    limits, batching = LimitsConfig(deadline_seconds=3), BatchingConfig(max_candidates=20)
    with serving(models, limits=limits, batching=batching) as served:
        learn(served, 20)

        async def one(client: httpx.AsyncClient, at: float, count: int) -> tuple[int, int]:
            await asyncio.sleep(at)
            return count, (await timed(client, count))[0]

        # Four times the capacity, half of it in requests of 5, half of 40.
        small = [(number * 0.025, 5) for number in range(240)]
        large = [(number * 0.2 + 0.01, 40) for number in range(30)]
        seen = served.together(
            [lambda client, at=at, count=count: one(client, at, count) for at, count in (*small, *large)]
        )
        shares = {
            size: sum(status == 200 for count, status in seen if count == size)
            / sum(count == size for count, _ in seen)
            for size in (5, 40)
        }
        assert shares[40] > 0.5 * shares[5] > 0, shares


def test_a_call_is_no_larger_than_its_first_deadline_allows(models: Models, sampler: Sampler) -> None:
    with serving(models, limits=LimitsConfig(deadline_seconds=20)) as served:
        learn(served, 40)
        sampler.calls.clear()

        async def later(client: httpx.AsyncClient, at: float, count: int, wait: float) -> Any:
            await asyncio.sleep(at)
            return await timed(client, count, wait)

        # While 40 are computed, a request for 10 that has little time left comes, and two for 45 that have enough.
        kinds = [(0.0, 40, 20.0), (0.1, 10, 0.85), (0.15, 45, 20.0), (0.15, 45, 20.0)]
        answers = served.together([lambda client, kind=kind: later(client, *kind) for kind in kinds])
        assert [status for status, _, _ in answers] == [200] * 4
        assert answers[1][1] < 0.85, "its call waited for the company"
        assert [count for count, _ in sampler.calls] == [40, 10, 90]


def test_what_is_late_in_the_queue_costs_no_call(
    models: Models, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(models, limits=LimitsConfig(deadline_seconds=2)) as served:
        learn(served, 30)
        slow, calls = Stitcher.stitch, len(sampler.calls)

        def hiccup(self: Stitcher, pairs: Any, seeds: Any) -> Any:
            time.sleep(1.6)
            monkeypatch.setattr(Stitcher, "stitch", slow)
            return slow(self, pairs, seeds)

        monkeypatch.setattr(Stitcher, "stitch", hiccup)

        async def waits(client: httpx.AsyncClient) -> tuple[int, float, httpx.Response]:
            await asyncio.sleep(0.1)
            return await timed(client, 60)

        # It was let in, expecting 0.7 s; when the sampler comes back, 0.3 s are left for a call of 0.6 s.
        first, (status, taken, response) = served.together([lambda client: timed(client, 10), waits])
        assert first[0] == 200
        assert status == 504 and "deadline passed" in refused(response, 504)["detail"]
        assert taken < 2, "it is told at once, not at its deadline"
        assert [count for count, _ in sampler.calls[calls:]] == [10]
        assert served.is_idle() and served.endpoint.batcher.alive


class TestPace:
    """Calls of 10 ms and 2 ms per candidate, but for outliers."""

    @staticmethod
    def learnt(monkeypatch: pytest.MonkeyPatch, calls: list[tuple[int, float]]) -> Pace:
        now = [100.0]
        monkeypatch.setattr("raystitch.endpoint.pace.time.monotonic", lambda: now[0])
        pace = Pace()
        for count, seconds in calls:
            pace.begin(count)
            now[0] += seconds
            pace.end(count)
        return pace

    def test_nothing_is_known_before_and_after_the_first_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.learnt(monkeypatch, []).seconds(100) == 0
        assert self.learnt(monkeypatch, [(10, 5.0)]).seconds(100) == 0
        # The second one is quicker, as it always is.
        assert self.learnt(monkeypatch, [(10, 5.0), (10, 0.03)]).seconds(10) == pytest.approx(0.03)

    def test_outliers_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        usual = [(64, 0.138)] * 20
        expected = self.learnt(monkeypatch, usual).seconds(64)
        outliers = [(64, 9.0), *usual, (64, 9.0), (64, 9.0), (64, 0.001)]
        assert self.learnt(monkeypatch, outliers).seconds(64) == pytest.approx(expected) == pytest.approx(0.138)

    def test_a_lasting_change_is_learnt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pace = self.learnt(monkeypatch, [(64, 0.1)] * 40 + [(64, 0.3)] * 17)
        assert pace.seconds(64) == pytest.approx(0.3)

    def test_large_and_small_calls_are_told_apart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pace = self.learnt(monkeypatch, [(count, 0.01 + 0.002 * count) for count in (1, 200, 2, 200, 1, 200, 1)])
        assert pace.seconds(1) == pytest.approx(0.012, rel=0.1)
        assert pace.seconds(200) == pytest.approx(0.41, rel=0.05)
        assert pace.backlog(500, 200) == pytest.approx(1.03, rel=0.05)

    def test_small_calls_do_not_rule_out_a_large_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pace = self.learnt(monkeypatch, [(1, 0.012)] * 32)
        assert 0.7 < pace.seconds(256) < 1

    def test_an_estimate_that_nobody_corrects_fades(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pace = self.learnt(monkeypatch, [(10, 3.0)] * 4)
        before, now = pace.seconds(10), time.monotonic()
        monkeypatch.setattr("raystitch.endpoint.pace.time.monotonic", lambda: now + 10)
        assert pace.seconds(10) == pytest.approx(before / 4)

    def test_an_overdue_call_is_expected_to_last(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pace = self.learnt(monkeypatch, [(10, 1.0)] * 3)
        now = time.monotonic()
        pace.begin(10)
        said = list[float]()
        for passed in (0.25, 1.0, 5.0):
            monkeypatch.setattr("raystitch.endpoint.pace.time.monotonic", lambda passed=passed: now + passed)
            said.append(pace.remaining)
        assert said == pytest.approx([0.75, 0.0, 4.0])
