"""What is claimed of behaviour, on real models and real speech."""

import csv
import os

import pytest
import torch

from blsp_plugin import starter
from blsp_plugin.adapters import ConvAdapter
from blsp_plugin.data.audio import read_speech
from blsp_plugin.encoder import WhisperEncoder
from blsp_plugin.errors import BadInput
from blsp_plugin.llm import FrozenLLM
from blsp_plugin.losses import ResponseCrossEntropy, response_loss
from blsp_plugin.model import BLSP
from blsp_plugin.packing import Row, pack, predictors
from blsp_plugin.pretrained import native_precision
from blsp_plugin.prompts import Prompt
from blsp_plugin.speech import SpeechEmbeddings

REPEAT = "Please repeat the following words."


@pytest.fixture(scope="module")
def kit():
    """Folders of the starter kit; fetched where they are not yet."""
    try:
        return {
            "whisper": starter.whisper_tiny_en(),
            "llm": starter.smollm2(),
            "corpus": starter.corpus(),
        }
    except BadInput as error:
        pytest.skip(f"no starter kit here: {error}")


@pytest.fixture(scope="module")
def pair(kit):
    """Whisper-tiny.en, SmolLM2-135M-Instruct, their adapter."""
    torch.manual_seed(0)
    encoder = WhisperEncoder(kit["whisper"])
    dtype = native_precision("bfloat16")
    llm = FrozenLLM(kit["llm"], dtype, attn_implementation="eager")
    adapter = ConvAdapter(
        encoder.output_size, llm.hidden_size, gain=llm.embedding_rms
    )
    return BLSP(encoder, adapter, llm), Prompt(llm.tokenizer)


@pytest.fixture(scope="module")
def clips(kit):
    """Eight clips of several words, with their transcripts."""
    with open(os.path.join(kit["corpus"], "train.csv")) as stream:
        rows = [r for r in csv.DictReader(stream) if 3 < len(r["wrd"].split())]
    rows = sorted(rows, key=lambda row: (float(row["duration"]), row["ID"]))
    chosen = rows[:80:10]
    return [
        (r["wav"].replace("$data_root", kit["corpus"]), r["wrd"])
        for r in chosen
    ]


def test_overfit_eight_clips(pair, clips):
    """The LLM's own responses to the transcripts are learnt from the clips."""
    model, prompt = pair
    wavs = [read_speech(path) for path, _ in clips]
    texts = [text for _, text in clips]
    prefix, suffix = prompt.ids(REPEAT)
    twins = [Row(prefix, prompt.slot_ids(REPEAT, t), suffix) for t in texts]
    responses = model.generate(twins, max_new_tokens=24)
    rows = [
        Row(prefix, model.speech_tokens(len(w)), suffix, tuple(r.ids), r.ended)
        for w, r in zip(wavs, responses, strict=True)
    ]
    llm = model.llm
    pad_id = llm.tokenizer.pad_token_id
    packed = pack(rows, pad_id, llm.eos_id, share_prefix=True)
    # The encoder is frozen: its states are the same in every step.
    mels = [model.encoder.mel(wav) for wav in wavs]
    mel = torch.nn.utils.rnn.pad_sequence(mels, batch_first=True)
    states = model.encoder(mel, torch.tensor([len(m) for m in mels]))
    optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=1e-3)
    objectives = [ResponseCrossEntropy()]
    losses = []
    for step in range(150):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 10)
        speech = SpeechEmbeddings(*model.adapter(*states))
        out = model(packed, speech)
        loss = response_loss(objectives, out, None, llm) / len(out.targets)
        losses.append(loss.item())
        if losses[-1] < 0.05:
            break
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.adapter.parameters(), 1.0)
        optimizer.step()
    assert losses[0] > 1.0 and losses[-1] < 0.1, losses
    answers = model.answer(wavs, [REPEAT] * 8, prompt, max_new_tokens=24)
    same = sum(
        a.text == r.text for a, r in zip(answers, responses, strict=True)
    )
    assert same >= 7


def test_prefix_reuse_with_windows_of_attention(kit):
    """Gemma-3: exact within its window, left out where a row outgrows it."""
    llm = FrozenLLM(starter.gemma3())
    window = llm.model.config.get_text_config().sliding_window
    assert llm.can_share_prefix(window)
    assert not llm.can_share_prefix(window + 1)
    rows = [
        Row(range(5, 40), (7, 8, 9), (10,), (11, 12), True),
        Row(range(5, 20), range(50, 60), (10,), (13,), False),
    ]
    made = []
    for share in (False, True):
        packed = pack(rows, 0, llm.eos_id, share_prefix=share)
        mask, _ = predictors(packed.labels)
        with torch.no_grad():
            hidden = llm.hidden(
                llm.embed(packed.input_ids),
                packed.attention_mask,
                packed.position_ids,
                packed.prefixes,
            )
        made.append(hidden[mask])
    assert (made[0] - made[1]).abs().max() < 1e-4 * made[0].abs().max()


def test_text_twin_behaves_as_the_llm_does(pair):
    """The prompt's ids are a chat that the LLM follows."""
    model, prompt = pair
    sentence = "The weather in the mountains changes quickly."
    prefix, suffix = prompt.ids(REPEAT)
    row = Row(prefix, prompt.slot_ids(REPEAT, sentence), suffix)
    [answer] = model.generate([row], max_new_tokens=24)
    assert answer.text == sentence and answer.ended
    question = "Answer the question in one word."
    prefix, suffix = prompt.ids(question)
    slot = prompt.slot_ids(question, "What is the capital of France?")
    [answer] = model.generate([Row(prefix, slot, suffix)], max_new_tokens=24)
    assert "Paris" in answer.text


def test_text_twin_ids_match_on_starter_tokenizers(kit):
    """Byte-level BPE (SmolLM2) and SentencePiece-like (Gemma-3)."""
    from blsp_plugin.llm import load_tokenizer
    from tests.test_prompts import TRANSCRIPTS

    few_shot = "{instruction}\nText: cat\nOut: chat\nText: {speech}\nOut:"
    for folder, options in (
        (kit["llm"], {}),
        (kit["llm"], {"template": few_shot}),
        (starter.gemma3(), {"template": few_shot}),
    ):
        tokenizer = load_tokenizer(folder)
        prompt = Prompt(tokenizer, **options)
        prefix, suffix = prompt.ids(REPEAT)
        before, after = prompt.render(REPEAT)
        for transcript in TRANSCRIPTS:
            slot = prompt.slot_ids(REPEAT, transcript)
            text = before + transcript.strip() + after
            whole = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert [*prefix, *slot, *suffix] == whole, (folder, transcript)
