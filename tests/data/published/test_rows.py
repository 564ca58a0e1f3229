"""Files that are larger than what is held of them."""

import json
import tracemalloc

import pytest

from nvlm.data.published import json_items
from nvlm.data.published.json_items import read_items
from nvlm.data.published.rows import JsonTable
from nvlm.data.published.select import select
from nvlm.data.records import BadRecordError
from nvlm.errors import UserError

VALUES = [
    {"text": 'a "quoted" [bracket] }', "n": [1, [2.5, {"x": None}]]},
    -12345678901234567890,
    1.5e-7,
    "é\u2028\U0001f600",
    True,
    [],
    {},
    "",
]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 2**20])
@pytest.mark.parametrize("indent", [None, 1])
def test_items_are_those_that_json_sees_whatever_the_window(block, indent, tmp_path, monkeypatch):
    monkeypatch.setattr(json_items, "_BLOCK", block)
    content = {"info": {"rows": [1]}, "deep": {"other": VALUES, "rows": VALUES, "end": 3}}
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False), encoding="utf-8")
    items = list(read_items(path, "deep.rows"))
    assert [value for _, value, _ in items] == VALUES
    assert [json.loads(text) for _, _, text in items] == VALUES
    assert {key: value for key, value, _ in read_items(path, "deep")} == content["deep"]


def test_little_of_a_large_file_is_held(tmp_path):
    rows = [{"id": number, "text": "x" * 1000} for number in range(20_000)]
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"first": rows, "rows": rows}))
    size = path.stat().st_size
    del rows
    tracemalloc.start()
    assert sum(1 for _ in read_items(path, "rows")) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    table = JsonTable(path, "rows", "id", lambda row: row["id"] % 1000 == 0)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size > 40e6
    assert peak < 8e6
    assert held < 1e6
    assert table[3000][0]["id"] == 3000
    assert table[3001] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"rows": [1, 2', "no valid JSON: it ends at character 14"),
        ('{"rows": [1 2]}', "no valid JSON: no comma at character 12"),
        ('{"rows": [{"a": 1]}', "no valid JSON"),
        ('{"rows": ["abc', "no valid JSON"),
        ('{"rows": 3}', "has no 'rows' to take rows from"),
        ("", "no valid JSON: it ends at character 0"),
    ],
)
def test_what_is_no_json_is_told(text, words, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=words):
        list(read_items(tmp_path / "x.json", "rows"))


def test_what_is_made_of_a_value():
    row = {"line": ["1", "a", " b"], "words": "p/1.png CAT", "yes": 1, "no": False, "odd": "maybe"}
    assert select(row, "line.1:.@join") == "a, b"
    assert select(row, "words.@split.0.@stem") == "1"
    assert (select(row, "yes.@yes_no"), select(row, "no.@yes_no")) == ("yes", "no")
    for path in ("odd.@yes_no", "yes.@split", "words.@join.x"):
        with pytest.raises(BadRecordError, match="is missing"):
            select(row, path)
