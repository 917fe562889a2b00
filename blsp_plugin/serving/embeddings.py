"""An LLM of which only the tokenizer and the embeddings are here.

The LLM itself is elsewhere, in vLLM; this is what it takes to write prompts
for it.

Authors
 * The blsp_plugin team 2026
"""

import torch
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from blsp_plugin.errors import BadInput
from blsp_plugin.llm import FrozenLLM
from blsp_plugin.pretrained import open_pretrained

__all__ = ["TokenEmbeddings"]


class TokenEmbeddings(FrozenLLM):
    """A `FrozenLLM` without layers: it embeds, and cannot answer.

    The embedding layer is the model's own, so that what it does beside
    looking up (Gemma scales) is done. Layers are never read from the disk; a
    head that is not the embedding table is, and is put down again.

    Arguments
    ---------
    *args, **kwargs
        Those of `FrozenLLM`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model.set_output_embeddings(torch.nn.Identity())

    def open_models(self, source, **options):
        """Load tokenizer and embeddings: see `FrozenLLM.open_models`."""
        config = open_pretrained(
            AutoConfig.from_pretrained,
            source,
            "LLM",
            trust_remote_code=options.get("trust_remote_code"),
        )
        text = config.get_text_config()
        if not hasattr(text, "num_hidden_layers"):
            raise BadInput(
                f"{source}: its layers cannot be left out; serve it without "
                "vLLM"
            )
        text.num_hidden_layers = 0
        if getattr(text, "layer_types", None):
            text.layer_types = []
        level = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # it misses the layers
        try:
            return super().open_models(source, config=config, **options)
        finally:
            transformers_logging.set_verbosity(level)

    def fingerprint(self):
        """None: there are no weights here to compare."""
        return None
