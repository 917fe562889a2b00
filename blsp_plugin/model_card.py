"""The model card of a packed adapter: facts that lie beside it, in words.

Authors
 * The blsp_plugin team 2026
"""

import io
import json
import os
from typing import NamedTuple

import ruamel.yaml

from blsp_plugin.errors import BadInput

__all__ = ["Evaluation", "Results", "gather_results", "model_card"]

# What a figure of an evaluation is called on the hub.
_METRICS = {
    "wer": "WER",
    "cer": "CER",
    "bleu": "BLEU",
    "chrf": "chrF",
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "slu_f1": "SLU-F1",
    "slot_f1": "Slot F1",
}
_TASKS = {
    "asr": ("automatic-speech-recognition", "Speech recognition"),
    "st": ("translation", "Speech translation"),
    "slu": ("audio-classification", "Spoken language understanding"),
}
# Upstream of the starter kit's models.
_UPSTREAM = {
    "starter:whisper-base": "openai/whisper-base",
    "starter:whisper-tiny.en": "openai/whisper-tiny.en",
    "starter:smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "starter:gemma3-270m": "google/gemma-3-270m",
}
_SETTINGS = (
    "number_of_epochs",
    "lr",
    "weight_decay",
    "warmup_steps",
    "max_batch_tokens",
    "grad_accumulation_factor",
    "precision",
    "seed",
)


class Evaluation(NamedTuple):
    """An evaluation of the adapter.

    Arguments
    ---------
    dataset : str
        What it was made on.
    language : str or None
        Spoken there.
    figures : dict of float
        ``<task>.<system>.<figure>`` -> number.
    max_decode_ratio : float, optional
        Tokens of an answer for each of the slot, where it was limited.
    """

    dataset: str
    language: str
    figures: dict
    max_decode_ratio: float | None = None


class Results(NamedTuple):
    """What is known of an adapter.

    Arguments
    ---------
    training : dict of float
        Of the training's ``metrics.json``; empty if unknown.
    settings : dict of str
        Of the training's YAML.
    losses : list of str
        Names of their classes.
    evaluations : list of Evaluation
    """

    training: dict
    settings: dict
    losses: list
    evaluations: list


def gather_results(source, metrics=()):
    """Read what stands beside a trained adapter, and its evaluations.

    Arguments
    ---------
    source : str
        The ``adapter_folder``; the training's ``metrics.json`` and
        ``hyperparams.yaml`` are looked for in the folder around it.
    metrics : sequence of str
        Output folders of evaluations, or their ``metrics.json``.

    Returns
    -------
    Results

    Raises
    ------
    BadInput
        If a named file is missing or not of numbers.
    """
    around = os.path.dirname(os.path.abspath(source))
    path = os.path.join(around, "metrics.json")
    training = _read_metrics(path) if os.path.isfile(path) else {}
    if not any(name.startswith("end.") for name in training):
        training = {}  # of something else
    experiment = _read_experiment(around) if training else {}
    losses = experiment.get("losses")
    losses = [
        str(loss.tag.value).rpartition(".")[2]
        for loss in (losses if isinstance(losses, list) else [])
        if getattr(loss, "tag", None)
    ]
    settings = {
        name: str(experiment[name])
        for name in _SETTINGS
        if isinstance(experiment.get(name), str | int | float | bool)
    }
    evaluations = []
    for path in metrics:
        if os.path.isdir(path):
            path = os.path.join(path, "metrics.json")
        figures = _read_metrics(path)
        known = _read_experiment(os.path.dirname(path))
        dataset = known.get("data_folder")
        if not isinstance(dataset, str):
            dataset = "starter corpus" if known else "unknown"
        options = known.get("corpus_options")
        corpora = options.get("corpora") if isinstance(options, dict) else None
        if corpora:  # of a folder of several
            corpora = [corpora] if isinstance(corpora, str) else corpora
            dataset = ", ".join(map(str, corpora))
        language = known.get("language")
        ratio = known.get("max_decode_ratio")
        evaluations.append(
            Evaluation(
                os.path.basename(dataset.rstrip("/")),
                language if isinstance(language, str) else None,
                figures,
                ratio if isinstance(ratio, int | float) else None,
            )
        )
    return Results(training, settings, losses, evaluations)


def _read_metrics(path):
    try:
        with open(path, encoding="utf-8") as stream:
            metrics = json.load(stream)
        if not isinstance(metrics, dict):
            raise ValueError("not a mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(
            f"{path}: not a metrics.json ({error}); name the output folder "
            "of an evaluation"
        ) from error
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _read_experiment(folder):
    """The YAML of a run as a tree, nothing built; {} if there is none."""
    path = os.path.join(folder, "hyperparams.yaml")
    try:
        with open(path, encoding="utf-8") as stream:
            tree = ruamel.yaml.YAML().load(stream)
    except (OSError, UnicodeDecodeError, ruamel.yaml.YAMLError):
        return {}
    return tree if isinstance(tree, dict) else {}


def model_card(name, facts, results, licence=None, languages=()):
    """Write the card.

    Arguments
    ---------
    name : str
        Of the package.
    facts : dict
        Its ``adapter.json``.
    results : Results
        From `gather_results`.
    licence : str, optional
        The hub's name of one.
    languages : sequence of str
        Codes; those of the evaluations if not given.

    Returns
    -------
    str
        Markdown with YAML in front, as the Hugging Face hub reads it.
    """
    languages = list(languages) or sorted(
        {e.language for e in results.evaluations if e.language}
    )
    parts = [
        "---\n" + _front_matter(name, facts, results, licence, languages),
        f"---\n\n# {name}\n\n{_INTRODUCTION.format(**_names(facts))}",
        _USE.format(name=name),
        _results_text(results),
        _training_text(facts, results),
        _LIMITS,
        _licence_text(licence),
        _fingerprints(facts),
        _CITATION,
    ]
    return "\n".join(part for part in parts if part)


def _names(facts):
    described = facts.get("adapter") or {"class": "an adapter of its own class"}
    return {
        "whisper": _UPSTREAM.get(facts["whisper"], facts["whisper"]),
        "llm": _UPSTREAM.get(facts["llm"], facts["llm"]),
        "kind": described["class"],
        "lora": ", and LoRA on the frozen models" if facts.get("lora") else "",
    }


def _front_matter(name, facts, results, licence, languages):
    front = {"license": licence or "other"}
    if licence is None:
        front["license_name"] = "see-base-models"
    front["library_name"] = "speechbrain"
    names = _names(facts)
    bases = [names[key] for key in ("whisper", "llm")]
    bases = [base for base in bases if not os.path.isabs(base)]
    if bases:
        front["base_model"] = bases
        front["base_model_relation"] = "adapter"
    front["pipeline_tag"] = "audio-text-to-text"
    if languages:
        front["language"] = list(languages)
    front["tags"] = ["speechbrain", "blsp", "speech-llm", "audio"]
    entries, metrics = [], {}
    for evaluation in results.evaluations:
        for task, figure, value in _own_figures(evaluation):
            metrics[figure] = None
            kind, words = _TASKS.get(task, ("audio-text-to-text", task))
            dataset = evaluation.dataset
            entries.append(
                {
                    "task": {"type": kind, "name": words},
                    "dataset": {"name": dataset, "type": _slug(dataset)},
                    "metrics": [
                        {
                            "type": figure,
                            "value": round(value, 3),
                            "name": _METRICS[figure],
                        }
                    ],
                }
            )
    if entries:
        front["metrics"] = list(metrics)
        front["model-index"] = [{"name": name, "results": entries}]
    stream = io.StringIO()
    yaml = ruamel.yaml.YAML()
    yaml.dump(front, stream)
    return stream.getvalue()


def _slug(text):
    return "".join(c if c.isalnum() else "-" for c in text.lower())


def _own_figures(evaluation):
    """Main figures of the speech LLM: (task, figure, value)."""
    for key, value in evaluation.figures.items():
        task, _, rest = key.partition(".")
        system, _, figure = rest.partition(".")
        if system == "speechllm" and figure in _METRICS:
            yield task, figure, value


def _results_text(results):
    lines = []
    for evaluation in results.evaluations:
        for task, figure, value in _own_figures(evaluation):
            bounds = [
                evaluation.figures.get(f"{task}.speechllm.{figure}_{end}")
                for end in ("low", "high")
            ]
            interval = ""
            if None not in bounds:
                interval = f" [{bounds[0]:.1f}, {bounds[1]:.1f}]"
            beside = [
                f"{system} {evaluation.figures[key]:.1f}"
                for system in ("gold", "cascade")
                if (key := f"{task}.{system}.{figure}") in evaluation.figures
            ]
            lines.append(
                f"| {task} | {evaluation.dataset} | {_METRICS[figure]} | "
                f"{value:.1f}{interval} | {', '.join(beside)} |"
            )
    if not lines:
        return (
            "## Results\n\nNo evaluation came with this package: nothing is "
            "known of how well it does.\n"
        )
    head = (
        "## Results\n\nWith 95 % bootstrap intervals over clips where there "
        "are some; beside them the text LLM on the true transcripts (gold) "
        "and on Whisper's (cascade).\n\n| task | data | figure | value | "
        "beside it |\n|---|---|---|---|---|\n"
    )
    limited = {}
    for evaluation in results.evaluations:
        if evaluation.max_decode_ratio is not None:
            names = limited.setdefault(evaluation.max_decode_ratio, [])
            names.append(evaluation.dataset)
    lines += [
        f"\n{', '.join(names)}: answers of at most {ratio:g} tokens for each "
        "token of the speech or the transcript (`max_decode_ratio`)."
        for ratio, names in limited.items()
    ]
    return head + "\n".join(lines) + "\n"


def _training_text(facts, results):
    lines = []
    if results.losses:
        lines.append(f"* Losses: {', '.join(results.losses)}.")
    if results.settings:
        said = (f"`{name}` {value}" for name, value in results.settings.items())
        lines.append(f"* Settings: {', '.join(said)}.")
    names = {
        "steps": "steps",
        "trainable_parameters": "trainable parameters",
        "start.loss": "validation loss before training",
        "end.loss": "validation loss of these weights",
        "end.text_loss": "cross-entropy on the transcripts, its floor",
        "end.agreement": "next-token agreement with the text LLM",
    }
    for key, words in names.items():
        if key in results.training:
            lines.append(f"* {words}: {results.training[key]:.6g}.")
    described = facts.get("adapter")
    if described:
        sizes = (f"`{k}` {v}" for k, v in described["arguments"].items())
        lines.append(f"* {described['class']}: {', '.join(sizes)}.")
    text = (
        "## Training\n\nBLSP: the LLM continued transcripts, text only; the "
        "adapter learnt to make it continue the clips in the same way. "
        "Encoder and LLM were frozen.\n"
    )
    return text + ("\n" + "\n".join(lines) + "\n" if lines else "")


def _licence_text(licence):
    if licence:
        return f"## Licence\n\n{licence}; the base models have their own.\n"
    return (
        "## Licence\n\nThe author named none. The base models have their own "
        "terms, which may bind what was trained with them.\n"
    )


def _fingerprints(facts):
    rows = "\n".join(
        f"| {part} | `{digest}` |" for part, digest in facts["base"].items()
    )
    files = "\n".join(
        f"| {name} | `{digest}` |" for name, digest in facts["files"].items()
    )
    return (
        "## Fingerprints\n\nThe base that it was trained with, another one is "
        f"refused, and SHA-256 of the files.\n\n| what | fingerprint |\n"
        f"|---|---|\n{rows}\n{files}\n"
    )


_INTRODUCTION = """\
Lets a text LLM hear: a {kind} between the encoder of `{whisper}` and
`{llm}`, both frozen{lora}. Nothing of them is in this repository. Made with
blsp_plugin, a plugin for SpeechBrain, by the method BLSP
([arXiv 2309.00916](https://arxiv.org/abs/2309.00916)).
"""

_USE = """\
## Use

```python
from blsp_plugin.inference import SpeechLLM

llm = SpeechLLM.from_hparams("{name}")  # this folder, or its name on the hub
print(llm.transcribe_file("clip.wav"))
print(llm.answer("clip.wav", "What is the speaker asking for?"))
chat = llm.chat()
print(chat.send("Say it in one sentence.", "clip.wav"))
```

`adapter.json` is read, and nothing of this repository is executed.
`hyperparams.yaml` is for SpeechBrain's own loaders; opening a folder by a
YAML builds whatever the YAML names.
"""

_LIMITS = """\
## Intended use and limits

For research on speech and language models: recognition, translation,
understanding and conversation by instruction. It says what the LLM would say
to a text, so it is wrong where the LLM is wrong; it may mishear, and may
answer fluently about words that nobody said. Languages, accents, noise and
clip lengths that were not in the training data are likely to be worse. Do not
use it to decide about people, to recognise who is speaking, or where a
mistake does harm.
"""

_CITATION = """\
## Citation

```bibtex
@article{wang2023blsp,
  title={{BLSP}: Bootstrapping Language-Speech Pre-training via Behavior
    Alignment of Continuation Writing},
  author={Wang, Chen and Liao, Minpeng and Huang, Zhongqiang and Lu, Jinliang
    and Wu, Junhong and Liu, Yuchen and Zong, Chengqing and Zhang, Jiajun},
  journal={arXiv:2309.00916},
  year={2023}
}
```
"""
