"""The LoRA layer against peft, alone and stacked."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from raylora.core.types import Phase
from raylora.models.lora import Adapted, Pass
from raylora.models.stacked import StackedModel, adapted_modules

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from peft import LoraConfig
    from peft.functional import inject_adapter_in_model, set_adapter, set_peft_model_state_dict

RANK, ALPHA = 3, 6.0


class Net(nn.Module):
    """A convolution, two linear layers and a head: every kind of layer that takes LoRA."""

    adapter_blocks = ("conv", "fc1", "fc2")
    adapter_targets = {"conv": "conv", "fc": r"fc\d"}
    default_targets = ("conv", "fc")
    head_names = ("head.*",)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 4, (3, 3, 1), stride=(2, 1, 1), padding=(1, 1, 0))
        self.fc1, self.fc2, self.head = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).relu().flatten(2).transpose(1, 2)  # (b, n, 4)
        return self.head(self.fc2(self.fc1(x).relu()).relu().mean(1))


def network(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().double()


def stacked(adapters=None, **options) -> StackedModel:
    net = network()
    return StackedModel(net, modules=adapted_modules(net, ("conv", "fc"), "all"), plain=Net.head_names, adapters=adapters, **options)


def tree(model: StackedModel, seed: int, rank: int = RANK) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=value.shape) for name, value in model.outline.initial(rng, rng, rank).items()}


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 2, 6, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_peft(adapters: dict[str, dict[str, np.ndarray]], head: dict[str, np.ndarray]) -> nn.Module:
    """The same network by peft: one adapter a name, all active, their sum."""
    net = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, factors in adapters.items():
            config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["conv", "fc1", "fc2"])
            net = inject_adapter_in_model(config, net, adapter_name=name)
            state = {}
            for key, value in factors.items():
                module, side = key.rsplit(".", 1)
                if module == "conv":
                    value = value.reshape(RANK, 2, 3, 3, 1) if side == "lora_A" else value.reshape(4, RANK, 1, 1, 1)
                state[f"{module}.{side}.weight"] = torch.from_numpy(value.copy())
            result = set_peft_model_state_dict(net, state, adapter_name=name)
            assert not result.unexpected_keys
        set_adapter(net, list(adapters))
    net.double()
    net.load_state_dict({key: torch.from_numpy(value) for key, value in head.items()}, strict=False)
    return net


def split(whole: dict[str, np.ndarray], adapters: tuple[str, ...]) -> tuple[dict, dict]:
    parts = {
        a or "shared": {n.removeprefix(f"{a}."): v for n, v in whole.items() if ".lora_" in n and n.startswith("local.") == (a == "local")}
        for a in adapters
    }
    return parts, {n: v for n, v in whole.items() if n.startswith("head")}


@pytest.mark.parametrize("adapters", [("",), ("", "local")])
def test_logits_and_gradients_are_pefts(adapters):
    model = stacked(dict.fromkeys(adapters))
    whole = tree(model, 1)
    model.load([whole], [ALPHA])
    trained = model.begin(Phase(trains=("*",)), set(model.parameters))
    x = images(4)
    ours = model(x)
    ours.square().sum().backward()
    parts, head = split(whole, adapters)
    reference = with_peft(parts, head)
    for value in reference.parameters():
        value.requires_grad_(True)
    theirs = reference(x)
    theirs.square().sum().backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for name, value in trained.items():
        if ".lora_" not in name:
            continue
        adapter = "local" if name.startswith("local.") else "shared"
        module, side = name.removeprefix("local.").rsplit(".", 1)
        gradient = reference.get_parameter(f"{module}.{side}.{adapter}.weight").grad
        torch.testing.assert_close(value.grad[0], gradient.reshape(value.shape[1:]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("merged", [True, False])
def test_stacked_clients_are_the_separate_ones(monkeypatch, merged):
    if not merged:
        monkeypatch.setattr("raylora.models.lora.Adapted._mergeable", lambda self: False)
    model = stacked({"": None, "local": 2})
    ranks = [1, 4, 2]
    trees = [tree(model, k, rank) for k, rank in enumerate(ranks)]
    xs = [images(2, k) for k in range(3)]
    separate, gradients = [], []
    for x, one in zip(xs, trees, strict=True):
        model.load([one], [ALPHA])
        trained = model.begin(Phase(trains=("*",)), set(model.parameters))
        y = model(x)
        y.square().sum().backward()
        separate.append(y.detach())
        gradients.append({name: value.grad[0] for name, value in trained.items()})
    model.load(trees, [ALPHA] * 3)
    trained = model.begin(Phase(trains=("*",)), set(model.parameters))
    together = model(torch.cat(xs))
    together.square().sum().backward()
    torch.testing.assert_close(together.detach(), torch.cat(separate), rtol=1e-11, atol=1e-11)
    for k in range(3):
        for name, value in trained.items():
            alone = gradients[k][name]
            padded = value.grad[k]
            torch.testing.assert_close(padded[tuple(map(slice, alone.shape))], alone, rtol=1e-9, atol=1e-9)
            assert padded.abs().sum() == pytest.approx(alone.abs().sum().item()), "a padded direction has a gradient"
        assert {n: v.shape for n, v in model.read([k])[0].items()} == {n: v.shape for n, v in trees[k].items()}


def test_merging_the_factors_into_a_convolution_changes_rounding_only(monkeypatch):
    model = stacked()
    trees = [tree(model, k) for k in range(2)]
    model.load(trees, [ALPHA] * 2)
    merged = model(images(4))
    monkeypatch.setattr("raylora.models.lora.Adapted._mergeable", lambda self: False)
    torch.testing.assert_close(merged, model(images(4)), rtol=1e-11, atol=1e-11)


def test_a_fresh_adapter_changes_nothing_and_zero_gate_silences_one():
    model = stacked({"": None, "local": None})
    x = images(2)
    rng = np.random.default_rng(0)
    fresh = model.outline.initial(rng, rng, RANK)
    model.load([fresh], [ALPHA])
    torch.testing.assert_close(model(x), network()(x))
    whole = tree(model, 3)
    quiet = {**whole, **{name: np.zeros_like(value) for name, value in whole.items() if name.startswith("local.") and name.endswith("_B")}}
    model.load([quiet], [ALPHA])
    expected = model(x)
    model.load([whole], [ALPHA])
    model.gate({"local": 0.0})
    torch.testing.assert_close(model(x), expected)


def test_a_stop_gradient_leaves_the_value_and_takes_the_gradient():
    model = stacked({"": None, "local": None})
    whole = tree(model, 4)
    model.load([whole], [ALPHA])
    expected = model(images(2))
    trained = model.begin(Phase(trains=("*",), detached=("local",)), set(model.parameters))
    y = model(images(2))
    y.sum().backward()
    torch.testing.assert_close(y, expected)
    assert all(value.grad is None or not value.grad.any() for name, value in trained.items() if name.startswith("local."))
    assert trained["fc1.lora_A"].grad.any()


def test_a_client_that_leaves_the_stack_disturbs_nobody():
    model = stacked()
    trees = [tree(model, k, rank) for k, rank in enumerate((2, 3, 1))]
    model.load(trees, [ALPHA] * 3)
    model.keep([0, 2])
    for position, k in enumerate((0, 2)):
        for name, value in model.read([position])[0].items():
            np.testing.assert_array_equal(value, trees[k][name])
    x = images(4)
    alone = []
    for k, part in zip((0, 2), x.chunk(2), strict=True):
        other = stacked()
        other.load([trees[k]], [ALPHA])
        alone.append(other(part))
    torch.testing.assert_close(model(x), torch.cat(alone), rtol=1e-11, atol=1e-11)


def test_dropout_follows_each_clients_own_stream():
    model = stacked(dropout=0.5)
    trees = [tree(model, k) for k in range(2)]

    def output(clients, xs):
        model.load([trees[k] for k in clients], [ALPHA] * len(clients))
        model.begin(Phase(trains=("*",)), set(), [torch.Generator().manual_seed(10 + k) for k in clients])
        return model(torch.cat(xs))

    first, second = images(2, 1), images(2, 2)
    together = output([0, 1], [first, second])
    torch.testing.assert_close(together[:2], output([0], [first]))
    torch.testing.assert_close(together[2:], output([1], [second]))
    model.end()
    assert not torch.equal(model(first), together[2:])


def test_names_must_match_exactly():
    model = stacked()
    whole = tree(model, 0)
    missing = dict(whole)
    missing.pop("fc1.lora_A")
    with pytest.raises(ValueError, match="fc1.lora_A"):
        model.load([missing], [ALPHA])
    with pytest.raises(ValueError, match="fc9"):
        model.load([{**whole, "fc9.lora_A": whole["fc1.lora_A"]}], [ALPHA])


def test_the_base_is_replaced_and_never_written():
    model = stacked()
    frozen = np.random.default_rng(5).normal(size=(8, 4))
    frozen.flags.writeable = False
    copy = frozen.copy()
    model.set_base({"fc1.weight": frozen})
    whole = tree(model, 0)
    model.load([whole], [ALPHA])
    trained = model.begin(Phase(trains=("*",)), set(model.parameters))
    model(images(2)).sum().backward()
    assert trained["fc1.lora_A"].grad.any() and model.weights["fc1.weight"].grad is None
    np.testing.assert_array_equal(frozen, copy)


def routed() -> StackedModel:
    return StackedModel(network(), modules=("conv", "fc1", "fc2"), plain=Net.head_names, adapters={"": None, "rest": None}, router=True)


def test_a_router_of_zeros_takes_the_mean_of_the_adapters():
    model = routed()
    whole = tree(model, 6)
    even = {**whole, **{name: np.zeros_like(value) for name, value in whole.items() if name.startswith("router.")}}
    model.load([even], [ALPHA])
    plain = stacked(adapters={"": None, "rest": None})
    plain.load([{n: v for n, v in whole.items() if not n.startswith("router.")}], [ALPHA])
    plain.gate({"": 0.5, "rest": 0.5})
    torch.testing.assert_close(model(images(2)), plain(images(2)))


def test_a_router_mixes_token_by_token_and_place_by_place():
    """A linear layer's token is its input; a convolution's is what the kernel sees at one place, cut out here by hand."""
    model = routed()
    trees = [tree(model, seed) for seed in (7, 8)]
    model.load(trees, [ALPHA, ALPHA])
    x, linear_x = images(4), torch.randn(4, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    padded = torch.nn.functional.pad(x, (0, 0, 1, 1, 1, 1))
    patches = padded.unfold(2, 3, 2).unfold(3, 3, 1).unfold(4, 1, 1)  # (b, in, *places, 3, 3, 1)
    patches = patches.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4)  # (b, *places, in * kernel)
    for name, whole_x, tokens in (("conv", x, patches), ("fc1", linear_x, linear_x)):
        layer = model.layers[name]
        added = layer(whole_x) - layer.base(whole_x)
        for k, own in enumerate(trees):
            factors = {key: torch.from_numpy(value) for key, value in own.items()}
            mine = tokens[2 * k : 2 * k + 2]
            gates = (mine @ factors[f"router.{name}.weight"].T).softmax(-1)
            pairs = [(factors[f"{prefix}{name}.lora_A"], factors[f"{prefix}{name}.lora_B"]) for prefix in ("", "rest.")]
            expected = sum(gates[..., i, None] * (ALPHA / RANK) * (mine @ a.T @ b.T) for i, (a, b) in enumerate(pairs))
            expected = expected.permute(0, 4, 1, 2, 3) if name == "conv" else expected
            torch.testing.assert_close(added[2 * k : 2 * k + 2], expected)


def test_a_router_weighs_adapters_without_their_gates():
    now = Pass(scalings={"": torch.ones(2), "local": torch.ones(2)})
    layer = Adapted(nn.Linear(4, 3), now)
    layer.factors = {name: (torch.randn(2, 2, 4), torch.randn(2, 3, 2)) for name in now.scalings}
    image = torch.randn(4, 5, 4)
    layer.router = torch.randn(2, 2, 4)
    mixed = layer(image)
    now.gates = {"local": 0.0}
    assert torch.equal(layer(image), mixed)
    layer.router = None
    assert torch.allclose(
        layer(image)[:2], layer.base(image[:2]) + image[:2] @ (layer.factors[""][1][0] @ layer.factors[""][0][0]).T, atol=1e-5
    )
