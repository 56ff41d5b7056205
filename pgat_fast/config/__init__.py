"""Define settings, read them from files, mappings and overrides, and write them."""

from pgat_fast.config.dump import config_to_dict, dump_config
from pgat_fast.config.loader import load_config, with_precision_of
from pgat_fast.config.schema import Config, DataConfig, ModelConfig, RunConfig, TrainingConfig

__all__ = [
    "Config",
    "DataConfig",
    "ModelConfig",
    "RunConfig",
    "TrainingConfig",
    "config_to_dict",
    "dump_config",
    "load_config",
    "with_precision_of",
]
