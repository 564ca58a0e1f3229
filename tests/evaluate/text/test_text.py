"""Text benchmarks: the harness's command line and environment, its results as metrics, mistakes.

``harness_results.json`` is what lm_eval 0.4.13 wrote of the local tasks and of a group of groups,
cut to what is not about the machine; one standard error is made the "N/A" of rules without one.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.evaluate.small_model import make_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from nvlm.checkpoint.huggingface.exporting import export_hf
from nvlm.errors import UserError
from nvlm.evaluate.text.harness import LOCK, OWN_TASKS, by_shots, command, find_python
from nvlm.evaluate.text.params import TextParams, TextTaskParams
from nvlm.evaluate.text.results import measured, versions
from nvlm.params import parse_params

ROOT = Path(__file__).parents[3]
ENVIRONMENT = ROOT / ".venv-text"
RESULTS = Path(__file__).with_name("harness_results.json")
SUMS = TextTaskParams(shots=0, metric="exact_match,none")
BOTH = TextTaskParams(shots=0, metric="acc,none")
PROGRAM = TextTaskParams(shots=0, metric="pass@1,create_test", executes=True)
PARAMS = TextParams(
    models={},
    tasks={"local_sums": SUMS, "local_both": BOTH},
    chat=False,
    dtype="float32",
    max_new_tokens=4,
    limit=None,
    allow_execution=False,
    batch_size=16,
    environment=".venv-text",
)
# Stands for the harness: says its version, and writes stored results as the real one does.
STAND_IN = f"""#!{sys.executable}
import json, os, pathlib, sys
if sys.argv[1] == "-c":
    print("0.4.13")
    sys.exit()
out = pathlib.Path(sys.argv[sys.argv.index("--output_path") + 1])
model = json.loads(sys.argv[sys.argv.index("--model_args") + 1])["pretrained"]
seen = {{
    "tasks": [word for word in sys.argv if word.startswith("local_")],
    "variables": [name for name in ("PYTHONPATH", "HF_ALLOW_CODE_EVAL") if name in os.environ],
    "confirmed": "--confirm_run_unsafe_code" in sys.argv,
    "files": sorted(path.name for path in pathlib.Path(model).iterdir()),
}}
with open("seen.jsonl", "a") as file:
    file.write(json.dumps(seen) + "\\n")
if "local_broken" in sys.argv:
    sys.exit(3)
results = pathlib.Path({str(RESULTS)!r}).read_text()
out.with_name(out.stem + "_2026-11-26T09-53-10.json").write_text(results)
"""


def stored():
    return json.loads(RESULTS.read_text())


def test_the_command_line_says_what_the_parameters_say():
    python, model, out = Path("env/bin/python"), Path("a model,1"), Path("scratch/0.json")
    asked = {"local_sums": SUMS}
    words = command(python, model, PARAMS, asked, on_gpus=False, out=out)
    assert words[:6] == ["env/bin/python", "-m", "lm_eval", "run", "--model", "hf"]
    options = dict(zip(words[6::2], words[7::2], strict=True))
    assert json.loads(options.pop("--model_args")) == {
        "pretrained": "a model,1",
        "dtype": "float32",
        "parallelize": False,
    }
    assert json.loads(options.pop("--gen_kwargs")) == {"max_gen_toks": 4}
    assert options == {
        "--device": "cpu",
        "--tasks": "local_sums",
        "--num_fewshot": "0",
        "--batch_size": "16",
        "--output_path": "scratch/0.json",
        "--include_path": "conf/eval/text_tasks",
    }
    other = replace(PARAMS, chat=True, limit=7)
    asked = {"local_sums": SUMS, "humaneval": PROGRAM}
    more = command(python, model, other, asked, on_gpus=True, out=out)
    assert more[more.index("--tasks") :][:3] == ["--tasks", "local_sums", "humaneval"]
    assert more[more.index("--limit") + 1] == "7" and more[more.index("--device") + 1] == "cuda"
    assert json.loads(more[more.index("--model_args") + 1])["parallelize"] is True
    assert {"--apply_chat_template", "--confirm_run_unsafe_code"} <= set(more)


def test_a_run_has_one_number_of_shots():
    few = replace(SUMS, shots=2)
    tasks = {"a": SUMS, "b": few, "c": BOTH}
    assert by_shots(tasks) == [{"a": SUMS, "c": BOTH}, {"b": few}]


def test_programs_are_run_where_that_is_allowed_and_nowhere_else():
    params = replace(PARAMS, tasks={"local_sums": SUMS, "humaneval": PROGRAM})
    assert list(params.run()) == ["local_sums"]
    assert list(replace(params, allow_execution=True).run()) == ["local_sums", "humaneval"]


def test_results_become_metrics():
    """A group's questions are those of its parts, at every depth."""
    error = 0.0598786010182551
    assert measured(stored(), PARAMS.tasks, {"local_both": 25.5}) == {
        "local_sums": {"score": 0.0, "stderr": None, "shots": 0, "questions": 24},
        "local_both": {
            "score": 5 / 24,
            "stderr": error,
            "shots": 0,
            "questions": 48,
            "published": 0.255,
        },
    }
    # Of 48 questions in two halves: the root of the sum of each half's variance over its questions.
    assert error == pytest.approx((5 / 24 * 19 / 24 / 23 / 2) ** 0.5)
    assert versions(stored(), PARAMS.tasks) == {
        "lm_eval": "0.4.13",
        "transformers": "5.24.0",
        "local_sums": "1.0",
        "local_both": "2",
    }


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (replace(BOTH, metric="exact_match,none"), "'exact_match,none' should be one of acc,none$"),
        (replace(BOTH, shots=5), r"local_both.shots: 5 is not what the harness lets it have \(0\)"),
    ],
)
def test_a_metric_or_shots_that_are_not_there_are_one_sentence(task, message):
    with pytest.raises(UserError, match=message):
        measured(stored(), {"local_both": task}, {})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tasks": {"mmlu": {"shots": -1, "metric": "acc,none"}}}, "mmlu.shots: 0 or more, not -1"),
        ({"tasks": {"mmlu": {"shots": 5, "metric": "acc"}}}, "METRIC,FILTER such as acc,none"),
        ({"dtype": "int8"}, "eval.text.dtype: one of float32, bfloat16, not 'int8'"),
        ({"limit": 0}, "eval.text.limit: at least 1, or null for all, not 0"),
        ({"published": {"mmmu": {}}}, "eval.text.published: mmmu is no task of local_sums"),
    ],
)
def test_a_wrong_value_is_named(changed, message):
    content = {
        "models": {"72b": {"sft": "checkpoints/72b/hf"}},
        "tasks": {"local_sums": {"shots": 2, "metric": "exact_match,none"}},
        **{name: getattr(PARAMS, name) for name in ("chat", "dtype", "limit", "batch_size")},
        **{name: getattr(PARAMS, name) for name in ("max_new_tokens", "allow_execution")},
        "environment": ".venv-text",
    }
    parse_params(content, TextParams, "eval.text")
    with pytest.raises(UserError, match=message):
        parse_params(content | changed, TextParams, "eval.text")


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    export_hf(make_checkpoint(directory, 1), directory / "export", shard_bytes=1 << 30)
    return directory / "export"


def stage(directory, export, tasks, environment, name="sft", **changed):
    """Run the script in ``directory`` with these parameters; its result."""
    text = {"models": {"72b": {"sft": str(export)}}, "tasks": tasks, "environment": environment}
    text |= {"chat": False, "dtype": "float32", "limit": None, "allow_execution": False}
    text |= {"max_new_tokens": 4, "batch_size": 16, **changed}
    launch = {"kind": "local", "device": "cpu", "stop_seconds": 7}
    params = json.dumps({"launch": launch, "eval": {"text": text}})  # JSON is YAML
    (directory / "params.yaml").write_text(params)
    (directory / LOCK.name).write_text((ROOT / LOCK).read_text())
    words = ["--params", "eval.text", "--branch", "72b", "--name", name, "--metrics", "sft.json"]
    return subprocess.run(
        [sys.executable, ROOT / "src/text_benchmarks.py", *words],
        cwd=directory,
        env=os.environ
        | {"PYTHONPATH": str(ROOT / "src"), "HF_ALLOW_CODE_EVAL": "1"}
        | {"HF_HOME": str(directory / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def stand_in(tmp_path):
    """An environment whose harness is the stand-in."""
    python = tmp_path / "environment/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return str(tmp_path / "environment")


def test_the_stage_runs_the_harness_on_the_decoder_alone(tmp_path, export, stand_in):
    tasks = {
        "local_sums": {"shots": 0, "metric": "exact_match,none"},
        "local_both": {"shots": 0, "metric": "acc,none"},
        "local_unsafe": {"shots": 0, "metric": "exact_match,none", "executes": True},
    }
    before = sorted(path.name for path in export.parent.iterdir())
    published = {"local_both": {"72b": {"sft": 80.0}, "34b": {"sft": 70.0}}}
    texts = []
    for _ in range(2):
        done = stage(tmp_path, export, tasks, stand_in, published=published)
        assert done.returncode == 0, done.stderr
        texts.append((tmp_path / "sft.json").read_text())
    assert texts[0] == texts[1] and str(tmp_path) not in texts[0]
    metrics = json.loads(texts[0])
    assert metrics["local_both"]["score"] == 5 / 24
    assert metrics["local_both"]["published"] == 0.8
    assert metrics["left_out"] == ["local_unsafe"]
    assert "left out: local_unsafe (eval.text.allow_execution)" in done.stderr
    seen = json.loads((tmp_path / "seen.jsonl").read_text().splitlines()[0])
    assert seen["tasks"] == ["local_sums", "local_both"]
    assert seen["variables"] == [] and not seen["confirmed"]
    assert {"config.json", "model.safetensors.index.json", "tokenizer.json"} <= set(seen["files"])
    assert "modeling_nvlm_d.py" not in seen["files"]
    assert sorted(path.name for path in export.parent.iterdir()) == before  # the decoder is gone


def test_the_stage_confirms_what_is_allowed_to_the_task_that_needs_it(tmp_path, export, stand_in):
    tasks = {
        "local_sums": {"shots": 0, "metric": "exact_match,none", "executes": True},
        "local_third": {"shots": 1, "metric": "acc,none"},
    }
    stage(tmp_path, export, tasks, stand_in, allow_execution=True)
    first, second = map(json.loads, (tmp_path / "seen.jsonl").read_text().splitlines())
    assert first["variables"] == ["HF_ALLOW_CODE_EVAL"] and first["confirmed"]
    assert second["variables"] == [] and not second["confirmed"]


def test_what_stands_in_the_way_is_one_sentence(tmp_path, export, stand_in):
    task = {"shots": 0, "metric": "acc,none"}
    done = stage(tmp_path, export, {"local_broken": task}, stand_in)
    assert done.returncode == 2
    assert "lm_eval ended with status 3 and without results of local_broken" in done.stderr
    done = stage(tmp_path, export, {"local_both": task}, "nowhere")
    assert done.stderr == (
        "error: nowhere holds no Python for the text benchmarks: run make text-setup, or name "
        "another in eval.text.environment\n"
    )
    done = stage(tmp_path, export, {"local_both": task}, stand_in, name="sftt")
    assert done.stderr == "error: eval.text.models.72b has no sftt, but sft\n"
    assert not (tmp_path / "sft.json").exists()
    (tmp_path / "other.lock").write_text("lm_eval==0.4.99\n")
    with pytest.raises(UserError, match=r"has lm_eval 0\.4\.13, and .* says 0\.4\.99: run make"):
        find_python(Path(stand_in), tmp_path / "other.lock")
    with pytest.raises(UserError, match=r"no\.lock does not pin lm_eval"):
        find_python(Path(stand_in), tmp_path / "no.lock")


def test_the_harness_itself_gives_the_scores_that_the_models_logits_have(tmp_path, export):
    """Opt-in (make text-setup): the local tasks on a small model, by lm_eval and by hand."""
    if not (ENVIRONMENT / "bin/python").is_file():
        pytest.skip(f"no {ENVIRONMENT}: run make text-setup")
    (tmp_path / OWN_TASKS).parent.mkdir(parents=True)
    (tmp_path / OWN_TASKS).symlink_to(ROOT / OWN_TASKS)
    tasks = {
        "local_choices": {"shots": 0, "metric": "acc,none"},
        "local_sums": {"shots": 2, "metric": "exact_match,none"},
    }
    done = stage(tmp_path, export, tasks, str(ENVIRONMENT))
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "sft.json").read_text())
    right = [chosen == row["answer"] for row, chosen in chosen_by_hand(export.parent)]
    share = sum(right) / len(right)
    assert metrics["local_choices"]["score"] == share and 0 < share < 1
    assert metrics["local_choices"]["questions"] == len(right) == 24
    spread = (share * (1 - share) / (len(right) - 1)) ** 0.5
    assert metrics["local_choices"]["stderr"] == pytest.approx(spread)
    assert metrics["local_sums"]["shots"] == 2
    assert metrics["versions"]["lm_eval"] == "0.4.13"


def chosen_by_hand(directory):
    """Each local question, and the place of the choice whose text the model finds likeliest."""
    model = AutoModelForCausalLM.from_pretrained(directory / "hf_language").eval()
    tokenizer = AutoTokenizer.from_pretrained(directory / "hf_language")
    for line in (ROOT / OWN_TASKS / "sums.jsonl").read_text().splitlines():
        row = json.loads(line)
        context = tokenizer(f"{row['question']} =").input_ids
        likelihoods = []
        for choice in row["choices"]:
            answer = tokenizer(f" {choice}").input_ids
            with torch.no_grad():
                logits = model(torch.tensor([context + answer])).logits[0].log_softmax(-1)
            places = range(len(context) - 1, len(context) + len(answer) - 1)
            likelihoods.append(
                sum(float(logits[p, a]) for p, a in zip(places, answer, strict=True))
            )
        yield row, likelihoods.index(max(likelihoods))
