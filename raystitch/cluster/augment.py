"""``augment`` on Ray Data: shard numbers -> proposer actors -> qualifier actors, which write -> outcomes."""

import contextlib
import copy
import logging
import os
import re
import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import ray
import ray.data
from ray.data import DataContext
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from raystitch.buffer.config import AugmentConfig
from raystitch.cluster.actor_pools import IN_FLIGHT, ActorPool, plan_pools
from raystitch.cluster.actors import (
    Outcome,
    Proposer,
    Qualifier,
    ShardJob,
    Shared,
    SharedRef,
    bundle_files,
    make_here,
    start_counter,
)
from raystitch.cluster.metrics import AugmentMetrics
from raystitch.cluster.resources import Need, actor_needs, await_node, live_nodes, require_resources
from raystitch.cluster.runtime import check_shared, describe_cluster, ensure_ray
from raystitch.cluster.waiting import Waiting
from raystitch.console import duration
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.ref import DatasetRef
from raystitch.device import torch_threads
from raystitch.errors import RunError
from raystitch.models.bundle import Bundle
from raystitch.models.fit import load_once
from raystitch.pipeline.generate.augment import source_index
from raystitch.pipeline.generate.ledger import AugmentSummary, Ledger
from raystitch.pipeline.generate.opening import open_ledger
from raystitch.pipeline.generate.progress import OnAugmentProgress
from raystitch.stitching.config import StitchConfig
from raystitch.stitching.pairs import SourceIndex
from raystitch.stitching.stitcher import Stitcher

SMALLEST_WAVE = 64
"""Smallest number of shards in one execution. Starting one takes seconds, handing it a block takes a millisecond."""
MAX_BLOCKS, BLOCKS_PER_ACTOR = 1024, 16
"""Largest number of blocks in one execution; more only if there are many actors to share them."""
SPARE_SHARDS = 8
"""Proposed shards that may wait for a qualifier, beside those that proposers work on."""
REMEMBERED = 16
"""Shards whose times say what the next ones will take."""
SHARDS_PER_BLOCK = 16
"""Largest number of consecutive shards in a block; fewer, if blocks suffice, to make them in order and share evenly."""

DATA_TASK = Need(who="Ray Data's own tasks", resources={"CPU": 1.0}, advice="free a CPU")


def augment(
    dataset: EpisodeDataset | DatasetRef | str,
    bundle_dir: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    stitch_config: StitchConfig | None = None,
    config: AugmentConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    address: str | None = None,
    progress: OnAugmentProgress | None = None,
) -> AugmentSummary:
    """Fill a buffer with ``config.num_bridges`` accepted bridges; continue one that was started with the same settings.

    The finished buffer is a function of dataset, bundle, settings and seed. It does not depend on the number of actors,
    on interruptions, on processes and machines that die, or on other drivers that work on the same buffer.

    Args:
        dataset: the trajectories or a dataset reference.
        out: a folder (with several nodes: on storage that all of them see), or a URI such as ``s3://bucket/buffer``.
        address: a Ray cluster; None starts a local Ray (see ``ensure_ray``).

    Raises:
        UserError: another dataset than the bundle's, nothing to leave or enter, or ``out`` holds something else.
        RunError: when too little is accepted, a shard fails for good, the buffer cannot be written or Ray fails.
    """
    stitch_config, config = stitch_config or StitchConfig(), config or AugmentConfig()
    named = DatasetRef(dataset) if isinstance(dataset, str) else dataset
    trajectories = named.load() if isinstance(named, DatasetRef) else named
    bundle = load_once(bundle_dir, "cpu")
    metrics = AugmentMetrics(str(out))
    ledger = open_ledger(trajectories, bundle, stitch_config, config, out, seed, metrics.watch(progress))
    while True:
        if not ledger.done:
            with ensure_ray(address):
                _Generation(ledger, trajectories, bundle, bundle_dir, ledger.stitch, seed, device, metrics).fill()
        summary = ledger.finish()
        if summary is not None:
            return summary


@dataclass
class RoundPace:
    """Seconds that the work took so far: those of a short round by actors are spent on starting them.

    Attributes:
        start: until the first shard of the last execution was heard of, without the work on it.
        shards: of the work on each of the last shards, whoever did it.
    """

    start: float = 0.0
    shards: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def saw(self, outcome: Outcome, since: float | None = None) -> None:
        """Take note of an outcome. ``since``: ``time.monotonic`` when its execution began, for the first of it."""
        if outcome.stats is None or not outcome.made:
            return
        seconds = outcome.propose_seconds + outcome.qualify_seconds
        self.shards.append(seconds)
        if since is not None:
            self.start = max(0.0, time.monotonic() - since - seconds)

    def is_slower(self, num_shards: int, num_proposers: int) -> bool:
        """Return True where so many proposers would be done later than one process that is there already."""
        if not self.shards:
            return False
        work = num_shards * sum(self.shards) / len(self.shards)
        return self.start + work / num_proposers > work


@dataclass(frozen=True)
class _Generation:
    """The work of one call on a connected Ray."""

    ledger: Ledger
    dataset: EpisodeDataset
    bundle: Bundle
    bundle_dir: str | os.PathLike[str]
    stitch_config: StitchConfig
    seed: int
    device: str
    metrics: AugmentMetrics
    pace: RoundPace = field(default_factory=RoundPace)

    def fill(self) -> None:
        """Make the missing shards of every open round, short ones in this process."""
        ledger, files = self.ledger, bundle_files(self.bundle_dir)
        if "://" not in ledger.path:
            check_shared(ledger.path, "buffer.json")
        self._announce()
        index: SourceIndex | None = None
        for _ in ledger.open_rounds():
            if self._quicker_here():
                index = self._shards_here(index)
                if ledger.round_done:
                    continue
            shared: SharedRef = [ray.put(Shared(bundle=files, dataset=self.dataset, known=ledger.known))]
            while not ledger.round_done:
                proposers, qualifiers = self._pools()
                num_blocks = max(MAX_BLOCKS, BLOCKS_PER_ACTOR * proposers.max_size)
                shards = ledger.next_shards(
                    min(num_blocks * SHARDS_PER_BLOCK, max(SMALLEST_WAVE, 2 * ledger.expected()))
                )
                if shards:
                    self._wave(shards, shared, proposers, qualifiers, min(num_blocks, len(shards)))

    def _quicker_here(self) -> bool:
        """Return True where this process is done with the rest of the round before actors would be, on a cluster of
        this one machine without GPUs."""
        proposers, qualifiers = self._pools()
        workers = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
        return (
            workers == [ray.get_runtime_context().get_node_id()]
            and {pool.device(self.device) for pool in (proposers, qualifiers)} == {"cpu"}
            and self.pace.is_slower(self.ledger.expected(), proposers.max_size)
        )

    def _shards_here(self, before: SourceIndex | None) -> SourceIndex:
        """Make the shards of a round in this process, as actors would and for as long as that is quicker.

        Args:
            before: the index of an earlier round that was made here, whose search trees are kept.

        Returns:
            The index of this round.
        """
        ledger, job = self.ledger, self._job(self._pools()[0])
        with torch_threads(job.threads):
            stitcher = Stitcher(self.bundle, self.stitch_config)
            index = source_index(self.dataset, self.bundle, self.stitch_config, ledger.known, before)
            while not ledger.round_done and self._quicker_here():
                for shard in ledger.next_shards(1):
                    outcome = make_here(job, shard, stitcher, index)
                    self.pace.saw(outcome)
                    self._take(outcome)
        return index

    def _take(self, outcome: Outcome) -> None:
        """Count what became of a shard.

        Raises:
            UserError, RunError: for what concerns every shard.
        """
        self.metrics.count(outcome)
        if outcome.stats is not None:
            self.ledger.add(outcome.stats)
        elif outcome.kind == "shard":
            self.ledger.fail(outcome.shard, outcome.error)
        else:
            raise outcome.as_exception()

    def _wave(
        self, shards: list[int], shared: SharedRef, proposers: ActorPool, qualifiers: ActorPool, num_blocks: int
    ) -> None:
        """Run one execution over some missing shards of a round; end it as soon as there are enough."""
        ledger, unheard, seconds = self.ledger, set(shards), self.ledger.config.no_progress_timeout
        needs = [*(pool_need(*pool) for pool in ((proposers, "proposer"), (qualifiers, "qualifier"))), DATA_TASK]
        waiting = Waiting(needs, ledger.note, f"augment.no_progress_timeout is {duration(seconds)}; ")
        retrying = not ledger.failures.keys().isdisjoint(shards)
        since: float | None = time.monotonic()
        try:
            # Closed here also after an error, whose traceback would keep it alive past Ray's own end.
            with (
                waiting.said(),
                contextlib.closing(self._outcomes(shards, shared, proposers, qualifiers, num_blocks)) as outcomes,
            ):
                for outcome in outcomes:
                    waiting.moved()
                    unheard.discard(outcome.shard)
                    self.pace.saw(outcome, since)
                    since = None
                    self._take(outcome)
                    if ledger.round_done or (ledger.failures and not retrying and ledger.only_failures_missing):
                        return
        except RayError as error:
            raise _in_our_words(error) from error
        except ExecutionTimeoutError as error:
            why = f"waiting for {waiting.reason}" if waiting.reason else "no shard was finished"
            raise RunError(
                f"{ledger.path}: no progress for {duration(seconds)}: {why}; what was written is kept. Run again when "
                "there is room, or raise augment.no_progress_timeout"
            ) from error
        for shard in sorted(unheard):
            ledger.fail(shard, "its worker process died: killed, or out of memory")

    def _announce(self) -> None:
        """Wait for nodes that have to be added first, then describe the cluster and the actors.

        Raises:
            UserError: when an actor fits on no machine, or all actors do not fit together, and none can be added.
        """
        config = self.ledger.config
        for need in actor_needs(config, self.device):
            await_node(need, self.ledger.note, config.no_progress_timeout)
        require_resources([], config)
        self.ledger.note(describe(*self._pools()))

    def _pools(self) -> tuple[ActorPool, ActorPool]:
        """Plan the pools for the cluster as it is now."""
        return plan_pools([node for node in live_nodes() if node.get("CPU", 0) > 0], self.ledger.config)

    def _job(self, pool: ActorPool) -> ShardJob:
        """Return the work of an actor of a pool in the round at hand."""
        ledger = self.ledger
        return ShardJob(
            stitch_config=self.stitch_config,
            device=pool.device(self.device),
            threads=pool.threads,
            out=ledger.path,
            seed=self.seed,
            pairs_per_shard=ledger.config.pairs_per_shard,
            chain_round=ledger.chain_round,
            manifest=ledger.manifest,
            schema_version=ledger.schema_version,
        )

    @property
    def _shard_bytes(self) -> float:
        """Estimate the bytes of a proposed shard in the object store, if every other pair is repaired once."""
        gap, obs_dim, act_dim = self.bundle.config.diffusion.gap_max, self.bundle.obs_dim, self.bundle.act_dim
        floats = (gap + 2) * obs_dim + (gap + 1) * (act_dim + 2) + 30
        return 1.5 * self.ledger.config.pairs_per_shard * 4 * floats

    def _outcomes(
        self, shards: Sequence[int], shared: SharedRef, proposers: ActorPool, qualifiers: ActorPool, num_blocks: int
    ) -> Generator[Outcome, None, None]:
        """Run the pipeline over shards; yield the outcome of each, in the order in which they are done."""
        ledger = self.ledger
        proposer_job, qualifier_job = self._job(proposers), self._job(qualifiers)
        in_flight = proposers.max_size * IN_FLIGHT + SPARE_SHARDS
        common = shared, start_counter()
        with _ray_data(ledger.config.no_progress_timeout, in_flight * self._shard_bytes):
            pipeline = (
                ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=num_blocks)
                .map_batches(Proposer, fn_constructor_args=(proposer_job, *common), **proposers.options(num_blocks))
                .map_batches(Qualifier, fn_constructor_args=(qualifier_job, *common), **qualifiers.options(len(shards)))
            )
            for row in pipeline.iter_rows():
                yield Outcome.from_json(row["outcome"])


@contextlib.contextmanager
def _ray_data(no_progress_timeout: float, bytes_in_flight: float) -> Generator[None, None, None]:
    """Set Ray Data's options for this pipeline; restore the caller's at the end of the block.

    Args:
        bytes_in_flight: proposers pause when more bytes of candidates than this wait for a qualifier.
    """
    context, logger = DataContext.get_current(), logging.getLogger("ray.data")
    options = copy.copy(context.execution_options)
    options.resource_limits = options.resource_limits.copy(object_store_memory=bytes_in_flight)
    wanted = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "execution_no_progress_timeout_s": no_progress_timeout,
        "max_errored_blocks": -1,  # a shard without an outcome has failed; the run goes on
        "target_max_block_size": 1,  # every shard goes on as soon as it is proposed
        "execution_options": options,
    }
    before, level = {name: getattr(context, name) for name in wanted}, logger.level
    for name, value in wanted.items():
        setattr(context, name, value)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        logger.setLevel(level)


def pool_need(pool: ActorPool, kind: str) -> Need:
    """Return the resources that one actor of a pool reserves."""
    resources = {"CPU": pool.num_cpus, "GPU": pool.num_gpus, **pool.resources}
    return Need(who=f"augment.{kind}", resources=resources, advice=f"lower what augment.{kind} asks for")


def describe(proposers: ActorPool, qualifiers: ActorPool) -> str:
    """Describe the cluster, the actors and the address of the metrics in one line."""
    here = ray.get_runtime_context().get_node_id()  # the driver counts, and its node's agent exports
    nodes = [node for node in ray.nodes() if node["NodeID"] == here]
    scrape = [f"http://{n['NodeManagerAddress']}:{n['MetricsExportPort']}/metrics" for n in nodes]
    return (
        f"{describe_cluster()}; proposers: {proposers.sizes} ({proposers} each), qualifiers: {qualifiers.sizes} "
        f"({qualifiers} each); Prometheus metrics at {scrape[0]}"
    )


def _in_our_words(error: RayError) -> RunError:
    """Turn an error from Ray into one line: the exception with which its text begins."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"(?!ray\.)[\w.]*(Error|Exception|Interrupt)\b", line)]
    return RunError(f"augment failed in Ray: {next(iter(raised or lines[-1:]), type(error).__name__)}")
