"""The dashboard asks for metrics that exist, with the labels that they have; Prometheus finds who exports them."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KINDS = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}
"""What Ray's agent appends to a metric's name."""
METRIC = re.compile(r"\bray_raystitch_\w+")


def declared(module: str) -> dict[str, set[str]]:
    """Exported name -> labels of every metric that a module of raystitch.cluster makes, read in its source."""
    tree = ast.parse((ROOT / "raystitch" / "cluster" / module).read_text())
    values: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=True))
                values |= {name.id: value for name, value in pairs if isinstance(name, ast.Name)}

    def text(node: ast.AST) -> str:
        """Of a string, a name of one, or an f-string of both."""
        if isinstance(node, ast.JoinedStr):
            return "".join(text(part) for part in node.values)
        if isinstance(node, ast.FormattedValue):
            return text(node.value)
        if isinstance(node, ast.Name):
            return text(values[node.id])
        assert isinstance(node, ast.Constant), ast.dump(node)
        return str(node.value)

    def labels(node: ast.AST) -> set[str]:
        if isinstance(node, ast.Name):
            return labels(values[node.id])
        if isinstance(node, ast.Starred):
            return labels(node.value)
        if isinstance(node, ast.Tuple):
            return set().union(*(labels(part) for part in node.elts))
        return {text(node)} if isinstance(node, ast.Constant) else set()

    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in KINDS:
            continue
        keys = [keyword.value for keyword in node.keywords if keyword.arg == "tag_keys"] or node.args[2:][-1:]
        for ending in KINDS[node.func.id]:
            name = f"ray_{text(node.args[0])}"
            found[name.removesuffix(ending) + ending] = labels(keys[0]) if keys else set()
    return found


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    return declared("metrics.py") | declared("serve/metrics.py")


@pytest.fixture(scope="module")
def dashboard(deploy: Path) -> dict[str, Any]:
    return json.loads((deploy / "grafana-dashboard.json").read_text())


def expressions(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


def test_the_sources_are_read(exported: dict[str, set[str]]) -> None:
    assert exported["ray_raystitch_augment_shards_total"] == {"buffer", "outcome"}
    assert exported["ray_raystitch_augment_bridges_wanted"] == {"buffer"}
    assert exported["ray_raystitch_serve_requests_total"] == {"outcome"}
    assert "ray_raystitch_serve_sampler_seconds_bucket" in exported


def test_every_metric_of_the_dashboard_is_exported(dashboard: dict[str, Any], exported: dict[str, set[str]]) -> None:
    asked = {name for _, text in expressions(dashboard) for name in METRIC.findall(text)}
    assert asked
    assert asked - exported.keys() == set()
    # And it shows all there is: of a histogram, something.
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in asked}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in exported} - shown == set()


def test_labels_are_those_of_the_metrics(dashboard: dict[str, Any], exported: dict[str, set[str]]) -> None:
    for title, text in expressions(dashboard):
        known = {"le"}.union(*(exported[name] for name in METRIC.findall(text)))
        used = set(re.findall(r"(\w+)=~?\"", text))
        for group in re.findall(r"by \(([\w, ]+)\)", text):
            used |= {label.strip() for label in group.split(",")}
        assert used <= known, title
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert label in target["expr"], panel["title"]


def test_counters_are_rates_and_brackets_close(dashboard: dict[str, Any]) -> None:
    for title, text in expressions(dashboard):
        assert all(text.count(a) == text.count(b) for a, b in ("()", "[]", "{}")), title
        for name in METRIC.findall(text):
            if name.endswith(("_total", "_bucket", "_sum", "_count")):
                assert re.search(rf"(rate|increase)\({name}", text), title


def test_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not taken & cells, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_prometheus_looks_where_the_cluster_exports(deploy: Path) -> None:
    config = yaml.safe_load((deploy / "prometheus.yaml").read_text())
    kuberay, ray_up = config["scrape_configs"]
    kept = {tuple(rule["source_labels"]): rule["regex"] for rule in kuberay["relabel_configs"] if "action" in rule}
    cluster = yaml.safe_load((deploy / "kuberay/base/raycluster.yaml").read_text())["spec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        ports = group["template"]["spec"]["containers"][0]["ports"]
        assert {"name": kept[("__meta_kubernetes_pod_container_port_name",)], "containerPort": 8080} in ports
    for file in ("cluster-cloud.yaml", "cluster-onprem.yaml"):
        commands = yaml.safe_load((deploy / file).read_text())
        for kind in ("head", "worker"):
            assert any("--metrics-export-port=8080" in line for line in commands[f"{kind}_start_ray_commands"])
    (service,) = ray_up["http_sd_configs"]
    # The file is where the `ray up` files put the token.
    assert service["authorization"]["credentials_file"] in commands["file_mounts"]
