"""A generation that is killed goes on where it was, and ends with the same bytes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.evaluate import fixtures
from tests.evaluate.small_model import (
    ASK,
    PARAMS,
    TASK,
    become_only_rank,
    make_checkpoint,
    make_questions,
    run_params,
)

from nvlm.evaluate.answering import generation
from nvlm.evaluate.answering.answers import Answer
from nvlm.evaluate.answering.resume import AnswerLog, depends_on
from nvlm.evaluate.answering.worker import Asking, work
from nvlm.evaluate.params import SamplingParams
from nvlm.evaluate.question import Question
from nvlm.parallel.grid import GridParams

QUESTIONS = [
    Question(id=number, images=(Path("x.png"),), text="?", references=("a",)) for number in (1, 2)
]


def answer(question_id: int, text: str) -> Answer:
    return Answer(question_id=question_id, prompt="?", text=text)


def test_whole_lines_are_kept_and_half_a_line_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    log = AnswerLog("run", ["model"])
    log.append([answer(1, "ja \u2028 😀\nzwei")])
    (path,) = Path(".resume").iterdir()
    whole = path.read_bytes()
    for half in (
        b'{"question_id": 2, "prompt": "?", "ans',
        b"\xf0\x9f",
        b'{"question_id": 2}\n[]\n',
    ):
        path.write_bytes(whole + half)
        assert log.answers(QUESTIONS) == [answer(1, "ja \u2028 😀\nzwei")]
        assert [question.id for question in log.pending(QUESTIONS)] == [2]
        log.append([answer(2, "b")])  # on a line of its own
        assert log.answers(QUESTIONS)[1] == answer(2, "b")
        path.write_bytes(whole)
    # Another benchmark's questions are not mistaken for answered.
    assert log.pending(QUESTIONS[1:]) == QUESTIONS[1:]
    log.append([answer(1, "ja"), answer(2, "b"), answer(2, "c")])
    log.write(tmp_path / "out.jsonl", QUESTIONS)
    log.forget()
    assert Path("out.jsonl").read_text().splitlines()[-1].endswith('"answer": "b"}')
    assert not path.exists()


def test_another_model_prompt_or_set_begins_anew(tmp_path: Path):
    image = tmp_path / "x.png"
    image.write_bytes(b"1")
    (tmp_path / "checkpoint.json").write_text("{}")
    asked = [dataclasses.replace(question, images=(image,)) for question in QUESTIONS]
    described = [depends_on(tmp_path, PARAMS, ASK, asked, False)]
    (tmp_path / "checkpoint.json").write_text('{"files": {}}')
    described.append(depends_on(tmp_path, PARAMS, ASK, asked, False))
    described.append(depends_on(tmp_path, PARAMS, ASK, asked, True))
    ask = dataclasses.replace(ASK, max_new_tokens=5)
    described.append(depends_on(tmp_path, PARAMS, ask, asked, False))
    params = dataclasses.replace(PARAMS, max_tiles=1)
    described.append(depends_on(tmp_path, params, ASK, asked, False))
    described.append(depends_on(tmp_path, PARAMS, ASK, asked[:1], False))
    image.write_bytes(b"12")
    described.append(depends_on(tmp_path, PARAMS, ASK, asked, False))
    names = {AnswerLog("x", each)._path for each in described}
    assert len(names) == len(described)


class Kill(BaseException):
    pass


@pytest.mark.parametrize("temperature", [None, 0.7])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temperature: float | None
):
    """Also when it samples, although the rest is then asked in other batches."""
    become_only_rank(monkeypatch)
    monkeypatch.chdir(tmp_path)
    make_questions(tmp_path / "data")
    checkpoint = make_checkpoint(tmp_path / "model", tensor=1)
    params = PARAMS
    if temperature:
        sampling = SamplingParams(temperature=temperature, top_p=0.9, seed=5)
        params = dataclasses.replace(PARAMS, sampling=sampling)
    asked: list[int] = []
    real = generation.answer_batch

    def run(out: str, batch_size: int, most: int) -> bytes:
        def counted(model, prompter, questions: Sequence[Question], *rest):
            if len(asked) >= most:
                raise Kill
            asked.extend(int(question.id) for question in questions)
            return real(model, prompter, questions, *rest)

        monkeypatch.setattr(generation, "answer_batch", counted)
        asking = Asking(task=TASK, checkpoint=checkpoint, data=Path("data"), out=Path(out))
        work(GridParams(tensor=1), params, run_params(batch_size), asking)
        return Path(out).read_bytes()

    undisturbed = run("whole.jsonl", 5, most=5)
    assert len(asked) == 5
    asked.clear()
    with pytest.raises(Kill):
        run("killed.jsonl", 2, most=4)
    assert not Path("killed.jsonl").exists()
    assert run("killed.jsonl", 2, most=5) == undisturbed
    assert sorted(asked) == [0, 1, 2, 3, 4]  # none was asked twice
    assert len(fixtures.read(Path("data"), "vqav2")) == 5
    assert not list(Path(".resume").iterdir())
