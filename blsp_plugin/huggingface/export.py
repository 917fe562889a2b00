"""Writing a trained model as a transformers folder.

Authors
 * The blsp_plugin team 2026
"""

import copy
import os

import torch
from speechbrain.nnet.adapters import LoRA
from transformers import GenerationConfig

from blsp_plugin import adapters
from blsp_plugin.errors import BadInput
from blsp_plugin.huggingface.configuration import BLSPConfig
from blsp_plugin.huggingface.modeling import BLSPForConditionalGeneration
from blsp_plugin.huggingface.processing import (
    BLSPFeatureExtractor,
    BLSPProcessor,
)
from blsp_plugin.huggingface.templates import chat_template
from blsp_plugin.prompts import INSTRUCTION

__all__ = ["export_to_transformers"]


def export_to_transformers(model, prompt, folder, audio_token="<|audio|>"):
    """Write encoder, adapter and LLM as one transformers model.

    Logits and greedy responses are those of the model. LoRA is added to the
    weights under it; the export then answers text with it, too. Files of an
    earlier export are replaced, other files in the folder stay.

    Arguments
    ---------
    model : BLSP
        Trained.
    prompt : Prompt
        It was trained with.
    folder : str
        Gets ``config.json``, ``model.safetensors`` (several, if large), the
        tokenizer's files, ``processor_config.json``, ``chat_template.jinja``
        and ``generation_config.json``.
    audio_token : str
        Stands in a text where a clip goes; new to the tokenizer.

    Raises
    ------
    BadInput
        If the model cannot be written in this form.
    """
    if os.path.isfile(folder):
        raise BadInput(f"{folder}: is a file; give a folder")
    name = type(model.adapter).__name__
    if type(model.adapter) is not getattr(adapters, name, None):
        raise BadInput(
            f"adapter {name}: not one of {', '.join(adapters.__all__)}; only "
            "these can be exported"
        )
    llm = model.llm.model
    if getattr(llm.config, "quantization_config", None) is not None:
        raise BadInput(
            f"{model.llm.source}: its weights are quantized; open the LLM "
            "without `quantization_config` to export it"
        )
    processor = _processor(model, prompt, audio_token)
    encoder = model.encoder.encoder
    config = BLSPConfig(
        audio_config=_portable(encoder.config),
        text_config=_portable(llm.config),
        adapter=name,
        adapter_arguments=model.adapter.sizes(),
        audio_token_id=processor.audio_token_id,
        pad_to_30s=model.encoder.pad_to_30s,
        keep_in_float32=[
            part
            for part in ("encoder", "adapter")
            if next(getattr(model, part).parameters()).dtype == torch.float32
        ],
        prompt={
            "content": prompt.content,
            "template": prompt.template,
            "system": prompt.system,
            "chat_options": prompt.chat_options,
        },
    )
    with torch.device("meta"):  # no second copy of the weights
        shell = BLSPForConditionalGeneration._from_config(
            config, dtype=model.llm.dtype
        )
    weights = {
        f"{prefix}.{key}": tensor
        for prefix, part in (
            ("encoder.encoder", encoder),
            ("adapter", model.adapter),
            ("language_model", llm),
        )
        for key, tensor in _merged_weights(part).items()
    }
    odd = weights.keys() ^ shell.state_dict().keys()
    if odd:
        raise BadInput(
            f"{sorted(odd)[0]}: a weight that the published model has not, or "
            "lacks; only LoRA can be exported with it"
        )
    shell.generation_config = _generation_config(model.llm)
    shell.save_pretrained(folder, state_dict=weights)
    processor.save_pretrained(folder)
    _check(BLSPProcessor.from_pretrained(folder), prompt, folder)


def _portable(config):
    """A copy that does not say where the model lay on this disk."""
    config = copy.deepcopy(config)
    config.name_or_path = ""
    return config


def _processor(model, prompt, audio_token):
    """The model's processor, with a tokenizer of its own."""
    tokenizer = copy.deepcopy(prompt.tokenizer)
    if audio_token in tokenizer.get_vocab():
        raise BadInput(
            f"{audio_token}: a token of this LLM already; give another "
            "audio_token"
        )
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [audio_token]},
        replace_extra_special_tokens=False,
    )
    # For generation; what is saved is what it was made with.
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
    mel = model.encoder.mel
    extractor = BLSPFeatureExtractor(mel.filters.shape[1], mel.pad_to_30s)
    if not torch.equal(extractor.log_mel.filters, mel.filters):
        raise BadInput(
            f"{model.encoder.source}: its mel filters are not Whisper's; "
            "they cannot be exported"
        )
    return BLSPProcessor(
        extractor,
        tokenizer,
        type(model.adapter).__name__,
        model.adapter.sizes(),
        audio_token,
        chat_template(prompt, audio_token),
    )


def _merged_weights(module):
    """A module's weights, with LoRA added to those that it stands on."""
    weights = module.state_dict()
    get_embeddings = getattr(module, "get_input_embeddings", lambda: None)
    table = getattr(get_embeddings(), "weight", None)
    for place, lora in list(module.named_modules()):
        if not isinstance(lora, LoRA):
            continue
        base = lora.pretrained_module
        if not isinstance(base, torch.nn.Linear) or base.weight is table:
            raise BadInput(
                f"{place}: LoRA can be merged into linear layers of their "
                "own weights only; train without it here to export"
            )
        update = lora.adapter_up_proj.weight @ lora.adapter_down_proj.weight
        merged = base.weight.float() + lora.scaling * update.float()
        for name in ("down", "up"):
            del weights[f"{place}.adapter_{name}_proj.weight"]
        for name in list(base.state_dict()):
            tensor = weights.pop(f"{place}.pretrained_module.{name}")
            weights[f"{place}.{name}"] = tensor
        weights[f"{place}.weight"] = merged.to(base.weight.dtype)
    return {name: tensor.detach() for name, tensor in weights.items()}


def _generation_config(llm):
    """Greedy, ending where `FrozenLLM.generate` ends; penalties are kept."""
    config = copy.deepcopy(llm.model.generation_config)
    fresh = GenerationConfig()
    for name in ("temperature", "top_k", "top_p", "min_p"):  # of sampling
        setattr(config, name, getattr(fresh, name))
    config.do_sample = False
    config.eos_token_id = llm.stop_ids
    config.pad_token_id = llm.tokenizer.pad_token_id
    config._from_model_config = False
    return config


def _check(processor, prompt, folder):
    """Make sure that the folder's prompts are those of the training."""
    instruction = "Please repeat the following words."
    asked = INSTRUCTION in (prompt.template or prompt.content)
    text = processor.prompt(instruction if asked else None)
    one = processor._encode(text, iter([1]), False)
    prefix, suffix = prompt.ids(instruction)
    if one != [*prefix, processor.audio_token_id, *suffix]:
        raise BadInput(
            f"{folder}: the tokenizer, once saved, gives other ids for the "
            "prompt than the adapter was trained with; do not use this export"
        )
