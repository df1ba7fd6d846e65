"""KubeRay's objects, the Serve config and the `ray up` files: valid, and what they promise."""

import importlib
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from raystitch.cli import build_parser
from raystitch.config import RunConfig, load_run_config
from raystitch.endpoint.config import EndpointConfig
from raystitch.io.config_file import parse_config

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
    for name, found in overlay.items():
        if found["kind"] in ("Deployment", "StatefulSet"):
            yield name, found["spec"]["template"]["spec"]


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
    (_, cluster), (_, sweep), (_, endpoint) = (deepcopy(one) for one in clusters(overlay))
    assert ("gcsFaultToleranceOptions" in endpoint) == (storage == "production")
    endpoint.pop("gcsFaultToleranceOptions", None)
    # The endpoint's token lies where the endpoint runs, and nowhere else.
    for group in (endpoint["headGroupSpec"], *endpoint["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        container = pod["containers"][0]
        assert container["env"].pop() == {"name": "RAYSTITCH_TOKEN_FILE", "value": "/etc/raystitch/token"}
        assert container["volumeMounts"].pop() == {"name": "token", "mountPath": "/etc/raystitch", "readOnly": True}
        assert pod["volumes"].pop()["secret"]["secretName"] == "raystitch-token"
    assert cluster == endpoint
    assert cluster == sweep


def test_the_service_runs_the_serve_config(overlay: Overlay, deploy: Path, storage: str) -> None:
    file = deploy / ("kuberay/components/s3/serve.yaml" if storage == "s3" else "serve.yaml")
    assert overlay["RayService/raystitch-endpoint"]["spec"]["serveConfigV2"] == file.read_text()


def test_in_a_bucket_the_endpoint_serves_what_the_sweep_has_fitted(
    deploy: Path, rendered: Callable[[Path], Overlay]
) -> None:
    overlay = rendered(deploy / "kuberay/overlays/s3")
    words = overlay["RayJob/raystitch-sweep"]["spec"]["entrypoint"].split()
    run = words[words.index("--out") + 1]
    assert run.startswith("s3://")
    served = yaml.safe_load(overlay["RayService/raystitch-endpoint"]["spec"]["serveConfigV2"])
    elsewhere = yaml.safe_load((deploy / "serve.yaml").read_text())
    for config in (served, elsewhere):
        (application,) = config["applications"]
        (deployment,) = application["deployments"]
        places = {application["args"].pop("stitcher"), deployment["user_config"]["models"]["default"].pop("stitcher")}
        assert places == {f"{run if config is served else '/mnt/raystitch/runs/demo'}/stitcher"}
    assert served == elsewhere


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
        assert pod["securityContext"]["runAsUser"] > 0, name
        assert pod["automountServiceAccountToken"] is False, name
        lives_on = name.startswith(("Deployment/", "StatefulSet/"))
        assert pod.get("restartPolicy") == (None if lives_on else "Never"), name
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            confined = container["securityContext"]
            assert confined["allowPrivilegeEscalation"] is False, name
            assert confined["readOnlyRootFilesystem"] is True, name
            assert confined["capabilities"] == {"drop": ["ALL"]}, name
            assert confined["seccompProfile"] == {"type": "RuntimeDefault"}, name
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= container["resources"][kind].keys(), name
            assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"] or (
                container["name"] == "ray-job-submitter"
            ), name
            assert re.match(r"registry\.example\.com/(raystitch|nginx|redis)[:@]", container["image"]), name


def test_volumes_and_mounts_belong_together(overlay: Overlay, storage: str) -> None:
    for name, pod in pods(overlay):
        there = {volume["name"]: volume for volume in pod.get("volumes", [])}
        there |= {"data": {}} if name == "StatefulSet/raystitch-redis" else {}
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= there.keys(), name
        if "shared" in there:
            assert ("emptyDir" if storage == "s3" else "persistentVolumeClaim") in there["shared"], name
    if storage != "s3":
        assert overlay["PersistentVolumeClaim/raystitch"]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_what_ray_and_raystitch_write_to_can_be_written_to(overlay: Overlay) -> None:
    for name, pod in pods(overlay):
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        writable = {
            mount["mountPath"]
            for mount in pod["containers"][0]["volumeMounts"]
            if not mount.get("readOnly") and "configMap" not in volumes.get(mount["name"], {})
        }
        if name.split()[0] in ("cluster", "sweep", "endpoint"):
            assert writable == {"/mnt/raystitch", "/tmp", "/home/ray", "/home/ray/.cache"}, name
        else:
            assert writable == ({"/data"} if "redis" in name else {"/tmp"}), name


def test_kubernetes_api_is_for_the_autoscaler_alone(overlay: Overlay) -> None:
    mounted = "/var/run/secrets/kubernetes.io/serviceaccount"
    for name, cluster in clusters(overlay):
        (mount,) = [one for one in cluster["autoscalerOptions"]["volumeMounts"] if one["mountPath"] == mounted]
        head = cluster["headGroupSpec"]["template"]["spec"]
        (volume,) = [one for one in head["volumes"] if one["name"] == mount["name"]]
        files = yaml.safe_dump(volume["projected"])
        assert all(f"path: {file}" in files for file in ("token", "ca.crt", "namespace")), name
        # Nothing that a job's driver could write to is read by the autoscaler, such as a home with a usercustomize.py.
        theirs = {one["name"] for one in head["containers"][0]["volumeMounts"]}
        assert theirs.isdisjoint(one["name"] for one in cluster["autoscalerOptions"]["volumeMounts"]), name
    for name, pod in pods(overlay):
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert mounted not in {mount["mountPath"] for mount in container.get("volumeMounts", [])}, name


def objects(overlay: Overlay, kind: str) -> list[dict[str, Any]]:
    return [found for found in overlay.values() if found["kind"] == kind]


def peers(rule: dict[str, Any], direction: str) -> list[str]:
    """Values of the labels that a rule of a NetworkPolicy lets in or out to; ["all"] for everybody."""
    found = [
        value
        for peer in rule.get(direction, [])
        for value in [
            *peer.get("podSelector", {}).get("matchLabels", {}).values(),
            *(v for e in peer.get("podSelector", {}).get("matchExpressions", []) for v in e["values"]),
        ]
    ]
    assert len(found) >= len(rule.get(direction, [])), f"a peer without labels is everybody: {rule}"
    return found or ["all"]


def test_nobody_but_the_ingress_reaches_port_8000(overlay: Overlay) -> None:
    reached: dict[int | None, set[str]] = {}
    nodes = overlay["NetworkPolicy/raystitch"]["spec"]
    assert nodes["policyTypes"] == ["Ingress", "Egress"]
    assert nodes["podSelector"] == {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    for rule in nodes["ingress"]:
        for port in rule.get("ports", [{"port": None}]):
            reached.setdefault(port["port"], set()).update(peers(rule, "from"))
    assert reached == {
        None: {"yes"},
        8265: {"submitter", "kuberay-operator"},
        8000: {"ingress", "kuberay-operator"},
        8080: {"prometheus"},
    }
    assert "ports" not in overlay["RayCluster/raystitch"]["spec"]["headGroupSpec"].get("headService", {})
    for _, cluster in clusters(overlay):
        assert cluster["headGroupSpec"].get("serviceType", "ClusterIP") == "ClusterIP"
    for service in objects(overlay, "Service"):
        assert service["spec"].get("type", "ClusterIP") == "ClusterIP"
    # All pods that are not Ray's have a policy of their own.
    covered = [one["spec"]["podSelector"] for one in objects(overlay, "NetworkPolicy")]
    for found in [*objects(overlay, "Deployment"), *objects(overlay, "StatefulSet")]:
        assert {"matchLabels": found["spec"]["template"]["metadata"]["labels"]} in covered
    submitter = overlay["RayJob/raystitch-sweep"]["spec"]["submitterPodTemplate"]["metadata"]["labels"]
    assert {"matchLabels": submitter} in covered


def test_what_leaves_the_namespace(overlay: Overlay, storage: str) -> None:
    leaving: dict[str, set[int]] = {}
    for policy in objects(overlay, "NetworkPolicy"):
        assert "Egress" in policy["spec"]["policyTypes"]
        ports = {
            port["port"]
            for rule in policy["spec"].get("egress", [])
            if peers(rule, "to") == ["all"]
            for port in rule["ports"]
        }
        leaving[policy["metadata"]["name"]] = ports - {53}
    assert leaving.pop("raystitch-head") == {443, 6443}
    assert leaving.pop("raystitch-bucket", set()) == ({443} if storage == "s3" else set())
    assert set().union(*leaving.values()) == set()


def test_a_node_can_be_lost(overlay: Overlay, deploy: Path) -> None:
    (application,) = yaml.safe_load((deploy / "serve.yaml").read_text())["applications"]
    (deployment,) = application["deployments"]
    assert deployment["max_replicas_per_node"] < deployment["autoscaling_config"]["min_replicas"]
    budgets = {one["metadata"]["name"]: one["spec"] for one in objects(overlay, "PodDisruptionBudget")}
    assert budgets["raystitch-endpoint"]["selector"] == {"matchLabels": {"ray.io/serve": "true"}}
    # Kubernetes knows no scale of KubeRay's objects, which maxUnavailable and shares are reckoned from.
    assert budgets["raystitch-endpoint"]["minAvailable"] < deployment["autoscaling_config"]["min_replicas"]
    ingress = overlay["Deployment/raystitch-ingress"]["spec"]
    assert budgets["raystitch-ingress"]["maxUnavailable"] < ingress["replicas"]
    spread = [pod["topologySpreadConstraints"] for name, pod in pods(overlay) if name.split()[-1] in ("cpu", "gpu")]
    assert len(spread) == 6
    for constraints in [*spread, ingress["template"]["spec"]["topologySpreadConstraints"]]:
        assert "kubernetes.io/hostname" in {one["topologyKey"] for one in constraints}


def test_the_ingress_runs_the_shipped_configuration(overlay: Overlay, deploy: Path) -> None:
    pod = overlay["Deployment/raystitch-ingress"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    config = overlay[f"ConfigMap/{volumes['config']['configMap']['name']}"]
    text = config["data"]["nginx.conf"]
    assert text == (deploy / "ingress/nginx.conf").read_text()
    assert container["command"][-4:] == ["-p", "/tmp", "-c", "/etc/raystitch/nginx.conf"]
    listened = {int(port) for port in re.findall(r"listen (\d+)", text)}
    assert {port["containerPort"] for port in container["ports"]} == listened
    service = overlay["RayService/raystitch-endpoint"]["metadata"]["name"]
    assert f"server {service}-serve-svc:8000;" in text
    # All bodies that it takes at once have room.
    bodies, size = re.findall(r"limit_conn stitching (\d+)|client_max_body_size (\d+)m", text)
    assert volumes["tmp"]["emptyDir"]["sizeLimit"] == "9Gi"
    assert int(size[1] or bodies[1]) * int(bodies[0] or size[0]) <= 8 * 1024


def test_production_names_images_by_digest(check: ModuleType, deploy: Path, tmp_path: Path) -> None:
    copy = tmp_path / "kuberay"
    shutil.copytree(deploy / "kuberay", copy)
    file = copy / "overlays/production/kustomization.yaml"

    def problems() -> list[str]:
        checker = check.Checker({}, check.KUBERNETES)
        checker.path(file.parent)
        return checker.report.problems

    assert problems() == []
    file.write_text(
        re.sub(r'newName: (\S+)/nginx, digest: "[^"]*"', r'newName: \1/nginx, newTag: "1.28"', file.read_text())
    )
    (problem,) = problems()
    assert "Deployment/raystitch-ingress" in problem
    assert "'registry.example.com/nginx:1.28' is not named by digest" in problem


def test_objects_can_be_applied_by_what_they_are_for(overlay: Overlay) -> None:
    parts = {"common", "cluster", "sweep", "endpoint", "ingress"}
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


def test_custom_resources_that_jobs_ask_for_exist(overlay: Overlay) -> None:
    asked, given = asked_and_given(overlay["RayJob/raystitch-sweep"]["spec"])
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
    assert args.out in ("/mnt/raystitch/runs/demo", "s3://my-bucket/raystitch/runs/demo")
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
    assert replace(config, allowed_hosts=(), trusted_proxies=()) == parse_config(built.user_config, EndpointConfig)
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
