"""Building blocks of the architecture in NumPy, written with loops from its description; the model is compared to them.

All functions are float64 and take one sample without a batch dimension, unless stated otherwise. Weights are read from
the layer under test.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]

EXACT = 1e-10
"""Tolerance between two float64 computations of the same formula: sums of at most some hundred terms of order one."""


def array(tensor: Tensor) -> Array:
    """Return `tensor` as a float64 array."""
    values: Array = tensor.detach().double().numpy()
    return values


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Convert `module` to float64 and evaluation mode, and draw all its parameters, also biases and norms."""
    generator = torch.Generator().manual_seed(seed)
    module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(draw / max(1, parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else draw / 2)
    return module


def normal(*shape: int, seed: int = 1) -> Tensor:
    """Return standard normal float64 numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 2) -> Tensor:
    """Return float64 numbers between -1 and 1, the range of adjacencies."""
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def combiner_inputs(nodes: int, width: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Return three adjacencies [2, 4, N, N] and the context [2, 4, D]."""
    first, second, third = (uniform(2, 4, nodes, nodes, seed=seed) for seed in (1, 2, 3))
    return (first, second, third), normal(2, 4, width)


def assert_equal(actual: Tensor, expected: Array, tolerance: float = EXACT) -> None:
    """Check that shapes are equal and the largest difference is at most `tolerance`."""
    assert tuple(actual.shape) == expected.shape
    worst = float(np.abs(array(actual) - expected).max())
    assert worst <= tolerance, f"largest difference {worst}"


def linear(layer: nn.Linear, x: Array) -> Array:
    result: Array = x @ array(layer.weight).T
    return result + array(layer.bias)


def gelu(x: Array) -> Array:
    """Return the exact GELU: x times the normal distribution function of x."""
    result: Array = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return result


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def sigmoid(x: Array) -> Array:
    result: Array = 1 / (1 + np.exp(-x))
    return result


def softmax(x: Array) -> Array:
    """Return the softmax over the last axis."""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Array = powers / powers.sum(axis=-1, keepdims=True)
    return result


def layer_norm(layer: nn.LayerNorm, x: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    result: Array = scaled * array(layer.weight) + array(layer.bias)
    return result


def mlp(layers: nn.Module, x: Array) -> Array:
    """Apply a sequence of linear layers, GELUs, dropouts (inactive) and norms."""
    for layer in layers.children():
        if isinstance(layer, nn.Linear):
            x = linear(layer, x)
        elif isinstance(layer, nn.LayerNorm):
            x = layer_norm(layer, x)
        elif isinstance(layer, nn.GELU):
            x = gelu(x)
        else:
            assert isinstance(layer, nn.Dropout)
    return x


def attention(layer: nn.MultiheadAttention, queries: Array, keys: Array, scores_plus: Array | None = None) -> Array:
    """Apply scaled dot-product attention of [Q, D] to [K, D] head by head; `scores_plus` [Q, K] is added to scores."""
    assert layer.in_proj_weight is not None
    weight, bias = array(layer.in_proj_weight), array(layer.in_proj_bias)
    width = queries.shape[1]
    q = queries @ weight[:width].T + bias[:width]
    k = keys @ weight[width : 2 * width].T + bias[width : 2 * width]
    v = keys @ weight[2 * width :].T + bias[2 * width :]
    size = width // layer.num_heads
    heads = []
    for h in range(layer.num_heads):
        columns = slice(h * size, (h + 1) * size)
        scores = q[:, columns] @ k[:, columns].T / math.sqrt(size)
        heads.append(softmax(scores if scores_plus is None else scores + scores_plus) @ v[:, columns])
    return linear(layer.out_proj, np.concatenate(heads, axis=1))


def convolution(layer: nn.Conv1d, series: Array) -> Array:
    """Convolve [S, channels] along the steps with zero padding on both ends: [S, outputs]."""
    weight = array(layer.weight)  # [outputs, channels, kernel]
    steps, reach = len(series), weight.shape[2] // 2
    result = np.zeros((steps, weight.shape[0]))
    for s in range(steps):
        for tap in range(weight.shape[2]):
            if 0 <= s + tap - reach < steps:
                result[s] += weight[:, :, tap] @ series[s + tap - reach]
    return result if layer.bias is None else result + array(layer.bias)


def gru(layer: nn.GRU, series: Array) -> Array:
    """Return hidden states for [S, C] from a zero state (Cho et al. 2014, with the reset gate inside as in cuDNN)."""
    size = layer.hidden_size
    weights = {name: array(parameter) for name, parameter in layer.named_parameters()}
    state, states = np.zeros(size), []
    for x in series:
        from_input: Array = weights["weight_ih_l0"] @ x + weights["bias_ih_l0"]
        from_state: Array = weights["weight_hh_l0"] @ state + weights["bias_hh_l0"]
        reset = sigmoid(from_input[:size] + from_state[:size])
        update = sigmoid(from_input[size : 2 * size] + from_state[size : 2 * size])
        candidate = np.tanh(from_input[2 * size :] + reset * from_state[2 * size :])
        state = (1 - update) * candidate + update * state
        states.append(state)
    return np.array(states)
