"""The configuration files that come with the project."""

import logging
from pathlib import Path

import pytest

from pgat_fast.config import config_to_dict, load_config

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "configs").glob("*.yaml"))
PRODUCTION = load_config(ROOT / "tests" / "data" / "production.yaml")


def test_the_three_files_are_there() -> None:
    assert {"celestial_enhanced_pgat_production", "production_batched", "quickstart"} <= {f.stem for f in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_loads_without_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(path)
    assert config.run.name == path.stem
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_the_production_file_says_what_users_have() -> None:
    config = load_config(ROOT / "configs" / "celestial_enhanced_pgat_production.yaml", [f"name={PRODUCTION.run.name}"])
    assert config == PRODUCTION


def test_the_batched_file_differs_in_the_combiner_alone() -> None:
    batched = config_to_dict(load_config(ROOT / "configs" / "production_batched.yaml"))
    production = config_to_dict(PRODUCTION)
    different = {
        name: value
        for section, values in batched.items()
        for name, value in values.items()
        if value != production[section][name]
    }
    assert different == {"combiner": "batched", "name": "production_batched"}
    assert batched["model"]["fusion_layers"] == 2


def test_the_quickstart_needs_no_gpu_and_no_file_but_the_built_one() -> None:
    config = load_config(ROOT / "configs" / "quickstart.yaml")
    assert config.data.path == "data/prepared_financial_data.csv"
    assert config.model.embed_dim == config.model.d_model
    assert config.training.warmup_epochs < config.training.epochs
