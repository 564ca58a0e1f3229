"""Scores on the way: the answers of one process on any grid, and a run that does not notice."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.evaluate import fixtures
from tests.evaluate.small_model import (
    ASK,
    PARAMS,
    become_only_rank,
    make_checkpoint,
    make_questions,
    run_params,
    write_params,
)
from tests.parallel.grids import train_params

from nvlm.checkpoint.relayout.repartition import repartition
from nvlm.errors import UserError
from nvlm.evaluate.answering import generation
from nvlm.evaluate.answering.answers import Answer
from nvlm.evaluate.answering.prompter import Prompter
from nvlm.evaluate.metrics import vqa
from nvlm.evaluate.online import OnlineEvaluation, share, subset
from nvlm.evaluate.question import Question
from nvlm.launch.local import launch
from nvlm.model.tokens import load_tokenizer
from nvlm.parallel.generation import most_likely, observed
from nvlm.parallel.grid import GridParams
from nvlm.parallel.mesh import parallel_mesh
from nvlm.parallel.state import load_model
from nvlm.train.curves import Curves
from nvlm.train.loop import train
from nvlm.train.online import OnlineParams
from nvlm.train.telemetry.logs import Logs
from nvlm.train.trainer import Trainer

ALONE = GridParams(tensor=1)
GRIDS = {
    "TP=2 x PP=2": GridParams(tensor=2, pipeline=2),
    "DP=2": GridParams(tensor=1, shard=2),
}
BOTH = ["vision_projection", "language_model"]
STOP = list(range(0, 256, 5))  # a fifth of all tokens: answers end at different steps
ONLINE = OnlineParams(every=2, tasks=["VQAv2"], questions=5, batch_size=2)


def make_project(root: Path, grid: GridParams) -> Path:
    """A checkpoint for ``grid``, the same model on each; parameters, and five questions."""
    combined = make_checkpoint(root, grid.tensor)
    repartition(combined, root / "start", pipeline=grid.pipeline)
    make_questions(root / "data/eval/VQAv2")
    write_params(root, batch_size=2)
    return root


def write_expected(root: Path) -> None:
    """Worker: transformers' answers to the questions, on one process."""
    generation.stop_tokens = lambda tokenizer: STOP
    given: list[Answer] = []
    with parallel_mesh(ALONE) as mesh:
        model = load_model(root / "start", mesh, torch.float32, gather_logits=True)
        tokenizer = load_tokenizer(root / "start/tokenizer")
        generation.generate_answers(
            model,
            Prompter(tokenizer, model.architecture, PARAMS, ASK),
            fixtures.read(root / "data/eval/VQAv2", "vqav2"),
            run_params(5),
            group=mesh.tensor.get_group(),
            write=given.extend,
        )
    texts = {str(answer.question_id): answer.text for answer in given}
    (root / "expected.json").write_text(json.dumps(texts))


def write_found(root: Path, grid: GridParams) -> None:
    """Worker: answers and scores on the grid, by a model that is about to be trained."""
    os.chdir(root)
    with parallel_mesh(grid) as mesh:
        params = train_params(grid, BOTH, 20)
        params = replace(params, hidden_dropout=0.5, recompute_every=1)
        trainer = Trainer(params, root / "start", mesh)
        model = trainer.model
        before = [model.training for model in model.modules()]
        online = OnlineEvaluation(ONLINE, model, load_tokenizer(root / "start/tokenizer"), mesh)
        online.stop_ids = STOP
        scores = online.scores()
        # What the optimizer steps on, and snapshots are made of, is there under its name.
        held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
        assert held == {
            id(parameter) for parameter in model.parameters() if parameter.requires_grad
        }
        assert [model.training for model in model.modules()] == before
        (task,) = online.tasks
        with observed(model):
            answers = online.answers(task)
        texts = {str(each.id): text for each, text in zip(task.questions, answers, strict=True)}
        found = {"answers": texts, "scores": scores}
        (root / f"found-{dist.get_rank()}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    root = make_project(tmp_path_factory.mktemp("one"), ALONE)
    launch(write_expected, 1, root)
    answers = json.loads((root / "expected.json").read_text())
    assert len(set(answers.values())) > 2
    assert len({len(text) for text in answers.values()}) > 2
    return answers


@pytest.mark.parametrize("name", GRIDS)
def test_every_rank_knows_the_scores_of_what_transformers_generates(name, expected, tmp_path):
    grid = GRIDS[name]
    root = make_project(tmp_path, grid)
    # Two of the questions are answered as the model does, so that the score is not 0.
    path = root / "data/eval/VQAv2/questions.json"
    records = json.loads(path.read_text())
    for record in (record for record in records if record["question_id"] in {0, 3}):
        record["answer"] = [expected[str(record["question_id"])]] * 10
    path.write_text(json.dumps(records))
    questions = fixtures.read(path.parent, "vqav2")
    verdicts = vqa.score(questions, [expected[str(question.id)] for question in questions])
    score = sum(verdict.score for verdict in verdicts) / len(verdicts)
    assert 0 < score < 1
    launch(write_found, grid.processes, root, grid)
    for rank in range(grid.processes):
        found = json.loads((root / f"found-{rank}.json").read_text())
        assert found["answers"] == expected
        assert found["scores"] == {"VQAv2": pytest.approx(score, abs=1e-6)}


def run_both(root: Path, data: Path, grid: GridParams) -> None:
    """Worker: four steps without scores, and four with them."""
    base = train_params(grid, BOTH, 4)
    stream = replace(base.data, blend={"shapes": 1.0}, sequence_length=300, shuffle_buffer=10)
    params = replace(
        base,
        data=stream,
        global_batch=4,
        hidden_dropout=0.1,
        recompute_every=1,
        snapshot_every=2,
    )
    os.chdir(root)
    with parallel_mesh(grid) as mesh:
        for name, online in (("plain", None), ("scored", ONLINE)):
            train(
                replace(params, online=online),
                checkpoint=root / "start",
                data=data,
                out=root / name / "out",
                curves=Curves(root / name / "sft.csv"),
                logs=Logs(root / name / "logs", "sft", tensorboard=False),
                mesh=mesh,
            )


@pytest.mark.parametrize("name", GRIDS)
def test_a_scored_run_ends_with_the_bytes_of_one_that_was_not(name, datasets, tmp_path):
    grid = GRIDS[name]
    root = make_project(tmp_path, grid)
    launch(run_both, grid.processes, root, datasets, grid)
    plain, scored = (content(root / name) for name in ("plain", "scored"))
    assert len(plain) > 5
    assert plain == scored
    assert not (root / "plain/logs/sft_online.csv").exists()
    with (root / "scored/logs/sft_online.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert all(0 <= float(row["VQAv2"]) <= 1 for row in rows)


def content(directory: Path) -> dict[str, bytes]:
    files = [*sorted((directory / "out").rglob("*")), directory / "sft.csv"]
    return {str(f.relative_to(directory)): f.read_bytes() for f in files if f.is_file()}


@pytest.fixture
def mesh(monkeypatch):
    become_only_rank(monkeypatch)
    with parallel_mesh(ALONE) as mesh:
        yield mesh


def test_what_can_not_be_asked_is_named_at_the_start(mesh, monkeypatch, tmp_path):
    monkeypatch.chdir(make_project(tmp_path, ALONE))
    model = load_model(tmp_path / "start", mesh, torch.float32)
    tokenizer = load_tokenizer(tmp_path / "start/tokenizer")
    with pytest.raises(UserError, match=r"online\.tasks: 'VQAv3' should be one of eval\.tasks"):
        OnlineEvaluation(replace(ONLINE, tasks=["VQAv2", "VQAv3"]), model, tokenizer, mesh)
    (tmp_path / "data/eval/VQAv2").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="run dvc repro prepare_eval@VQAv2"):
        OnlineEvaluation(ONLINE, model, tokenizer, mesh)


def test_padding_of_the_vocabulary_is_never_chosen_and_of_equals_the_first(mesh):
    logits = torch.tensor([[1.0, 2, 0, 9], [3, 1, 3, 9]])
    assert most_likely(logits, 3, mesh.tensor).tolist() == [1, 0]


def test_the_questions_are_the_same_whatever_their_order():
    every = [Question(id=n, images=(), text="", references=()) for n in range(50)]
    chosen = subset(every, 5)
    assert subset(every[::-1], 5) == chosen
    assert subset(every, 20)[:5] == chosen
    assert len({question.id for question in chosen}) == 5
    assert [question.id for question in chosen] != [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_each_replica_asks_something_and_all_is_asked(count):
    shares = [share(range(count), rank, 4) for rank in range(4)]
    assert all(shares)
    assert {place for mine in shares for place in mine} == set(range(count))
