"""Writing a configuration down and reading it back."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgat_fast.config import Config, config_to_dict, dump_config, load_config

counts = st.integers(1, 2**31)
rates = st.floats(0, 1e6)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
awkward = st.sampled_from([
    "yes", "off", "y", "null", "~", "1e-6", "010", "0x1F", ".inf", ".", "...", "---", "a: b", "a #b", "#", "- a", " a ",
    "*a", "&a", "!t", "a,b", "[", "\u2028", "\x85", "\ufeff", "=", "<<", "%", "@", "`", "a:", "'", '"', "\\",
])  # fmt: skip
names = st.lists((texts | awkward).filter(lambda name: bool(name.strip())), min_size=5, max_size=5, unique=True)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Valid settings of every kind, in sections."""
    seq_len = draw(st.integers(1, 4000))
    label_len = draw(st.integers(0, seq_len))
    learning_rate = draw(st.floats(1e-300, 1e300))
    celestial = draw(st.booleans())
    size = 118 if celestial else 5
    original = draw(st.sampled_from(["corrected", "original"]))
    return {
        "data": {
            "path": draw(texts | awkward),
            "inputs": None if celestial else draw(st.none() | names),
            "targets": draw(st.none() | names.map(lambda five: five[:2])),
            "test_length": draw(counts),
        },
        "model": {
            "seq_len": seq_len,
            "label_len": label_len,
            "pred_len": draw(st.integers(1, 1000)),
            "enc_in": size,
            "c_out": 2,
            "dropout": draw(st.floats(0, 1, exclude_max=True)),
            "use_celestial_graph": celestial,
            "adjacency_threshold": draw(rates),
            "adjacency_bias": draw(st.booleans()),
            "compatibility": original,
            "feature_map": draw(st.sampled_from([None, "named", "positional"])),
            "max_attention_tokens": draw(st.none() | counts),
        },
        "training": {
            "max_steps": draw(st.none() | counts),
            "learning_rate": learning_rate,
            "min_lr": draw(st.floats(0, learning_rate)),
            "clip_grad_norm": draw(st.none() | st.floats(1e-300, 1e300)),
            "seed": draw(st.integers(0, 2**63 - 1)),
        },
        "run": {
            "name": draw(
                st.from_regex(re.compile(r"\w[\w.-]{0,20}", re.ASCII), fullmatch=True)
                | st.sampled_from(["yes", "1e6", "12", "null"])
            ),
            "output": draw(texts | awkward),
            "device": draw(st.sampled_from(["cpu", "cuda:1"])),
            "compile": draw(st.sampled_from(["auto", "on", "off"])),
            "recompute": draw(st.sampled_from(["auto", "on", "off"])),
            "combiner_chunk": draw(st.sampled_from(["auto", "off"]) | counts),
        },
    }


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dump") / "config.yaml"


@given(values=configurations(), describe=st.booleans())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
def test_dumped_configuration_loads_back_equal(values: dict[str, Any], describe: bool, file: Path) -> None:
    config = Config.model_validate(values)
    file.write_text(dump_config(config, describe=describe), encoding="utf-8")
    assert load_config(file) == config
    assert load_config(config_to_dict(config)) == config
    assert load_config(config) == config


@given(values=configurations())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=30)
def test_yaml_1_1_readers_read_the_same_values(values: dict[str, Any]) -> None:
    """PyYAML reads YAML 1.1, where `1e-6` is text and `yes` is true."""
    config = Config.model_validate(values)
    assert yaml.safe_load(dump_config(config)) == config_to_dict(config)


def test_sections_and_settings_are_in_schema_order() -> None:
    written_names = [line.split(":")[0] for line in dump_config(Config()).splitlines() if line]
    sections = config_to_dict(Config())
    assert written_names == [
        name for section, values in sections.items() for name in (section, *(f"  {key}" for key in values))
    ]


def test_long_list_has_one_item_per_line() -> None:
    columns = [f"column {i}" for i in range(118)]
    text = dump_config(load_config({"inputs": columns}))
    assert "  inputs:\n    - column 0\n    - column 1\n" in text
    assert yaml.safe_load(text)["data"]["inputs"] == columns


def test_describe_adds_a_comment_to_each_setting() -> None:
    lines = dump_config(Config(), describe=True).splitlines()
    count = sum(len(section) for section in config_to_dict(Config()).values())
    assert sum("  # " in line for line in lines) == count
    (epochs,) = [line for line in lines if line.startswith("  epochs: 50")]
    assert epochs.endswith("# passes over the training windows")
