"""Which questions are of one picture: they are no independent draws, and a bootstrap is told so.

The first picture of a question counts, by its content: official sets keep one file for all of a
picture's questions (VQAv2 asks five), but Parquet files of the Hub repeat it in each row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nvlm.digests import sha256_digest
from nvlm.evaluate.question import Question

Clusters = NDArray[np.int64]  # (questions,), the number of each one's picture, from 0


def picture_clusters(questions: Sequence[Question]) -> Clusters:
    """The cluster of each of ``questions``, numbered as they first come.

    A file is read only where another one has as many bytes.
    """
    paths = list(dict.fromkeys(question.images[0] for question in questions))
    sizes = {path: path.stat().st_size for path in paths}
    of_size = Counter(sizes.values())
    numbers: dict[tuple[int, str | Path], int] = {}
    cluster = {}
    for path in paths:
        alone = of_size[sizes[path]] == 1
        content = (sizes[path], path if alone else sha256_digest(path))
        cluster[path] = numbers.setdefault(content, len(numbers))
    return np.array([cluster[question.images[0]] for question in questions], dtype=np.int64)


def within(clusters: Clusters, members: Sequence[int]) -> Clusters:
    """The clusters of some questions, numbered anew without gaps."""
    renumbered: Clusters = np.unique(clusters[list(members)], return_inverse=True)[1]
    return renumbered
