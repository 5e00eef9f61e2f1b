"""`raylora run --plan` on the configurations at paper size: from manifests alone, without an image and without CineMA's weights."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from paper_manifests import write_manifests
from small_runs import tiny

from raylora import cohort, experiment, launch, planning
from raylora import config as configuration
from raylora.cluster import resources
from raylora.config import Config
from raylora.core.errors import InputError
from raylora.data import obtain
from raylora.data.manifest import PrepareOptions
from raylora.federation.build import build_host
from raylora.federation.executor import InProcess
from raylora.federation.protocol import initial_tree
from raylora.federation.spec import protocol_of
from raylora.report.forecast import clients_table, needs_table, show_plan
from raylora.report.table import Console

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "paper"
EVERY = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob("*/*.yaml"))
TRIMMED = {"name": "fedit", "reduce": {"name": "trimmed_mean", "trim": 0.25}}
OPTIONS = PrepareOptions(spacing_mm=(1.0, 1.0, 10.0), size=(192, 192, 16), crop="motion")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return write_manifests(tmp_path_factory.mktemp("manifests"), OPTIONS)


def load(name: str, prepared: Path, *overrides: str) -> Config:
    return configuration.load(CONFIGS / name, [f"data.root={prepared}", *overrides])


@pytest.mark.parametrize("name", EVERY)
def test_every_configuration_says_what_it_is_and_costs(name, prepared):
    text = (CONFIGS / name).read_text()
    header = text[: text.index("\nname:" if text.count("\nname:") else "\nbase:")]
    assert f"raylora run configs/paper/{name} data.root=prepared" in header and "# Cost:" in header and "COST" not in header
    config = load(name, prepared)
    assert config.data.protocol == "cmr-fed-v1" and config.data.size == (192, 192, 16)
    assert config.name == name.removesuffix(".yaml").replace("/", "_")


@pytest.mark.slow
def test_med_duallora_on_three_sets(prepared):
    """Every number by hand: 150 ACDC, 320 labelled M&Ms and 360 M&Ms-2 studies; q and kv of two blocks of CineMA base, rank 8, twice."""
    config = load("disease_cinema/med_duallora.yaml", prepared)
    plan = launch.plan(config)
    assert plan["datasets"] == {"acdc": 150, "mnms": 320, "mnms2": 360} and plan["duplicate_pairs"] == 2
    assert plan["left_out"] == {"unlabelled: for masked auto-encoding only": 25}
    assert plan["protocol"]["name"] == "cmr-fed-v1" and plan["protocol"]["sha256"].startswith("94bf0d14864b80ff")
    clients = plan["clients"]
    assert set(clients) == {"Siemens", "Philips", "GE", "Canon"}
    assert sum(clients[c][part] for c in clients for part in ("train", "validation", "rating", "test")) == 830
    for client in clients.values():
        total = sum(client[part] for part in ("train", "validation", "rating", "test"))
        assert abs(client["train"] - 0.6 * total) <= 6 and 0 < client["diseased"]["test"] < client["test"]
    head, pair = 2 * (768 * 2 + 2), 2 * 3840 * 8
    assert plan["parameters"] == {"frozen": 89_498_826 - 3 * 2 * 769, "trained": 2 * pair + head}
    number_of_metrics = 2  # the count of patients, the loss
    down, up = 4 * 4 * (pair + head), 4 * (4 * (pair + head) + 8 * number_of_metrics)
    assert plan["traffic"] == [{"up": up, "down": down}] * 2
    assert (
        plan["base"]["missing"].startswith("model.weights: no file cinema")
        and "huggingface.co/mathpluscode/CineMA" in plan["base"]["missing"]
    )
    assert plan["actors"]["cpus"] == 4 and plan["actors"]["gpus"] == 1
    memory = plan["memory_bytes"]
    assert memory["backbone"] == 4 * plan["parameters"]["frozen"] and 0.2e9 < memory["activations"] < 3e9
    assert json.loads(json.dumps(plan, allow_nan=False)) == plan


@pytest.mark.slow
def test_rate_my_lora_sends_more_from_the_second_round_on(prepared):
    """Down-links carry the stacked pairs of all four clients, to fold into the base, and a fresh pair."""
    plan = launch.plan(load("segmentation_unet/rate_my_lora.yaml", prepared))
    assert 6.8e6 < plan["parameters"]["frozen"] < 7.2e6
    first, later = plan["traffic"]
    head = 4 * (32 * 4 + 4)
    pairs = 4 * plan["parameters"]["trained"] - head  # bytes of one client's
    assert first["down"] == 4 * (pairs + head)
    assert later["up"] == first["up"] == 4 * (pairs + head + 8 * 4)  # count, loss, two scores
    assert 3.5 * first["down"] < later["down"] <= 5 * first["down"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strategy": {"name": "rate_my_lora"}}, "exactly"),
        ({"sampling": {"kind": "uniform", "fraction": 0.5}}, "exactly"),
        ({"sampling": {"kind": "uniform", "fraction": 0.5}, "strategy": {"name": "flora"}}, "about"),  # who was away is sent several folds
        ({"sampling": {"kind": "uniform", "fraction": 0.5}, "strategy": {"name": "hetlora"}, "lora__rank": [1, 2, 1, 2]}, "about"),
        ({"sampling": {"kind": "poisson", "fraction": 0.5}}, "about"),
        ({"strategy": {"name": "rolora"}}, "about"),  # its factors have two sizes
        ({"strategy": {"name": "med_duallora", "mode": "staged", "stage_rounds": 2}}, "about"),
        ({"faults": {"dropout": 0.1}}, "at most"),
        ({"strategy": {"name": "hetlora", "gamma": 0.5}}, "at most"),  # ranks may shrink
    ],
)
def test_a_plan_says_how_exact_the_bytes_of_all_rounds_are(prepared_folder, options, said):
    plan = launch.plan(tiny(prepared_folder, "disease", training__rounds=4, **options))
    assert plan["traffic_in_all"] == said


@pytest.mark.parametrize(("stack", "per_actor", "wanted"), [(1, 1, 4), (2, 1, 2), (4, 1, 1), (1, 2, 2), (4, "auto", 1), ("auto", 1, 4)])
def test_a_plan_wants_as_many_actors_as_a_run_starts(prepared_folder, stack, per_actor, wanted):
    config = tiny(prepared_folder, "disease", training__stack=stack, placement={"clients_per_actor": per_actor, "cpus_per_client": 0.1})
    plan = planning.make_plan(config)
    assert len(resources.request_of(plan, resources.local()).groups) == wanted == launch.plan(config)["actors"]["wanted"]


def test_what_a_run_would_refuse_of_its_placement_a_plan_refuses_too(prepared_folder):
    for share, said in ((0.3, "must be 1/n"), (1.5, "must be a whole number")):
        with pytest.raises(InputError, match=f"placement.gpus_per_client: .* {said}.*, found {share}"):
            launch.plan(tiny(prepared_folder, "disease", placement={"gpus_per_client": share}))


def test_a_gpu_without_a_share_is_refused_by_a_plan_too(prepared_folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match="placement.gpus_per_client: expected a share"):
        launch.plan(tiny(prepared_folder, "disease", training__device="cuda"))


def test_the_paper_s_clients_share_passes(prepared):
    assert {load(name, prepared).training.stack for name in EVERY if "centralised" not in name} == {"auto"}


def test_a_frozen_factor_is_not_counted_as_trained(prepared_folder):
    def trained(name, **options):
        config = tiny(prepared_folder, "disease", strategy={"name": name, **options}, training__rounds=4)
        return launch.plan(config)["parameters"]["trained"]

    config = tiny(prepared_folder, "disease")
    plan = planning.make_plan(config)
    first = initial_tree(plan.outline, protocol_of(plan.spec), plan.clients[0].id, plan.spec.max_rank)
    of_a = sum(array.size for name, array in first.items() if name.endswith(".lora_A"))
    assert trained("fedit") - trained("ffa_lora") == of_a > 0
    assert trained("rolora") == trained("rolora", period=2) == trained("fedit"), "in turn"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strategy": {"name": "scaffold"}}, "scaffold is derived for sgd, found adamw"),
        ({"strategy": {"name": "scaffold"}, "training__optimiser": "sgd"}, ""),
        (
            {"strategy": TRIMMED | {"reduce": {"name": "trimmed_mean", "trim": 0.2}}},
            "of 4 clients trimmed_mean with trim 0.2 leaves none out",
        ),
        ({"strategy": TRIMMED}, ""),
        ({"strategy": TRIMMED, "sampling": {"wait_for": 0.75}, "faults": {"late_s": 1.0}}, "of 3 clients"),
        ({"strategy": TRIMMED, "sampling": {"wait_for": 0.9}, "faults": {"late_s": 1.0}}, ""),  # of four it is four
        ({"strategy": TRIMMED, "sampling": {"buffer": 2}, "faults": {"late_s": 1.0}}, "of 2 clients"),
        ({"strategy": TRIMMED | {"name": "fedalt"}}, "of 3 clients"),
        (
            {"strategy": {"name": "feddpa", "schedule": "F", "stage_rounds": 2}, "training__rounds": 2},
            "stage_rounds: all 2 rounds are of the first stage",
        ),
        ({"strategy": {"name": "feddpa", "schedule": "F", "stage_rounds": 2}, "training__rounds": 3}, ""),
        ({"strategy": {"name": "med_duallora", "mode": "staged", "stage_rounds": 3}, "training__rounds": 2}, "stage_rounds: all 2 rounds"),
        ({"sampling": {"kind": "size", "fraction": 0.5}}, "strategy.weights: size lets them count for more once again"),
        ({"sampling": {"kind": "size", "fraction": 0.5}, "strategy": {"name": "fedit", "weights": "uniform"}}, ""),
    ],
)
def test_what_is_not_what_its_name_promises_is_said_before_and_when_it_runs(prepared_folder, tmp_path, options, said):
    config = tiny(prepared_folder, "disease", **options)
    notes = launch.plan(config)["notes"]
    assert [said in note for note in notes] == ([True] if said else [])
    events = experiment.run_experiment(planning.make_plan(config), tmp_path, lambda plan: InProcess(build_host(plan.spec, plan.weights)))
    told = list(itertools.takewhile(lambda event: event["event"] != "round", events))
    events.close()
    assert notes == [event["text"] for event in told if event["event"] == "note" and "strategy." in event["text"]]


def test_who_is_left_out_is_said(prepared_folder, monkeypatch):
    rows = obtain.studies([prepared_folder])
    known = [replace(row, centre="") if i < 3 else row for i, row in enumerate(rows)]
    monkeypatch.setattr(obtain, "studies", lambda folders: known)
    config = tiny(prepared_folder, clients={"by": "centre"})
    assert launch.plan(config)["notes"] == cohort.gather(config, [prepared_folder]).notes() == ["3 studies left out: no centre is known"]
    config = tiny(prepared_folder, "disease", data={**config.as_dict()["data"], "fractions": [0.6, 1e-9, 0.2, 0.2], "size": [16, 16, 3]})
    monkeypatch.setattr(obtain, "studies", lambda folders: rows)
    cut, blind = cohort.gather(config, [prepared_folder]).notes()
    assert cut.endswith("have more slices than data.size: the outer ones are left out"), "a class has no voxels that could be missed"
    assert blind.startswith("no validation patient: Canon, GE, Philips, Siemens; scores of validation are not there")
    monkeypatch.setattr(obtain, "studies", lambda folders: [replace(row, group="?") for row in rows])
    with pytest.raises(InputError, match=rf"data: none of {len(rows)} studies is a case for disease: group '\?' of mnms says neither"):
        launch.plan(tiny(prepared_folder, "disease"))


def test_a_plan_in_words(prepared):
    plan = {
        "name": "n", "task": "disease", "strategy": "fedit", "rounds": 3, "protocol": {"name": "p", "sha256": "0123456789abcdef0"},
        "datasets": {"acdc": 7}, "duplicate_pairs": 1, "held_out": ["b"], "left_out": {"unlabelled": 2},
        "clients": {c: {"train": 3, "validation": 1, "rating": 1, "test": 2, "diseased": {"train": 2, "validation": 1, "rating": 0, "test": 1}} for c in "ab"},
        "base": {"name": "cinema", "size": "base", "weights": "cinema", "missing": "no file cinema", "has_seen": ["x", "y", "z"]}, "notes": ["be careful"],
        "parameters": {"frozen": 1000, "trained": 10}, "traffic": [{"up": 10, "down": 20}, {"up": 10, "down": 40}], "traffic_in_all": "exactly",
        "memory_bytes": {"torch": 1_000_000, "backbone": 2_000_000},
        "actors": {"cpus": 1, "gpus": 0.5, "wanted": 2, "fit_here": 1, "fit_by_share": 3, "fit_by_memory": 1},
    }  # fmt: skip
    assert clients_table(plan).rows[-1] == ("all", 6, 4, 2, 2, 2, 0, 4, 2)
    said = dict(needs_table(plan).rows)
    assert dict(needs_table({**plan, "traffic_in_all": "at most"}).rows)["Bytes of all 3 rounds, at most"] == "130 B"
    assert said["Bytes of all 3 rounds"] == "130 B" and said["Memory of an actor, about"].startswith("3 MB (torch 1 MB")
    console = Console(record=True, width=150, file=open("/dev/null", "w"))
    with console.file:
        show_plan(plan, console)
        text = console.export_text()
    for part in (
        "fedit on disease, 3 rounds",
        "b (held out)",
        "Protocol p (sha256 0123456789abcdef); 3 scored patients were seen by the base weights",
        "! be careful",
        "! no file cinema",
        "! not enough memory here for 2 actors at once: placement.clients_per_actor",
    ):
        assert part in text, part
    with open("/dev/null", "w") as nowhere:
        console = Console(record=True, width=150, file=nowhere)
        show_plan({**plan, "actors": {**plan["actors"], "wanted": 1}}, console)
        assert "not enough" not in console.export_text()
