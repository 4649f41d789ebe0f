"""Small configurations of the image-restoration architectures that spandrel knows, built from its own classes.

Each configuration states how the network is called: its channels, the sizes it takes, the multiple of its padding.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SIZES = ((32, 32), (40, 48), (29, 37))
"""The size of the capture, another size, and a size that is no multiple of any window."""


@dataclass(frozen=True)
class ZooNetwork:
    """One configuration.

    Attributes:
        name: name of the architecture.
        source: "module:class" below spandrel's `architectures` package.
        options: arguments of the class.
        channels: channels of the input.
        multiple: height and width are padded from outside to multiples of this, as spandrel does.
        sizes: heights and widths to try; a single one if the network takes no other.
        adapt: turns the instance of the class into a module with one image input.
        note: the peculiarity of the configuration.
    """

    name: str
    source: str
    options: dict[str, Any] = field(default_factory=dict)
    channels: int = 3
    multiple: int = 1
    sizes: tuple[tuple[int, int], ...] = SIZES
    adapt: Callable[[nn.Module], nn.Module] = lambda module: module
    note: str = ""

    def build(self) -> nn.Module:
        """Builds the network in evaluation mode; tensors of one value are nudged, so that zeros hide no branch."""
        path, kind = self.source.split(":")
        torch.manual_seed(0)
        model = self.adapt(getattr(importlib.import_module(path), kind)(**self.options)).eval()
        with torch.no_grad():
            for value in (*model.parameters(), *model.buffers()):
                if value.is_floating_point() and value.numel() and (value == value.flatten()[0]).all():
                    value.add_(0.1 * torch.rand_like(value))
        return model


class ImageAndMask(nn.Module):
    """An inpainting network whose image and mask come as one tensor of four channels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        """[N, 4, H, W] -> [N, 3, H, W]."""
        return self.network(x[:, :3], x[:, 3:])


def _arch(name: str, module: str, kind: str, package: str = "spandrel", **about: Any) -> ZooNetwork:
    options = about.pop("options", {})
    return ZooNetwork(
        name, f"{package}.architectures.{name.split(maxsplit=1)[0]}.__arch.{module}:{kind}", options, **about
    )


def _extra(name: str, module: str, kind: str, **about: Any) -> ZooNetwork:
    return _arch(name, module, kind, "spandrel_extra_arches", **about)


def _o(**options: Any) -> dict[str, Any]:
    return options


SWIN = _o(img_size=32, embed_dim=12, depths=(2,), num_heads=(2,), mlp_ratio=2.0, upscale=2)

NETWORKS = (
    _arch("ATD", "atd_arch", "ATD", options={**SWIN, "window_size": 8, "upsampler": "pixelshuffledirect"}
          | _o(category_size=64, num_tokens=16, reducted_dim=4)),
    _arch("AuraSR", "aura_sr", "UnetUpsampler", options=_o(
        dim=8, image_size=64, input_image_size=16, up_dim_mults=(1, 2, 4), down_dim_mults=(4,), self_attn_heads=2,
        full_attn=(False, False, True), attn_depths=(1, 1, 1), mid_attn_depth=1, resnet_block_groups=4,
        num_conv_kernels=2, self_attn_dim_head=8,
        style_network=_o(dim_in=8, dim_out=8, depth=2, dim_text_latent=0, lr_mul=0.1),
    ), multiple=8, note="adds random noise, also in evaluation"),
    _arch("CRAFT", "CRAFT", "CRAFT", options=_o(embed_dim=12, depths=[1, 1], num_heads=[2, 2], upscale=2), multiple=16),
    _arch("Compact", "SRVGG", "SRVGGNetCompact", options=_o(num_feat=8, num_conv=2, upscale=2)),
    _arch("DAT", "DAT", "DAT", options=_o(
        img_size=32, embed_dim=32, split_size=[2, 4], depth=[2], num_heads=[2], expansion_factor=2.0, upscale=2)),
    _arch("DCTLSA", "dctlsa", "DCTLSA", options=_o(nf=10, upscale=2, num_head=2)),
    _arch("DITN", "DITN_Real", "DITN_Real", options=_o(dim=12, ITL_blocks=1, SAL_blocks=1, upscale=2), multiple=8),
    _arch("DRCT", "drct_arch", "DRCT", options={**SWIN, "window_size": 16, "upsampler": "pixelshuffle", "gc": 4},
          multiple=16),
    _arch("DRUNet", "network_unet", "DRUNet", options=_o(in_nc=4, out_nc=3, nc=[8, 8, 16, 16], nb=1), channels=4,
          multiple=8, note="image and noise map in four channels"),
    _arch("DnCNN", "network_dncnn", "DnCNN", options=_o(in_nc=3, out_nc=3, nc=8, nb=4)),
    _arch("ESRGAN", "RRDB", "RRDBNet", options=_o(num_filters=8, num_blocks=1, scale=2)),
    _arch("FBCNN", "FBCNN", "FBCNN", options=_o(nc=[8, 8, 16, 512], nb=1)),
    _arch("FDAT", "fdat", "FDAT", options=_o(
        scale=2, embed_dim=16, num_groups=1, depth_per_group=2, num_heads=2, mid_dim=16)),
    _arch("FFTformer", "fftformer_arch", "FFTformer", options=_o(dim=8, num_blocks=[1, 1, 1], num_refinement_blocks=1),
          multiple=32),
    _arch("GFPGAN", "gfpganv1_clean_arch", "GFPGANv1Clean", options=_o(
        out_size=64, num_style_feat=16, channel_multiplier=1, narrow=0.0625), sizes=((64, 64),),
        note="takes its own size only"),
    _arch("GRL", "grl", "GRL", options=_o(
        img_size=32, embed_dim=36, upscale=2, upsampler="pixelshuffledirect", depths=[2], num_heads_window=[2],
        num_heads_stripe=[2], mlp_ratio=2.0, anchor_window_down_factor=2, local_connection=True)),
    _arch("HAT", "HAT", "HAT", options={**SWIN, "window_size": 8, "num_feat": 8, "squeeze_factor": 6}),
    _arch("HVICIDNet", "cidnet", "CIDNet", options=_o(channels=[8, 8, 16, 32]), multiple=8),
    _arch("IPT", "ipt", "IPT", options=_o(patch_size=24, n_feats=8, scale=[2], num_heads=2, num_layers=1),
          sizes=((24, 24),),
          note="the network of one patch; spandrel cuts pictures outside"),
    _arch("KBNet l", "kbnet_l", "KBNet_l", options=_o(dim=24, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1),
          multiple=16),
    _arch("KBNet s", "kbnet_s", "KBNet_s", options=_o(
        width=8, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1]), multiple=16),
    _arch("LaMa", "LaMa", "LaMa", options=_o(in_nc=4), channels=4, multiple=8, adapt=ImageAndMask,
          note="full size: its class has no options; image and mask in four channels"),
    _arch("MMRealSR", "mmrealsr_arch", "MMRRDBNet_test", options=_o(
        num_in_ch=3, num_out_ch=3, scale=4, num_feat=8, num_block=1, num_grow_ch=4, num_feats=[8, 8, 8, 8],
        num_blocks=[1, 1, 1, 1])),
    _arch("MixDehazeNet", "MixDehazeNet", "MixDehazeNet", options=_o(embed_dims=[8, 16, 32, 16, 8], depths=[1] * 5),
          sizes=((48, 48), (40, 56), (43, 61))),
    _arch("MoESR", "MoESR", "MoESR", options=_o(scale=2, dim=16, n_blocks=1, n_block=1)),
    _arch("MoSR", "mosr_arch", "MoSR", options=_o(upscale=2, n_block=2, dim=16)),
    _arch("NAFNet", "NAFNet_arch", "NAFNet", options=_o(width=8, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1])),
    _arch("OmniSR", "OmniSR", "OmniSR", options=_o(num_feat=16, up_scale=2)),
    _arch("PLKSR", "PLKSR", "PLKSR", options=_o(dim=16, n_blocks=2, upscaling_factor=2)),
    _arch("PLKSR real", "RealPLKSR", "RealPLKSR", options=_o(dim=16, n_blocks=2, upscaling_factor=2, dysample=True)),
    _arch("RCAN", "rcan_arch", "RCAN", options=_o(scale=2, n_resgroups=1, n_resblocks=2, n_feats=16, reduction=4)),
    _arch("RGT", "rgt", "RGT", options=_o(img_size=32, embed_dim=32, depth=[2], num_heads=[2], mlp_ratio=2.0)),
    _arch("RealCUGAN", "upcunet_v3", "UpCunet2x", sizes=((40, 40), (48, 44), (41, 53)), note="full size"),
    _arch("RestoreFormer", "restoreformer_arch", "RestoreFormer", options=_o(
        n_embed=32, embed_dim=32, ch=32, ch_mult=(1, 1, 2), num_res_blocks=1, resolution=64, z_channels=32),
        multiple=32),
    _arch("RetinexFormer", "retinexformer_arch", "RetinexFormer", options=_o(n_feat=8, stage=1), multiple=8),
    _arch("SAFMN", "safmn", "SAFMN", options=_o(dim=12, n_blocks=2, upscaling_factor=2), multiple=8),
    _arch("SAFMNBCIE", "safmn_bcie", "SAFMN_BCIE", options=_o(dim=12, n_blocks=1, num_layers=1), multiple=16),
    _arch("SCUNet", "SCUNet", "SCUNet", options=_o(config=[1] * 7, dim=64, input_resolution=64),
          sizes=((64, 64), (48, 72), (45, 59)), note="dim is the smallest its head size allows"),
    _arch("SPAN", "span", "SPAN", options=_o(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2)),
    _arch("SeemoRe", "seemore_arch", "SeemoRe", options=_o(scale=2, num_experts=3, num_layers=1, embedding_dim=12)),
    _arch("SwiftSRGAN", "SwiftSRGAN", "Generator", options=_o(num_channels=8, num_blocks=2, upscale_factor=2)),
    _arch("Swin2SR", "Swin2SR", "Swin2SR", options={**SWIN, "window_size": 8, "upsampler": "pixelshuffledirect"}),
    _arch("SwinIR", "SwinIR", "SwinIR", options={**SWIN, "window_size": 8, "upsampler": "pixelshuffledirect"}),
    _arch("Uformer", "Uformer", "Uformer", options=_o(img_size=128, embed_dim=4, depths=[1] * 9, num_heads=[1] * 9),
          multiple=128, sizes=((128, 128),), note="takes square pictures in multiples of 128 only"),
    _extra("AdaCode", "adacode_contrast_arch", "AdaCodeSRNet_Contrast", options=_o(
        codebook_params=[[32, 32, 32]], gt_resolution=256, LQ_stage=True, scale_factor=2), multiple=32,
        sizes=((64, 64), (96, 64), (61, 70)), note="full-size auto-encoder"),
    _extra("CodeFormer", "codeformer", "CodeFormer", options=_o(
        dim_embd=32, n_head=2, n_layers=1, codebook_size=32, connect_list=["32", "64"]),
        sizes=((512, 512),), note="full-size auto-encoder; takes its own size only"),
    _extra("DDColor", "ddcolor", "DDColor", options=_o(
        encoder_name="convnext-t", input_size=(64, 64), num_output_channels=2, num_queries=8, dec_layers=3,
        last_norm="Spectral"), sizes=((64, 64), (96, 64)), note="full-size encoder"),
    _extra("FeMaSR", "femasr", "FeMaSRNet", options=_o(
        codebook_params=[[32, 32, 32]], gt_resolution=256, LQ_stage=True, scale_factor=2), multiple=32,
        sizes=((64, 64), (96, 64), (61, 70)), note="full-size auto-encoder"),
    _extra("M3SNet", "M3SNet", "M3SNet", options=_o(width=8, enc_blk_nums=[1, 1, 1, 1]), multiple=16),
    _extra("MIRNet2", "mirnet_v2_arch", "MIRNet_v2", options=_o(n_feat=16, n_MRB=1), multiple=4),
    _extra("MPRNet", "MPRNet", "MPRNet", options=_o(n_feat=8, scale_unetfeats=4, scale_orsnetfeats=4, num_cab=1),
           multiple=8),
    _extra("Restormer", "restormer_arch", "Restormer", options=_o(
        dim=8, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1), multiple=8),
    _extra("SRFormer", "SRFormer", "SRFormer", options={**SWIN, "window_size": 8, "upsampler": "pixelshuffledirect"}),
)  # fmt: skip
"""The architectures, of spandrel 0.4.2 and spandrel_extra_arches 0.2.0."""


@dataclass(frozen=True)
class Trained(ZooNetwork):
    """A trained network from a file, loaded by spandrel."""

    file: Path = Path()

    def build(self) -> nn.Module:
        """Loads the trained network in evaluation mode."""
        from spandrel import ModelLoader  # noqa: PLC0415  # the test bed's own environment has it

        return ModelLoader().load_from_file(self.file).model.eval()


_FILE = Path(__file__).resolve().parents[2] / "../shared/data/zoo/craft_x4.safetensors"
TRAINED = Trained(
    "CRAFT trained",
    "",
    multiple=16,
    file=Path(__file__).resolve().parents[2] / "../shared/data/zoo/craft_x4.safetensors",
)
