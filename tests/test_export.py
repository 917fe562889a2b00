"""Packing a trained adapter for others, and opening what strangers packed."""

import http.server
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
import yaml as pyyaml
from safetensors.torch import load_file, save_file
from speechbrain.nnet.adapters import AdaptedModel, LoRA

from blsp_plugin import pretrained
from blsp_plugin.adapters import (
    CFormerAdapter,
    ConcatMLPAdapter,
    ConvAdapter,
    CTCAdapter,
    SpelledCTCAdapter,
)
from blsp_plugin.encoder import WhisperEncoder
from blsp_plugin.errors import BadInput
from blsp_plugin.export import export_adapter, export_transformers, push
from blsp_plugin.hparams import executed_by
from blsp_plugin.inference import SpeechLLM
from blsp_plugin.llm import FrozenLLM
from blsp_plugin.model import BLSP
from blsp_plugin.package import check_package, save_adapter
from blsp_plugin.packing import Row, pack
from blsp_plugin.prompts import Prompt
from tests.conftest import make_wavs
from tests.training import ROOT

CPU = {"device": "cpu"}
KINDS = {
    "conv": lambda a, llm: ConvAdapter(
        a, llm.hidden_size, bottleneck=16, layers=2
    ),
    "mlp": lambda a, llm: ConcatMLPAdapter(
        a, llm.hidden_size, hidden_size=24, stride=6
    ),
    "cif": lambda a, llm: CFormerAdapter(
        a, llm.hidden_size, layers=(1, 1), heads=4
    ),
    "ctc": lambda a, llm: CTCAdapter(a, llm.hidden_size, layers=1),
    "spelled": lambda a, llm: SpelledCTCAdapter(
        a, llm.hidden_size, llm.vocabulary_size, layers=1
    ),
}
PLAIN = "Speech: {speech}\n{instruction}\nAnswer:"


@torch.no_grad()
def logits(model, prompt):
    """What the LLM expects behind a clip and an instruction."""
    wavs = make_wavs([1.3, 0.4], seed=2)
    speech = model.embed_wavs(wavs)
    prefix, suffix = prompt.ids("What is said?")
    rows = [
        Row(prefix, int(n), suffix, (7, 8, 9), True) for n in speech.lengths
    ]
    packed = pack(rows, 0, model.llm.eos_id)
    return model.llm.project(model(packed, speech).hidden)


def trained(folder, whisper, llm, kind="conv", lora=None, **settings):
    """A trained model, in memory and as its folder."""
    torch.manual_seed(5)
    pad = settings.pop("pad_to_30s", False)
    encoder, llm = WhisperEncoder(whisper, pad), FrozenLLM(llm)
    prompt = Prompt(llm.tokenizer, **settings)
    adapter = KINDS[kind](encoder.output_size, llm)
    for model in lora or ():
        AdaptedModel(
            model_to_adapt={"llm": llm, "encoder": encoder}[model],
            adapter_class=LoRA,
            target_layers=["*.q_proj", "*.v_proj"],
            adapter_kwargs={"rank": 4, "alpha": 8.0},
        )
    model = BLSP(encoder, adapter, llm).eval()
    for name, param in model.named_parameters():
        if "adapter_" in name:  # LoRA starts as nothing
            torch.nn.init.normal_(param, std=0.1)
    save_adapter(model, prompt, folder)
    return model, prompt


@pytest.fixture
def adapter_folder(tmp_path, whisper_folder, llm_folder):
    """A trained folder without a YAML."""
    trained(tmp_path / "trained", whisper_folder, llm_folder)
    return tmp_path / "trained"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kind": "mlp"},
        {"kind": "cif"},
        {"kind": "ctc"},
        {"kind": "spelled"},
        {"lora": ["llm"]},
        {"lora": ["llm", "encoder"], "kind": "cif"},
        {"pad_to_30s": True},
        {"template": PLAIN},
        {"system": "You 'hear': {}", "content": "{speech}\n\n {instruction}"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values()))[:30] or "conv",
)
def test_export_roundtrip_logits(
    settings, tmp_path, whisper_folder, llm_folder
):
    """Bit for bit, by the JSON and by the YAML."""
    source, target = tmp_path / "trained", tmp_path / "out" / "packed"
    model, prompt = trained(
        source, whisper_folder, llm_folder, **json.loads(json.dumps(settings))
    )
    before = logits(model, prompt)
    done = export_adapter(source, target, allow_local_paths=True, check=True)
    assert done.difference == 0.0
    for options in ({}, {"hparams_file": "hyperparams.yaml"}):
        again = SpeechLLM.from_hparams(
            str(target),
            run_opts=CPU,
            savedir=str(tmp_path / "saved"),
            **options,
        )
        assert torch.equal(logits(again.model, again.prompt), before), options
        assert again.prompt.system == prompt.system
    assert os.listdir(tmp_path / "out") == ["packed"]


@pytest.mark.parametrize("native", [True, False])
def test_opens_in_native_precision(
    native, adapter_folder, tmp_path, monkeypatch
):
    """By the JSON and by the YAML; a dtype that is asked for is given."""
    path = adapter_folder / "adapter.json"
    facts = json.loads(path.read_text())
    facts.update(llm_dtype="bfloat16", encoder_dtype="bfloat16")
    path.write_text(json.dumps(facts))
    target = tmp_path / "packed"
    export_adapter(adapter_folder, target, allow_local_paths=True)
    monkeypatch.setattr(pretrained, "_has_bfloat16", lambda: native)
    asked = {"dtype": "bfloat16", "encoder_dtype": "bfloat16"}
    for options, half in (
        ({}, native),
        ({"hparams_file": "hyperparams.yaml"}, native),
        (asked, True),
    ):
        model = SpeechLLM.from_hparams(
            str(target),
            run_opts=CPU,
            savedir=str(tmp_path / "saved"),
            **options,
        ).model
        dtype = torch.bfloat16 if half else torch.float32
        assert (model.llm.dtype, model.encoder.dtype) == (dtype, dtype)


def test_training_s_own_yaml_is_taken_over(
    tmp_path, whisper_folder, llm_folder
):
    """With its settings, and with names of the base that travel."""
    from blsp_plugin.hparams import excerpt_hparams

    source, target = tmp_path / "trained", tmp_path / "packed"
    trained(source, whisper_folder, llm_folder)
    (source / "hyperparams.yaml").write_text(
        excerpt_hparams(
            f"{ROOT}/hparams/train.yaml",
            f"whisper: {whisper_folder}\nllm: {llm_folder}\nbottleneck: 16\n",
        )
    )
    names = {"whisper": "someone/whisper", "llm": "starter:gemma3-270m"}
    export_adapter(source, target, **names)
    for file in ("hyperparams.yaml", "adapter.json", "README.md"):
        text = (target / file).read_text()
        assert str(tmp_path) not in text
        assert os.path.dirname(whisper_folder) not in text
        assert "someone/whisper" in text
    text = (target / "hyperparams.yaml").read_text()
    assert text.count("native_precision") == 2
    assert "attn_implementation" in text
    assert "starter:gemma3-270m" in text
    assert "blsp_plugin.starter.resolve" in executed_by(
        target / "hyperparams.yaml"
    )
    facts = json.loads((target / "adapter.json").read_text())
    assert facts["llm"] == "starter:gemma3-270m"


def test_local_paths_do_not_travel(adapter_folder, tmp_path):
    with pytest.raises(BadInput, match="--whisper <hub id>"):
        export_adapter(adapter_folder, tmp_path / "packed", llm="a/b")
    assert not (tmp_path / "packed").exists()
    with pytest.raises(BadInput, match="--llm <hub id>"):
        export_adapter(adapter_folder, tmp_path / "packed", whisper="a/b")


def test_letters_stay_letters_in_bfloat16(tmp_path, whisper_folder, llm_folder):
    source, target = tmp_path / "trained", tmp_path / "half"
    model, _ = trained(source, whisper_folder, llm_folder, "spelled")
    export_adapter(source, target, allow_local_paths=True, dtype="bfloat16")
    weights = load_file(target / "adapter.safetensors")
    kinds = {tensor.dtype for tensor in weights.values()}
    assert kinds == {torch.bfloat16, torch.uint8}
    letters = model.adapter.speller.letters
    assert torch.equal(weights["speller.letters"], letters) and letters.any()


def test_half_the_bytes_in_bfloat16(adapter_folder, tmp_path):
    target = tmp_path / "packed"
    done = export_adapter(
        adapter_folder,
        target,
        dtype="bfloat16",
        allow_local_paths=True,
        check=True,
    )
    name = "adapter.safetensors"
    assert done.files[name] < 0.6 * os.path.getsize(adapter_folder / name)
    assert 0 < done.difference < 0.5
    with pytest.raises(BadInput, match="int8"):
        export_adapter(adapter_folder, target, dtype="int8")


def test_nothing_is_written_over_or_left_half(adapter_folder, tmp_path):
    target = tmp_path / "packed"
    target.mkdir()
    names = {"whisper": "a/w", "llm": "a/l"}
    export_adapter(adapter_folder, target, **names)  # empty: welcome
    before = (target / "adapter.json").read_bytes()
    export_adapter(adapter_folder, target, **names)  # such a package
    (target / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"notes\.txt"):
        export_adapter(adapter_folder, target, **names)
    names["llm"] = "a/other"
    export_adapter(adapter_folder, target, overwrite=True, **names)
    assert (target / "notes.txt").read_text() == "mine"
    assert (target / "adapter.json").read_bytes() != before
    check_package(target)
    for bad in (adapter_folder, target / "notes.txt"):
        with pytest.raises(BadInput, match="is "):
            export_adapter(adapter_folder, bad, **names)
    weights = adapter_folder / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x01\x02\x03")
    with pytest.raises(BadInput, match="is not the file"):
        export_adapter(adapter_folder, tmp_path / "third", **names)
    # A check that fails in the end leaves nothing either.
    export_names = sorted(os.listdir(tmp_path))
    assert export_names == ["packed", "trained"]


def test_failed_check_leaves_nothing(adapter_folder, tmp_path):
    with pytest.raises(BadInput, match="cannot open this"):
        export_adapter(
            adapter_folder,
            tmp_path / "packed",
            whisper="no-one/nothing",
            llm="no-one/nothing",
            check=True,
        )
    assert os.listdir(tmp_path) == ["trained"]


def test_model_card_says_what_is_known(tmp_path, whisper_folder, llm_folder):
    output = tmp_path / "blsp"
    trained(output / "adapter", whisper_folder, llm_folder)
    (output / "metrics.json").write_text(
        json.dumps({"end.loss": 1.25, "start.loss": 2.5, "steps": 12})
    )
    shutil.copy(f"{ROOT}/hparams/train.yaml", output / "hyperparams.yaml")
    asr = tmp_path / "asr"
    asr.mkdir()
    (asr / "metrics.json").write_text(
        json.dumps(
            {
                "asr.speechllm.wer": 12.345,
                "asr.speechllm.wer_low": 11.0,
                "asr.speechllm.wer_high": 13.0,
                "asr.cascade.wer": 9.0,
                "asr.speechllm.rtf": 0.1,
            }
        )
    )
    (asr / "hyperparams.yaml").write_text(
        "data_folder: /data/LibriSpeech\nlanguage: en\nmax_decode_ratio: 1.5\n"
    )
    some = tmp_path / "some"
    some.mkdir()
    (some / "metrics.json").write_text('{"asr.speechllm.wer": 20}')
    (some / "hyperparams.yaml").write_text(
        "data_folder: /data/speech\ncorpus_options: {corpora: [bass, fsdd]}\n"
        "max_decode_ratio: [any]\n"
    )
    export_adapter(
        output / "adapter",
        tmp_path / "packed",
        metrics=[asr, some],
        whisper="openai/whisper-small",
        llm="someone/llm",
        licence="apache-2.0",
    )
    card = (tmp_path / "packed" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    front = pyyaml.safe_load(front)
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "speechbrain"
    assert front["base_model"] == ["openai/whisper-small", "someone/llm"]
    assert front["language"] == ["en"]
    result, of_some = front["model-index"][0]["results"]
    assert of_some["dataset"]["name"] == "bass, fsdd"
    assert result["dataset"]["name"] == "LibriSpeech"
    assert result["metrics"] == [
        {"type": "wer", "value": 12.345, "name": "WER"}
    ]
    for said in (
        "12.3 [11.0, 13.0] | cascade 9.0",
        "LibriSpeech: answers of at most 1.5 tokens for each",
        "ResponseCrossEntropy",
        "`number_of_epochs` 10",
        "steps: 12",
        "2.5",
    ):
        assert said in text, said
    from huggingface_hub import ModelCard

    assert ModelCard(card).data.eval_results[0].metric_value == 12.345
    for bad in (tmp_path, tmp_path / "missing.json"):
        with pytest.raises(BadInput, match="not a metrics.json"):
            export_adapter(
                output / "adapter", tmp_path / "x", [bad], "a/b", "a/c"
            )


def test_one_model_for_transformers(adapter_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    import blsp_plugin.huggingface  # noqa: F401

    target = tmp_path / "one"
    done = export_transformers(adapter_folder, target)
    assert "config.json" in done.files
    AutoModelForCausalLM.from_pretrained(target)
    with pytest.raises(BadInput, match="holds something else"):
        export_transformers(adapter_folder, target)
    export_transformers(adapter_folder, target, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["one", "trained"]


def test_files_do_not_depend_on_the_machine(
    adapter_folder, tmp_path, monkeypatch
):
    """What was trained in bfloat16 is written so where it is emulated, too."""
    path = adapter_folder / "adapter.json"
    facts = json.loads(path.read_text())
    facts.update(llm_dtype="bfloat16", encoder_dtype="bfloat16")
    path.write_text(json.dumps(facts))
    written = []
    for native in (True, False):
        monkeypatch.setattr(pretrained, "_has_bfloat16", lambda n=native: n)
        target = tmp_path / str(native)
        export_transformers(adapter_folder, target)
        files = sorted(target.iterdir())
        written.append({file.name: file.read_bytes() for file in files})
    assert written[0] == written[1]
    assert json.loads(written[0]["config.json"])["dtype"] == "bfloat16"


# What strangers packed


@pytest.fixture(scope="module")
def package(tmp_path_factory, whisper_folder, llm_folder):
    folder = tmp_path_factory.mktemp("good")
    trained(folder, whisper_folder, llm_folder, lora=["llm"])
    return folder


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def nested(depth):
    return "[" * depth + "]" * depth


def change(*keys, value):
    """A change of one entry of the JSON."""

    def changed(facts):
        place = facts
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return changed


ARGUMENTS = ("adapter", "arguments")
MALICE = [
    *(
        change("adapter", "class", value=value)
        for value in ("os.system", "__init__", "nn", "torch", ["ConvAdapter"])
    ),
    *(
        change(*ARGUMENTS, value=value)
        for value in ([1, 2], "x", None, {}, {"cmd": 1}, {"self": 1})
    ),
    *(
        change(*ARGUMENTS, name, value=value)
        for name in ("layers", "bottleneck", "kernel_size", "gain")
        for value in (
            10**12,
            2**16,
            -1,
            0,
            0.5,
            float("nan"),
            float("inf"),
            "8",
            [[8]],
            True,
            {"a": 1},
        )
    ),
    *(
        change("lora", value=value)
        for value in (
            {"rank": 10**12, "alpha": 1},
            {"rank": 4, "alpha": float("nan")},
            {"rank": 4, "alpha": 1, "target_module": 1},
            {"rank": "4", "alpha": 1},
            [4],
            "x",
        )
    ),
    *(
        change("files", value=value)
        for value in (
            {"../../../../etc/passwd": "0"},
            {"/etc/passwd": "0"},
            {"nothing.safetensors": "0"},
            {"adapter.safetensors": 5},
            {"adapter.safetensors": "0"},
            [],
        )
    ),
    *(
        change("prompt", "chat_options", value=value)
        for value in (
            {"tokenize": True},
            {"chat_template": "{{ ''.__class__.__mro__ }}"},
            {"return_tensors": "pt"},
            {"conversation": []},
        )
    ),
    change("prompt", "content", value="no slot"),
    change("prompt", "content", value="{speech}{speech}"),
    change("prompt", "template", value="{speech}{0.__class__}{instruction}"),
    change("prompt", value={}),
    *(
        change("llm_dtype", value=value)
        for value in ("load", "os.system", "manual_seed", "", "int8 ", 5)
    ),
    *(
        change(name, value=value)
        for name in ("whisper", "llm")
        for value in ("starter:../../x", "/etc", "no-one/x", 5, "")
    ),
    *(
        change("format", value=value)
        for value in (None, 0, 2, True, "1", [], {}, 10**30)
    ),
    *(change("base", value=value) for value in (None, {}, [1], {"llm": 5})),
    change("pad_to_30s", value="yes"),
]


def test_json_route_executes_nothing(
    package, tmp_path, monkeypatch, capfd, whisper_folder, llm_folder
):
    """It opens, or ends with one line; nothing appears, nothing is called."""
    monkeypatch.chdir(tmp_path)
    folder, mark = tmp_path / "folder", tmp_path / "mark"
    shutil.copytree(package, folder)
    touch = f"touch {mark}"
    (folder / "hyperparams.yaml").write_text(
        "%TAG !e! !apply:os.\n---\n"
        f"a: !apply:os.system ['{touch}']\n"
        f"b: !new:subprocess.Popen [['touch', '{mark}']]\n"
        f"c: !e!popen ['{touch}']\n"
        f"d: !<!apply:os.execvp> ['{touch}']\n"
        "modules: {}\n"
    )
    code = f"import os\nos.system({touch!r})\n"
    for name in ("custom.py", "adapter.py", "modeling.py", "conftest.py"):
        (folder / name).write_text(code)
    for name in ("adapter.ckpt", "adapter.bin", "pytorch_model.bin"):
        with open(folder / name, "wb") as stream:
            pickle.dump(Evil(mark), stream)
    before = sorted(os.listdir(tmp_path)), sorted(os.listdir(folder))
    opened = SpeechLLM.from_hparams(str(folder), run_opts=CPU)
    opened.answer(make_wavs([0.5])[0], "Hm?", max_new_tokens=3)

    def stays_clean(says=None):
        with pytest.raises(BadInput, match=says) as caught:
            SpeechLLM.from_hparams(str(folder), run_opts=CPU)
        assert "\n" not in str(caught.value)
        assert (sorted(os.listdir(tmp_path)), sorted(os.listdir(folder))) == (
            before
        )

    path = folder / "adapter.json"
    good = path.read_text()
    opens = 0
    for changed in MALICE:
        facts = json.loads(good)
        changed(facts)
        path.write_text(json.dumps(facts))
        try:
            stays_clean()
        except pytest.fail.Exception:
            opens += 1
            assert not mark.exists()
    # True is 1, a gain is replaced by the weights, an option that no template
    # asks for is nothing: these open.
    assert opens <= 7
    deep = '{"base": ' + nested(100000) + "}"
    huge = '{"base": {}, "x": "' + "x" * 2**21 + '"}'
    for text in (deep, huge, nested(5), "NaN", '{"base": {"a": 1e999}}', ""):
        path.write_text(text)
        stays_clean("adapter.json")
    path.write_text(good)

    # A pickle, and a file of other tensors, under the name of weights.
    weights = folder / "adapter.safetensors"
    good_weights = weights.read_bytes()
    with open(weights, "wb") as stream:
        pickle.dump(Evil(mark), stream)
    stays_clean("cannot open this adapter")
    save_file({"evil": torch.zeros(1)}, weights)
    stays_clean("does not fit")
    weights.write_bytes(good_weights)

    # LoRA where it has no place.
    lora = folder / "lora.safetensors"
    good_lora = lora.read_bytes()
    for name in ("x.y.z", "llm.embed.a.b", "adapter.norm.a.b", "a", "..."):
        save_file({name: torch.zeros(4, 4)}, lora)
        stays_clean("no place for LoRA")
    lora.write_bytes(good_lora)

    # A base that brings code of its own, even where somebody types "y".
    base = tmp_path / "base"
    shutil.copytree(llm_folder, base)
    config = json.loads((base / "config.json").read_text())
    config["auto_map"] = dict.fromkeys(
        ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), "evil.Evil"
    )
    config["model_type"] = "evil"
    (base / "config.json").write_text(json.dumps(config))
    (base / "evil.py").write_text(code)
    facts = json.loads(good)
    path.write_text(json.dumps({**facts, "llm": str(base)}))
    before = sorted(os.listdir(tmp_path)), before[1]
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    stays_clean("cannot open this")
    path.write_text(good)

    # The YAML's way is named with all that it would execute, not taken.
    facts = json.loads(good)
    path.write_text(json.dumps({**facts, "adapter": None}))
    stays_clean("os.system, subprocess.Popen, os.popen, os.execvp")
    path.write_text(json.dumps({"base": facts["base"]}))
    stays_clean("it would execute: os.system")
    path.write_text(good)
    with pytest.raises(BadInput, match="os.system"):
        SpeechLLM.from_hparams(str(folder), overrides={"a": 1})
    assert not mark.exists()
    assert not capfd.readouterr().out


# Upload


class Hub(http.server.BaseHTTPRequestHandler):
    """The few calls of the hub that an upload makes."""

    protocol_version = "HTTP/1.1"

    @property
    def here(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):  # noqa: N802
        self.server.seen.append(("GET", self.path, b""))
        self.answer({"id": "me/adapter", "siblings": [], "sha": "0" * 40})

    def do_POST(self):  # noqa: N802
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        self.server.seen.append(("POST", self.path, body))
        if self.path.endswith("/repos/create"):
            return self.answer({"url": f"{self.here}/me/adapter"})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            for file in files:
                file.update(uploadMode="regular", shouldIgnore=False)
            return self.answer({"files": files})
        if self.path.endswith("/validate-yaml"):
            return self.answer({"errors": [], "warnings": []})
        return self.answer(
            {
                "commitUrl": f"{self.here}/me/adapter/commit/" + "0" * 40,
                "commitOid": "0" * 40,
                "success": True,
            }
        )

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(
        url=f"http://127.0.0.1:{server.server_port}", server=server
    )
    server.shutdown()


def pushing(package, target, url):
    """`blsp export --push` in a process of its own."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(target) + "_home",
        "PYTHONPATH": ROOT,
    }
    command = [sys.executable, "-m", "blsp_plugin", "export", package, target]
    command += ["--whisper", "a/w", "--llm", "a/l", "--push", "me/adapter"]
    return subprocess.run(
        [str(part) for part in command],
        env=environment,
        capture_output=True,
        text=True,
    )


def test_push_uploads_the_package(package, tmp_path, hub):
    done = pushing(package, tmp_path / "packed", hub.url)
    assert done.returncode == 0, done.stderr
    assert "me/adapter" in done.stdout
    [commit] = [body for _, path, body in hub.server.seen if "/commit/" in path]
    files = {
        json.loads(line)["value"]["path"]
        for line in commit.splitlines()
        if json.loads(line)["key"] == "file"
    }
    assert files == set(os.listdir(tmp_path / "packed"))


def test_push_without_network_is_one_line(package, tmp_path):
    """Offline mode, as the tests run."""
    with pytest.raises(BadInput, match="not uploaded") as caught:
        push(str(package), "me/adapter")
    assert "\n" not in str(caught.value)
