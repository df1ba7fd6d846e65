"""The endpoint's metrics on Ray, and those of the whole application as Prometheus text.

Every replica counts for itself; the Ray agent of its node exports the values within about ten seconds. ``scrape`` asks
the agents of all nodes, so that any replica can answer for the whole application.
"""

import asyncio
import logging
from collections import Counter as Tally
from collections.abc import Iterable, Sequence

import aiohttp
import ray
from ray.serve import get_replica_context
from ray.serve.metrics import Counter, Histogram

from raystitch.endpoint.problems import Problem

logger = logging.getLogger(__name__)

PREFIX = "raystitch_serve_"
SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
CANDIDATES: list[float] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
RESIDUALS = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 100]


class ServeMetrics:
    """Metrics of one replica.

    Counters ``raystitch_serve_requests_total`` (``outcome``: accepted, rejected, or the status of an error),
    ``.._candidates_total`` (``reason``), ``.._refused_total`` (``reason``), ``.._let_in_total`` (``token``: its name),
    ``.._faults_total``; histograms ``.._request_seconds``, ``.._queue_seconds``, ``.._sampler_seconds``,
    ``.._batch_candidates``, ``.._batch_requests``, ``.._residual_max``.
    """

    def __init__(self) -> None:
        # Ray appends _total to the names of counters.
        self._requests = Counter(f"{PREFIX}requests", "requests by how they ended", tag_keys=("outcome",))
        self._candidates = Counter(f"{PREFIX}candidates", "candidates by why they were rejected", tag_keys=("reason",))
        self._faults = Counter(f"{PREFIX}faults", "requests that failed for a reason of ours")
        self._refused = Counter(f"{PREFIX}refused", "requests turned away at the door, by why", tag_keys=("reason",))
        self._let_in = Counter(f"{PREFIX}let_in", "requests with a valid token, by its name", tag_keys=("token",))
        self._request_seconds = Histogram(f"{PREFIX}request_seconds", "from headers to answer", boundaries=SECONDS)
        self._queue_seconds = Histogram(
            f"{PREFIX}queue_seconds", "a request's wait for the sampler", boundaries=SECONDS
        )
        self._sampler_seconds = Histogram(f"{PREFIX}sampler_seconds", "one call of the sampler", boundaries=SECONDS)
        self._batch_candidates = Histogram(f"{PREFIX}batch_candidates", "candidates of a call", boundaries=CANDIDATES)
        self._batch_requests = Histogram(f"{PREFIX}batch_requests", "requests of a call", boundaries=CANDIDATES)
        self._residual_max = Histogram(f"{PREFIX}residual_max", "largest residual of a candidate", boundaries=RESIDUALS)

    def answered(self, outcome: str, seconds: float) -> None:
        self._requests.inc(1, {"outcome": outcome})
        self._request_seconds.observe(seconds)

    def queued(self, seconds: float) -> None:
        self._queue_seconds.observe(seconds)

    def called(self, requests: int, candidates: int, seconds: float) -> None:
        self._sampler_seconds.observe(seconds)
        self._batch_candidates.observe(candidates)
        self._batch_requests.observe(requests)

    def judged(self, reasons: Iterable[str], residuals: Iterable[float]) -> None:
        for reason, count in Tally(reasons).items():
            self._candidates.inc(count, {"reason": reason})
        # The best and the median of a request are enough: every observation costs time.
        ordered = sorted(residuals)
        for index in {0, len(ordered) // 2}:
            self._residual_max.observe(float(ordered[index]))

    def refused(self, reason: str) -> None:
        self._refused.inc(1, {"reason": reason})

    def let_in(self, token: str) -> None:
        self._let_in.inc(1, {"token": token})

    def fault(self, error: BaseException, request_ids: Sequence[str]) -> None:
        self._faults.inc(max(1, len(request_ids)))
        logger.error("requests %s failed", ", ".join(request_ids), exc_info=error)


async def scrape() -> str:
    """Collect the application's metrics from all nodes, as Prometheus text.

    Raises:
        Problem: 503 when no agent answers.
    """
    nodes = await asyncio.to_thread(ray.nodes)
    addresses = [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes if node["Alive"]
    ]
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        pages = await asyncio.gather(*(_page(session, address) for address in addresses))
    found = [page for page in pages if page is not None]
    if not found:
        raise Problem(
            503, "no Ray agent exports metrics here; is ray[default] installed?", headers={"Retry-After": "10"}
        )
    return merge(found, get_replica_context().app_name)


async def _page(session: aiohttp.ClientSession, address: str) -> str | None:
    try:
        async with session.get(address) as response:
            return await response.text() if response.status == 200 else None
    except (aiohttp.ClientError, TimeoutError) as error:
        logger.warning("no metrics from %s: %s", address, error)
        return None


def merge(pages: Sequence[str], application: str) -> str:
    """Merge the samples of one application from all pages, each metric with its description once."""
    label = f'application="{application}"'
    metrics: dict[str, tuple[list[str], list[str]]] = {}
    for page in pages:
        name = ""
        for line in page.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                name = line.split(" ", 3)[2]
            if PREFIX not in line.partition("{")[0]:
                continue
            described, samples = metrics.setdefault(name, ([], []))
            if not line.startswith("#"):
                samples += [line] * (label in line)
            elif line not in described:
                described.append(line)
    lines = [line for described, samples in metrics.values() if samples for line in (*described, *samples)]
    return "".join(f"{line}\n" for line in lines)
