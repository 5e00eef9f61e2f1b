"""`raylora stress`: what a file expands into, what its page says, and a campaign that goes on where it was left."""

import json
import math
from pathlib import Path

import pytest
import yaml
from here import without_ray
from small_runs import settings

from raylora import config as configuration
from raylora import launch_stress, stress
from raylora.cluster import resources
from raylora.core.errors import InputError

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


def test_a_level_is_laid_last(tmp_path):
    """A section that a strategy lays over whole would win over a level that stands in `common` too."""
    layers = {"faults.dropout": 0.0, "lora.rank": 2}, {"faults": {"strength": 5.0}}, {"faults.dropout": 0.3}
    assert list(stress.in_order(*layers)) == ["lora.rank", "faults", "faults.dropout"]
    found = stress.load(written(tmp_path, common={"faults": {"strength": 5.0, "dropout": 0.9}}))
    configs = [found.config(trial).faults for trial in stress.trials(found)]
    assert [(c.dropout, c.strength) for c in configs] == [(0.0, 5.0), (0.0, 5.0), (0.3, 5.0), (0.3, 5.0)]


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
        ({"strategies": {"a": {"faults": {"strength": 5.0}}}}, "dials.faults.dropout: a strategy sets it too"),
        (
            {"strategies": {"a": {"faults.strength": 5.0}}, "dials": {"faults": [{}, {"dropout": 0.5}]}},
            "dials.faults: a strategy sets it too",
        ),
        (
            {"dials": {"faults.dropout": [0, 0.3], "faults": [{}, {"strength": 2}]}},
            "dials.faults: .*, with faults.dropout; write that into each",
        ),
        ({"dials": {"faults": [{}, {"byzantine": 0.2}]}, "common": {"faults.strength": 5}}, "dials.faults: .*, with faults.strength"),
        ({"dials": {"faults.dropout": [0, 0.3, 0.0]}}, "dials.faults.dropout: expected each level once, found 0.0 twice"),
        ({"strategies": {"a": {}, "b": {"task": "disease"}}}, "strategies.b.task: all experiments of a campaign have the base's task"),
        ({"common": {"seed": 4}}, "common.seed: all experiments"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [0, 0]}, r"seeds: expected each seed once, found \[0, 0\]"),
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


def test_a_campaign_whose_experiments_are_all_refused_says_why(prepared_folder, tmp_path):
    path = written(tmp_path, settings(prepared_folder), strategies={"a": {"strategy": {"name": "flora"}, "sampling.buffer": 4}})
    with pytest.raises(InputError, match="every experiment was refused; the first: sampling.buffer: flora cannot work asynchronously"):
        launch_stress.stress(path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_was_refused_is_asked_again(prepared_folder, tmp_path, monkeypatch):
    """By a machine that was too small, above all."""
    without_ray(monkeypatch.setattr)
    apart = {"together": {"placement.clients_per_actor": 4}, "apart": {"placement.clients_per_actor": 1}}
    path = written(tmp_path, settings(prepared_folder, "disease", training__rounds=1), strategies=apart)
    ledger = tmp_path / "out" / "ledger.jsonl"

    def called(cpus: float) -> list[str]:
        monkeypatch.setattr(resources, "local", lambda: resources.Available(cpus=cpus, gpus=0.0, where="this machine"))
        _, found = launch_stress.stress(path, out=tmp_path / "out")
        return [experiment.status for experiment in found.ended]

    assert called(2.0) == ["finished", "refused"] * 2
    before = ledger.read_text()
    assert called(2.0) == ["finished", "refused"] * 2 and ledger.read_text() == before
    assert called(4.0) == ["finished"] * 4
    assert sum(json.loads(line)["kind"] == "trial" for line in ledger.read_text().splitlines()) == 4, "each once"


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
