"""`raylora doctor`: what this machine and a cluster offer, what is missing, and what would go wrong, each with what to do about it."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from raylora.cluster import probe
from raylora.core.errors import InputError, one_line
from raylora.data.features import FOLDER, cache_report
from raylora.data.obtain import cache_folder
from raylora.federation import checkpoint

SHM_BYTES = 256 << 20  # below this Ray's object store goes to the disk; containers often have 64 MiB
MEMORY_BYTES = 1 << 30  # of one driver and a few actors: torch alone takes 250 MiB a process
DISK_BYTES = 1 << 30
DISK_SHARE = 0.05  # Ray stops taking objects at 95 %
OPEN_FILES = 1024
MOST_FILES = 20_000  # looked at in one folder
PYTHON = (3, 11)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line: what was looked at, what was found, and, where something would go wrong, what to do."""

    what: str
    found: str
    do: str = ""  # empty: fine
    wrong: bool = False  # a run would fail or be unsafe; otherwise it is good to know

    def lines(self) -> list[str]:
        mark = "!" if self.wrong else "-" if self.do else " "
        return [f"{mark} {self.what}: {self.found}", *([f"      {self.do}"] if self.do else [])]


def examine(folders: Sequence[Path] = (), address: str | None = None) -> list[Finding]:
    """Everything that can be seen from here; `folders` (runs, weights) are searched for files that must not be trusted.

    Raises InputError for a folder that is not there, or an address at which no Ray answers.
    """
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: {'is a file, expected the folder it lies in' if folder.exists() else 'no such folder'}")
    machine = probe.here()
    places = [Path.cwd(), cache_folder(), Path(os.environ.get("RAY_TMPDIR", "/tmp"))]
    return [
        *computing(machine),
        *graphics(machine["gpus"]),
        *disks(places),
        *software(),
        caches(cache_folder()),
        kept(cache_folder()),
        *(finding for folder in folders for finding in files_of(folder)),
        *(cluster(machine, probe.nodes(address), os.environ.get("RAY_AUTH_MODE")) if address is not None else ()),
    ]


def computing(machine: Mapping[str, Any]) -> list[Finding]:
    """CPUs, memory, shared memory, open files."""
    import resource

    cpus, quota = machine["cpus"], machine["quota"]
    memory, shm = machine["memory_bytes"], machine["shm_bytes"]
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    short = quota is not None and quota + 0.01 < cpus
    return [
        Finding(
            what="CPUs",
            found=f"{cpus} of {os.cpu_count()} by affinity" + (f", but a quota of {quota:g}" if short else ""),
            do=f"use no more than {quota:g}, for example taskset -c 0-{max(0, int(quota) - 1)}: more actors only wait" if short else "",
        ),
        _least("memory", memory, MEMORY_BYTES, "end other processes, or put more clients in an actor (placement.clients_per_actor)"),
        _least(
            "shared memory (/dev/shm)", shm, SHM_BYTES, "Ray's store would lie on the disk: docker run --shm-size=1g, or mount a larger one"
        ),
        Finding(
            what="open files",
            found=f"at most {files}",
            wrong=files < OPEN_FILES,
            do=f"ulimit -n {4 * OPEN_FILES}: Ray needs some for each actor" if files < OPEN_FILES else "",
        ),
    ]


def _least(what: str, has: int, needs: int, do: str) -> Finding:
    short = has < needs
    return Finding(
        what=what, found=f"{_gib(has)} free" + (f", {_gib(needs)} are needed" if short else ""), wrong=short, do=do if short else ""
    )


def graphics(devices: int) -> list[Finding]:
    """The GPUs that are there, and those that torch can use."""
    import torch

    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices and usable < devices:
        do = "this torch is built without CUDA, or the driver is too old: `python -m torch.utils.collect_env`"
        return [Finding(what="GPUs", found=f"{devices}, of which torch can use {usable}", wrong=True, do=do)]
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(usable))
    return [Finding(what="GPUs", found=f"{usable} ({names})" if usable else "none (nothing needs one)")]


def disks(folders: Sequence[Path]) -> list[Finding]:
    """Free space where runs, caches and Ray's files go; once a disk."""
    found, seen = [], set()
    for folder in folders:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if (device := there.stat().st_dev) in seen:
            continue
        seen.add(device)
        usage = shutil.disk_usage(there)
        full = usage.free < max(DISK_BYTES, DISK_SHARE * usage.total)
        do = "make room: a checkpoint that does not fit ends a run, and Ray takes no objects on a disk that is 95 % full"
        found.append(
            Finding(what=f"disk of {folder}", found=f"{_gib(usage.free)} free of {_gib(usage.total)}", wrong=full, do=do if full else "")
        )
        if not os.access(there, os.W_OK):
            found.append(
                Finding(what=f"folder {folder}", found="cannot be written to", wrong=True, do="change its owner, or work elsewhere")
            )
    return found


def software() -> list[Finding]:
    """Python and the packages, against what raylora declares and what it was tested with."""
    python = sys.version_info[:2]
    old = python < PYTHON
    found = [
        Finding(what="Python", found=".".join(map(str, sys.version_info[:3])), wrong=old, do="raylora needs 3.11 or newer" if old else "")
    ]
    try:
        declared = metadata.requires("raylora") or []
    except metadata.PackageNotFoundError:  # a checkout that is run from its folder
        declared = []
    wrong = unmet(declared)
    found += [Finding(what="package", found=text, wrong=True, do="pip install -e . -c constraints.txt") for text in wrong]
    tested = Path(__file__).resolve().parent.parent / "constraints.txt"
    other = differing(tested.read_text().splitlines()) if tested.is_file() else []
    if other:
        text = f"{len(other)} are not the versions that were tested: {', '.join(other[:6])}{', ...' if len(other) > 6 else ''}"
        found.append(Finding(what="packages", found=text, do="numbers may differ in their last bits: pip install -e . -c constraints.txt"))
    elif not wrong:
        found.append(Finding(what="packages", found="as they were tested" if tested.is_file() else "all there"))
    return found


def unmet(requirements: Sequence[str]) -> list[str]:
    """Those of the requirements (without extras) that are not installed or of another version."""
    found = []
    for text in requirements:
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            has = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            found.append(f"{need.name} is missing")
            continue
        if not need.specifier.contains(has, prereleases=True):
            found.append(f"{need.name} {has}, expected {need.specifier}")
    return found


def differing(constraints: Sequence[str]) -> list[str]:
    """Installed packages of another version than `name==version` lines say."""
    found = []
    for line in constraints:
        name, equals, version = line.partition("==")
        try:
            if equals and Version(has := metadata.version(name)).public != version.strip():
                found.append(f"{name} {has} (tested: {version.strip()})")
        except metadata.PackageNotFoundError:
            continue
    return found


def caches(folder: Path) -> Finding:
    """What prepared data and phantoms take."""
    sizes = {path.name: sum(_sizes(path)) for path in sorted(folder.iterdir()) if path.is_dir()} if folder.is_dir() else {}
    text = ", ".join(f"{name} {_gib(size)}" for name, size in sizes.items()) or "empty"
    return Finding(what=f"cache {folder}", found=f"{text} (safe to delete: it is made again)" if sizes else text)


def kept(folder: Path) -> Finding:
    """How much of what frozen stages compute is kept, and how much may be."""
    report = cache_report(folder / FOLDER)
    return Finding(
        what="kept features", found=f"{report.entries}, {_gib(report.bytes)}; at most {_gib(report.bound_bytes)} (training.cache_gb)"
    )


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        try:
            yield path.stat().st_size if path.is_file() else 0
        except OSError:
            continue


def files_of(folder: Path) -> list[Finding]:
    """Pickles (whoever opens one runs what is in it), and checkpoints that are torn or altered."""
    found = []
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if len(paths) > MOST_FILES:
        found.append(
            Finding(what=str(folder), found=f"the first {MOST_FILES} of {len(paths)} files were looked at", do="name a smaller folder")
        )
    for path in paths[:MOST_FILES]:
        if is_pickle(path):
            do = "raylora reads none; whoever opens it runs what is in it: ask for safetensors"
            found.append(Finding(what=str(path), found="a pickle", wrong=True, do=do))
    for path in (path for runs in sorted(folder.rglob("checkpoints")) for path in checkpoint.written(runs)):
        try:
            checkpoint.load(path)
        except Exception as error:  # whatever it is: resume would pass over it
            do = "`raylora resume` passes over it and goes on from the one before"
            text = f"torn or altered ({one_line(error)})"
            found.append(Finding(what=str(path), found=text, wrong=True, do=do))
    return found or [Finding(what=str(folder), found=f"{len(paths)} files, no pickle, no torn checkpoint")]


def is_pickle(path: Path) -> bool:
    """By what is in it: a pickle's first bytes, or an archive that holds one (torch's files)."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start[:1] == b"\x80" and len(start) > 1 and 2 <= start[1] <= 5:
            return True
        if start == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive:
                return any(name.endswith(".pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError):
        return False
    return path.suffix in (".pkl", ".pickle")  # the oldest protocols begin with anything


def cluster(machine: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]], auth: str | None) -> list[Finding]:
    """Every node against this machine: the same versions and code, memory; and whether anybody may use the cluster."""
    found = []
    if auth != "token":
        do = "start all nodes and this command with RAY_AUTH_MODE=token (`ray get-auth-token --generate`), or keep its ports closed to others"
        found.append(Finding(what="Ray address", found="takes anybody: who reaches it runs code as you", wrong=True, do=do))
    for node in nodes:
        what = f"node {node['node']}"
        if "error" in node:
            do = "install raylora there as here: its Python must find the same packages"
            found.append(Finding(what=what, found=f"does not answer: {node['error']}", wrong=True, do=do))
            continue
        other = [
            f"{name} {node['versions'].get(name)} (here {version})"
            for name, version in machine["versions"].items()
            if node["versions"].get(name) != version
        ]
        other += ["another raylora"] if node["code"] != machine["code"] else []
        if other:
            do = "install the same versions everywhere: what computes decides the numbers"
            found.append(Finding(what=what, found=", ".join(other), wrong=True, do=do))
        small = [one for one in computing({**node, "quota": None}) if one.wrong and one.what != "open files"]
        found += [Finding(what=f"{what}, {one.what}", found=one.found, wrong=True, do=one.do) for one in small]
        if not other and not small:
            text = f"{node['cpus']} CPUs, {node['gpus']} GPUs, {_gib(node['memory_bytes'])} memory free, the same versions and code"
            found.append(Finding(what=what, found=text))
    return found


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MiB"
