"""A run's status as Prometheus text, for node_exporter's textfile collector or a scrape by any other way."""

from collections.abc import Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from raystitch.pipeline.status.status import RunStatus, StageWord
from raystitch.pipeline.status.trials import TrialWord


def status_metrics(status: RunStatus) -> str:
    """Return the exposition text of gauges whose names begin with ``raystitch_run_``; the label ``run`` is the run's
    folder or URI."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Metrics(status))
    return generate_latest(registry).decode()


class _Metrics(Collector):
    def __init__(self, status: RunStatus) -> None:
        self.status = status

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield every metric that has a value."""
        status = self.status
        yield self._one("driver_up", "1 while a driver is at work on the run", float(status.at_work))
        yield self._one("finished", "1 when the report shows every trial", float(status.state == "finished"))
        if status.driver is not None:
            yield self._one("driver_lease_age_seconds", "since the driver renewed its lease", status.driver.seconds)
        stages = self._many("stage", "1 for the state that each stage is in", "stage", "state")
        seconds = self._many("stage_seconds", "spent on each stage; of a running one by the driver at work", "stage")
        for stage in status.stages:
            for state in get_args(StageWord):
                stages.add_metric([status.uri, stage.name, state], float(stage.state == state))
            if stage.seconds is not None:
                seconds.add_metric([status.uri, stage.name], stage.seconds)
        yield stages
        yield seconds
        yield self._one("bridges", "accepted bridges made", status.bridges.made)
        yield self._one("bridges_wanted", "accepted bridges asked for", status.bridges.wanted)
        trials = self._many("trials", "trials of the grid by state", "state")
        for word in get_args(TrialWord):
            trials.add_metric([status.uri, word], len(status.trials.of(word)))
        yield trials
        yield self._one("trials_planned", "trials of the grid", len(status.trials.trials))
        labels = ("trial", "cell", "seed")
        step = self._many("trial_step", "step of training that a running trial is at", *labels)
        steps = self._many("trial_steps", "steps of training of a running trial", *labels)
        pace = self._many("trial_steps_per_second", "of a running trial, by the clock on the wall", *labels)
        for one in status.trials.of("running"):
            values = [status.uri, one.trial.trial_id or "", one.cell, str(one.trial.seed)]
            step.add_metric(values, one.step)
            steps.add_metric(values, one.steps)
            if one.steps_per_second is not None:
                pace.add_metric(values, one.steps_per_second)
        yield from (step, steps, pace)
        if status.left.seconds is not None:
            yield self._one("seconds_left", "estimated time of training left", status.left.seconds)

    def _many(self, name: str, about: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"raystitch_run_{name}", about, labels=["run", *labels])

    def _one(self, name: str, about: str, value: float) -> GaugeMetricFamily:
        family = self._many(name, about)
        family.add_metric([self.status.uri], value)
        return family
