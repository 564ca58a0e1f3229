"""COCO captions: ``{"images": [{id, file_name}], "annotations": [{image_id, caption}]}``.

NoCaps has the same format, and a ``domain`` for each image, which is the category.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from nvlm.evaluate.ground_truth import files
from nvlm.evaluate.question import Question, QuestionId


def read(directory: Path) -> list[Question]:
    """One question an image, in the file's order; its references are the image's captions.

    Raises UserError for an image without a caption.
    """
    path = files.only_file(directory, "*.json")
    where = str(path)
    published = files.read_json(path)
    captions: dict[QuestionId, list[str]] = defaultdict(list)
    for annotation in files.records(files.field(published, "annotations", where), where):
        image_id = files.id_field(annotation, "image_id", where)
        captions[image_id].append(files.text_field(annotation, "caption", where))
    pictures = files.Images(directory)
    questions = []
    for image in files.records(files.field(published, "images", where), where):
        image_id = files.id_field(image, "id", where)
        name = files.text_field(image, "file_name", where)
        questions.append(
            Question(
                id=image_id,
                images=(pictures.path(name),),
                text="",
                references=files.answers(captions[image_id], f"{where}, image {image_id}"),
                category=str(image.get("domain") or ""),
            )
        )
    return files.without_duplicates(questions, path)
