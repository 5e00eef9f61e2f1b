"""CineMA (Fu et al. 2025, arXiv 2506.00679): the cine cardiac MR foundation model, as classifier and segmenter of short-axis stacks.

An own implementation whose parameters carry CineMA's names and shapes, so that its published safetensors files load unchanged.
"""

import torch
from torch import Tensor, nn

from raylora.core.errors import InputError
from raylora.models.cinema_decoder import Decoder, ResBlock, levels_without_skip
from raylora.models.cinema_encoder import Encoder
from raylora.models.cinema_stem import Fusion, Stem, Triple, channels_first
from raylora.models.cinema_weights import load_pretrained
from raylora.models.files import find_weights
from raylora.models.stages import Stage, run_stages

__all__ = ["SIZES", "Classifier", "Segmenter", "classifier", "find_weights", "load_pretrained", "segmenter"]

_STEPS = {"patch": (4, 4, 1), "scale": (2, 2, 1), "dec_patch": (2, 2, 1), "dec_scale": (2, 2, 1)}
SIZES = {
    "base": {  # as published
        "image_size": (192, 192, 16),
        **_STEPS,
        **{"conv_chans": (64, 128), "conv_n_blocks": 2, "embed": 768, "depth": 12, "heads": 12, "dec_chans": (32, 64, 128, 256, 512)},
    },
    "small": {  # for two CPU cores
        "image_size": (96, 96, 12),
        **_STEPS,
        **{"conv_chans": (16, 32), "conv_n_blocks": 1, "embed": 96, "depth": 4, "heads": 6, "dec_chans": (8, 16, 32, 48, 64)},
    },
}
"""Arguments of the named sizes; those that begin with `dec_` are the segmenter's alone."""

ENCODER_TARGETS = {  # on the encoder only: bare names such as fc1 or proj would also match the stem
    "q": r"encoder\.blocks\.\d+\.attn\.q",
    "kv": r"encoder\.blocks\.\d+\.attn\.kv",
    "proj": r"encoder\.blocks\.\d+\.attn\.proj",
    "fc1": r"encoder\.blocks\.\d+\.mlp\.fc1",
    "fc2": r"encoder\.blocks\.\d+\.mlp\.fc2",
}

READOUTS = {"all": ("sax", "cls"), "patch": ("sax",), "cls": ("cls",)}
"""The heads whose mean are the logits."""


def _block_names(encoder: Encoder) -> tuple[str, ...]:
    return tuple(f"encoder.blocks.{i}" for i in range(len(encoder.blocks)))


def _block_stages(encoder: Encoder) -> list[Stage]:
    """The encoder's blocks: they change the first tensor and pass the others on."""

    def step(block):
        return lambda tensors: (encoder.step(block, tensors[0]), *tensors[1:])

    pairs = zip(_block_names(encoder), encoder.blocks, strict=True)
    return [Stage(name=name, block=i, modules=(name,), run=step(block)) for i, (name, block) in enumerate(pairs)]


class Classifier(nn.Module):
    """Image (b, n_frames, x, y, z), the frames as channels, to logits (b, out).

    `readout`: the logits are the mean of the heads on the patch tokens and on the cls token ("all"), or one of them ("patch", "cls").
    `drop_path` and `grad_checkpoint` are those of `cinema_encoder.Encoder`.
    Raises InputError for sizes that do not fit each other.
    """

    adapter_targets = ENCODER_TARGETS
    default_targets = ("q", "kv")
    decoder_targets = ()
    decoder_names = ()

    def __init__(
        self,
        image_size: Triple,
        patch: Triple,
        scale: Triple,
        conv_chans: tuple[int, ...],
        conv_n_blocks: int,
        embed: int,
        depth: int,
        heads: int,
        n_frames: int = 2,
        out: int = 2,
        *,
        readout: str = "all",
        drop_path: float = 0.0,
        grad_checkpoint: bool = False,
    ):
        super().__init__()
        if readout not in READOUTS:
            raise InputError(f"model.readout: expected one of {', '.join(READOUTS)}, found {readout}")
        self.readout = readout
        conv_chans = tuple(conv_chans)
        stem = Stem(tuple(image_size), n_frames, tuple(patch), tuple(scale), conv_chans, conv_n_blocks, embed)
        self.enc_down_dict = nn.ModuleDict({"sax": stem})
        self.enc_fusion_dict = nn.ModuleDict({"sax": Fusion(tuple(scale), conv_chans, embed)})
        self.encoder = Encoder(embed, depth, heads, drop_path, grad_checkpoint)
        self.pred_head_dict = nn.ModuleDict({"sax": nn.Linear(embed, out), "cls": nn.Linear(embed, out)})

    @property
    def adapter_blocks(self) -> tuple[str, ...]:
        return _block_names(self.encoder)

    def recompute_activations(self) -> None:
        """From now on the backward pass computes the blocks' activations again instead of keeping them."""
        self.encoder.grad_checkpoint = True

    @property
    def head_names(self) -> tuple[str, ...]:
        return tuple(f"pred_head_dict.{head}.{kind}" for head in READOUTS[self.readout] for kind in ("weight", "bias"))

    def stages(self) -> list[Stage]:
        """Between two stages: the tokens (b, 1 + n, width), and the stem's feature maps or, after `fusion`, their sum (b, n, width)."""
        fusion = self.enc_fusion_dict["sax"]

        def stem(tensors):
            tokens, *features = self.enc_down_dict["sax"](tensors[0])
            return self.encoder.with_cls(tokens), *features

        def head(tensors):
            cls, patches = self._fused(tensors)
            means = {"sax": patches.mean(dim=1), "cls": cls.mean(dim=1)}
            logits = [self.pred_head_dict[name](means[name]) for name in READOUTS[self.readout]]
            return (torch.stack(logits).mean(dim=0),)

        return [
            Stage(name="stem", modules=("enc_down_dict.sax", "encoder.cls_token"), run=stem),
            Stage(name="fusion", modules=("enc_fusion_dict.sax.down_convs",), run=lambda tensors: (tensors[0], fusion.down(tensors[1:]))),
            *_block_stages(self.encoder),
            Stage(name="head", modules=("encoder.norm", "enc_fusion_dict.sax.norm", "pred_head_dict"), run=head),
        ]

    def _fused(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        tokens, down = tensors
        tokens = self.encoder.norm(tokens)
        return tokens[:, :1], self.enc_fusion_dict["sax"].norm(tokens[:, 1:] + down)

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What the heads read: the cls token (b, 1, width) and the fused patch tokens (b, n, width)."""
        return self._fused(run_stages(self.stages()[:-1], (image,)))

    def forward(self, image: Tensor) -> Tensor:
        return run_stages(self.stages(), (image,))[0]


class Segmenter(nn.Module):
    """Image (b, 1, x, y, z) of one frame to logits (b, out, x, y, z): background 0, RV 1, MYO 2, LV 3 in the published weights.

    `dec_chans` lists the decoder's channels, finest resolution first: the image, the stem's feature maps, the tokens, and what is coarser.
    Raises InputError for sizes that do not fit each other.
    """

    decoder_targets = ("skip_conv", "decoder_conv")
    adapter_targets = {
        **ENCODER_TARGETS,
        "skip_conv": r"dec_(image_conv_block_dict\.sax|conv_blocks_dict\.sax\.\d+)\.conv[12]",
        "decoder_conv": r"decoder_dict\.sax\.blocks\.\d+\.conv\.\d+\.conv[12]",
    }
    default_targets = ("q", "kv")
    head_names = ("pred_head_dict.sax.weight", "pred_head_dict.sax.bias")
    decoder_names = ("dec_*", "decoder_dict.*")

    def __init__(
        self,
        image_size: Triple,
        patch: Triple,
        scale: Triple,
        conv_chans: tuple[int, ...],
        conv_n_blocks: int,
        embed: int,
        depth: int,
        heads: int,
        out: int = 4,
        dec_chans: tuple[int, ...] = SIZES["base"]["dec_chans"],
        dec_patch: Triple = SIZES["base"]["dec_patch"],
        dec_scale: Triple = SIZES["base"]["dec_scale"],
        *,
        drop_path: float = 0.0,
        grad_checkpoint: bool = False,
    ):
        super().__init__()
        image_size, patch, scale, dec_patch, dec_scale = map(tuple, (image_size, patch, scale, dec_patch, dec_scale))
        conv_chans, dec_chans = tuple(conv_chans), tuple(dec_chans)
        self.without_skip = levels_without_skip(patch, dec_patch, dec_scale)
        inner = (*conv_chans, embed)  # what the lateral blocks read at each level that has a skip
        coarser = len(dec_chans) - 1 - len(inner)
        if coarser < 1:
            raise InputError(f"model.dec_chans: expected at least {len(inner) + 2} levels, found {len(dec_chans)}")
        # a level without a skip has the channels of full resolution
        channels = (*[dec_chans[0]] * (1 + self.without_skip), *dec_chans[1:])
        lateral = zip((*inner, *[embed] * coarser), dec_chans[1:], strict=True)

        self.enc_down_dict = nn.ModuleDict({"sax": Stem(image_size, 1, patch, scale, conv_chans, conv_n_blocks, embed)})
        self.encoder = Encoder(embed, depth, heads, drop_path, grad_checkpoint)
        self.dec_image_conv_block_dict = nn.ModuleDict({"sax": ResBlock(1, dec_chans[0])})
        down = nn.ModuleList(nn.Conv3d(embed, embed, dec_scale, dec_scale) for _ in range(coarser))
        self.dec_down_blocks_dict = nn.ModuleDict({"sax": down})
        self.dec_conv_blocks_dict = nn.ModuleDict({"sax": nn.ModuleList(ResBlock(into, to) for into, to in lateral)})
        self.decoder_dict = nn.ModuleDict({"sax": Decoder(channels, dec_patch, dec_scale)})
        self.pred_head_dict = nn.ModuleDict({"sax": nn.Conv3d(dec_chans[0], out, 1)})
        self.step = tuple(s * d**coarser for s, d in zip(self.enc_down_dict["sax"].step, dec_scale, strict=True))
        self._check_size(image_size)

    def _check_size(self, size: Triple) -> None:
        """Raise InputError unless patches and the decoder's strided convolutions divide an image of this size."""
        if any(n % s for n, s in zip(size, self.step, strict=True)):
            raise InputError(f"data.size: expected multiples of {self.step} for this CineMA segmenter, found {tuple(size)}")

    @property
    def adapter_blocks(self) -> tuple[str, ...]:
        return _block_names(self.encoder)

    def recompute_activations(self) -> None:
        """From now on the backward pass computes the blocks' activations again instead of keeping them."""
        self.encoder.grad_checkpoint = True

    def stages(self) -> list[Stage]:
        """Between two stages of the encoder: tokens (b, 1 + n, width), the stem's feature maps, the image.

        Between two of the decoder: the current features, then the skips still needed, coarsest first (all of them (b, c, x, y, z)).
        """
        blocks = self.decoder_dict["sax"].blocks

        def stem(tensors):
            self._check_size(tensors[0].shape[2:])
            tokens, *features = self.enc_down_dict["sax"](tensors[0])
            return self.encoder.with_cls(tokens), *features, tensors[0]

        def up(index, block):
            no_skip = len(blocks) - 1 - self.without_skip <= index < len(blocks) - 1

            def run(tensors):
                if no_skip:
                    return block(tensors[0], None), *tensors[1:]
                return block(tensors[0], tensors[1]), *tensors[2:]

            return Stage(name=f"decoder.{index}", modules=(f"decoder_dict.sax.blocks.{index}",), run=run)

        lateral = ("encoder.norm", "dec_image_conv_block_dict", "dec_down_blocks_dict", "dec_conv_blocks_dict")
        return [
            Stage(name="stem", modules=("enc_down_dict.sax", "encoder.cls_token"), run=stem),
            *_block_stages(self.encoder),
            Stage(name="skips", modules=lateral, run=self._skips),
            *[up(index, block) for index, block in enumerate(blocks)],
            Stage(name="head", modules=("pred_head_dict",), run=lambda tensors: (self.pred_head_dict["sax"](tensors[0]),)),
        ]

    def _skips(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What the decoder reads, coarsest first."""
        tokens, *features, image = tensors
        grid = self.enc_down_dict["sax"].grid_of(image.shape[2:])
        tokens = self.encoder.norm(tokens)[:, 1:]
        maps = [*map(channels_first, features), tokens.transpose(1, 2).unflatten(2, grid)]
        for down in self.dec_down_blocks_dict["sax"]:
            maps.append(down(maps[-1]))
        skips = [block(x) for block, x in zip(self.dec_conv_blocks_dict["sax"], maps, strict=True)]
        return *reversed(skips), self.dec_image_conv_block_dict["sax"](image)

    def forward(self, image: Tensor) -> Tensor:
        return run_stages(self.stages(), (image,))[0]


classifier, segmenter = Classifier, Segmenter
