"""KubeRay's objects, the Serve config and the `ray up` files: valid, and what they promise."""

import importlib
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from raystitch.cli import build_parser
from raystitch.config import RunConfig, load_run_config
from raystitch.config_file import parse_config
from raystitch.endpoint.config import EndpointConfig

Overlay = dict[str, dict[str, Any]]
ROOT = Path(__file__).parents[2]


def clusters(overlay: Overlay) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "cluster", overlay["RayCluster/raystitch"]["spec"]
    yield "sweep", overlay["RayJob/raystitch-sweep"]["spec"]["rayClusterSpec"]
    yield "endpoint", overlay["RayService/raystitch-endpoint"]["spec"]["rayClusterConfig"]


def pods(overlay: Overlay) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, cluster in clusters(overlay):
        yield f"{name} head", cluster["headGroupSpec"]["template"]["spec"]
        for group in cluster["workerGroupSpecs"]:
            yield f"{name} {group['groupName']}", group["template"]["spec"]
    yield "submitter", overlay["RayJob/raystitch-sweep"]["spec"]["submitterPodTemplate"]["spec"]


def test_everything_in_deploy_is_valid(check: ModuleType, deploy: Path) -> None:
    checker = check.Checker({}, check.KUBERNETES)
    for name in check.DEFAULTS:
        paths = list(deploy.glob(name))
        assert paths, name
        for path in paths:
            checker.path(path)
    assert checker.report.problems == []


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_the_overlays_pass_kuberays_definitions(check: ModuleType, crds: Any, overlay: Overlay, version: str) -> None:
    checker = check.Checker(crds, version)
    for name, found in overlay.items():
        checker.text(yaml.safe_dump(found), name)
    assert checker.report.problems == []
    assert checker.report.notes == []
    assert checker.report.checked > 15


def test_a_misspelt_field_is_found_in_every_object(check: ModuleType, crds: Any, overlay: Overlay) -> None:
    for text, place in (
        ("idleTimeoutSeconds", "autoscalerOptions"),
        ("containerPort", "ports"),
        ("secretName: raystitch-ray-token", "authOptions"),
    ):
        for kind in ("RayCluster/raystitch", "RayJob/raystitch-sweep", "RayService/raystitch-endpoint"):
            checker = check.Checker(crds, check.KUBERNETES)
            checker.text(yaml.safe_dump(overlay[kind]).replace(text, f"x{text}"), "f")
            assert any(place in line for line in checker.report.problems), (kind, text)


def test_the_clusters_are_one(overlay: Overlay, storage: str) -> None:
    (_, cluster), (_, sweep), (_, endpoint) = clusters(overlay)
    assert cluster == endpoint
    if storage == "s3":  # one node, as nodes see no files of each other
        assert [group["maxReplicas"] for group in sweep["workerGroupSpecs"]] == [1, 0]
        for theirs, ours in zip(sweep["workerGroupSpecs"], cluster["workerGroupSpecs"], strict=True):
            theirs["maxReplicas"] = ours["maxReplicas"]
    assert cluster == sweep


def test_the_service_runs_the_serve_config(overlay: Overlay, deploy: Path) -> None:
    assert overlay["RayService/raystitch-endpoint"]["spec"]["serveConfigV2"] == (deploy / "serve.yaml").read_text()


def test_the_head_computes_nothing_and_gpus_start_from_zero(overlay: Overlay) -> None:
    for name, cluster in clusters(overlay):
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", name
        assert cluster["enableInTreeAutoscaling"], name
        assert cluster["authOptions"]["mode"] == "token", name
        with_gpu = 0
        for group in cluster["workerGroupSpecs"]:
            assert group["minReplicas"] <= group["replicas"] <= max(group["maxReplicas"], group["minReplicas"]), name
            resources = group["template"]["spec"]["containers"][0]["resources"]
            if "nvidia.com/gpu" in resources["limits"]:
                assert (group["minReplicas"], group["replicas"]) == (0, 0), name
                assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"], name
                with_gpu += 1
        assert with_gpu, name


def test_every_container_is_confined_and_says_what_it_needs(overlay: Overlay) -> None:
    for name, pod in pods(overlay):
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["restartPolicy"] == "Never", name
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            confined = container["securityContext"]
            assert confined["allowPrivilegeEscalation"] is False, name
            assert confined["capabilities"] == {"drop": ["ALL"]}, name
            assert confined["seccompProfile"] == {"type": "RuntimeDefault"}, name
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= container["resources"][kind].keys(), name
            assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"] or (
                container["name"] in ("ray-job-submitter", "fetch")
            ), name
            assert container["image"].startswith("registry.example.com/raystitch:"), name


def test_volumes_and_mounts_belong_together(overlay: Overlay, storage: str) -> None:
    for name, pod in pods(overlay):
        there = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= there.keys(), name
        if name == "submitter":
            continue
        shared = "persistentVolumeClaim" if storage == "pvc" else "emptyDir"
        assert shared in there["shared"], name
        assert there["token"]["secret"]["secretName"] == "raystitch-token"
    if storage == "pvc":
        assert overlay["PersistentVolumeClaim/raystitch"]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_objects_can_be_applied_by_what_they_are_for(overlay: Overlay) -> None:
    parts = {"common", "cluster", "sweep", "endpoint"}
    found = [one["metadata"] for one in overlay.values()]
    assert {one["labels"]["app.kubernetes.io/component"] for one in found} == parts
    assert {one["namespace"] for one in found} == {"raystitch"}


def asked_and_given(job: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Custom resources that a job's driver asks for, and those of nodes that its cluster can have."""
    given: set[str] = set()
    for group in job["rayClusterSpec"]["workerGroupSpecs"]:
        # Quoted for the shell that runs `ray start`, then JSON.
        text = yaml.safe_load(group["rayStartParams"]["resources"])
        given |= set(yaml.safe_load(text)) if group["maxReplicas"] else set()
    return set(yaml.safe_load(job.get("entrypointResources", "{}"))), given


def test_custom_resources_that_jobs_ask_for_exist(overlay: Overlay, storage: str) -> None:
    asked, given = asked_and_given(overlay["RayJob/raystitch-sweep"]["spec"])
    assert asked == ({"cpu_node"} if storage == "s3" else set())
    assert asked <= given


def test_a_sweep_on_gpus_starts_on_a_gpu_node(
    deploy: Path, tmp_path: Path, rendered: Callable[[Path], Overlay]
) -> None:
    copy = tmp_path / "kuberay"
    shutil.copytree(deploy / "kuberay", copy)
    file = copy / "overlays/pvc/kustomization.yaml"
    before = file.read_text()
    file.write_text(before.replace("  # - ../../components/gpu", "  - ../../components/gpu"))
    assert file.read_text() != before
    job = rendered(file.parent)["RayJob/raystitch-sweep"]["spec"]
    asked, given = asked_and_given(job)
    assert asked == {"gpu_node"}
    assert asked <= given
    assert sweep_config(job["entrypoint"]).resources.trial_gpus == 0.25


def sweep_config(entrypoint: str) -> RunConfig:
    """The configuration that a job's command line asks for, parsed as the command would."""
    words = shlex.split(entrypoint)
    args = build_parser().parse_args(words[words.index("raystitch") + 1 :])
    assert args.command == "sweep"
    assert args.out == "/mnt/raystitch/runs/demo"
    return load_run_config(args.config, args.set)


def test_the_job_is_a_sweep_that_raystitch_understands(overlay: Overlay) -> None:
    assert sweep_config(overlay["RayJob/raystitch-sweep"]["spec"]["entrypoint"]).dataset == "demo:pointmaze"


def test_the_serve_config_says_what_the_application_does_by_itself(deploy: Path) -> None:
    (application,) = yaml.safe_load((deploy / "serve.yaml").read_text())["applications"]
    (deployment,) = application["deployments"]
    module, name = application["import_path"].split(":")
    # Arguments alone would serve the same: the application fits the demo's models where they name none.
    built = getattr(importlib.import_module(module), name)(application["args"])._bound_deployment
    assert deployment["name"] == built.name
    config = parse_config(deployment["user_config"], EndpointConfig)
    # By which names a cluster calls it, the application does not know.
    assert replace(config, allowed_hosts=()) == parse_config(built.user_config, EndpointConfig)
    for name in ("max_ongoing_requests", "max_queued_requests"):
        assert deployment[name] == getattr(built, name), name
    ours = built._deployment_config
    for name in ("health_check_period_s", "health_check_timeout_s", "graceful_shutdown_timeout_s"):
        assert deployment[name] == getattr(ours, name), name
    assert deployment["backpressure_config"] == {"status_code": 429, "retry_after_s": 1}


def test_versions_are_the_pinned_ones(overlay: Overlay) -> None:
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for _, cluster in clusters(overlay):
        assert cluster["rayVersion"] == pinned["ray"]
