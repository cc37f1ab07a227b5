"""JSON that may hold anything: each fault names file, key, what was found and what is expected."""

import os

import pytest

from dinojax.data import fields
from dinojax.data.fields import field


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        ([], int, "F: found []; expected an object with 'a'"),
        ({}, int, "F: no 'a'; expected an integer"),
        ({"a": "3"}, int, "F: a is '3'; expected an integer"),
        ({"a": True}, int, "F: a is True; expected an integer"),
        ({"a": 3.0}, int, "F: a is 3.0; expected an integer"),
        ({"a": 1}, bool, "F: a is 1; expected true or false"),
        ({"a": 10**400}, float, "F: a is 1000"),
        ({"a": float("inf")}, float, "F: a is inf; expected a number"),
        ({"a": None}, str, "F: a is None; expected text"),
        ({"a": None}, (float, str), "F: a is None; expected a number or text"),
        ({"a": {}}, list, "F: a is {}; expected a list"),
        ({"a": [1, "x"]}, [int], "F: a[1] is 'x'; expected an integer"),
        ({"a": {"b": None}}, {str: float}, "F: a.b is None; expected a number"),
        ({"a": {"b": []}}, {str: (float, None)}, "F: a.b is []; expected a number or null"),
        ({"a": 3}, ({str: int}, None), "F: a is 3; expected an object, each an integer or null"),
        ({"a": {"b": "x"}}, ({str: int}, None), "F: a.b is 'x'; expected an integer"),
    ],
)
def test_a_field_of_another_kind_is_refused(data, kind, message):
    with pytest.raises(ValueError) as found:
        field(data, "a", kind, where="F")
    assert str(found.value).startswith(message)


def test_a_field_of_its_kind_comes_as_it_is():
    data = {"a": 3, "b": None, "c": [1, 2], "d": {"x": 1.5}, "e": False}
    assert field(data, "a", int, where="F") == field(data, "a", float, where="F") == 3
    assert field(data, "b", (str, None), where="F") is None
    assert field(data, "c", [int], where="F") == [1, 2]
    assert field(data, "d", ({str: float}, None), where="F") == {"x": 1.5}
    assert field(data, "e", bool, where="F") is False
    assert field(data, "f", int, where="F", default=7) == 7


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[1] 2",
        b"NaN",
        b"-Infinity",
        b"1" * 5000,
        b"[" * 10**6,
        b"[" * 60 + b"]" * 60,
    ],
)
def test_what_is_no_json_of_moderate_depth_is_refused_by_name(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match="a.json"):
        fields.read(tmp_path / "a.json")


def test_what_is_no_regular_file_or_too_large_is_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a.json")  # to open it would wait for ever
    with pytest.raises(ValueError, match="a.json is no regular file"):
        fields.read(tmp_path / "a.json")
    with pytest.raises(ValueError, match="a.json is no regular file"):
        list(fields.rows(tmp_path / "a.json"))
    (tmp_path / "b.json").write_text("[1, 2, 3]")
    monkeypatch.setattr(fields, "LARGEST", 4)
    with pytest.raises(ValueError, match="b.json has more than"):
        fields.read(tmp_path / "b.json")


def test_rows_have_their_lines_and_a_cut_last_one_is_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert [row for _, row in fields.rows(path)] == [{"a": 1}, {"a": 2}]
    for text, line in (('{"a": 1}\n[]\n', 2), ("3\n", 1), ('{"a": 1}\n\n', 2), ("\xff\n", 1)):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=f"a.jsonl:{line}"):
            list(fields.rows(path))


def test_a_value_is_shown_in_short():
    assert fields.shown("x" * 500).endswith("...") and len(fields.shown("x" * 500)) < 100
    assert fields.shown(10**5000) == "a number of more than 4,000 digits"
