"""``augment`` on Ray Data: shard numbers -> sampler actors -> qualifier actors that write -> what became of each."""

import contextlib
import logging
import os
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import ray
import ray.data
from ray.data import DataContext
from ray.exceptions import RayError

from raystitch.buffer.config import AugmentConfig
from raystitch.cluster.actors import Job, Outcome, Qualifier, Sampler, Shared, SharedRef, bundle_files
from raystitch.cluster.metrics import AugmentMetrics
from raystitch.cluster.pools import Pool, plan_pools
from raystitch.cluster.runtime import check_shared, ensure_ray, is_local
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset
from raystitch.errors import RunError, UserError
from raystitch.models.bundle import Bundle
from raystitch.pipeline.ledger import AugmentSummary, Ledger, open_ledger
from raystitch.pipeline.progress import Progress
from raystitch.stitching.config import StitchConfig

SMALLEST_WAVE, LARGEST_WAVE = 64, 4096
"""Shards handed to one execution: each is a block of one row, so they are made in order; starting one takes seconds."""


def augment(
    dataset: EpisodeDataset | str,
    bundle_dir: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    stitch_config: StitchConfig | None = None,
    config: AugmentConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    address: str | None = None,
    progress: Progress | None = None,
) -> AugmentSummary:
    """Fills a buffer with ``config.num_bridges`` accepted bridges; takes up one started with the same settings.

    What the buffer holds in the end is a function of dataset, bundle, settings and seed: not of the number of actors,
    of interruptions, of processes and machines that die, or of other drivers that work on the same buffer.

    Args:
        dataset: the trajectories or a dataset reference.
        out: a folder (of several nodes: on storage that all of them see), or a URI such as ``s3://bucket/buffer``.
        address: a Ray cluster; None starts a local Ray (see ``ensure_ray``).

    Raises:
        UserError: another dataset than the bundle's, nothing to leave or enter, or ``out`` holds something else.
        RunError: when too little is accepted, a shard fails for good, the buffer cannot be written or Ray fails.
    """
    stitch_config, config = stitch_config or StitchConfig(), config or AugmentConfig()
    trajectories = load_dataset(dataset) if isinstance(dataset, str) else dataset
    bundle = Bundle.load(bundle_dir, "cpu")
    metrics = AugmentMetrics(str(out))
    ledger = open_ledger(trajectories, bundle, stitch_config, config, out, seed, metrics.watch(progress))
    while True:
        if not ledger.done:
            with ensure_ray(address):
                _Generation(ledger, trajectories, bundle_dir, stitch_config, seed, device, metrics).fill()
        summary = ledger.finish()
        if summary is not None:
            return summary


@dataclass(frozen=True)
class _Generation:
    """One call's work on a connected Ray."""

    ledger: Ledger
    dataset: EpisodeDataset
    bundle_dir: str | os.PathLike[str]
    stitch_config: StitchConfig
    seed: int
    device: str
    metrics: AugmentMetrics

    def fill(self) -> None:
        """Makes what every open round lacks."""
        ledger, files = self.ledger, bundle_files(self.bundle_dir)
        if "://" not in ledger.path:
            check_shared(ledger.path, "buffer.json")
        for _ in ledger.open_rounds():
            shared: SharedRef = [
                ray.put(Shared(bundle=files, dataset=self.dataset, trajectories=ledger.trajectories(self.dataset)))
            ]
            while not ledger.round_done:
                shards = ledger.missing(min(LARGEST_WAVE, max(SMALLEST_WAVE, 2 * ledger.expected())))
                if shards:
                    self._wave(shards, shared)

    def _wave(self, shards: list[int], shared: SharedRef) -> None:
        """One execution over some missing shards of a round; ends it as soon as there are enough."""
        ledger, unheard = self.ledger, set(shards)
        samplers, qualifiers = self._pools()
        try:
            # Closed here also after an error, whose traceback would keep it alive past Ray's own end.
            with contextlib.closing(self._outcomes(shards, shared, samplers, qualifiers)) as outcomes:
                for outcome in outcomes:
                    unheard.discard(outcome.shard)
                    self.metrics.count(outcome)
                    if outcome.stats is not None:
                        ledger.add(outcome.stats)
                    elif outcome.kind == "shard":
                        ledger.fail(outcome.shard, outcome.error)
                    else:
                        raise outcome.as_exception()
                    if ledger.round_done or (ledger.failures and ledger.only_failures_missing):
                        return
        except RayError as error:
            raise _in_our_words(error) from error
        for shard in sorted(unheard):
            ledger.fail(shard, "its worker process died: killed, or out of memory")

    def _pools(self) -> tuple[Pool, Pool]:
        """The actors, as the cluster is now.

        Raises:
            UserError: when Ray was started here and no actor fits this machine.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        pools = plan_pools([node for node in nodes if node.get("CPU", 0) > 0], self.ledger.config)
        for name, pool in zip(("sampler", "qualifier"), pools, strict=True):
            if not any(pool.fits(node) for node in nodes):
                message = f"no machine here has what augment.{name} asks for: {pool}"
                if is_local():
                    raise UserError(f"{message}; lower it")
                self.ledger.note(
                    f"{message}; waiting up to {self.ledger.config.no_progress_timeout:.0f} s for one to be added"
                )
        return pools

    def _outcomes(
        self, shards: Sequence[int], shared: SharedRef, samplers: Pool, qualifiers: Pool
    ) -> Generator[Outcome, None, None]:
        ledger = self.ledger
        sampler_job, qualifier_job = (
            Job(
                stitch_config=self.stitch_config,
                device=pool.device(self.device),
                threads=pool.threads,
                out=ledger.path,
                seed=self.seed,
                pairs_per_shard=ledger.config.pairs_per_shard,
                chain_round=ledger.chain_round,
                manifest=ledger.manifest,
            )
            for pool in (samplers, qualifiers)
        )
        in_flight = ledger.config.in_flight
        pipeline = (
            ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
            .map_batches(Sampler, fn_constructor_args=(sampler_job, shared), **samplers.options(in_flight, len(shards)))
            .map_batches(
                Qualifier, fn_constructor_args=(qualifier_job, shared), **qualifiers.options(in_flight, len(shards))
            )
        )
        for row in pipeline.iter_rows():
            yield Outcome.from_json(row["outcome"])


def _quiet_ray_data(no_progress_timeout: float) -> None:
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = no_progress_timeout
    context.max_errored_blocks = -1  # a shard without an outcome is a failed one, not the end of the run


def _in_our_words(error: RayError) -> RunError:
    """One line about an error that is not ours: the exception that the text of Ray's own begins with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"(?!ray\.)[\w.]*(Error|Exception|Interrupt)\b", line)]
    return RunError(f"augment failed in Ray: {next(iter(raised or lines[-1:]), type(error).__name__)}")
