"""Text, speech and detection of transformers, and the text models of other libraries: small configurations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.second import Called, Inputs, Sample, made, made_any, tokens
from torch import nn

IDS: Inputs = (tokens(2, 12),)
_BERT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
DROPPING = ("bert", "gpt2", "t5")
"""Families that keep their dropout; of others it is left out, for a graph of two modes takes three times as long."""
NO_DROPOUT = dict.fromkeys(
    (
        "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "classifier_dropout_prob",
        "dropout", "attention_dropout", "activation_dropout", "hidden_dropout", "attn_pdrop", "embd_pdrop",
        "resid_pdrop", "dropout_rate", "embed_dropout", "resid_dropout", "embedding_dropout", "mlp_dropout",
        "seq_classif_dropout", "summary_first_dropout", "summary_last_dropout", "layerdrop", "encoder_layerdrop",
        "decoder_layerdrop", "feat_proj_dropout", "final_dropout", "pooler_dropout", "residual_dropout",
    ),
    0.0,
)  # fmt: skip
_LLAMA = {**_BERT, "num_key_value_heads": 2, "use_cache": False, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 8}

ENCODERS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "camembert": _BERT,
    "xlm-roberta": _BERT,
    "electra": {**_BERT, "embedding_size": 24},
    "albert": {**_BERT, "embedding_size": 16},
    "distilbert": {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "deberta-v2": {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "deberta": {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "mpnet": _BERT,
    "squeezebert": {**_BERT, "embedding_size": 32},
    "mobilebert": {**_BERT, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "convbert": {**_BERT, "embedding_size": 32},
    "roformer": {**_BERT, "embedding_size": 32},
    "fnet": {**_BERT, "tpu_short_seq_length": 12},
    "rembert": {**_BERT, "input_embedding_size": 16, "output_embedding_size": 24},
    "nystromformer": {**_BERT, "segment_means_seq_len": 12, "num_landmarks": 12},
    "ernie": _BERT,
    "layoutlm": _BERT,
    "ibert": _BERT,
    "megatron-bert": _BERT,
    "modernbert": {**_BERT, "global_attn_every_n_layers": 1},
    "esm": {**_BERT, "position_embedding_type": "rotary"},
    "xlnet": {"vocab_size": 64, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    "flaubert": {"vocab_size": 64, "n_words": 64, "emb_dim": 32, "n_layers": 2, "n_heads": 4},
}
"""Encoders, with a classifier of ten classes on top where they have one."""

DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40},
    "gpt_neo": {**_BERT, "num_heads": 4, "num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {**_BERT, "rotary_pct": 0.5},
    "gptj": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "rotary_dim": 4},
    "opt": {**_BERT, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": None},
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": {**_LLAMA, "query_pre_attn_scalar": 8},
    "olmo2": _LLAMA,
    "phi": {**_LLAMA, "partial_rotary_factor": 0.5},
    "phi3": {**_LLAMA, "original_max_position_embeddings": 40},
    "starcoder2": _LLAMA,
    "stablelm": _LLAMA,
    "granite": _LLAMA,
    "smollm3": _LLAMA,
    "falcon": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "mamba": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 4},
    "codegen": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "rotary_dim": 4},
}
"""Decoders, with the head over the vocabulary."""

_BART = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 40,
}
_T5 = {"vocab_size": 64, "d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8}
SEQUENCES: dict[str, dict[str, Any]] = {
    "t5": _T5,
    "mt5": {**_T5, "feed_forward_proj": "gated-gelu"},
    "bart": _BART,
    "mbart": _BART,
    "pegasus": _BART,
    "marian": {**_BART, "decoder_start_token_id": 1, "pad_token_id": 0},
}
"""Encoders and decoders together: both are given ids."""

_WAVE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16, 16],
    "conv_stride": [5, 4],
    "conv_kernel": [10, 4],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 32,
    "apply_spec_augment": False,
}
"""Without the masks of training: numpy draws them, and no graph does."""
_DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 6,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
}


def _of(family: str, kind: str, options: dict[str, Any]) -> nn.Module:
    import transformers

    config = transformers.AutoConfig.for_model(family, **(options if family in DROPPING else {**options, **NO_DROPOUT}))
    return getattr(transformers, kind).from_config(config)


def _detector(family: str) -> nn.Module:
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=["stage4"]
    )
    given = {**_DETR, **NO_DROPOUT, "backbone_config": backbone, "num_labels": 5}
    config = transformers.AutoConfig.for_model(family, **given)
    return Called(transformers.AutoModelForObjectDetection.from_config(config), pick=_boxes)


def _boxes(found: Any) -> Any:
    return found.logits, found.pred_boxes


def _first(found: Any) -> Any:
    return found[0]


def transformers_text() -> Iterator[Sample]:
    """Yield text, speech and detection models of transformers."""
    text = "transformers, text"
    for family, options in ENCODERS.items():
        kind = "AutoModel" if family in ("layoutlm", "esm") else "AutoModelForSequenceClassification"
        yield Sample(text, family, partial(_of, family, kind, {**options, "num_labels": 10}), IDS)
    for family, options in DECODERS.items():
        yield Sample(text, family, partial(_decoder, family, options), IDS)
    for family, options in SEQUENCES.items():
        yield Sample(text, family, partial(_sequences, family, options), (tokens(2, 12), tokens(2, 7)))
    sound = "transformers, sound"
    for family in ("wav2vec2", "hubert", "wavlm", "data2vec-audio"):
        more = {"conv_pos_kernel_size": 9, "num_conv_pos_embedding_groups": 4} if "data2vec" in family else {}
        yield Sample(sound, family, partial(_of, family, "AutoModelForCTC", {**_WAVE, **more}), ((2, 800),))
    tree = {**_BERT, "max_length": 32, "num_mel_bins": 32, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}
    yield Sample(
        sound,
        "audio-spectrogram-transformer",
        partial(_of, "audio-spectrogram-transformer", "AutoModelForAudioClassification", tree),
        ((2, 32, 32),),
    )
    whisper = {**_BART, "pad_token_id": 0, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 20}
    yield Sample(sound, "whisper", partial(_sequences, "whisper", whisper), ((2, 16, 40), tokens(2, 7)))
    for family in ("detr", "conditional_detr", "table-transformer"):
        yield Sample("transformers, detection", family, partial(_detector, family), ((2, 3, 64, 64),))


def _decoder(family: str, options: dict[str, Any]) -> nn.Module:
    return Called(_of(family, "AutoModelForCausalLM", options), pick=_first, use_cache=False)


def _sequences(family: str, options: dict[str, Any]) -> nn.Module:
    kind = "AutoModelForSpeechSeq2Seq" if family == "whisper" else "AutoModelForSeq2SeqLM"
    return Called(_of(family, kind, options), ("decoder_input_ids",), _first, use_cache=False)


def text() -> Iterator[Sample]:
    """Yield text models of other libraries, and their speech."""
    small = {"dim": 32, "depth": 2, "heads": 4}
    for name, kind, options in (
        ("decoder", "Decoder", {}),
        ("encoder", "Encoder", {}),
        ("decoder, rotary positions", "Decoder", {"rotary_pos_emb": True}),
        ("decoder, relative positions", "Decoder", {"rel_pos_bias": True}),
        ("decoder, alibi", "Decoder", {"alibi_pos_bias": True}),
        ("decoder, gated, RMS norm", "Decoder", {"ff_glu": True, "use_rmsnorm": True}),
        ("decoder, normalized queries", "Decoder", {"attn_qk_norm": True}),
        ("decoder, two key heads", "Decoder", {"attn_kv_heads": 2}),
        ("decoder, one key head", "Decoder", {"attn_one_kv_head": True}),
        ("decoder, talking heads", "Decoder", {"attn_pre_talking_heads": True, "attn_post_talking_heads": True}),
        ("decoder, sandwich norm", "Decoder", {"sandwich_norm": True}),
    ):
        yield Sample("x-transformers", name, partial(_wrapped, kind, {**small, "attn_dim_head": 8, **options}), IDS)
    vision = {"image_size": 32, "patch_size": 8, "num_classes": 10}
    yield Sample("x-transformers", "vision", partial(_vision, vision, small), ((2, 3, 32, 32),))
    wide = {"num_tokens": 64, "dim": 32, "depth": 2}
    yield Sample("g-mlp-pytorch", "gMLP", partial(made, "g_mlp_pytorch:gMLP", **wide, seq_len=12), IDS)
    linformer = {"dim": 32, "seq_len": 12, "depth": 2, "heads": 4, "k": 4}
    blocks = partial(made, "linformer:Linformer", **linformer)
    yield Sample("linformer", "Linformer", partial(_behind, blocks), ((2, 12, 32),))
    yield Sample("linformer", "LinformerLM", partial(made, "linformer:LinformerLM", num_tokens=64, **linformer), IDS)
    nystrom = partial(made, "nystrom_attention:Nystromformer", **small, dim_head=8, num_landmarks=4)
    yield Sample("nystrom-attention", "Nystromformer", partial(_behind, nystrom), ((2, 16, 32),))
    yield Sample("mambapy", "Mamba", partial(_behind, partial(_mamba, "mamba", "Mamba"), 16), ((2, 12, 16),))
    conformer = partial(made, "conformer:Conformer", **small, dim_head=8)
    yield Sample("conformer", "Conformer", partial(_behind, conformer), ((2, 12, 32),))


def _behind(blocks: Callable[[], nn.Module], width: int = 32) -> nn.Module:
    """Put blocks behind a layer, as in any network: alone, their residual sums go through the user's own input."""
    return nn.Sequential(nn.Linear(width, width), blocks(), nn.Linear(width, 8))


def _mamba(module: str, name: str) -> nn.Module:
    config = made_any(f"mambapy.{module}:{name}Config", d_model=16, n_layers=2, d_state=4)
    return made(f"mambapy.{module}:{name}", config)


def _wrapped(kind: str, options: dict[str, Any]) -> nn.Module:
    layers = made(f"x_transformers:{kind}", **options)
    return made("x_transformers:TransformerWrapper", num_tokens=64, max_seq_len=16, attn_layers=layers)


def _vision(options: dict[str, Any], layers: dict[str, Any]) -> nn.Module:
    return made("x_transformers:ViTransformerWrapper", **options, attn_layers=made("x_transformers:Encoder", **layers))
