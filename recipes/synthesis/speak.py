#!/usr/bin/env python3
"""Let a machine speak sentences, as a corpus for training.

To run this recipe:
> python recipes/synthesis/speak.py hparams/speak.yaml

Run it again to continue where it was stopped.

Authors
 * The blsp_plugin team 2026
"""

import os
import sys
from collections import Counter

import speechbrain as sb
from speechbrain.utils.logger import get_logger
from tqdm import tqdm

from blsp_plugin.data.corpora import prepare_corpus
from blsp_plugin.data.manifest import read_manifest
from blsp_plugin.data.synthesis import choose_sentences, speak
from blsp_plugin.data.tsv import read_lines
from blsp_plugin.errors import one_line_errors
from blsp_plugin.hparams import load_hparams

logger = get_logger(__name__)


def recorded(hparams, tokenizer):
    """How often tokens are in a corpus, and what must not be spoken."""
    if hparams["data_folder"] is None:
        return Counter(), []
    names = ("data_folder", "save_folder", "corpus_options")
    files = prepare_corpus(**{name: hparams[name] for name in names})
    texts = {
        split: [
            row["text"]
            for row in read_manifest(
                getattr(files, f"{split}_csv"),
                hparams["text_key"],
                files.data_root,
                need_audio=False,
            ).rows
        ]
        for split in ("train", "valid", "test")
    }
    ids = tokenizer(texts["train"], add_special_tokens=False)["input_ids"]
    return Counter(sum(ids, [])), texts["valid"] + texts["test"]


@one_line_errors
def main(argv):
    """Choose sentences and speak them."""
    hparams_file, _, overrides = sb.parse_arguments(argv)
    hparams, hparams_file, overrides = load_hparams(hparams_file, overrides)
    folder = hparams["output_folder"]
    sb.create_experiment_directory(
        experiment_directory=folder,
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    tokenizer = hparams["tokenizer"]
    counts, without = recorded(hparams, tokenizer)
    texts = (line for _, line in read_lines(hparams["texts"]))
    sentences = choose_sentences(
        texts, tokenizer, hparams["number"], counts, without
    )
    sentences += hparams["word_lists"]
    spoken = speak(
        sentences,
        hparams["voice"],
        folder,
        hparams["seed"],
        hparams["speeds"],
        hparams["noisy"],
        hparams["workers"] or os.cpu_count(),
    )
    for _ in tqdm(spoken, desc="speaking", total=len(sentences)):
        pass
    logger.info("%s: a corpus of %d sentences", folder, len(sentences))


if __name__ == "__main__":
    main(sys.argv[1:])
