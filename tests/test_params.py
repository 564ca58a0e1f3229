"""Parameters become dataclasses, or one sentence that names the key and the value."""

from dataclasses import dataclass, field

import pytest

from nvlm.errors import UserError
from nvlm.params import composed, load_params, parse_params


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float
    sizes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"rate: {self.rate} should be more than 0")


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner
    weights: dict[str, float]
    others: dict[str, Inner] = field(default_factory=dict)
    last: Inner | None = None
    name: str | None = None


def parse(**values):
    complete = {"inner": {"rate": 1.0}, "weights": {"a": 1}} | values
    return parse_params(complete, Outer, "train.sft")


def test_nested_values_are_typed():
    expected = Outer(inner=Inner(rate=1.0, sizes=[2]), weights={"a": 1.0})
    assert parse(inner={"rate": 1, "sizes": [2]}) == expected
    more = parse(others={"x": {"rate": 2}}, last={"rate": 3})
    assert more.others == {"x": Inner(rate=2.0)} and more.last == Inner(rate=3.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"rate": "fast"}}, r"train\.sft\.inner\.rate: .*'fast'"),
        ({"inner": {"rate": -1}}, r"train\.sft\.inner\.rate: -1.0 should be more than 0"),
        ({"inner": {}}, r"train\.sft\.inner\.rate"),
        ({"inner": {"rate": 1, "rat": 2}}, r"train\.sft\.inner\.rat\b"),
        ({"others": {"x": {"rate": 0}}}, r"train\.sft\.others\.x\.rate: 0.0 should be"),
        ({"weights": {"a": "heavy"}}, r"train\.sft\.weights\.a"),
    ],
)
def test_errors_name_the_key(values, message):
    with pytest.raises(UserError, match=message):
        parse(**values)


def test_a_float_without_a_dot_is_a_float(tmp_path):
    """PyYAML reads 3e-05, which DVC writes, as a string."""
    path = tmp_path / "params.yaml"
    path.write_text("train: {rate: 3e-05}\n")
    assert load_params("train", Inner, path).rate == 3e-05


def test_a_missing_section_or_file(tmp_path):
    with pytest.raises(UserError, match=r"run python src/compose_params\.py"):
        load_params("train", Inner, tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: 1\n")
    with pytest.raises(UserError, match="no section 'train'"):
        load_params("train", Inner, tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1,\nb: {", r"is no YAML \(line 2: .*\): run python src/compose_params"),
        (
            "a: 1\n<<<<<<< HEAD\nb: 2\n=======\nb: 3\n>>>>>>> other\n",
            "git's conflict markers: run",
        ),
        ("", r"has no section 'a'"),
        ("- 1\n", "holds no parameters"),
        ("a: \udcff", "is no YAML"),
    ],
)
def test_a_file_that_is_no_yaml_is_one_sentence(text, message, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message) as told:
        load_params("a", Inner, path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_an_override_below_a_reference_names_the_key_to_override(prefix):
    """Added with +, it would replace the whole layout without a word."""
    with pytest.raises(UserError, match=r"coco\.layout is .*: override data\.layouts\.coco\.rows,"):
        composed(["scale=full", f"{prefix}data.sft.coco.layout.rows=items"])
    assert "rows: items" in composed(["scale=full", "data.layouts.coco.rows=items"])


def test_an_unknown_override_is_named():
    with pytest.raises(UserError, match=r"'data\.layouts\.coco\.rowz': see the groups and keys in"):
        composed(["scale=full", "data.layouts.coco.rowz=items"])
