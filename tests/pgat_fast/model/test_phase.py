"""Section 1: body features and phase adjacency."""

import math

import numpy as np
import pytest
from torch import nn

from pgat_fast.data.bodies import BODIES
from pgat_fast.data.columns import COLUMNS
from pgat_fast.model.reference.phase import BodyProcessor, PhaseAwareProcessor, PhaseEdges
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
