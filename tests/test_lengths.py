"""Length arithmetic, against blsp.md's table and against real tensors."""

import pytest
import torch

from blsp_plugin import lengths
from blsp_plugin.adapters import ConvAdapter

TABLE = {1: 7, 2: 13, 5: 32, 10: 63, 15: 94, 20: 125, 30: 188}


def test_length_table(model):
    for seconds, tokens in TABLE.items():
        assert model.speech_tokens(seconds * 16000) == tokens
    for samples in (1, 159, 160, 161, 321, 5000, 16000, 47999, 480000, 500001):
        wav = torch.randn(samples)
        mel = model.encoder.mel(wav)
        assert mel.shape[0] == lengths.mel_frames(samples)
        count = torch.tensor([mel.shape[0]])
        states, frames = model.encoder(mel[None], count)
        assert states.shape[1] == frames.item()
        assert frames.item() == lengths.encoder_frames(mel.shape[0])
        speech, tokens, _ = model.adapter(states, frames)
        assert speech.shape[1] == tokens.item() == model.speech_tokens(samples)


def test_adapter_parameter_count():
    def count(*sizes):
        return sum(p.numel() for p in ConvAdapter(*sizes).parameters())

    assert count(768, 4096) == 47_467_520
    assert count(384, 2048) == 12_920_320
    assert count(512, 896) == 10_753_536


@pytest.mark.parametrize("mel", [1, 7, 2999, 3000, 3001, 6000, 7001])
def test_chunks_sum_up(mel):
    chunks = [3000] * (mel // 3000) + [mel % 3000] * (mel % 3000 > 0)
    whole = lengths.encoder_frames(mel)
    assert whole == sum(lengths.encoder_frames(c) for c in chunks)
