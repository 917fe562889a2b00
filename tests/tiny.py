"""Tiny random models and a tiny corpus, made at test time.

Nothing here knows anything: the models are random, the clips are tones. They
have the true file formats, tokenizer kinds and shapes, and run in
milliseconds. Behaviour is claimed on the starter kit's real models only.

Authors
 * The blsp_plugin team 2026
"""

import csv
import itertools
import os
from types import SimpleNamespace

import numpy as np
import soundfile
import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

__all__ = [
    "SENTENCES",
    "tiny_corpus",
    "tiny_llm",
    "tiny_sentencepiece_llm",
    "tiny_whisper",
]

SENTENCES = [
    f"{who} {what} {where}."
    for who, what, where in itertools.product(
        ["The old man", "A young girl", "My brother", "Nobody", "Mr. Smith"],
        ["walked slowly", "found a letter", "was sleeping", "sang a song"],
        ["in the garden", "by the sea", "before noon", "at the station"],
    )
]
_INSTRUCTIONS = [
    "Continue the following text in a coherent and engaging style with less "
    "than 40 words.",
    "Please repeat the following words.",
]
_TEXTS = SENTENCES + _INSTRUCTIONS * 4 + ["It's 7 o'clock, isn't it? No!"]
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + (system if loop.first else '') + message['content']"
    " + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + ' '"
    " + eos_token }}{% endif %}{% endfor %}"
)


def tiny_llm(folder, seed=0, eos_scale=2.0, vocab_size=400):
    """Save a random Llama with a byte-level BPE tokenizer and ChatML.

    Arguments
    ---------
    folder : path
        Where to; an ordinary model directory afterwards.
    seed : int
        Of the weights.
    eos_scale : float
        Spread of the end token's logit over that of the others: at 2 some
        greedy responses end by themselves and others are cut; at 0 none ends.
    vocab_size : int
        Of the tokenizer, about.

    Returns
    -------
    str
        The folder.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS + ["user assistant system"], trainer)
    return _save_llm(
        folder,
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token="<|im_start|>",
            eos_token="<|im_end|>",
            pad_token="<|im_end|>",
            unk_token="<|endoftext|>",
            chat_template=_CHATML,
        ),
        seed,
        eos_scale,
    )


def tiny_sentencepiece_llm(folder, seed=0, eos_scale=2.0, vocab_size=600):
    """Save a random Llama with a SentencePiece-like tokenizer and ``[INST]``.

    Words start with "▁", unknown characters fall back to bytes, and there is
    no padding token, as with Llama-2.

    Arguments
    ---------
    folder : path
        Where to; an ordinary model directory afterwards.
    seed : int
        Of the weights.
    eos_scale : float
        See `tiny_llm`.
    vocab_size : int
        Of the tokenizer, about.

    Returns
    -------
    str
        The folder.
    """
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    tokenizer = Tokenizer(
        models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    # Only for training: words are learnt apart, as SentencePiece does.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, show_progress=False
    )
    tokenizer.train_from_iterator(_TEXTS + ["[ / INST ] < SYS >"], trainer)
    tokenizer.pre_tokenizer = None
    tokenizer = _only_special(tokenizer, specials[:3])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A",
        pair="<s> $A <s> $B",
        special_tokens=[("<s>", tokenizer.token_to_id("<s>"))],
    )
    return _save_llm(
        folder,
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            chat_template=_LLAMA2,
        ),
        seed,
        eos_scale,
    )


def tiny_whisper(folder, n_mels=80, seed=0):
    """Save a random Whisper (width 32, 2+2 layers) with its processor.

    Arguments
    ---------
    folder : path
        Where to; an ordinary model directory afterwards.
    n_mels : int
        80, or 128 as in large-v3.
    seed : int
        Of the weights.

    Returns
    -------
    str
        The folder.
    """
    folder = os.fspath(folder)
    os.makedirs(folder, exist_ok=True)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_TEXTS, trainer)
    bpe.model.save(folder)  # vocab.json and merges.txt
    tokenizer = WhisperTokenizer(
        vocab=os.path.join(folder, "vocab.json"),
        merges=os.path.join(folder, "merges.txt"),
    )
    languages = ["en", "es", "fr", "de", "it", "ru"]
    controls = ["startoftranscript", *languages, "translate", "transcribe"]
    controls += ["startoflm", "startofprev", "nospeech", "notimestamps"]
    tokenizer.add_tokens(
        [AddedToken(f"<|{name}|>", special=True) for name in controls]
    )
    tokenizer.add_tokens(
        [AddedToken(f"<|{i * 0.02:.2f}|>") for i in range(1501)]
    )
    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    extractor.save_pretrained(folder)  # preprocessor_config.json, as on the hub
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ["endoftext", *controls]
    }
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer),
            num_mel_bins=n_mels,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            bos_token_id=ids["endoftext"],
            eos_token_id=ids["endoftext"],
            pad_token_id=ids["endoftext"],
            decoder_start_token_id=ids["startoftranscript"],
        )
    )
    tasks = ("translate", "transcribe")
    model.generation_config = GenerationConfig(
        bos_token_id=ids["endoftext"],
        eos_token_id=ids["endoftext"],
        pad_token_id=ids["endoftext"],
        decoder_start_token_id=ids["startoftranscript"],
        max_length=64,
        begin_suppress_tokens=[ids["endoftext"]],
        is_multilingual=True,
        lang_to_id={f"<|{name}|>": ids[name] for name in languages},
        task_to_id={name: ids[name] for name in tasks},
        no_timestamps_token_id=ids["notimestamps"],
        prev_sot_token_id=ids["startofprev"],
        max_initial_timestamp_index=50,
        return_timestamps=False,
    )
    model.save_pretrained(folder)
    return folder


def tiny_corpus(folder, n=12, n_eval=4, seconds=(0.3, 1.5), seed=0):
    """Write FLAC tones with transcripts, and the CSV splits that list them.

    Arguments
    ---------
    folder : path
        Where to.
    n : int
        Clips to train on.
    n_eval : int
        Clips of the valid and of the test split, each.
    seconds : tuple of float
        Shortest and longest clip.
    seed : int
        Of the tones.

    Returns
    -------
    SimpleNamespace
        ``train_csv``, ``valid_csv``, ``test_csv`` (columns ID, duration, wav,
        spk_id, wrd; upper-case transcripts, wav under ``$data_root``) and
        ``data_root``. No transcript stands in two splits.
    """
    folder = os.fspath(folder)
    rng = np.random.default_rng(seed)
    texts = iter(rng.permutation(SENTENCES * (1 + (n + 2 * n_eval) // 80)))
    corpus = SimpleNamespace(data_root=folder)
    for split, size in (("train", n), ("valid", n_eval), ("test", n_eval)):
        os.makedirs(os.path.join(folder, split), exist_ok=True)
        path = os.path.join(folder, f"{split}.csv")
        setattr(corpus, f"{split}_csv", path)
        with open(path, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["ID", "duration", "wav", "spk_id", "wrd"])
            for i in range(size):
                samples = int(16000 * rng.uniform(*seconds))
                pitch = rng.uniform(100, 1000)
                tone = np.sin(pitch * 2 * np.pi / 16000 * np.arange(samples))
                tone = 0.3 * tone + 0.01 * rng.standard_normal(samples)
                name = f"{split}/{split}-{i:03d}.flac"
                soundfile.write(os.path.join(folder, name), tone, 16000)
                wrd = str(next(texts)).rstrip(".").replace(".", "").upper()
                writer.writerow(
                    [
                        f"{split}-{i:03d}",
                        f"{samples / 16000:.4f}",
                        f"$data_root/{name}",
                        f"spk{i % 3}",
                        wrd,
                    ]
                )
    return corpus


def tiny_tasks(corpus, folder, labels=("on", "off", "dim")):
    """Splits that have something for every task of the evaluation.

    Arguments
    ---------
    corpus : SimpleNamespace
        From `tiny_corpus`.
    folder : path
        Where the CSV files go, whose clips are those of the corpus.
    labels : sequence of str
        Of the column ``intent``, in turns.

    Returns
    -------
    str
        The folder.
    """
    os.makedirs(folder, exist_ok=True)
    for split in ("train", "valid", "test"):
        source = getattr(corpus, f"{split}_csv")
        with open(source, encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        for number, row in enumerate(rows):
            row["wav"] = row["wav"].replace("$data_root", corpus.data_root)
            row["intent"] = labels[number % len(labels)]
            row["translation"] = row["wrd"].lower()
            row["entities"] = '[{"type": "what", "filler": "light"}]'
        path = os.path.join(folder, f"{split}.csv")
        with open(path, "w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return os.fspath(folder)


def _only_special(tokenizer, names):
    """Byte tokens of the trainer stay in the vocabulary, not as specials."""
    clean = Tokenizer(tokenizer.model)
    clean.normalizer = tokenizer.normalizer
    clean.add_special_tokens([AddedToken(n, normalized=False) for n in names])
    return clean


def _save_llm(folder, tokenizer, seed, eos_scale):
    folder = os.fspath(folder)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.3,  # else every row gets the same response
        )
    )
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= eos_scale
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
