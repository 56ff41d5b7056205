"""Configuration files that users already have."""

import logging
from pathlib import Path
from typing import Any

import pytest

from pgat_fast import load_config
from pgat_fast.config.legacy import IGNORED, OLD_NAMES, migrate
from pgat_fast.config.schema import Config
from pgat_fast.errors import ConfigError

PRODUCTION = Path(__file__).parents[2] / "data" / "production.yaml"

SMALL: dict[str, Any] = {
    "seq_len": 16, "label_len": 8, "pred_len": 4, "d_model": 130, "n_heads": 8, "e_layers": 4, "d_layers": 2,
    "d_ff": 512, "dropout": 0.1, "enc_in": 118, "dec_in": 118, "c_out": 4, "celestial_fusion_layers": 4,
    "num_input_waves": 118, "use_efficient_covariate_interaction": True,
}  # fmt: skip
PARTS = ("use_mixture_decoder", "use_stochastic_learner", "use_hierarchical_mapping", "use_celestial_graph")
EVERYTHING = SMALL | dict.fromkeys((*PARTS, "aggregate_waves_to_celestial"), True)
SIZES = {"d_model": 22, "n_heads": 2, "enc_in": 6, "dec_in": 6, "c_out": 2, "num_input_waves": 6}
NO_CELESTIAL = SMALL | SIZES | dict.fromkeys((*PARTS, "aggregate_waves_to_celestial"), False)


def test_production_file_loads_every_key() -> None:
    """The other settings of the file equal the defaults; names that it ignores are listed by the next test."""
    expected = Config().model_dump()
    expected["data"]["targets"] = ["log_Open", "log_High", "log_Low", "log_Close"]
    expected["training"] |= {"gradient_accumulation_steps": 2, "weight_decay": 0.0001}
    name = "celestial_enhanced_pgat_production_overnight"
    expected["run"] |= {"precision": "auto", "name": name, "checkpoint_epochs": 5}
    config = load_config(PRODUCTION)
    assert config.model_dump() == expected
    # Existing files name no combiner; they were trained with the hierarchical one.
    assert config.model.combiner == "hierarchical"


def test_production_file_warns_once_about_ignored_names(caplog: pytest.LogCaptureFixture) -> None:
    load_config(PRODUCTION)
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.name == "pgat_fast.config"
    assert record.getMessage() == (
        f"{PRODUCTION}: ignored, because these names have no effect: features, embed, d_ff, reg_loss_weight, "
        "save_checkpoints"
    )


@pytest.mark.parametrize("old", [SMALL, EVERYTHING, NO_CELESTIAL], ids=["small", "everything", "no celestial"])
def test_mappings_of_parity_cases_load(old: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    model = load_config(old).model.model_dump()
    assert {name: value for name, value in old.items() if name in model}.items() <= model.items()
    assert model["graph_processing"] == "partitioned"
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        "configuration: ignored, because these names have no effect: d_ff"
    ]


@pytest.mark.parametrize(
    ("old", "section", "name", "value"),
    [
        ({"train_epochs": 3}, "training", "epochs", 3),
        ({"lradj": "warmup_cosine"}, "training", "lr_schedule", "warmup_cosine"),
        ({"use_amp": True}, "run", "precision", "auto"),
        ({"mixed_precision": False}, "run", "precision", "highest"),
        ({"mixed_precision": "off"}, "run", "precision", "highest"),
        ({"mixed_precision": "bf16"}, "run", "precision", "bf16"),
        ({"training": {"mixed_precision": "fp16"}}, "run", "precision", "fp16"),
        ({"training": {"mixed_precision": "auto"}, "run": {"name": "x"}}, "run", "precision", "auto"),
        ({"checkpoint_interval": 7}, "run", "checkpoint_epochs", 7),
        ({"save_best_only": True}, "run", "keep_checkpoints", 1),
        ({"checkpoints": "kept/here"}, "run", "output", "kept/here"),
        ({"target": "a, b,c,d"}, "data", "targets", ["a", "b", "c", "d"]),
        ({"root_path": "./data", "data_path": "x.csv"}, "data", "path", "data/x.csv"),
        ({"root_path": "/data/", "data_path": "x.csv"}, "data", "path", "/data/x.csv"),
        ({"root_path": "./data", "data_path": "/else/x.csv"}, "data", "path", "/else/x.csv"),
        ({"data_path": "x.csv"}, "data", "path", "x.csv"),
        ({"use_gpu": True}, "run", "device", "auto"),
        ({"use_gpu": False}, "run", "device", "cpu"),
        ({"model_id": "my_run"}, "run", "name", "my_run"),
        ({"use_efficient_covariate_interaction": True}, "model", "graph_processing", "partitioned"),
        ({"use_efficient_covariate_interaction": False}, "model", "graph_processing", "attention"),
        ({"aggregate_waves_to_celestial": True}, "model", "use_celestial_graph", True),
    ],
)
def test_old_name_sets_current_setting(old: dict[str, Any], section: str, name: str, value: Any) -> None:
    assert getattr(getattr(load_config(old), section), name) == value


def test_stored_configuration_is_migrated() -> None:
    stored = {"training": {"mixed_precision": "off", "epochs": 3}, "run": {"name": "x"}, "more": 5}
    assert migrate(stored) == {"training": {"epochs": 3}, "run": {"name": "x", "precision": "highest"}}
    assert migrate({"training": {"mixed_precision": "half"}}) == {"training": {}, "run": {}}
    current = Config().model_dump()
    assert migrate(current) == current


def test_override_replaces_old_name_of_file() -> None:
    assert load_config({"training": {"mixed_precision": "bf16"}}, ["precision=high"]).run.precision == "high"


@pytest.mark.parametrize(
    "old",
    [{"model": "Celestial_Enhanced_PGAT"}, {"data": "custom"}, {"strategy": "ddp"}, {"run": {"strategy": "ddp"}}],
)
def test_old_names_with_their_only_value_change_nothing(old: dict[str, Any]) -> None:
    assert load_config(old) == Config()


@pytest.mark.parametrize(
    ("old", "message"),
    [
        ({"lradj": "type1"}, "lradj (now training.lr_schedule): found 'type1', expected warmup_cosine, cosine, step"),
        ({"lradj": None}, "lradj (now training.lr_schedule): found null, expected warmup_cosine, cosine, step"),
        ({"use_gpu": "yes"}, "use_gpu (now run.device): found 'yes', expected true or false"),
        (
            {"training": {"mixed_precision": "half"}},
            "training.mixed_precision (now run.precision): found 'half', expected true or false or 'auto' or 'off' or",
        ),
        ({"use_gpu": 1}, "use_gpu (now run.device): found 1, expected true or false"),
        (
            {"use_efficient_covariate_interaction": None},
            "(now model.graph_processing): found null, expected true or",
        ),
        ({"model": "Autoformer"}, "model: found 'Autoformer', expected Celestial_Enhanced_PGAT"),
        ({"data": "ETTh1"}, "data: found 'ETTh1', expected custom"),
        ({"root_path": "./data"}, "root_path (now data.path): data_path is missing"),
        ({"root_path": 5, "data_path": "x"}, "root_path (now data.path): found 5, expected text"),
        ({"data_path": None}, "data_path (now data.path): found null, expected text"),
        ({"model_id": "a/b"}, "model_id (now run.name): found 'a/b', expected a name of letters"),
        ({"target": "a,b"}, "target (now data.targets): data.targets names 2 columns, but model.c_out is 4"),
        (
            {"aggregate_waves_to_celestial": False},
            "aggregate_waves_to_celestial: found false, expected true, which follows from model.use_celestial_graph",
        ),
        (
            NO_CELESTIAL | {"aggregate_waves_to_celestial": True},
            "aggregate_waves_to_celestial: found true, expected false, which follows from model.use_celestial_graph",
        ),
        ({"strategy": "fsdp"}, "strategy: found 'fsdp', expected ddp: "),
        ({"run": {"strategy": "fsdp"}}, "; write ddp, or remove the line"),
        ({"num_input_waves": 100}, "num_input_waves: found 100, expected 118, which follows from model.enc_in"),
        (
            {"target_wave_indices": [0, 1]},
            "target_wave_indices: found [0, 1], expected [0, 1, 2, 3], which follows from model.c_out",
        ),
        (
            {"target_wave_indices": [3, 2, 1, 0]},
            "target_wave_indices: found [3, 2, 1, 0], expected [0, 1, 2, 3]",
        ),
    ],
)
def test_old_setting_that_is_not_supported_is_refused(old: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(old)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ignored_names_change_nothing_and_are_listed(caplog: pytest.LogCaptureFixture) -> None:
    assert load_config(dict.fromkeys(sorted(IGNORED), "anything")) == Config()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning == f"configuration: ignored, because these names have no effect: {', '.join(sorted(IGNORED))}"


def test_names_of_related_code_bases_are_known() -> None:
    arguments = """
        task_name is_training des itr features embed inverse seasonal_patterns checkpoints num_workers loss
        factor activation output_attention gpu use_multi_gpu devices moving_avg distil use_amp d_ff top_k
        num_kernels mask_rate anomaly_ratio expand d_conv save_best_only save_checkpoints checkpoint_interval
        reg_loss_weight
    """
    assert set(arguments.split()) <= IGNORED | OLD_NAMES.keys()


def test_an_override_repairs_a_file_with_the_removed_strategy_fsdp() -> None:
    assert load_config({"run": {"strategy": "fsdp"}}, ["run.strategy=ddp"]) == Config()


def test_old_names_are_no_current_names() -> None:
    settings = {name for section in Config().model_dump().values() for name in section}
    assert not settings & (IGNORED | OLD_NAMES.keys())
    assert not IGNORED & OLD_NAMES.keys()


def test_ignored_overrides_are_listed_too(caplog: pytest.LogCaptureFixture) -> None:
    load_config({"d_ff": 1}, ["itr=2", "d_ff=3"])
    assert "configuration: ignored, because these names have no effect: d_ff, itr" in caplog.messages
