"""Downloads over real HTTP, from a hub on loopback that misbehaves on request."""

import json
import os

import pytest
from huggingface_hub import constants, hf_hub_download
from tests.fetch.hub import COMMIT, Hub, running

import licences
from nvlm.errors import UserError
from nvlm.fetch import hub as module
from nvlm.fetch.model import SourceParams, download, is_needed

WEIGHTS = os.urandom(300_000)


@pytest.fixture
def hub(monkeypatch):
    hub = Hub(
        {
            "config.json": b'{"architectures": ["X"]}',
            "model.safetensors": WEIGHTS,
            "tokenizer.json": b"{}",
            "README.md": b"# Model",
            "pytorch_model.bin": b"\x80pickle",
            "modeling.py": b"import os",
            "tokenizer_own.py": b"import os",
        }
    )
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with running(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield hub


def source(revision=COMMIT, **overrides):
    values = {"repo": "owner/model", "revision": revision, "directory": None, "requires": "x"}
    return SourceParams(**{**values, **overrides})


def fetched(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_only_what_is_needed_is_fetched_and_noted(hub, tmp_path):
    download(source("main"), tmp_path / "out")
    files = fetched(tmp_path / "out")
    assert sorted(files) == ["config.json", "model.safetensors", "source.json", "tokenizer.json"]
    assert files["model.safetensors"] == WEIGHTS
    note = json.loads(files["source.json"])
    assert note == {"repo": "owner/model", "revision": COMMIT, "licence": "apache-2.0"}
    assert not any(name in path for _, path, *_ in hub.requests for name in (".bin", ".py", "READ"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_download_that_breaks_off_goes_on(hub, tmp_path):
    hub.files["model.safetensors"] = os.urandom(24_000_000)
    hub.faults = [("model.safetensors", "breaks off"), *[("tokenizer.json", 404)] * 20]
    with pytest.raises(UserError, match="could not be downloaded"):
        download(source(), tmp_path / "out")
    ranges = [part for _, path, part, _ in hub.requests if "model.safetensors" in path and part]
    assert any(int(part.removeprefix("bytes=").partition("-")[0]) > 10**7 for part in ranges)
    assert not (tmp_path / "out").exists()

    hub.requests.clear()
    hub.faults.clear()
    download(source(), tmp_path / "out")
    got = [path for method, path, *_ in hub.requests if method == "GET"]
    assert not any("model.safetensors" in path for path in got)
    files = fetched(tmp_path / "out")
    assert files["model.safetensors"] == hub.files["model.safetensors"]


def test_a_wrong_byte_is_fetched_again(hub, tmp_path):
    hub.faults = [("model.safetensors", "wrong byte")]
    download(source(), tmp_path / "out")
    assert fetched(tmp_path / "out")["model.safetensors"] == WEIGHTS


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_byte_that_stays_wrong_is_an_error(hub, name, tmp_path):
    hub.faults = [(name, "wrong byte")] * 2
    with pytest.raises(UserError, match=rf"{name} has another .*twice"):
        download(source(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_of_another_size_than_listed(hub, name, tmp_path):
    hub.faults = [(name, "short")]
    download(source(), tmp_path / "out")
    assert fetched(tmp_path / "out")[name] == hub.files[name]
    hub.faults = [(name, "short")] * 100
    with pytest.raises(UserError, match=r"owner/model at 0123.*"):
        download(source(), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_asked_again(hub, status, tmp_path):
    hub.faults = [("/api/", status), ("tokenizer.json", status)]
    download(source(), tmp_path / "out")
    assert not hub.faults
    hub.faults = [("/api/", status)] * 100
    with pytest.raises(UserError, match=r"could not be downloaded .*run the stage again"):
        download(source(), tmp_path / "other")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (("/api/", 401), "not on the Hub, or is private: set HF_TOKEN"),
        (("/api/", 403), "gated: accept its licence"),
        (("/api/", 404), "could not be downloaded"),
    ],
)
def test_refusals_say_what_to_do(hub, fault, words, tmp_path):
    hub.faults = [fault]
    with pytest.raises(UserError, match=words):
        download(source(), tmp_path / "out")


def test_an_unknown_revision(hub, tmp_path):
    with pytest.raises(UserError, match="no such revision"):
        download(source("nobranch"), tmp_path / "out")


def test_the_token_comes_from_the_environment(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_loopback")
    download(source(), tmp_path / "out")
    assert {token for *_, token in hub.requests} == {"Bearer hf_loopback"}
    hub.faults = [("tokenizer.json", 404)] * 20
    with pytest.raises(UserError) as stopped:
        download(source(), tmp_path / "broken")
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(".broken.download.partial" in str(path) for path in kept)
    assert not any(b"hf_loopback" in path.read_bytes() for path in kept)
    assert "hf_loopback" not in str(stopped.value)


def test_no_hub_in_reach(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"owner/model at 0123.*could not be downloaded"):
        download(source(), tmp_path / "out")


def test_a_local_mirror(tmp_path):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for name, data in {"config.json": b"{}", "model.safetensors": WEIGHTS, "x.py": b""}.items():
        (mirror / name).write_bytes(data)
    download(source(directory=str(mirror)), tmp_path / "out")
    assert sorted(fetched(tmp_path / "out")) == ["config.json", "model.safetensors", "source.json"]
    (mirror / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model\.safetensors"):
        download(source(directory=str(mirror)), tmp_path / "other")


def test_the_hubs_cache_serves_without_a_network(hub, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    for name in hub.files:
        hf_hub_download("owner/model", name, revision="main", endpoint=os.environ["HF_ENDPOINT"])
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for revision in ("main", COMMIT):
        download(source(revision), tmp_path / revision)
        files = fetched(tmp_path / revision)
        # Of the cache's files those that a model is made of, and of the branch its commit.
        names = ["config.json", "model.safetensors", "source.json", "tokenizer.json"]
        assert sorted(files) == names
        assert files["model.safetensors"] == WEIGHTS
        assert json.loads(files["source.json"])["revision"] == COMMIT
        assert not any(path.is_symlink() for path in (tmp_path / revision).iterdir())
    with pytest.raises(UserError, match="owner/model at other is not in the cache"):
        download(source("other"), tmp_path / "other")
    assert not hub.requests


def megatron_files():
    return {
        "latest_checkpointed_iteration.txt": b"release",
        "release/mp_rank_00/model_optim_rng.pt": b"PK rank 0",
        "release/mp_rank_01_003/model_optim_rng.pt": b"PK rank 1",
        "tokenizer/tokenizer.json": b"{}",
        "LICENSE.txt": b"CC-BY-NC-4.0",
    }


REFUSED = (
    "pytorch_model.bin",
    "release/distrib_optim.pt",
    "release/mp_rank_00/other.pt",
    "code/release/mp_rank_00/model_optim_rng.pt",
    "release/../../mp_rank_00/model_optim_rng.pt",
    "../latest_checkpointed_iteration.txt",
    "tokenizer/../../tokenizer.json",
    "model.safetensors",
    "modeling.py",
)


def test_of_megatrons_format_the_ranks_files_are_fetched_and_no_other_pickle(hub, tmp_path):
    hub.files = megatron_files() | dict.fromkeys(REFUSED, b"\x80")
    download(source(format="megatron"), tmp_path / "out")
    out = tmp_path / "out"
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == {*megatron_files(), "source.json"}
    for name, data in megatron_files().items():
        assert (out / name).read_bytes() == data
    download(source(format="megatron", directory=str(out)), tmp_path / "copy")
    copied = (tmp_path / "copy").rglob("*")
    assert {path.relative_to(tmp_path / "copy").as_posix() for path in copied} >= found


@pytest.mark.parametrize("name", REFUSED)
def test_no_other_file_is_of_megatrons_format(name):
    assert not is_needed(name, "megatron")
    assert is_needed(name, "huggingface") == (name == "model.safetensors")


def test_a_model_of_the_other_format_is_named(hub, tmp_path):
    with pytest.raises(UserError, match=r"no iter_NNNNNNN/mp_rank_00.*Megatron's torch format"):
        download(source(format="megatron"), tmp_path / "out")
    hub.files = megatron_files()
    with pytest.raises(UserError, match=r"no config\.json"):
        download(source(), tmp_path / "out")
    with pytest.raises(ValueError, match="format: one of huggingface, megatron, not 'nemo'"):
        source(format="nemo")


def test_licences_are_listed(hub, tmp_path, monkeypatch):
    download(source(), tmp_path / "out")
    report = tmp_path / "reports" / "licences.md"
    monkeypatch.chdir(tmp_path)
    web = "{licence: CC-BY 4.0, web: [{url: https://example.org/a.zip}]}"
    (tmp_path / "params.yaml").write_text(f"data: {{sources: {{pictures: {web}}}}}\n")
    arguments = ["licences.py", "--source", str(tmp_path / "out"), "--out", str(report)]
    monkeypatch.setattr("sys.argv", arguments)
    licences.main()
    assert f"| owner/model | {COMMIT} | apache-2.0 |" in report.read_text()
    assert "| pictures | example.org | CC-BY 4.0 |" in report.read_text()
    monkeypatch.setattr("sys.argv", [*arguments, "--source", str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match=r"source\.json is missing"):
        licences.main()
