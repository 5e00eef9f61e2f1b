"""From names to networks, and from files to their weights."""

import re

import numpy as np
import pytest
import safetensors.numpy
import torch
from small_runs import UNET, VIT

from raylora.core.errors import InputError
from raylora.models import zoo
from raylora.models.seen import Seen, read_seen
from raylora.models.stacked import adapted_modules

SIZE = (16, 16, 4)


def unet(seed: int = 0):
    return zoo.build("unet", "segmentation", "small", SIZE, UNET, seed)


def vit(**sizes):
    return zoo.build("vit", "disease", "small", SIZE, {**VIT, **sizes})


@pytest.mark.parametrize(("name", "task"), [(name, task) for name, tasks in zoo.TASKS.items() for task in tasks])
def test_every_network_does_its_tasks(name, task):
    size = (32, 32, 4) if name == "cinema" else SIZE
    sizes = {"unet": UNET, "vit": VIT, "cinema": {}}[name]
    network = zoo.build(name, task, "small", size, sizes)
    with torch.no_grad():
        logits = network(torch.rand(1, zoo.CHANNELS[task], *size))
    assert logits.shape == ((1, 4, *size) if task == "segmentation" else (1, 2))
    assert adapted_modules(network, zoo.DEFAULT_TARGETS[name], "all")


@pytest.mark.slow  # importing MONAI takes seconds
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_weights_of_monai_s_own_networks_are_taken_if_ours_compute_the_same(tmp_path):
    from monai.networks.nets import BasicUNet, DynUNet, ViT

    from raylora.models import monai_twin

    levels = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 6, 8]}
    there = {
        ("unet", "segmentation"): DynUNet(3, 1, 4, **levels),
        ("vit", "disease"): ViT(
            2, SIZE, (8, 8, 2), hidden_size=24, mlp_dim=48, num_layers=2, num_heads=3, classification=True, post_activation=None
        ),
    }
    path = tmp_path / "monai.safetensors"
    for (name, task), network in there.items():
        model = monai_twin.save_monai(network, path, SIZE)
        assert model == {"name": name, "sizes": model["sizes"], "weights": str(path)}
        here = zoo.build(name, task, "small", SIZE, model["sizes"])
        zoo.load_weights(dict(here.named_parameters()), (), path)
        image = torch.rand(1, zoo.CHANNELS[task], *SIZE)
        with torch.no_grad():
            logits = network.eval()(image)
            assert torch.allclose(here(image), logits[0] if name == "vit" else logits, atol=1e-4)
        path.unlink()
    vit = {"img_size": SIZE, "patch_size": (8, 8, 2), "hidden_size": 24, "mlp_dim": 48, "num_layers": 1, "num_heads": 3}
    for network, said in [
        (DynUNet(3, 1, 4, **levels, act_name="relu"), "computes something else with these weights than ours does"),
        (DynUNet(3, 1, 4, **levels, norm_name=("GROUP", {"num_groups": 2})), "computes something else"),
        (DynUNet(3, 1, 4, **levels, res_block=True), "has other weights than ours"),
        (ViT(2, **vit), "expected a ViT with classification=True and post_activation=None"),
        (ViT(2, **vit, classification=True), "post_activation=None"),
        (BasicUNet(3, 1, 4), "found BasicUNet"),
    ]:
        with pytest.raises(InputError, match=said):
            monai_twin.save_monai(network, path, SIZE)
        assert not path.exists()
    with pytest.raises(InputError, match="its ViT and the image_size, found ViT"):
        monai_twin.save_monai(there["vit", "disease"], path)


def test_weights_follow_from_the_seed():
    first, again, other = (zoo.weights_of(unet(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["bottleneck.conv1.conv.weight"], other["bottleneck.conv1.conv.weight"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vit", "segmentation", "small", SIZE, {}), "model.name: vit does disease, the task is segmentation"),
        (("unet", "segmentation", "base", SIZE, {}), "model.size: unet comes as small, paper, found 'base'"),
        (("unet", "segmentation", "small", SIZE, {"chanels": [1]}), "model.sizes: unknown 'chanels' (known: channels, "),
        (("unet", "segmentation", "small", SIZE, {"channels": 3}), "model.sizes: unet cannot be built"),
        (("unet", "segmentation", "small", SIZE, {"channels": [4, 6]}), "expected as many kernels and strides as channels"),
        (("vit", "disease", "small", SIZE, {**VIT, "heads": 3}), "expected a multiple of the 3 heads, found 16"),
        (("vit", "disease", "small", SIZE, {**VIT, "patch": [5, 8, 2]}), "expected a divisor of the image size"),
        (("vit", "disease", "small", SIZE, {**VIT, "depth": "deep"}), "model.sizes: vit cannot be built"),
        (("vit", "disease", "small", SIZE, {**VIT, "heads": 0}), "model.heads: expected a whole number from 1 on, found 0"),
        (("vit", "disease", "small", SIZE, {**VIT, "out": 7}), "model.sizes: 'out' is no size"),
        (
            ("unet", "segmentation", "small", SIZE, {"strides": [[1, 1, 1], [0, 2, 1], [2, 2, 1], [2, 2, 1]]}),
            "expected channels, and three kernel sizes and strides a level",
        ),
        (
            ("unet", "segmentation", "small", SIZE, {"strides": [[1, 1, 1], [2, 2], [2, 2, 1], [2, 2, 1]]}),
            "expected channels, and three kernel sizes and strides a level",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        zoo.build(*arguments)
    assert "\n" not in str(caught.value)


def parameters(network):
    return dict(network.named_parameters())


@pytest.mark.parametrize("half", [False, True])
def test_saved_weights_come_back_with_what_they_have_seen(tmp_path, half):
    weights = zoo.weights_of(unet(1))
    seen = Seen(splits=frozenset({("acdc", "training")}), cases=frozenset({"abc"}), phantom_seeds=frozenset({7}))
    zoo.save_weights(tmp_path / "new" / "w.safetensors", weights, half=half, seen=seen, about={"seed": 1})
    other = unet(2)
    assert zoo.load_weights(parameters(other), other.head_names, str(tmp_path / "new" / "w.safetensors")) == seen
    for name, value in zoo.weights_of(other).items():
        np.testing.assert_allclose(value, weights[name], rtol=2**-11 if half else 0, atol=1e-7 if half else 0)


def test_only_the_head_may_be_missing(tmp_path):
    weights = zoo.weights_of(vit())
    path = tmp_path / "w.safetensors"
    zoo.save_weights(
        path, {n: v + 1 for n, v in weights.items() if not n.startswith("classification_head")}, half=False, seen=Seen(), about={}
    )
    network = vit()
    zoo.load_weights(parameters(network), network.head_names, str(path))
    after = zoo.weights_of(network)
    assert {name for name in after if np.array_equal(after[name], weights[name])} == set(network.head_names)
    zoo.save_weights(path, {n: v for n, v in weights.items() if n != "cls_token"}, half=False, seen=Seen(), about={})
    with pytest.raises(InputError, match="weights of another architecture: it lacks cls_token"):
        zoo.load_weights(parameters(network), network.head_names, str(path))


def test_weights_of_another_architecture_change_nothing(tmp_path):
    path = tmp_path / "w.safetensors"
    zoo.save_weights(path, zoo.weights_of(vit(width=8)), half=False, seen=Seen(), about={})
    for network in (vit(), unet()):
        before = zoo.weights_of(network)
        with pytest.raises(InputError, match=r"w\.safetensors: weights of another architecture: "):
            zoo.load_weights(parameters(network), network.head_names, str(path))
        assert all(np.array_equal(value, before[name]) for name, value in zoo.weights_of(network).items())


def test_weights_that_are_not_finite_or_no_weights_are_refused(tmp_path):
    path, network = tmp_path / "w.safetensors", vit()
    before = zoo.weights_of(network)
    weights = {name: value + 1 for name, value in before.items()}
    weights["norm.bias"][3] = np.inf
    safetensors.numpy.save_file(weights, path)
    with pytest.raises(InputError, match=r"w\.safetensors: norm\.bias has values that are not finite"):
        zoo.load_weights(parameters(network), network.head_names, str(path))
    assert all(np.array_equal(value, before[name]) for name, value in zoo.weights_of(network).items())
    for damage in (b"", b"no weights", path.read_bytes()[:200]):
        path.write_bytes(damage)
        with pytest.raises(InputError, match="expected a safetensors file"):
            zoo.load_weights(parameters(network), network.head_names, str(path))


def test_weights_are_found_by_path_or_shipped_name(tmp_path):
    with pytest.raises(InputError, match=r"^model.weights: phantom_unot: no such file, and not the name of shipped weights \("):
        zoo.find("phantom_unot")
    assert zoo.find("phantom_unet").name == "phantom_unet.safetensors"
    (tmp_path / "x.safetensors").write_bytes(b"")
    assert zoo.find(str(tmp_path / "x.safetensors")) == tmp_path / "x.safetensors"


@pytest.mark.parametrize(("name", "kind", "task"), [("phantom_unet", "unet", "segmentation"), ("phantom_vit", "vit", "disease")])
def test_shipped_weights_fit_the_small_networks_and_say_what_they_have_seen(name, kind, task):
    network = zoo.build(kind, task, "small", (96, 96, 12) if kind == "unet" else (72, 72, 12))
    path = zoo.find(name)
    before = zoo.weights_of(network)
    zoo.load_weights(parameters(network), network.head_names, name)
    after = zoo.weights_of(network)
    changed = [key for key in before if not np.array_equal(before[key], after[key])]
    assert len(changed) > len(before) / 2
    assert read_seen(path).cases and path.stat().st_size < 5e6
    assert read_seen(path).phantom_seeds == {1000 if kind == "unet" else 2000}
