"""CineMA against reference values of its own code: outputs, names, shapes, positions; its stages and options."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raylora.core.errors import InputError
from raylora.models import cinema
from raylora.models.cinema_decoder import levels_without_skip
from raylora.models.cinema_stem import position_table
from raylora.models.draw import draw_weights
from raylora.models.stages import first_trained, run_stages

TOLERANCE = 1e-5
SHARED_SIZES = ("image_size", "patch", "scale", "conv_chans", "conv_n_blocks", "embed", "depth", "heads")
DECODER_SIZES = ("dec_chans", "dec_patch", "dec_scale")
TINY = {
    **{"image_size": (32, 64, 3), "patch": (4, 4, 1), "scale": (2, 2, 1), "conv_chans": (4, 6)},
    **{"conv_n_blocks": 1, "embed": 16, "depth": 3, "heads": 2},
}
TINY_DECODER = {"dec_chans": (4, 4, 6, 6, 8)}


@pytest.fixture(scope="module")
def reference(shared) -> Path:
    return shared / "reference" / "cinema"


@pytest.fixture(scope="module")
def sizes(reference) -> dict:
    return json.loads((reference / "config.json").read_text())


def build_classifier(sizes, **options) -> cinema.Classifier:
    return cinema.classifier(**{key: sizes[key] for key in SHARED_SIZES}, n_frames=sizes["n_frames"], out=sizes["out"], **options).eval()


def build_segmenter(sizes) -> cinema.Segmenter:
    return cinema.segmenter(**{key: sizes[key] for key in SHARED_SIZES + DECODER_SIZES}, out=4).eval()


def drawn(build=cinema.classifier, seed: int = 0, **arguments) -> torch.nn.Module:
    arguments = {**TINY, **(TINY_DECODER if build is cinema.segmenter else {}), **arguments}
    return draw_weights(build(**arguments), torch.Generator().manual_seed(seed)).eval()


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


# ---- reference values


@torch.no_grad()
def test_classifier_reproduces_the_reference(reference, sizes):
    model, io = build_classifier(sizes), load_file(reference / "classifier_io.safetensors")
    model.load_state_dict(load_file(reference / "classifier.safetensors"), strict=True)
    cls, patches = model.features(io["image"])
    assert off(cls, io["feature_cls"]) < TOLERANCE
    assert off(patches, io["feature_sax"]) < TOLERANCE
    for readout in ("all", "patch", "cls"):
        model.readout = readout
        assert off(model(io["image"]), io[f"logits_{readout}"]) < TOLERANCE


@torch.no_grad()
def test_segmenter_reproduces_the_reference(reference, sizes):
    model, io = build_segmenter(sizes), load_file(reference / "segmenter_io.safetensors")
    model.load_state_dict(load_file(reference / "segmenter.safetensors"), strict=True)
    assert off(model(io["image"]), io["logits"]) < TOLERANCE


@torch.no_grad()
def test_classifier_from_the_pretrained_checkpoint_reproduces_the_reference(reference, sizes):
    model, io = build_classifier(sizes), load_file(reference / "pretrained_io.safetensors")
    assert cinema.load_pretrained(model, reference / "pretrained.safetensors") is model
    heads = {name.removeprefix("head."): value for name, value in io.items() if name.startswith("head.")}
    assert set(heads) == set(model.head_names)
    model.load_state_dict(heads, strict=False)
    cls, patches = model.features(io["image"])
    assert off(cls, io["feature_cls"]) < TOLERANCE
    assert off(patches, io["feature_sax"]) < TOLERANCE
    assert off(model(io["image"]), io["logits_all"]) < TOLERANCE


@pytest.mark.parametrize(("kind", "count"), [("classifier", 89_498_826), ("segmenter", 127_390_694)])
def test_names_shapes_and_counts_of_the_base_size(reference, kind, count):
    arguments = {name: value for name, value in cinema.SIZES["base"].items() if kind == "segmenter" or not name.startswith("dec_")}
    with torch.device("meta"):
        model = getattr(cinema, kind)(**arguments, **({"out": 5} if kind == "classifier" else {}))
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    expected = json.loads((reference / "base_shapes.json").read_text())
    assert shapes == expected[kind]
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    # of the pre-training checkpoint, what this model takes has the same shapes (but for the two frames of the classifier's first layer)
    taken = {name for name in set(shapes) & set(expected["pretrained"]) if not re.search("pred_head|pos_embed", name)}
    first = {"enc_down_dict.sax.conv_blocks.0.patch_embed.conv.weight"}
    assert {name for name in taken if shapes[name] != expected["pretrained"][name]} <= first
    assert {name for name in shapes if name.startswith("encoder.")} <= taken


def test_position_table_equals_the_stored_one(reference, sizes):
    stored = load_file(reference / "classifier.safetensors")["enc_down_dict.sax.pos_embed"]
    assert torch.equal(torch.from_numpy(position_table((2, 2, 4), sizes["embed"])), stored)


def test_position_table_swaps_its_first_two_axes():
    grid, width = (2, 3, 4), 20  # 6 channels an axis and 2 left over
    table = torch.from_numpy(position_table(grid, width))[0]
    for i in range(grid[1]):
        for j in range(grid[0]):
            for k in range(grid[2]):
                row = table[(i * grid[0] + j) * grid[2] + k]
                assert row[[0, 6, 12]].tolist() == pytest.approx([torch.tensor(float(p)).sin().item() for p in (j, i, k)])
                assert row[18:].tolist() == [0.0, 0.0]


# ---- grids


@torch.no_grad()
@pytest.mark.parametrize("build", [cinema.classifier, cinema.segmenter])
def test_another_grid_takes_interpolated_positions(build):
    model = drawn(build)
    small = drawn(build, image_size=(32, 32, 3))
    small.enc_down_dict["sax"].pos_embed.data = model.enc_down_dict["sax"].positions((2, 2, 3))
    image = noise(1, 2 if build is cinema.classifier else 1, 32, 32, 3)
    assert torch.equal(small(image), model(image))
    stem = model.enc_down_dict["sax"]
    assert stem.positions(stem.grid) is stem.pos_embed
    with pytest.raises(InputError, match=r"multiples of .* found \(32, 24, 3\)"):
        model(image[:, :, :, :24])


@torch.no_grad()
def test_interpolated_positions_keep_the_axes():
    """A table that grows along one axis grows along the same axis after interpolation, and linearly."""
    stem = drawn().enc_down_dict["sax"]  # grid (2, 4, 3)
    for axis, size in enumerate(stem.grid):
        values = torch.arange(float(size)).view([-1 if a == axis else 1 for a in range(3)]).expand(stem.grid)
        stem.pos_embed.data = values.reshape(1, -1, 1).repeat(1, 1, 16)
        larger = stem.positions((4, 8, 6)).view(4, 8, 6, 16)
        assert all((larger.diff(dim=other) != 0).any() == (other == axis) for other in range(3))
        if size == 2:  # halfway points of a line from 0 to 1, held constant outside
            assert larger.movedim(axis, 0)[:, 0, 0, 0].tolist() == [0.0, 0.25, 0.75, 1.0]


# ---- stages and names


@torch.no_grad()
@pytest.mark.parametrize("build", [cinema.classifier, cinema.segmenter])
def test_a_prefix_of_stages_then_the_rest_is_the_forward_pass(build):
    model = drawn(build)
    image, stages = noise(2, 2 if build is cinema.classifier else 1, 32, 64, 3), model.stages()
    for split in range(len(stages) + 1):
        assert torch.equal(run_stages(stages[split:], run_stages(stages[:split], (image,)))[0], model(image))
    for name, _ in model.named_parameters():
        assert sum(stage.holds(name) for stage in stages) == 1, name
    assert [stage.name for stage in stages if stage.block is not None] == list(model.adapter_blocks)
    assert stages[first_trained(stages, [*model.head_names, "local.encoder.blocks.1.attn.kv.lora_B"])].name == "encoder.blocks.1"


@pytest.mark.parametrize("build", [cinema.classifier, cinema.segmenter])
def test_targets_match_the_encoder_only_and_the_decoders_convolutions_by_their_own_name(build):
    model = drawn(build)
    names = [name for name, _ in model.named_modules()]
    matched = {target: [name for name in names if re.fullmatch(pattern, name)] for target, pattern in model.adapter_targets.items()}
    for target in ("q", "kv", "proj", "fc1", "fc2"):
        assert len(matched.pop(target)) == TINY["depth"]
    for target, found in matched.items():
        assert all(type(model.get_submodule(name)) is torch.nn.Conv3d for name in found), target
    counts = {target: len(found) for target, found in matched.items()}
    assert counts == ({} if build is cinema.classifier else {"skip_conv": 10, "decoder_conv": 20})


def test_heads_of_a_readout_are_the_ones_it_uses():
    assert drawn(readout="patch").head_names == ("pred_head_dict.sax.weight", "pred_head_dict.sax.bias")
    assert len(drawn(readout="all").head_names) == 4


def test_positions_are_not_trained():
    frozen = [name for name, parameter in drawn().named_parameters() if not parameter.requires_grad]
    assert frozen == ["enc_down_dict.sax.pos_embed"]


# ---- options


def gradients(model: torch.nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    model(image).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_gradient_checkpointing_changes_no_gradient():
    model, image = drawn(drop_path=0.5), noise(4, 2, 32, 64, 3)
    model.train()
    results = []
    for enabled in (False, True):
        model.encoder.grad_checkpoint = enabled
        model.encoder.generator = torch.Generator().manual_seed(7)
        results.append(gradients(model, image))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_gradient_checkpointing_keeps_fewer_activations():
    model, image = drawn(), noise(2, 2, 32, 64, 3)

    def saved() -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(image)
        return sum(sizes)

    plain = saved()
    model.encoder.grad_checkpoint = True
    assert saved() < 0.7 * plain


def test_drop_path_acts_in_training_only_and_keeps_the_mean():
    model, image = drawn(drop_path=0.5), noise(1, 2, 32, 64, 3)
    plain = drawn(drop_path=0.0)(image)
    assert torch.equal(model(image), plain)
    model.train()
    with pytest.raises(ValueError, match="generator"):
        model(image)
    encoder = model.encoder
    encoder.generator = torch.Generator().manual_seed(0)
    scales = torch.stack([encoder._scales(noise(1000, 1, 1))[0] for _ in range(4)])
    assert set(scales.unique().tolist()) == {0.0, 2.0}
    assert scales.mean() == pytest.approx(1.0, abs=0.05)
    assert not torch.equal(model(image), plain)
    tokens = noise(1, 5, 16)
    assert torch.equal(encoder.blocks[0](tokens, (0.0, 0.0)), tokens)  # both branches dropped


@torch.no_grad()
@pytest.mark.parametrize("build", [cinema.classifier, cinema.segmenter])
def test_bfloat16_stays_near_float32(build):
    model, image = drawn(build), noise(2, 2 if build is cinema.classifier else 1, 32, 64, 3)
    exact = model(image)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(image)
    pure = model.to(torch.bfloat16)(image.to(torch.bfloat16))
    assert pure.dtype == torch.bfloat16
    for result in (mixed, pure):
        assert (result.float() - exact).norm() < 0.05 * exact.norm()  # bf16 keeps 8 bits: 0.4 % a rounding


@pytest.mark.parametrize(
    ("build", "change", "message"),
    [
        (cinema.classifier, {"image_size": (32, 40, 3)}, "data.size"),
        (cinema.classifier, {"heads": 3}, "model.embed"),
        (cinema.classifier, {"readout": "mean"}, "model.readout"),
        (cinema.segmenter, {"image_size": (32, 48, 3)}, r"data.size: expected multiples of \(32, 32, 1\)"),
        (cinema.segmenter, {"dec_patch": (3, 3, 1)}, "model.dec_patch"),
        (cinema.segmenter, {"dec_chans": (4, 4, 6, 6)}, "model.dec_chans"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(build, change, message):
    with pytest.raises(InputError, match=message):
        drawn(build, **change)


@torch.no_grad()
def test_a_decoder_may_reach_the_first_skip_in_one_step():
    assert drawn(cinema.segmenter, dec_patch=(4, 4, 1))(noise(1, 1, 32, 64, 3)).shape == (1, 4, 32, 64, 3)


def test_levels_between_the_image_and_the_first_skip():
    assert levels_without_skip((4, 4, 1), (4, 4, 1), (2, 2, 1)) == 0
    assert levels_without_skip((8, 8, 1), (2, 2, 1), (2, 2, 1)) == 2
