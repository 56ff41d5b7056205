"""Run folders with random weights, as training would leave them."""

from pathlib import Path

import torch
from torch import nn

from pgat_fast.config import Config, config_to_dict, dump_config, load_config
from pgat_fast.data.load import load_splits
from pgat_fast.data.table import Table
from pgat_fast.data.windows import Splits
from pgat_fast.model import build_model
from pgat_fast.training.checkpoint import Checkpoint, save_checkpoint

CPU = torch.device("cpu")


def make_run(folder: Path, settings: list[str]) -> tuple[Config, nn.Module, Table, Splits]:
    """Create a run in `folder` with one checkpoint, `step-00000000`, and return its configuration, model and data."""
    config = load_config(None, settings)
    torch.manual_seed(5)
    model = build_model(config).eval()
    table, splits = load_splits(config.data, config.model, CPU)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config))
    save(folder, config, model, splits, table, step=0, best="step-00000000")
    return config, model, table, splits


def save(
    folder: Path, config: Config, model: nn.Module, splits: Splits, table: Table, step: int, best: str | None
) -> Path:
    """Save `model` as the checkpoint of `step`."""
    about = {
        "config": config_to_dict(config),
        "epoch": step,
        "step": step,
        "best": best,
        "validation_loss": 1.0,
        "input_scaler": splits.input_scaler.to_dict(),
        "target_scaler": splits.target_scaler.to_dict(),
        "data": {"path": table.source, "rows": len(table.dates), "sha256": table.sha256},
        "versions": {"torch": str(torch.__version__)},
        "backend": "reference",
    }
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return save_checkpoint(folder / "checkpoints", f"step-{step:08d}", Checkpoint(weights, {}, about))
