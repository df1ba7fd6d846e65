"""``bench serve``: the endpoint next to the bare Stitcher, in throughput, latency, overhead, memory and overload.

Everything runs on this machine: the clients, the proxy and one replica with one thread. The Stitcher alone (one thread)
and the endpoint take turns, so that other load on the machine affects both alike.
"""

import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from raystitch.bench.chaos.processes import descendants
from raystitch.bench.machine import Limits, Row
from raystitch.bench.serve_load import Arrivals, Bare, BareStitcher, Load, run_arrivals, run_load
from raystitch.bench.synthetic import BenchOptions, find_subject
from raystitch.client import Trajectory
from raystitch.client.wire import encode_arrow, encode_json
from raystitch.cluster.serve.run import Service, serving
from raystitch.data.episodes import EpisodeDataset
from raystitch.endpoint import arrow_wire, json_wire
from raystitch.endpoint.config import EndpointConfig, ModelConfig

CANDIDATES = 64
NUM_PAIRS = 32
ENCODERS = {"Arrow": (encode_arrow, arrow_wire.MEDIA_TYPE), "JSON": (encode_json, json_wire.MEDIA_TYPE)}


@dataclass(frozen=True, kw_only=True)
class ServeSizes:
    """The amount of work that is measured.

    Attributes:
        seconds: of each load. rounds: times that the endpoint and the Stitcher alone take turns.
        clients: numbers of concurrent clients.
        first_requests, requests: memory is read after so many requests.
        loads: rates of requests as multiples of the capacity, for ``load_seconds`` each, with ``deadline`` seconds to
            answer one.
    """

    seconds: float = 10.0
    rounds: int = 3
    clients: tuple[int, ...] = (1, 8, 32)
    first_requests: int = 1_000
    requests: int = 10_000
    loads: tuple[float, ...] = (1.0, 2.5, 10.0)
    load_seconds: float = 30.0
    deadline: float = 6.0


def rows(limits: Limits, options: BenchOptions) -> list[Row]:
    """Rows about one replica with one thread, on synthetic data or the user's."""
    subject = find_subject(options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "stitcher"
        subject.bundle.save(folder)
        return examine(subject.dataset, folder, ServeSizes())


def examine(dataset: EpisodeDataset, stitcher: Path, sizes: ServeSizes) -> list[Row]:
    """Measure everything; some minutes with the defaults."""
    os.environ.setdefault("RAY_worker_niceness", "0")
    pairs = _pairs(dataset)
    config = EndpointConfig(models={"default": ModelConfig(stitcher=str(stitcher))}, device="cpu", num_threads=1)
    context = multiprocessing.get_context("spawn")
    with (
        BareStitcher(dataset, stitcher, pairs) as bare,
        ProcessPoolExecutor(1, context) as clients,
        serving(config, "127.0.0.1", port := _free_port()) as service,
    ):
        bench = _Bench(service, bare, clients, port, dataset, pairs, sizes)
        return [*bench.speed(), *bench.overload(), *bench.memory()]


class _Bench:
    def __init__(
        self,
        service: Service,
        bare: BareStitcher,
        clients: ProcessPoolExecutor,
        port: int,
        dataset: EpisodeDataset,
        pairs: Sequence[tuple[int, int]],
        sizes: ServeSizes,
    ) -> None:
        self._service, self._bare, self._clients, self._port = service, bare, clients, port
        self._dataset, self._pairs, self._sizes = dataset, pairs, sizes
        self._apart = {process.pid for process in descendants(os.getpid()) if "multiprocessing" in process.title}

    def speed(self) -> list[Row]:
        """Measure loads of the endpoint and the Stitcher alone, in turns."""
        sizes = self._sizes
        self._load("Arrow", max(sizes.clients), CANDIDATES, sizes.seconds / 2)  # warm
        idle = self._idle_cpu(sizes.seconds)
        bare: dict[int, list[Bare]] = {1: [], 4: []}
        loads: dict[tuple[str, int], list[_Measured]] = {}
        for _ in range(sizes.rounds):
            for clients in sizes.clients:
                for wire in ENCODERS:
                    measured = self._load(wire, clients, CANDIDATES, sizes.seconds)
                    loads.setdefault((wire, clients), []).append(measured)
                for requests, found in bare.items():
                    found.append(self._bare.run(sizes.seconds / 3, requests, CANDIDATES))
        return _speed_rows(loads, bare, idle)

    def _idle_cpu(self, seconds: float) -> float:
        """Measure the CPU seconds that Ray and Serve use per second without requests."""
        before = self._cpu()
        time.sleep(seconds)
        return (self._cpu() - before) / seconds

    def overload(self) -> list[Row]:
        """Measure requests that arrive faster than they can be answered; the capacity is measured around each load."""
        sizes, config = self._sizes, self._service.config
        limits = replace(config.limits, deadline_seconds=sizes.deadline)
        self._service.configure(replace(config, limits=limits))
        capacity = [self._capacity()]
        found: list[Row] = []
        for seed, load in enumerate(sizes.loads):
            bodies, content_type = self._bodies("Arrow", CANDIDATES)
            asked = self._clients.submit(
                run_arrivals,
                self._port,
                bodies,
                content_type,
                rate=load * capacity[-1],
                seconds=sizes.load_seconds,
                seed=seed,
            )
            came = asked.result()
            capacity.append(self._capacity())
            found += _overload_rows(load, came, sizes, float(np.mean(capacity[-2:])))
        self._service.configure(config)
        return [Row("capacity, 8 clients", float(np.mean(capacity)) * CANDIDATES, "candidates/s"), *found]

    def _capacity(self) -> float:
        """Measure the requests per second of eight clients that each wait for their answers."""
        return self._send("Arrow", 8, CANDIDATES, seconds=self._sizes.seconds).rate

    def memory(self) -> list[Row]:
        """Measure the resident memory of replica and proxy after the first and after the last of many requests."""
        sizes = self._sizes
        self._send("Arrow", 16, 1, requests=sizes.first_requests)
        before = self._memory_mib()
        load = self._send("Arrow", 16, 1, requests=sizes.requests - sizes.first_requests)
        after = self._memory_mib()
        rows = [Row("small requests (1 candidate, Arrow, 16 clients)", load.rate, "requests/s")]
        for name, mib in after.items():
            what = f"{name}, memory after {sizes.requests:,} requests"
            rows.append(Row(what, mib, "MiB", f"after {sizes.first_requests:,} requests", mib / before[name]))
        return rows

    def _bodies(self, wire: str, candidates: int) -> tuple[list[bytes], str]:
        encode, content_type = ENCODERS[wire]
        bodies = [
            encode(
                _trajectory(self._dataset, source),
                _trajectory(self._dataset, target),
                {"num_candidates": candidates, "seed": number},
            )
            for number, (source, target) in enumerate(self._pairs)
        ]
        return bodies, content_type

    def _send(self, wire: str, clients: int, candidates: int, **until: Any) -> Load:
        bodies, content_type = self._bodies(wire, candidates)
        return self._clients.submit(run_load, self._port, bodies, content_type, clients, **until).result()

    def _load(self, wire: str, clients: int, candidates: int, seconds: float) -> "_Measured":
        cpu, sampler = self._cpu(), self._sampler()
        load = self._send(wire, clients, candidates, seconds=seconds)
        return _Measured(load, self._cpu() - cpu, self._sampler() - sampler)

    def _sampler(self) -> float:
        return sum(seconds for _, seconds in self._service.ask("usage"))

    def _cpu(self) -> float:
        """Return the CPU seconds of Ray and Serve so far: of our child processes except clients and Stitcher."""
        processes = [process for process in descendants(os.getpid()) if process.pid not in self._apart]
        return sum(_cpu_seconds(process.pid) for process in processes)

    def _memory_mib(self) -> dict[str, float]:
        replicas = [pid for pid, _ in self._service.ask("usage")]
        proxies = [process.pid for process in descendants(os.getpid()) if "ProxyActor" in process.title]
        page = os.sysconf("SC_PAGE_SIZE") / 2**20
        return {
            name: sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * page
            for name, pids in (("replica", replicas), ("proxy", proxies))
        }


@dataclass(frozen=True)
class _Measured:
    """A load, and the CPU seconds that Ray and Serve, and in them the sampler's thread, used in it."""

    load: Load
    cpu: float
    sampler: float

    def beyond(self, idle: float) -> float:
        """Return the overhead in CPU seconds per request: without the sampler, and without ``idle`` use per second."""
        return (self.cpu - self.sampler - idle * self.load.wall) / len(self.load.seconds)


def _speed_rows(loads: dict[tuple[str, int], list[_Measured]], bare: dict[int, list[Bare]], idle: float) -> list[Row]:
    found = [Row("Ray and Serve, CPU when nothing is asked", 1e3 * idle, "ms/s")]
    names = {requests: f"bare Stitcher, {requests * CANDIDATES} candidates a call" for requests in bare}
    rate = {requests: float(np.median([run.rate for run in runs])) for requests, runs in bare.items()}
    p50 = float(np.median([np.median(run.seconds) for run in bare[1]]))
    for requests, name in names.items():
        found.append(Row(name, rate[requests] * CANDIDATES, "candidates/s"))
        cpu = float(np.median([run.cpu_per_request for run in bare[requests]]))
        found.append(Row(f"{name}, CPU per request", 1e3 * cpu, "ms"))
    found.append(Row(f"{names[1]}, p50", 1e3 * p50, "ms"))
    for (wire, clients), measured in loads.items():
        name = f"{wire}, {clients} client{'s' if clients > 1 else ''}"
        each = [run.load for run in measured]
        served = float(np.median([load.rate for load in each]))
        found += [
            Row(name, served * CANDIDATES, "candidates/s", names[requests], served / rate[requests])
            for requests in names
        ]
        for share in (0.5, 0.95, 0.99):
            value = float(np.median([load.quantile(share) for load in each]))
            compared = (f"{names[1]}, p50", value / p50) if clients == 1 and share == 0.5 else (None, None)
            found.append(Row(f"{name}, p{share * 100:.0f}", 1e3 * value, "ms", *compared))
        sampler = float(np.median([run.sampler / len(run.load.seconds) for run in measured]))
        found.append(Row(f"{name}, CPU per request of the sampler", 1e3 * sampler, "ms"))
        beyond = float(np.median([run.beyond(idle) for run in measured]))
        found.append(Row(f"{name}, CPU per request besides", 1e3 * beyond, "ms"))
        wrong = sum(count for load in each for status, count in load.statuses.items() if status != 200)
        found.append(Row(f"{name}, answers other than 200", wrong, "requests"))
    return found


def _overload_rows(load: float, came: Arrivals, sizes: ServeSizes, capacity: float) -> list[Row]:
    name = f"{load:g} x the capacity"
    in_time = sum(status == 200 and seconds <= sizes.deadline for status, seconds in came.answers)
    served = in_time / sizes.load_seconds
    longest = max((seconds for _, seconds in came.answers), default=0.0)
    return [
        Row(f"{name}, asked", len(came.answers), "requests"),
        Row(f"{name}, answered in time", served * CANDIDATES, "candidates/s", "capacity", served / capacity),
        Row(f"{name}, 200 but late", came.count(200) - in_time, "requests"),
        Row(f"{name}, 429", came.count(429), "requests"),
        Row(f"{name}, 504", came.count(504), "requests"),
        Row(f"{name}, anything else", len(came.answers) - came.count(200, 429, 504), "requests"),
        Row(f"{name}, p50 until a 429", 1e3 * came.quantile(429, 0.5), "ms"),
        Row(f"{name}, p95 until a 429", 1e3 * came.quantile(429, 0.95), "ms"),
        Row(f"{name}, longest wait beyond the deadline", max(0.0, longest - sizes.deadline), "s"),
    ]


def _pairs(dataset: EpisodeDataset) -> list[tuple[int, int]]:
    """Draw pairs of episodes of 20 steps or more: sources in the lower half by return, targets in the highest fifth."""
    order = np.argsort(dataset.returns, kind="stable")
    order = order[dataset.lengths[order] >= 20]
    rng = np.random.default_rng(0)
    low, high = order[: len(order) // 2], order[-max(1, len(order) // 5) :]
    return [(int(rng.choice(low)), int(rng.choice(high))) for _ in range(NUM_PAIRS)]


def _trajectory(dataset: EpisodeDataset, number: int) -> Trajectory:
    episode = dataset.episode(number)
    return Trajectory(episode.observations, episode.actions, episode.rewards, terminated=episode.terminated)


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
