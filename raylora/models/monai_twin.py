"""MONAI's own network with the weights of one of ours: the proof of compatibility, and a way out to MONAI's ecosystem; and the way in.

Importing MONAI takes seconds, so nothing on the way of a run imports this module.
"""

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

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


def save_monai(network: nn.Module, path: str | Path) -> None:
    """Write the weights of MONAI's `DynUNet` or `ViT` as a file that `model.weights` takes, if `model.sizes` describes the same network."""
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items() if not _alias(name)}, path)


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
