"""Confusion, gallery and results page."""

from pathlib import Path

import pytest
from PIL import Image
from tests.evaluate import fixtures

from nvlm.checkpoint.format.manifest import MANIFEST
from nvlm.errors import UserError
from nvlm.evaluate.answering.answers import Answer
from nvlm.evaluate.params import (
    AskParams,
    EvaluationParams,
    GenerateParams,
    GroundTruthParams,
    PublishedParams,
    PublishedRow,
    PublishedSource,
    RunParams,
    TaskParams,
)
from nvlm.evaluate.question import Question
from nvlm.evaluate.reporting import results
from nvlm.evaluate.reporting.confusion import NAMED, confusion_table
from nvlm.evaluate.reporting.gallery import write_gallery
from nvlm.evaluate.verdict import Verdict

ASK = AskParams(system="s", prompt="{question}\nAnswer | briefly.", max_new_tokens=4)
GENERATE = GenerateParams(max_tiles=6, thumbnail=True, tile_tags=True, dtype="float32")


def question(number: int, *golds: str, image: Path = Path("x.png")) -> Question:
    return Question(id=number, images=(image,), text="?", references=golds)


def test_confusion_names_what_is_common_and_what_could_not_be_read():
    asked = [
        question(0, "Yes", "no", "yes"),
        question(1, "no"),
        question(2, "no"),
        question(3, "no"),
    ]
    verdicts = [
        Verdict(score=1, read_as="yep"),  # full marks: the truth, however it was put
        Verdict(score=0, read_as="Yes"),
        Verdict(score=0, read_as="maybe"),
        Verdict(score=0, read_as="", unparsable=True),
    ]
    assert confusion_table(asked, verdicts).splitlines() == [
        "truth,answer",
        "yes,yes",
        "no,yes",
        "no,(other)",
        "no,(unparsable)",
    ]


def test_confusion_keeps_only_the_commonest_truths():
    asked = [question(number, f"t{number // 2}") for number in range(2 * NAMED)]
    asked.append(question(999, "rare"))
    verdicts = [Verdict(score=1, read_as="")] * len(asked)
    assert confusion_table(asked, verdicts).splitlines()[-1] == "(other),(other)"


def test_the_gallery_shows_the_three_kinds_and_the_tiles(tmp_path: Path):
    Image.new("RGB", (96, 48), "black").save(tmp_path / "x.png")
    asked = [question(number, "a", image=tmp_path / "x.png") for number in range(3)]
    answers = [
        Answer(question_id=number, prompt="", text=text, grids=((2, 1),))
        for number, text in enumerate(("a", "b 😀", "(" * 10_000))
    ]
    verdicts = [
        Verdict(score=1, read_as="a"),
        Verdict(score=0, read_as="b"),
        Verdict(score=0, read_as="", unparsable=True),
    ]
    write_gallery(tmp_path / "gallery.png", asked, answers, verdicts)
    with Image.open(tmp_path / "gallery.png") as gallery:
        colours = {colour for _, colour in gallery.convert("RGB").getcolors(1 << 24) or []}
    frames = {(0x1A, 0x7F, 0x37), (0xB4, 0x23, 0x18), (0x8A, 0x5A, 0x00)}
    assert frames | {(0x00, 0xA0, 0xFF)} <= colours  # and the line between the tiles


def scored(directory: Path) -> tuple[Path, Path]:
    """Metrics and checkpoints with one scored task each of two models."""
    numbers = {"low": 0.5, "high": 0.7, "majority": 0.2}
    counts = {"samples": 10, "clusters": 7, "unparsable": 1}
    report = {
        "score": 0.6,
        **numbers,
        **counts,
        "blank": 0.3,
        "other_scores": {"recipe": {"score": 0.65, **numbers}},
        "by_category": {"x|y": {"score": 0.6, **numbers, **counts}},
    }
    for model in ("34b/sft", "72b/sft", "72b/released"):
        fixtures.write_json(directory / f"scores/{model}/OCRBench.json", report)
    return directory / "scores", directory / "checkpoints"


def params(ours: str, *names: str) -> EvaluationParams:
    rows = [
        PublishedRow(source="paper", split="all", scores={"72b": 853, "34b": 819}),
        PublishedRow(source="card", split="all", scores={"72b": 640}),
        PublishedRow(source="card", split="hidden", scores={"72b": 700}, setting="blind"),
    ]
    published = PublishedParams(split="all", rows=rows, ours=ours, scale=1000)
    ground_truth = GroundTruthParams(reader="records")
    task = TaskParams(ground_truth=ground_truth, metric="ocrbench", ask=ASK, published=published)
    run = RunParams(
        batch_size=1, tile_chunk=1, concurrency=1, retries=0, timeout=1, answer_ahead=False
    )
    sources = {
        name: PublishedSource(title=f"the {name}", address="https://x")
        for name in ("paper", "card")
    }
    return EvaluationParams(
        generate=GENERATE, run=run, tasks=dict.fromkeys(names, task), sources=sources
    )


def test_the_page_has_our_scores_beside_the_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Source:
        repo, revision = "Qwen/Qwen2-72B-Instruct", "1af63c69"

    class Manifest:
        sources = (Source,)

    monkeypatch.setattr(results, "read_manifest", lambda _: Manifest)
    metrics, checkpoints = scored(tmp_path)
    for model in ("34b/sft", "72b/sft", "72b/released"):
        (checkpoints / model).mkdir(parents=True)
        (checkpoints / model / MANIFEST).write_text("{}")
    asked = params("recipe", "VQAv2", "OCRBench")
    page = results.results_page(metrics, checkpoints, asked, "full")
    assert "## OCRBench" in page
    assert "VQAv2" not in page  # which was not scored
    rows = [line for line in page.splitlines() if line.startswith("| OCRBench")]
    cells = [[cell.strip() for cell in row.split("|")[2:-1]] for row in rows]
    ours = "650.0 (500.0 to 700.0)"
    assert cells == [
        ["10", "7", "200.0", ours, "200.0", ours, ours],
        ["34b ours", "all", ours, "819", "", "0.0", "off"],
        ["72b released", "all", ours, "853", "640", "213.0", "pass"],
        ["72b released", "hidden, blind", "", "", "700", "0.0", ""],
        ["72b ours", "all", ours, "853", "640", "213.0", "pass"],
        ["72b ours", "hidden, blind", "", "", "700", "0.0", ""],
    ]
    assert "- card: the card (https://x)" in page
    assert "Qwen/Qwen2-72B-Instruct @ 1af63c69" in page
    assert "- Prompt: `{question}\\nAnswer | briefly.`" in page
    assert "| 72b sft | x\\|y | 10 | 7 | 1 | 600.0 (500.0 to 700.0) | 200.0 |" in page
    assert "| 72b sft | blank images |  |  |  | 300.0 |  |" in page
    assert "Parser: `ocrbench`. OCRBench: a gold must stand in the answer" in page
    small = results.results_page(metrics, checkpoints, asked, "smoke")
    assert "| pass |" not in small  # another model's score is no verdict on this one


def test_a_page_of_nothing_or_of_an_unknown_task_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="holds no scores"):
        results.results_page(tmp_path, tmp_path, params("score", "OCRBench"), "smoke")
    metrics, checkpoints = scored(tmp_path)
    with pytest.raises(UserError, match="scores of OCRBench, which is no task"):
        results.results_page(metrics, checkpoints, params("score"), "smoke")
