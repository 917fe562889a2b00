"""The frozen speech encoder: Whisper's, for clips of any length.

Whisper itself always runs on 30 s; a 5-s clip then costs 16 times what it
needs. Here a batch is as wide as its longest clip, every convolution and every
attention sees the clip only, and the mel is computed clip by clip, so that a
clip's states do not depend on its batch mates. ``pad_to_30s`` brings back
Whisper's own behaviour. Longer clips go through in chunks of 30 s.

Authors
 * The blsp_plugin team 2026
"""

import torch
from torch.nn import functional
from transformers import WhisperFeatureExtractor, WhisperModel

from blsp_plugin.errors import BadInput
from blsp_plugin.lengths import (
    CHUNK_MEL,
    CHUNK_SAMPLES,
    HOP,
    encoder_frames,
    frames_mask,
    mel_frames,
)
from blsp_plugin.pretrained import (
    fingerprint_module,
    fingerprint_text,
    has_lora,
    open_pretrained,
    own_dtype,
)

__all__ = ["LogMel", "RaggedEncoder", "WhisperEncoder"]

_CHUNKS_AT_ONCE = 8  # of 30 s


class LogMel:
    """Whisper's log-mel features of one clip, float32, no batch involved.

    Small and picklable: data loader workers carry it, not the encoder.

    Arguments
    ---------
    mel_filters : array
        Shape (201, n_mels), Whisper's filter bank.
    pad_to_30s : bool
        Zero-pad the waveform to a multiple of 30 s first, as Whisper does.

    Example
    -------
    >>> log_mel = LogMel(torch.rand(201, 80))
    >>> log_mel(torch.randn(16000)).shape
    torch.Size([100, 80])
    """

    n_fft = 400

    def __init__(self, mel_filters, pad_to_30s=False):
        self.filters = torch.as_tensor(mel_filters, dtype=torch.float32)
        self.pad_to_30s = pad_to_30s
        self.window = torch.hann_window(self.n_fft)

    def __call__(self, wav):
        """Compute the features.

        Arguments
        ---------
        wav : torch.Tensor
            Shape (samples,), float, 16 kHz, at least one sample.

        Returns
        -------
        torch.Tensor
            Shape (frames, n_mels), float32. ``frames`` is
            ``lengths.mel_frames(samples)``, or a multiple of 3000 with
            ``pad_to_30s``. Chunks of 30 s are treated as clips of their own.
        """
        with torch.autocast(wav.device.type, enabled=False):
            chunks = wav.float().split(CHUNK_SAMPLES)
            return torch.cat([self._chunk(chunk) for chunk in chunks])

    def _chunk(self, wav):
        frames = CHUNK_MEL if self.pad_to_30s else mel_frames(wav.shape[0])
        # The zeros behind the clip are those that 30-s padding would put
        # there; at 30 s there is no room and the STFT reflects, as Whisper's.
        room = min(frames * HOP + self.n_fft, CHUNK_SAMPLES)
        wav = functional.pad(wav, (0, room - wav.shape[0]))
        spectrum = torch.stft(
            wav,
            self.n_fft,
            HOP,
            window=self.window.to(wav.device),
            return_complex=True,
        )
        power = spectrum[:, :frames].abs() ** 2
        mel = power.T @ self.filters.to(wav.device)
        log_mel = mel.clamp(min=1e-10).log10()
        log_mel = log_mel.clamp(min=log_mel.max() - 8.0)
        return (log_mel + 4.0) / 4.0


class RaggedEncoder(torch.nn.Module):
    """An opened Whisper encoder, frozen, for ragged batches.

    Arguments
    ---------
    encoder : torch.nn.Module
        transformers' ``WhisperEncoder``.
    pad_to_30s : bool
        See `WhisperEncoder`.
    """

    def __init__(self, encoder, pad_to_30s=False):
        super().__init__()
        self.encoder = encoder
        self.pad_to_30s = pad_to_30s
        self.output_size = encoder.config.d_model
        self.requires_grad_(False)
        self.eval()

    def train(self, mode=True):
        """Stay in evaluation mode, whatever Brain asks for."""
        return super().train(False)

    @property
    def dtype(self):
        """Dtype of the weights."""
        return self.encoder.layer_norm.weight.dtype

    def forward(self, mel, mel_lengths):
        """Encode a batch of clips; no gradient, but for LoRA's.

        Arguments
        ---------
        mel : torch.Tensor
            Shape (batch, frames, n_mels), from `LogMel`, padded at the end.
        mel_lengths : torch.Tensor
            Shape (batch,), int64, valid mel frames of each clip.

        Returns
        -------
        states : torch.Tensor
            Shape (batch, longest, output_size), float32, zero in padding.
        lengths : torch.Tensor
            Shape (batch,), int64, encoder frames (50 a second).
        """
        grad = torch.is_grad_enabled() and has_lora(self)
        context = own_dtype(self, mel.device, self.dtype)
        with torch.set_grad_enabled(grad), context:
            return self._forward(mel, mel_lengths)

    def _forward(self, mel, mel_lengths):
        batch, frames, n_mels = mel.shape
        if frames <= CHUNK_MEL:
            states = self._encode(mel, mel_lengths)
        else:
            parts = -(-frames // CHUNK_MEL)
            mel = functional.pad(mel, (0, 0, 0, parts * CHUNK_MEL - frames))
            starts = CHUNK_MEL * torch.arange(parts, device=mel.device)
            left = mel_lengths.unsqueeze(1) - starts
            left = left.clamp(0, CHUNK_MEL).flatten()
            used = left > 0
            chunks = mel.reshape(batch * parts, CHUNK_MEL, n_mels)
            # Of an hour all chunks at once would take many gigabytes.
            encoded = torch.cat(
                [
                    self._encode(*group)
                    for group in zip(
                        chunks[used].split(_CHUNKS_AT_ONCE),
                        left[used].split(_CHUNKS_AT_ONCE),
                        strict=True,
                    )
                ]
            )
            # 3000 mel frames give exactly 1500 states: chunks stay in place.
            states = encoded.new_zeros(
                batch * parts, CHUNK_MEL // 2, self.output_size
            )
            states[used] = encoded
            states = states.reshape(batch, -1, self.output_size)
        lengths = encoder_frames(mel_lengths)
        states = states[:, : int(lengths.max())]
        return states * frames_mask(lengths).unsqueeze(-1), lengths

    def _encode(self, mel, mel_lengths):
        """Encode clips of at most 30 s; padding's states are anything."""
        encoder = self.encoder
        hidden = mel.transpose(1, 2).to(encoder.conv1.weight.dtype)
        mask = None
        if self.pad_to_30s:
            hidden = functional.gelu(encoder.conv1(hidden))
            hidden = functional.gelu(encoder.conv2(hidden))
        else:
            keep = frames_mask(mel_lengths, mel.shape[1]).unsqueeze(1)
            hidden = functional.gelu(encoder.conv1(hidden * keep))
            hidden = functional.gelu(encoder.conv2(hidden * keep))
            lengths = encoder_frames(mel_lengths)
            if int(lengths.min()) < hidden.shape[2]:
                keys = frames_mask(lengths, hidden.shape[2])
                mask = torch.zeros_like(keys, dtype=hidden.dtype)
                mask = mask.masked_fill(~keys, torch.finfo(mask.dtype).min)
                mask = mask[:, None, None, :].expand(-1, 1, hidden.shape[2], -1)
        hidden = hidden.transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        for layer in encoder.layers:
            hidden = layer(hidden, mask)
        return encoder.layer_norm(hidden).float()


class WhisperEncoder(RaggedEncoder):
    """Whisper's encoder, frozen, for ragged batches.

    Arguments
    ---------
    source : str
        Folder or hub id of a Whisper model.
    pad_to_30s : bool
        Run every clip on 30 s, exactly as Whisper does, and cut the padding's
        states off. Slower; equal to transformers' encoder to 1e-5.
    dtype : str
        Of the weights, "float32" or "bfloat16". States come out in float32.

    Raises
    ------
    BadInput
        If the model cannot be opened.
    """

    def __init__(self, source, pad_to_30s=False, dtype="float32"):
        extractor, encoder = self.open_models(
            source, dtype=getattr(torch, dtype)
        )
        super().__init__(encoder, pad_to_30s)
        self.source = str(source)
        self.mel = LogMel(extractor.mel_filters, pad_to_30s)
        if self.encoder.num_mel_bins != self.mel.filters.shape[1]:
            raise BadInput(
                f"{source}: the encoder takes {self.encoder.num_mel_bins} "
                f"mels, preprocessor_config.json makes "
                f"{self.mel.filters.shape[1]}; fetch the model again"
            )
        # Taken now: LoRA would change the names of the weights.
        self._weights = fingerprint_module(self.encoder)

    def open_models(self, source, dtype):
        """Load feature extractor and encoder.

        Arguments
        ---------
        source : str
            Folder or hub id.
        dtype : torch.dtype
            Of the weights.

        Returns
        -------
        extractor : transformers.WhisperFeatureExtractor
        encoder : torch.nn.Module
        """
        extractor = open_pretrained(
            WhisperFeatureExtractor.from_pretrained, source, "Whisper"
        )
        # dtype is explicit: a half-precision checkpoint would stay half.
        opener = WhisperModel.from_pretrained
        model = open_pretrained(opener, source, "Whisper", dtype=dtype)
        return extractor, model.encoder

    def fingerprint(self):
        """Short name of what makes the states, 16 hexadecimal digits.

        An adapter trained on 30-s padding hears other states without it.
        """
        return fingerprint_text(self._weights, str(self.pad_to_30s))
