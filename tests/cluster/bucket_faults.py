"""Sweeps into a bucket on two nodes that share nothing else, and are killed.

Run as COMMAND of ``netns_two_nodes.sh``: ``python -m tests.cluster.bucket_faults WHAT PORT ARGUMENT..``, the arguments
of ``raystitch.sweep`` but ``--out``. WHAT is ``faults``: one run undisturbed, one whose driver and node are killed; or
``hundreds``: one run of many trials whose driver is killed half-way. Prints what happened, a line each, and ends with 0
if all jobs that were not killed did, and no finished trial was trained again.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from raystitch.bench.chaos.processes import until
from tests.cluster.bucket_files import finished_trials, synced

BUCKET = "s3://raystitch-nodes"
CALM, DISTURBED, HUNDREDS = (f"{BUCKET}/runs/{name}" for name in ("calm", "disturbed", "hundreds"))
RAY = os.environ.get("RAY", "ray")
PATIENCE = 600


def say(line: str) -> None:
    print(line, flush=True)


def submit(uri: str, arguments: list[str]) -> subprocess.Popen[str]:
    command = [RAY, "job", "submit", "--", sys.executable, "-m", "raystitch.sweep", *arguments, "--out", uri]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(job: subprocess.Popen[str], name: str) -> int:
    """The status of a job at its end; of one that was not killed its last lines are said if it failed."""
    said, _ = job.communicate(timeout=PATIENCE)
    lines = [line for line in said.splitlines() if "(raylet)" not in line]
    failed = job.returncode and name != "killed"
    for line in lines if failed else [line for line in lines if "finished already" in line]:
        say(f"{name}: {line}")
    say(f"{name}: {job.returncode}")
    return job.returncode


def pids_of(namespace: str) -> list[int]:
    said = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=True).stdout
    return [int(pid) for pid in said.split()]


def kill_driver(uri: str) -> None:
    """Kill what runs the sweep in this network namespace, but for what has submitted it."""
    own = os.readlink("/proc/self/ns/net")
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            title = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            driver = b"raystitch.sweep" in title and uri.encode() in title and b"job\0submit" not in title
            if driver and os.readlink(entry / "ns/net") == own:
                os.kill(int(entry.name), signal.SIGKILL)


def kill_node() -> subprocess.Popen[bytes]:
    """Kill all of the worker's node at once, with all that it has on its disk; start another."""
    worker = os.environ["RS_WORKER"]
    for pid in pids_of(worker):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not pids_of(worker), "the node is gone", 20)
    start = ["ip", "netns", "exec", worker, "sh", "-c", os.environ["RS_WORKER_SCRIPT"]]
    return subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def disturbed(arguments: list[str]) -> int:
    job = submit(DISTURBED, arguments)
    until(lambda: len(finished_trials(DISTURBED)) >= 1 or job.poll() is not None, "a trial is done", PATIENCE)
    kill_driver(DISTURBED)
    before = finished_trials(DISTURBED)
    say(f"driver killed with {len(before)} trials done")
    ended(job, "killed")
    job = submit(DISTURBED, arguments)
    until(lambda: len(finished_trials(DISTURBED)) > len(before) or job.poll() is not None, "another is done", PATIENCE)
    node = kill_node()
    at_loss = finished_trials(DISTURBED)
    say(f"node killed with {len(at_loss)} trials done")
    try:
        status = ended(job, "disturbed")
        if status:  # where the loss is noticed late, all attempts may be made before the next node is there
            synced(DISTURBED, Path(os.environ["RS_COPIES"], "failed"))
            status = ended(submit(DISTURBED, arguments), "again")
    finally:
        node.terminate()
    return status or trained_again(DISTURBED, {**at_loss, **before})


def status_shown(uri: str) -> None:
    began = time.monotonic()
    subprocess.run([str(Path(sys.executable).with_name("raystitch")), "status", uri], check=True)
    say(f"looked at in {time.monotonic() - began:.1f} s")


def trained_again(uri: str, before: dict[str, tuple[int, int]]) -> int:
    """The number of trials that had a result before and have another one now."""
    after = finished_trials(uri)
    again = [name for name, version in before.items() if after.get(name) != version]
    say(f"trained again: {again}")
    return len(again)


def faults(arguments: list[str]) -> int:
    began = time.monotonic()
    status = ended(submit(CALM, arguments), "calm")
    say(f"undisturbed: {time.monotonic() - began:.0f} s")
    return status or disturbed(arguments)


def hundreds(arguments: list[str]) -> int:
    """Kill the driver with half of 200 trials done; submit the same again, and once more."""
    began = time.monotonic()
    job = submit(HUNDREDS, arguments)
    until(lambda: len(finished_trials(HUNDREDS)) >= 100 or job.poll() is not None, "half is done", PATIENCE)
    kill_driver(HUNDREDS)
    before = finished_trials(HUNDREDS)
    say(f"driver killed with {len(before)} trials done after {time.monotonic() - began:.0f} s")
    status_shown(HUNDREDS)
    ended(job, "killed")
    for name in ("resumed", "again"):
        began = time.monotonic()
        if status := ended(submit(HUNDREDS, arguments), name):
            return status
        say(f"{name}: {time.monotonic() - began:.0f} s")
    status_shown(HUNDREDS)
    return trained_again(HUNDREDS, before)


def main(what: str, port: str, arguments: list[str]) -> int:
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    host = endpoint.removeprefix("http://").rpartition(":")[0]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", host, "-p", port],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def made() -> bool:
        with suppress(OSError):
            request = urllib.request.Request(f"{endpoint}/{BUCKET.removeprefix('s3://')}", method="PUT")
            urllib.request.urlopen(request, timeout=5).close()
            return True
        return False

    try:
        until(made, "the S3 server answers", 60)
        work, uris = {"faults": (faults, (CALM, DISTURBED)), "hundreds": (hundreds, (HUNDREDS,))}[what]
        status = work(arguments)
        for uri in uris:
            synced(uri, Path(os.environ["RS_COPIES"], uri.rpartition("/")[2]))
        return status
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
