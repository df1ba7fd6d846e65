"""``raystitch serve`` as a process: up, an answer, a second one on the same port, an orderly end."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raystitch.data.d4rl import write_d4rl
from raystitch.data.episodes import EpisodeDataset
from raystitch.models.config import FitConfig
from raystitch.models.fit import fit_bundle

RAYSTITCH = (sys.executable, "-m", "raystitch.cli", "serve")


@pytest.fixture(scope="module")
def served(drift: EpisodeDataset, tiny_fit: FitConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle's folder and its dataset's file."""
    folder = tmp_path_factory.mktemp("served")
    write_d4rl(drift, folder / "drift.hdf5")
    fit_bundle(drift, tiny_fit, folder / "stitcher", device="cpu")
    return folder / "stitcher", folder / "drift.hdf5"


def post(url: str, drift: EpisodeDataset, token: str) -> dict[str, Any]:
    body = {
        name: {"observations": drift.episode(number).observations.tolist()}
        for name, number in (("source", 1), ("target", 2))
    }
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{url}/v1/stitch", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


FIRST, SECOND = "a-secret-of-tests", "another-secret-of-tests"


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return 0


def wait_until(holds: Callable[[], object], process: subprocess.Popen[bytes], log: Path, seconds: float = 150) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)


def test_up_and_down(
    served: tuple[Path, Path],
    drift: EpisodeDataset,
    tiny_fit: FitConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle, dataset = served
    stitcher = shutil.copytree(bundle, tmp_path / "stitcher")
    monkeypatch.setenv("RAYSTITCH_CACHE", str(tmp_path / "cache"))
    port, tokens, log = free_port(), tmp_path / "token", tmp_path / "log"
    tokens.write_text(f"ci:{FIRST}\n")
    environment = {**os.environ, "RAYSTITCH_TOKEN_FILE": str(tokens)}
    command = [*RAYSTITCH, "--stitcher", str(stitcher), "--dataset", f"d4rl:{dataset}", "--port", port]
    command += ["--env", "raystitch/PointMaze-v0", "--route-prefix", "/team", "--allowed-host", "stitch.example"]
    url = f"http://127.0.0.1:{port}/team"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stderr=out, stdout=out)
    try:
        wait_until(lambda: status(f"{url}/readyz") == 200, process, log)
        process.send_signal(signal.SIGHUP)  # at the first moment at which it says that it is ready
        wait_until(lambda: "/v1/models says" in log.read_text(), process, log)
        assert f"studio {url}/  requests {url}/v1/stitch  reference {url}/docs" in log.read_text()
        before = post(url, drift, FIRST)
        assert before["seed"] == 0
        shutil.rmtree(stitcher)
        after = fit_bundle(drift, replace(tiny_fit, seed=tiny_fit.seed + 1), stitcher, device="cpu").hash
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: post(url, drift, FIRST)["model"] == after, process, log)
        rollback = [*RAYSTITCH, "--rollback", "--port", port, "--route-prefix", "/team"]
        rolled = subprocess.run(
            rollback, env={**os.environ, "RAYSTITCH_TOKEN": FIRST}, capture_output=True, text=True, timeout=100
        )
        assert rolled.returncode == 0, rolled.stderr
        assert post(url, drift, FIRST)["model"] == before["model"] != after
        assert [status(url, Host=name) for name in ("evil.example", "stitch.example")] == [421, 200]
        second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
        assert second.returncode == 2
        assert f"--port {port}: Address already in use" in second.stderr
        tokens.write_text(f"ci:{FIRST}\nnew:{SECOND}\n")
        with_token = {"Authorization": f"Bearer {SECOND}"}
        wait_until(lambda: status(f"{url}/v1/models", **with_token) == 200, process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
    said = log.read_text()
    assert "requests that were taken on are finished" in said
    assert FIRST not in said and SECOND not in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_signal_at_any_moment_is_orderly(served: tuple[Path, Path], tmp_path: Path) -> None:
    """SIGHUP and then SIGTERM, so many seconds after the command has begun: nothing stays, and nobody sees a stack."""
    stitcher, _ = served
    for delay in (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0):
        rays, log = Path(f"/tmp/rs{os.getpid()}"), tmp_path / f"log-{delay}"
        command = [*RAYSTITCH, "--stitcher", str(stitcher), "--port", free_port()]
        with log.open("w") as out:
            process = subprocess.Popen(command, env={**os.environ, "RAY_TMPDIR": str(rays)}, stderr=out, stdout=out)
        try:
            wait_until(lambda process=process: handles(process.pid, signal.SIGHUP), process, log)
            time.sleep(delay)
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGTERM)
            # Python ends itself with SIGINT where the code of a module that was being imported was interrupted.
            assert process.wait(120) in (0, 130, -signal.SIGINT), (delay, log.read_text())
        finally:
            process.kill()
        said = log.read_text()
        assert "Traceback" not in said and "*** SIG" not in said, (delay, said)
        assert said.splitlines()[-1].startswith(("stopping; requests", "raystitch serve: interrupted")), (delay, said)
        until = time.monotonic() + 20
        while left := processes_of(rays):
            assert time.monotonic() < until, (delay, left)
            time.sleep(0.2)
        shutil.rmtree(rays, ignore_errors=True)


def handles(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    fields = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    return bool(int(fields["SigCgt"], 16) >> (number - 1) & 1)


def processes_of(folder: Path) -> list[str]:
    """Those whose command lines name a folder."""
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and f"{folder}/".encode() in (text := (entry / "cmdline").read_bytes()):
                found.append(f"{entry.name} {text[:80]!r}")
    return found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stitcher", "nowhere"], "nowhere does not exist"),
        (["--port", "99999"], "must be at most 65535"),
        (["--replicas", "3:1"], "must be MIN:MAX with MIN <= MAX"),
        (["--num-gpus", "1.5"], "must be in 0..1 or a whole number"),
        (["--dataset", "x=demo:pointmaze"], "--dataset x=demo:pointmaze names no stitcher"),
        (["--set", "limits.foo=1"], "limits.foo: unknown key"),
        (["--name", "a/b"], "must be made of letters, digits, '-', '_' and '.', got 'a/b'"),
        (["--route-prefix", "team"], "must be / or a path such as /team, without a slash at its end, got 'team'"),
        (["--route-prefix", "/team/"], "without a slash at its end, got '/team/'"),
        (["--route-prefix", "/-/x"], "must be / or a path"),
        (["--allowed-host", "http://a.example"], "--allowed-host http://a.example: allowed_hosts: a name such as"),
        (["--set", "token_limits.ci.max_ongoing=0"], "max_ongoing must be at least 1, got max_ongoing=0"),
        (
            ["--set", "trusted_proxies=[here]"],
            "trusted_proxies: addresses or networks such as 10.0.0.0/8: 'here' does not appear",
        ),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from raystitch.cli import main

    try:
        status = main(["serve", *arguments])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_nothing_is_stopped_where_there_is_no_cluster() -> None:
    """In a process of its own: one that is connected to a Ray uses that."""
    command = [sys.executable, "-m", "raystitch.cli", "serve", "--stop", "--address", "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "no Ray cluster at --address 127.0.0.1:1: Connection refused" in line
