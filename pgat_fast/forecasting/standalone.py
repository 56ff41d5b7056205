"""A run as one module from unscaled history to prices, whose program `torch.export` can write to a file."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pgat_fast.data.columns import TARGETS
from pgat_fast.data.scaling import Scaler
from pgat_fast.forecasting.load_run import Run
from pgat_fast.forecasting.predict import known_columns
from pgat_fast.model import build_model
from pgat_fast.model.forecast import Forecast, Mixture, point_forecast
from pgat_fast.model.optimized.phase import Recurrence
from pgat_fast.model.random_numbers import drawing_from
from pgat_fast.model.reference.phase import BodyProcessor

_CLOSE = TARGETS.index("log_Close")

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Scaled inputs of the forecaster: x_enc, x_mark_enc, x_dec, x_mark_dec."""


class StandaloneForecaster(nn.Module):
    """The forecaster of a run with its scalers, the construction of the decoder input, and the conversion to prices.

    It computes what `predict` does, as in `data.windows.window_ahead` and `data.price_units.to_prices`, for any number
    of windows. The forecaster is the reference: it consists of torch's operators alone, so that a program made of it
    can be loaded without this package. The backends `torch` and `triton` compute the same function by operators of
    `pgat_kernels`.
    """

    input_mean: Tensor
    input_std: Tensor
    target_mean: Tensor
    target_std: Tensor
    known: Tensor

    def __init__(self, run: Run) -> None:
        """Copy the weights and scalers of `run`, to its device."""
        super().__init__()
        config = run.config
        with drawing_from(torch.Generator()):  # initialising the parameters draws random numbers
            self.model = build_model(config, backend="reference")
        self.model.load_state_dict(run.model.state_dict())
        for module in self.model.modules():
            if isinstance(module, BodyProcessor):
                module.gru = _Recurrence(module.gru)  # type: ignore[assignment]  # called as a GRU is
        for name, scaler in (("input", run.input_scaler), ("target", run.target_scaler)):
            self._register_scaler(name, scaler)
        self.seq_len, self.label_len, self.pred_len = (
            config.model.seq_len,
            config.model.label_len,
            config.model.pred_len,
        )
        self.known_columns = known_columns(run)
        places = [run.input_scaler.columns.index(name) for name in self.known_columns]
        self.register_buffer("known", torch.tensor(places, dtype=torch.int64))
        self.kind = config.data.target_kind if run.target_scaler.columns == TARGETS else None
        """Kind of the targets if prices can be computed from them, otherwise None."""
        self.needs_close = self.kind == "returns"
        self.to(run.device).eval()

    def _register_scaler(self, name: str, scaler: Scaler) -> None:
        self.register_buffer(f"{name}_mean", torch.from_numpy(scaler.mean.copy()))
        self.register_buffer(f"{name}_std", torch.from_numpy(scaler.std.copy()))

    def forward(
        self,
        history: Tensor,
        history_marks: Tensor,
        future_marks: Tensor,
        future: Tensor | None = None,
        last_close: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Forecast the days after `history`.

        Args:
            history: unscaled inputs of the last S days, float64 [B, S, F].
            history_marks: their calendar marks, float32 [B, S, M], see `data.calendar.calendar_marks`.
            future_marks: calendar marks of the days to forecast, float32 [B, P, M].
            future: the `known_columns` of the days to forecast, float64 [B, P, K]; None if there are none.
            last_close: close of the last day, float64 [B], for returns; None for other targets.

        Returns:
            `prices` [B, P, 4] (open, high, low, close; float64) for the four standard targets; `targets` [B, P, c_out],
            unscaled (float64); `scaled` [B, P, c_out]; and the parameters of a mixture for the scaled targets, `means`,
            `log_stds` and `log_weights`, if the model forecasts one (`model.forecast.Mixture`).
        """
        inputs = self.model_inputs(history, history_marks, future_marks, future)
        return self.outputs(self.model(*inputs)[0], last_close)

    def model_inputs(
        self, history: Tensor, history_marks: Tensor, future_marks: Tensor, future: Tensor | None
    ) -> Inputs:
        """Return the scaled inputs of the forecaster, float32. Arguments are those of `forward`."""
        x = ((history - self.input_mean) / self.input_std).to(torch.float32)
        ahead = x.new_zeros(x.shape[0], self.pred_len, x.shape[2])
        if future is not None:
            scaled = (future - self.input_mean[self.known]) / self.input_std[self.known]
            ahead = ahead.index_copy(2, self.known, scaled.to(torch.float32))
        start = self.seq_len - self.label_len
        x_dec = torch.cat((x[:, start:], ahead), dim=1)
        return x, history_marks, x_dec, torch.cat((history_marks[:, start:], future_marks), dim=1)

    def outputs(self, forecast: Forecast, last_close: Tensor | None) -> dict[str, Tensor]:
        """Return the named outputs of `forward` for a forecast of the model."""
        scaled = point_forecast(forecast)
        targets = scaled.double() * self.target_std + self.target_mean
        outputs = {"targets": targets, "scaled": scaled}
        if self.kind is not None:
            outputs = {"prices": self._prices(targets, last_close), **outputs}
        return outputs | (forecast._asdict() if isinstance(forecast, Mixture) else {})

    def _prices(self, targets: Tensor, last_close: Tensor | None) -> Tensor:
        if last_close is None:
            return targets.exp()
        closes = targets[..., _CLOSE]
        previous = closes.cumsum(dim=1) - closes  # log of each day's previous close, relative to the last known one
        return last_close[:, None, None] * (targets + previous[..., None]).exp()


class _Recurrence(Recurrence):
    """An `nn.GRU` of one layer, with the same parameters, without the list of them that `torch.export` warns of."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights: list[Tensor] = list(self.parameters())
        start = x.new_zeros(1, x.shape[0], weights[1].shape[1])
        return torch.gru(x, start, weights, True, 1, 0.0, False, False, True)  # biases, one layer, batch first


def dimensions(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the meaning of each axis of inputs and outputs of `StandaloneForecaster.forward` that `names` lists."""
    axes = {
        "history": ("batch", "seq_len", "columns"),
        "history_marks": ("batch", "seq_len", "marks"),
        "future_marks": ("batch", "pred_len", "marks"),
        "future": ("batch", "pred_len", "future_columns"),
        "last_close": ("batch",),
        "prices": ("batch", "pred_len", "prices"),
        "targets": ("batch", "pred_len", "targets"),
        "scaled": ("batch", "pred_len", "targets"),
        "means": ("batch", "pred_len", "targets", "components"),
        "log_stds": ("batch", "pred_len", "targets", "components"),
        "log_weights": ("batch", "pred_len", "components"),
    }
    return {name: axes[name] for name in names}
