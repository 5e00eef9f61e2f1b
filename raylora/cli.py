"""The command line: parses, calls, prints. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from raylora.core.errors import InputError, Interrupted, RunError
from raylora.core.files import require_file_place, require_folder_place

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Federated low-rank adaptation of cardiac MR foundation models, simulated on Ray.",
)
data_app = typer.Typer(no_args_is_help=True, help="Synthetic cohorts, and downloads made ready.")
app.add_typer(data_app, name="data")

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, for example lora.rank=8.")]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML configuration.")]
Output = Annotated[Path | None, typer.Option("--output", help="The run folder (default: runs/<name>, a free name).")]
Address = Annotated[str | None, typer.Option("--address", help="An existing Ray cluster, for example auto.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object, last.")]


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    output: Output = None,
    address: Address = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what it would do and need, without doing it (data are prepared if they are not).")
    ] = False,
    as_json: Json = False,
) -> None:
    """One federated experiment."""
    from raylora import config as configuration
    from raylora import launch, run_folder
    from raylora.report.live import Live

    settings = configuration.load(config, overrides or ())
    if plan:
        from raylora.report.forecast import show_plan

        if address is not None:
            raise InputError("--address: a plan is about this machine, expected none beside --plan")
        if output is not None:
            run_folder.refuse_used(output)

        with _interruptible(lambda: AGAIN), Live() as live:
            found = launch.plan(settings, on_event=live)
        _print_json(found) if as_json else show_plan(found)
        return
    with contextlib.nullcontext(output) if output else run_folder.reserved(settings.name) as out:
        with _interruptible(lambda: _left(out)), Live() as live:
            summary = launch.run(settings, out.resolve(), address=address, on_event=live)
        _end(summary, out, as_json)


@app.command()
def resume(folder: Annotated[Path, typer.Argument(metavar="DIR")], address: Address = None, as_json: Json = False) -> None:
    """Go on after the last complete round."""
    from raylora import launch
    from raylora.report.live import Live

    with _interruptible(lambda: _left(folder)), Live() as live:
        summary = launch.resume(folder, address=address, on_event=live)
    _end(summary, folder, as_json)


@app.command()
def sweep(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A sweep file: a base experiment, a search space, an objective.")],
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="The sweep's folder (default: runs/<name>); again on the same: goes on.")
    ] = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Many experiments on Ray Tune; the same command goes on with a sweep that was interrupted."""
    from raylora import launch_sweep
    from raylora.report.sweep import SweepLive, show_sweep

    with _interruptible(lambda: GOES_ON), SweepLive() as live:
        out, found = launch_sweep.sweep(config, overrides or (), output, address=address, on_event=live)
    show_sweep(found)
    page = ", comparison.html" if (out / "comparison.html").is_file() else ""
    typer.echo(f"everything is in {output or out}: sweep.json, trials/{page}")
    if as_json:
        _print_json(found)
    if (counts := found["counts"])["failed"] and not counts["finished"] + counts["pruned"]:
        raise RunError(f"no trial came to its end, the first: {_why(row['error'] for row in found['trials'])}")


@app.command()
def stress(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A stress file: a base experiment, strategies, one or two dials, seeds.")
    ],
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="The campaign's folder (default: runs/<name>); again on the same: goes on.")
    ] = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Heterogeneity and fault dials against strategies; the same command goes on with a campaign that was interrupted."""
    from raylora import launch_stress
    from raylora.report.live import Live

    with _interruptible(lambda: GOES_ON), Live() as live:
        out, found = launch_stress.stress(config, overrides or (), output, address=address, on_event=live)
    found.show()
    typer.echo(f"everything is in {output or out}: stress.html, stress.json, trials/")
    if as_json:
        _print_json(json.loads((out / "stress.json").read_text(encoding="utf-8")))
    if not any(experiment.status == "finished" for experiment in found.ended):
        raise RunError(f"no experiment came to its end, the first: {_why(experiment.why for experiment in found.ended)}")


@app.command()
def compare(
    folders: Annotated[list[Path] | None, typer.Argument(metavar="DIR...")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="An HTML page.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FOLDER", help="Every table as a CSV file.")] = None,
    baseline: Annotated[str | None, typer.Option("--baseline", help="Strategy or label of the A/A row (default: fedit).")] = None,
    experiment: Annotated[str | None, typer.Option("--experiment", metavar="NAME", help="All ended runs of an MLflow experiment.")] = None,
    uri: Annotated[str | None, typer.Option("--uri", help="Its tracking server or database (default: sqlite:///mlflow.db).")] = None,
    as_json: Json = False,
) -> None:
    """Runs (or sweeps, by their trials) side by side: tables, paired tests, pictures."""
    from raylora import launch
    from raylora.report import compare as comparing
    from raylora.report.live import Live

    if not folders and experiment is None:
        raise InputError("compare: expected run folders, sweep folders, or --experiment NAME")
    if uri is not None and experiment is None:
        raise InputError("--uri: expected --experiment NAME with it")
    if output is not None:
        require_file_place(output, "--output")
    if csv is not None:
        require_folder_place(csv, "--csv")
    with tempfile.TemporaryDirectory(prefix="raylora-compare-") as into:
        names: dict[Path, str] = {}
        if experiment is not None:
            with Live() as live:
                names = launch.fetch(experiment, uri, Path(into), on_event=live)
        found = comparing.compare([*(folders or ()), *names], baseline=baseline, names=names)
        found.show()
        if output is not None:
            found.write_html(output)
            typer.echo(f"page: {output}")
        if csv is not None:
            typer.echo(f"tables: {csv} ({len(found.write_csv(csv))} files)")
        if as_json:
            _print_json(found.as_dict())


@app.command()
def pretrain(
    config: ConfigFile,
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option("--output", help="FILE.safetensors")] = None,
) -> None:
    """Make a small foundation model."""
    from raylora import config as configuration
    from raylora import foundation
    from raylora.report.live import Live

    settings = configuration.load_pretrain(config, overrides or ())
    out = output or Path(f"{settings.name}.safetensors")
    with Live() as live:
        foundation.make(settings, out, lambda what, done, total: live({"event": "progress", "text": what, "done": done, "total": total}))
    typer.echo(f"weights: {out}")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    out: Annotated[Path, typer.Argument(metavar="OUT")],
    client: Annotated[
        str | None, typer.Option("--client", metavar="ID", help="One client's model, private parts included (default: the shared one).")
    ] = None,
    merged: Annotated[bool, typer.Option("--merged", help="The base with the adapter merged in, as safetensors.")] = False,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="FILE", help="Where the weights of the run's base lie now, if they have moved.")
    ] = None,
) -> None:
    """A PEFT adapter folder, or merged weights, with a model card."""
    from raylora.export import export as exported

    written = exported(folder, out, client=client, merged=merged, weights=weights)
    typer.echo(f"{'merged weights' if merged else 'adapter'}: {written}")


@app.command()
def upload(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    uri: Annotated[str | None, typer.Option("--uri", help="A tracking server or database (default: the run's own).")] = None,
) -> None:
    """Put a finished run, or a sweep with its trials, into an MLflow server later."""
    from raylora import launch

    done = launch.upload(folder, uri)
    brought = f" ({done.trials} trials)" if done.trials else ""
    typer.echo(f"run: {done.run_id}{' (all of it was there already)' if done.there else brought}")


@app.command()
def doctor(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[DIR]...", help="Runs or weights, searched for what must not be trusted.")
    ] = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """What this machine and a cluster offer, and what would go wrong, with what to do. Exit code 2 if anything would."""
    from dataclasses import asdict

    from raylora.doctor import examine

    found = examine(folders or (), address)
    wrong = [one for one in found if one.wrong]
    for one in found:
        for line in one.lines():
            typer.echo(line)
    typer.echo(f"{len(wrong)} would go wrong" if wrong else "nothing would go wrong")
    if as_json:
        _print_json({"wrong": len(wrong), "findings": [asdict(one) for one in found]})
    if wrong:
        raise typer.Exit(2)


@data_app.command()
def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT")],
    layout: Annotated[str, typer.Option(help="acdc, mnms or mnms2")] = "mnms",
    patients: Annotated[int, typer.Option(min=1, max=100_000)] = 100,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    shift: Annotated[float, typer.Option(min=0.0, help="Strength of the vendors' differences.")] = 1.0,
) -> None:
    """Write a synthetic cohort."""
    from raylora.data.phantom import write_cohort
    from raylora.report.live import Live

    with Live() as live:
        write_cohort(
            out,
            layout=layout,
            patients=patients,
            seed=seed,
            shift=shift,
            progress=lambda done, total: live({"event": "progress", "text": "making phantoms", "done": done, "total": total}),
        )
    typer.echo(f"{patients} studies in the {layout} layout: {out}")


@data_app.command()
def prepare(
    dataset: Annotated[str, typer.Argument(metavar="acdc|mnms|mnms2")],
    source: Annotated[Path, typer.Argument(metavar="SRC")],
    out: Annotated[Path, typer.Argument(metavar="OUT")],
    spacing: Annotated[tuple[float, float, float], typer.Option(help="mm, x y z: three numbers, as in --spacing 1 1 10.")] = (
        1.0,
        1.0,
        10.0,
    ),
    size: Annotated[tuple[int, int, int], typer.Option(help="Voxels of the crop, x y z: three numbers.")] = (192, 192, 16),
    crop: Annotated[str, typer.Option(help="centre, motion (label-free) or label (an oracle)")] = "motion",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on without the bad studies and record them.")] = False,
    address: Annotated[
        str | None, typer.Option("--address", help="An existing Ray cluster, for example auto; all its nodes must see SRC and OUT.")
    ] = None,
) -> None:
    """Preprocess a downloaded data set into Arrow shards, in parallel over Ray. Again on the same OUT: does what is missing or has changed."""
    from raylora import launch
    from raylora.report.live import Live

    with _interruptible(lambda: AGAIN), Live() as live:
        before = launch.prepared_ids(out)
        done = launch.prepare(dataset, source, out, spacing, size, crop, skip_bad=skip_bad, address=address, on_event=live)
    typer.echo(f"{len(done.rows)} studies prepared: {out}")
    if gone := before - {row.id for row in done.rows} - {name for name, _ in done.skipped}:
        typer.echo(f"removed {len(gone)} that were prepared in {out} and are not in {source}")
    for name, reason in done.skipped:
        typer.echo(f"left out {name}: {reason}")


@data_app.command()
def check(source: Annotated[Path, typer.Argument(metavar="SRC")], as_json: Json = False) -> None:
    """What is in a folder, and what is wrong with it. Exit code 2 if anything is."""
    from raylora.data.check import check as look
    from raylora.data.obtain import workers
    from raylora.data.pool import process_map
    from raylora.report.live import Live

    with Live() as live:
        found = look(
            source,
            mapper=process_map(workers()),
            progress=lambda done, total: live({"event": "progress", "text": "reading studies", "done": done, "total": total}),
        )
    for line in found.lines():
        typer.echo(line)
    if as_json:
        _print_json(found.to_dict())
    if found.problems:
        raise InputError(f"{source}: {len(found.problems)} problem{'s' * (len(found.problems) > 1)}, the first: {found.problems[0]}")


AGAIN = "start again, data that are prepared by now are kept"
GOES_ON = "the same command (with the same --output, if any) goes on"


@contextlib.contextmanager
def _interruptible(said: Callable[[], str]) -> Iterator[None]:
    """An interruption leaves with words: what is left, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(said()) from None


def _why(reasons: Iterable[str | None]) -> str:
    return next(filter(None, reasons), "no reason was written down")


def _left(folder: Path) -> str:
    """Of a run that was interrupted."""
    from raylora.federation.checkpoint import written

    if not (folder / "config.yaml").is_file():
        return f"no run was begun: {AGAIN}"
    if (folder / "report.html").is_file():
        return f"the run in {folder} is finished"
    rounds = written(folder / "checkpoints")
    kept = f"round {int(rounds[-1].name.removeprefix('round_'))} is the last one that is kept, " if rounds else ""
    return f"{kept}`raylora resume {shlex.quote(str(folder))}` goes on"


def _end(summary: dict[str, Any], out: Path, as_json: bool) -> None:
    from raylora.report import tables

    tables.show_summary(summary)
    typer.echo(f"everything is in {out}: report.html, plots/, cases.parquet, adapters/")
    if as_json:
        _print_json(summary)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, allow_nan=False))


def main(arguments: list[str] | None = None) -> None:
    """The console script. Exit codes: 0 done, 1 it ran and failed, 2 bad input, 130 interrupted."""
    with contextlib.suppress(OSError):  # a folder that is gone
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.append(os.getcwd())  # where a user's own strategy lies; last, so that nothing there hides an installed module
    if sys.stdout is None:  # closed by whoever started this
        sys.stdout = open(os.devnull, "w")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or another file by now
            if isinstance(stream, io.TextIOWrapper):  # a sign for letters that a terminal's encoding lacks
                stream.reconfigure(errors="replace")
    sys.exit(guarded(lambda: app(arguments, standalone_mode=False)))


def guarded(command: Callable[[], Any]) -> int:
    """Run a command; every end that a user or the machine can bring about becomes one line and an exit code."""
    usage_error = typer.BadParameter.__mro__[1]  # typer brings its own click, whose UsageError has no public name

    interrupts: list[object] = []

    def interrupted(number: object, frame: object) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # Ctrl-C; ended by a scheduler; the terminal was closed
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, interrupted)
    try:
        result = command()
        if result == 130:  # what typer makes of an interrupt
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except InputError as error:
        return _say(error, 2)
    except typer.Exit as error:
        return error.exit_code
    except usage_error as error:
        if (said := error.format_message()).startswith("Usage:"):  # `raylora` alone
            print(said, file=sys.stderr)
            return 2
        return _say(said, 2)
    except RunError as error:
        return _say(error, 1)
    except Interrupted as error:
        return _say(f"interrupted; {error}", 130)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", 130)
    except OSError as error:
        if interrupts:  # and then nobody was left to tell
            return _say("interrupted", 130)
        return _say(f"{error.filename}: {error.strerror}" if error.filename else error, 1)
    except MemoryError:
        return _say("out of memory", 1)
    except Exception as error:  # a bug: its place is said, so that it can be reported
        place = traceback.extract_tb(error.__traceback__)[-1]
        return _say(f"{type(error).__name__}: {error} (a bug, at {Path(place.filename).name}:{place.lineno})", 1)


def _say(error: object, code: int) -> int:
    """One line on standard error, if it is still there; the exit code."""
    with contextlib.suppress(OSError, ValueError):
        print(f"raylora: {_line(error)}", file=sys.stderr, flush=True)
    return code


def _line(error: object) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
