"""``python -m nvlm.data``: the table of datasets, and one fetched by hand."""

import json
from pathlib import Path

import pytest
from tests.fetch.server import Server, serving

from nvlm.data.__main__ import main
from nvlm.errors import UserError


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one set that is fetched, one that is not to be had, and a server."""
    monkeypatch.chdir(tmp_path)
    server = Server({"/birds.json": b"[]"})
    with serving(server) as address:
        source = {"licence": "CC-BY 4.0", "web": [{"url": f"{address}/birds.json", "bytes": 2}]}
        gone = {"licence": "unknown", "unavailable": "its publisher asks for a registration"}
        entry = {"source": "published", "task": ""}
        params = {
            "sources": {"birds": source, "gone": gone},
            "fetch": {"missing": "skip", "files_at_once": 1},
            "pretrain": {},
            "sft": {
                name: {**entry, "requires": f"data/raw/{name}.json", "images": ""}
                for name in ("birds", "gone")
            },
            "eval": {},
            "blends": {"pretrain": {}, "sft": {"birds": 3, "gone": 1}},
        }
        Path("params.yaml").write_text(json.dumps({"data": params}))
        yield tmp_path


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["nvlm.data", *arguments])
    main()


def lines_of(text):
    return {line.split()[0]: line for line in text.splitlines() if line.startswith("sft/")}


def test_the_table_says_where_from_how_much_and_what_is_here(project, monkeypatch, capsys):
    run(monkeypatch, "sources")
    out = capsys.readouterr().out
    lines = lines_of(out)
    assert "75.0%" in lines["sft/birds"] and "127.0.0.1" in lines["sft/birds"]
    assert "CC-BY 4.0" in lines["sft/birds"] and lines["sft/birds"].rstrip().endswith("no")
    assert "not to be had" in lines["sft/gone"]
    assert "gone: its publisher asks for a registration" in out
    run(monkeypatch, "fetch", "birds", "gone")
    assert Path("data/raw/birds/birds.json").read_bytes() == b"[]"
    assert "goes on without it" in capsys.readouterr().out
    run(monkeypatch, "sources")
    out = capsys.readouterr().out
    assert lines_of(out)["sft/birds"].rstrip().endswith("yes")
    assert lines_of(out)["sft/gone"].rstrip().endswith("left out")
    run(monkeypatch, "sources", "--missing")
    out = capsys.readouterr().out
    assert lines_of(out).keys() == {"sft/gone"} and "1 of 2 datasets are here" in out


def test_a_name_that_is_not_there_is_told_with_those_that_are(project, monkeypatch):
    with pytest.raises(UserError, match=r"data\.sources\.bird is not .* there is birds, gone"):
        run(monkeypatch, "fetch", "bird")


def test_without_parameters_the_remedy_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"run python src/compose_params\.py"):
        run(monkeypatch, "sources")
