"""The evaluation recipe: what all of stage 3's scripts run.

They differ in their YAML only: its tasks, and the systems that do them.

Authors
 * The blsp_plugin team 2026
"""

import os

import speechbrain as sb
from speechbrain.utils.distributed import (
    if_main_process,
    infer_device,
    run_on_main,
)
from speechbrain.utils.logger import get_logger

from blsp_plugin.data.corpora import prepare_corpus
from blsp_plugin.data.manifest import (
    check_rejected,
    read_manifest,
    write_rejected,
)
from blsp_plugin.errors import one_line_errors
from blsp_plugin.evaluation.report import report
from blsp_plugin.evaluation.runner import Evaluation
from blsp_plugin.files import atomic_write
from blsp_plugin.hparams import load_hparams
from blsp_plugin.package import load_adapter

logger = get_logger(__name__)


__all__ = ["evaluate"]


def dataio_prepare(hparams):
    """Find or make the test CSV and read its rows."""
    corpus = run_on_main(
        prepare_corpus,
        kwargs={
            "data_folder": hparams["data_folder"],
            "save_folder": hparams["save_folder"],
            "train_splits": [],
            "valid_splits": [],
            "test_splits": hparams["test_splits"],
            "skip_prep": hparams["skip_prep"],
            "corpus_options": hparams["corpus_options"],
            "speechbrain_recipes": hparams["speechbrain_recipes"],
        },
    )
    columns = [name for task in hparams["tasks"] for name in task.columns]
    return read_manifest(
        corpus.test_csv,
        text_key=hparams["text_key"],
        data_root=corpus.data_root,
        keep=list(dict.fromkeys(columns)),
        probe=True,
    )


def run_option(name, run_opts, hparams):
    """A run option: command line before YAML, as in the toolkit's Brain."""
    given = name in run_opts["overridden_args"]
    return run_opts[name] if given else hparams.get(name, run_opts[name])


@one_line_errors
def evaluate(argv):
    """Evaluate, and write the tables and metrics.json.

    Arguments
    ---------
    argv : list of str
        The command line: hyperparameter file, run options, overrides.

    Raises
    ------
    BadInput
        As one line, and exit status 2.
    """
    hparams_file, run_opts, overrides = sb.parse_arguments(argv)
    sb.utils.distributed.ddp_init_group(run_opts)
    hparams, hparams_file, overrides = load_hparams(hparams_file, overrides)
    output_folder = hparams["output_folder"]
    if run_opts["debug"]:
        output_folder = os.path.join(output_folder, "debug")
    sb.create_experiment_directory(
        experiment_directory=output_folder,
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    systems = hparams["systems"]
    load_adapter(hparams["model"], hparams["prompt"], hparams["adapter_folder"])
    for system in systems:
        system.eval().to(run_opts["device"] or infer_device())

    manifest = dataio_prepare(hparams)
    rejected_file = os.path.join(output_folder, "rejected.jsonl")
    if if_main_process():
        write_rejected(manifest.rejected, rejected_file)
    rows = manifest.rows
    if run_opts["debug"]:
        rows = rows[: run_opts["debug_batches"] * hparams["batch_size"]]
    rejected, texts = {}, []
    for task in hparams["tasks"]:
        results = Evaluation(
            task,
            systems,
            output_folder,
            batch_size=hparams["batch_size"],
            precision=run_option("eval_precision", run_opts, hparams),
            progressbar=not run_option("noprogressbar", run_opts, hparams),
        ).run(rows)
        rejected.update((clip.id, clip) for clip in results.rejected)
        texts.append(report(results, task, systems, hparams["examples"]))
    rejected = [*manifest.rejected, *rejected.values()]
    if if_main_process():
        text = "\n".join(texts)
        with atomic_write(os.path.join(output_folder, "table.md")) as stream:
            stream.write(text)
        write_rejected(rejected, rejected_file)
        logger.info("%s\n\n%s", output_folder, text)
    check_rejected(
        len(rejected),
        len(manifest.rejected) + len(rows),
        hparams["max_rejected"],
        what="clips",
        path=rejected_file,
    )
