"""What is made sure of before a Ray of a command's own is started, and what others can reach of it then."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raystitch.cluster.local_ray import check_temp_folder, ensure_token
from raystitch.errors import UserError
from tests.cluster.test_attach import ATTACH

STARTED = """
import json, os, subprocess, sys
import ray
from raystitch.cluster.runtime import ensure_ray

PROBE = "import sys; from raystitch.cluster.runtime import _probe; _probe(sys.argv[1], 'it')"

with ensure_ray(num_cpus=1, object_store_gib=0.1):
    ray.get(ray.remote(lambda: None).remote())
    listening = subprocess.run(["ss", "-Htln"], capture_output=True, text=True, check=True).stdout
    address = ray.get_runtime_context().gcs_address
    # A stranger: without the token.
    stranger = subprocess.run(
        [sys.executable, "-c", PROBE, address],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
    ).stderr
print(json.dumps({"listening": [line.split()[3] for line in listening.splitlines()], "stranger": stranger}))
"""
NETWORK = """
set -e
ip link set lo up
ip link add v0 type veth peer name v1
ip addr add 10.99.0.1/24 dev v0
ip link set v0 up
ip link set v1 up
ip route add default via 10.99.0.2
exec "$@"
"""


def in_namespace(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A process with a mount table and a network of its own; skips where that is not permitted."""
    if subprocess.run(["unshare", "-m", "-n", "true"], capture_output=True).returncode:
        pytest.skip("namespaces are not permitted here")
    return subprocess.run(
        ["unshare", "-m", "-n", *command], capture_output=True, text=True, timeout=120, check=False, **options
    )


def test_others_reach_nothing_of_it_and_need_its_token(tmp_path: Path) -> None:
    """On a machine with a network: by itself Ray listens on all of its addresses."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment["HOME"] = str(tmp_path)
    done = in_namespace("sh", "-c", NETWORK, "sh", sys.executable, "-c", STARTED, env=environment)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert len(said["listening"]) >= 8
    reached = [address for address in said["listening"] if "127.0.0.1" not in address and "[::1]" not in address]
    assert reached == []
    assert "asks for its token" in said["stranger"]
    token = tmp_path / ".ray" / "auth_token"
    assert (token.stat().st_mode & 0o777, token.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        # Set first, so that what is set in a test is taken back.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_token_that_is_there_is_kept(home: Path) -> None:
    file = home / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("mine")
    ensure_token()
    assert file.read_text() == "mine"
    assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.parametrize("setting", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "mine"}])
def test_a_user_s_own_setting_wins(home: Path, monkeypatch: pytest.MonkeyPatch, setting: dict[str, str]) -> None:
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    ensure_token()
    assert not (home / ".ray").exists()


def test_a_token_s_file_that_is_not_there_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "none"))
    with pytest.raises(UserError, match=r"RAY_AUTH_TOKEN_PATH=.*/none: there is no such file"):
        ensure_token()


def test_where_no_file_can_be_kept_the_token_is_this_command_s_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("HOME", str(home / "file"))  # no folder can be made below it, whoever tries
    ensure_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_a_path_too_long_for_sockets_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("long-" * 12)))
    # A process of its own: this one may hold a Ray already, which would be used.
    done = subprocess.run(
        [sys.executable, "-c", ATTACH, "local"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "is too long a path for Ray's temporary folder: its sockets would have paths of " in line
    assert line.endswith("the system takes 107; set RAY_TMPDIR to a short path with room, such as RAY_TMPDIR=/tmp")


def test_the_longest_path_that_ray_takes_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray itself measures it."""
    from ray._private.utils import validate_socket_filepath

    session = f"ray/session_2026-11-28_22-45-00_123456_{os.getpid()}/sockets/plasma_store"
    longest = "/tmp/" + "x" * (107 - len("/tmp/") - len(session) - 1)
    validate_socket_filepath(f"{longest}/{session}")
    monkeypatch.setenv("RAY_TMPDIR", longest)
    try:
        check_temp_folder()
    finally:
        os.rmdir(f"{longest}/ray")
        os.rmdir(longest)
    monkeypatch.setenv("RAY_TMPDIR", f"{longest}x")
    with pytest.raises(UserError, match="too long a path"):
        check_temp_folder()


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path Ray's sockets can lie below."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as name:
        yield Path(name)


def test_a_folder_that_cannot_be_written_is_a_line(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (short / "f").write_text("")
    monkeypatch.setenv("RAY_TMPDIR", str(short / "f"))
    with pytest.raises(
        UserError, match=r"RAY_TMPDIR=.*/f: Ray cannot write its temporary folder: Not a directory; set"
    ):
        check_temp_folder()
    monkeypatch.setenv("RAY_TMPDIR", "here")
    with pytest.raises(UserError, match="RAY_TMPDIR=here: Ray's temporary folder must be an absolute path"):
        check_temp_folder()


def test_a_full_folder_is_a_line(short: Path) -> None:
    check = "from raystitch.cluster.local_ray import check_temp_folder; check_temp_folder()"
    script = f"mount -t tmpfs -o size=16m full {short} && exec {sys.executable} -c '{check}'"
    done = in_namespace("sh", "-c", script, env={**os.environ, "RAY_TMPDIR": str(short)})
    line = done.stderr.splitlines()[-1]
    assert (
        f"RAY_TMPDIR={short}: Ray's temporary folder has 16 MiB left and needs 200; free some, or set RAY_TMPDIR"
        in line
    )
    script = script.replace("&& exec", f"&& cat /dev/zero >{short}/x 2>/dev/null; exec")
    done = in_namespace("sh", "-c", script, env={**os.environ, "RAY_TMPDIR": str(short)})
    assert "cannot write its temporary folder: No space left on device; set" in done.stderr.splitlines()[-1]
