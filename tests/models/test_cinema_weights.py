"""CineMA's files: how they are found, what is refused, and what data they have seen."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from raylora.core.errors import InputError
from raylora.models import cinema
from raylora.models.seen import Seen, read_seen
from raylora.models.weights import load_strict, read_tensors

TINY = {
    **{"image_size": (32, 32, 2), "patch": (4, 4, 1), "scale": (2, 2, 1), "conv_chans": (4, 6)},
    **{"conv_n_blocks": 1, "embed": 12, "depth": 1, "heads": 2},
}


def checkpoint(path, change=None):
    """A pre-training checkpoint that fits TINY, as far as names and shapes go, with what is to be dropped."""
    model = cinema.classifier(**TINY, n_frames=1)
    tensors = {f"{name}": value.detach().clone() for name, value in model.state_dict().items() if "_head" not in name}
    tensors |= {"enc_down_dict.lax_2c.linear.weight": torch.ones(1), "enc_fusion_dict.lax_2c.norm.weight": torch.ones(1)}
    tensors |= {"dec_embed_dict.sax.mask_token": torch.ones(1), "dec_linear.weight": torch.ones(1), "decoder.norm.bias": torch.ones(1)}
    tensors |= {"pred_head_dict.sax.weight": torch.ones(1)}
    tensors["enc_down_dict.sax.pos_embed"] += 1.0
    (change or (lambda _: None))(tensors)
    save_file(tensors, path)
    return tensors


def test_a_classifier_takes_encoder_stem_and_fusion_and_keeps_the_rest(tmp_path):
    given = checkpoint(tmp_path / "c.safetensors")
    model = cinema.classifier(**TINY, n_frames=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cinema.load_pretrained(model, tmp_path / "c.safetensors")
    first = "enc_down_dict.sax.conv_blocks.0.patch_embed.conv.weight"
    for name, value in model.state_dict().items():
        kept = "pos_embed" in name or name in model.head_names
        expected = before[name] if kept else given[name].repeat(1, 3, 1, 1, 1) if name == first else given[name]
        assert torch.equal(value, expected), name


def test_a_segmenter_takes_no_fusion(tmp_path):
    given = checkpoint(tmp_path / "c.safetensors")
    model = cinema.load_pretrained(cinema.segmenter(**TINY, dec_chans=(4, 4, 6, 6, 8)), tmp_path / "c.safetensors")
    assert torch.equal(model.encoder.norm.weight, given["encoder.norm.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("encoder.blocks.0.attn.kv.bias"), r"lacks encoder\.blocks\.0\.attn\.kv\.bias"),
        (lambda t: t.update({"encoder.blocks.1.norm1.bias": torch.ones(12)}), r"unexpected encoder\.blocks\.1\.norm1\.bias"),
        (lambda t: t.update({"encoder.norm.bias": torch.ones(7)}), r"encoder\.norm\.bias is \(7,\), expected \(12,\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, change, message):
    checkpoint(tmp_path / "c.safetensors", change)
    model = cinema.classifier(**TINY)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        cinema.load_pretrained(model, tmp_path / "c.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_fine_tuned_files_load_strictly(tmp_path):
    source, path = cinema.classifier(**TINY), tmp_path / "acdc_sax_0.safetensors"
    save_file(source.state_dict(), path)
    loaded = load_strict(cinema.classifier(**TINY), path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), source.parameters(), strict=True))
    with pytest.raises(InputError, match=r"acdc_sax_0\.safetensors.*pred_head_dict\.sax\.weight is \(2, 12\), expected \(5, 12\)"):
        load_strict(cinema.classifier(**TINY, out=5), path)


def test_files_that_are_no_safetensors_are_refused(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"not tensors at all")
    for name in ("bad.safetensors", "absent.safetensors"):
        with pytest.raises(InputError, match=name):
            read_tensors(tmp_path / name)


def test_half_precision_files_are_read_in_float32(tmp_path):
    save_file({"w": torch.full((2,), 0.5, dtype=torch.bfloat16)}, tmp_path / "h.safetensors")
    assert read_tensors(tmp_path / "h.safetensors")["w"].dtype == torch.float32


# ---- where files are


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("pretrained/cinema.safetensors", "cinema"),
        ("cinema.safetensors", "cinema"),
        ("my_own.safetensors", "my_own.safetensors"),
        ("finetuned/segmentation/acdc_sax/acdc_sax_0.safetensors", "segmentation/acdc_sax_0"),
        ("finetuned/segmentation/acdc_sax/acdc_sax_0.safetensors", "finetuned/segmentation/acdc_sax/acdc_sax_0.safetensors"),
        ("mnms_sax_2.safetensors", "classification_cvd/mnms_sax_2"),
    ],
)
def test_weights_are_found_in_the_folder(tmp_path, stored, name):
    path = tmp_path / stored
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert cinema.find_weights(name, tmp_path) == path
    assert cinema.find_weights(str(path)) == path


def test_missing_weights_say_where_to_get_them(tmp_path):
    with pytest.raises(InputError, match=r"pretrained/cinema\.safetensors at huggingface\.co/mathpluscode/CineMA"):
        cinema.find_weights("cinema", tmp_path)
    with pytest.raises(InputError, match=r"finetuned/regression_ef/mnms2_sax/mnms2_sax_1\.safetensors"):
        cinema.find_weights("regression_ef/mnms2_sax_1")


# ---- what they have seen


def test_seen_is_read_back_from_the_header(tmp_path):
    seen = Seen(splits=frozenset({("acdc", "training"), ("mnms", "*")}), cases=frozenset({"abc"}))
    save_file({"w": torch.ones(1)}, tmp_path / "w.safetensors", metadata=seen.metadata())
    assert read_seen(tmp_path / "w.safetensors") == seen
    assert seen.covers("acdc", "training") and seen.covers("mnms", "testing") and seen.covers("other", "testing", "abc")
    assert not seen.covers("acdc", "testing") and not seen.covers("other", "testing", "abd")


@pytest.mark.parametrize(
    ("name", "dataset"), [("acdc_sax_0", "acdc"), ("mnms2_lax_4c_1", "mnms2"), ("cinema", None), ("phantom", None), ("my_sax_notes", None)]
)
def test_a_published_fine_tuned_file_has_seen_its_whole_set(tmp_path, name, dataset):
    path = tmp_path / f"{name}.safetensors"
    save_file({"w": torch.ones(1)}, path)
    assert read_seen(path).splits == ({(dataset, "*")} if dataset else set())


def test_a_strange_header_is_refused(tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "w.safetensors", metadata={"seen": "everything"})
    with pytest.raises(InputError, match="'seen'"):
        read_seen(tmp_path / "w.safetensors")


def test_the_reference_checkpoint_fills_a_segmenter(shared):
    folder = shared / "reference" / "cinema"
    sizes = json.loads((folder / "config.json").read_text())
    keys = ("image_size", "patch", "scale", "conv_chans", "conv_n_blocks", "embed", "depth", "heads", "dec_chans")
    model = cinema.load_pretrained(cinema.segmenter(**{key: sizes[key] for key in keys}), folder / "pretrained.safetensors")
    given = load_file(folder / "pretrained.safetensors")
    assert torch.equal(model.enc_down_dict["sax"].linear.weight, given["enc_down_dict.sax.linear.weight"])
