"""Karpathy's splits of COCO and Flickr30k captions: ``{"images": [{filename, split, sentences}]}``.

The publisher's files are dataset_coco.json and dataset_flickr30k.json; the test images count.
"""

from __future__ import annotations

from pathlib import Path

from nvlm.evaluate.ground_truth import files
from nvlm.evaluate.question import Question

SPLIT = "test"


def read(directory: Path) -> list[Question]:
    """One question an image of the test split; its references are the sentences as written.

    The id is COCO's where the file has it (``cocoid``), else ``imgid``.
    """
    path = files.only_file(directory, "*.json")
    images = files.Images(directory)
    questions = []
    for record in files.records(files.field(files.read_json(path), "images", str(path)), str(path)):
        if files.text_field(record, "split", str(path)) != SPLIT:
            continue
        key = "cocoid" if "cocoid" in record else "imgid"
        question_id = files.id_field(record, key, str(path))
        where = f"{path}, image {question_id}"
        sentences = files.records(files.field(record, "sentences", where), where)
        captions = [files.text_field(sentence, "raw", where) for sentence in sentences]
        questions.append(
            Question(
                id=question_id,
                images=(images.path(files.text_field(record, "filename", where)),),
                text="",
                references=files.answers(captions, where),
            )
        )
    return files.without_duplicates(questions, path)
