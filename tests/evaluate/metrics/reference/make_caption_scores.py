"""Make caption_scores.json: what pycocoevalcap says of the captions of captions.py.

Needs pycocoevalcap 1.2 (104 MB with its Java programs) and a Java runtime, neither of which this
project wants; they were OpenJDK 17.0.15 and Python 3.11. From the project's root:

    python3 -m venv /tmp/coco && /tmp/coco/bin/pip install pycocoevalcap==1.2
    /tmp/coco/bin/python -m tests.evaluate.metrics.reference.make_caption_scores

As in the recipe (Megatron-LM's evaluate_coco.py), an answer loses its trailing periods and its
capitals before it is tokenised.
"""

import json
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from tests.evaluate.metrics.reference.captions import captions


def main() -> None:
    answers, references = captions()
    tokenizer = PTBTokenizer()
    given = {
        place: [{"caption": answer.rstrip(".").lower()}] for place, answer in enumerate(answers)
    }
    wanted = {
        place: [{"caption": caption} for caption in group] for place, group in enumerate(references)
    }
    tokens, reference_tokens = tokenizer.tokenize(given), tokenizer.tokenize(wanted)
    cider, by_image = Cider().compute_score(reference_tokens, tokens)
    bleu, _ = Bleu(4).compute_score(reference_tokens, tokens, verbose=0)
    scores = {
        "cider": float(cider),
        "cider_by_image": [float(score) for score in by_image],
        "bleu": [float(score) for score in bleu],
    }
    path = Path(__file__).with_name("caption_scores.json")
    path.write_text(json.dumps(scores, indent=0) + "\n")


if __name__ == "__main__":
    main()
