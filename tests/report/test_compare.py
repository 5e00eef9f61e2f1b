import csv
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml
from make_run import SITES, make_run
from page_reader import Page, assert_self_contained
from rich.console import Console

from raylora import launch_sweep
from raylora.core.errors import InputError
from raylora.metrics.significance import holm, resolvable_difference, wilcoxon
from raylora.report.compare import compare

FEW = 200  # bootstrap replicates


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two strategies with three seeds each and one with private parts, for segmentation; two for disease."""
    root = tmp_path_factory.mktemp("compare")
    made = {}
    for seed in (0, 1, 2):
        made["fedit", seed] = make_run(root / f"fedit{seed}", seed=seed, rounds=2)
        made["rate", seed] = make_run(root / f"rate{seed}", strategy="rate_my_lora", seed=seed, quality=0.9, rounds=2)
    made["dual", 0] = make_run(root / "dual", strategy="med_duallora", own_models=True, rounds=2)
    disease = {"task": "disease", "rounds": 2, "patients": 8}
    made["disease fedit", 0] = make_run(root / "d0", quality=0.7, **disease)
    made["disease dual", 0] = make_run(root / "d1", strategy="med_duallora", quality=0.9, own_models=True, **disease)
    return made


@pytest.fixture(scope="module")
def both(folders):
    return compare(list(folders.values()), replicates=FEW)


def _summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_tasks_are_separate_blocks_and_seeds_are_repeats(both):
    segmentation, disease = both.blocks
    assert (segmentation.task, disease.task) == ("segmentation", "disease")
    assert [(s.label, s.seeds) for s in segmentation.scores] == [("fedit", (0, 1, 2)), ("rate_my_lora", (0, 1, 2)), ("med_duallora", (0,))]
    assert len(segmentation.pairs) == 3 and len(disease.pairs) == 1
    assert segmentation.varied == ("strategy.name",)


def test_an_option_spelt_out_beside_its_default_is_the_same_configuration(tmp_path):
    spelt = {"strategy": {"name": "fedit", "weights": "size", "reduce": "mean", "head": "shared"}}
    runs = [make_run(tmp_path / "silent", rounds=1), make_run(tmp_path / "spelt", seed=1, rounds=1, config=spelt)]
    runs += [make_run(tmp_path / "other", rounds=1, config={"strategy": {"name": "fedit", "weights": "uniform"}})]
    block = compare(runs, replicates=FEW).blocks[0]
    assert [(s.label, s.seeds) for s in block.scores] == [("fedit weights=size", (0, 1)), ("fedit weights=uniform", (0,))]
    assert block.varied == ("strategy.weights",)


def test_scores_are_means_over_seeds_of_what_the_summaries_say(both, folders):
    fedit = both.blocks[0].scores[0]
    finals = [_summary(folders["fedit", seed])["final"] for seed in (0, 1, 2)]
    assert fedit.in_client.value == pytest.approx(np.mean([f["dice"]["mean"] for f in finals]))
    assert fedit.exploratory["hd95_mm"].value == pytest.approx(np.mean([f["hd95_mm"]["mean"] for f in finals]))
    assert fedit.per_client["ge"] == pytest.approx(np.mean([f["dice"]["per_client"]["ge"] for f in finals]))
    assert both.blocks[0].frozen.in_client.value == pytest.approx(finals[0]["dice"]["frozen"])
    assert fedit.bytes_up == _summary(folders["fedit", 0])["bytes_up"]
    assert fedit.in_client.n == 24 and fedit.in_client.low < fedit.in_client.value < fedit.in_client.high


def test_cross_client_is_the_mean_off_the_diagonal(both, folders):
    dual = both.blocks[0].scores[2]
    matrix = _summary(folders["dual", 0])["cross_client"]
    values = np.array([matrix["values"][matrix["rows"].index(client)] for client in SITES])
    assert dual.cross_client.value == pytest.approx(values[~np.eye(4, dtype=bool)].mean())
    assert dual.in_client.value == pytest.approx(np.diag(values).mean())
    assert dual.shared.value == pytest.approx(np.mean(matrix["values"][matrix["rows"].index("global")]))
    fedit = both.blocks[0].scores[0]
    assert fedit.cross_client.value == pytest.approx(fedit.in_client.value)  # one model for all: abroad is home


def test_pairs_are_tested_on_patients_averaged_over_seeds(both, folders):
    from raylora.metrics.rows import patient_scores
    from raylora.report.runs import read_run

    def by_patient(name):
        runs = [read_run(folders[name, seed]).test.patients for seed in (0, 1, 2)]
        return {p: np.mean([patient_scores(r["global", c], "dice")[p] for r in runs]) for c in SITES for p in runs[0]["global", c]}

    fedit, rate = by_patient("fedit"), by_patient("rate")
    differences = np.array([rate[p] - fedit[p] for p in sorted(fedit)])
    pair = next(p for p in both.blocks[0].pairs if {p.a, p.b} == {"fedit", "rate_my_lora"})
    assert (pair.a, pair.n, pair.test) == ("rate_my_lora", 24, "Wilcoxon")
    assert pair.p_value == pytest.approx(wilcoxon(differences))
    assert pair.difference == pytest.approx(differences.mean())  # six patients in every client
    assert pair.effect == 1.0 and pair.verdict == "A better"
    assert pair.sentence.startswith("rate_my_lora is better than fedit by 0.0") and "after Holm over 3 pairs; 24 patients" in pair.sentence
    assert [p.p_holm for p in both.blocks[0].pairs] == pytest.approx(holm([p.p_value for p in both.blocks[0].pairs]))


def test_the_baseline_against_itself(both, folders):
    a_a = both.blocks[0].a_a
    scores = [_summary(folders["fedit", seed])["final"]["dice"]["mean"] for seed in (0, 1, 2)]
    assert a_a.baseline == "fedit" and list(a_a.scores.values()) == pytest.approx(scores)
    assert a_a.largest == pytest.approx(max(scores) - min(scores))
    assert a_a.resolvable == pytest.approx(resolvable_difference(scores, 3, 3))
    one = next(p for p in both.blocks[0].pairs if "med_duallora" in (p.a, p.b) and "fedit" in (p.a, p.b))
    assert one.resolvable == pytest.approx(resolvable_difference(scores, 3, 1))  # three seeds against one
    assert "A/A is not available: it needs two seeds of the baseline (fedit), there is 1" in both.blocks[1].a_a.sentence


def test_a_difference_below_the_a_a_limit_is_not_resolvable(tmp_path):
    runs = [make_run(tmp_path / f"f{s}", seed=s, spread=0.03, rounds=1) for s in (0, 1)]
    runs += [make_run(tmp_path / f"r{s}", strategy="local", seed=s, quality=0.87, rounds=1) for s in (0, 1)]
    (pair,) = compare(runs, replicates=FEW).blocks[0].pairs
    assert pair.p_holm < 0.05 and pair.difference < pair.resolvable
    assert pair.verdict == "not resolvable" and pair.sentence.startswith("Not resolvable here: ")


def test_equal_runs_show_no_difference(tmp_path):
    one = make_run(tmp_path / "one", rounds=1)
    twin = make_run(tmp_path / "twin", rounds=1)
    config = (twin / "config.yaml").read_text().replace("lr: 0.001", "lr: 0.01")
    (twin / "config.yaml").write_text(config)
    block = compare([one, twin], replicates=FEW).blocks[0]
    assert [s.label for s in block.scores] == ["fedit lr=0.001", "fedit lr=0.01"]
    assert block.pairs[0].difference == 0 and block.pairs[0].p_value == 1.0
    assert block.pairs[0].verdict == "no difference shown"


def test_disease_has_delong_and_mcnemar_beside_its_primary_test(both):
    (pair,) = both.blocks[1].pairs
    assert (pair.a, pair.test) == ("med_duallora", "paired bootstrap")
    assert pair.auc.difference > 0 and 0 < pair.auc.p_value <= 1 and 0 < pair.mcnemar_p <= 1
    assert pair.sentence.startswith("In these runs ") or pair.verdict == "no difference shown"


def test_placement_and_names_do_not_make_a_difference_and_repeats_are_said(tmp_path):
    runs = [make_run(tmp_path / "a", rounds=1, config={"placement.cpus_per_client": n, "data.root": str(n)}) for n in (1,)]
    runs.append(make_run(tmp_path / "b", rounds=1, config={"placement.cpus_per_client": 4, "data.root": "elsewhere", "name": "other"}))
    block = compare(runs, replicates=FEW).blocks[0]
    assert len(block.scores) == 1 and block.varied == ()
    assert block.findings()[0].startswith("fedit was scored on validation patients (0.")
    assert any("repeats" in remark and str(runs[1]) in remark for remark in block.remarks)


def test_runs_without_a_hash_of_their_data_are_told_from_others(tmp_path):
    one, other = (make_run(tmp_path / name, rounds=1, patients=2) for name in ("one", "other"))
    summary = json.loads((one / "summary.json").read_text())
    (one / "summary.json").write_text(json.dumps({**summary, "data_sha256": None}))
    there = make_run(tmp_path / "there", data="another cohort", rounds=1, patients=2)
    with pytest.raises(InputError, match=r"were on different data \(data_sha256 (unknown|[0-9a-f]{8}) and [0-9a-f]{8}\)"):
        compare([one, other, there], replicates=FEW)


def test_different_data_are_never_tested_against_each_other(tmp_path):
    here = [make_run(tmp_path / f"h{i}", strategy=s, rounds=1, patients=2) for i, s in enumerate(("fedit", "local"))]
    there = make_run(tmp_path / "there", strategy="local", data="another cohort", rounds=1, patients=2)
    with pytest.raises(InputError, match="were on different data") as caught:
        compare([here[0], there])
    assert str(here[0]) in str(caught.value) and str(there) in str(caught.value) and "\n" not in str(caught.value)
    blocks = compare([*here, there], replicates=FEW).blocks
    assert [len(b.pairs) for b in blocks] == [1, 0]
    assert any("other data" in remark for remark in blocks[0].remarks)


def test_only_shared_patients_are_paired(tmp_path):
    runs = [make_run(tmp_path / "many", patients=6, rounds=1), make_run(tmp_path / "few", strategy="local", patients=3, rounds=1)]
    (pair,) = compare(runs, replicates=FEW).blocks[0].pairs
    assert pair.n == 12
    apart = make_run(tmp_path / "apart", strategy="local", clients=("x", "y"), patients=3, rounds=1)
    (pair,) = compare([runs[0], apart], replicates=FEW).blocks[0].pairs
    assert pair.verdict == "not tested" and pair.sentence.endswith("they share fewer than two test patients.")


def test_a_baseline_that_is_not_there_is_refused(tmp_path):
    folder = make_run(tmp_path / "one", rounds=1, patients=2)
    with pytest.raises(InputError, match=r"--baseline: expected a strategy or label of these runs \(fedit\), found fedti"):
        compare([folder], baseline="fedti", replicates=FEW)
    page = compare([folder], baseline="fedit", replicates=FEW).write_html(tmp_path / "page.html").read_text()
    assert "Comparison of 1 run<" in page


def test_folders_that_are_no_runs_and_runs_without_an_end(tmp_path):
    with pytest.raises(InputError, match="expected a run folder"):
        compare([tmp_path / "nothing"])
    failed = make_run(tmp_path / "failed", status="failed", rounds=1, patients=2)
    with pytest.raises(InputError, match="expected finished runs, found none"):
        compare([failed])


def test_winners_are_chosen_on_validation_and_say_how_many_were_tried(tmp_path):
    """Rank 4 leads on validation patients; on the test patients it is rank 8."""
    validation = {2: 0.8, 4: 0.9, 8: 0.85}
    runs = [
        make_run(tmp_path / f"r{r}", quality=0.8 + r / 100, validation=v, rounds=1, patients=2, config={"lora.rank": r})
        for r, v in validation.items()
    ]
    runs.append(make_run(tmp_path / "pruned", status="pruned", rounds=1, patients=2, config={"lora.rank": 16}))
    block = compare(runs, replicates=FEW).blocks[0]
    (winner,) = block.winners
    validation = [s.validation.value for s in block.scores]
    assert winner.tried == 4 and winner.score.validation.value == max(validation) and winner.overall
    assert winner.score.label == "fedit rank=4" and max(block.scores, key=lambda s: s.in_client.value).label == "fedit rank=8"
    assert f"Of 4 configurations tried, {winner.score.label} has the best Dice on validation patients" in block.findings()[0]
    assert any("pruned" in remark for remark in block.remarks)


def test_equals_on_validation_patients_are_named(tmp_path):
    same = [make_run(tmp_path / str(rank), spread=0, patients=2, config={"lora.rank": rank}) for rank in (2, 4)]
    for file in ("cases.parquet", "summary.json"):
        (same[1] / file).write_bytes((same[0] / file).read_bytes())
    (block,) = compare(same, replicates=200).blocks
    first, *_, pair = block.findings()
    assert re.match(
        r"Of 2 configurations tried, \S+ .*, .* share the best Dice on validation patients \(0.\d+, n = 16\); the first", first
    ), first
    assert "their means are the same" in pair


def test_a_configuration_whose_worse_seeds_were_stopped_is_not_chosen(tmp_path):
    def made(name, rank, seed, quality, status="finished"):
        return make_run(tmp_path / name, config={"lora.rank": rank}, seed=seed, quality=quality, rounds=1, status=status)

    runs = [made("a0", 4, 0, 0.9), made("a1", 4, 1, 0.9, "pruned"), *(made(f"b{s}", 8, s, 0.85) for s in (0, 1))]
    (block,) = compare(runs, replicates=FEW).blocks
    assert block.chosen.score.label == "fedit rank=8" and block.chosen.tried == 2
    assert "fedit rank=4 has not finished every seed that was tried: it is not chosen." in block.remarks
    again = made("a1 again", 4, 1, 0.9)
    (block,) = compare([*runs, again], replicates=FEW).blocks
    assert block.chosen.score.label == "fedit rank=4" and not any("not chosen" in remark for remark in block.remarks)
    (block,) = compare([runs[0], runs[1]], replicates=FEW).blocks
    assert block.chosen.score.label == "fedit"  # there is no other
    others = [
        make_run(tmp_path / f"h{s}", strategy="hetlora", seed=s, rounds=1, status=how) for s, how in enumerate(("finished", "failed"))
    ]
    (block,) = compare([*runs[2:], *others], replicates=FEW).blocks
    assert [winner.strategy for winner in block.winners] == ["fedit", "hetlora"] and block.chosen.strategy == "fedit"
    assert "hetlora has not finished every seed that was tried: among all strategies it is not chosen." in block.remarks


def test_equal_numbers_are_equal_however_they_are_written(tmp_path):
    runs = [
        make_run(tmp_path / f"{seed}", config={"strategy.temperature": t, "lora.scale": [t, 2]}, seed=seed, rounds=1)
        for seed, t in enumerate((1, 1.0))
    ]
    runs += [make_run(tmp_path / f"near{n}", config={"strategy.temperature": 1 + n * 1e-9}, quality=0.6, rounds=1) for n in (1, 2)]
    (block,) = compare(runs, replicates=FEW).blocks
    assert [score.seeds for score in block.scores] == [(0, 1), (0,), (0,)]
    assert len({score.label for score in block.scores}) == 3 and "temperature=1.000000001" in block.scores[1].label


def test_a_stack_that_was_measured_tells_seeds_apart_only_if_somebody_asked(tmp_path):
    stacks = enumerate((4, 8, 8))
    runs = [make_run(tmp_path / f"{seed}", config={"training.stack": stack}, seed=seed, rounds=1) for seed, stack in stacks]
    (block,) = compare(runs, replicates=FEW).blocks
    assert [score.label for score in block.scores] == ["fedit"] and block.a_a.resolvable is not None
    again = make_run(tmp_path / "again", config={"training.stack": 8}, seed=1, rounds=1)
    assert len(compare([*runs, again], replicates=FEW).blocks[0].scores) == 1  # a copy, which is left out
    runs.append(make_run(tmp_path / "other", config={"training.stack": 4}, seed=2, rounds=1))
    (block,) = compare(runs, replicates=FEW).blocks
    assert [(score.label, score.seeds) for score in block.scores] == [("fedit stack=4", (0, 2)), ("fedit stack=8", (1, 2))]


def test_whose_frozen_model_it_is_is_said_where_there_are_several(tmp_path):
    given = {"phantom_unet": 0.9, "other": 0.7}
    runs = [make_run(tmp_path / name, config={"model.weights": name}, quality=q, rounds=1) for name, q in given.items()]
    (block,) = compare(runs, replicates=FEW).blocks
    assert "These runs start from different models: the frozen one is that of fedit weights=phantom_unet." in block.remarks
    same = [make_run(tmp_path / f"c{on}", config={"model.checkpointing": bool(on)}, rounds=1) for on in (0, 1)]
    assert not any("different models" in remark for remark in compare(same, replicates=FEW).blocks[0].remarks)


def test_that_runs_score_other_patients_is_said(tmp_path):
    runs = [make_run(tmp_path / str(n), config={"data.split_seed": n}, patients=patients, rounds=1) for n, patients in enumerate((6, 5))]
    remarks = compare(runs, replicates=FEW).blocks[0].remarks
    assert any(
        remark.startswith("These runs do not score the same patients (data.split_seed): means beside each other") for remark in remarks
    )
    alike = [make_run(tmp_path / f"r{r}", config={"lora.rank": r}, rounds=1) for r in (1, 2)]
    assert not any("the same patients (" in remark for remark in compare(alike, replicates=FEW).blocks[0].remarks)


def test_a_sweep_folder_is_its_trials(tmp_path):
    sweep = tmp_path / "sweep"
    for number, rank in enumerate((2, 4, 8)):
        made = make_run(sweep / "trials" / f"{number:03d}", quality=0.8 + rank / 100, rounds=1, patients=2, config={"lora.rank": rank})
    config = yaml.safe_load((made / "config.yaml").read_text())
    for number, status in ((3, "pruned"), (4, "failed")):  # they ended before they knew more than their configuration
        other = sweep / "trials" / f"{number:03d}"
        other.mkdir()
        (other / "config.yaml").write_text(yaml.safe_dump({**config, "lora": {**config["lora"], "rank": 2**number * 2}}))
        (other / "summary.json").write_text(json.dumps({"status": status}))
    (sweep / "trials" / "005").mkdir()  # one that had only begun
    with pytest.raises(InputError, match="expected a run folder"):
        compare([sweep])
    (sweep / "sweep.json").write_text("{}")
    block = compare([sweep], replicates=FEW).blocks[0]
    assert [s.label for s in block.scores] == ["fedit rank=2", "fedit rank=4", "fedit rank=8"]
    assert [w.tried for w in block.winners] == [5] and block.findings()[0].startswith(
        "Of 5 configurations tried, fedit rank=8 has the best"
    )
    assert [run.summary["status"] for run in block.runs] == ["finished"] * 3 + ["pruned", "failed"]
    ends = [{"folder": f"trials/{n:03d}", "status": run.summary["status"]} for n, run in enumerate(block.runs)]
    launch_sweep._compare(sweep, {"trials": ends, "counts": {"finished": 3}}, lambda event: None)
    assert "Of 5 configurations tried" in (sweep / "comparison.html").read_text()
    ranked = {"name": "ranks", "task": "segmentation", "best": {"values": {"lora.rank": 4}, "objective": 0.25}}
    for metric in ("loss", "dice"):
        (sweep / "sweep.json").write_text(json.dumps({**ranked, "objective": {"metric": metric, "mode": "min"}}))
        said = "The sweep ranks chose rank 4 by loss (0.250 on validation patients); on this page everything is chosen by Dice."
        assert (said in compare([sweep], replicates=FEW).blocks[0].remarks) == (metric == "loss")


def test_of_very_many_configurations_only_the_chosen_ones_pairs_are_tested(tmp_path, monkeypatch):
    from raylora.report import block as blocks

    monkeypatch.setattr(blocks, "MOST_TESTED", 3)
    runs = [make_run(tmp_path / str(r), quality=0.7 + r / 100, rounds=1, patients=2, config={"lora.rank": r}) for r in (1, 2, 4, 8)]
    block = compare(runs, replicates=50).blocks[0]
    assert {(p.a, p.b) for p in block.pairs} == {("fedit rank=8", f"fedit rank={r}") for r in (1, 2, 4)}
    assert "4 configurations: only pairs with fedit rank=8, which validation patients chose, are tested." in block.remarks
    assert len(compare(runs[:3], replicates=50).blocks[0].pairs) == 3


def test_the_dictionary_is_json_and_the_tables_are_csv(both, tmp_path):
    text = json.dumps(both.as_dict(), allow_nan=False)
    block = json.loads(text)["blocks"][0]
    assert block["metric"] == "dice" and block["configurations"][0]["in_client"]["n"] == 24
    assert block["a_a"]["resolvable"] > 0 and block["pairs"][0]["verdict"]
    paths = both.write_csv(tmp_path / "csv")
    rows = list(csv.DictReader(io.StringIO(paths[0].read_text())))
    assert [row["Configuration"] for row in rows] == ["frozen model", "fedit", "rate_my_lora", "med_duallora"]
    assert float(rows[1]["In-client [95 %]"]) == pytest.approx(both.blocks[0].scores[0].in_client.value)
    assert len(paths) == len({p.name for p in paths}) == 15


def test_infinite_settings_stay_json(tmp_path):
    configs = [{"strategy.temperature": t} for t in (0.1, float("inf"))]
    runs = [make_run(tmp_path / str(i), strategy="rate_my_lora", rounds=1, patients=2, config=c) for i, c in enumerate(configs)]
    found = compare(runs, replicates=FEW)
    block = json.loads(json.dumps(found.as_dict(), allow_nan=False))["blocks"][0]
    assert [c["settings"]["strategy.temperature"] for c in block["configurations"]] == [0.1, "inf"]
    assert [c["label"] for c in block["configurations"]] == ["rate_my_lora temperature=0.1", "rate_my_lora temperature=inf"]


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_shows_names_scores_and_sentences(both, width):
    console = Console(width=width, record=True, file=io.StringIO())
    both.show(console)
    text = console.export_text()
    fedit = both.blocks[0].scores[0].in_client
    assert f"{fedit.value:.3f} [{fedit.low:.3f}, {fedit.high:.3f}]" in text
    assert "frozen model" in text and "rate_my_lora" in text and "itself" in text and "A/A" in text


@pytest.mark.slow
def test_the_page_is_whole_and_alone(both, tmp_path):
    page = Page(both.write_html(tmp_path / "page.html"))
    assert_self_contained(page)
    for sentence in both.blocks[0].findings():
        assert " ".join(sentence.split()) in page.text
    assert "What all of these runs have in common" in page.text and "model.name: unet" in page.text
    assert "AUC and decisions" in page.text and "exploratory" in page.text.lower()
    assert len(page.all("img")) == 6  # for each task: scores, against bytes, against seconds


def test_the_command_writes_page_and_tables(folders, tmp_path, capsys, monkeypatch):
    """`raylora compare`: the A/A row is of the baseline that was asked for, every table has a file."""
    from raylora.cli import app, guarded

    words = [
        "compare",
        *(str(folder) for folder in folders.values()),
        "--baseline",
        "rate_my_lora",
        "--output",
        str(tmp_path / "page.html"),
    ]
    monkeypatch.setattr("sys.argv", ["raylora", *words, "--csv", str(tmp_path / "tables"), "--json"])
    assert guarded(lambda: app(standalone_mode=False)) == 0
    said = capsys.readouterr().out
    found = json.loads(said.splitlines()[-1])
    assert found["blocks"][0]["a_a"]["baseline"].startswith("rate_my_lora")
    files = sorted(path.name for path in (tmp_path / "tables").glob("*.csv"))
    assert any("pairs" in name for name in files) and f"({len(files)} files)" in said and (tmp_path / "page.html").stat().st_size > 1000


@pytest.mark.slow
def test_nobody_has_to_listen(folders):
    """Standard output is closed: there is none at all."""
    command = [sys.executable, "-m", "raylora", "compare", *map(str, list(folders.values())[:2])]
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_strategies_of_which_nothing_finished_count_as_tried(tmp_path):
    runs = [make_run(tmp_path / "a", rounds=1), make_run(tmp_path / "b", strategy="local", rounds=1, status="pruned")]
    (block,) = compare(runs, replicates=FEW).blocks
    assert block.tried == 2 and block.findings()[0].startswith("Of 2 configurations tried, fedit has the best Dice")


def test_the_same_weights_in_two_places_are_one_configuration(tmp_path):
    runs = [
        make_run(tmp_path / str(seed), seed=seed, rounds=1, config={"model.weights": f"/home/{seed}/heart.safetensors"}) for seed in (0, 1)
    ]
    assert len(compare(runs, replicates=FEW).blocks[0].scores) == 2, "without a hash nobody knows"
    for sha256s, configurations in (("aa", 1), ("ab", 2)):
        for run, sha256 in zip(runs, sha256s, strict=True):
            path = run / "summary.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "base": {"sha256": sha256}}))
        (block,) = compare(runs, replicates=FEW).blocks
        assert len(block.scores) == configurations
        assert any("start from different models" in remark for remark in block.remarks) == (configurations == 2)
