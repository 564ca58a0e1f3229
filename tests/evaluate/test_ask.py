from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nvlm.errors import UserError
from nvlm.evaluate.ask import conversation, prompt
from nvlm.evaluate.params import AskParams, GenerateParams, TaskParams
from nvlm.evaluate.question import Question
from nvlm.model.prompts import (
    CHOOSE,
    DESCRIBE,
    READ_ANSWER,
    SHORT_ANSWER,
    SYSTEM,
    Turn,
    multiple_choice,
)
from nvlm.params import parse_params

ASK = AskParams(system="Be brief.", prompt="{question}\nAnswer.", max_new_tokens=4)


def question(text: str, *choices: str) -> Question:
    return Question(id=1, image=Path("x.png"), text=text, references=("a",), choices=choices)


def test_the_image_comes_first_and_the_system_turn_before_it():
    assert conversation(question("Why?"), ASK) == [
        Turn(role="system", text="Be brief."),
        Turn(role="user", text="<image>\nWhy?\nAnswer."),
    ]


def test_an_empty_system_prompt_is_no_turn():
    ask = AskParams(system="", prompt="{question}", max_new_tokens=4)
    assert [turn.role for turn in conversation(question("Why?"), ask)] == ["user"]


def test_options_are_lettered_and_open_questions_asked_differently():
    ask = AskParams(
        system="",
        prompt="{question}\n{options}\n\nChoose.",
        option="({letter}) {text}",
        open_prompt="{question}\nSay.",
        max_new_tokens=4,
    )
    assert prompt(question("Which?", "red", "blue"), ask) == "Which?\n(A) red\n(B) blue\n\nChoose."
    assert prompt(question("Which?"), ask) == "Which?\nSay."


def test_braces_of_questions_and_prompts_stay_and_image_tags_go():
    ask = AskParams(system="", prompt=r"{question} Put it in \boxed{}.", max_new_tokens=4)
    asked = question("What is {x} or {question} or {options} <image>?")
    assert prompt(asked, ask) == r"What is {x} or {question} or {options} ? Put it in \boxed{}."


@pytest.mark.parametrize("scale", ["smoke", "full"])
def test_configured_prompts_are_those_of_the_recipe(scale: str):
    groups = [OmegaConf.load(f"conf/eval/{name}.yaml") for name in ("tasks", scale)]
    merged = OmegaConf.merge(*groups)
    tasks = {name: parse_params(values, TaskParams, name) for name, values in merged.tasks.items()}
    asked = question("What?", "red", "blue")
    assert {name: prompt(asked, task.ask) for name, task in tasks.items()} == {
        "captioning": DESCRIBE,
        "TextVQA": f"What?{READ_ANSWER}",
        "VQAv2": f"What?{SHORT_ANSWER}",
        "MMMU": multiple_choice("What?", ["red", "blue"])
        if scale == "smoke"
        else f"What?\n(A) red\n(B) blue\n\n{CHOOSE}",
    }
    assert {task.ask.system for task in tasks.values()} == {SYSTEM}
    assert prompt(question("What?"), tasks["MMMU"].ask) == f"What?{SHORT_ANSWER}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: at least 1, not 0"),
        ({"prompt": "{options}"}, "option: should hold {letter} and {text}, not ''"),
        ({"temperature": 1}, "temperature"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, object], message: str):
    base = {"system": "", "prompt": "", "max_new_tokens": 4}
    with pytest.raises(UserError, match=message):
        parse_params(base | values, AskParams, "eval.tasks.X.ask")


def test_generation_parameters_are_checked():
    base = {"batch_size": 8, "max_tiles": 6, "thumbnail": True, "tile_tags": True, "dtype": "half"}
    with pytest.raises(UserError, match="dtype: float32 or bfloat16, not 'half'"):
        parse_params(base, GenerateParams, "eval.generate")
