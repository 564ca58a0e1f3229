"""What the composed samples say, against the pictures themselves."""

import numpy as np
from PIL import Image

from nvlm.data.packaged import digits, easy_vqa
from nvlm.data.packaged.composed import choice_record, strip_record
from nvlm.data.records import Choice, Question

# The hues of easy-VQA's eight colours; shades vary a little from picture to picture.
RGB = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (139, 69, 19),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}


def shape_colour(image):
    """The mean colour of the pixels that differ most from the picture's border."""
    pixels = np.asarray(image).astype(int)
    difference = np.abs(pixels - pixels[0, 0]).sum(axis=2)
    return pixels[difference > difference.max() / 2].mean(axis=0)


def test_descriptions_agree_with_the_pixels():
    descriptions = easy_vqa.descriptions("train")
    assert len(descriptions) == 3181
    sample = list(descriptions.items())[:200]
    right = 0
    for image_id, description in sample:
        colour = shape_colour(easy_vqa.image("train", image_id))
        nearest = min(RGB, key=lambda name: np.abs(np.subtract(RGB[name], colour)).sum())
        right += nearest == description.colour
    assert right > 0.9 * len(sample)


def test_descriptions_agree_with_all_questions():
    descriptions = easy_vqa.descriptions("train")
    for asked in easy_vqa.questions("train"):
        shown = descriptions.get(asked.image_id)
        if shown is None or asked.answer not in ("yes", "no"):
            continue
        words = set(asked.question.rstrip("?").split())
        mentioned = bool({shown.colour, shown.shape} & words)
        negated = bool({"not", "no"} & words)
        assert (asked.answer == "yes") == (mentioned != negated), asked


def test_captions():
    captions = easy_vqa.Description(colour="blue", shape="circle").captions
    assert captions[0] == "a blue circle"
    assert len(set(captions)) == 5
    assert all("blue" in caption and "circle" in caption for caption in captions)


def test_strips_show_their_digits_in_order():
    source = digits.scans("train")
    rng = np.random.default_rng(0)
    mean_scans = np.stack([source.images[source.labels == d].mean(0) for d in range(10)])
    right = total = 0
    for _ in range(100):
        strip = digits.strip(rng, source, 3)
        assert strip.image.size == (3 * digits.CELL, digits.CELL)
        labels = dict(zip(source.indices, source.labels, strict=True))
        assert strip.text == "".join(str(labels[index]) for index in strip.indices)
        for cell, digit in enumerate(strip.text):
            # Cut to the ink and shrink back: nearest mean scan, a crude reader, mostly agrees.
            left = cell * digits.CELL
            part = strip.image.convert("L").crop((left, 0, left + digits.CELL, digits.CELL))
            ink = np.asarray(part.crop(part.getbbox()).resize((8, 8), Image.Resampling.BOX))
            ink = ink / ink.max() * mean_scans.max()
            distances = ((mean_scans - ink) ** 2).sum(axis=(1, 2))
            right += int(distances.argmin()) == int(digit)
            total += 1
    assert right > 0.5 * total


def test_strip_records_ask_for_two_to_four_digits():
    rng = np.random.default_rng(0)
    lengths = set()
    for _ in range(60):
        content = strip_record(rng, "train", fewest=2, suffix="\nshort").content
        assert isinstance(content, Question)
        assert content.question.endswith("?\nshort")
        lengths.add(len(content.answers[0]))
    assert lengths == {2, 3, 4}


def test_the_right_choice_is_the_answer_and_its_place_is_random():
    rng = np.random.default_rng(0)
    places = set()
    for _ in range(300):
        record = choice_record(rng, "train")
        content, origin = record.content, record.provenance
        assert isinstance(content, Choice)
        answer = content.choices[content.correct]
        assert len(set(content.choices)) == len(content.choices)
        if origin.source == "digits":
            source = digits.scans("train")
            assert answer == str(source.labels[source.indices == origin.indices[0]][0])
            assert len(content.choices) == 4
        else:
            shown = easy_vqa.descriptions("train")[origin.indices[0]]
            assert answer == (shown.colour if "color" in content.question else shown.shape)
        places.add(content.correct)
    assert places == {0, 1, 2, 3}
