import os
from pathlib import Path

import pytest
from commands import run

from cnnlab.cli import evaluate, train
from cnnlab.config.saved_config import LARGEST, load_saved_config, load_saved_overrides, resolved
from cnnlab.runtime.errors import ConfigError


def saved(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_a_config_is_read(tmp_path: Path) -> None:
    config = load_saved_config(saved(tmp_path, "seed: 3\ndata: {type: digits}\n"))
    assert resolved(config) == {"seed": 3, "data": {"type": "digits"}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [("${other}", "abc"), ("${section.key}", 5), ("x-${other}-${section.key}", "x-abc-5"), ("plain $ {sign}", None)],
)
def test_keys_of_the_config_itself_are_resolved(tmp_path: Path, value: str, expected: object) -> None:
    path = saved(tmp_path, f"other: abc\nsection: {{key: 5}}\nname: '{value}'\n")
    assert resolved(load_saved_config(path))["name"] == (value if expected is None else expected)


def test_relative_keys_are_resolved(tmp_path: Path) -> None:
    path = saved(tmp_path, "section: {key: 5, same: '${.key}', above: '${..top}'}\ntop: 6\n")
    assert resolved(load_saved_config(path))["section"] == {"key": 5, "same": 5, "above": 6}


def test_the_folder_of_the_data_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNLAB_DATA", "/somewhere")
    path = saved(tmp_path, "data: {root: '${oc.env:CNNLAB_DATA,data}'}\n")
    assert resolved(load_saved_config(path)) == {"data": {"root": "/somewhere"}}


def test_the_folder_of_the_data_has_a_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CNNLAB_DATA", raising=False)
    path = saved(tmp_path, "data: {root: '${oc.env:CNNLAB_DATA,data}'}\n")
    assert resolved(load_saved_config(path)) == {"data": {"root": "data"}}


REACHING = [
    "${oc.env:SECRET}",
    "${ oc.env:SECRET }",
    "${oc.env:CNNLAB_DATA,${oc.env:SECRET}}",
    "${oc.env:${name}}",
    "${${name}}",
    "a ${seed} ${oc.env:SECRET}",
    "${oc.decode:'[1]'}",
    "${oc.create:{a: 1}}",
    "${oc.select:data}",
    "${oc.env:CNNLAB_DATA_OTHER}",
    "${hydra:runtime.cwd}",
    "${now:%Y}",
]


@pytest.mark.parametrize("text", REACHING)
@pytest.mark.parametrize("place", ["seed: 1\nname: {}\n", "list:\n  - a: {}\n", "{}: value\n"])
def test_an_interpolation_that_reaches_out_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, place: str
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    quoted = "'" + text.replace("'", "''") + "'"
    with pytest.raises(ConfigError, match="is not resolved") as refusal:
        load_saved_config(saved(tmp_path, place.format(quoted)))
    assert "hunter2" not in str(refusal.value)


def test_a_secret_reaches_neither_the_terminal_nor_a_file(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    config = finished / "config.yaml"
    config.write_text(config.read_text().replace("name: fast", "name: ${oc.env:SECRET}"))
    for command, key in ((train, "resume"), (evaluate, "run")):
        answer = run(command, f"{key}={finished}")
        assert answer.code == 2
        assert "hunter2" not in answer.out + answer.err
    files = [Path(folder) / name for folder, _, names in os.walk(finished) for name in names]
    assert not [path for path in files if b"hunter2" in path.read_bytes()]


@pytest.mark.parametrize("key", ["hydra", "defaults"])
@pytest.mark.parametrize("value", ["{callbacks: {x: {_target_: os.system}}}", "null"])
def test_what_only_hydra_would_read_is_refused(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"expected a composed config, received one with {key}"):
        load_saved_config(saved(tmp_path, f"seed: 1\n{key}: {value}\n"))


def test_aliases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no YAML aliases"):
        load_saved_config(saved(tmp_path, "a: &x [1, 2]\nb: [*x, *x]\n"))


def test_a_file_over_the_cap_is_refused_with_its_size(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"more than {LARGEST:,} bytes"):
        load_saved_config(saved(tmp_path, "#" * (LARGEST + 1) + "\n"))


def test_interpolations_that_explode_are_refused(tmp_path: Path) -> None:
    levels = [f"k{level}: '${{k{level + 1}}}${{k{level + 1}}}'" for level in range(40)]  # 2⁴⁰ characters of one
    with pytest.raises(ConfigError, match="without end"):
        load_saved_config(saved(tmp_path, "\n".join([*levels, "k40: x"]) + "\n"))


def test_interpolations_in_a_circle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without end"):
        load_saved_config(saved(tmp_path, "a: ${b.c}\nb: {c: '${.d}', d: '${..a}'}\n"))


def test_a_chain_of_interpolations_is_resolved(tmp_path: Path) -> None:
    path = saved(tmp_path, "a: ${b.c}-${b.d}\nb: {c: '${.d}', d: '${..e}'}\ne: x\nf: ${b}\n")
    assert resolved(load_saved_config(path)) == {
        "a": "x-x",
        "b": {"c": "x", "d": "x"},
        "e": "x",
        "f": {"c": "x", "d": "x"},
    }


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "", "5\n"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_saved_config(saved(tmp_path, text))


@pytest.mark.parametrize("text", ["a: [1\n", "a: 1\n b: 2\n", "a: !!python/object/apply:os.getcwd []\n", "a: \x00\n"])
def test_what_is_no_plain_yaml_is_refused(tmp_path: Path, text: str) -> None:
    path = saved(tmp_path, text)
    with pytest.raises(ConfigError, match="expected YAML") as refusal:
        load_saved_config(path)
    assert str(path) in str(refusal.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match="expected YAML"):
        load_saved_config(path)


def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected YAML"):
        load_saved_config(saved(tmp_path, "[" * 600 + "]" * 600))


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seed"):
        load_saved_config(saved(tmp_path, "seed: 1\nseed: 2\n"))


def test_saved_overrides_are_read_within_the_same_limits(tmp_path: Path) -> None:
    path = tmp_path / "overrides.yaml"
    assert load_saved_overrides(path) == ()
    path.write_text("- data=mnist\n- seed=3\n")
    assert load_saved_overrides(path) == ("data=mnist", "seed=3")
    for text, message in (("a: 1\n", "expected a list"), ("- &x [1]\n- *x\n", "no YAML aliases")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_saved_overrides(path)
