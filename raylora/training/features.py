"""The frozen prefix, computed once: whatever precedes the first trained stage is a fixed function of the image.

Each image goes through the prefix alone, whatever batch it is later drawn into, so that a feature has the same bits whoever computes it and
in whatever company. (Through a larger batch a matrix product may round its last bits otherwise: a run with the cache and one without it
agree to rounding, and bit for bit where the batch size is one.)
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from raylora import models
from raylora.core.errors import InputError
from raylora.core.machine import free_bytes, kind_of_cpu
from raylora.core.seeds import generator
from raylora.data.features import FeatureFolder
from raylora.models.stacked import StackedModel
from raylora.models.stages import Stage, first_trained, run_stages
from raylora.training.samples import Samples
from raylora.training.settings import CacheSpec

Features = tuple[np.ndarray, ...]
"""What enters the first stage that is not cached, of one image: float32 or float64, bfloat16 as the uint16 of its bits."""

PAYS = 0.25
"""Share of a forward pass, itself a third of a training step, from which on a prefix is worth keeping; where its features are smaller than
the image, which then need not be read, so much less of a pass."""
LARGE = 25_000_000  # parameters of a network through which a real image is sent to count
IN_MEMORY = 0.1  # of the memory that is free, for those of one process's features that cannot be written
RESIDENT = 0.15  # of a process's share of a GPU, for features that stay on it: within what `federation.memory` leaves free
WIDE = 1 << 20  # numbers of that image, or between two stages


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A place where a forward pass can be cut in two."""

    first: int  # stages before it
    stage: str  # the last of them
    elements: int  # numbers of one image that pass it
    share: float  # of the multiplications in the pass's layers that lie before it


@torch.no_grad()
def cuts(backbone: nn.Module, trained: Sequence[str], image: tuple[int, ...]) -> list[Cut]:
    """The places where a pass may be cut: after the first stage, after the second, ... up to the first stage that holds a trained name.

    image: (channels, x, y, z). One empty image goes through the network. Where that is much work it goes without storage, which computes
    nothing but loads a good part of torch that nothing else needs.
    """
    stages = backbone.stages()
    last = first_trained(stages, trained)
    if last == 0:
        return []
    small = sum(p.numel() for p in backbone.parameters()) <= LARGE and math.prod(image) <= WIDE
    passed = (_passed(backbone, image) if small else None) or _passed(_without_storage(backbone), image, most=math.inf)
    assert passed is not None  # nothing is too much without storage
    whole = max(1, passed[-1][0])
    return [
        Cut(first=i + 1, stage=stage.name, elements=elements, share=before / whole)
        for i, (stage, (before, elements)) in enumerate(zip(stages[:last], passed, strict=False))
    ]


def _passed(backbone: nn.Module, image: tuple[int, ...], most: float = WIDE) -> list[tuple[int, int]] | None:
    """After each stage: the multiplications so far, and the numbers that it hands on; None if those are more than `most`."""
    done = 0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal done
        transposed = isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d)
        done += (inputs[0] if transposed else output).numel() * layer.weight[0].numel()  # type: ignore[index,operator,union-attr]

    weight = next(backbone.parameters())
    tensors: tuple[torch.Tensor, ...] = (torch.zeros((1, *image), device=weight.device, dtype=weight.dtype),)
    handles = [layer.register_forward_hook(count) for layer in backbone.modules() if getattr(getattr(layer, "weight", None), "ndim", 0) > 1]
    passed = []
    try:
        for stage in backbone.stages():
            tensors = run_stages([stage], tensors)
            passed.append((done, sum(tensor.numel() for tensor in tensors)))
            if passed[-1][1] > most:
                return None
    finally:
        for handle in handles:
            handle.remove()
    return passed


def _without_storage(backbone: nn.Module) -> nn.Module:
    """The same network with shapes instead of weights."""
    empty: dict[int, torch.Tensor] = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), False) for p in backbone.parameters()}
    return copy.deepcopy(backbone, empty | {id(b): torch.empty_like(b, device="meta") for b in backbone.buffers()})


def choose(
    wanted: str, found: Sequence[Cut], *, number_bytes: int, image_bytes: int, images: int, bound_bytes: int, random: bool
) -> tuple[Cut | None, str]:
    """Which cut is cached, or None and why not.

    The latest cut whose features of all `images` fit the bound: it saves most, and reading is cheap beside computing. `wanted` is "off",
    "auto" (where it pays) or the kind of number to keep; `number_bytes` is the size of one of those, `image_bytes` that of an image. `random`:
    every image is drawn once.
    Raises InputError if what was asked for by name cannot be.
    """
    fitting = [cut for cut in found if cut.elements * number_bytes * images <= bound_bytes]
    if wanted == "off":
        return None, "off"
    if not found:
        why = "the first stage is trained already"
    elif random:
        why = "random augmentation draws each image anew (training.cached_views keeps a number of views)"
    elif not fitting:
        least = min(cut.elements for cut in found) * number_bytes * images
        why = f"features of {images} images take {least / 1e9:.1f} GB, training.cache_gb allows {bound_bytes / 1e9:g}"
    elif wanted == "auto" and fitting[-1].share < PAYS * min(1.0, fitting[-1].elements * number_bytes / image_bytes):
        why = f"what precedes the first trained stage is {fitting[-1].share:.0%} of a pass"
    else:
        return fitting[-1], ""
    if wanted != "auto":
        raise InputError(f"training.cache: {wanted} was asked for, but {why}; expected off or auto")
    return None, why


class Prefix:
    """The stages before the cut of a model, and what is known of their results: in this process, and in the folder."""

    def __init__(self, model: StackedModel, spec: CacheSpec) -> None:
        self.spec, self.first = spec, spec.first
        self.stages: list[Stage] = model.backbone.stages()[: spec.first]
        held = {name: weight for name, weight in model.weights.items() if self.holds([name])}
        self.device, self.dtype = model.device, model.dtype
        self.key = _key(spec, held, self.device, self.dtype)
        self.computed = 0  # images, by this object
        self._kept = getattr(torch, spec.dtype)
        self._folder = FeatureFolder(spec.folder, spec.bound_bytes)
        self._known: dict[Hashable, Features] = {}
        self._in_memory = 0  # bytes of those that could not be written
        self._resident: dict[Hashable, tuple[torch.Tensor, ...]] = {}  # on a GPU, in the order of their first use, while there is room
        self._room = 0.0
        if self.device.type == "cuda":
            share = torch.cuda.get_per_process_memory_fraction(self.device)
            self._room = RESIDENT * share * torch.cuda.get_device_properties(self.device).total_memory

    def holds(self, names: Sequence[str]) -> bool:
        """Whether one of the weights is the prefix's."""
        return any(stage.holds(name) for stage in self.stages for name in names)

    def of(self, name: Hashable, image: Callable[[], np.ndarray]) -> Features:
        """The features of an image (c, x, y, z). `name` is its name in this process: asked again for it, the image is not looked at."""
        found = self._known.get(name)
        if found is not None:
            return found
        array = np.ascontiguousarray(image(), np.float32)
        content = hashlib.sha256(f"{array.shape}".encode() + array.tobytes()).hexdigest()
        found = self._folder.read(self.key, content)
        if found is None:
            found = self._compute(array)
            try:
                self._folder.write(self.key, content, found)
            except OSError:  # no room, no right to write
                return self._remembered(name, found)
            mapped = self._folder.read(self.key, content)
            if mapped is None:  # gone already: the bound is that small
                return found
            found = mapped
        self._known[name] = found
        return found

    def _remembered(self, name: Hashable, found: Features) -> Features:
        """In memory, while there is plenty: what is not remembered is computed again each time, with the same bits."""
        size = sum(array.nbytes for array in found)
        if self._in_memory + size <= free_bytes() * IN_MEMORY:
            self._known[name] = found
            self._in_memory += size
        return found

    def batch(self, images: Sequence[tuple[Hashable, Callable[[], np.ndarray]]]) -> tuple[torch.Tensor, ...]:
        """The features (b, ...) of several images by their names in this process, on the model's device."""
        if self.device.type == "cpu":
            found = [self.of(name, image) for name, image in images]
            return tuple(torch.from_numpy(_wide(np.stack(arrays))) for arrays in zip(*found, strict=True))
        return tuple(map(torch.stack, zip(*(self._on_device(name, image) for name, image in images), strict=True)))

    def _on_device(self, name: Hashable, image: Callable[[], np.ndarray]) -> tuple[torch.Tensor, ...]:
        if name not in self._resident:
            arrays = self.of(name, image)
            tensors = tuple(placed(torch.from_numpy(np.array(array)).view(self._kept), self.device) for array in arrays)
            self._room -= sum(tensor.nbytes for tensor in tensors)
            if self._room < 0:  # from here on they come from the folder each time
                return tensors
            self._resident[name] = tensors
        return self._resident[name]

    @torch.no_grad()
    def _compute(self, image: np.ndarray) -> Features:
        self.computed += 1
        tensors = run_stages(self.stages, (torch.from_numpy(image[None].copy()).to(self.device, self.dtype),))
        return tuple(_narrow(tensor[0].to(self._kept).cpu()) for tensor in tensors)


def entering(model: StackedModel, images: Sequence[tuple[Hashable, Callable[[], np.ndarray]]]) -> tuple[torch.Tensor, ...]:
    """What a batch of named images is to the model: the images (b, c, x, y, z) themselves, or their features."""
    if model.prefix is None:
        return (torch.from_numpy(np.stack([image() for _, image in images]).astype(np.float32, copy=False)),)
    return model.prefix.batch(images)


def placed(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The tensor on a device; to a GPU it goes while whoever called goes on, and is made narrower or wider there."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True).to(dtype or tensor.dtype)


class Cached:
    """Samples whose images are known by their features. With views, a sample is one of a fixed number of its random augmentations."""

    def __init__(self, samples: Samples, model: StackedModel, client: str, seed: int) -> None:
        self.samples, self.model, self.client, self.seed = samples, model, client, seed
        self._targets: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> tuple[tuple[torch.Tensor, ...], np.ndarray, np.ndarray]:
        """Features (b, ...) by tensor, targets, weights."""
        views = self.model.prefix.spec.views
        chosen = rng.integers(views, size=len(indices)).tolist() if views is not None else [0] * len(indices)
        places = list(zip(np.asarray(indices).tolist(), chosen, strict=True))
        features = self.model.prefix.batch([self._named(*place) for place in places])
        targets, weights = zip(*(self._targets[place] for place in places), strict=True)
        return features, np.concatenate(targets).astype(np.int64), np.concatenate(weights)

    def _named(self, index: int, view: int) -> tuple[Hashable, Callable[[], np.ndarray]]:
        def image() -> np.ndarray:
            images, targets, weights = self._draw(index, view)
            self._targets[index, view] = _compact(targets), weights
            return images[0]

        if (index, view) not in self._targets:
            drawn = image()
            return (self.client, index, view), lambda: drawn
        return (self.client, index, view), image

    def _draw(self, index: int, view: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.samples.batch(np.array([index]), generator(self.seed, f"view/{index}", view, self.client))


def _compact(targets: np.ndarray) -> np.ndarray:
    """The same whole numbers in as few bytes as they need."""
    return targets.astype(np.min_scalar_type(int(targets.max(initial=0))))


def _narrow(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.contiguous().view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _wide(array: np.ndarray) -> np.ndarray:
    """bfloat16's bits are the upper half of float32's."""
    return (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array


def _key(spec: CacheSpec, weights: Mapping[str, torch.Tensor], device: torch.device, dtype: torch.dtype) -> str:
    """Of everything that a feature's bits depend on beside the image."""
    capable = torch.backends.cpu.get_cpu_capability()  # what torch's own kernels use, which the environment may lower
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{capable} {kind_of_cpu()}"
    digest = hashlib.sha256()
    for part in (spec.function, spec.stage, spec.first, spec.dtype, dtype, where, torch.get_num_threads(), torch.__version__):
        digest.update(f"{part}\x1f".encode())
    for path in sorted(Path(models.__file__).parent.glob("*.py")):  # another network under the same name computes something else
        digest.update(path.read_bytes())
    for name, weight in sorted(weights.items()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
