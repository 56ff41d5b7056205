"""The 13 bodies: the nodes of the graph, and how the data file names them. Imports neither torch nor numpy."""

BODIES = (
    "sun", "moon", "mercury", "venus", "mars", "jupiter", "saturn",
    "uranus", "neptune", "pluto", "north_node", "south_node", "chiron",
)  # fmt: skip
"""The 13 nodes of the graph, in the order used everywhere in the model."""

BODY_CHANNELS = 32
"""C, the number of features of a body."""

PLANETS = ("Sun", "Moon", "Mars", "Mercury", "Jupiter", "Venus", "Saturn", "Uranus", "Neptune", "Pluto")
"""The ten bodies with an ephemeris, in the order of the columns of the data file."""

NODES = ("Mean Rahu", "Mean Ketu")
"""The mean lunar nodes, ascending and descending, as named in the columns."""

SHADBALA = ("Sun", "Moon", "Mars", "Mercury", "Jupiter", "Venus", "Saturn")
"""The seven bodies with a strength column."""

ASCENDANT = "Ascendant"

_NAMES_IN_FILE = {"north_node": "Mean Rahu", "south_node": "Mean Ketu", "chiron": ASCENDANT}


def name_in_file(body: str) -> str:
    """Return the name of `body`, one of `BODIES`, in the columns of the data file; Chiron's is the Ascendant's."""
    return _NAMES_IN_FILE.get(body, body.capitalize())
