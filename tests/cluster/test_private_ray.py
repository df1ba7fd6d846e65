"""The private parts of Ray that raystitch uses: present, looked up in one module, bounded in pyproject.toml."""

import re
import sys
import tomllib
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest
import ray
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from raystitch.cluster import private_ray
from raystitch.cluster.private_ray import NEEDED_FOR, SUPPORTED, lookup
from raystitch.errors import RunError

ROOT = Path(__file__).parents[2]
PRIVATE = re.compile(r"\bray\._[a-z]|ray\.core\.|ray\.[\w.]+ import _|ray\.experimental")


@pytest.mark.parametrize("name", NEEDED_FOR)
def test_this_ray_has(name: str) -> None:
    try:
        lookup(name)
    except RunError as error:
        pytest.fail(f"{name} is gone, which raystitch needs {NEEDED_FOR[name]}: {error}")


def test_every_listed_name_is_used_and_every_used_one_is_listed() -> None:
    source = Path(private_ray.__file__).read_text(encoding="utf-8")
    assert set(re.findall(r'(?:lookup|_replaced)\("([^"]+)"', source)) == set(NEEDED_FOR)


def test_no_other_module_uses_private_names_of_ray() -> None:
    files = [file for folder in ("raystitch", "deploy") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    users = {file.name for file in files if PRIVATE.search(file.read_text(encoding="utf-8"))}
    assert users == {"private_ray.py"}


def test_the_cluster_status_has_the_fields_that_are_read() -> None:
    def names(message: object) -> set[str]:
        return {field.name for field in message.DESCRIPTOR.fields}  # type: ignore[attr-defined]

    reply = lookup("ray.core.generated.autoscaler_pb2:GetClusterStatusReply")()
    state = reply.cluster_resource_state
    pending, node = state.pending_resource_requests.add(), state.node_states.add()
    assert names(reply) >= {"autoscaling_state", "cluster_resource_state"}
    assert names(state) >= {"node_states", "pending_resource_requests"}
    assert names(reply.autoscaling_state) >= {"infeasible_resource_requests"}
    assert names(pending.request) >= {"resources_bundle"}
    assert names(node) >= {"node_ip_address", "total_resources", "available_resources"}


def test_a_name_that_is_missing_is_a_line_and_no_attribute_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("ray._private.state.jobs")
    with pytest.raises(
        RunError,
        match=re.escape(
            f"Ray {ray.__version__} has no ray._private.state.jobs, which raystitch needs to name the other jobs of a "
            f"busy cluster; install a version that it was tried with: pip install 'ray{SUPPORTED}'"
        ),
    ):
        private_ray.cluster_jobs()


def test_a_module_that_is_missing_is_a_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray._private.resource_and_label_spec", None)
    with pytest.raises(RunError, match="needs to know this machine's resources before Ray starts"):
        private_ray.machine_resources()


def test_the_bound_of_the_package_is_the_one_that_is_stated() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (needed,) = [found for text in project["dependencies"] if (found := Requirement(text)).name == "ray"]
    assert needed.specifier == SpecifierSet(SUPPORTED)
    assert needed.specifier.contains(version("ray"))


def test_replaced_names_come_back() -> None:
    from ray._private import ray_constants, utils

    before = ray_constants.ENABLE_RAY_CLUSTER, utils.set_sigterm_handler
    with suppress(KeyError), private_ray.on_loopback(), private_ray.without_sigterm_handler():
        assert ray_constants.ENABLE_RAY_CLUSTER is False
        assert utils.set_sigterm_handler is not before[1]
        raise KeyError
    assert (ray_constants.ENABLE_RAY_CLUSTER, utils.set_sigterm_handler) == before
