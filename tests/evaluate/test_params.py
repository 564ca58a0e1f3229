"""What is misspelt in conf/eval/ is found when it is read, and named with its task."""

import copy
from typing import Any

import pytest
from omegaconf import OmegaConf

from nvlm.errors import UserError
from nvlm.evaluate import params
from nvlm.evaluate.ground_truth import readers
from nvlm.evaluate.params import EvaluationParams
from nvlm.evaluate.reporting import scoring
from nvlm.params import composed, parse_params


@pytest.fixture(scope="module")
def configured() -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.create(composed(["scale=full"])).eval)
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items()}


def read(values: dict[str, Any], task: str, **changes: Any) -> EvaluationParams:
    """The section with ``changes`` to ``task``: keys of it, with __ for a dot."""
    values = copy.deepcopy(values)
    for key, value in changes.items():
        *path, last = key.split("__")
        section = values["tasks"][task]
        for name in path:
            section = section[name]
        section[last] = value
    return parse_params(values, EvaluationParams, "eval")


def test_what_is_configured_passes(configured: dict[str, Any]):
    assert len(read(configured, "VQAv2").tasks) > 12


def test_the_names_are_those_of_the_registries():
    assert set(params.READERS) == {params.RECORDS, *readers.READERS}
    assert set(params.METRICS) == set(scoring.METRICS)


@pytest.mark.parametrize(
    ("task", "changes", "words"),
    [
        ("VQAv2", {"ask__prompt": "{qestion}\nOne word."}, r"ask\.prompt: \{qestion\} stands for"),
        ("VQAv2", {"ask__prompt": "{letter}. {question}"}, r"ask\.prompt: \{letter\} stands"),
        ("MMMU", {"ask__open_prompt": "{question} {options}"}, r"ask\.open_prompt: \{options\}"),
        ("MMMU", {"ask__option": "{leter}. {text}"}, r"\.option: \{leter\} .*\{letter\} and \{tex"),
        ("VQAv2", {"metric": "vqa2"}, "metric: one of anls, .*, vqa, not 'vqa2'"),
        ("VQAv2", {"metric": ""}, "metric: one of .* not ''"),
        (
            "VQAv2",
            {"ground_truth__reader": "vqa"},
            r"ground_truth\.reader: one of records, .*'vqa'",
        ),
        (
            "DocVQA",
            {"ground_truth__fields": {"question": "q"}},
            r"ground_truth\.fields: image, answers must be named",
        ),
        (
            "DocVQA",
            {"ground_truth__fields__split": "s"},
            r"fields: split is none of question, image, answers, id",
        ),
        ("VQAv2", {"ground_truth__fields": {"id": "x"}}, "fields: for the reader records alone"),
    ],
)
def test_a_slip_is_named_with_its_task_and_key(
    configured: dict[str, Any], task: str, changes: dict[str, Any], words: str
):
    with pytest.raises(UserError, match=rf"^eval\.tasks\.{task}\..*{words}"):
        read(configured, task, **changes)


@pytest.mark.parametrize(
    "prompt", ["{question}", "{question}\nWrite \\boxed{answer}.", "{question} as {}, {'a': 1}"]
)
def test_braces_that_are_no_place_are_left_alone(configured: dict[str, Any], prompt: str):
    assert read(configured, "VQAv2", ask__prompt=prompt).tasks["VQAv2"].ask.prompt == prompt


def test_a_task_that_is_only_asked_needs_no_metric(configured: dict[str, Any]):
    assert read(configured, "inference").tasks["inference"].metric == ""
