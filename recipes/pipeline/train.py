#!/usr/bin/env python3
"""A speech LLM as one module of an ordinary SpeechBrain recipe.

The frozen speech LLM makes embeddings of the clips, and a small classifier
learns to tell their labels. Beside it stands what the speech LLM itself
answers to an instruction, without any training.

To run this recipe (after recipes/blsp/train.py):
> python recipes/pipeline/train.py hparams/pipeline.yaml \
      --data_folder /data/fluent_speech_commands

Authors
 * The blsp_plugin team 2026
"""

import sys

import speechbrain as sb
from speechbrain.utils.distributed import if_main_process, run_on_main
from tqdm import tqdm

from blsp_plugin.data.audio import read_speech
from blsp_plugin.data.corpora import prepare_corpus
from blsp_plugin.data.manifest import read_manifest
from blsp_plugin.errors import BadInput, one_line_errors
from blsp_plugin.files import write_json
from blsp_plugin.hparams import load_hparams


class Classifier(sb.Brain):
    """Tells the labels of clips from the embeddings of a speech LLM."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.results = {}
        # Not among the modules: it stays frozen, and in no checkpoint.
        self.speech_llm = self.hparams.speech_llm.to(self.device)
        self.speech_llm.device = self.device

    def compute_forward(self, batch, stage):
        """Log-probabilities of the labels, shape (batch, 1, labels)."""
        wavs, wav_lens = batch.to(self.device).sig
        embeds, embed_lens = self.speech_llm.encode_batch(wavs, wav_lens)
        pooled = self.modules.pooling(embeds, embed_lens)
        return self.modules.classifier(pooled)

    def compute_objectives(self, predictions, batch, stage):
        """Negative log-likelihood; counts errors in evaluation."""
        labels = batch.label.data
        if stage != sb.Stage.TRAIN:
            self.errors.append(batch.id, predictions, labels)
        return sb.nnet.losses.nll_loss(predictions, labels)

    def on_stage_start(self, stage, epoch=None):
        """Count from zero."""
        self.errors = self.hparams.error_stats()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log, and keep the checkpoint with the fewest errors."""
        if stage == sb.Stage.TRAIN:
            self.results.setdefault("train.first_loss", stage_loss)
            self.results["train.loss"] = stage_loss
            return
        name, error = stage.name.lower(), self.errors.summarize("average")
        self.results[f"{name}.loss"] = stage_loss
        self.results[f"{name}.accuracy"] = 100 * (1 - error)
        stats = {f"{name}_stats": {"loss": stage_loss, "error": error}}
        if stage == sb.Stage.VALID:
            stats["train_stats"] = {"loss": self.results["train.loss"]}
            self.checkpointer.save_and_keep_only(
                meta={"error": error}, min_keys=["error"]
            )
        self.hparams.train_logger.log_stats({"epoch": epoch}, **stats)


def dataio_prepare(hparams):
    """Datasets of train, valid and test: samples, label and its number."""
    names = ("data_folder", "save_folder", "corpus_options")
    options = {name: hparams[name] for name in names}
    run_on_main(prepare_corpus, kwargs=options)
    corpus, encoder = prepare_corpus(**options), hparams["label_encoder"]
    datasets, key = {}, hparams["label_key"]
    for split in ("train", "valid", "test"):
        manifest = getattr(corpus, f"{split}_csv")
        rows = read_manifest(manifest, key, corpus.data_root).rows
        whole = {"start": None, "stop": None}
        clips = {row.pop("id"): {**whole, **row} for row in rows}
        dataset = sb.dataio.dataset.DynamicItemDataset(clips)
        dataset.add_dynamic_item(read_speech, ["wav", "start", "stop"], "sig")
        dataset.add_dynamic_item(encoder.encode_label_torch, "text", "label")
        dataset.set_output_keys(["id", "sig", "label"])
        datasets[split] = dataset
    encoder.add_unk()  # a label of the test set that nobody has trained
    encoder.update_from_didataset(datasets["train"], "text")
    encoder.ignore_len()
    if len(encoder) > hparams["number_of_labels"]:
        raise BadInput(f"{key}: give --number_of_labels {len(encoder)}")
    return datasets


def zero_shot(hparams, dataset):
    """Accuracy of the speech LLM's own choice, in percent."""
    labels = hparams["labels"] or list(hparams["label_encoder"].lab2ind)[1:]
    classify, asked = hparams["speech_llm"].classify, hparams["instruction"]
    with dataset.output_keys_as(["sig", "text"]):
        right = [
            classify(clip["sig"], labels, asked).label == clip["text"]
            for clip in tqdm(dataset, desc="zero-shot")
        ]
    return 100 * sum(right) / len(right)


@one_line_errors
def main(argv):
    """Train, and write metrics.json."""
    hparams_file, run_opts, overrides = sb.parse_arguments(argv)
    sb.utils.distributed.ddp_init_group(run_opts)
    hparams, hparams_file, overrides = load_hparams(hparams_file, overrides)
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    datasets = dataio_prepare(hparams)
    brain = Classifier(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.fit(
        hparams["epoch_counter"],
        datasets["train"],
        datasets["valid"],
        train_loader_kwargs=hparams["train_options"],
        valid_loader_kwargs=hparams["valid_options"],
    )
    options = {"test_loader_kwargs": hparams["valid_options"]}
    brain.evaluate(datasets["test"], min_key="error", **options)
    if if_main_process():
        if hparams["instruction"] is not None:
            accuracy = zero_shot(hparams, datasets["test"])
            brain.results["zero_shot.accuracy"] = accuracy
        write_json(brain.results, hparams["metrics_file"])


if __name__ == "__main__":
    main(sys.argv[1:])
