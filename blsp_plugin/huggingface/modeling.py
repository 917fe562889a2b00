"""The exported model: encoder, adapter and LLM behind transformers' methods.

What it computes is `blsp_plugin`'s; here is only what transformers calls by
other names: which ids stand for speech, and how ``generate`` is asked.

Authors
 * The blsp_plugin team 2026
"""

import copy

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.models.whisper import modeling_whisper

from blsp_plugin import adapters
from blsp_plugin.embedding_table import EmbeddingTable
from blsp_plugin.encoder import RaggedEncoder
from blsp_plugin.huggingface.configuration import BLSPConfig, build_adapter
from blsp_plugin.packing import scatter_speech
from blsp_plugin.speech import embed_clips

__all__ = ["BLSPForConditionalGeneration"]


class BLSPForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """An LLM that hears, as a transformers model.

    Arguments
    ---------
    config : BLSPConfig
        Weights are random; ``from_pretrained`` opens an export.
    """

    config: BLSPConfig
    input_modalities = ("audio", "text")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["WhisperEncoderLayer", *adapters.__all__]

    def __init__(self, config):
        super().__init__(config)
        # The first part is asked for the dtype of the whole.
        self.language_model = AutoModelForCausalLM.from_config(
            config.text_config
        )
        # The padding of a ragged batch is masked by a dense float mask, which
        # the encoder takes in these two only.
        if config.audio_config._attn_implementation != "eager":
            config.audio_config._attn_implementation = "sdpa"
        encoder = modeling_whisper.WhisperEncoder(config.audio_config)
        self.encoder = RaggedEncoder(encoder, config.pad_to_30s)
        self.adapter = build_adapter(config.adapter, config.adapter_arguments)
        self._bind()
        self._keep_in_fp32_modules_strict = config.keep_in_float32
        self.post_init()

    def _bind(self):
        if hasattr(self.adapter, "bind"):
            self.adapter.bind(EmbeddingTable(self.get_input_embeddings()))

    def get_input_embeddings(self):
        """The LLM's token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        """Replace the LLM's token embeddings."""
        self.language_model.set_input_embeddings(value)
        self._bind()

    def get_output_embeddings(self):
        """The LLM's head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value):
        """Replace the LLM's head."""
        self.language_model.set_output_embeddings(value)

    def get_audio_features(self, input_features, feature_lengths):
        """Clips -> speech embeddings.

        Arguments
        ---------
        input_features : torch.Tensor
            Shape (clips, frames, n_mels), from the processor.
        feature_lengths : torch.Tensor
            Shape (clips,), int64, valid frames.

        Returns
        -------
        SpeechEmbeddings
            ``embeds`` of shape (clips, longest, hidden_size) and ``lengths``.
        """
        return embed_clips(
            self.encoder, self.adapter, input_features, feature_lengths
        )

    def expand_audio_tokens(self, input_ids, attention_mask, lengths):
        """Give each clip as many audio tokens as it has speech embeddings.

        Only adapters whose lengths depend on what is said need this: for them
        the processor writes one audio token a clip. `generate` calls it.

        Arguments
        ---------
        input_ids : torch.Tensor
            Shape (batch, time), int64, with one audio token a clip.
        attention_mask : torch.Tensor or None
            Shape (batch, time), 1 on valid tokens.
        lengths : torch.Tensor
            Shape (clips,), int64.

        Returns
        -------
        input_ids : torch.Tensor
            Shape (batch, longer time), padded on the same side.
        attention_mask : torch.Tensor
            Of the same shape.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        is_audio = input_ids == self.config.audio_token_id
        if int(is_audio.sum()) != len(lengths):
            raise ValueError(
                f"{int(is_audio.sum())} audio tokens in input_ids for "
                f"{len(lengths)} clips; give one each"
            )
        repeats = attention_mask.long().masked_scatter(is_audio, lengths)
        rows = [
            row.repeat_interleave(n)
            for row, n in zip(input_ids, repeats, strict=True)
        ]
        side = "right" if bool(attention_mask[:, 0].all()) else "left"
        masks = [torch.ones_like(row) for row in rows]
        return tuple(
            pad_sequence(some, batch_first=True, padding_side=side)
            for some in (rows, masks)
        )

    def _embed(self, input_ids, speech):
        """Token embeddings with the speech where the audio tokens are."""
        is_audio = input_ids == self.config.audio_token_id
        wanted = 0 if speech is None else int(speech.lengths.sum())
        if int(is_audio.sum()) != wanted:
            raise ValueError(
                f"{int(is_audio.sum())} audio tokens in input_ids, the clips "
                f"make {wanted} speech embeddings; give the model what the "
                "processor made of text and audio together (and "
                "expand_audio_tokens where the adapter counts by itself)"
            )
        # The audio token is the tokenizer's alone: the LLM's table stays as
        # it was published, and may have no row for its id. Any id will do in
        # its place, as its embedding is replaced.
        embeds = self.get_input_embeddings()(input_ids.masked_fill(is_audio, 0))
        if not wanted:
            return embeds
        flat = scatter_speech(
            embeds.flatten(0, 1).unsqueeze(0),
            is_audio.flatten().unsqueeze(0),
            speech.embeds,
            speech.lengths,
        )
        return flat.view_as(embeds)

    def forward(
        self,
        input_ids=None,
        input_features=None,
        feature_lengths=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        **kwargs,
    ):
        """Run the LLM with the clips in the places of their audio tokens.

        Arguments
        ---------
        input_ids : torch.Tensor
            Shape (batch, time), int64, with an audio token for each speech
            embedding, clip after clip.
        input_features : torch.Tensor, optional
            Shape (clips, frames, n_mels), in the first step only, where there
            is a cache.
        feature_lengths : torch.Tensor, optional
            Shape (clips,), int64, valid frames.
        attention_mask : torch.Tensor, optional
            Shape (batch, time), or with what is in the cache; 1 on valid
            tokens. The padding may stand on either side.
        position_ids : torch.Tensor, optional
            Shape (batch, time); 0..n-1 over the valid tokens if not given.
        past_key_values : transformers.Cache, optional
            Of earlier steps.
        inputs_embeds : torch.Tensor, optional
            In the place of ``input_ids``.
        labels : torch.Tensor, optional
            Shape (batch, time), -100 where there is no loss.
        **kwargs : dict
            Passed on to the LLM (``use_cache``, ``logits_to_keep``, ...).

        Returns
        -------
        transformers.modeling_outputs.CausalLMOutputWithPast
            The LLM's.

        Raises
        ------
        ValueError
            If there are more or fewer audio tokens than speech embeddings.
        """
        if inputs_embeds is None:
            speech = None
            if input_features is not None:
                speech = self.get_audio_features(
                    input_features, feature_lengths
                )
            inputs_embeds = self._embed(input_ids, speech)
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
            position_ids = position_ids[:, -inputs_embeds.shape[1] :]
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            **kwargs,
        )

    @torch.no_grad()
    def generate(
        self,
        inputs=None,
        generation_config=None,
        input_ids=None,
        input_features=None,
        feature_lengths=None,
        attention_mask=None,
        **kwargs,
    ):
        """Write a response to each row.

        The clips are embedded once; the LLM's own ``generate`` does the rest.
        Penalties on repetition see the response alone, as in `BLSP.generate`:
        speech has no ids.

        Arguments
        ---------
        inputs : torch.Tensor, optional
            The same as ``input_ids``.
        generation_config : transformers.GenerationConfig, optional
            The model's own (greedy) if not given.
        input_ids : torch.Tensor
            Shape (batch, time), left-padded, from the processor.
        input_features : torch.Tensor, optional
            Shape (clips, frames, n_mels).
        feature_lengths : torch.Tensor, optional
            Shape (clips,), int64, valid frames.
        attention_mask : torch.Tensor, optional
            Shape (batch, time), 1 on valid tokens.
        **kwargs : dict
            Passed on to transformers' ``generate``.

        Returns
        -------
        torch.Tensor or transformers.generation.GenerateOutput
            ``input_ids`` as they were given, then the responses.

        Raises
        ------
        ValueError
            If the rows are padded on the right, or have more or fewer audio
            tokens than speech embeddings.
        """
        input_ids = inputs if input_ids is None else input_ids
        if attention_mask is not None and not attention_mask[:, -1].all():
            raise ValueError(
                "a response must follow its prompt at once; give the "
                'processor padding_side="left"'
            )
        expanded, speech = input_ids, None
        if input_features is not None:
            speech = self.get_audio_features(input_features, feature_lengths)
            if self.adapter.counts_transcript:
                expanded, attention_mask = self.expand_audio_tokens(
                    input_ids, attention_mask, speech.lengths
                )
        settings = copy.deepcopy(generation_config or self.generation_config)
        kwargs = settings.update(**kwargs)  # what is left is no setting
        out = self.language_model.generate(
            inputs_embeds=self._embed(expanded, speech),
            attention_mask=attention_mask,
            generation_config=settings,
            **kwargs,
        )
        responses = out if isinstance(out, torch.Tensor) else out.sequences
        # Beams and several samples are rows of their own.
        times = len(responses) // len(input_ids)
        prompts = input_ids.repeat_interleave(times, dim=0)
        sequences = torch.cat([prompts, responses], dim=1)
        if isinstance(out, torch.Tensor):
            return sequences
        out.sequences = sequences
        return out
