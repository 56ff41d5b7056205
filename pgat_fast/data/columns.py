"""Names and order of the 118 input columns, and the columns that describe each body.

Used by the builder, the checker and the model. Imports neither torch nor numpy.
"""

from pgat_fast.data.bodies import ASCENDANT, NODES, PLANETS, SHADBALA, name_in_file

TARGETS = ("log_Open", "log_High", "log_Low", "log_Close")

_ANGLES = ("sin", "cos", "speed", "sign_sin", "sign_cos")

COLUMNS: tuple[str, ...] = (
    *TARGETS,
    "time_delta",
    *(f"dyn_{body}_{what}" for body in PLANETS for what in (*_ANGLES, "distance", "lat")),
    *(f"dyn_{body}_{what}" for body in NODES for what in _ANGLES),
    *(f"dyn_{body}_shadbala" for body in SHADBALA),
    *(f"{body}_{what}" for body in (*PLANETS, *NODES, ASCENDANT) for what in ("sin", "cos")),
)
"""Numeric columns of the data file, after `date`."""

CELLS = {"month": 12, "day": 31, "weekday": 7, "hour": 24, "minute": 60}
"""Names of the calendar marks of a row, in order, and the number of values of each."""

_POSITIONAL_ORDER = (
    "sun", "moon", "mars", "mercury", "jupiter", "venus", "saturn",
    "uranus", "neptune", "pluto", "north_node", "south_node",
)  # fmt: skip


def is_angle_pair(column: str) -> bool:
    """Return whether `column` is the sine or cosine of an angle, which must not be scaled."""
    return column.endswith(("_sin", "_cos"))


def named_features(body: str) -> dict[str, int]:
    """Map the features of `body` to their indices in `COLUMNS`, by the column names.

    Keys, if the body has them, in this order: `sin`, `cos` (sidereal longitude), `speed`, `sign_sin`,
    `sign_cos`, `distance`, `lat`, `shadbala`, `ecliptic_sin`, `ecliptic_cos` (tropical longitude). Chiron has
    no columns of its own and uses the Ascendant's pair.
    """
    name = name_in_file(body)
    columns = {feature: f"dyn_{name}_{feature}" for feature in (*_ANGLES, "distance", "lat", "shadbala")}
    columns |= {f"ecliptic_{feature}": f"{name}_{feature}" for feature in ("sin", "cos")}
    return {feature: COLUMNS.index(column) for feature, column in columns.items() if column in COLUMNS}


def positional_features(body: str) -> dict[str, int]:
    """Map the features of `body` to column indices by position, as the existing checkpoints were trained.

    Each body has nine columns from column 5 on, whatever they hold: a planet has seven columns of its own, so that each
    body reads columns of others. Chiron has columns 113 to 115. The keys are plain numbers without meaning.
    """
    first, count = (113, 3) if body == "chiron" else (5 + 9 * _POSITIONAL_ORDER.index(body), 9)
    return {str(offset): first + offset for offset in range(count)}


def feature_columns(body: str, feature_map: str) -> list[int]:
    """Return the indices of the columns that the network of `body` reads; `feature_map` is named or positional."""
    return list((named_features if feature_map == "named" else positional_features)(body).values())
