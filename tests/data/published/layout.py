"""Tiny datasets in their publishers' exact layouts, and what is to be read from them.

Each entry: files (JSON-able values, texts, bytes, or Parquet tables), and the contents expected.
Annotations carry the fields that the published files have, used here or not.
"""

import io
import json
import tarfile
import zipfile
from dataclasses import dataclass, field
from typing import Any

import pyarrow
from pyarrow import parquet
from tests.data.pictures import encoded_image, encoded_pdf

from nvlm.data.records import Content, Dialogue, Question

JPEG, PNG = encoded_image("JPEG"), encoded_image("PNG")
PDF = encoded_pdf(pages=2)


@dataclass(frozen=True)
class Published:
    files: dict[str, Any]
    contents: list[Content]
    images: list[list[bytes]] = field(default_factory=list)  # by record; none = one JPEG each

    def lay_out(self, directory):
        for name, value in self.files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(value, pyarrow.Table):
                parquet.write_table(value, path)
            elif isinstance(value, bytes):
                path.write_bytes(value)
            elif isinstance(value, str):
                path.write_text(value, encoding="utf-8")
            else:
                path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def tar(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def lines(*values):
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def answers(*texts):
    return [
        {"answer": text, "answer_confidence": "yes", "answer_id": n + 1}
        for n, text in enumerate(texts)
    ]


def question(text, *accepted):
    return Question(question=text, answers=list(accepted))


def one_turn(user, assistant):
    return Dialogue(turns=[("human", user), ("gpt", assistant)])
