"""The configuration files that come with the project."""

import logging
from pathlib import Path

import pytest

from pgat_fast.config import config_to_dict, load_config

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "configs").glob("*.yaml"))
PRODUCTION = load_config(ROOT / "tests" / "data" / "production.yaml")


def test_three_files_are_shipped() -> None:
    assert {"celestial_enhanced_pgat_production", "production_batched", "quickstart"} <= {f.stem for f in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_file_loads_without_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(path)
    assert config.run.name == path.stem
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_production_file_equals_existing_one() -> None:
    config = load_config(ROOT / "configs" / "celestial_enhanced_pgat_production.yaml", [f"name={PRODUCTION.run.name}"])
    assert config == PRODUCTION


def test_batched_file_differs_only_in_combiner() -> None:
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


def test_quickstart_needs_only_the_built_file() -> None:
    config = load_config(ROOT / "configs" / "quickstart.yaml")
    assert config.data.path == "data/prepared_financial_data.csv"
    assert config.model.embed_dim == config.model.d_model
    assert config.training.warmup_epochs < config.training.epochs
