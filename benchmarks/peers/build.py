"""The peers' own environments: `make peers`, or `python -m benchmarks.peers.build [flower] [pfl]`.

Each peer gets .peers/NAME with the packages pinned in benchmarks/peers/NAME.txt. Of this environment it shares one package, torch, by links:
the same build computes in every system. A path to all of this environment's packages would also hand the peers packages that change what
they do (Ray starts more processes where it finds those of its dashboard).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
ENVIRONMENTS = ROOT / ".peers"
PEERS = {"flower": ("flwr[simulation]",), "pfl": ("pfl",)}
OF_TORCH = ("filelock", "fsspec", "jinja2", "networkx", "numpy", "setuptools", "sympy", "typing_extensions")
LINKED = ("torch", "torchgen", "functorch", "nvidia", "triton")


def python(peer: str) -> Path:
    """The peer's interpreter, there once its environment is complete."""
    return ENVIRONMENTS / peer / "bin" / "python"


def complete(peer: str) -> bool:
    """Whether the environment was built to its end from the constraints as they are now."""
    stamp = ENVIRONMENTS / peer / "built_from.txt"
    return stamp.is_file() and stamp.read_bytes() == (HERE / f"{peer}.txt").read_bytes() and python(peer).exists()


def build(peer: str) -> None:
    """Make the environment anew. Raises CalledProcessError with pip's own words."""
    folder, pins = ENVIRONMENTS / peer, HERE / f"{peer}.txt"
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True, symlinks=True)
    link_torch(folder)
    pip = [str(python(peer)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", str(pins)]
    subprocess.run([*pip, *OF_TORCH, *PEERS[peer]], check=True)
    check = f"import torch, benchmarks.peers.with_{peer}; assert torch.__version__ == {torch.__version__!r}, torch.__version__"
    subprocess.run([str(python(peer)), "-c", check], check=True, cwd=ROOT)
    shutil.copy(pins, folder / "built_from.txt")


def link_torch(folder: Path) -> None:
    """Links to this environment's torch, and to what pip knows of it."""
    ours = Path(torch.__file__).resolve().parents[1]
    theirs = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    for path in (*(ours / name for name in LINKED), *ours.glob("torch-*.dist-info")):
        if path.exists():
            (theirs / path.name).symlink_to(path)


def main() -> None:
    """Build what is not there, or was built from other pins."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(PEERS)}; default: all")
    wanted = parser.parse_args().peers or list(PEERS)
    if set(wanted) - set(PEERS):
        parser.error(f"expected some of {', '.join(PEERS)}, found {', '.join(wanted)}")
    for peer in wanted:
        if complete(peer):
            print(f"{peer}: .peers/{peer} is complete")
            continue
        print(f"{peer}: building .peers/{peer}", flush=True)
        try:
            build(peer)
        except subprocess.CalledProcessError as error:
            print(f"{peer}: cannot be built here ({error}); the benchmark leaves it out", file=sys.stderr)


if __name__ == "__main__":
    main()
