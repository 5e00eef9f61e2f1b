"""MONAI's own network with the weights of one of ours: the proof of compatibility, and a way out to MONAI's ecosystem; and the way in.

Importing MONAI takes seconds, so nothing on the way of a run imports this module.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from raylora.core.errors import InputError, one_line
from raylora.models.unet import UNet
from raylora.models.vit import ViTClassifier


def monai_unet(model: UNet) -> nn.Module:
    """`monai.networks.nets.DynUNet` with copies of the model's weights."""
    from monai.networks.nets import DynUNet

    twin = DynUNet(
        spatial_dims=3,
        in_channels=model.arguments["in_channels"],
        out_channels=model.arguments["out"],
        kernel_size=model.arguments["kernels"],
        strides=model.arguments["strides"],
        upsample_kernel_size=model.arguments["strides"][1:],
        filters=model.arguments["channels"],
    )
    return _load(twin, model)


def monai_vit(model: ViTClassifier) -> nn.Module:
    """`monai.networks.nets.ViT(classification=True)` with copies of the model's weights; it returns (logits, hidden states).

    Raises ValueError unless the model pools the cls token: MONAI's ViT knows no other head.
    """
    from monai.networks.nets import ViT

    if model.pool != "cls":
        raise ValueError(f"MONAI's ViT reads the cls token, this model pools {model.pool!r}")
    block = model.blocks[0]
    twin = ViT(
        in_channels=model.patch_embedding.patch_embeddings.in_channels,
        img_size=model.image_size,
        patch_size=model.patch,
        hidden_size=model.norm.normalized_shape[0],
        mlp_dim=block.mlp.linear1.out_features,
        num_layers=len(model.blocks),
        num_heads=block.attn.heads,
        classification=True,
        num_classes=model.classification_head.out_features,
        post_activation=None,
        qkv_bias=block.attn.qkv.bias is not None,
    )
    return _load(twin, model)


def save_monai(network: nn.Module, path: str | Path, image_size: Sequence[int] | None = None) -> dict[str, Any]:
    """Write the weights of MONAI's `DynUNet` or `ViT` as a file that `model.weights` takes. Returns the section `model` of a configuration for
    it. `image_size`: (x, y, z) of the ViT's images, which is `data.size`.

    Raises InputError for another network, and for one that ours would compute otherwise (another activation, norm, position embedding, ...):
    both are asked for an image of noise.
    """
    from monai.networks.nets import DynUNet, ViT

    if isinstance(network, DynUNet):
        name, sizes, ours, shape = "unet", *_of_dynunet(network)
    elif isinstance(network, ViT) and image_size is not None:
        name, sizes, ours, shape = "vit", *_of_vit(network, tuple(image_size))
    else:
        raise InputError(f"expected MONAI's DynUNet, or its ViT and the image_size, found {type(network).__name__}")
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items() if not _alias(name)}
    try:
        ours.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"this {type(network).__name__} has other weights than ours: {one_line(error)}") from None
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    before = network.training
    with torch.no_grad():
        theirs, own = network.eval().cpu().float()(image), ours.eval()(image)
    network.train(before)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    if not torch.allclose(theirs, own, rtol=1e-3, atol=1e-3 * float(theirs.abs().max())):
        apart = float((theirs - own).abs().max())
        raise InputError(
            f"this {type(network).__name__} computes something else with these weights than ours does (logits {apart:.2g} apart): another "
            "activation, norm or position embedding?"
        )
    save_file(weights, path)
    return {"name": name, "sizes": sizes, "weights": str(path)}


def _of_dynunet(network: Any) -> tuple[dict[str, Any], nn.Module, tuple[int, ...]]:
    """(`model.sizes`, ours of them, the shape of an image that it takes)."""
    triples = {
        key: [[size] * 3 if isinstance(size, int) else list(size) for size in getattr(network, key)] for key in ("kernel_size", "strides")
    }
    sizes = {"channels": list(network.filters), "kernels": triples["kernel_size"], "strides": triples["strides"]}
    kernels, strides = (tuple(map(tuple, triples[key])) for key in ("kernel_size", "strides"))
    ours = UNet(tuple(network.filters), kernels, strides, network.in_channels, network.out_channels)
    return sizes, ours, (network.in_channels, *(2 * math.prod(axis) for axis in zip(*strides, strict=True)))


def _of_vit(network: Any, image_size: tuple[int, int, int]) -> tuple[dict[str, Any], nn.Module, tuple[int, ...]]:
    if not isinstance(getattr(network, "classification_head", None), nn.Linear):
        raise InputError("expected a ViT with classification=True and post_activation=None")
    patches, block = network.patch_embedding.patch_embeddings, network.blocks[0]
    if not isinstance(patches, nn.Conv3d):
        raise InputError("expected a ViT whose patches are embedded by a convolution (proj_type='conv')")
    width = patches.out_channels
    sizes = {"patch": list(patches.kernel_size), "width": width, "depth": len(network.blocks), "heads": block.attn.num_heads, "pool": "cls"}
    sizes |= {"mlp_ratio": block.mlp.linear1.out_features // width, "qkv_bias": block.attn.qkv.bias is not None}
    arguments = {**sizes, "patch": tuple(patches.kernel_size), "in_channels": patches.in_channels}
    ours = ViTClassifier(image_size, out=network.classification_head.out_features, **arguments)
    return sizes, ours, (patches.in_channels, *image_size)


def _alias(name: str) -> bool:
    """What DynUNet has under another name as well, and what a ViT of MONAI's never uses."""
    return name.startswith("skip_layers.") or ".norm_cross_attn." in name


def _load(twin: nn.Module, model: nn.Module) -> nn.Module:
    """Copy the weights; every name must be on both sides, except the twin's aliases and unused parameters."""
    missing, unexpected = twin.load_state_dict(model.state_dict(), strict=False)
    missing = [name for name in missing if not _alias(name)]
    if missing or unexpected:
        raise ValueError(f"MONAI's network differs: missing {missing}, unexpected {unexpected}")
    return twin.train(model.training)
