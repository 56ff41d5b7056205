"""One training run, from the configuration to the results, readable from top to bottom."""

import logging
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pgat_fast.config import Config, dump_config
from pgat_fast.data.load import load_splits
from pgat_fast.data.windows import Windows, batch_indices
from pgat_fast.device import resolve_device
from pgat_fast.errors import TrainingError
from pgat_fast.evaluation.evaluate import evaluate_split
from pgat_fast.files import write_atomically, write_json
from pgat_fast.model import build_model
from pgat_fast.training.loss import training_loss
from pgat_fast.training.results import Results, build_results
from pgat_fast.training.run_folder import new_folder
from pgat_fast.training.schedule import learning_rate
from pgat_fast.training.weights import load_weights, save_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Epoch:
    """What is known of one epoch when it is over. Losses are means over windows, in scaled units."""

    epoch: int
    """From 1."""
    learning_rate: float
    optimizer_steps: int
    train_loss: float
    validation_loss: float
    seconds: float


def train(config: Config, *, progress: bool = True) -> tuple[Path, Results]:
    """Train as `config` says; return the folder of the run, a new one in `run.output`, and the results.

    The folder holds `config.yaml` (resolved), `best.safetensors` (the weights of the best validation loss) and, at
    the end, `results.json`. The best weights are what the test metrics are computed with.

    Args:
        config: the whole configuration.
        progress: show a progress bar, where standard error is a terminal.

    Raises:
        DataError, ConfigError, BackendError: data, settings or machine do not allow this run; nothing was written.
        TrainingError: a loss or gradient became NaN or infinite; the weights are those before that step.
    """
    started = time.perf_counter()
    settings = config.training
    device = resolve_device(config.run.device)
    seed_everything(settings.seed)
    table, splits = load_splits(config.data, config.model, device)
    # A split that does not fill one batch is refused here, before a model is built.
    batch_indices(len(splits.train), settings.batch_size, drop_last=True)
    model = build_model(config).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    folder = new_folder(Path(config.run.output), config.run.name)
    write_atomically(folder / "config.yaml", dump_config(config).encode())

    def validate() -> float:
        loss = evaluate_split(model, splits.validation, settings.batch_size, config.model.mdn_multivariate_mode).loss
        if not math.isfinite(loss):
            raise TrainingError(f"the validation loss is {loss}: lower training.learning_rate")
        return loss

    initial = validate()
    logger.info("before training: validation loss %.5f", initial)
    epochs: list[Epoch] = []
    best, best_epoch = math.inf, 0
    if settings.lr_schedule == "warmup_cosine" and settings.warmup_epochs >= settings.epochs:
        logger.warning("training.warmup_epochs %d: the run ends before warm-up does", settings.warmup_epochs)
    steps_left = settings.max_steps
    for number in range(settings.epochs):
        epoch_started = time.perf_counter()
        rate = learning_rate(
            settings.lr_schedule,
            number,
            peak=settings.learning_rate,
            minimum=settings.min_lr,
            warmup_epochs=settings.warmup_epochs,
            epochs=settings.epochs,
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        train_loss, steps = train_epoch(config, model, optimizer, splits.train, number, steps_left, progress)
        validation_loss = validate()
        epochs.append(Epoch(number + 1, rate, steps, train_loss, validation_loss, time.perf_counter() - epoch_started))
        logger.info(
            "epoch %d of %d: learning rate %.2e, train loss %.5f, validation loss %.5f, %.1f s",
            number + 1, settings.epochs, rate, train_loss, validation_loss, epochs[-1].seconds,
        )  # fmt: skip
        if validation_loss < best:
            best, best_epoch = validation_loss, number + 1
            save_weights(folder / "best.safetensors", model, config, epoch=number + 1, validation_loss=validation_loss)
        elif number + 1 - best_epoch >= settings.patience:
            logger.info("stopped: no better validation loss for %d epochs", settings.patience)
            break
        if steps_left is not None:
            steps_left -= steps
            if steps_left == 0:
                logger.info("stopped: max_steps %d reached", settings.max_steps)
                break

    load_weights(folder / "best.safetensors", model)
    results = build_results(
        config, table, splits, model, initial, [asdict(epoch) for epoch in epochs], best_epoch, started
    )
    write_json(folder / "results.json", results)
    return folder, results


def train_epoch(
    config: Config,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    windows: Windows,
    epoch: int,
    max_steps: int | None,
    progress: bool,
) -> tuple[float, int]:
    """One pass over the training windows, or `max_steps` optimizer steps of it.

    Returns the mean loss of the batches and the number of optimizer steps.
    """
    settings = config.training
    model.train()
    device = windows.values.device
    order = batch_indices(
        len(windows), settings.batch_size, seed=settings.seed, epoch=epoch, drop_last=True, device=device
    )
    cycles = list(chunk(list(order), settings.gradient_accumulation_steps))[:max_steps]
    total, seen = torch.zeros((), dtype=torch.float64, device=device), 0
    bar = tqdm(cycles, desc=f"epoch {epoch + 1}/{settings.epochs}", unit="step", disable=None if progress else True)
    for step, cycle in enumerate(bar):
        optimizer.zero_grad()
        for indices in cycle:
            batch = windows.batch(indices)
            forecast, diagnostics = model(*batch[:4])
            loss = training_loss(forecast, diagnostics, batch.y, config.model.mdn_multivariate_mode, settings.kl_weight)
            # The last cycle may be shorter: divide by what it holds, not by what is usual.
            (loss / len(cycle)).backward()
            total += loss.detach()
        seen += len(cycle)
        clip_gradients(model, settings.clip_grad_norm, where=f"epoch {epoch + 1}, step {step + 1}", loss=loss)
        optimizer.step()
        if (step + 1) % config.run.log_interval == 0:
            mean = total.item() / seen
            bar.set_postfix(loss=f"{mean:.4f}")
            if bar.disable:
                logger.info("epoch %d, step %d of %d: mean train loss %.5f", epoch + 1, step + 1, len(cycles), mean)
    return total.item() / seen, len(cycles)


def clip_gradients(model: nn.Module, limit: float | None, *, where: str, loss: Tensor) -> None:
    """Scale the gradients to a global L2 norm of at most `limit`; refuse one that is NaN or infinite."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if not torch.isfinite(norm):
        broken = [
            name
            for name, parameter in model.named_parameters()
            if parameter.grad is not None and not parameter.grad.isfinite().all()
        ]
        which = (
            f"{len(broken)} parameters are concerned, first {', '.join(broken[:3])}" if broken else "its norm overflows"
        )
        raise TrainingError(
            f"{where}: the gradient is not finite (last loss {loss.item()}); the weights are as before this step; "
            f"{which}. Lower training.learning_rate or "
            "training.clip_grad_norm, or check the data with `pgat-fast data check`"
        )
    if limit is not None:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries that a user brings draw from the global generator
    torch.manual_seed(seed)


def chunk(items: list[Tensor], size: int) -> list[list[Tensor]]:
    """Consecutive parts of `size`, the last one shorter where it does not come out even."""
    return [items[start : start + size] for start in range(0, len(items), size)]
