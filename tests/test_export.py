"""What is exported opens elsewhere: peft alone gives the same logits, merged weights load strictly, here and in MONAI's networks."""

import errno
import json
import shutil
import warnings
from pathlib import Path

import pytest
import safetensors.numpy
import safetensors.torch
import torch
import yaml
from safetensors import safe_open
from small_runs import Finished, run, settings, tiny

from raylora import config as configuration
from raylora import planning
from raylora.core.errors import InputError, RunError
from raylora.export import base_model, export
from raylora.models import peft, zoo
from raylora.models.seen import Seen, read_seen
from raylora.report import card

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from peft import PeftModel

CINEMA = {
    **{"patch": [4, 4, 1], "scale": [2, 2, 1], "conv_chans": [4, 6], "conv_n_blocks": 1, "embed": 12, "depth": 2, "heads": 2},
    "dec_chans": [4, 4, 6, 6, 8],
}
GRID = {"data__spacing_mm": [2.25, 2.25, 10.0], "data__size": [32, 32, 4]}
CASES = {
    "unet": ("segmentation", {}),
    "vit": ("disease", {}),
    "dual": ("disease", {"strategy": {"name": "med_duallora", "head": "private"}}),
    "folded": ("segmentation", {"strategy": {"name": "rate_my_lora"}}),
}


def logits(model, run: Finished) -> torch.Tensor:
    spec = run.plan.spec.model
    x = torch.rand(2, zoo.CHANNELS[spec.task], *spec.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(x)


def by_hand(run: Finished, name: str):
    """The base, its weights moved by the run's own folder, without peft and without the export."""
    spec, folder = run.plan.spec.model, run.folder / "adapters" / name
    network = zoo.build(spec.name, spec.task, spec.size, spec.image_size, spec.sizes, spec.seed)
    state = {key: torch.from_numpy(value.copy()) for key, value in run.plan.weights.items()}
    pairs = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    for key in [key for key in pairs if ".lora_A." in key]:
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        a, b = (torch.from_numpy(pairs[key.replace(".lora_A.", f".lora_{side}.")]).flatten(1).double() for side in "AB")
        state[f"{module}.weight"] += (b @ a).float().reshape(state[f"{module}.weight"].shape)
    state |= {key: torch.from_numpy(value) for key, value in safetensors.numpy.load_file(folder / "head.safetensors").items()}
    network.load_state_dict(state, strict=True)
    return network


def base_of(run: Finished):
    spec = run.plan.spec.model
    return zoo.build(spec.name, spec.task, spec.size, spec.image_size, spec.sizes, spec.seed)


def assert_same(found: torch.Tensor, expected: torch.Tensor, other: torch.Tensor) -> None:
    """Equal up to rounding, which norms amplify, and far from another model's logits."""
    error, effect = (found - expected).abs().max(), (other - expected).abs().max()
    size = max(1.0, float(expected.abs().max()))
    assert error < 1e-4 * size and effect > 2e-5 and error < effect / 10, f"error {error:.1e}, effect {effect:.1e}, size {size:.1f}"


def opened(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # peft only warns of missing keys
        return PeftModel.from_pretrained(base_model(folder), str(folder))


@pytest.mark.parametrize("case", CASES)
def test_peft_alone_gives_the_same_logits(runs, tmp_path, case):
    task, options = CASES[case]
    done = runs(task, **options)
    for name in ("global", "Siemens"):
        folder = export(done.folder, tmp_path / name, client=None if name == "global" else name)
        expected = logits(by_hand(done, name), done)
        assert_same(logits(opened(folder), done), expected, other=logits(base_model(folder), done))


@pytest.mark.parametrize("case", CASES)
def test_merged_weights_load_strictly_and_in_monai_too(runs, tmp_path, case):
    from raylora.models import monai_twin

    task, options = CASES[case]
    done = runs(task, **options)
    spec = done.plan.spec.model
    file = export(done.folder, tmp_path / "merged.safetensors", client="Siemens", merged=True)
    network = zoo.build(spec.name, spec.task, spec.size, spec.image_size, spec.sizes, seed=99)
    network.load_state_dict(safetensors.torch.load_file(file), strict=True)
    expected = logits(by_hand(done, "Siemens"), done)
    other = logits(by_hand(done, "global"), done) if case == "dual" else logits(base_of(done), done)
    assert_same(logits(network, done), expected, other)
    if task == "segmentation":
        assert_same(logits(monai_twin.monai_unet(network), done), expected, other)


def test_merged_weights_have_seen_what_the_run_trained_on(runs, tmp_path):
    done = runs()
    folder = export(done.folder, tmp_path / "new" / "merged", merged=True)
    rows, splits = done.plan.cohort.rows, done.plan.cohort.splits
    assert read_seen(folder / "model.safetensors").cases == {rows[id].source_sha256 for split in splits.values() for id in split.train}
    with safe_open(folder / "model.safetensors", "np") as file:
        assert json.loads(file.metadata()["made_by"])["model_of"] == "global"
    again = configuration.from_dict(settings(done.folder, model={"name": "unet", "weights": str(folder / "model.safetensors")}))
    assert again.model.weights, "as a base of another run"


def test_merged_weights_have_seen_the_hearts_of_their_base(runs, tmp_path):
    """Under another scanner a phantom's file is another one: a hash does not tell that it is the same heart."""
    before = runs()
    path = tmp_path / "base.safetensors"
    zoo.save_weights(path, before.plan.weights, half=False, seen=Seen(cases=frozenset({"abc"}), phantom_seeds=frozenset({1000})), about={})
    done = runs(model={**before.config.as_dict()["model"], "weights": str(path)})
    found = read_seen(export(done.folder, tmp_path / "merged.safetensors", merged=True))
    assert found.phantom_seeds == {1000} and "abc" in found.cases and len(found.cases) > 1


def test_full_fine_tuning_has_no_adapter_but_merged_weights(runs, tmp_path):
    done = runs("disease", strategy={"name": "fedavg_full"})
    with pytest.raises(InputError, match="every weight was trained, there is no adapter: expected --merged"):
        export(done.folder, tmp_path / "a")
    assert not list(tmp_path.iterdir())
    file = export(done.folder, tmp_path / "w.safetensors", merged=True)
    trained = safetensors.numpy.load_file(done.folder / "adapters" / "global" / "head.safetensors")
    merged = safetensors.numpy.load_file(file)
    assert set(trained) == set(merged) and all((merged[name] == trained[name]).all() for name in trained)


def test_whoever_shares_no_adapter_has_one_of_each_client(runs, tmp_path):
    done = runs("disease", strategy={"name": "local"})
    with pytest.raises(InputError, match="local shares no adapter: expected --client with one of Canon, GE, Philips, Siemens$"):
        export(done.folder, tmp_path / "a")
    assert (export(done.folder, tmp_path / "a", client="GE") / "adapter_model.safetensors").is_file()


def test_what_cannot_be_exported_is_refused_in_one_line(runs, tmp_path):
    done, taken = runs(), tmp_path / "taken"
    taken.mkdir()
    (taken / "note").write_text("mine")
    routed = runs("disease", strategy={"name": "fedalt"})
    cases = [
        ((tmp_path / "none", tmp_path / "o"), {}, "expected a run folder, found nothing there"),
        ((taken, tmp_path / "o"), {}, "expected a run folder with summary.json"),
        ((done.folder, tmp_path / "o"), {"client": "Simens"}, "--client Simens: .* has Canon, GE, Philips, Siemens, global"),
        ((done.folder, tmp_path / "o"), {"client": "../.."}, r"--client \.\./\.\.: "),
        ((done.folder, taken), {}, "taken: expected a new or empty place"),
        ((done.folder, taken / "note"), {"merged": True}, "note: expected a new or empty place"),
        ((routed.folder, tmp_path / "o"), {"client": "GE"}, "by a router: no single adapter"),
    ]
    for paths, options, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            export(*paths, **options)
        assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == [taken] and (taken / "note").read_text() == "mine"


@pytest.mark.parametrize("key", ["seed", "model"])
def test_a_configuration_that_is_not_the_run_s_is_refused(runs, tmp_path, key):
    """Its seed makes the base's random weights: an adapter would be described, or merged, with a base that it does not belong to."""
    folder = Path(shutil.copytree(runs("disease").folder, tmp_path / "run"))
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values["model"]["sizes"]["width"] = 8 if key == "model" else values["model"]["sizes"]["width"]
    (folder / "config.yaml").write_text(yaml.safe_dump({**values, "seed": 5 if key == "seed" else values["seed"]}))
    for merged in (False, True):
        with pytest.raises(
            InputError, match=r"config.yaml: does not make the frozen model that the run adapted: seed, model or data.size changed$"
        ):
            export(folder, tmp_path / "out", merged=merged)
    assert not (tmp_path / "out").exists()


def test_what_a_summary_may_lack_is_not_needed(runs, tmp_path):
    folder = Path(shutil.copytree(runs("disease").folder, tmp_path / "run"))
    summary = {**runs("disease").summary, "config_sha256": None, "data_sha256": None, "final": {}, "cross_client": None}
    del summary["name"]
    (folder / "summary.json").write_text(json.dumps(summary))
    values = yaml.safe_load((folder / "config.yaml").read_text())
    del values["clients"]  # the defaults
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    assert "# tiny: LoRA adapter by fedit" in (export(folder, tmp_path / "out") / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adapter_model.safetensors", "adapter_model.safetensors: expected a safetensors file"),
        ("head.safetensors", "head.safetensors: expected a safetensors file"),
        ("adapter_config.json", "adapter_config.json: not JSON"),
        ("", "not what the run wrote"),
    ],
)
def test_a_damaged_adapter_is_refused_by_its_file(runs, tmp_path, name, said):
    folder = Path(shutil.copytree(runs("disease").folder, tmp_path / "run"))
    for path in (folder / "adapters" / "global").iterdir():
        if path.name == name:
            path.write_bytes(path.read_bytes()[:100])
        elif not name:
            path.unlink()
    for merged in {name == "", False}:
        with pytest.raises(InputError, match=said):
            export(folder, tmp_path / "out", merged=merged)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_into_the_folder_where_one_stands(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert export(runs("disease").folder, Path(".")) == Path(".")
    assert (Path(".") / "adapter_config.json").is_file() and not list(tmp_path.parent.glob(f".{tmp_path.name}*"))


def test_a_disk_that_is_full_is_said_with_the_file(runs, tmp_path, monkeypatch):
    done = runs("disease")

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for out, merged in (("w.safetensors", True), ("folder", True), ("adapter", False)):
        with pytest.raises((RunError, OSError), match="No space left on device") as caught:
            export(done.folder, tmp_path / out, merged=merged)
        assert out in str(caught.value) and not list(tmp_path.iterdir())


def test_a_folder_of_merged_weights_gives_the_whole_network(runs, tmp_path):
    done = runs()
    merged, adapter = export(done.folder, tmp_path / "merged", merged=True), export(done.folder, tmp_path / "adapter")
    found = logits(base_model(merged), done)
    assert torch.allclose(found, logits(by_hand(done, "global"), done), atol=1e-5)
    assert not torch.equal(found, logits(base_model(adapter), done))


def test_a_base_of_which_nobody_knows_whom_it_has_seen_is_said(prepared_folder, tmp_path):
    """In the run's first words and in its summary; and what is merged from it does not know either."""
    source = planning.make_plan(tiny(prepared_folder))
    safetensors.numpy.save_file(dict(source.weights), tmp_path / "mine.safetensors")
    values = {**source.config.as_dict()["model"], "weights": str(tmp_path / "mine.safetensors")}
    done = run(tiny(prepared_folder, model=values, training__rounds=1), tmp_path / "run")
    (said,) = [event["text"] for event in done.events if event["event"] == "note" and "seen" in event["text"]]
    assert said.startswith(
        f"model.weights: {tmp_path / 'mine.safetensors'} does not say whom it has seen: that none of the scored patients"
    )
    assert said in done.summary["notes"] and not any("seen" in text for text in source.notes)
    assert not read_seen(export(done.folder, tmp_path / "merged.safetensors", merged=True)).told


def test_weights_that_are_not_the_adapters_are_refused(runs, tmp_path):
    source = runs()
    spec = source.plan.spec.model
    weights = zoo.weights_of(zoo.build(spec.name, spec.task, spec.size, spec.image_size, spec.sizes, seed=5))
    for name, scale in (("a", 1.0), ("b", 2.0)):
        scaled = {key: scale * value for key, value in weights.items()}
        zoo.save_weights(tmp_path / f"{name}.safetensors", scaled, half=False, seen=zoo.Seen(), about={})
    config = configuration.from_dict(
        {**source.config.as_dict(), "model": {**source.config.as_dict()["model"], "weights": str(tmp_path / "a.safetensors")}}
    )
    done = run(config, tmp_path / "run")
    folder = export(done.folder, tmp_path / "out")
    assert logits(base_model(folder), source).isfinite().all()
    moved = str((tmp_path / "a.safetensors").rename(tmp_path / "moved.safetensors"))
    with pytest.raises(InputError, match=r"a\.safetensors: no such file.*; --weights says where they lie now$"):
        export(done.folder, tmp_path / "again")
    with pytest.raises(
        InputError, match=r"^--weights .*b\.safetensors: does not make the frozen model that the run adapted: another file$"
    ):
        export(done.folder, tmp_path / "again", weights=str(tmp_path / "b.safetensors"))
    again = export(done.folder, tmp_path / "again", weights=moved)
    assert peft.read_hash(again) == peft.read_hash(folder) and logits(base_model(again), source).isfinite().all()
    with pytest.raises(InputError, match=r"^--weights: model\.weights: nothing: no such file"):
        export(done.folder, tmp_path / "third", weights="nothing")
    described = done.folder / "config.yaml"
    described.write_text(described.read_text().replace("weights_folder: null", f"weights_folder: {tmp_path / 'gone'}"))
    assert peft.read_hash(export(done.folder, tmp_path / "fourth", weights=moved)) == peft.read_hash(folder)
    with pytest.raises(InputError, match="--weights: the run's base was made from its seed"):
        export(source.folder, tmp_path / "third", weights=moved)
    with pytest.raises(InputError, match="model.weights: .*a.safetensors: no such file"):
        base_model(folder)
    network = zoo.build(spec.name, spec.task, spec.size, spec.image_size, spec.sizes, seed=5)  # which the file holds
    assert torch.equal(logits(base_model(folder, str(tmp_path / "moved.safetensors")), source), logits(network, source))
    assert not torch.equal(logits(network, source), logits(base_model(export(source.folder, tmp_path / "drawn")), source))
    with pytest.raises(InputError, match=r"b\.safetensors: not the weights that the adapter was trained on"):
        base_model(folder, str(tmp_path / "b.safetensors"))
    with pytest.raises(InputError, match=r"raylora\.json: expected the description"):
        base_model(tmp_path)


def test_the_card_says_where_it_comes_from_and_what_it_reached(runs, tmp_path):
    done = runs("disease", strategy={"name": "med_duallora", "head": "private"})
    text = (export(done.folder, tmp_path / "out", client="Siemens") / "README.md").read_text()
    value = done.summary["final"]["balanced_accuracy"]["per_client"]["Siemens"]
    for said in (
        "library_name: peft", "by med_duallora", "private parts of client Siemens", "M&Ms (Campello et al.", "research use", "random weights",
        "rank 1, alpha 2", "not a medical device", f"| Siemens | {value:.3f} |", "PeftModel.from_pretrained(base_model(",
    ):  # fmt: skip
        assert said in text, said
    assert text.startswith("---\nlibrary_name") and "\n---\n\n# tiny" in text


@pytest.mark.parametrize(
    ("weights", "licence", "base"),
    [
        (None, "apache-2.0", None),
        ("phantom_unet", "apache-2.0", None),
        ("/data/acdc_sax_0.safetensors", "other", "mathpluscode/CineMA"),
        ("/data/cinema.safetensors", "other", "mathpluscode/CineMA"),
        ("/data/exported/model.safetensors", "other", None),
    ],
)
def test_a_card_gives_away_no_more_than_its_base_may(weights, licence, base):
    config = {"model": {"name": "cinema", "weights": weights}, "task": "segmentation"}
    found = card._front_matter(config, ["phantom"], merged=False)
    assert (found["license"], found.get("base_model")) == (licence, base)
    assert card._front_matter(config, ["acdc"], merged=False)["license"] == "other"
    body = card._base({"model": {**config["model"], "size": "small"}}) + card._licence(config, ["phantom"])
    assert ("under the terms of their owner" in body and "(the terms of its weights)" in body) == (licence == "other")


@pytest.mark.slow
def test_cinemas_segmenter_with_its_decoder_trained(prepared_folder, cohort_folder, tmp_path):
    """LoRA on the decoder's convolutions, and a decoder that was trained whole, in one folder each."""
    for decoder in ("lora", "full"):
        values = settings(
            cohort_folder, model={"name": "cinema", "sizes": CINEMA, "decoder": decoder}, lora__blocks=1, training__rounds=1, **GRID
        )
        values["data"]["cache"] = str(tmp_path / "cache")
        done = run(configuration.from_dict(values), tmp_path / decoder)
        folder = export(done.folder, tmp_path / f"{decoder}_out")
        assert_same(logits(opened(folder), done), logits(by_hand(done, "global"), done), other=logits(base_model(folder), done))
        saved = json.loads((folder / "adapter_config.json").read_text())
        assert ("decoder_dict.sax.blocks.0.conv.0.conv1" in saved["target_modules"]) == (decoder == "lora")
        assert ("decoder_dict.sax.blocks.0.up" in saved["modules_to_save"]) == (decoder == "full")
