"""The shell of the command line: help, versions, exit statuses, one line per error, quick start."""

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raystitch import cli
from raystitch.data.episodes import EpisodeDataset
from raystitch.data.minari_io import write_minari
from raystitch.errors import RunError, UserError

COMMAND = [sys.executable, "-m", "raystitch.cli"]
HEAVY = ("torch", "ray", "minari", "gymnasium", "numpy", "pyarrow", "matplotlib")


def leaf_parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for child in group.choices.values():
            yield from leaf_parsers(child)


LEAVES = {parser.prog: parser for parser in leaf_parsers(cli.build_parser())}


@pytest.mark.parametrize("prog", LEAVES)
def test_every_command_has_help_with_an_example_that_parses(prog: str) -> None:
    text = LEAVES[prog].format_help()
    example = text.split("example: ")[1].strip().splitlines()[0]
    example = example.removeprefix('eval "$(').removesuffix(')"')
    assert example.startswith(prog)
    args = cli.build_parser().parse_args(example.split()[1:])
    assert callable(args.run)


def test_the_contract_commands_are_there() -> None:
    commands = {prog.removeprefix("raystitch ") for prog in LEAVES}
    assert commands >= {
        *(f"data {action}" for action in ("make", "import", "inspect")),
        *(f"buffer {action}" for action in ("info", "show", "verify", "compact")),
        *("fit", "augment", "validate", "export", "train", "evaluate", "sweep", "report", "serve", "bench"),
    }


def test_help_and_version_are_quick_and_import_nothing_heavy() -> None:
    code = f"""
import sys, raystitch, raystitch.cli
raystitch.cli.build_parser().format_help()
print([name for name in {HEAVY} if name in sys.modules])
"""
    started = time.monotonic()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert time.monotonic() - started < 10  # a second on an idle machine; tests share theirs
    shown = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("raystitch 0.")


def test_the_processes_of_a_run_load_nothing_that_only_some_of_them_need() -> None:
    """Every actor and every group of trials starts with these imports: scipy alone would be a fifth of them."""
    code = """
import sys, raystitch.cluster.actors, raystitch.cluster.trials, raystitch.cluster.serve.application
print([name for name in ("scipy", "matplotlib", "h5py", "minari", "optuna", "IPython") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["data"],
        ["fit", "demo:pointmaze"],
        ["fit", "x", "--out", "y", "--devise", "cpu"],
        ["augment", "x", "--stitcher", "s", "--out", "b", "--num-bridges", "0"],
        ["augment", "x", "--stitcher", "s", "--out", "b", "--num-bridges", "many"],
        ["augment", "x", "--stitcher", "s", "--out", "b", "--num-bridges", "1", "--delta", "-1"],
        ["augment", "x", "--stitcher", "s", "--out", "b", "--num-bridges", "1", "--seed", "-1"],
        ["export", "b", "--format", "csv", "--out", "x"],
        ["train", "x", "--algo", "sarsa", "--out", "t"],
        ["buffer", "info", "b", "--delta", "q101"],
    ],
)
def test_wrong_usage_is_one_line_and_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "--help" in err


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (UserError("a.yaml:3: gamma=2"), 2, "a.yaml:3: gamma=2"),
        (RunError("cannot write x:\n disk full"), 1, "cannot write x: disk full"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "/x"), 1, "/x: No space left on device"),
        (MemoryError(), 1, "out of memory"),
        (ZeroDivisionError("a\nb"), 1, "unexpected ZeroDivisionError: a (traceback in "),
    ],
)
def test_errors_become_one_line_and_a_status(
    error: BaseException,
    status: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def fail(args: argparse.Namespace) -> None:
        raise error

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("raystitch.commands.sweep._report", fail)
    monkeypatch.delenv("RAYSTITCH_DEBUG", raising=False)
    assert cli.main(["report", "run"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("raystitch report: ")
    assert says in err
    assert len(err.splitlines()) == 1
    if "traceback in" in says:
        (log,) = tmp_path.glob("raystitch-*.log")
        assert "ZeroDivisionError" in log.read_text()


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    script = f'{sys.executable} -c \'import raystitch.cli as c; c.main(["report", "--help"])\' | head -c 10'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_ctrl_c_is_one_line_and_status_130(tmp_path: Path, drift: EpisodeDataset) -> None:
    write_minari(drift, "interrupt/drift-v0")
    arguments = [
        "fit",
        "interrupt/drift-v0",
        "--out",
        str(tmp_path / "stitcher"),
        "--set",
        "diffusion.train_steps=100000",
    ]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A shell's background job, and with it these tests, may have been told to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    line = ""
    while not line.startswith("diffusion"):  # fitting has begun
        line = process.stderr.readline()
        assert line, "fit ended by itself"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    last = err.strip().splitlines()[-1]
    assert last == "raystitch fit: interrupted; run the same command again to continue"
    assert "Traceback" not in err
    assert not (tmp_path / "stitcher" / "stitcher.json").exists()
