"""Section 1: body features and phase adjacency."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pgat_fast.data.columns import BODIES, COLUMNS
from pgat_fast.model.reference.phase import BodyProcessor, PhaseAwareProcessor, PhaseEdges, PhaseQuantities
from tests.pgat_fast.model import by_hand
from tests.pgat_fast.model.by_hand import Array, array, normal, randomize

IN_FILE = {body: body.capitalize() for body in BODIES} | {
    "north_node": "Mean Rahu",
    "south_node": "Mean Ketu",
    "chiron": "Ascendant",
}
QUANTITIES = ("sin", "cos", "speed", "sign_sin", "sign_cos", "distance", "lat", "shadbala")
POSITIONAL = [
    *("sun", "moon", "mars", "mercury", "jupiter", "venus", "saturn"),
    *("uranus", "neptune", "pluto", "north_node", "south_node"),
]


def column(name: str) -> int | None:
    return COLUMNS.index(name) if name in COLUMNS else None


def columns_of(body: str, feature_map: str) -> list[int]:
    if feature_map == "positional":
        if body == "chiron":
            return [113, 114, 115]
        return [5 + 9 * POSITIONAL.index(body) + offset for offset in range(9)]
    names = [f"dyn_{IN_FILE[body]}_{what}" for what in QUANTITIES]
    names += [f"{IN_FILE[body]}_sin", f"{IN_FILE[body]}_cos"]
    return [index for index in map(column, names) if index is not None]


def quantities(body: str, x: Array) -> dict[str, float]:
    """Return the quantities of section 1 for `body`, from one row of inputs."""
    dynamic, static = f"dyn_{IN_FILE[body]}_", f"{IN_FILE[body]}_"

    def angle(prefix: str, otherwise: float) -> float:
        sin, cos = column(prefix + "sin"), column(prefix + "cos")
        return otherwise if sin is None or cos is None else math.atan2(x[sin], x[cos])

    def number(name: str, otherwise: float) -> float:
        index = column(name)
        return otherwise if index is None else float(x[index])

    longitude = angle(dynamic, angle(static, math.nan))
    return {
        "longitude": longitude,
        "sign": angle(dynamic + "sign_", longitude),
        "ecliptic": angle(static, longitude),
        "speed": number(dynamic + "speed", 0.0),
        "distance": number(dynamic + "distance", 1.0),
    }


def wrapped(angle: float) -> float:
    return (angle + math.pi) % (2 * math.pi) - math.pi


def phase_adjacency(edges: PhaseEdges, h: Array, x: Array, computed: bool) -> Array:
    """Return the phase adjacency of one sample, h [N, C], x [F], pair by pair."""
    body_quantities = [quantities(body, x) if computed else None for body in BODIES]
    zero = dict.fromkeys(("longitude", "sign", "ecliptic", "speed", "distance"), 0.0)
    result = np.zeros((13, 13))
    for i in range(13):
        for j in range(i + 1, 13):
            a, b = body_quantities[i] or zero, body_quantities[j] or zero
            d_theta = wrapped(a["longitude"] - b["longitude"])
            d_phi = wrapped(a["sign"] - b["sign"])
            d_lon = wrapped(a["ecliptic"] - b["ecliptic"])
            d_speed = a["speed"] - b["speed"]
            ratio = a["distance"] / (b["distance"] + 1e-8)
            align = math.cos(d_theta) * math.cos(d_phi)
            f = np.concatenate((h[i], h[j], [d_theta, d_phi, d_speed, ratio, d_lon, align]))
            e = by_hand.sigmoid(by_hand.mlp(edges.predictor, f))[0]
            p = np.abs([d_theta, d_phi, d_speed, ratio - 1, d_lon, align])
            result[i, j] = result[j, i] = e * by_hand.sigmoid(array(edges.weights) @ p)
    return result


def body_features(body: nn.Module, x: Array) -> Array:
    """Return the features [S, C] of the columns x [S, n_b] of a body."""
    assert isinstance(body, BodyProcessor)
    z = by_hand.linear(body.attention.output, by_hand.linear(body.attention.value, x))
    r = by_hand.layer_norm(body.norm, by_hand.linear(body.project, by_hand.gelu(by_hand.linear(body.expand, z))))
    result: Array = r + by_hand.gru(body.gru, r)
    return result


@pytest.mark.parametrize("phase_edges", ["computed", "zero"])
@pytest.mark.parametrize("feature_map", ["named", "positional"])
def test_features_and_adjacency_equal_the_formulas(feature_map: str, phase_edges: str) -> None:
    model = PhaseAwareProcessor(4, feature_map, phase_edges)
    randomize(model)
    x = normal(2, 5, 118)
    features, adjacency = model(x)
    for sample in range(2):
        values = array(x[sample])
        bodies = [body_features(model.bodies[body], values[:, columns_of(body, feature_map)]) for body in BODIES]
        h = np.stack(bodies, axis=1)  # [S, N, C]
        expected = phase_adjacency(model.edges, h[-1], values[-1], phase_edges == "computed")
        by_hand.assert_equal(adjacency[sample], expected)
        scale = 1 + (np.log(expected + 1e-8) * array(model.scaler)).mean(axis=1)
        o = np.stack([by_hand.attention(model.attention, step, step) for step in h])
        by_hand.assert_equal(features[sample], (o * scale[:, None]).reshape(5, -1), 1e-9)  # scales reach 20


@pytest.mark.parametrize("phase_edges", ["computed", "zero"])
def test_phase_adjacency_is_symmetric_with_zero_diagonal(phase_edges: str) -> None:
    adjacency = PhaseAwareProcessor(2, "named", phase_edges)(torch.randn(3, 4, 118))[1]
    assert torch.equal(adjacency, adjacency.transpose(1, 2))
    assert (adjacency.diagonal(dim1=1, dim2=2) == 0).all()
    off_diagonal = adjacency[:, ~torch.eye(13, dtype=torch.bool)]
    assert ((off_diagonal > 0) & (off_diagonal < 1)).all()


def edges_and_inputs() -> tuple[PhaseEdges, Tensor, Tensor]:
    edges = PhaseEdges(computed=True)
    randomize(edges)
    return edges, normal(2, 13, 32), normal(2, 118, seed=3)


def turned(x: Tensor, angle: float) -> Tensor:
    """Return `x` with all sine and cosine pairs rotated by `angle`."""
    x = x.clone()
    for sin in (i for i, name in enumerate(COLUMNS) if name.endswith("sin")):
        s, c = x[:, sin].clone(), x[:, sin + 1].clone()
        x[:, sin] = s * math.cos(angle) + c * math.sin(angle)
        x[:, sin + 1] = c * math.cos(angle) - s * math.sin(angle)
    return x


@pytest.mark.parametrize("angle", [1.0, 2.5, math.pi])
def test_adjacency_is_invariant_to_rotation_of_all_angles(angle: float) -> None:
    edges, h, x = edges_and_inputs()
    before, after = edges(h, x), edges(h, turned(x, angle))
    assert torch.allclose(before, after, rtol=0, atol=1e-12)  # rounding of float64
    assert not torch.equal(x, turned(x, angle))


def test_adjacency_is_invariant_to_scale_of_sine_and_cosine() -> None:
    edges, h, x = edges_and_inputs()
    longer = x.clone()
    longer[:, [i for i, name in enumerate(COLUMNS) if name.endswith(("_sin", "_cos"))]] *= 3
    assert torch.allclose(edges(h, x), edges(h, longer), rtol=0, atol=1e-12)  # rounding of float64


def test_missing_quantities_have_defaults() -> None:
    angles, speeds, distances = PhaseQuantities().double()(normal(4, 118))
    chiron, nodes = BODIES.index("chiron"), [BODIES.index("north_node"), BODIES.index("south_node")]
    assert (speeds[:, chiron] == 0).all()
    assert (speeds[:, nodes] != 0).all()
    assert (distances[:, [*nodes, chiron]] == 1).all()
    assert (distances[:, :10] != 1).all()
    assert torch.equal(angles[:, 1, chiron], angles[:, 0, chiron])
    assert torch.equal(angles[:, 2, chiron], angles[:, 0, chiron])


def test_adjacency_without_computed_phases_depends_only_on_body_features() -> None:
    edges = PhaseEdges(computed=False)
    randomize(edges)
    h = normal(2, 13, 32)
    assert torch.equal(edges(h, normal(2, 118)), edges(h, normal(2, 118, seed=9)))
    assert not torch.equal(edges(h, normal(2, 118)), edges(h + 1, normal(2, 118)))


def test_columns_without_a_body_are_ignored() -> None:
    model = PhaseAwareProcessor(4, "named", "computed")
    randomize(model)
    x = normal(1, 4, 118)
    changed = x.clone()
    changed[:, :, :5] += 1  # the targets and time_delta
    for before, after in zip(model(x), model(changed), strict=True):
        assert torch.equal(before, after)


def test_adjacency_depends_on_all_phase_quantities() -> None:
    edges, h, x = edges_and_inputs()
    x.requires_grad_()
    edges(h, x)[0].sum().backward()
    assert x.grad is not None
    used = {COLUMNS[i] for i in x.grad[0].nonzero().flatten().tolist()}
    angles = {name for name in COLUMNS if name.endswith(("_sin", "_cos"))}
    numbers = {name for name in COLUMNS if name.endswith(("_speed", "_distance"))}
    assert used == angles | numbers


def test_body_features_do_not_depend_on_later_timesteps() -> None:
    body = BodyProcessor(10)
    randomize(body)
    x = normal(1, 6, 10)
    later = x.clone()
    later[:, 4:] += 1
    assert torch.equal(body(x)[:, :4], body(later)[:, :4])
    assert not torch.equal(body(x)[:, 4:], body(later)[:, 4:])


def test_number_of_columns_of_each_body() -> None:
    model: nn.Module = PhaseAwareProcessor(4, "named", "zero")
    widths = {body: model.get_submodule(f"bodies.{body}.attention.value").in_features for body in BODIES}
    seven = ("sun", "moon", "mercury", "venus", "mars", "jupiter", "saturn")
    expected = dict.fromkeys(seven, 10) | dict.fromkeys(("uranus", "neptune", "pluto"), 9)
    assert widths == expected | dict.fromkeys(("north_node", "south_node"), 7) | {"chiron": 2}
