"""Segmentation, detection, diffusion and medicine: small models of libraries for images and volumes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.second import Called, Inputs, Sample, made, made_any, table, tokens
from torch import nn

IMAGE: Inputs = ((2, 3, 64, 64),)
SMALL: Inputs = ((2, 3, 32, 32),)


def segmentation() -> Iterator[Sample]:
    """Yield models of segmentation-models-pytorch."""
    plain = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 3}
    slim = {**plain, "encoder_name": "mobilenet_v2"}
    yield from table("segmentation-models-pytorch", "segmentation_models_pytorch", {
        "Unet": (IMAGE, plain),
        "Unet with scSE": (IMAGE, {**slim, "decoder_attention_type": "scse"}),
        "UnetPlusPlus": (IMAGE, slim),
        "MAnet": (IMAGE, plain),
        "Linknet": (IMAGE, plain),
        "FPN": (IMAGE, plain),
        "PSPNet": (IMAGE, plain),
        "DeepLabV3": (IMAGE, slim),
        "DeepLabV3Plus": (IMAGE, slim),
        "PAN": (((2, 3, 128, 128),), slim),
        "UPerNet": (IMAGE, slim),
        "Segformer": (IMAGE, {**plain, "encoder_name": "mit_b0"}),
        "Unet of MiT": (IMAGE, {**plain, "encoder_name": "mit_b0"}),
        "FPN of EfficientNet": (IMAGE, {**plain, "encoder_name": "efficientnet-b0"}),
    })  # fmt: skip


def detection() -> Iterator[Sample]:
    """Yield detectors: what they return before boxes are picked."""
    for name in (
        "v3/yolov3-tiny", "v5/yolov5n", "v6/yolov6n", "v8/yolov8n", "v8/yolov8n-seg", "v8/yolov8n-pose",
        "v8/yolov8n-obb", "v8/yolov8n-cls", "v8/yolov8n-ghost", "v9/yolov9t", "v10/yolov10n", "11/yolo11n",
        "12/yolo12n", "26/yolo26n",
    ):  # fmt: skip
        yield Sample("ultralytics", name.split("/")[1], partial(_yolo, name.split("/")[1]), IMAGE)
    for name in ("tf_efficientdet_lite0", "efficientdet_d0"):
        yield Sample("effdet", name, partial(_effdet, name), ((2, 3, 128, 128),))
    for name in ("PNet", "RNet", "ONet"):
        side = {"PNet": 24, "RNet": 24, "ONet": 48}[name]
        build = partial(made, f"facenet_pytorch.models.mtcnn:{name}", pretrained=False)
        yield Sample("facenet-pytorch", f"MTCNN {name}", build, ((2, 3, side, side),))
    build = partial(made, "facenet_pytorch:InceptionResnetV1", classify=True, num_classes=10)
    yield Sample("facenet-pytorch", "InceptionResnetV1", build, ((2, 3, 96, 96),))


def _yolo(name: str) -> nn.Module:
    kinds = {"seg": "SegmentationModel", "pose": "PoseModel", "obb": "OBBModel", "cls": "ClassificationModel"}
    kind = kinds.get(name.rpartition("-")[2], "DetectionModel")
    return made(f"ultralytics.nn.tasks:{kind}", f"{name}.yaml", verbose=False)


def _effdet(name: str) -> nn.Module:
    config = made_any("effdet:get_efficientdet_config", name)
    config.image_size = (128, 128)
    return made("effdet:EfficientDet", config, pretrained_backbone=False)


def diffusion() -> Iterator[Sample]:
    """Yield denoisers and autoencoders of diffusers."""
    blocks = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
    cross = {
        **blocks,
        "sample_size": 16,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 24,
        "attention_head_dim": 4,
    }
    plain = {
        **blocks,
        "sample_size": 16,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
    }
    code = {
        **blocks,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    time = tokens(2, below=50)
    text = (2, 5, 24)
    dit = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "num_layers": 2, "sample_size": 16}
    rows: dict[str, tuple[Inputs, dict[str, Any], tuple[str, ...]]] = {
        "UNet2DModel": (((2, 3, 16, 16), time), plain, ()),
        "UNet2DConditionModel": (((2, 4, 16, 16), time, text), cross, ()),
        "ControlNetModel": (
            ((2, 4, 16, 16), time, text, (2, 3, 128, 128)),
            {k: v for k, v in cross.items() if k not in ("up_block_types", "sample_size")},
            (),
        ),
        "AutoencoderKL": (SMALL, code, ()),
        "VQModel": (SMALL, {**code, "num_vq_embeddings": 16}, ()),
        "AutoencoderTiny": (
            SMALL,
            {
                "encoder_block_out_channels": (16, 16),
                "decoder_block_out_channels": (16, 16),
                "num_encoder_blocks": (1, 1),
                "num_decoder_blocks": (1, 1),
            },
            (),
        ),
        "AsymmetricAutoencoderKL": (
            SMALL,
            {
                "down_block_types": ("DownEncoderBlock2D",) * 2,
                "down_block_out_channels": (16, 32),
                "up_block_types": ("UpDecoderBlock2D",) * 2,
                "up_block_out_channels": (16, 32),
                "norm_num_groups": 8,
            },
            (),
        ),
        "DiTTransformer2DModel": (
            ((2, 4, 16, 16), time, tokens(2, below=10)),
            {**dit, "num_embeds_ada_norm": 10, "norm_num_groups": 4},
            ("timestep", "class_labels"),
        ),
        "SD3Transformer2DModel": (
            ((2, 4, 16, 16), text, (2, 20), time),
            {**dit, "joint_attention_dim": 24, "caption_projection_dim": 16, "pooled_projection_dim": 20},
            ("encoder_hidden_states", "pooled_projections", "timestep"),
        ),
        "PriorTransformer": (
            ((2, 24), time, (2, 24), text),
            {
                "num_attention_heads": 2,
                "attention_head_dim": 8,
                "num_layers": 2,
                "embedding_dim": 24,
                "num_embeddings": 5,
                "additional_embeddings": 4,
            },
            ("timestep", "proj_embedding", "encoder_hidden_states"),
        ),
    }
    for name, (inputs, options, names) in rows.items():
        yield Sample("diffusers", name, partial(_diffuser, name, options, names), inputs)
    yield Sample(
        "denoising-diffusion-pytorch", "Unet",
        partial(made, "denoising_diffusion_pytorch:Unet", dim=8, dim_mults=(1, 2), flash_attn=False),
        (SMALL[0], tokens(2)),
    )  # fmt: skip


def _diffuser(name: str, options: dict[str, Any], names: tuple[str, ...]) -> nn.Module:
    return Called(made(f"diffusers:{name}", **options), names, lambda found: found[0], return_dict=False)


def medicine() -> Iterator[Sample]:
    """Yield networks for medical images and volumes."""
    volume: Inputs = ((1, 1, 32, 32, 32),)
    flat: Inputs = ((2, 1, 64, 64),)
    ends = {"in_channels": 1, "out_channels": 2}
    two, three = {"spatial_dims": 2, **ends}, {"spatial_dims": 3, **ends}
    slices = {"channels": (8, 16, 32), "strides": (2, 2)}
    vit = {"img_size": 32, "feature_size": 8, "hidden_size": 48, "mlp_dim": 64, "num_heads": 4}
    yield from table("monai", "monai.networks.nets", {
        "UNet": (volume, {**three, **slices, "num_res_units": 1}),
        "BasicUNet": (flat, {**two, "features": (8, 8, 16, 16, 32, 8)}),
        "BasicUNetPlusPlus": (flat, {**two, "features": (8, 8, 16, 16, 32, 8)}),
        "AttentionUnet": (flat, {**two, **slices}),
        "SegResNet": (volume, {**three, "init_filters": 8, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)}),
        "SegResNetDS": (volume, {**three, "init_filters": 8, "blocks_down": (1, 1, 1)}),
        "VNet": (((1, 1, 16, 16, 16),), {**three}),
        "DynUNet": (flat, {
            **two, "kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2],
            "filters": [8, 16, 32],
        }),
        "UNETR": (volume, {**three, **vit}),
        "SwinUNETR": (flat, {**two, "feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 4)}),
        "DenseNet121": (flat, two),
        "SEResNet50": (flat, {"spatial_dims": 2, "in_channels": 1, "num_classes": 2}),
        "HighResNet": (((1, 1, 16, 16, 16),), three),
        "AutoEncoder": (flat, {**two, "channels": (8, 16), "strides": (2, 2)}),
        "VarAutoEncoder": (flat, {"spatial_dims": 2, "in_shape": (1, 64, 64), "out_channels": 1, "latent_size": 6,
                                  "channels": (8, 16), "strides": (2, 2)}),
        "EfficientNetBN": (flat, {"args": ("efficientnet-b0",), "spatial_dims": 2, "in_channels": 1,
                                  "num_classes": 2, "pretrained": False}),
        "ViT": (flat, {"in_channels": 1, "img_size": (64, 64), "patch_size": 16, "hidden_size": 48, "mlp_dim": 64,
                       "num_layers": 2, "num_heads": 4, "classification": True, "spatial_dims": 2}),
        "MedNeXt": (flat, {**two, "init_filters": 8}),
        "restormer:Restormer": (flat, {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "dim": 8,
                             "num_blocks": (1, 1, 1, 1), "heads": (1, 2, 2, 4)}),
        "PatchDiscriminator": (flat, {"spatial_dims": 2, "channels": 8, "in_channels": 1, "num_layers_d": 2}),
        "DiffusionModelUNet": (
            ((2, 1, 32, 32), tokens(2)),
            {**two, "channels": (8, 16), "attention_levels": (False, True), "num_res_blocks": 1, "norm_num_groups": 4,
             "num_head_channels": 8},
        ),
    })  # fmt: skip
    conv = {"conv_op": nn.Conv2d, "norm_op": nn.InstanceNorm2d, "nonlin": nn.LeakyReLU}
    stages = {
        "input_channels": 1, "n_stages": 3, "features_per_stage": (8, 16, 32), "kernel_sizes": 3, "strides": (1, 2, 2),
        "num_classes": 2, "norm_op_kwargs": {"affine": True}, "nonlin_kwargs": {"inplace": True}, "conv_bias": True,
    }  # fmt: skip
    yield from table("dynamic-network-architectures", "dynamic_network_architectures.architectures.unet", {
        "PlainConvUNet": (flat, {**conv, **stages, "n_conv_per_stage": 1, "n_conv_per_stage_decoder": 1}),
        "ResidualEncoderUNet": (flat, {**conv, **stages, "n_blocks_per_stage": 1, "n_conv_per_stage_decoder": 1}),
    })  # fmt: skip
    yield from table("torchxrayvision", "torchxrayvision.models", {
        "DenseNet": (flat, {"weights": None}),
    })  # fmt: skip
    sam = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 4, "out_chans": 16, "use_rel_pos": True,
           "window_size": 3, "global_attn_indexes": (1,)}  # fmt: skip
    yield from table("segment-anything", "segment_anything.modeling", {
        "image_encoder:ImageEncoderViT": (IMAGE, sam),
    })  # fmt: skip
