"""CineMA as `model.name: cinema`: its files found and recognised, what they have seen, the decoder's policy, memory and bfloat16."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import run, settings

from raylora import config as configuration
from raylora import planning
from raylora.core.errors import InputError
from raylora.models import cinema, zoo
from raylora.models.peft import hash_of
from raylora.strategies import create

SIZES = {"patch": [4, 4, 1], "scale": [2, 2, 1], "conv_chans": [4, 6], "conv_n_blocks": 1, "embed": 12, "depth": 3, "heads": 2}
SEGMENTER = {**SIZES, "dec_chans": [4, 4, 6, 6, 8]}
SIZE = (16, 16, 4)


def pretrained(path, size=SIZE):
    """A pre-training checkpoint that fits SIZES: one channel, other views, masks and the decoder of pre-training with it."""
    source = zoo.build("cinema", "disease", "small", size, SIZES, seed=7)
    first = "enc_down_dict.sax.conv_blocks.0.patch_embed.conv.weight"
    tensors = {name: value.detach().clone() for name, value in source.state_dict().items() if "_head" not in name}
    tensors[first] = tensors[first][:, :1].contiguous()
    extra = ("enc_down_dict.lax_2c.linear.weight", "dec_embed_dict.sax.mask_token", "dec_linear.weight", "decoder.norm.bias")
    save_file({**tensors, **{name: torch.ones(1) for name in extra}}, path)
    return tensors


def tiny(root, task="disease", **overrides):
    overrides = {"model": {"name": "cinema", "sizes": SIZES}, "lora__blocks": 2, "strategy": {"name": "fedit"}, **overrides}
    return configuration.from_dict(settings(root, task, **overrides))


def with_model(**model):
    return {"model": {"name": "cinema", "sizes": SIZES, **model}}


# ---- files


def test_the_pre_training_checkpoint_is_recognised_and_loads_as_load_pretrained_does(tmp_path):
    given = pretrained(tmp_path / "c.safetensors")
    for task, size, sizes in (("disease", SIZE, SIZES), ("segmentation", (32, 32, 4), SEGMENTER)):
        ours, reference = (zoo.build("cinema", task, "small", size, sizes) for _ in range(2))
        seen = zoo.load_weights(dict(ours.named_parameters()), ours.head_names, tmp_path / "c.safetensors")
        cinema.load_pretrained(reference, tmp_path / "c.safetensors")
        assert seen == zoo.Seen()
        for name, value in reference.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value), name
        assert torch.equal(ours.encoder.blocks[1].attn.kv.weight, given["encoder.blocks.1.attn.kv.weight"])


def test_the_reference_checkpoint_is_recognised(shared):
    folder = shared / "reference" / "cinema"
    sizes = json.loads((folder / "config.json").read_text())
    arguments = {k: sizes[k] for k in ("patch", "scale", "conv_chans", "conv_n_blocks", "embed", "depth", "heads")}
    network = zoo.build("cinema", "disease", "base", sizes["image_size"], arguments)
    zoo.load_weights(dict(network.named_parameters()), network.head_names, folder / "pretrained.safetensors")
    given = load_file(folder / "pretrained.safetensors")
    assert torch.equal(network.encoder.norm.weight, given["encoder.norm.weight"])


def test_a_fine_tuned_file_loads_strictly(tmp_path):
    source = zoo.build("cinema", "disease", "small", SIZE, SIZES, seed=3)
    save_file(source.state_dict(), tmp_path / "acdc_sax_0.safetensors")
    network = zoo.build("cinema", "disease", "small", SIZE, SIZES)
    seen = zoo.load_weights(dict(network.named_parameters()), network.head_names, tmp_path / "acdc_sax_0.safetensors")
    assert seen.covers("acdc", "testing") and not seen.covers("mnms", "testing")
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), source.parameters(), strict=True))
    five = {**source.state_dict(), "pred_head_dict.sax.weight": torch.ones(5, 12)}
    save_file(five, tmp_path / "acdc_sax_0.safetensors")
    with pytest.raises(InputError, match=r"pred_head_dict\.sax\.weight is \(5, 12\), expected \(2, 12\)"):
        zoo.load_weights(dict(network.named_parameters()), network.head_names, tmp_path / "acdc_sax_0.safetensors")


def test_names_mean_files_in_the_weights_folder(tmp_path, monkeypatch):
    published = {
        "cinema": "pretrained/cinema.safetensors",
        "segmentation/acdc_sax_0": "finetuned/segmentation/acdc_sax/acdc_sax_0.safetensors",
    }
    for file in published.values():
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    for name, file in published.items():
        assert zoo.find(name, str(tmp_path), "cinema") == tmp_path / file
    monkeypatch.setenv("RAYLORA_WEIGHTS", str(tmp_path))
    assert zoo.find("cinema", None, "cinema") == tmp_path / published["cinema"]
    (tmp_path / "mine.safetensors").touch()
    assert zoo.find("mine", None, "unet") == tmp_path / "mine.safetensors"
    with pytest.raises(
        InputError, match="no file segmentation/mnms_sax_1 in .*publishes finetuned/segmentation/mnms_sax/mnms_sax_1.safetensors at"
    ):
        zoo.find("segmentation/mnms_sax_1", None, "cinema")
    monkeypatch.setenv("RAYLORA_WEIGHTS", str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"RAYLORA_WEIGHTS\): .*gone: no such folder"):
        zoo.find("cinema", None, "cinema")
    monkeypatch.delenv("RAYLORA_WEIGHTS")
    with pytest.raises(
        InputError, match="no file cinema and no weights folder is set; CineMA publishes pretrained/cinema.safetensors at hugg"
    ):
        zoo.find("cinema", None, "cinema")


# ---- what the weights have seen


def test_a_set_that_the_weights_have_seen_is_refused_or_marked(prepared_folder, tmp_path):
    save_file(zoo.build("cinema", "disease", "small", SIZE, SIZES).state_dict(), tmp_path / "mnms_sax_0.safetensors")
    options = with_model(weights=str(tmp_path / "mnms_sax_0.safetensors"))
    with pytest.raises(
        InputError, match=r"mnms_sax_0\.safetensors has seen 16 validation or test cases \(.*data\.allow_seen=true overrides"
    ):
        planning.make_plan(tiny(prepared_folder, **options))
    plan = planning.make_plan(tiny(prepared_folder, **options, data__allow_seen=True))
    assert len(plan.seen_cases) == 16 and set(plan.seen_cases) <= set(plan.cohort.rows)


# ---- the decoder


def decoder(policy: str = "frozen", **more):
    return {"model": {"name": "cinema", "sizes": SEGMENTER, "decoder": policy, **more}}


def spec_of(root, **overrides):
    return planning.model_spec(tiny(root, "segmentation", data__size=[32, 32, 4], **overrides), create("fedit", {}, seed=0, clients=4))


def test_the_decoders_policy(tmp_path):
    frozen, lora, full = (spec_of(tmp_path, **decoder(policy)) for policy in ("frozen", "lora", "full"))
    assert frozen.targets == ("q", "kv") and frozen.plain == cinema.Segmenter.head_names
    assert lora.targets == ("q", "kv", "skip_conv", "decoder_conv") and lora.plain == frozen.plain
    assert full.targets == ("q", "kv") and full.plain == (*frozen.plain, "dec_*", "decoder_dict.*")
    chosen = spec_of(tmp_path, **decoder("lora"), lora__targets=["fc1", "skip_conv"])
    assert chosen.targets == ("fc1", "skip_conv", "decoder_conv")
    with pytest.raises(InputError, match="lora.targets: decoder_conv is of the decoder, expected model.decoder: lora, found frozen"):
        spec_of(tmp_path, **decoder(), lora__targets=["q", "decoder_conv"])
    with pytest.raises(InputError, match="model.decoder: cinema for disease has no decoder, found full"):
        planning.model_spec(tiny(tmp_path, "disease", **with_model(decoder="full")), create("fedit", {}, seed=0, clients=4))


def test_a_frozen_decoder_that_has_learnt_nothing_is_refused(cohort_folder, tmp_path):
    pretrained(tmp_path / "c.safetensors")
    options = {"data__size": [32, 32, 4], "data__cache": str(tmp_path / "cache")}
    weights = str(tmp_path / "c.safetensors")
    with pytest.raises(
        InputError, match="c.safetensors is a pre-training checkpoint without a decoder: expected full or lora, found frozen"
    ):
        planning.make_plan(tiny(cohort_folder, "segmentation", **options, **decoder(weights=weights)))
    with pytest.raises(InputError, match=r"model.head: .*c.safetensors has no head \(pred_head"):
        planning.make_plan(tiny(cohort_folder, "segmentation", **options, **decoder("lora", weights=weights, head="frozen")))
    with pytest.raises(InputError, match="c.safetensors is CineMA's pre-training checkpoint: expected model.name: cinema, found unet"):
        planning.make_plan(tiny(cohort_folder, "segmentation", **options, model={"name": "unet", "weights": weights}))
    with pytest.raises(InputError, match="c.safetensors: CineMA's pre-training checkpoint: expected model.name: cinema"):
        zoo.load_weights(zoo.build("unet", "segmentation", "small", (32, 32, 4)).state_dict(), (), weights)
    plan = planning.make_plan(tiny(cohort_folder, "segmentation", **options, **decoder("lora", weights=weights)))
    assert any("decoder_dict" in module for module in plan.weights)


# ---- memory and precision


def test_recomputed_activations_change_no_bit(runs):
    kept = runs("disease", **with_model(), lora__blocks=2)
    again = runs("disease", **with_model(checkpointing=True), lora__blocks=2)
    assert kept.hashes == again.hashes


def test_recomputing_is_refused_where_it_would_not_be_the_same(prepared_folder):
    with pytest.raises(InputError, match="model.checkpointing: not with lora.dropout"):
        planning.make_plan(tiny(prepared_folder, **with_model(checkpointing=True), lora__dropout=0.1))
    with pytest.raises(InputError, match="model.checkpointing: not with a strategy that trains every weight"):
        planning.make_plan(tiny(prepared_folder, **with_model(checkpointing=True), strategy={"name": "fedavg_full"}))
    for key in ("grad_checkpoint", "drop_path"):  # the constructor's way around the keys above
        with pytest.raises(InputError, match=f"model.sizes: '{key}' is no size"):
            planning.make_plan(tiny(prepared_folder, **with_model(sizes={**SIZES, key: 1}), lora__dropout=0.1))
    with pytest.raises(InputError, match="model.checkpointing: vit does not offer it"):
        planning.make_plan(configuration.from_dict(settings(prepared_folder, "disease", model__checkpointing=True)))


def test_bfloat16_trains_and_keeps_small_steps(runs):
    """At this rate a step is a thousandth of what bfloat16 can tell apart in A: kept in bfloat16, A would not move."""
    options = {**with_model(), "lora__blocks": 2, "training__lr": 1e-6}
    exact, half = (runs("disease", **options, training__dtype=dtype) for dtype in ("float32", "bfloat16"))
    start = exact.sent[0][1].adapter
    for done in (exact, half):
        moved = {name: np.abs(update.adapter[name] - start[name]).max() for update in done.received[:1] for name in start}
        assert all(0 < value < 1e-5 for value in moved.values()), moved
    for a, b in zip(exact.lines, half.lines, strict=True):
        if a["kind"] == "client":
            assert a["loss"] == pytest.approx(b["loss"], abs=0.02) and a["loss"] != b["loss"]


def test_the_last_two_blocks_and_the_head_are_trained_and_nothing_else(runs):
    done = runs("disease", **with_model(), lora__blocks=2)
    expected = {f"encoder.blocks.{i}.attn.{layer}.lora_{side}" for i in (1, 2) for layer in ("q", "kv") for side in "AB"}
    heads = zoo.build("cinema", "disease", "small", SIZE, SIZES).head_names
    assert set(done.received[0].adapter) == expected | set(heads)


def test_a_run_with_cinemas_weights_starts_from_them(prepared_folder, tmp_path):
    given = pretrained(tmp_path / "cinema.safetensors")
    done = run(tiny(prepared_folder, **with_model(weights="cinema", weights_folder=str(tmp_path)), training__rounds=1), tmp_path / "run")
    assert np.array_equal(done.plan.weights["encoder.norm.weight"], given["encoder.norm.weight"].numpy())
    assert done.summary["base"] == {"weights": "cinema", "sha256": hash_of(done.plan.weights), "has_seen": []}
