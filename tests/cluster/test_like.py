"""Plans for clusters that are not at hand."""

from dataclasses import replace
from typing import Any

import pytest

from raystitch.cluster.resources import fit_held, machines_of
from raystitch.config import RunConfig, load_run_config
from raystitch.data.episodes import EpisodeDataset
from raystitch.errors import UserError
from raystitch.pipeline.trials.cost import estimate, plan_groups
from raystitch.pipeline.trials.like import parse_cluster
from raystitch.pipeline.trials.plan import plan
from raystitch.pipeline.trials.rehearsal import RunPace


class Steady(dict[Any, float]):
    """A pace that is the same for all algorithms and for any number of seeds."""

    def __missing__(self, key: Any) -> float:
        return 0.01


PACE = RunPace(fit=60.0, candidate=0.005, group_step=Steady(), episode=Steady(), environment=0.01)


def config(**resources: Any) -> RunConfig:
    asked = load_run_config("smoke", ["seeds=[0,1,2,3]"])
    return replace(asked, resources=replace(asked.resources, **resources))


@pytest.mark.parametrize(
    ("text", "nodes", "cpus", "gpus"),
    [
        ("4x(16 CPU, 1 GPU)", 4, 64, 4),
        ("2x(64 CPU)", 2, 128, 0),
        ("1x(8 CPU)+4x(16 CPU, 1 GPU)", 5, 72, 4),
        (" 1X( 8 cpus , 0.5 gpu ) + 2 x (1 CPU, 64 GiB)", 3, 10, 0.5),
    ],
)
def test_clusters_are_read_as_they_are_written(text: str, nodes: int, cpus: float, gpus: float) -> None:
    cluster = parse_cluster(text)
    assert (len(cluster.nodes), cluster.cpus, cluster.gpus) == (nodes, cpus, gpus)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no number of nodes"),
        ("4x16", "'4x16' is no number of nodes"),
        ("4x(16 CPU)+", "'' is no number of nodes"),
        ("4x(16 TPU)", "'16 TPU' in '4x(16 TPU)' is neither"),
        ("4x()", "'' in '4x()' is neither"),
        ("0x(4 CPU)", "has 0 nodes"),
        ("1x(2 GPU)", "has no CPU"),
        ("1x(0.5 CPU)", "has no CPU"),
        ("1x(2 CPU, 4 CPU)", "says CPU twice"),
        ("99999999x(2 CPU)", "write 1 to 10,000"),
    ],
)
def test_what_is_no_cluster_is_refused_with_an_example(text: str, says: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_cluster(text)
    assert says in str(refused.value)
    assert '"4x(16 CPU, 1 GPU)"' in str(refused.value)


def test_groups_run_side_by_side_as_far_as_cpus_gpus_and_memory_go(drift: EpisodeDataset) -> None:
    def slots(text: str, **resources: Any) -> int:
        return machines_of(config(**resources), drift, parse_cluster(text)).slots

    assert slots("4x(16 CPU, 1 GPU)") == 64
    assert slots("4x(16 CPU, 1 GPU)", trial_cpus=3) == 20  # five on each; nobody gets CPUs of two machines
    assert slots("4x(16 CPU, 1 GPU)", trial_gpus=0.25) == 16
    assert slots("4x(16 CPU, 1 GPU)", max_concurrent_trials=5) == 5
    assert slots("2x(64 CPU, 8 GiB)", trial_memory_gib=2) == 8
    assert slots("2x(64 CPU, 8 GiB)", trial_memory_gib="auto") < 128
    assert slots("2x(64 CPU)", trial_memory_gib=2) == 128


def test_what_fits_on_no_node_is_refused(drift: EpisodeDataset) -> None:
    for resources, says in (
        ({"trial_gpus": 1.0}, "no node of 2x(4 CPU) has what a trial asks for: CPU 1, GPU 1"),
        ({"trial_cpus": 8.0}, "no node of 2x(4 CPU) has what a trial asks for: CPU 8"),
        ({"device": "cuda"}, "no node of 2x(4 CPU) has what fit asks for"),
    ):
        with pytest.raises(UserError, match=says.replace("(", r"\(").replace(")", r"\)")):
            machines_of(config(**resources), drift, parse_cluster("2x(4 CPU)"))


def test_more_machines_take_less_time_and_about_as_many_core_hours(drift: EpisodeDataset) -> None:
    asked = config(stacked_seeds=1)
    found = []
    for text in ("1x(2 CPU)", "2x(16 CPU)"):
        machines = machines_of(asked, drift, parse_cluster(text))
        found.append(estimate(asked, plan_groups(asked.resources, plan(asked), machines.slots), machines, PACE))
    few, many = found
    assert many["trials"].seconds < few["trials"].seconds / 4
    assert many["trials"].core_seconds == pytest.approx(few["trials"].core_seconds)
    assert many["augment"].seconds < few["augment"].seconds
    assert all(cost.gpu_seconds == 0 for cost in many.values())


def test_gpus_are_held_where_they_are_asked_for(drift: EpisodeDataset) -> None:
    asked = config(trial_gpus=0.5)
    machines = machines_of(asked, drift, parse_cluster("1x(8 CPU)+1x(4 CPU, 1 GPU)"))
    costs = estimate(asked, plan_groups(asked.resources, plan(asked), machines.slots), machines, PACE)
    assert costs["trials"].gpu_seconds == pytest.approx(0.5 * costs["trials"].core_seconds)
    assert (machines.fit_cpus, machines.fit_gpus) == (4, 1)
    assert costs["fit"].gpu_seconds == 60


def test_a_fit_holds_the_node_that_it_goes_to() -> None:
    nodes = [{"CPU": 16.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 2.0}]
    assert fit_held("auto", nodes) == fit_held("cuda", nodes) == (8, 1)
    assert fit_held("cpu", nodes) == (16, 0)
    assert fit_held("auto", nodes[:1]) == (16, 0)
    assert fit_held("auto", [{"CPU": 0.5}]) == (1, 0)
