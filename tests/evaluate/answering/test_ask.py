import dataclasses
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nvlm.errors import UserError
from nvlm.evaluate.answering.ask import conversation, images, prompt
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
from nvlm.params import composed, parse_params

ASK = AskParams(system="Be brief.", prompt="{question}\nAnswer.", max_new_tokens=4)


def question(text: str, *choices: str) -> Question:
    return Question(id=1, images=(Path("x.png"),), text=text, references=("a",), choices=choices)


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


SEVERAL = Question(
    id=1,
    images=(Path("a.png"), Path("b.png"), Path("c.png")),
    text="Is <image 2> as red as <image 1>? See <image>.",
    references=("A",),
    choices=("<image 3>", "no"),
)
CHOICE = AskParams(
    system="", prompt="{question}\n{options}", option="{letter}. {text}", max_new_tokens=4
)


def test_of_several_images_the_first_is_shown_or_all_where_the_text_names_them():
    assert conversation(SEVERAL, CHOICE) == [
        Turn(role="user", text="<image>\nIs as red as ? See .\nA. \nB. no")
    ]
    assert [path.name for path in images(SEVERAL, CHOICE)] == ["a.png"]
    every = dataclasses.replace(CHOICE, images="all")
    shown = "Is <image> as red as <image>? See .\nA. <image>\nB. no"
    assert conversation(SEVERAL, every) == [Turn(role="user", text=shown)]
    assert [path.name for path in images(SEVERAL, every)] == ["b.png", "a.png", "c.png"]
    assert images(question("Why?"), every) == [Path("x.png")]


def test_an_image_that_is_named_and_not_there_is_an_error():
    every = dataclasses.replace(CHOICE, images="all")
    asked = dataclasses.replace(SEVERAL, images=SEVERAL.images[:2])
    with pytest.raises(UserError, match="question 1 shows image 3 and has 2"):
        images(asked, every)


@pytest.mark.parametrize("scale", ["smoke", "full"])
def test_configured_prompts_are_those_of_the_recipe(scale: str):
    composed_tasks = OmegaConf.create(composed([f"scale={scale}"])).eval.tasks
    tasks = {name: parse_params(value, TaskParams, name) for name, value in composed_tasks.items()}
    asked = question("What?", "red", "blue")
    by_letter = multiple_choice("What?", ["red", "blue"])
    expected = {
        **dict.fromkeys(("captioning", "Flickr30k", "NoCaps"), DESCRIBE),
        **dict.fromkeys(("TextVQA", "DocVQA", "InfoVQA"), f"What?{READ_ANSWER}"),
        **dict.fromkeys(("VQAv2", "OK-VQA", "ChartQA"), f"What?{SHORT_ANSWER}"),
        **dict.fromkeys(("AI2D", "OCRBench", "inference"), "What?"),
        **dict.fromkeys(("AI2D_no_mask", "MathVista", "RealWorldQA"), by_letter),
        "MMMU": by_letter if scale == "smoke" else f"What?\n(A) red\n(B) blue\n\n{CHOOSE}",
    }
    promised = {"captioning", "TextVQA", "VQAv2", "MMMU", "inference"}
    assert (promised if scale == "smoke" else expected.keys()) <= tasks.keys()
    tasks = {name: tasks[name] for name in tasks.keys() & expected.keys()}  # not one's own
    assert {name: prompt(asked, task.ask) for name, task in tasks.items()} == {
        name: expected[name] for name in tasks
    }
    math = "You are math expert. Use your math knowledge to calculate the answer."
    assert {name: task.ask.system for name, task in tasks.items()} == {
        name: math if name == "MathVista" else SYSTEM for name in tasks
    }
    for name in tasks.keys() & {"MMMU", "RealWorldQA"}:
        assert prompt(question("What?"), tasks[name].ask) == f"What?{SHORT_ANSWER}"
    if "MathVista" in tasks:
        assert prompt(question("What?"), tasks["MathVista"].ask) == "What?"


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
    base = {"max_tiles": 6, "thumbnail": True, "tile_tags": True, "dtype": "half"}
    with pytest.raises(UserError, match="dtype: float32 or bfloat16, not 'half'"):
        parse_params(base, GenerateParams, "eval.generate")
