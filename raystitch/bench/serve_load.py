"""Load for measuring the endpoint: clients that send ready-made bodies, and the bare Stitcher on the same requests.

Each runs in a process of its own.
"""

import http.client
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from raystitch.data.episodes import EpisodeDataset
from raystitch.models.bundle import Bundle
from raystitch.seeding import child_seeds
from raystitch.stitching.candidates import Pairs
from raystitch.stitching.pairs import cut_trajectories
from raystitch.stitching.stitcher import Stitcher

ANSWER_SECONDS = 120.0
_MOST_OPEN = 512


@dataclass(frozen=True, kw_only=True)
class Load:
    """The result of a load: seconds of each answered request, sorted; answers by status; wall-clock seconds."""

    seconds: list[float]
    statuses: Counter[int]
    wall: float

    @property
    def rate(self) -> float:
        """The number of answered requests per second."""
        return len(self.seconds) / self.wall

    def quantile(self, share: float) -> float:
        return float(np.quantile(self.seconds, share))


def run_load(
    port: int, bodies: Sequence[bytes], content_type: str, clients: int, *, seconds: float = 0.0, requests: int = 0
) -> Load:
    """Run clients that each send one request after the other, for ``seconds`` or until ``requests`` were sent."""
    lock = threading.Lock()
    times: list[float] = []
    statuses: Counter[int] = Counter()
    sent = 0
    begun = time.perf_counter()

    def client() -> None:
        nonlocal sent
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
        while True:
            with lock:
                number = sent
                if (requests and sent >= requests) or (not requests and time.perf_counter() - begun >= seconds):
                    break
                sent += 1
            started = time.perf_counter()
            connection.request("POST", "/v1/stitch", bodies[number % len(bodies)], {"Content-Type": content_type})
            answer = connection.getresponse()
            answer.read()
            taken = time.perf_counter() - started
            with lock:
                statuses[answer.status] += 1
                if answer.status == 200:
                    times.append(taken)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Load(seconds=sorted(times), statuses=statuses, wall=time.perf_counter() - begun)


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """The status and seconds of requests that were sent on schedule, whether or not earlier ones had been answered."""

    answers: list[tuple[int, float]]

    def count(self, *statuses: int) -> int:
        """Count the requests that were answered with one of these statuses."""
        return sum(status in statuses for status, _ in self.answers)

    def quantile(self, status: int, share: float) -> float:
        """Return a quantile of the seconds until answers with this status; 0 if there are none."""
        found = [seconds for answered, seconds in self.answers if answered == status]
        return float(np.quantile(found, share)) if found else 0.0


def run_arrivals(
    port: int, bodies: Sequence[bytes], content_type: str, *, rate: float, seconds: float, seed: int
) -> Arrivals:
    """Send requests at the times of a Poisson process with ``rate`` per second, each on a connection of its own.

    A request without an answer has status 0.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(2 * rate * seconds) + 100)
    times = np.cumsum(gaps)
    begun = time.perf_counter()

    def ask(number: int) -> tuple[int, float]:
        started = time.perf_counter()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
            connection.request("POST", "/v1/stitch", bodies[number % len(bodies)], {"Content-Type": content_type})
            answer = connection.getresponse()
            answer.read()
            connection.close()
        except OSError:
            return 0, time.perf_counter() - started
        return answer.status, time.perf_counter() - started

    with ThreadPoolExecutor(_MOST_OPEN) as pool:
        asked: list[Future[tuple[int, float]]] = []
        for number, at in enumerate(times[times < seconds]):
            time.sleep(max(0.0, begun + at - time.perf_counter()))
            asked.append(pool.submit(ask, number))
        return Arrivals(answers=[answer.result() for answer in asked])


@dataclass(frozen=True, kw_only=True)
class Bare:
    """The result of the Stitcher alone: wall-clock seconds of each call, sorted, and CPU seconds of all."""

    seconds: list[float]
    cpu: float
    requests_per_call: int

    @property
    def rate(self) -> float:
        """The number of requests per second."""
        return len(self.seconds) * self.requests_per_call / sum(self.seconds)

    @property
    def cpu_per_request(self) -> float:
        return self.cpu / (len(self.seconds) * self.requests_per_call)


class BareStitcher:
    """A context manager of a process that does the work of requests with one thread: cuts and stitches."""

    def __init__(self, dataset: EpisodeDataset, bundle_dir: Path, pairs: Sequence[tuple[int, int]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, _load, (dataset, bundle_dir, list(pairs)))

    def __enter__(self) -> "BareStitcher":
        self._pool.submit(_calls, 0.0, 1, 1).result()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def run(self, seconds: float, requests_per_call: int, candidates: int) -> Bare:
        """Call the Stitcher for ``seconds``, each time for ``requests_per_call`` requests of ``candidates`` each."""
        return self._pool.submit(_calls, seconds, requests_per_call, candidates).result()


_state: list[tuple[Stitcher, EpisodeDataset, list[tuple[int, int]]]] = []


def _load(dataset: EpisodeDataset, bundle_dir: Path, pairs: list[tuple[int, int]]) -> None:
    torch.set_num_threads(1)
    _state.append((Stitcher(Bundle.load(bundle_dir, "cpu")), dataset, pairs))


def _calls(seconds: float, requests_per_call: int, candidates: int) -> Bare:
    (stitcher, dataset, pairs), times, number = _state[0], list[float](), 0
    begun, cpu = time.perf_counter(), time.process_time()
    while not times or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        chosen = [pairs[(number + index) % len(pairs)] for index in range(requests_per_call)]
        number += requests_per_call
        cuts = [
            cut_trajectories(stitcher.bundle, dataset.episode(source), dataset.episode(target), candidates)
            for source, target in chosen
        ]
        seeds = np.concatenate([child_seeds(np.array([index]), candidates, 0)[0] for index in range(len(chosen))])
        stitcher.stitch(Pairs.concatenate(cuts), seeds)
        times.append(time.perf_counter() - started)
    return Bare(seconds=sorted(times), cpu=time.process_time() - cpu, requests_per_call=requests_per_call)
