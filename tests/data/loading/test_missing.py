"""A blend of which a part is not to be had: it goes on without, and says so."""

import json
from dataclasses import replace
from itertools import islice

import pytest
import yaml
from tests.data.loading.test_loader import PARAMS

from nvlm.data.loading.blend import find_blend
from nvlm.data.loading.inspection import inspect
from nvlm.data.loading.inspection_report import report_text
from nvlm.data.loading.loader import build_loader
from nvlm.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")

WEIGHTS = {"captions": 1.0, "strips": 2.0, "laion": 1.0}
REASON = "its publisher asks for a signature: see https://example.org"


@pytest.fixture
def root(datasets, tmp_path):
    """The datasets, and one that is missing."""
    for path in datasets.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "laion").mkdir()
    (tmp_path / "laion" / "missing.json").write_text(json.dumps({"reason": REASON}))
    return tmp_path


def build(root, blend, tokenizer, architecture):
    return build_loader(
        root,
        replace(PARAMS, blend=blend),
        tokenizer=tokenizer,
        architecture=architecture,
        rows=3,
        rank=0,
        world=1,
    )


def test_the_stream_is_that_of_the_others_alone(root, tokenizer, architecture):
    others = {name: WEIGHTS[name] for name in ("captions", "strips")}
    streams = [build(root, blend, tokenizer, architecture) for blend in (WEIGHTS, others)]
    for with_missing, without in islice(zip(*streams, strict=False), 3):
        assert with_missing.keys == without.keys
        assert with_missing.input_ids.tolist() == without.input_ids.tolist()


def test_what_is_missing_is_told(root, tokenizer, architecture):
    blend = find_blend(root, WEIGHTS)
    assert (list(blend.weights), blend.missing_share) == (["captions", "strips"], 0.25)
    assert blend.told() == (
        f"1 of 3 datasets of the blend, 25.0% of its weight, are missing (laion: {REASON})"
    )
    statistics, _ = inspect(build(root, WEIGHTS, tokenizer, architecture), 2, 4, shown=1)
    page = report_text("sft", statistics, PARAMS, blend, tokenizer)
    assert blend.told() in page
    assert "| strips | 2 | 66.7% |" in page
    content = yaml.safe_load(blend.metadataset(root))
    paths = [entry["path"] for entry in content["splits"]["train"]["blend"]]
    assert paths == ["captions", "strips"]


def test_nothing_is_told_where_nothing_is_missing(datasets, tokenizer):
    blend = find_blend(datasets, PARAMS.blend)
    assert (blend.told(), blend.missing_share) == ("", 0)


def test_a_prepared_dataset_is_read_whatever_is_said_of_it(root):
    (root / "laion" / ".nv-meta").mkdir()
    (root / "laion" / ".nv-meta" / "index.uuid").write_text("1")
    assert find_blend(root, WEIGHTS).missing == {}


def test_a_blend_of_which_all_is_missing_is_an_error(root):
    with pytest.raises(
        UserError, match=r"data\.blend: every dataset.*laion because: its publisher"
    ):
        find_blend(root, {"laion": 1.0})


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_file_without_a_reason_is_an_error(root, text):
    (root / "laion" / "missing.json").write_text(text)
    with pytest.raises(UserError, match=r"laion/missing\.json should hold a reason"):
        find_blend(root, WEIGHTS)
