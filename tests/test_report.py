"""The report of many evaluations: offline, escaped, its figures the true ones.

Authors
 * The blsp_plugin team 2026
"""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy
import pytest
import soundfile

from blsp_plugin.errors import BadInput
from blsp_plugin.evaluation.analysis import (
    NO_LABEL,
    OTHER,
    agreement,
    choose_clips,
    confusion,
    error_bins,
    quantile_bins,
    word_errors,
)
from blsp_plugin.evaluation.html import render_html, write_report
from blsp_plugin.evaluation.markdown import render_markdown
from blsp_plugin.evaluation.metrics import ErrorRates
from blsp_plugin.evaluation.runs import find_runs
from tests.training import ROOT

pytest.importorskip("matplotlib")

CLIPS = 30
SYSTEMS = {
    "gold": "gold transcript -> LLM",
    "cascade": "Whisper -> LLM (cascade)",
    "speechllm": "speech <LLM> & $\\frac{",
    "untrained": "untrained adapter",
}
HOSTILE = [
    '<script>alert("x")</script>',
    '"><img src=http://evil.example/x onerror=alert(1)>',
    "two\nlines\r\nand a nul \x00 and a half \ud83d pair",
    "\u202eturned around\u202c שלום | a `cell` [x](http://evil.example)",
]
TASKS = {
    "asr": ("asr", {"wer": "WER %", "cer": "CER %"}, False),
    "st_de": ("st", {"bleu": "BLEU"}, True),
    "slu": ("slu", {"accuracy": "accuracy %"}, True),
}
WORDS = "press one for the pound key and two to leave a message".split()
INTENTS = ["weather", "alarm_set", "play_music"]


@pytest.fixture(scope="module")
def wavs(tmp_path_factory):
    """Tones of 0.5 to 3.4 s, one of them of 17 s, at 8 and 16 kHz."""
    folder = tmp_path_factory.mktemp("tones")
    paths = []
    for i in range(CLIPS):
        rate = 8000 if i % 2 else 16000
        time = numpy.arange(int(rate * seconds(i))) / rate
        paths.append(str(folder / f"{i}.wav"))
        soundfile.write(paths[-1], 0.3 * numpy.sin(2000 * time), rate)
    return paths


def seconds(i):
    return 17.0 if i == CLIPS - 1 else 0.5 + 0.1 * i


def reference(kind, i):
    if kind == "slu":
        return INTENTS[i % 3]
    return " ".join(WORDS[: 1 + i % len(WORDS)])


def hypothesis(kind, system, i):
    wanted = reference(kind, i)
    if system == "gold":
        return wanted
    if system == "speechllm" and i < len(HOSTILE):
        return HOSTILE[i]
    if kind == "slu":
        return INTENTS[(i % 3 + (i % 5 == 0)) % 3]
    changed = wanted.split()
    changed[i % len(changed)] = {"cascade": "to", "speechllm": "mess"}.get(
        system, "what on earth"
    )
    return " ".join(changed)


def make_run(folder, wavs, tasks=TASKS, described=True):
    """An evaluation folder as the recipes write it."""
    os.makedirs(folder / "predictions")
    metrics, described_tasks = {}, {}
    for number, (task, (kind, columns, higher)) in enumerate(tasks.items()):
        for place, system in enumerate(SYSTEMS):
            lines = [{"settings": {"precision": "fp32"}}]
            for i, wav in enumerate(wavs):
                line = {
                    "id": f"clip-{i}",
                    "wav": wav if i % 7 else f"{wav}.gone",
                    "text": " ".join(WORDS[: 1 + i % len(WORDS)]),
                    "duration": seconds(i),
                    "reference": reference(kind, i),
                    "hypothesis": hypothesis(kind, system, i),
                    "seconds": 0.1,
                    "score": float((i * 37) % 100),
                }
                if not described:
                    del line["wav"], line["text"]
                lines.append(line)
            path = folder / "predictions" / f"{task}.{system}.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            if kind == "asr":
                metric = ErrorRates(resamples=20)
                metric.append(*columns_of(lines[1:]))
                figures = metric.summarize()
            else:
                figures = dict.fromkeys(columns, 11.1 * place + number + 1.37)
            figures |= {"rtf": 0.1234 + place, "tokens_per_second": 31.25}
            metrics |= {f"{task}.{system}.{k}": v for k, v in figures.items()}
        metrics[f"{task}.speechllm.p_vs_cascade"] = 0.5 if number else 0.012
        metrics |= {f"{task}.clips": len(wavs), f"{task}.rejected": 0}
        described_tasks[task] = {
            "kind": kind,
            "instruction": "Do <this>.",
            "metric": "ErrorRates(EnglishTextNormalizer)",
            "columns": columns,
            "main": next(iter(columns)),
            "higher_is_better": higher,
            "systems": SYSTEMS,
            "clips": len(wavs),
            "hours": 0.02,
            "rejected": 0,
        }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    if described:
        facts = {"tasks": described_tasks}
        (folder / "evaluation.json").write_text(json.dumps(facts))
    return metrics


def columns_of(records):
    return [[r[k] for r in records] for k in ("id", "hypothesis", "reference")]


class Page(HTMLParser):
    """What a browser would find: elements, links, tables, texts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.links, self.tables = [], [], []
        self.sections, self.styles, self.texts = [], [], []
        self.open = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        self.links += [
            attributes[name]
            for name in ("src", "href", "xlink:href", "srcset", "data")
            if name in attributes
        ]
        self.styles.append(attributes.get("style", ""))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag in ("h1", "h2", "h3"):
            self.sections.append("")
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            self.styles.append(data)
            return
        self.texts.append(data)
        if {"th", "td"} & set(self.open):
            self.tables[-1][-1][-1] += data
        if {"h1", "h2", "h3"} & set(self.open):
            self.sections[-1] += data


def check_offline(page):
    """Nothing in it makes a browser fetch anything."""
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "link", "iframe", "object", "base"}
    assert page.links
    assert all(link.startswith(("#", "data:audio/")) for link in page.links)
    for style in page.styles:
        assert "@import" not in style
        assert all(link[0] == "#" for link in re.findall(r"url\((.)", style))
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert "url(h" not in " ".join(map(str, attributes.values()))
    assert not page.open
    keys = [a["id"] for _, a in page.elements if "id" in a]
    assert len(keys) == len(set(keys))
    anchors = {link[1:] for link in page.links if link[0] == "#"}
    assert anchors <= set(keys)


def check_figures(page, metrics):
    """The tables hold the numbers of metrics.json, rounded."""
    results, *_ = page.tables
    assert results[0][1:] == [
        "asr\nWER % ↓",
        "st_de\nBLEU ↑",
        "slu\naccuracy % ↑",
    ]
    for row, system in zip(results[1:], SYSTEMS, strict=True):
        assert row[0] == SYSTEMS[system]
        wer = metrics[f"asr.{system}.wer"]
        low, high = (metrics[f"asr.{system}.wer_{e}"] for e in ("low", "high"))
        mark = " †" if system == "speechllm" else ""
        assert row[1] == f"{wer:.1f} [{low:.1f}, {high:.1f}]{mark}"
        assert row[2] == f"{metrics[f'st_de.{system}.bleu']:.1f}"
        assert row[3] == f"{metrics[f'slu.{system}.accuracy']:.1f}"
    asr = page.tables[1]
    head = ["system", "WER %", "CER %", "p vs cascade", "RTF", "tokens/s"]
    assert asr[0] == head
    assert asr[3][2] == f"{metrics['asr.speechllm.cer']:.1f}"
    assert asr[3][3:] == ["0.012", "2.123", "31.2"]


@pytest.fixture(scope="module")
def written(wavs, tmp_path_factory):
    """A folder with one run of three tasks, and its report."""
    folder = tmp_path_factory.mktemp("results")
    metrics = make_run(folder / "all", wavs)
    write_report(str(folder))
    return folder, metrics


def test_report_opens_offline(written, tmp_path):
    folder, metrics = written
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    check_offline(page)
    check_figures(page, metrics)
    assert page.sections == [
        "Evaluation report",
        "Results",
        "Task asr",
        "Word error rate by length and speech rate",
        "Agreement of speech and text",
        "Clips to listen to (asr)",
        "Task st_de",
        "Agreement of speech and text",
        "Clips to listen to (st_de)",
        "Task slu",
        "Agreement of speech and text",
        "Labels that the speech LLM confuses",
        "Clips to listen to (slu)",
    ]
    tags = [tag for tag, _ in page.elements]
    assert tags.count("svg") == 5  # two of WER, three of agreement
    assert tags.count("article") == 3 * 20
    assert 0 < tags.count("audio") < 3 * 20  # some files are gone
    said = [cell for table in page.tables for row in table for cell in row]
    for hostile in HOSTILE[:2]:
        assert hostile in said  # as text
        assert hostile not in text
    assert any(cell.startswith("two\nlines") for cell in said)
    assert not re.search("[\x00-\x08\ud800-\udfff]", text)
    for tag, attributes in page.elements:
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
        if tag == "audio":
            assert "controls" in attributes and "autoplay" not in attributes
    if shutil.which("chromium"):
        opens_in_browser(folder / "report.html", tmp_path)


def opens_in_browser(path, profile):
    """Chromium builds the same page from it, with the network cut off."""
    options = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-component-update "
        "--disable-sync --host-resolver-rules=MAP\u00a0*\u00a0~NOTFOUND"
    ).split(" ")
    options = [option.replace("\u00a0", " ") for option in options]
    done = subprocess.run(
        [
            "chromium",
            *options,
            f"--user-data-dir={profile}",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    tags = re.findall(r"<([a-z]+)[\s>]", done.stdout)
    assert tags.count("svg") == 5
    assert tags.count("article") == 60
    assert not {"script", "img"} & set(tags)
    assert html.escape(HOSTILE[0], quote=False) in done.stdout


def test_markdown_twin(written):
    folder, metrics = written
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert f"{metrics['slu.gold.accuracy']:.1f}" in text
    assert text.count("\n## Task ") == 3
    assert "| speech \\<LLM> & $\\\\frac{ " in text
    # What was said stands in blocks of code; nothing leaves its line.
    for hostile in ("<script>", "onerror", "turned around", "and a nul"):
        lines = [line for line in text.splitlines() if hostile in line]
        assert lines
        assert all(line.startswith("    speech <LLM>") for line in lines)
    assert not re.search("[\u202a-\u202e\x00-\x09\x0b-\x1f]", text)


def test_audio_is_small_and_short(written):
    folder, _ = written
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert "17.0 s, the first 15 s" in page.texts
    sounds = [link for link in page.links if link.startswith("data:")]
    # 15 s of Opus at 30 kbit/s, in base64; FLAC of a tone is small as well.
    assert max(map(len, sounds)) < 300_000
    assert "its audio could not be read" in " ".join(page.texts)


def test_runs_side_by_side(wavs, tmp_path):
    both = [make_run(tmp_path / n, wavs) for n in ("a", "b")]
    make_run(tmp_path / "a" / "debug", wavs[:4])
    old = make_run(
        tmp_path / "old/asr", wavs, {"asr": TASKS["asr"]}, described=False
    )
    (tmp_path / "unfinished" / "predictions").mkdir(parents=True)
    (tmp_path / "report.html").write_text("stale")
    html_file, _ = write_report(str(tmp_path), clips=4)
    with open(html_file, encoding="utf-8") as stream:
        page = Page(stream.read())
    check_offline(page)
    results = page.tables[0]
    heads = [head.split("\n") for head in results[0][1:]]
    assert [(head[0], head[2]) for head in heads] == [
        (task, run)
        for task, runs in (("asr", 3), ("st_de", 2), ("slu", 2))
        for run in ("a", "b", "old/asr")[:runs]
    ]
    assert results[1][1] == results[1][2]
    assert results[1][3].startswith(f"{old['asr.gold.wer']:.1f} [")
    assert both[0] == both[1]
    assert [tag for tag, _ in page.elements].count("article") == 3 * 4
    # The runs agree: each answer stands once.
    assert not any(
        "(a, b" in cell for t in page.tables for r in t for cell in r
    )


def test_folder_of_older_code(wavs, tmp_path):
    """No evaluation.json; neither wav nor text in the predictions."""
    make_run(tmp_path, wavs, {"asr": TASKS["asr"]}, described=False)
    [run] = find_runs(tmp_path)
    facts = run.tasks["asr"]
    assert run.name == tmp_path.name
    assert facts.kind == "asr" and facts.main == "wer"
    assert list(facts.systems) == list(SYSTEMS)
    assert facts.systems["speechllm"] == "speech LLM"
    assert (facts.clips, facts.rejected, facts.hours) == (CLIPS, 0, None)
    html_file, _ = write_report(str(tmp_path), clips=2)
    with open(html_file, encoding="utf-8") as stream:
        text = stream.read()
    assert text.count("the predictions name no audio file") == 2
    assert "<audio" not in text


def test_bad_folders(wavs, tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        write_report(str(tmp_path / "none"))
    with pytest.raises(BadInput, match="no evaluation in it"):
        write_report(str(tmp_path))
    make_run(tmp_path / "run", wavs[:3])
    path = tmp_path / "run" / "evaluation.json"
    path.write_text('{"tasks": {"asr": {"systems": 3, "kind": null}}}')
    [run] = find_runs(tmp_path)
    assert list(run.tasks["asr"].systems) == list(SYSTEMS)
    path.write_text("{")
    with pytest.raises(BadInput, match="evaluation.json: not readable as JSON"):
        find_runs(tmp_path)


def test_needs_matplotlib(written, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BadInput, match=r"pip install blsp_plugin\[plots\]"):
        write_report(str(written[0]))


def test_bins_are_pooled():
    records = [
        {
            "id": str(i),
            "reference": " ".join(["word"] * (1 + i)),
            "hypothesis": "word" if i % 2 else "other words",
        }
        for i in range(23)
    ]
    values = {str(i): (i * 7) % 23 for i in range(23)}
    bins = error_bins({"a": word_errors(records)}, values)
    assert sum(bins.counts) == 23 and len(bins.counts) == 5
    assert max(bins.counts) - min(bins.counts) <= 1
    for (low, high), rate in zip(bins.ranges, bins.rates["a"], strict=True):
        metric = ErrorRates(resamples=0)
        group = [r for r in records if low <= values[r["id"]] <= high]
        metric.append(*columns_of(group))
        assert rate == pytest.approx(metric.summarize("wer"))
        mean = numpy.mean(list(metric.scores().values()))
        assert rate != pytest.approx(mean)


def test_quantile_bins():
    assert quantile_bins([]) == []
    assert [len(g) for g in quantile_bins([3.0] * 9)] == [9]
    assert [len(g) for g in quantile_bins([1.0, 2.0])] == [1, 1]
    groups = quantile_bins(numpy.arange(100)[::-1])
    assert [len(g) for g in groups] == [20] * 5
    assert 99 in groups[0] and 0 in groups[-1]


def test_agreement_counts_first_words():
    def said(*texts):
        return {str(i): {"hypothesis": t} for i, t in enumerate(texts)}

    answers = {
        "gold": said("a b c", "a b c", "a", ""),
        "speechllm": said("A, b.", "a b c", "b", ""),
        "cascade": {},
    }
    curves = agreement(answers, ["speechllm", "cascade", "none"], longest=5)
    assert curves == {"speechllm": [75.0, 75.0, 50.0, 50.0, 50.0]}
    assert agreement({"speechllm": said("a")}, ["speechllm"]) == {}


def test_confusion():
    def record(meant, said, **more):
        return {"reference": meant, "hypothesis": said, **more}

    many = [record(f"l{i}", f"l{i}") for i in range(25) for _ in range(2)]
    found = confusion([*many, record("l0", "l24"), record("l1", "what?")])
    assert len(found.rows) == 21 and found.rows[-1] == OTHER
    assert found.columns == [*found.rows, NO_LABEL]
    assert sum(map(sum, found.counts)) == 52
    assert found.counts[0][-2] == 1 and found.counts[1][-1] == 1
    texts = [record(f"a text {i}", "") for i in range(30)]
    assert confusion(texts) is None
    assert confusion([]) is None
    labelled = [record("alarm_set", "I set it", label="alarm_set")]
    assert confusion(labelled).counts == [[1]]
    unclear = confusion([record("a", "a", label=None)])
    assert unclear.columns == ["a", NO_LABEL] and unclear.counts == [[0, 1]]


def test_choose_clips():
    records = [{"id": str(i), "score": float(i)} for i in range(40)]
    worst = [str(i) for i in range(39, 29, -1)]
    chosen = [clip["id"] for clip in choose_clips(records)]
    assert chosen[:10] == worst
    assert len(set(chosen)) == 20
    best = choose_clips(records, 2, higher_is_better=True)
    assert [clip["id"] for clip in best] == ["0", "1"]
    assert len(choose_clips(records[:3])) == 3
    assert choose_clips([]) == []
    assert len(choose_clips([{"id": "a"}, {"id": "b"}], 1)) == 1


def test_empty_document():
    assert "<main" in render_html([])
    assert render_markdown([]) == "\n"


def test_recipe(written, tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "recipes/report/report.py", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": ROOT},
        )

    done = run(str(written[0]), f"--output_folder={tmp_path}", "--clips=1")
    assert done.returncode == 0, done.stderr
    for path in done.stdout.split():
        assert os.path.dirname(path) == str(tmp_path)
        assert os.path.getsize(path) > 1000
    done = run(str(tmp_path / "none"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
