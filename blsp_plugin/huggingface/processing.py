"""Text and clips -> what the exported model takes.

Authors
 * The blsp_plugin team 2026
"""

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BatchFeature,
    ProcessorMixin,
    SequenceFeatureExtractor,
    WhisperFeatureExtractor,
)

from blsp_plugin.encoder import LogMel
from blsp_plugin.errors import BadInput
from blsp_plugin.huggingface.configuration import build_adapter
from blsp_plugin.lengths import SAMPLE_RATE, encoder_frames, mel_frames
from blsp_plugin.prompts import ids_around

__all__ = ["BLSPFeatureExtractor", "BLSPProcessor"]


class BLSPFeatureExtractor(SequenceFeatureExtractor):
    """`LogMel` of each clip, as a transformers feature extractor.

    Arguments
    ---------
    feature_size : int
        Mels, 80 or 128.
    pad_to_30s : bool
        See `LogMel`.
    **kwargs : dict
        transformers' own settings.

    Example
    -------
    >>> extractor = BLSPFeatureExtractor(80)
    >>> features = extractor([torch.randn(16000), torch.randn(800)])
    >>> features["input_features"].shape, features["feature_lengths"]
    (torch.Size([2, 100, 80]), tensor([100,   5]))
    """

    model_input_names = ["input_features", "feature_lengths"]

    def __init__(self, feature_size=80, pad_to_30s=False, **kwargs):
        kwargs.setdefault("sampling_rate", SAMPLE_RATE)
        kwargs.setdefault("padding_value", 0.0)
        super().__init__(feature_size=feature_size, **kwargs)
        self.pad_to_30s = pad_to_30s
        # Whisper's filters follow from their number.
        whisper = WhisperFeatureExtractor(feature_size=feature_size)
        self.log_mel = LogMel(whisper.mel_filters, pad_to_30s)

    def to_dict(self):
        """What is written as JSON: the settings, not the filters."""
        settings = super().to_dict()
        del settings["log_mel"]
        return settings

    def __call__(
        self, raw_speech, sampling_rate=None, return_tensors=None, **kwargs
    ):
        """Compute the features.

        Arguments
        ---------
        raw_speech : array, torch.Tensor, or a list of them
            Clips of shape (samples,), float, 16 kHz, mono.
        sampling_rate : int, optional
            Of the clips, in Hz. Give it, so that a wrong one is noticed.
        return_tensors : str, optional
            As transformers'; torch's tensors if not given.
        **kwargs : dict
            Of no meaning here: every clip is taken whole, and padded.

        Returns
        -------
        transformers.BatchFeature
            ``input_features`` of shape (clips, frames, n_mels), float32, and
            ``feature_lengths`` of shape (clips,), int64.

        Raises
        ------
        BadInput
            If the rate is another, or a clip is empty or not finite.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise BadInput(
                f"sampling_rate {sampling_rate}: the encoder hears "
                f"{self.sampling_rate} Hz; resample the clips"
            )
        if not isinstance(raw_speech, list | tuple):
            raw_speech = [raw_speech]
        wavs = [torch.as_tensor(clip) for clip in raw_speech]
        for i, wav in enumerate(wavs):
            if wav.ndim != 1 or not wav.numel() or not wav.isfinite().all():
                raise BadInput(
                    f"clip {i}: shape {tuple(wav.shape)}; give finite samples "
                    f"of shape (samples,) at {self.sampling_rate} Hz, at "
                    "least one"
                )
        features = {
            "input_features": pad_sequence(
                [self.log_mel(wav) for wav in wavs], batch_first=True
            ),
            "feature_lengths": torch.tensor(
                [mel_frames(wav.shape[0]) for wav in wavs]
            ),
        }
        return BatchFeature(features, tensor_type=return_tensors)


class BLSPProcessor(ProcessorMixin):
    """Feature extractor and tokenizer of an exported model.

    Arguments
    ---------
    feature_extractor : BLSPFeatureExtractor
        Of the encoder.
    tokenizer : transformers.PreTrainedTokenizerBase
        Of the LLM, with the audio token added to it.
    adapter : str
        A class of `blsp_plugin.adapters`: it knows how many speech embeddings
        a clip becomes.
    adapter_arguments : dict
        Its constructor's.
    audio_token : str
        Stands in a text where a clip goes.
    chat_template : str, optional
        From `blsp_plugin.huggingface.templates`.
    """

    # A text is a whole prompt, as the chat template or `prompt` writes it.
    text_kwargs = {"padding": True, "add_special_tokens": False}

    def __init__(
        self,
        feature_extractor,
        tokenizer,
        adapter="ConvAdapter",
        adapter_arguments=None,
        audio_token="<|audio|>",
        chat_template=None,
    ):
        super().__init__(
            feature_extractor, tokenizer, chat_template=chat_template
        )
        self.adapter = adapter
        self.adapter_arguments = adapter_arguments
        self.audio_token = audio_token
        self.audio_token_id = tokenizer.convert_tokens_to_ids(audio_token)
        with torch.device("meta"):  # it is asked for lengths only
            self._adapter = build_adapter(adapter, adapter_arguments)

    def to_dict(self):
        """What is written as JSON."""
        adapter = self.__dict__.pop("_adapter")  # else it would be copied
        try:
            return super().to_dict()
        finally:
            self._adapter = adapter

    @property
    def model_input_names(self):
        """Names of what the model takes."""
        names = self.feature_extractor.model_input_names
        return ["input_ids", "attention_mask", *names]

    def audio_tokens(self, feature_lengths):
        """How many audio tokens clips get in ``input_ids``.

        Arguments
        ---------
        feature_lengths : torch.Tensor
            Shape (clips,), int64, valid mel frames.

        Returns
        -------
        torch.Tensor
            Shape (clips,), int64. One each where the number depends on what is
            said: the model then takes care of it (`expand_audio_tokens`).
        """
        if self._adapter.counts_transcript:
            return torch.ones_like(feature_lengths)
        return self._adapter.output_lengths(encoder_frames(feature_lengths))

    def prompt(self, instruction=None):
        """The prompt's text around one audio token.

        Arguments
        ---------
        instruction : str, optional
            What to do with the speech. Not given where the prompt has no
            place for it.

        Returns
        -------
        str
            For `__call__`, together with one clip: the ids are those of
            `Prompt.ids`, with the speech between them.
        """
        parts = [{"type": "audio"}]
        if instruction is not None:
            parts.insert(0, {"type": "text", "text": instruction})
        messages = [{"role": "user", "content": parts}]
        return self.apply_chat_template(messages, add_generation_prompt=True)

    def __call__(self, text=None, audio=None, **kwargs):
        """Make the model's inputs of texts and their clips.

        Arguments
        ---------
        text : str or list of str
            Whole prompts, each with an audio token for each of its clips.
        audio : array, torch.Tensor, or a list of them, optional
            The clips of all texts, one after the other: shape (samples,),
            float, 16 kHz, mono.
        **kwargs : dict
            ``sampling_rate``, ``return_tensors``, ``padding`` and
            ``padding_side`` as transformers' processors.

        Returns
        -------
        transformers.BatchFeature
            ``input_ids`` and ``attention_mask`` of shape (batch, time); with
            audio, ``input_features`` of shape (clips, frames, n_mels) and
            ``feature_lengths`` of shape (clips,).

        Raises
        ------
        ValueError
            If there are more or fewer clips than audio tokens, or a clip
            cannot be used.
        """
        _, text, _, audio = self.prepare_inputs_layout(text=text, audio=audio)
        self.validate_inputs(text=text, audio=audio)
        kwargs = self._merge_kwargs(
            tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs
        )
        options = kwargs["text_kwargs"]
        if options.pop("truncation", False):
            raise BadInput("a prompt cannot be cut; leave truncation out")
        inputs, counts = {}, iter(())
        if audio is not None:
            inputs = self.feature_extractor(audio, **kwargs["audio_kwargs"])
            lengths = torch.as_tensor(inputs["feature_lengths"])
            counts = iter(self.audio_tokens(lengths).tolist())
        if text is not None:
            special = options["add_special_tokens"]
            rows = [self._encode(row, counts, special) for row in text]
            inputs = {**self._pad(rows, options), **inputs}
        return BatchFeature(inputs)

    def _encode(self, text, counts, add_special_tokens):
        """Ids of one text, with as many audio tokens as its clips make.

        A tokenizer splits a text at a special token, and begins it anew there
        (SentencePiece puts a "▁", byte-level BPE leaves a space alone): other
        ids than the adapter was trained with. As in `Prompt`, the ids around
        a clip are those that stand around any words in its place.
        """

        def encode(text):
            ids = self.tokenizer(text, add_special_tokens=add_special_tokens)
            return ids["input_ids"]

        pieces = ids_around(encode, text.split(self.audio_token))
        ids = list(pieces[0])
        for piece in pieces[1:]:
            ids += [self.audio_token_id] * next(counts) + list(piece)
        return ids

    def _pad(self, rows, options):
        names = ("padding", "max_length", "pad_to_multiple_of")
        names += ("padding_side", "return_tensors")
        options = {name: options[name] for name in names if name in options}
        # Else it is logged that a fast tokenizer pads faster elsewhere.
        self.tokenizer.deprecation_warnings[
            "Asking-to-pad-a-fast-tokenizer"
        ] = True
        return self.tokenizer.pad({"input_ids": rows}, **options)
