"""The export to transformers: the same ids, logits and texts as ours."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from speechbrain.nnet.adapters import AdaptedModel, LoRA
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
)

from blsp_plugin import starter
from blsp_plugin.adapters import (
    CFormerAdapter,
    ConcatMLPAdapter,
    ConvAdapter,
    CTCAdapter,
    SpelledCTCAdapter,
)
from blsp_plugin.encoder import WhisperEncoder
from blsp_plugin.errors import BadInput
from blsp_plugin.huggingface import (
    BLSPForConditionalGeneration,
    export_to_transformers,
)
from blsp_plugin.huggingface.configuration import build_adapter
from blsp_plugin.llm import FrozenLLM
from blsp_plugin.model import BLSP
from blsp_plugin.packing import Row, pack
from blsp_plugin.pretrained import native_precision
from blsp_plugin.prompts import Prompt
from tests.conftest import make_wavs

INSTRUCTIONS = [
    "Please repeat the following words.",
    "What is said?",
    "Continue the following text in a coherent and engaging style.",
]
ADAPTERS = {
    "conv": (ConvAdapter, {"bottleneck": 16}),
    "mlp": (ConcatMLPAdapter, {"hidden_size": 24, "stride": 6}),
    "cformer": (CFormerAdapter, {"layers": (1, 1), "heads": 4}),
    "ctc": (CTCAdapter, {"layers": 1}),
    "spelled": (SpelledCTCAdapter, {"layers": 1, "vector_size": 24}),
}
LLMS = ["llm_folder", "sentencepiece_folder"]


def build(encoder, llm, adapter="conv"):
    """A model with an adapter that answers otherwise to each clip."""
    torch.manual_seed(0)
    kind, arguments = ADAPTERS[adapter]
    if not issubclass(kind, CTCAdapter):  # whose scale is the LLM's own
        arguments = {"gain": llm.embedding_rms, **arguments}
    if kind is SpelledCTCAdapter:
        size = llm.vocabulary_size
        arguments = {"vocabulary_size": size, **arguments}
    adapter = kind(encoder.output_size, llm.hidden_size, **arguments)
    if kind is CFormerAdapter:  # its weights start alike for all frames
        torch.nn.init.normal_(adapter.weight.weight, std=0.3)
    return BLSP(encoder, adapter, llm).eval()


def reload(folder):
    """Processor and model as a user opens them."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    # Mapped from the file, weights lie at odd addresses, and some CPUs' matrix
    # products round by that: not what the comparisons here are about.
    for param in model.parameters():
        param.data = param.data.clone()
    return processor, model


def inputs_for(processor, wavs, instructions, **kwargs):
    texts = [processor.prompt(instruction) for instruction in instructions]
    return processor(
        text=texts,
        audio=wavs,
        sampling_rate=16000,
        return_tensors="pt",
        **kwargs,
    )


@torch.no_grad()
def our_logits(model, rows, speech, side="left"):
    """Logits of whole prompts, and which of them are of valid tokens."""
    packed = pack(rows, 0, model.llm.eos_id, side)
    hidden = model.llm.hidden(
        model.inputs_embeds(packed, speech),
        packed.attention_mask,
        packed.position_ids,
    )
    return model.llm.project(hidden), packed


def assert_same(model, prompt, processor, exported, wavs, limit=1e-5):
    """Ids, logits on both sides of the padding, and greedy texts."""
    assert_same_logits(model, prompt, processor, exported, wavs, limit)
    return assert_same_texts(model, prompt, processor, exported, wavs)


def assert_same_logits(model, prompt, processor, exported, wavs, limit):
    instructions = [INSTRUCTIONS[i % 3] for i in range(len(wavs))]
    speech = model.embed_wavs(wavs)
    rows = []
    for instruction, length in zip(
        instructions, speech.lengths.tolist(), strict=True
    ):
        prefix, suffix = prompt.ids(instruction)
        rows.append(Row(prefix, length, suffix))
    for side in ("left", "right"):
        inputs = inputs_for(processor, wavs, instructions, padding_side=side)
        features = (inputs["input_features"], inputs["feature_lengths"])
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if model.adapter.counts_transcript:
            assert int((ids == processor.audio_token_id).sum()) == len(wavs)
            lengths = exported.get_audio_features(*features).lengths
            ids, mask = exported.expand_audio_tokens(ids, mask, lengths)
        expected, packed = our_logits(model, rows, speech, side)
        assert torch.equal(mask, packed.attention_mask)
        ours = packed.input_ids.masked_fill(
            packed.slot_mask, processor.audio_token_id
        )
        valid = mask.bool()
        assert torch.equal(ids[valid], ours[valid])
        with torch.no_grad():
            logits = exported(ids, *features, attention_mask=mask).logits
        assert (logits - expected)[valid].abs().max() <= limit


def assert_same_texts(model, prompt, processor, exported, wavs):
    instructions = [INSTRUCTIONS[i % 3] for i in range(len(wavs))]
    answers = model.answer(wavs, instructions, prompt, max_new_tokens=12)
    inputs = inputs_for(processor, wavs, instructions)
    sequences = exported.generate(**inputs, max_new_tokens=12)
    prompts = inputs["input_ids"]
    assert torch.equal(sequences[:, : prompts.shape[1]], prompts)
    texts = processor.batch_decode(
        sequences[:, prompts.shape[1] :], skip_special_tokens=True
    )
    expected = [answer.text for answer in answers]
    assert [text.strip() for text in texts] == expected
    return expected


@pytest.fixture(scope="module")
def exported(tmp_path_factory, encoder, llm, prompt):
    """A model of ours, its export's folder, and what is opened from there."""
    model = build(encoder, llm)
    folder = str(tmp_path_factory.mktemp("export"))
    export_to_transformers(model, prompt, folder)
    return (model, folder, *reload(folder))


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("llm_fixture", LLMS)
def test_hf_export_matches(request, encoder, tmp_path, llm_fixture, adapter):
    """Export, open in fresh objects: bit-equal in float32."""
    llm = FrozenLLM(request.getfixturevalue(llm_fixture))
    model, prompt = build(encoder, llm, adapter), Prompt(llm.tokenizer)
    export_to_transformers(model, prompt, tmp_path)
    processor, exported = reload(tmp_path)
    assert type(exported) is BLSPForConditionalGeneration
    wavs = make_wavs([1.0, 0.3, 2.2, 2.1], loud=(1,))
    texts = assert_same(model, prompt, processor, exported, wavs, limit=0)
    assert len(set(texts)) > 2  # the clips are heard
    # The vocabulary is the LLM's own.
    table = exported.get_input_embeddings().weight
    assert torch.equal(table, llm.embedding.weight)
    assert processor.audio_token_id >= len(table)
    assert len(processor.tokenizer) == len(llm.tokenizer) + 1


def test_long_clips_and_30_seconds(llm, prompt, whisper_folder, tmp_path):
    wavs = make_wavs([31.3, 0.5])
    for pad_to_30s in (False, True):
        encoder = WhisperEncoder(whisper_folder, pad_to_30s=pad_to_30s)
        model = build(encoder, llm)
        export_to_transformers(model, prompt, tmp_path)  # over the earlier one
        processor, exported = reload(tmp_path)
        assert exported.encoder.pad_to_30s == pad_to_30s
        assert_same(model, prompt, processor, exported, wavs)


@pytest.mark.parametrize("llm_fixture", LLMS)
@pytest.mark.parametrize(
    "options",
    [
        {"content": '{speech}\n\n{instruction} "Now!"'},
        {"content": "{instruction}{speech}"},
        {"content": "Text: {speech}"},
        {"system": "Be 'brief'.\nAlways."},
        {"template": "{instruction}\nIn: cat\nOut: chat\nIn: {speech}\nOut:"},
        {"chat_options": {"mood": "it's so", "flag": False}},
    ],
)
def test_ids_are_those_of_any_prompt(
    request, encoder, tmp_path, llm_fixture, options
):
    llm = FrozenLLM(request.getfixturevalue(llm_fixture))
    if "chat_options" in options:
        # The LLM's template is at a line's start, as it is alone.
        llm.tokenizer.chat_template = (
            "  {% if flag %}\nyes{% else %}\n\nno{% endif %}{{ mood }} "
            + llm.tokenizer.chat_template
        )
    model, prompt = build(encoder, llm), Prompt(llm.tokenizer, **options)
    export_to_transformers(model, prompt, tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    asks = "{instruction}" in str(options) or "content" not in options
    [wav] = make_wavs([0.4])
    instruction = "What is said, {speech}?"
    text = processor.prompt(instruction if asks else None)
    ids = processor(text=text, audio=wav)["input_ids"]
    prefix, suffix = prompt.ids(instruction)
    slot = [processor.audio_token_id] * model.speech_tokens(len(wav))
    assert ids == [[*prefix, *slot, *suffix]]


@pytest.mark.parametrize("llm_fixture", LLMS)
def test_chat_messages(request, encoder, tmp_path, llm_fixture):
    """transformers' convention, in a batch, and with other turns before."""
    llm = FrozenLLM(request.getfixturevalue(llm_fixture))
    model, prompt = build(encoder, llm), Prompt(llm.tokenizer)
    export_to_transformers(model, prompt, tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    [wav] = make_wavs([0.7])
    audio = {"type": "audio", "audio": wav.numpy()}
    text = {"type": "text", "text": INSTRUCTIONS[0]}
    prefix, suffix = prompt.ids(INSTRUCTIONS[0])
    slot = [processor.audio_token_id] * model.speech_tokens(len(wav))
    for parts in ([text, audio], [audio, text]):
        inputs = processor.apply_chat_template(
            [[{"role": "user", "content": parts}]] * 2,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        assert inputs["input_ids"].tolist() == [[*prefix, *slot, *suffix]] * 2
        mels = inputs["input_features"]
        assert torch.equal(mels, model.encoder.mel(wav).expand(2, -1, -1))
    turns = [
        {"role": "user", "content": "Hello there."},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes?"}]},
        {"role": "user", "content": [text, audio, text]},
    ]
    said = f"{INSTRUCTIONS[0]}\n<|audio|>\n{INSTRUCTIONS[0]}"
    strings = [
        turns[0],
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": said},
    ]
    assert processor.apply_chat_template(
        turns, add_generation_prompt=True
    ) == llm.tokenizer.apply_chat_template(
        strings, add_generation_prompt=True, tokenize=False
    )
    with pytest.raises(Exception, match="text and audio only"):
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}]}]
        )


@pytest.mark.parametrize("llm_fixture", LLMS)
def test_two_clips_in_one_prompt(request, encoder, tmp_path, llm_fixture):
    llm = FrozenLLM(request.getfixturevalue(llm_fixture))
    model, prompt = build(encoder, llm), Prompt(llm.tokenizer)
    export_to_transformers(model, prompt, tmp_path)
    processor, exported = reload(tmp_path)
    audio, wavs = processor.audio_token, make_wavs([0.9, 1.4, 0.5])
    between = ", and not the other one: "
    texts = [f"Say {audio}{between}{audio} again.", f"Say {audio}!"]
    inputs = processor(text=texts, audio=wavs, return_tensors="pt")
    counts = [model.speech_tokens(len(wav)) for wav in wavs]
    is_audio = inputs["input_ids"] == processor.audio_token_id
    assert is_audio.sum(1).tolist() == [sum(counts[:2]), counts[2]]
    # Between the clips stand the ids that stand between two words.
    ids = inputs["input_ids"][0].tolist()
    middle = [i for i, slot in enumerate(is_audio[0]) if slot][counts[0]]
    start = middle - next(
        n for n in range(1, 99) if is_audio[0][middle - n - 1]
    )
    piece = ids[start:middle]
    for word in ("red", "Hello there"):
        whole = llm.tokenizer(
            f"Say {word}{between}{word} again.", add_special_tokens=False
        )["input_ids"]
        places = [
            i for i in range(len(whole)) if whole[i : i + len(piece)] == piece
        ]
        assert len(places) == 1
    assert "not the other one" in llm.tokenizer.decode(piece)
    # Each row as it is when its speech is put there by hand.
    speech = model.embed_wavs(wavs)
    clips = [speech.embeds[i, :n] for i, n in enumerate(counts)]
    for row, of_row in enumerate(([0, 1], [2])):
        valid = inputs["attention_mask"][row].bool()
        slots = is_audio[row][valid]
        embeds = llm.embed(
            inputs["input_ids"][row][valid].masked_fill(slots, 0)
        ).clone()
        embeds[slots] = torch.cat([clips[i] for i in of_row])
        time = torch.arange(len(embeds)).unsqueeze(0)
        hidden = llm.hidden(embeds[None], torch.ones_like(time), time)
        with torch.no_grad():
            logits = exported(**inputs).logits[row][valid]
        assert (logits - llm.project(hidden)[0]).abs().max() < 1e-4
    # Beams are rows of their own; the clips stay with their prompts.
    beams = exported.generate(
        **inputs, max_new_tokens=5, num_beams=2, num_return_sequences=2
    )
    width = inputs["input_ids"].shape[1]
    assert torch.equal(
        beams[:, :width], inputs["input_ids"].repeat_interleave(2, dim=0)
    )
    alone = processor(text=texts[1], audio=wavs[2:], return_tensors="pt")
    best = exported.generate(**alone, max_new_tokens=5, num_beams=2)
    best = best[0, alone["input_ids"].shape[1] :].tolist()
    assert beams[2, width:][: len(best)].tolist() == best


def test_steps_with_a_cache_and_a_loss(exported):
    """The clips are needed in the first step only."""
    _, _, processor, hf_model = exported
    wavs = make_wavs([1.1, 0.4])
    inputs = inputs_for(processor, wavs, INSTRUCTIONS[:2])
    sequences = hf_model.generate(
        **inputs,
        max_new_tokens=6,
        output_logits=True,
        return_dict_in_generate=True,
    )
    with torch.no_grad():
        out = hf_model(**inputs, use_cache=True)
        mask = inputs["attention_mask"]
        for step, expected in enumerate(sequences.logits):
            assert (out.logits[:, -1] - expected).abs().max() < 1e-4
            width = inputs["input_ids"].shape[1] + step
            token = sequences.sequences[:, width : width + 1]
            mask = torch.cat([mask, torch.ones_like(token)], dim=1)
            out = hf_model(
                token, attention_mask=mask, past_key_values=out.past_key_values
            )
        labels = inputs["input_ids"].clone()
        labels[:, :-4] = -100
        out = hf_model(**inputs, labels=labels)
    loss = torch.nn.functional.cross_entropy(
        out.logits[:, -5:-1].flatten(0, 1), labels[:, -4:].flatten()
    )
    assert abs(loss - out.loss) < 1e-5


def test_text_alone_is_answered(exported):
    model, _, processor, hf_model = exported
    text = "Hello there, how are you?"
    inputs = processor(text=text, return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"}
    expected = model.llm.model.generate(
        inputs["input_ids"], max_new_tokens=8, do_sample=False, pad_token_id=2
    )
    assert torch.equal(hf_model.generate(**inputs, max_new_tokens=8), expected)


def test_the_adapter_learns_and_nothing_hears_it(exported, tmp_path):
    """Gradients reach the adapter; the encoder stays as it was."""
    _, folder, processor, _ = exported
    hf_model = BLSPForConditionalGeneration.from_pretrained(folder).train()
    inputs = inputs_for(processor, make_wavs([0.6]), INSTRUCTIONS[:1])
    hf_model(**inputs, labels=inputs["attention_mask"]).loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in hf_model.adapter.parameters())
    assert all(p.grad is None for p in hf_model.encoder.parameters())
    assert not any(m.training for m in hf_model.encoder.modules())


@pytest.mark.parametrize("part", ["llm", "encoder"])
def test_lora_is_merged(llm_folder, whisper_folder, tmp_path, part):
    model = build(WhisperEncoder(whisper_folder), FrozenLLM(llm_folder))
    prompt = Prompt(model.llm.tokenizer)
    wavs = make_wavs([1.0, 0.4])
    before = model.embed_wavs(wavs).embeds
    target = {"llm": model.llm.model, "encoder": model.encoder}[part]
    options = {"adapter_kwargs": {"rank": 4, "alpha": 8}}
    AdaptedModel(target, LoRA, target_layers=["*.?_proj"], **options)
    for name, param in target.named_parameters():
        if "adapter_" in name:
            torch.nn.init.normal_(param, std=0.3)
    changed = (model.embed_wavs(wavs).embeds - before).abs().max() > 1e-2
    assert changed == (part == "encoder")
    export_to_transformers(model, prompt, tmp_path)
    processor, exported = reload(tmp_path)
    assert_same(model, prompt, processor, exported, wavs, limit=1e-4)
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        assert not [name for name in weights.keys() if "pretrained" in name]


def test_lora_elsewhere_is_refused(llm_folder, whisper_folder, tmp_path):
    def refused(part, layer):
        model = build(WhisperEncoder(whisper_folder), FrozenLLM(llm_folder))
        llm = model.llm.model
        # Tied: with LoRA, two weights would have to be one.
        llm.lm_head.weight = llm.model.embed_tokens.weight
        target = {"llm": llm, "encoder": model.encoder}[part]
        AdaptedModel(target, LoRA, target_layers=[layer])
        with pytest.raises(BadInput, match="LoRA can be merged"):
            export_to_transformers(model, Prompt(model.llm.tokenizer), tmp_path)
        assert not os.listdir(tmp_path)

    refused("llm", "lm_head")
    refused("encoder", "*.conv2")


def test_tied_embeddings_and_dtypes_are_kept(llm_folder, encoder, tmp_path):
    """A bfloat16 LLM whose head is its table, an adapter in float32."""
    source = tmp_path / "llm"
    published = AutoModelForCausalLM.from_pretrained(llm_folder)
    published.config.tie_word_embeddings = True
    published.tie_weights()
    published.save_pretrained(source)
    AutoTokenizer.from_pretrained(llm_folder).save_pretrained(source)
    model = build(encoder, FrozenLLM(source, dtype="bfloat16"))
    prompt = Prompt(model.llm.tokenizer)
    export_to_transformers(model, prompt, tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    with safe_open(path, "pt") as weights:
        stored = {name: weights.get_tensor(name) for name in weights.keys()}
    assert "language_model.lm_head.weight" not in stored
    processor, exported = reload(tmp_path / "out")
    for name, param in [*exported.named_parameters(), *stored.items()]:
        inside = name.startswith("language_model.")
        assert param.dtype == (torch.bfloat16 if inside else torch.float32)
    llm = exported.language_model
    assert llm.lm_head.weight is llm.model.embed_tokens.weight
    assert exported.dtype == torch.bfloat16
    assert_same(model, prompt, processor, exported, make_wavs([1, 0.3]), 0)


@pytest.mark.parametrize("family", ["mixtral", "gpt2"])
def test_other_families_of_llms(llm_folder, encoder, tmp_path, family):
    """Experts whose weights are stored otherwise; absolute positions, tied."""
    config = AutoConfig.for_model(
        family,
        vocab_size=400,
        initializer_range=0.3,
        num_attention_heads=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        hidden_size=32,
        num_hidden_layers=2,
        num_key_value_heads=2,
        num_local_experts=3,
    )
    source = tmp_path / "llm"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(source)
    AutoTokenizer.from_pretrained(llm_folder).save_pretrained(source)
    model = build(encoder, FrozenLLM(source))
    prompt = Prompt(model.llm.tokenizer)
    export_to_transformers(model, prompt, tmp_path / "out")
    processor, exported = reload(tmp_path / "out")
    assert_same(model, prompt, processor, exported, make_wavs([1.0, 0.3]))


def test_bad_input_is_one_line(exported):
    _, _, processor, hf_model = exported
    text, [wav] = processor.prompt("Hello."), make_wavs([0.5])
    silent = torch.zeros(0)
    broken = wav.clone()
    broken[7] = float("nan")
    for audio, says, kwargs in (
        ([wav, wav], "total number of", {}),
        (None, "no audio inputs", {}),
        (wav, "sampling_rate 8000", {"sampling_rate": 8000}),
        ([silent], "clip 0", {}),
        ([broken], "clip 0", {}),
        (torch.zeros(2, 100), "clip 0", {}),
        (wav, "cannot be cut", {"truncation": True, "max_length": 9}),
    ):
        with pytest.raises(ValueError, match=says) as caught:
            processor(text=text, audio=audio, **kwargs)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="total number of"):
        processor(text="No slot.", audio=wav)
    inputs = processor(text=text, audio=wav, return_tensors="pt")
    short = {**inputs, "input_ids": inputs["input_ids"][:, 4:]}
    short["input_ids"][:, 2] = processor.audio_token_id
    for call in (hf_model, hf_model.generate):
        with pytest.raises(ValueError, match="audio tokens in input_ids"):
            call(input_ids=short["input_ids"])
        short.pop("attention_mask", None)
        with pytest.raises(ValueError, match="audio tokens in input_ids"):
            call(**short)
    batch = inputs_for(
        processor, [wav, wav], INSTRUCTIONS[:2], padding_side="right"
    )
    with pytest.raises(ValueError, match='padding_side="left"'):
        hf_model.generate(**batch)


def test_a_counting_adapter_needs_its_clips(encoder, llm, prompt, tmp_path):
    model = build(encoder, llm, "cformer")
    export_to_transformers(model, prompt, tmp_path)
    processor, exported = reload(tmp_path)
    inputs = inputs_for(processor, make_wavs([1.5]), INSTRUCTIONS[:1])
    with pytest.raises(ValueError, match="expand_audio_tokens"):
        exported(**inputs)
    with pytest.raises(ValueError, match="1 audio tokens in input_ids for 2"):
        exported.expand_audio_tokens(
            inputs["input_ids"], None, torch.tensor([2, 3])
        )


def test_what_cannot_be_exported(model, prompt, tmp_path, llm_folder):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(BadInput, match="is a file"):
        export_to_transformers(model, prompt, path)
    with pytest.raises(BadInput, match="a token of this LLM already"):
        export_to_transformers(model, prompt, tmp_path, "<|im_end|>")
    filters = model.encoder.mel.filters
    try:
        model.encoder.mel.filters = filters * 2
        with pytest.raises(BadInput, match="mel filters"):
            export_to_transformers(model, prompt, tmp_path)
    finally:
        model.encoder.mel.filters = filters

    class OwnAdapter(ConvAdapter):
        pass

    model.adapter = OwnAdapter(32, 32)
    with pytest.raises(BadInput, match="OwnAdapter: not one of"):
        export_to_transformers(model, prompt, tmp_path)
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(BadInput, match="'Linear': not one of"):
        build_adapter("Linear", {})


def test_the_folder(exported, prompt, llm_folder, whisper_folder):
    """Plain JSON, without a trace of this disk; ours is left as it was."""
    model, folder, processor, hf_model = exported
    names = set(os.listdir(folder))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert {"generation_config.json", "processor_config.json"} <= names
    for name in names - {"model.safetensors"}:
        with open(os.path.join(folder, name), encoding="utf-8") as stream:
            text = stream.read()
        assert llm_folder not in text and whisper_folder not in text
    with open(os.path.join(folder, "config.json")) as stream:
        config = json.load(stream)
    assert config["model_type"] == "blsp"
    assert config["adapter"] == "ConvAdapter"
    assert config["prompt"]["content"] == prompt.content
    assert "<|audio|>" not in prompt.tokenizer.get_vocab()
    assert prompt.tokenizer.padding_side == "right"
    # Saved by transformers, opened again: the same.
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    [wav] = make_wavs([0.4])
    features = extractor(np.asarray(wav), sampling_rate=16000)
    assert torch.equal(features["input_features"][0], model.encoder.mel(wav))


def test_saved_by_transformers_again(exported, prompt, tmp_path):
    model, _, processor, hf_model = exported
    hf_model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    wavs = make_wavs([0.8, 0.3])
    assert_same(model, prompt, *reload(tmp_path), wavs, limit=0)


def test_export_of_the_starter_pair(tmp_path):
    """Whisper-tiny.en with SmolLM2 and with Gemma-3, on real speech."""
    from blsp_plugin.data.audio import read_speech

    try:
        whisper, corpus = starter.whisper_tiny_en(), starter.corpus()
        llms = [starter.smollm2(), starter.gemma3()]
    except BadInput as error:
        pytest.skip(f"no starter kit here: {error}")
    clips = sorted(
        os.path.join(root, name)
        for root, _, names in os.walk(corpus)
        for name in names
        if name.endswith((".flac", ".wav"))
    )
    wavs = [read_speech(path) for path in clips[:300:150]]
    encoder = WhisperEncoder(whisper)
    dtypes = "float32", native_precision("bfloat16")
    for source, dtype in zip(llms, dtypes, strict=True):
        llm = FrozenLLM(source, dtype=dtype)
        torch.manual_seed(1)
        adapter = ConvAdapter(
            encoder.output_size, llm.hidden_size, gain=llm.embedding_rms
        )
        model = BLSP(encoder, adapter, llm)
        plain = "{instruction}\n{speech}\nSo,"  # Gemma-3 is a base model
        template = None if llm.tokenizer.chat_template else plain
        prompt = Prompt(llm.tokenizer, template=template)
        folder = tmp_path / "export"
        export_to_transformers(model, prompt, folder)
        processor, exported = reload(folder)
        shutil.rmtree(folder)  # half a gigabyte
        assert_same_logits(model, prompt, processor, exported, wavs, 1e-5)
        if dtype == "float32":
            assert_same_texts(model, prompt, processor, exported, wavs)
