"""The checker finds what is wrong and says where; tried on definitions and files small enough to see through."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: rayclusters.ray.io}
spec:
  group: ray.io
  names: {kind: RayCluster}
  versions:
    - name: v1
      schema:
        openAPIV3Schema:
          type: object
          properties:
            apiVersion: {type: string}
            kind: {type: string}
            metadata: {type: object}
            spec:
              type: object
              required: [size]
              properties:
                size: {anyOf: [{type: integer}, {type: string}], x-kubernetes-int-or-string: true}
                free: {type: object, x-kubernetes-preserve-unknown-fields: true, properties: {a: {type: string}}}
                labels: {type: object, additionalProperties: {type: string}}
                properties: {type: object, properties: {a: {type: string}}}
                template: {type: object, x-kubernetes-preserve-unknown-fields: true}
"""


@pytest.fixture
def definitions(tmp_path: Path) -> Path:
    folder = tmp_path / "crds"
    folder.mkdir()
    (folder / "clusters.yaml").write_text(CRD)
    return folder


def problems(check: ModuleType, text: str, crds: Path | None = None) -> list[str]:
    checker = check.Checker({} if crds is None else check.load_crds(crds), "1.33")
    checker.text(text, "f")
    return checker.report.problems


def cluster(**spec: Any) -> str:
    return yaml.safe_dump({"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "c"}, "spec": spec})


def test_what_a_definition_allows_is_allowed(check: ModuleType, definitions: Path) -> None:
    good = cluster(size="2", free={"b": 1}, labels={"x": "y"}, properties={"a": "b"})
    assert problems(check, good, definitions) == []


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            {"size": 1, "sise": 2},
            "f: RayCluster/c: spec: Additional properties are not allowed ('sise' was unexpected)",
        ),
        (
            {"size": 1, "properties": {"c": 1}},
            "f: RayCluster/c: spec.properties: Additional properties are not allowed",
        ),
        ({"size": [1]}, "f: RayCluster/c: spec.size: [1] is not"),
        ({"labels": {"a": 1}, "size": 1}, "f: RayCluster/c: spec.labels.a: 1 is not of type 'string'"),
        ({}, "f: RayCluster/c: spec: 'size' is a required property"),
        (
            {"size": 1, "template": {"spec": {"containers": [{"name": "a", "image": "b", "imagePullPolice": "c"}]}}},
            "f: RayCluster/c: spec.template: spec.containers[0]: Additional properties are not allowed",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_field(
    check: ModuleType, definitions: Path, spec: dict[str, Any], said: str
) -> None:
    found = problems(check, cluster(**spec), definitions)
    assert [line for line in found if line.startswith(said)], found


def test_a_kind_without_a_definition_is_refused_where_there_are_definitions(
    check: ModuleType, definitions: Path
) -> None:
    text = cluster(size=1).replace("RayCluster", "RayClutser")
    assert problems(check, text, definitions) == ["f: RayClutser/c: no definition of ray.io/v1 RayClutser in --crds"]


def test_kubernetes_own_objects_are_strict(check: ModuleType) -> None:
    text = "{apiVersion: v1, kind: ServiceAccount, metadata: {name: a, label: {}}}"
    assert problems(check, text)[0].startswith("f: ServiceAccount/a: metadata: Additional properties")


SERVE = "applications: [{name: a, import_path: 'a:b', deployments: [{name: D, %s}]}]"


@pytest.mark.parametrize(
    ("deployment", "said"),
    [
        ("max_queued_request: 5", "f: applications[0].deployments[0]: Additional properties are not allowed"),
        ("max_ongoing_requests: 0", "f: applications[0].deployments[0].max_ongoing_requests: "),
        ("num_replicas: 2, autoscaling_config: {min_replicas: 1}", "f: applications[0].deployments[0]: Value error"),
        ("backpressure_config: {status_code: 418}", "f: applications[0].deployments[0].backpressure_config"),
    ],
)
def test_serve_configs_are_checked_beyond_what_ray_refuses(check: ModuleType, deployment: str, said: str) -> None:
    found = problems(check, SERVE % deployment)
    assert [line for line in found if line.startswith(said)], found


def test_ray_up_files_are_checked(check: ModuleType, deploy: Path) -> None:
    text = (deploy / "cluster-cloud.yaml").read_text()
    assert problems(check, text) == []
    found = problems(check, text.replace("max_workers: 4", "max_worker: 4"))
    assert any("available_node_types.gpu: Additional properties" in line for line in found), found
    assert any("head_node_type" in line for line in problems(check, text.replace("head_node_type: head", "")))


@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx (apt-get install nginx-light)")
def test_nginx_files_are_checked(check: ModuleType, deploy: Path, tmp_path: Path) -> None:
    file = tmp_path / "nginx.conf"
    text = (deploy / "ingress/nginx.conf").read_text()
    for wrong, said in (("", ""), ("server_tokens", "server_token"), ("limit_conn connections", "limit_conn unknown")):
        file.write_text(text.replace(wrong, said))
        checker = check.Checker({}, check.KUBERNETES)
        checker.path(file)
        assert bool(checker.report.problems) == bool(wrong), wrong
        assert all(said.split()[-1] in line for line in checker.report.problems)


def test_images_without_a_digest_are_refused_where_asked(check: ModuleType) -> None:
    pod = "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: b, image: %s}]}}"
    for image, count in (("c:1", 1), (f"c@sha256:{64 * '0'}", 0), (f"c:1@sha256:{64 * 'f'}", 0)):
        checker = check.Checker({}, check.KUBERNETES, digests=True)
        checker.text(pod % image, "f")
        assert len(checker.report.problems) == count, image
        assert problems(check, pod % image) == []


def test_the_command_exits_with_what_it_found(deploy: Path, tmp_path: Path, definitions: Path) -> None:
    def run(*args: str, text: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(deploy / "check.py"), *args]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False)

    wrong = run("--crds", str(definitions), "-", text=cluster(size=1, sise=2))
    assert wrong.returncode == 1
    assert "stdin: RayCluster/c: spec: Additional properties" in wrong.stdout
    unchecked = run("-", text=cluster(sise=2))
    assert unchecked.returncode == 0
    assert "not checked: fields of KubeRay's objects, without --crds" in unchecked.stderr
    empty = run("--crds", str(tmp_path), "-")
    assert empty.returncode == 2
    assert "no CustomResourceDefinition" in empty.stderr
    assert run(str(tmp_path / "missing.yaml")).returncode == 2
