"""`raylora stress`: what a file expands into, what its page says, and a campaign that goes on where it was left."""

import contextlib
import json
import math
from pathlib import Path

import pytest
import yaml
from small_runs import settings

from raylora import cli, experiment, launch_stress, planning, stress
from raylora import config as configuration
from raylora.cluster import driver
from raylora.core.errors import InputError
from raylora.federation.executor import InProcess
from raylora.federation.spec import build_host
from raylora.report import html
from raylora.report.runs import find_runs

SHIPPED = sorted((Path(__file__).resolve().parent.parent / "configs" / "stress").glob("*.yaml"))
STRATEGIES = {"mean": {"strategy": {"name": "fedit"}}, "median": {"strategy": {"name": "fedit", "reduce": "median"}}}


def written(folder: Path, experiment: dict | None = None, **values) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump(experiment or {"strategy": {"name": "flora"}, "seed": 7}))
    values = {"base": "base.yaml", "strategies": STRATEGIES, "dials": {"faults.dropout": [0.0, 0.3]}, **values}
    path = folder / "stress.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


# ---- the file


def test_every_level_meets_every_strategy_under_every_seed(tmp_path):
    path = written(tmp_path, seeds=[3, 4], dials={"faults.dropout": [0.0, 0.3], "network.up_mbit": [math.inf, 1]}, common={"lora.rank": 2})
    found = stress.load(path, ["training.rounds=2", "name=mine", "seeds=[5]"])
    listed = stress.trials(found)
    assert [(t.number, t.label, *t.levels.values(), t.seed) for t in listed[:3]] == [
        (0, "mean", 0.0, math.inf, 5),
        (1, "median", 0.0, math.inf, 5),
        (2, "mean", 0.0, 1, 5),
    ]
    assert len(listed) == 2 * 2 * 2 and listed[-1].folder == "007"
    configs = [found.config(trial) for trial in listed]
    assert {(c.name, c.seed) for c in configs} == {(f"mine-{n:03d}", 5) for n in range(8)}
    assert all(c.training.rounds == 2 and c.lora.rank == 2 for c in configs)
    assert configs[1].strategy.options == {"reduce": "median"} and configs[0].strategy.options == {}, "a strategy is replaced whole"
    assert configs[-1].faults.dropout == 0.3 and configs[-1].network.up_mbit == 1 and math.isinf(configs[0].network.up_mbit)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dials": {}}, "dials"),
        ({"dials": {"faults.dropout": [0.0]}}, "dials.faults.dropout"),
        ({"dials": {"faults.dropout": [0.0, 2.0]}}, r"trial 2 \(mean, faults.dropout 2.0, seed 0\): faults.dropout: .* found 2.0"),
        ({"dials": {"faults.dropuot": [0, 1]}}, r"unknown key 'faults.dropuot' \(did you mean 'dropout'\?\)"),
        ({"dials": {"strategy.mu": [0, 1]}}, "dials.strategy.mu: expected what makes an experiment harder"),
        ({"dials": {"seed": [0, 1]}}, "dials.seed: expected what makes an experiment harder"),
        ({"dials": {"a": [0, 1], "b": [0, 1], "c": [0, 1]}}, "dials"),
        ({"strategies": {}}, "strategies"),
        ({"strategies": {"a": {"faults.dropout": 0.1}}}, "dials.faults.dropout: a strategy sets it too"),
        ({"seeds": []}, "seeds"),
        ({"base": None}, "base: expected the path"),
        ({"seed": [1]}, "unknown key 'seed'"),
    ],
)
def test_what_is_wrong_is_refused_by_key(tmp_path, values, message):
    with pytest.raises(InputError, match=message) as caught:
        stress.load(written(tmp_path, **values))
    assert "\n" not in str(caught.value) and "stress.yaml" in str(caught.value)


def test_the_base_may_stand_in_the_file(tmp_path):
    """As in the one that a campaign leaves in its folder."""
    found = stress.load(written(tmp_path))
    (tmp_path / "kept.yaml").write_text(configuration.dump(found))
    assert stress.load(tmp_path / "kept.yaml") == found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_is_shipped_can_be_loaded_and_says_what_it_costs(path):
    found = stress.load(path)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert found.name == f"stress_{path.stem}" and any(
        f"raylora stress configs/stress/{path.name}" in line and "CPU" in line for line in header
    )
    assert len(stress.trials(found)) == math.prod(map(len, found.dials.values())) * len(found.strategies) * len(found.seeds)


def test_the_shipped_ones_are_those_that_are_named():
    assert [path.stem for path in SHIPPED] == ["byzantine", "heterogeneity", "ranks", "stragglers_bandwidth", "vendor_shift"]


# ---- a campaign


@pytest.fixture
def no_ray(monkeypatch):
    """Experiments in this process; {"runs": how many were started, "stop": raise after so many}."""
    told = {"runs": 0, "stop": math.inf}

    def drive(values, out, *, address, resume, notes, request):
        told["runs"] += 1
        plan = planning.make_plan(configuration.from_dict(values))
        for event in experiment.run_experiment(plan, out, lambda p: InProcess(build_host(p.spec, p.weights)), resume=resume, notes=notes):
            if event["event"] == "round" and told["runs"] > told["stop"]:
                raise KeyboardInterrupt
            yield event

    monkeypatch.setattr(driver, "run", drive)
    monkeypatch.setattr(driver, "session", lambda address: contextlib.nullcontext())
    monkeypatch.setattr(driver, "request_of", lambda plan, has, resume: None)
    monkeypatch.setattr(driver, "available", lambda: None)
    monkeypatch.setattr(html, "write_report", lambda folder: (folder / "report.html").write_text("page"))
    return told


def call(*words: object) -> int:
    return cli.guarded(lambda: cli.app([str(word) for word in words], standalone_mode=False))


@pytest.mark.slow
def test_a_campaign_from_the_command_line_to_its_page(no_ray, prepared_folder, tmp_path, monkeypatch, capsys):
    """Interrupted in its third experiment, it goes on there; what a method cannot do is a gap with its reason."""
    monkeypatch.chdir(tmp_path)
    base = settings(prepared_folder, clients={"by": "iid", "count": 5}, training={"rounds": 1, "local_steps": 2, "lr": 0.02})
    krum = {"strategy": {"name": "fedit", "reduce": {"name": "krum", "f": 1}}, "sampling": {"kind": "uniform", "fraction": 0.5}}
    dials = {"faults.byzantine": [0.0, 0.2], "faults.dropout": [0.0, 0.5]}
    common = {"faults.strength": 10.0, "network.step_s": 1.0}
    written(tmp_path, base, strategies={**STRATEGIES, "Krum": krum}, dials=dials, common=common, name="two")
    no_ray["stop"] = 2
    assert call("stress", "stress.yaml", "--output", "out") == 130
    assert no_ray["runs"] == 3 and "Traceback" not in capsys.readouterr().err
    no_ray["stop"] = math.inf
    assert call("stress", "stress.yaml", "--output", "out", "--json") == 0
    out, err = capsys.readouterr()
    assert no_ray["runs"] == 3 + 6 and "Traceback" not in err, "eight can run, one of them in two starts"
    found = json.loads(out.splitlines()[-1], parse_constant=pytest.fail)
    assert found == json.loads((tmp_path / "out" / "stress.json").read_text()) and "stress.html" in out
    assert [e["status"] for e in found["experiments"]] == ["finished", "finished", "refused"] * 4, found["experiments"]
    assert all("at least 5 clients in every round" in e["why"] for e in found["experiments"] if e["status"] == "refused")
    by = {(c["strategy"], c["held"]): c for c in found["curves"]}
    assert by["Krum", 0.0]["area"]["value"] is None and all(p["mean"] is None for p in by["Krum", 0.0]["points"])
    for trial in find_runs([tmp_path / "out"]):
        number = int(trial.folder.name)
        point = by[("mean", "median")[number % 3], trial.config["faults"]["dropout"]]["points"][trial.config["faults"]["byzantine"] > 0]
        own = trial.summary["final"]["dice"]
        assert point["mean"]["value"] == pytest.approx(own["mean"]) and point["mean"]["n"] == own["n"]
        assert point["worst"]["value"] == pytest.approx(min(own["per_client"].values()))
        assert point["virtual_seconds"] == trial.summary["virtual_seconds"] == 2.0
    for curve in found["curves"]:
        ends = [p["mean"] and p["mean"]["value"] for p in curve["points"]]
        assert curve["area"]["value"] == (None if None in ends else pytest.approx(sum(ends) / 2))
    page = (tmp_path / "out" / "stress.html").read_text()
    assert "Robustness to faults.byzantine" in page and "at least 5 clients" in page and "https:" not in page
    before = no_ray["runs"]
    assert call("stress", "stress.yaml", "--output", "out") == 0 and no_ray["runs"] == before, "nothing is left to do"
    assert call("stress", "stress.yaml", "training.lr=0.03", "--output", "out") == 2 and "holds another" in capsys.readouterr().err


def test_a_campaign_whose_experiments_are_all_refused_says_why(no_ray, prepared_folder, tmp_path):
    path = written(tmp_path, settings(prepared_folder), strategies={"a": {"strategy": {"name": "flora"}, "sampling.buffer": 4}})
    with pytest.raises(InputError, match="every experiment was refused; the first: sampling.buffer: flora cannot work asynchronously"):
        launch_stress.stress(path, out=tmp_path / "out")


def test_the_page_on_dials_has_every_key():
    page = (Path(__file__).resolve().parent.parent / "docs" / "stress.md").read_text()
    keys = [f"{name}.{key}" for name in ("faults", "network") for key in configuration.Config.model_fields[name].annotation.model_fields]
    missing = [key for key in keys if f"`{key}`" not in page]
    assert not missing
    for path in SHIPPED:
        assert f"`{path.stem}`" in page
    said = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    shipped = yaml.safe_load((SHIPPED[0].parent / "byzantine.yaml").read_text())
    assert (
        said["base"] == shipped["base"]
        and said["strategies"].items() <= shipped["strategies"].items()
        and said["dials"] == shipped["dials"]
    )
