"""Writes the requirements that the image installs, with the hashes of their files: python deploy/lock.py

Needs `uv` and PyPI. The versions are those of constraints.txt, the packages those that pyproject.toml's dependencies
and its extra "search" need on Linux:

  deploy/requirements.txt         all but torch, which comes from PyTorch's own index (the Dockerfile's TORCH_SHA256)
  deploy/requirements-cu130.txt   what a torch with CUDA brings along, by its CUDA version

Run it after a change of constraints.txt or of pyproject.toml's dependencies.
"""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
HEAD = "# Written by deploy/lock.py; install with --require-hashes.\n"


def resolve() -> dict[str, str]:
    """Name -> its lines, ``name==version`` and hashes, of everything that is needed."""
    command = ["uv", "pip", "compile", "pyproject.toml", "--extra", "search", "--constraints", "constraints.txt"]
    command += ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28", "--no-config"]
    command += ["--generate-hashes", "--no-annotate", "--no-header", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    blocks = re.split(r"^(?=\S)", done.stdout, flags=re.MULTILINE)
    return {block.partition("==")[0].partition("[")[0]: block for block in blocks if block.strip()}


def split(found: dict[str, str], constraints: str) -> dict[str, str]:
    """File name -> text. constraints.txt was made without CUDA, so what it does not name is CUDA's.

    Raises:
        ValueError: something else than CUDA is not in constraints.txt.
    """
    pinned = {line.partition("==")[0] for line in constraints.splitlines() if "==" in line}
    cuda = {name: block for name, block in found.items() if name not in pinned}
    strange = [name for name in cuda if not re.match(r"(nvidia|cuda|triton)\b", name)]
    if strange:
        raise ValueError(f"not in constraints.txt: {', '.join(strange)}; add what `make venv` installs of them")
    version = re.match(r"cuda-toolkit==(\d+)\.(\d+)", cuda["cuda-toolkit"])
    assert version is not None
    ours = [block for name, block in found.items() if name in pinned and name != "torch"]
    return {
        "requirements.txt": HEAD + "".join(ours),
        f"requirements-cu{version[1]}{version[2]}.txt": HEAD + "".join(cuda.values()),
    }


def main() -> int:
    try:
        files = split(resolve(), (ROOT / "constraints.txt").read_text())
    except FileNotFoundError:
        print("deploy/lock.py needs uv: pip install uv", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:  # uv has said why
        return error.returncode
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for name, text in files.items():
        (HERE / name).write_text(text)
        print(f"{HERE / name}: {text.count('==')} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
