"""Restoration, descriptors, sound, tables, and libraries of many classifiers: small models of each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from benchmarks.second import Inputs, Sample, made, made_any, table, tokens
from torch import nn

IMAGE: Inputs = ((2, 3, 64, 64),)
SMALL: Inputs = ((1, 3, 32, 32),)


def restoration() -> Iterator[Sample]:
    """Yield networks for super-resolution, denoising, compression."""
    swin = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2), "window_size": 8, "img_size": 32}
    yield from table("spandrel", "spandrel.architectures", {
        "ESRGAN:ESRGAN": (SMALL, {"num_filters": 16, "num_blocks": 2, "scale": 2}),
        "SwinIR:SwinIR": (SMALL, {**swin, "upscale": 2, "upsampler": "pixelshuffle"}),
        "Swin2SR:Swin2SR": (SMALL, {**swin, "upscale": 2, "upsampler": "pixelshuffledirect"}),
        "HAT:HAT": (SMALL, {**swin, "compress_ratio": 3, "squeeze_factor": 4, "upscale": 2,
                            "upsampler": "pixelshuffle", "num_feat": 16}),
        "DAT:DAT": (SMALL, {"embed_dim": 16, "depth": (2,), "num_heads": (4,), "split_size": (4, 8), "img_size": 32}),
        "Compact:Compact": (SMALL, {"num_feat": 16, "num_conv": 4}),
        "SPAN:SPAN": (SMALL, {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 16}),
        "SAFMN:SAFMN": (IMAGE, {"dim": 16, "n_blocks": 2, "upscaling_factor": 2}),
        "PLKSR:PLKSR": (SMALL, {"dim": 16, "n_blocks": 2}),
        "PLKSR:RealPLKSR": (SMALL, {"dim": 16, "n_blocks": 2}),
        "RealCUGAN:UpCunet2x": (IMAGE, {}),
        "NAFNet:NAFNet": (SMALL, {"width": 8, "middle_blk_num": 1, "enc_blk_nums": (1, 1), "dec_blk_nums": (1, 1)}),
        "KBNet:KBNet_s": (SMALL, {"width": 8, "middle_blk_num": 1, "enc_blk_nums": (1, 1), "dec_blk_nums": (1, 1)}),
        "OmniSR:OmniSR": (SMALL, {"num_feat": 16, "res_num": 1, "up_scale": 2}),
        "RCAN:RCAN": (SMALL, {"n_resgroups": 1, "n_resblocks": 2, "n_feats": 16}),
        "DnCNN:DnCNN": (SMALL, {"in_nc": 3, "out_nc": 3, "nc": 16, "nb": 4}),
        "DRUNet:DRUNet": (SMALL, {"in_nc": 3, "out_nc": 3, "nc": (8, 16, 16, 32), "nb": 1}),
        "RetinexFormer:RetinexFormer": (SMALL, {"n_feat": 8, "stage": 1, "num_blocks": (1, 1, 1)}),
        "MixDehazeNet:MixDehazeNet": (((1, 3, 64, 64),), {"embed_dims": (8, 16, 32, 16, 8), "depths": (1, 1, 1, 1, 1)}),
        "SwiftSRGAN:SwiftSRGAN": (SMALL, {"num_channels": 16, "num_blocks": 2, "upscale_factor": 2}),
        "FFTformer:FFTformer": (SMALL, {"dim": 8, "num_blocks": (1, 1, 1), "num_refinement_blocks": 1}),
        "ATD:ATD": (SMALL, {"embed_dim": 16, "depths": (1,), "num_heads": (2,), "window_size": 8, "img_size": 32,
                            "category_size": 64, "num_tokens": 8, "reducted_dim": 4}),
        "DITN:DITN": (SMALL, {"dim": 16, "ITL_blocks": 1, "SAL_blocks": 1, "UFONE_blocks": 1, "upscale": 2}),
        "MoSR:MoSR": (SMALL, {"dim": 16, "n_block": 2, "upscale": 2}),
    })  # fmt: skip
    for name, options in (
        ("Edsr", {"n_resblocks": 2, "n_feats": 16}), ("Msrn", {}), ("Pan", {}), ("Carn", {}), ("A2n", {}),
        ("Awsrn", {}), ("Rcan", {"n_resgroups": 1, "n_resblocks": 2, "n_feats": 16}),
    ):  # fmt: skip
        yield Sample("super-image", name, partial(_super_image, name, {"scale": 2, **options}), SMALL)
    for name in ("carn_m", "ninasr_b0", "vdsr", "edsr_r16f64"):
        yield Sample("torchsr", name, partial(made, f"torchsr.models:{name}", scale=2, pretrained=False), SMALL)
    yield from table("compressai", "compressai.models", {
        "FactorizedPrior": (IMAGE, {"args": (16, 24)}),
        "ScaleHyperprior": (IMAGE, {"args": (16, 24)}),
        "MeanScaleHyperprior": (IMAGE, {"args": (16, 24)}),
        "JointAutoregressiveHierarchicalPriors": (IMAGE, {"args": (16, 24)}),
        "Cheng2020Anchor": (IMAGE, {"args": (16,)}),
    })  # fmt: skip


def _super_image(name: str, options: dict[str, Any]) -> nn.Module:
    return made(f"super_image:{name}Model", made_any(f"super_image:{name}Config", **options))


def transformers_for_vision() -> Iterator[Sample]:
    """Yield vit-pytorch and its kin."""
    vit = {"image_size": 32, "patch_size": 8, "num_classes": 10, "dim": 32, "depth": 2, "heads": 4, "mlp_dim": 48}
    x: Inputs = ((2, 3, 32, 32),)
    yield from table("vit-pytorch", "vit_pytorch", {
        "vit:ViT": (x, vit),
        "simple_vit:SimpleViT": (x, vit),
        "simple_vit_with_qk_norm:SimpleViT with normalized queries": (x, vit),
        "simple_vit_with_register_tokens:SimpleViT with registers": (x, vit),
        "simple_vit_with_fft:SimpleViT with FFT": (x, {**vit, "freq_patch_size": 8}),
        "simple_vit_with_value_residual:SimpleViT with value residual": (x, vit),
        "deepvit:DeepViT": (x, vit),
        "cait:CaiT": (x, {**vit, "cls_depth": 1}),
        "t2t:T2TViT": (x, {"image_size": 32, "num_classes": 10, "dim": 32, "depth": 2, "heads": 4, "mlp_dim": 48,
                        "t2t_layers": ((3, 2), (3, 2))}),
        "cct:CCT": (x, {"img_size": 32, "embedding_dim": 32, "num_layers": 2, "num_heads": 4, "n_conv_layers": 1,
                        "num_classes": 10}),
        "cross_vit:CrossViT": (x, {
            "image_size": 32, "num_classes": 10, "sm_dim": 16, "lg_dim": 32, "sm_patch_size": 8, "lg_patch_size": 16,
            "sm_enc_heads": 2, "lg_enc_heads": 2, "depth": 1}),
        "pit:PiT": (((2, 3, 64, 64),), {**vit, "image_size": 64, "depth": (1, 1)}),
        "levit:LeViT": (((2, 3, 64, 64),), {
            "image_size": 64, "num_classes": 10, "dim": (16, 24, 32), "depth": 1, "heads": (2, 3, 4), "stages": 3,
            "mlp_mult": 2}),
        "cvt:CvT": (x, {"num_classes": 10, "s1_emb_dim": 16, "s2_emb_dim": 24, "s3_emb_dim": 32, "s3_depth": 1,
                        "s2_heads": 2, "s3_heads": 2}),
        "twins_svt:TwinsSVT": (((2, 3, 64, 64),), {
            "num_classes": 10, "s1_emb_dim": 16, "s2_emb_dim": 24, "s3_emb_dim": 32, "s4_emb_dim": 32,
            "s1_local_patch_size": 4, "s2_local_patch_size": 4, "s3_local_patch_size": 4, "s4_local_patch_size": 2,
            "s1_global_k": 2, "s2_global_k": 2, "s3_global_k": 2, "s4_global_k": 2, "s3_depth": 1}),
        "regionvit:RegionViT": (((2, 3, 56, 56),), {
            "num_classes": 10, "dim": (16, 24, 32, 32), "depth": (1, 1, 1, 1), "window_size": 7}),
        "scalable_vit:ScalableViT": (((2, 3, 64, 64),), {
            "num_classes": 10, "dim": 16, "heads": (1, 2, 2, 2), "depth": (1, 1, 1, 1), "ssa_dim_key": (8, 8, 8, 8),
            "reduction_factor": (2, 2, 1, 1), "window_size": (8, 4, None, None)}),
        "sep_vit:SepViT": (((2, 3, 56, 56),), {
            "num_classes": 10, "dim": 16, "dim_head": 8, "heads": (1, 2), "depth": (1, 1), "window_size": 7}),
        "max_vit:MaxViT": (((2, 3, 64, 64),), {
            "num_classes": 10, "dim_conv_stem": 8, "dim": 16, "dim_head": 8, "depth": (1, 1), "window_size": 4,
            "mbconv_expansion_rate": 2, "mbconv_shrinkage_rate": 0.25}),
        "nest:NesT": (x, {"image_size": 32, "patch_size": 4, "num_classes": 10, "dim": 16, "heads": 2,
                          "num_hierarchies": 2, "block_repeats": (1, 1)}),
        "mobile_vit:MobileViT": (((2, 3, 64, 64),), {
            "image_size": (64, 64), "num_classes": 10, "dims": [16, 24, 32], "channels": [8] * 6 + [16] * 4 + [24]}),
        "xcit:XCiT": (x, {**vit, "cls_depth": 1}),
        "rvt:RvT": (x, vit),
        "parallel_vit:ViT in parallel": (x, vit),
        "normalized_vit:nViT": (x, {**vit, "dim_head": 8}),
        "vit_for_small_dataset:ViT for small data": (x, vit),
        "vit_with_patch_merger:ViT with merger": (x, {**vit, "depth": 4, "patch_merge_layer": 2}),
        "vit_1d:ViT of one axis": (((2, 3, 32),), {
            **{k: v for k, v in vit.items() if k != "image_size"}, "seq_len": 32}),
        "vit_3d:ViT of volumes": (((1, 3, 4, 32, 32),), {
            **{k: v for k, v in vit.items() if k != "patch_size"}, "image_patch_size": 8, "frames": 4,
            "frame_patch_size": 2}),
        "simple_uvit:SimpleUViT": (x, vit),
        "vit_with_keel_post_ln:ViT with Keel": (x, vit),
    })  # fmt: skip
    mixer = {"image_size": 32, "patch_size": 8, "dim": 32, "depth": 2, "num_classes": 10}
    yield Sample("mlp-mixer-pytorch", "MLPMixer", partial(made, "mlp_mixer_pytorch:MLPMixer", channels=3, **mixer), x)
    yield Sample("g-mlp-pytorch", "gMLPVision", partial(made, "g_mlp_pytorch:gMLPVision", **mixer), x)
    yield Sample("res-mlp-pytorch", "ResMLP", partial(made, "res_mlp_pytorch:ResMLP", **mixer), x)
    perceiver = {
        "input_channels": 3, "input_axis": 2, "num_freq_bands": 2, "max_freq": 4.0, "depth": 2, "num_latents": 8,
        "latent_dim": 32, "latent_heads": 4, "cross_dim_head": 8, "latent_dim_head": 8, "num_classes": 10,
    }  # fmt: skip
    yield Sample(
        "perceiver-pytorch", "Perceiver", partial(made, "perceiver_pytorch:Perceiver", **perceiver), ((2, 16, 16, 3),)
    )
    yield from table("axial-attention", "axial_attention", {
        "AxialAttention": (((2, 32, 8, 8),), {"dim": 32, "dim_index": 1, "heads": 4, "num_dimensions": 2}),
    })  # fmt: skip


def classifiers() -> Iterator[Sample]:
    """Yield models of libraries of many classifiers."""
    for name in (
        "airnet50_1x64d_r16", "bam_resnet18", "cbam_resnet18", "condensenet74_c4_g4", "darknet53", "diracnet18v2",
        "espnetv2_wd2", "fishnet99", "hardnet39ds", "ibn_resnet50", "igcv3_wd4", "peleenet", "preresnet18",
        "proxylessnas_mobile", "shufflenet_g1_wd4", "sknet50", "bninception", "menet108_8x1_g3",
        "octresnet10_ad2", "mixnet_s", "fdmobilenet_wd4", "sqnxt23_w1",
    ):  # fmt: skip
        yield Sample("pytorchcv", name, partial(_pytorchcv, name), ((1, 3, 96, 96),))
    for name in ("bninception", "nasnetamobile", "dpn68", "xception"):
        side = 96 if name == "xception" else 224
        build = partial(made, f"pretrainedmodels:{name}", num_classes=10, pretrained=None)
        yield Sample("pretrainedmodels", name, build, ((1, 3, side, side),))
    yield Sample(
        "efficientnet-pytorch", "efficientnet-b0", partial(_efficientnet, "efficientnet-b0"), ((1, 3, 64, 64),)
    )


def _pytorchcv(name: str) -> nn.Module:
    model: Any = made("pytorchcv.model_provider:get_model", name, pretrained=False)
    # It is made for images of 224 x 224.
    model.features.final_pool = nn.AdaptiveAvgPool2d(1)
    for path, index in model.named_buffers():
        if path.endswith(".index"):
            # CondenseNet's, which are all 0 before it is trained.
            index.copy_(torch.randperm(len(index), generator=torch.Generator().manual_seed(0)))
    return model


def _efficientnet(name: str) -> nn.Module:
    from efficientnet_pytorch import EfficientNet

    found: nn.Module = EfficientNet.from_name(name, num_classes=10)
    return found


def geometry() -> Iterator[Sample]:
    """Yield descriptors and networks of kornia, and metrics that are networks."""
    patches: Inputs = ((2, 1, 32, 32),)
    yield from table("kornia", "kornia.feature", {
        "HardNet": (patches, {"pretrained": False}),
        "HyNet": (patches, {"pretrained": False}),
        "SOSNet": (patches, {"pretrained": False}),
        "TFeat": (patches, {"pretrained": False}),
        "OriNet": (patches, {"pretrained": False}),
        "KeyNet": (((1, 1, 48, 48),), {"pretrained": False}),
    })  # fmt: skip
    yield from table("kornia", "kornia.models", {
        "dexined:DexiNed": (((1, 3, 64, 64),), {"pretrained": False}),
        "vit:VisionTransformer": (((2, 3, 32, 32),), {"image_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2,
                                                      "num_heads": 4}),
        "vit_mobile:MobileViT": (((2, 3, 256, 256),), {"mode": "xxs"}),
        "tiny_vit:TinyViT": (((2, 3, 64, 64),), {"img_size": 64, "embed_dims": (16, 32, 48, 64),
                                                 "num_heads": (1, 2, 3, 4),
                                                 "depths": (1, 1, 1, 1), "num_classes": 10}),
    })  # fmt: skip
    yield Sample(
        "lpips", "LPIPS of AlexNet",
        partial(made, "lpips:LPIPS", net="alex", pretrained=False, pnet_rand=True, verbose=False),
        ((2, 3, 64, 64), (2, 3, 64, 64)),
    )  # fmt: skip


def sound() -> Iterator[Sample]:
    """Yield networks for sound."""
    yield from table("demucs", "demucs", {
        "demucs:Demucs": (((1, 2, 2048),), {"sources": ["a", "b"], "channels": 8, "depth": 3, "resample": False,
                                            "lstm_layers": 0, "dconv_attn": 9, "dconv_lstm": 9}),
        "hdemucs:HDemucs": (((1, 2, 4096),), {"sources": ["a", "b"], "channels": 8, "depth": 4, "nfft": 1024,
                                             "dconv_attn": 9, "dconv_lstm": 9, "freq_emb": 0}),
        "transformer:CrossTransformerEncoder": (((2, 16, 4, 8), (2, 16, 32)), {
            "dim": 16, "num_layers": 2, "num_heads": 4, "hidden_scale": 2.0}),
    })  # fmt: skip
    yield from table("snac", "snac", {
        "SNAC": (((1, 1, 4096),), {"encoder_dim": 8, "encoder_rates": [2, 4], "decoder_dim": 32,
                                   "decoder_rates": [4, 2], "attn_window_size": None, "codebook_size": 16,
                                   "vq_strides": [2, 1], "noise": False}),
    })  # fmt: skip


def tables() -> Iterator[Sample]:
    """Yield networks for tables."""
    numbers: Inputs = ((4, 6),)
    both: Inputs = (tokens(4, 2, below=4), (4, 3))
    small = {"dim": 16, "depth": 2, "heads": 4}
    yield from table("rtdl-revisiting-models", "rtdl_revisiting_models", {
        "MLP": (numbers, {"d_in": 6, "d_out": 2, "n_blocks": 2, "d_block": 16, "dropout": 0.1}),
        "ResNet": (numbers, {"d_in": 6, "d_out": 2, "n_blocks": 2, "d_block": 16, "d_hidden_multiplier": 2.0,
                             "d_hidden": None, "dropout1": 0.1, "dropout2": 0.1}),
        "FTTransformer": (((4, 3), tokens(4, 2, below=4)), {
            "n_cont_features": 3, "cat_cardinalities": [4, 4], "d_out": 2, "n_blocks": 2, "d_block": 32,
            "attention_n_heads": 4, "attention_dropout": 0.1, "ffn_d_hidden": None, "ffn_d_hidden_multiplier": 2.0,
            "ffn_dropout": 0.1, "residual_dropout": 0.0}),
    })  # fmt: skip
    yield from table("tab-transformer-pytorch", "tab_transformer_pytorch", {
        "FTTransformer": (both, {"categories": (4, 4), "num_continuous": 3, **small}),
    })  # fmt: skip
    yield from table("pytorch-tabnet", "pytorch_tabnet.tab_network", {
        "TabNetNoEmbeddings": (numbers, {"input_dim": 6, "output_dim": 2, "virtual_batch_size": 4}),
    })  # fmt: skip
