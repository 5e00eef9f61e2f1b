"""Broken files against the readers of what comes from outside: configurations, manifests, NIfTI images.

    make fuzz                                          # ten minutes in total
    python -m benchmarks.fuzz --seconds 30 --only nifti

Each case is a good file with something wrong, drawn from (target, number), so that every failure can be made again: `--only TARGET --case N`.
A reader may take a file or refuse it with InputError in one line. Anything else is a failure: another exception, a process that dies, more
than ten seconds, a message of more than one line. Writes benchmarks/results/fuzz.json. What to expect: no failure.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import yaml

from raylora import config as configuration
from raylora.core.errors import InputError
from raylora.data import manifest, nifti, shards
from raylora.data.grid import Geometry

ROOT = Path(__file__).resolve().parent.parent
SLOW_S = 10
WORDS = (
    *(
        b"",
        b"null",
        b"-1",
        b"1e400",
        b"nan",
        b"inf",
        b"../../x",
        b"\x00",
        b"\xff\xfe",
        b"&a [*a]",
        b"<<: *a",
        b"!!python/name:os.system",
        b"9" * 5000,
    ),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b"- ",
        b"\t",
        b"'",
        b'"',
        b"\n",
        b"true",
        b"1.5",
        b"18446744073709551616",
        b"\xed\xa0\x80",
        b"[" * 3000,
    ),
)
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 2**70, 1e308, float("nan"), "", "x", "../../etc/passwd", "a/b", "\0", "a" * 5000, [], {}, [[]], {"a": 1}),
    *([1, 2, 3], [0, 0, 0], [1e9] * 3, ["1"] * 3, [None] * 3, -0.0, 2**31, "phantom", "1"),
)


def draw_of(target: str, number: int) -> np.random.Generator:
    """Everything random about a case."""
    return np.random.default_rng([number, *target.encode()])


# ---- what is broken, and how


def bytes_broken(data: bytes, draw: np.random.Generator) -> bytes:
    """Some bytes changed, taken out, put in, repeated or cut off."""
    broken = bytearray(data)
    for _ in range(int(draw.integers(1, 6))):
        at = int(draw.integers(len(broken) + 1))
        kind = draw.integers(6)
        if kind == 0 and broken:
            broken[at % len(broken)] = int(draw.integers(256))
        elif kind == 1:
            del broken[at : at + int(draw.integers(1, 50))]
        elif kind == 2:
            broken[at:at] = WORDS[draw.integers(len(WORDS))]
        elif kind == 3:
            broken[at:at] = broken[at : at + int(draw.integers(1, 200))]
        elif kind == 4:
            del broken[at:]
        else:
            broken[at : at + 4] = draw.bytes(4)
    return bytes(broken)


def values_broken(value: Any, draw: np.random.Generator) -> Any:
    """A tree of JSON values with one place changed, taken out or put in."""
    copy = json.loads(json.dumps(value))
    places: list[tuple[Any, Any]] = []

    def walk(item: Any) -> None:
        for key in item if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ():
            places.append((item, key))
            walk(item[key])

    walk(copy)
    for _ in range(int(draw.integers(1, 4))):
        holder, key = places[draw.integers(len(places))]
        kind = draw.integers(5)
        try:
            if kind == 0:
                del holder[key]
            elif kind == 1 and isinstance(holder, dict):
                holder[str(VALUES[draw.integers(len(VALUES))])[:50]] = holder[key]
            else:
                holder[key] = VALUES[draw.integers(len(VALUES))]
        except (KeyError, IndexError):  # gone with an earlier change
            continue
    return copy


# ---- the readers


def config_case(folder: Path, draw: np.random.Generator) -> None:
    """A configuration with something wrong, and overrides."""
    sources = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if "base:" not in p.read_text() and "pretrain" not in p.parts)
    source = sources[draw.integers(len(sources))]
    path = folder / "c.yaml"
    if draw.random() < 0.5:
        path.write_bytes(bytes_broken(source.read_bytes(), draw))
    else:
        path.write_text(yaml.safe_dump(values_broken(configuration._plain(configuration.load(source).as_dict()), draw), allow_unicode=True))
    keys = ("seed", "lora.rank", "data.size", "strategy.name", "clients", "name", "..", "training.lr.x", "data.phantom.patients")
    overrides = [f"{keys[draw.integers(len(keys))]}={VALUES[draw.integers(len(VALUES))]}" for _ in range(int(draw.integers(3)))]
    config = configuration.load(path, [text.replace("\0", "") for text in overrides])
    assert configuration.from_dict(yaml.safe_load(configuration.dump(config))).sha256() == config.sha256()


def good_manifest() -> dict[str, Any]:
    """Two studies, all fields in use."""
    geometry = Geometry(
        native_shape=(24, 28, 4),
        native_spacing_mm=(1.5, 1.5, 10.0),
        affine=tuple(tuple(float(v) for v in row) for row in np.diag([1.5, 1.5, 10.0, 1.0])),
        spacing_mm=(2.25, 2.25, 10.0),
        start=(0, -2, 0),
        shape=(16, 16, 4),
    )
    rows = [
        manifest.Row(
            **{
                **dict.fromkeys(("split", "vendor", "centre", "scanner", "group", "crop", "fingerprint", "key", "shard_sha256"), "x"),
                "id": id,
            },
            dataset="mnms",
            labelled=True,
            ed=0,
            es=None,
            cut_voxels=3,
            geometry=geometry,
            sources=(manifest.Source(path="a/b.nii.gz", bytes=10, mtime_ns=5, sha256="0" * 64),),
            shard_bytes=100,
        )
        for id in ("A0S9V9", "B1")
    ]
    return dict(
        json.loads(manifest.to_json(manifest.Manifest(options=manifest.PrepareOptions(), rows=tuple(rows), skipped=(("C", "broken"),))))
    )


def manifest_case(folder: Path, draw: np.random.Generator) -> None:
    """A manifest with something wrong, half of them with a hash that fits; what is accepted is used."""
    good = good_manifest()
    if draw.random() < 0.3:
        text = bytes_broken(json.dumps(good, indent=1).encode(), draw)
    else:
        broken = values_broken(good, draw)
        if draw.random() < 0.7:  # as somebody would who wants it to be taken
            try:
                keys = ("dataset", "id", "split", "vendor", "centre", "group")
                hashes = [manifest.sha256_of(sorted(source["sha256"] for source in row["sources"])) for row in broken["rows"]]
                studies = [[*(row[key] for key in keys), sha256] for row, sha256 in zip(broken["rows"], hashes, strict=True)]
                broken["data_sha256"] = manifest.sha256_of([manifest.SCHEMA, broken["options"], studies])
            except (KeyError, TypeError, AttributeError):
                pass
        text = json.dumps(broken).encode()
    (folder / manifest.NAME).write_bytes(text)
    found = manifest.read_manifest(folder)
    manifest.done_to(found.options)
    for row in found.rows:
        assert found.row(row.id).id == row.id and np.isfinite(row.geometry.prepared_affine()).all()
        assert shards.shard_path(folder, row.id).resolve().parent == (folder / shards.STUDIES).resolve(), row.id


def good_image() -> bytes:
    """A small 4-D NIfTI file."""
    voxels = np.arange(6 * 5 * 3 * 4, dtype=np.int16).reshape(6, 5, 3, 4)
    return bytes(nibabel.Nifti1Image(voxels, np.diag([1.5, 1.5, 10.0, 1.0])).to_bytes())


def nifti_case(folder: Path, draw: np.random.Generator) -> None:
    """An image with something wrong: in its header's fields, its bytes, or its gzip."""
    data = bytearray(good_image())
    for _ in range(int(draw.integers(0, 4))):
        at, width = int(draw.integers(0, 352)), int(draw.choice([1, 2, 4, 8]))
        extreme = [bytes(width), b"\xff" * width, draw.bytes(width), b"\x7f" + b"\xff" * (width - 1), np.float32(np.nan).tobytes()[:width]]
        data[at : at + width] = extreme[draw.integers(len(extreme))]
    plain = bytes(data) if draw.random() < 0.6 else bytes_broken(bytes(data), draw)
    path = folder / ("i.nii.gz" if draw.random() < 0.5 else "i.nii")
    packed = gzip.compress(plain, 1) if path.suffix == ".gz" else plain
    path.write_bytes(bytes_broken(packed, draw) if draw.random() < 0.3 else packed)
    header = nifti.read_header(path)
    nifti.check_complete(header)
    for frame in nifti.read_frames(header, range(min(header.frames, 3))).values():
        assert frame.shape == header.shape and np.isfinite(frame).all()


TARGETS: Mapping[str, Callable[[Path, np.random.Generator], None]] = {"config": config_case, "manifest": manifest_case, "nifti": nifti_case}


# ---- the campaign


def one(target: str, number: int, folder: Path) -> str:
    """ "taken", "refused: ...", or the failure."""
    signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(SLOW_S)
    try:
        TARGETS[target](folder, draw_of(target, number))
        return "taken"
    except InputError as error:
        return "refused" if "\n" not in str(error) else f"failed: a message of several lines: {str(error)[:200]!r}"
    except (Exception, TooSlow) as error:
        return f"failed: {type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)


class TooSlow(BaseException):
    """No Exception: a reader that makes one line of every error must not take this for one."""


def _too_slow(*_: object) -> None:
    raise TooSlow(f"more than {SLOW_S} s")


def work(target: str, first: int, seconds: float, at: Any, out: Any) -> None:
    """Cases from `first` on; `at` holds the number of the one under way."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    counts: Counter[str] = Counter()
    failures = []
    deadline, number = time.monotonic() + seconds, first
    with tempfile.TemporaryDirectory(prefix="raylora-fuzz-") as folder:
        while time.monotonic() < deadline:
            at.value = number
            said = one(target, number, Path(folder))
            counts[said.partition(":")[0]] += 1
            if said.startswith("failed"):
                failures.append({"case": number, "failure": said.removeprefix("failed: ")})
            number += 1
    out.put((number - first, dict(counts), failures))


def campaign(seconds: float, targets: list[str]) -> dict[str, Any]:
    """The seconds are shared by the targets; one process each, so that a crash is seen."""
    context = multiprocessing.get_context("spawn")
    results: dict[str, Any] = {}
    for target in targets:
        cases, counts, failures = 0, Counter[str](), []
        deadline = time.monotonic() + seconds / len(targets)
        while (left := deadline - time.monotonic()) > 0.2:
            at, out = context.Value("q", cases), context.Queue()
            process = context.Process(target=work, args=(target, cases, left, at, out))
            process.start()
            found = None
            while process.is_alive() and found is None:
                try:
                    found = out.get(timeout=1.0)
                except Exception:  # nothing yet
                    if time.monotonic() > deadline + 3 * SLOW_S + 60:  # not even its alarm rings
                        process.kill()
            process.join()
            if found is None:
                failures.append({"case": at.value, "failure": f"the process ended with {process.exitcode}"})
                cases = at.value + 1
                continue
            number, some, more = found
            cases, failures = cases + number, failures + more
            counts.update(some)
        results[target] = {"cases": cases, "taken": counts["taken"], "refused": counts["refused"], "failures": failures}
    return results


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="in total")
    parser.add_argument("--only", choices=TARGETS, help="one reader")
    parser.add_argument("--case", type=int, help="one case of --only, with its traceback")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "fuzz.json")
    options = parser.parse_args()
    if options.case is not None:
        with tempfile.TemporaryDirectory() as folder:
            TARGETS[options.only or "config"](Path(folder), draw_of(options.only or "config", options.case))
        return
    found = {"seconds": options.seconds, "targets": campaign(options.seconds, [options.only] if options.only else list(TARGETS))}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    sys.exit(1 if any(target["failures"] for target in found["targets"].values()) else 0)


if __name__ == "__main__":
    main()
