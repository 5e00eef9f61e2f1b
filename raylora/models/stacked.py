"""One frozen backbone that carries K clients' trained tensors, and speaks to the outside in trees."""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raylora.core.errors import InputError
from raylora.core.types import Phase, Tree
from raylora.models.lora import CONVOLUTIONS, Adapted, Pass, PerClient, together
from raylora.models.outline import Layer, Outline, prefixed
from raylora.models.stages import first_trained, run_stages


def kept_in(dtype: torch.dtype) -> torch.dtype:
    """What trained tensors are kept in where the computation is in `dtype`: bfloat16 has too few digits to add small steps up."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def adapted_modules(backbone: nn.Module, targets: Sequence[str] | None, blocks: str | int | Sequence[int]) -> tuple[str, ...]:
    """Module paths that get adapters: those that a target's pattern matches inside the chosen blocks, in forward order of the blocks.

    Raises InputError for an unknown target, a block number beyond the model, or a choice that leaves no layer.
    """
    known = backbone.adapter_targets
    chosen = list(backbone.default_targets if targets is None else targets)
    for target in chosen:
        if target not in known:
            raise InputError(f"lora.targets: unknown target {target!r} (this model has: {', '.join(known)})")
    numbered = backbone.adapter_blocks
    count = len(numbered)
    if blocks == "all":
        wanted = set(range(count))
    elif isinstance(blocks, int):
        if blocks > count:
            raise InputError(f"lora.blocks: the last {blocks} blocks were asked for, the model has {count}")
        wanted = set(range(count - blocks, count))
    else:
        wanted = set(blocks)
        beyond = sorted(number for number in wanted if number >= count)
        if beyond or not wanted:
            raise InputError(f"lora.blocks: expected block numbers from 0 to {count - 1}, found {beyond or 'none'}")
    inside = [
        prefix for number in sorted(wanted) for prefix in ([numbered[number]] if isinstance(numbered[number], str) else numbered[number])
    ]
    paths = []
    for path, module in backbone.named_modules():
        in_block = any(path == prefix or path.startswith(prefix + ".") for prefix in inside)
        if any(re.fullmatch(known[target], path) for target in chosen) and (in_block or not _numbered(path, numbered)):
            if not isinstance(module, (nn.Linear, *CONVOLUTIONS)):
                raise InputError(
                    f"lora.targets: {path} is a {type(module).__name__}; only linear and (not transposed) convolution layers take LoRA"
                )
            if getattr(module, "groups", 1) != 1:
                raise InputError(f"lora.targets: {path} is a grouped convolution, which takes no LoRA")
            paths.append(path)
    if not paths:
        raise InputError(f"lora: targets {chosen} in blocks {blocks!r} match no layer of the model")
    return tuple(paths)


def _numbered(path: str, blocks: Sequence[str | Sequence[str]]) -> bool:
    prefixes = [prefix for block in blocks for prefix in ([block] if isinstance(block, str) else block)]
    return any(path == prefix or path.startswith(prefix + ".") for prefix in prefixes)


def read_only(array: np.ndarray | Tensor) -> Tensor:
    """The array as a tensor over the same memory, which nothing ever writes to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of what is marked read-only
        return torch.as_tensor(array)


class StackedModel:
    """A backbone whose chosen layers are adapted and whose plain trained parts are per client.

    `load` fills it with K clients' trees, calling it on (K b, ...) images computes all K models in one pass, `read` gives a client's tree
    back. The backbone is used in place: its frozen weights are never written, `set_base` replaces them.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        modules: Sequence[str],
        plain: Sequence[str] = (),
        adapters: Mapping[str, int | None] | None = None,
        router: bool = False,
        full: bool = False,
        dropout: float = 0.0,
    ) -> None:
        self.adapters = dict({"": None} if adapters is None else adapters)
        self.weights = dict(backbone.named_parameters())  # original names -> frozen weights
        self.router = router
        fixed = {name for name, weight in self.weights.items() if not weight.requires_grad}  # a table of positions is no weight to train
        for weight in self.weights.values():
            weight.requires_grad_(False)
        self.backbone = backbone.eval()  # frozen parts have no dropout, no drop-path, no running statistics
        self.prefix: Any = None  # training.features.Prefix: what precedes stage `prefix.first` is then known, and calls start there
        self.full = full
        self.now = Pass(dropout=dropout)
        self.parameters: dict[str, Tensor] = {}  # tree name -> (K, *shape), the leaves that are optimised
        self.clients = 0  # models in a pass
        self.ranks: list[dict[str, int]] = []  # per client, per adapter
        self.layers: dict[str, Adapted] = {}
        self.owned: dict[str, PerClient] = {}
        self._outline: Outline | None = None
        if full:
            self.plain = tuple(name for name in self.weights if name not in fixed)
            self.owned[""] = PerClient(backbone)
            return
        self.plain = tuple(name for name in self.weights if any(fnmatch.fnmatchcase(name, pattern) for pattern in plain))
        if both := sorted({f"{path}.weight" for path in modules} & set(self.plain)):
            raise InputError(
                f"lora.targets: {both[0]} is trained as it is (model.head, model.decoder): expected targets without it "
                f"(this model has: {', '.join(backbone.adapter_targets)})"
            )
        for path in modules:
            self.layers[path] = Adapted(backbone.get_submodule(path), self.now)
            _replace(backbone, path, self.layers[path])
        for path in sorted({name.rpartition(".")[0] for name in self.plain}):
            self.owned[path] = PerClient(backbone.get_submodule(path))
            _replace(backbone, path, self.owned[path])

    # ---- trees

    @property
    def outline(self) -> Outline:
        """What a server knows of this model, with the plain parts as the base has them now."""
        if self._outline is None:
            plain = {name: self.weights[name].detach().cpu().float().numpy().view() for name in self.plain}  # of a float32 base no copies
            for array in plain.values():
                array.flags.writeable = False
            layers = {}
            for path, layer in self.layers.items():
                inputs, outputs = _sides(layer.base)
                layers[path] = Layer(inputs=inputs, outputs=outputs, kernel=tuple(getattr(layer.base, "kernel_size", ())))
            self._outline = Outline(plain=plain, layers=layers, adapters=self.adapters, router=self.router)
        return self._outline

    @property
    def dtype(self) -> torch.dtype:
        """Of the computation."""
        return next(iter(self.weights.values())).dtype

    @property
    def device(self) -> torch.device:
        return next(iter(self.weights.values())).device

    def load(self, trees: Sequence[Tree], alphas: Sequence[float]) -> None:
        """Take K clients' trees. Different ranks are padded with zeros: a padded direction has no output and no gradient.

        An adapter's scaling is alpha over its own rank. Raises ValueError if a tree's names are not exactly the model's.
        """
        expected = self.outline.names
        for tree in trees:
            if set(tree) != expected:
                missing, extra = sorted(expected - set(tree)), sorted(set(tree) - expected)
                raise ValueError(f"adapter names do not match the model: missing {missing[:5]}, unexpected {extra[:5]}")
        self.parameters = {}
        for name in sorted(expected):
            arrays = [tree[name] for tree in trees]
            shape = np.max([array.shape for array in arrays], axis=0) if arrays[0].ndim else ()
            stacked = np.zeros((len(arrays), *shape), arrays[0].dtype)
            for k, array in enumerate(arrays):
                stacked[(k, *map(slice, array.shape))] = array
            self.parameters[name] = torch.from_numpy(stacked).to(device=self.device, dtype=kept_in(self.dtype))
        first = next(iter(self.layers), None)
        self.ranks = [
            {adapter: len(tree[prefixed(adapter, f"{first}.lora_A")]) for adapter in self.adapters} if first is not None else {}
            for tree in trees
        ]
        self.clients = len(trees)
        self.now.scalings = {
            a: torch.tensor([alpha / ranks[a] for alpha, ranks in zip(alphas, self.ranks, strict=True)], dtype=kept_in(self.dtype)).to(
                self.device
            )
            for a in (self.adapters if self.layers else ())
        }
        self._connect()

    def read(self, clients: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """The trees of some clients, as copies, without padding."""
        values = {name: value.detach().cpu().numpy() for name, value in self.parameters.items()}  # from a GPU in one piece each
        trees = []
        for k in clients:
            tree = {}
            for name, value in values.items():
                adapter = next((a for a in self.adapters if a and name.startswith(f"{a}.")), "")
                array = value[k]
                if name.endswith(".lora_A"):
                    array = array[: self.ranks[k][adapter]]
                elif name.endswith(".lora_B"):
                    array = array[:, : self.ranks[k][adapter]]
                tree[name] = np.array(array, order="C")
            trees.append(tree)
        return trees

    def keep(self, clients: Sequence[int]) -> None:
        """Go on with some of the clients only, for example when the others have done their steps."""
        index = torch.as_tensor(list(clients))
        self.parameters = {name: value.detach()[index].requires_grad_(value.requires_grad) for name, value in self.parameters.items()}
        self.ranks = [self.ranks[k] for k in clients]
        self.clients = len(index)
        self.now.scalings = {adapter: scaling[index] for adapter, scaling in self.now.scalings.items()}
        self._connect()

    def _connect(self) -> None:
        """Hand the stacked tensors to the layers."""
        for path, layer in self.layers.items():
            layer.factors = {a: tuple(self.parameters[prefixed(a, f"{path}.lora_{side}")] for side in "AB") for a in self.adapters}
            layer.router = self.parameters[f"router.{path}.weight"] if self.router else None
        for path, module in self.owned.items():
            inside = f"{path}." if path else ""
            module.own = {name.removeprefix(inside): self.parameters[name] for name in self.plain if name.startswith(inside)}

    # ---- phases of training

    def begin(self, phase: Phase, trained: set[str], streams: Sequence[torch.Generator] = ()) -> dict[str, Tensor]:
        """Make the named tensors leaves with gradient and set the phase's gates; returns the trained tensors by name."""
        self.parameters = {name: value.detach().requires_grad_(name in trained) for name, value in self.parameters.items()}
        self.now.gates, self.now.detached, self.now.streams = phase.gates, frozenset(phase.detached), streams
        self._connect()
        return {name: self.parameters[name] for name in sorted(trained)}

    def present(self, samples: Sequence[int]) -> None:
        """How many samples of each client's batch are real in the next pass: padding draws nothing from a client's stream."""
        self.now.samples = samples

    def end(self) -> None:
        """Back to evaluation: no gradient, no dropout, no stop-gradient; gates stay, they are part of the model."""
        self.parameters = {name: value.detach() for name, value in self.parameters.items()}
        self.now.detached, self.now.streams, self.now.samples = frozenset(), (), ()
        self._connect()

    def gate(self, gates: Mapping[str, float]) -> None:
        """Factors on the adapters' outputs (absent: 1) from now on."""
        self.now.gates = gates

    # ---- the base

    def set_base(self, weights: Mapping[str, np.ndarray | Tensor]) -> None:
        """Replace some of the frozen weights, by their original names. On a CPU the arrays are used in place, never written."""
        for name, array in weights.items():
            weight = self.weights[name]
            weight.data = read_only(array).to(device=weight.device, dtype=weight.dtype)
        if any(name in self.plain for name in weights):
            self._outline = None

    def __call__(self, *tensors: Tensor) -> Tensor:
        """Logits (K b, ...) of images (K b, c, x, y, z), client after client; with a prefix, of what it makes of them."""
        if self.prefix is not None:
            return run_stages(self.backbone.stages()[self.prefix.first :], tensors)[0]
        return (self.owned[""] if self.full else self.backbone)(*tensors)

    def compared(self, *tensors: Tensor) -> Tensor:
        """Logits (K b, ...) of all K models on the same b images: what they have in common is computed once."""
        if self.clients == 1:
            return self(*tensors)
        if self.full or not hasattr(self.backbone, "stages"):
            return self(*(together([tensor] * self.clients) for tensor in tensors))
        stages = self.backbone.stages()
        start = 0 if self.prefix is None else self.prefix.first
        cut = first_trained(stages, self.outline.names)
        tensors = run_stages(stages[start:cut], tensors)
        return run_stages(stages[cut:], tuple(together([tensor] * self.clients) for tensor in tensors))[0]


def _replace(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def _sides(layer: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of the flattened weight: a convolution's inputs are channels times kernel."""
    rows = layer.weight.shape[0]
    return layer.weight[0].numel(), rows
