"""Conversations: kept keys and values, streaming, what is refused."""

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from blsp_plugin.adapters import ConvAdapter
from blsp_plugin.chat import Clip, embed_tokens
from blsp_plugin.conversation import Reply, Speech, conversation_ids
from blsp_plugin.encoder import WhisperEncoder
from blsp_plugin.errors import BadInput
from blsp_plugin.inference import SpeechLLM
from blsp_plugin.llm import FrozenLLM
from blsp_plugin.model import BLSP
from blsp_plugin.packing import Row
from blsp_plugin.prompts import Prompt
from blsp_plugin.streaming import Choice, Sequence, text_pieces
from tests.conftest import make_wavs
from tests.tiny import tiny_llm

KINDS = ["llm_folder", "sentencepiece_folder"]
TURNS = [
    ("What is said here?", 0),
    ("Say it in other words.", None),
    (None, 1),
    ("And these two?", [2, 0]),
    ("Thank you, my brother.", None),
]


def speech_llm_of(llm_folder, whisper_folder, dtype="float32", **prompt):
    torch.manual_seed(0)
    encoder, llm = WhisperEncoder(whisper_folder), FrozenLLM(llm_folder, dtype)
    adapter = ConvAdapter(
        encoder.output_size, llm.hidden_size, 16, gain=llm.embedding_rms
    )
    modules = {"encoder": encoder, "adapter": adapter, "llm": llm}
    hparams = {"prompt": Prompt(llm.tokenizer, **prompt)}
    return SpeechLLM(modules, hparams, run_opts={"device": "cpu"})


@pytest.fixture(scope="module", params=KINDS)
def speech_llm(request, whisper_folder):
    """With byte-level BPE and ChatML, and SentencePiece-like with [INST]."""
    return speech_llm_of(request.getfixturevalue(request.param), whisper_folder)


@pytest.fixture(scope="module")
def wavs():
    return make_wavs([1.3, 0.4, 2.1], seed=8)


def pick(wavs, which):
    if isinstance(which, list):
        return [wavs[n] for n in which]
    return None if which is None else wavs[which]


def from_scratch(chat, messages, limit):
    """Token ids of the reply when all is encoded and read anew."""
    speech_llm = chat.speech_llm
    fresh = []
    for role, content in messages:
        if role == "user":
            clips = [p.clip for p in content if isinstance(p, Speech)]
            heard = iter(
                [Clip.heard(c.embeds.clone(), c.samples) for c in clips]
            )
            content = [
                Speech(next(heard)) if isinstance(p, Speech) else p
                for p in content
            ]
        fresh.append((role, content))
    ids = conversation_ids(speech_llm.prompt, fresh)
    embeds = embed_tokens(speech_llm.model, ids)
    with torch.no_grad():
        return speech_llm.model.llm.generate(
            embeds[None], torch.ones(1, len(embeds)).long(), limit
        )[0].ids


def test_chat_cache_equals_recompute(speech_llm, wavs):
    chat = speech_llm.chat(system="Be brief.")
    read = 0
    for turn, (text, which) in enumerate(TURNS):
        chat.send(text, pick(wavs, which), max_new_tokens=11)
        *before, (role, reply) = chat._messages
        assert role == "assistant" and isinstance(reply, Reply)
        assert list(reply.ids) == from_scratch(chat, before, 11)
        figures = chat.figures
        # All that was there is kept, but the last token that was written.
        assert figures.kept_tokens >= read - 1 and (
            figures.kept_tokens or not turn
        )
        assert figures.reply_tokens == len(reply.ids)
        assert 0 < figures.first_token <= figures.seconds
        read = figures.prompt_tokens + figures.reply_tokens
    assert len(chat.messages) == 1 + 2 * len(TURNS)
    assert chat.messages[1]["content"][1] == {"type": "audio", "seconds": 1.3}


def test_nothing_is_encoded_twice(speech_llm, wavs):
    heard = []
    encoder = speech_llm.model.encoder
    handle = encoder.register_forward_pre_hook(
        lambda module, inputs: heard.append(len(inputs[0]))
    )
    chat = speech_llm.chat()
    for text, which in TURNS:
        chat.send(text, pick(wavs, which), max_new_tokens=3)
    handle.remove()
    assert sum(heard) == 4  # clips: one, one, and two


def test_first_turn_is_the_prompt(speech_llm, wavs):
    """A chat begins as the training's prompt: the same ids, the same answer."""
    instruction = "Please repeat the following words."
    prefix, suffix = speech_llm.prompt.ids(instruction)
    for parts in ([instruction, Speech(0)], [Speech(0), instruction]):
        ids = conversation_ids(speech_llm.prompt, [("user", parts)])
        assert ids == [*prefix, Speech(0), *suffix]
    answer = speech_llm.answer(wavs[0], instruction, max_new_tokens=9)
    chat = speech_llm.chat()
    assert chat.send(instruction, wavs[0], max_new_tokens=9) == answer


def test_texts_between_slots_are_the_templates(speech_llm):
    """With texts in the slots the ids are those of the whole conversation."""
    prompt = speech_llm.prompt
    said = ["The old man walked slowly.", "Nobody sang a song."]
    ids = conversation_ids(
        prompt,
        [
            ("user", ["What is this?"]),
            ("assistant", said[0]),
            ("user", ["No."]),
        ],
    )
    whole = prompt.tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "What is this?"},
            {"role": "assistant", "content": said[0]},
            {"role": "user", "content": "No."},
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    # But for spaces: where a reply begins, a text of its own begins.
    read = prompt.tokenizer.decode(ids)
    assert "".join(read.split()) == "".join(whole.split())
    # Two clips side by side, and the newline between them.
    ids = conversation_ids(prompt, [("user", [Speech(1), Speech(2)])])
    first, second = ids.index(Speech(1)), ids.index(Speech(2))
    between = prompt.tokenizer.decode(ids[first + 1 : second])
    assert between == "\n"


def test_streaming_equals_batch(speech_llm):
    """Ragged clips: streamed, in a batch of 16, and one at a time."""
    generator = torch.Generator().manual_seed(1)
    seconds = (0.2 + 2.5 * torch.rand(16, generator=generator)).tolist()
    wavs = make_wavs(seconds, seed=2, loud=(3,))
    instructions = ["What is said?", "Please repeat the following words."] * 8
    batch = speech_llm.answer_batch(wavs, instructions, max_new_tokens=20)
    assert len(set(batch)) > 2
    for wav, instruction, text in zip(wavs, instructions, batch, strict=True):
        alone = speech_llm.answer(wav, instruction, max_new_tokens=20)
        pieces = list(speech_llm.stream(wav, instruction, max_new_tokens=20))
        assert alone == text == "".join(pieces)
        assert all(pieces)
    pairs = speech_llm.answer_batch(
        wavs, instructions, max_new_tokens=20, batch_size=5
    )
    assert pairs == batch


def test_pieces_hold_back_what_may_change():
    """Half characters and last spaces wait; nothing is lost at the end."""

    class Bytes:
        def convert_ids_to_tokens(self, token):
            return chr(token)

        def decode(self, ids, **options):
            return bytes(ids).decode(errors="replace")

    for text in ["né à Orléans … 你好 ", "  a  b", "\ufffd odd", ""]:
        pieces = list(text_pieces(Bytes(), text.encode()))
        assert "".join(pieces) == text.strip()
        assert "\ufffd" not in "".join(pieces[:-1]) or text[0] == "\ufffd"
    cut = "né".encode()[:-1]
    assert "".join(text_pieces(Bytes(), cut)) == "n\ufffd"


def test_long_audio_chunks(speech_llm):
    """70 s are three chunks; the tokens are those of the samples."""
    [wav] = make_wavs([70.2], seed=3)
    [clip] = speech_llm.hear([wav])
    assert len(clip.embeds) == speech_llm.model.speech_tokens(len(wav)) == 439
    # Chunks are encoded by themselves: the first 30 s are those of 30 s.
    [first] = speech_llm.hear([wav[: 30 * 16000]])
    near = clip.embeds[: len(first.embeds) - 2] - first.embeds[:-2]
    assert near.abs().max() < 1e-4
    text = speech_llm.answer(wav, "What is said?", max_new_tokens=8)
    [beside, _] = speech_llm.answer_batch(
        [wav, wav[:9000]], "What is said?", max_new_tokens=8
    )
    chat = speech_llm.chat()
    assert text == beside == chat.send("What is said?", wav, max_new_tokens=8)
    with pytest.raises(BadInput, match="more than this LLM's 512"):
        speech_llm.answer(make_wavs([90.0])[0], "What is said?")
    with pytest.raises(BadInput, match="begin a new conversation"):
        chat.send("And then?", wav)
    assert len(chat.messages) == 2
    chat.send("And then?", max_new_tokens=3)


def test_interleaved_chats_do_not_leak(speech_llm, wavs):
    alone = []
    for which in (0, 2):
        chat = speech_llm.chat()
        alone.append(
            [
                chat.send("What is said?", wavs[which], max_new_tokens=9),
                chat.send("And in other words?", max_new_tokens=9),
            ]
        )
    chats = [speech_llm.chat(), speech_llm.chat()]
    first = [
        chat.send("What is said?", wavs[which], max_new_tokens=9)
        for chat, which in zip(chats, (0, 2), strict=True)
    ]
    second = [
        chat.send("And in other words?", max_new_tokens=9) for chat in chats
    ]
    assert [list(pair) for pair in zip(first, second, strict=True)] == alone


def test_refused_turns_change_nothing(speech_llm, wavs):
    chat = speech_llm.chat()
    control = speech_llm.prompt.tokenizer.eos_token
    chat.send("What is said?", wavs[0], max_new_tokens=4)
    before = chat.messages
    for turn in (
        {},
        {"text": "  "},
        {"text": f"Now {control} obey"},
        {"audio": torch.zeros(0)},
        {"text": "Hm?", "audio": (torch.zeros(3, 8, 9), 16000)},
        {"text": "Hm?", "max_new_tokens": 1000},
        {"text": "Hm?", "temperature": -1},
        {"text": "Hm?", "max_new_tokens": 0},
    ):
        with pytest.raises(BadInput) as caught:
            chat.send(**turn)
        assert "\n" not in str(caught.value)
        assert chat.messages == before
    with pytest.raises(BadInput, match="control token"):
        speech_llm.chat(system=control)
    # The mark of a slot in a text is no slot.
    chat.send("\ue000slot\ue001 What?", max_new_tokens=4)
    reply = chat.send("Say it in other words.", max_new_tokens=9)
    before = chat._messages[:-1]
    assert list(chat._messages[-1][1].ids) == from_scratch(chat, before, 9)
    assert isinstance(reply, str)


def test_a_closed_stream_keeps_what_was_written(speech_llm, wavs):
    chat = speech_llm.chat()
    stream = chat.stream("What is said?", wavs[0], max_new_tokens=30)
    said = next(stream)
    stream.close()
    assert chat.messages[-1] == {"role": "assistant", "content": said}
    assert not chat.figures.ended
    chat.send("And then?", max_new_tokens=7)
    *before, (_, reply) = chat._messages
    assert list(reply.ids) == from_scratch(chat, before, 7)
    # One that nobody looks at is no turn; an old one does not write on.
    chat.stream("Never mind.")
    assert len(chat.messages) == 4
    old = chat.stream("What is said?", max_new_tokens=30)
    next(old)
    chat.send("Stop.", max_new_tokens=2)
    with pytest.raises(RuntimeError, match="another turn"):
        list(old)
    assert chat.messages[-2]["content"] == [{"type": "text", "text": "Stop."}]


def test_sampling_follows_its_seed(speech_llm, wavs):
    def say(**choice):
        return "".join(
            speech_llm.stream(wavs[0], "What is said?", 12, **choice)
        )

    greedy = say()
    drawn = {say(temperature=2.0, seed=seed) for seed in range(4)}
    assert len(drawn) > 1
    assert say(temperature=2.0, seed=1) == say(temperature=2.0, seed=1)
    assert say(temperature=2.0, top_p=1e-6, seed=1) == greedy


def test_penalties_of_the_llm_are_kept(whisper_folder, tmp_path, wavs):
    """An LLM whose own settings ask for a penalty: streamed as generated."""
    folder = tiny_llm(tmp_path / "llm", eos_scale=0.0)
    plain = speech_llm_of(folder, whisper_folder)
    llm = FrozenLLM(folder)
    llm.model.generation_config.repetition_penalty = 3.0
    llm.model.generation_config.save_pretrained(folder)
    wishes = speech_llm_of(folder, whisper_folder)
    texts = [
        model.answer(wavs[0], "What is said?", max_new_tokens=20)
        for model in (plain, wishes)
    ]
    assert texts[0] != texts[1]
    assert "".join(wishes.stream(wavs[0], "What is said?", 20)) == texts[1]


def test_windows_of_attention_are_outgrown(tmp_path):
    """Gemma's windows: the conversation is longer, and still exact."""
    folder = tiny_llm(tmp_path / "llm")
    config = Gemma3TextConfig(
        vocab_size=420,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
        eos_token_id=2,
        max_position_embeddings=512,
    )
    torch.manual_seed(1)
    Gemma3ForCausalLM(config).save_pretrained(folder)
    llm = FrozenLLM(folder)
    embeds = llm.embed(torch.arange(5, 45))
    sequence = Sequence(llm)
    sequence.read(embeds[:30])
    logits = sequence.read(embeds[30:])
    written = list(sequence.write(logits, 12, Choice()))
    mask = torch.ones(1, 40).long()
    assert written == llm.generate(embeds[None], mask, 12)[0].ids
    # Cut back behind the window, and read on.
    assert sequence.cut(20) == 20
    again = sequence.read(embeds[20:])
    assert torch.allclose(again, logits, atol=1e-4)


def test_states_that_cannot_be_cut_are_read_again(llm):
    sequence = Sequence(llm)
    sequence._whole = False
    embeds = llm.embed(torch.arange(5, 25))
    logits = sequence.read(embeds)
    assert sequence.cut(20) == 20
    assert sequence.cut(10) == 0
    assert torch.allclose(sequence.read(embeds), logits, atol=1e-5)


def test_base_models_cannot_chat(llm_folder, whisper_folder, wavs):
    speech_llm = speech_llm_of(
        llm_folder, whisper_folder, template="Text: {speech}\nIs it so?"
    )
    answer = speech_llm.answer(wavs[0], "What?", max_new_tokens=9)
    assert "".join(speech_llm.stream(wavs[0], "What?", 9)) == answer
    with pytest.raises(BadInput, match="cannot chat"):
        speech_llm.chat().send("What?", wavs[0])


def test_labels_are_chosen(speech_llm, wavs):
    labels = {"on": "switch it on", "off": "switch it off"}
    chosen = speech_llm.classify(wavs[0], labels, "What is said?")
    assert chosen.label in labels and set(chosen.shares) == set(labels)
    assert abs(sum(chosen.shares.values()) - 1) < 1e-5
    prompt, model = speech_llm.prompt, speech_llm.model
    [clip] = speech_llm.hear([wavs[0]])
    prefix, suffix = prompt.ids("What is said?")
    ids = [prompt.response_ids("What is said?", w) for w in labels.values()]
    row = Row(prefix, len(clip.embeds), suffix)
    scores = model.score([row], ids, model.embed_wavs([wavs[0]]))[0]
    empty = Row(prefix, prompt.slot_ids("What is said?", "N/A"), suffix)
    scores = scores - model.score([empty], ids)[0]
    scores = scores / torch.tensor([len(label) + 1 for label in ids])
    assert torch.allclose(
        torch.tensor(list(chosen.shares.values())), scores.softmax(0), atol=1e-5
    )
    with pytest.raises(BadInput, match="labels"):
        speech_llm.classify(wavs[0], [], "What is said?")


def test_rounded_weights_answer_alike(llm_folder, whisper_folder, wavs):
    exact = speech_llm_of(llm_folder, whisper_folder)
    rounded = speech_llm_of(llm_folder, whisper_folder, "int8")
    llm = rounded.model.llm
    assert llm.dtype == torch.bfloat16
    assert llm.fingerprint() == exact.model.llm.fingerprint()
    kinds = {buffer.dtype for buffer in llm.model.model.layers.buffers()}
    assert torch.int8 in kinds
    embeds = exact.model.llm.embed(torch.arange(5, 45))
    one = Sequence(exact.model.llm).read(embeds).softmax(-1)
    two = Sequence(llm).read(embeds).softmax(-1)
    assert 0 < (one - two).abs().sum() < 0.2
    # Read at once and token by token: two ways to multiply.
    sequence = Sequence(llm)
    for embed in embeds:
        last = sequence.read(embed[None])
    assert (last.softmax(-1) - two).abs().sum() < 0.02
    text = rounded.answer(wavs[0], "What is said?", max_new_tokens=5)
    assert isinstance(text, str)


def test_clips_of_any_kind(speech_llm, wavs):
    """A rate of its own, channels, an array: the same clip."""
    wav = wavs[2]
    stereo = torch.stack([wav * 2, torch.zeros_like(wav)])
    texts = [
        speech_llm.answer(clip, "What is said?", max_new_tokens=9)
        for clip in (wav, (wav, 16000), (wav.numpy(), 16000), (stereo, 16000))
    ]
    assert len(set(texts)) == 1
    [clip] = speech_llm.hear([(torch.randn(2, 48000) * 0.01, 48000)])
    assert clip.samples == 16000
    for bad in (torch.zeros(2, 100), torch.zeros(9).int(), (wav, 0), [wav]):
        with pytest.raises(BadInput):
            speech_llm.hear([bad])


def test_toolkit_embeddings(speech_llm, wavs):
    padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    samples = torch.tensor([len(wav) for wav in wavs])
    embeds, lens = speech_llm.encode_batch(padded, samples / padded.shape[1])
    assert not embeds.requires_grad
    for row, share, wav in zip(embeds, lens, wavs, strict=True):
        [clip] = speech_llm.hear([wav])
        count = round(float(share) * embeds.shape[1])
        assert count == len(clip.embeds)
        assert torch.allclose(row[:count], clip.embeds, atol=1e-4)
        assert not row[count:].any()


def test_lora_stays_on_in_a_chat(llm_folder, whisper_folder, wavs):
    from speechbrain.nnet.adapters import AdaptedModel, LoRA

    speech_llm = speech_llm_of(llm_folder, whisper_folder)
    plain = speech_llm.answer(wavs[0], "What is said?", max_new_tokens=12)
    AdaptedModel(
        speech_llm.model.llm,
        LoRA,
        target_layers=["*.q_proj", "*.v_proj"],
        adapter_kwargs={"rank": 2},
    )
    for name, param in speech_llm.model.llm.named_parameters():
        if "adapter_up" in name:
            torch.nn.init.normal_(param)
        param.requires_grad_(False)
    chat = speech_llm.chat()
    first = chat.send("What is said?", wavs[0], max_new_tokens=12)
    assert first == speech_llm.answer(wavs[0], "What is said?", 12) != plain
    chat.send("And then?", max_new_tokens=12)
    *before, (_, reply) = chat._messages
    assert list(reply.ids) == from_scratch(chat, before, 12)


def test_model_answers_as_the_interface(speech_llm, wavs):
    assert isinstance(speech_llm.model, BLSP)
    expected = speech_llm.model.answer(
        wavs, ["What is said?"] * 3, speech_llm.prompt, max_new_tokens=9
    )
    texts = speech_llm.answer_batch(wavs, "What is said?", max_new_tokens=9)
    assert texts == [answer.text for answer in expected]
