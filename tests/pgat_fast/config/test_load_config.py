"""Where settings may come from, and which one counts."""

import logging
from pathlib import Path

import pytest

from pgat_fast import load_config
from pgat_fast.config import Config, ModelConfig
from pgat_fast.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_no_source_gives_defaults() -> None:
    assert load_config() == Config()


@pytest.mark.parametrize(
    "text",
    [
        "training: {epochs: 7, batch_size: 3}\n",
        "epochs: 7\nbatch_size: 3\n",
        "batch_size: 3\ntraining:\n  epochs: 7\n",
        "training.epochs: 7\ntraining:\n  batch_size: 3\n",
        "train_epochs: 7\nbatch_size: 3\n",
        '{"training": {"epochs": 7, "batch_size": 3}}',
        "\ufeffepochs: 7\r\nbatch_size: 3\r\n",
    ],
    ids=["sections", "flat", "mixed", "dotted", "old name", "JSON", "byte order mark and CRLF"],
)
def test_file_can_be_flat_sectioned_or_mixed(tmp_path: Path, text: str) -> None:
    config = load_config(write(tmp_path, text))
    assert (config.training.epochs, config.training.batch_size) == (7, 3)
    assert load_config(str(tmp_path / "config.yaml")) == config


def test_mapping_is_read_like_a_file() -> None:
    config = load_config({"training": {"epochs": 7}, "targets": ("a", "b"), "c_out": 2})
    assert config.training.epochs == 7
    assert config.data.targets == ["a", "b"]


def test_section_without_settings_keeps_its_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "model:\ndata:\nepochs: 50\n")) == Config()


def test_numbers_and_lists_can_be_text() -> None:
    config = load_config({"min_lr": "1e-6", "seq_len": "260", "targets": "a, b,c,d"})
    assert (config.training.min_lr, config.model.seq_len) == (1e-6, 260)
    assert config.data.targets == ["a", "b", "c", "d"]


@pytest.mark.parametrize("key", ["training.learning_rate", "learning_rate", " learning_rate "])
def test_override_names_its_setting_with_or_without_section(key: str) -> None:
    assert load_config(None, [f"{key}=1e-2"]).training.learning_rate == 0.01


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("targets=[a, b, 'c d', e]", "data", "targets", ["a", "b", "c d", "e"]),
        ("targets=a,b,c,d", "data", "targets", ["a", "b", "c", "d"]),
        ("clip_grad_norm=null", "training", "clip_grad_norm", None),
        ("clip_grad_norm=", "training", "clip_grad_norm", None),
        ("device=cuda:1", "run", "device", "cuda:1"),
        ("path=a=b.csv", "data", "path", "a=b.csv"),
        ("name='1'", "run", "name", "1"),
        ("precision=bf16", "run", "precision", "bf16"),
        ("compile=on", "run", "compile", "on"),
        ("compile=off", "run", "compile", "off"),
        ("compile=true", "run", "compile", "on"),  # what a YAML 1.1 reader makes of `on`
        ("compile=false", "run", "compile", "off"),
        ("combiner_chunk=off", "run", "combiner_chunk", "off"),
        ("combiner_chunk=false", "run", "combiner_chunk", "off"),
        ("combiner_chunk='25'", "run", "combiner_chunk", 25),
        ("exact_dropout=true", "run", "exact_dropout", True),
    ],
)
def test_override_is_a_yaml_scalar_or_list(override: str, section: str, name: str, value: object) -> None:
    assert getattr(getattr(load_config(None, [override]), section), name) == value


def test_later_override_wins_over_an_earlier_one_and_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "train_epochs: 1\n")
    assert load_config(path, ["epochs=2", "training.epochs=3"]).training.epochs == 3
    assert load_config(path, ["epochs=2", "train_epochs=4"]).training.epochs == 4


def test_override_replaces_wrong_value_of_file(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "lradj: type1\n"), ["lr_schedule=constant"]).training.epochs == 50


def test_overriding_path_replaces_old_parts_and_vice_versa() -> None:
    old = {"root_path": "here", "data_path": "a.csv"}
    assert load_config(old, ["path=b.csv"]).data.path == "b.csv"
    assert load_config(old, ["root_path=there"]).data.path == "there/a.csv"
    assert load_config({"path": "b.csv"}, ["data_path=c.csv"]).data.path == "c.csv"


def test_overriding_compatibility_resets_what_it_decides_but_not_other_overrides() -> None:
    model = load_config(load_config(), ["compatibility=original"]).model
    assert (model.phase_edges, model.feature_map, model.calendar_marks) == ("zero", "positional", "integer")
    model = load_config(load_config(), ["phase_edges=computed", "compatibility=original"]).model
    assert (model.phase_edges, model.feature_map) == ("computed", "positional")


@pytest.mark.parametrize(("d_model", "raised"), [(130, True), (208, False)])
def test_raised_width_is_logged(d_model: int, raised: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="pgat_fast.config"):
        load_config({"d_model": d_model})
    message = "d_model 130 raised to 208, the next multiple of lcm(13 nodes, 8 heads)"
    assert caplog.messages == ([message] if raised else [])


def test_invalid_model_config_names_conflicting_settings() -> None:
    with pytest.raises(ValueError, match="label_len 125 is longer than seq_len 8"):
        ModelConfig(seq_len=8)


@pytest.mark.parametrize(("source", "kind"), [(5, "int"), ([("epochs", 1)], "list"), (b"a.yaml", "bytes")])
def test_unsupported_source_is_refused(source: object, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"path, a mapping or a Config, not from {kind}"):
        load_config(source)


def test_single_text_of_overrides_is_refused() -> None:
    with pytest.raises(ConfigError, match="overrides are a list of texts"):
        load_config(None, "epochs=5")
