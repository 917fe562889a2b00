"""The way out: a trained adapter with its base as one transformers model.

`export_to_transformers` writes a folder; where this package is imported,
transformers' own classes open it::

    import blsp_plugin.huggingface
    from transformers import AutoModelForCausalLM, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = processor(
        text=processor.prompt("Please repeat the following words."),
        audio=[clip],
        sampling_rate=16000,
        return_tensors="pt",
    )
    ids = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    processor.batch_decode(ids, skip_special_tokens=True)

Encoder and adapter are those of `blsp_plugin`, not copies.

Authors
 * The blsp_plugin team 2026
"""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from blsp_plugin.huggingface.configuration import BLSPConfig
from blsp_plugin.huggingface.export import export_to_transformers
from blsp_plugin.huggingface.modeling import BLSPForConditionalGeneration
from blsp_plugin.huggingface.processing import (
    BLSPFeatureExtractor,
    BLSPProcessor,
)

__all__ = [
    "BLSPConfig",
    "BLSPFeatureExtractor",
    "BLSPForConditionalGeneration",
    "BLSPProcessor",
    "export_to_transformers",
]

AutoConfig.register(BLSPConfig.model_type, BLSPConfig)
AutoFeatureExtractor.register(BLSPConfig, BLSPFeatureExtractor)
AutoProcessor.register(BLSPConfig, BLSPProcessor)
for _auto in (AutoModelForCausalLM, AutoModelForMultimodalLM):
    _auto.register(BLSPConfig, BLSPForConditionalGeneration)
