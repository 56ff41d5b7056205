"""Launch configurations: tile, warps and stages by kernel, size, dtype and GPU. Nothing is tuned at run time."""

from typing import Final

from pgat_kernels.instrumentation import trial_of
from pgat_kernels.tuning_table import Case, Configuration, fitting, listed

DEFAULT: Final = "default"
"""Key of the configurations for GPUs that are not listed."""

# Chosen by what the offline compiler reports, not measured on a GPU; measured configurations are in
# `tuning_table.json`. For sm_90: by the instructions to issue (`bench/gpu/machine_code.py`). Its tensor cores need
# tiles of 64 rows, which are the work of four warps; eight would compute everything twice. For others: by registers
# (`bench/gpu/static.py`).
_FOUR_WARPS: Final = {"sm_90": Configuration(block=64, warps=4, stages=1)}
_EIGHT_WARPS: Final = {gpu: Configuration(block=64, warps=8, stages=1) for gpu in ("sm_90", "sm_100")}
_WIDE: Final = {**_EIGHT_WARPS, **_FOUR_WARPS}
_WIDE_BLOCKS: Final = {gpu: Configuration(64, 8, 1, columns=32) for gpu in ("sm_90", "sm_100")}
_WIDE_TOKENS: Final = {"sm_90": Configuration(64, 8, 1, columns=16), "sm_100": Configuration(64, 8, 1, columns=32)}
_NARROW_BLOCKS: Final = {"gfx942": Configuration(16, 8, 1, columns=32)}
_AMD: Final = {"gfx942": Configuration(block=32, warps=4, stages=1)}
TABLE: Final[dict[Case, dict[str, Configuration]]] = {
    Case("graph_attention forward", 2, 32): {DEFAULT: Configuration(32, 4, 1), **_WIDE},
    Case("graph_attention forward", 2, 64): {DEFAULT: Configuration(64, 8, 1), **_FOUR_WARPS},
    Case("graph_attention forward", 4, 32): {DEFAULT: Configuration(32, 4, 1)},
    Case("graph_attention forward", 4, 64): {DEFAULT: Configuration(64, 16, 1), "sm_89": Configuration(64, 8, 1)},
    Case("graph_attention backward", 2, 32): {DEFAULT: Configuration(32, 4, 1), **_EIGHT_WARPS},
    Case("graph_attention backward", 2, 64): {DEFAULT: Configuration(64, 8, 1), **_FOUR_WARPS},
    Case("graph_attention backward", 4, 32): {DEFAULT: Configuration(32, 8, 1), "sm_100": Configuration(16, 8, 1)},
    Case("graph_attention backward", 4, 64): {DEFAULT: Configuration(64, 16, 1), "gfx942": Configuration(64, 8, 1)},
    Case("edge_attention forward", 2, 512): {DEFAULT: Configuration(32, 4, 1), **_WIDE},
    Case("edge_attention backward queries", 2, 512): {DEFAULT: Configuration(64, 8, 1), **_FOUR_WARPS, **_AMD},
    Case("edge_attention backward keys", 2, 512): {
        DEFAULT: Configuration(64, 8, 1),
        **_FOUR_WARPS,
        "gfx942": Configuration(32, 8, 1),
    },
    # With an adjacency or a bias, which take registers.
    Case("masked_edge_attention forward", 2, 512): {DEFAULT: Configuration(32, 4, 1), **_EIGHT_WARPS},
    Case("masked_edge_attention backward queries", 2, 512): {DEFAULT: Configuration(64, 8, 1), **_AMD},
    Case("masked_edge_attention backward keys", 2, 512): {
        DEFAULT: Configuration(64, 8, 1),
        "sm_80": Configuration(32, 4, 1),
        "gfx942": Configuration(32, 8, 1),
    },
    **{
        Case(f"{kernel} {name}", 4, 512): configurations
        for kernel in ("edge_attention", "masked_edge_attention")
        for name, configurations in (
            ("forward", {DEFAULT: Configuration(32, 4, 1), "sm_80": Configuration(32, 8, 1)}),
            ("backward queries", {DEFAULT: Configuration(32, 16, 1), **_AMD}),
            ("backward keys", {DEFAULT: Configuration(32, 16, 1), "sm_100": Configuration(32, 4, 1), **_AMD}),
        )
    },
    Case("edge_attention backward bias", 2, 512): {DEFAULT: Configuration(32, 4, 1), **_EIGHT_WARPS},
    Case("edge_attention backward bias", 4, 512): {DEFAULT: Configuration(32, 4, 1)},
    **{
        Case(f"low_rank_attention {name}", itemsize, 512): {DEFAULT: Configuration(64, warps, 1)}
        for name, warps in (("forward", 4), ("backward queries", 4), ("backward keys", 8))
        for itemsize in (2, 4)
    },
    # Four warps spill registers outside of the loop, and issue 60 % of what eight do.
    Case("feed_forward forward", 2, 256): {
        DEFAULT: Configuration(32, 8, 1, columns=16),
        **_WIDE_BLOCKS,
        "sm_90": Configuration(64, 4, 1, columns=16),
    },
    Case("feed_forward forward", 4, 256): {DEFAULT: Configuration(16, 8, 1, columns=16)},
    Case("feed_forward backward", 2, 256): {
        DEFAULT: Configuration(32, 8, 1, columns=32),
        **_WIDE_BLOCKS,
        **_NARROW_BLOCKS,
    },
    Case("feed_forward backward", 4, 256): {DEFAULT: Configuration(16, 8, 1, columns=16)},
    Case("edge_tokens forward", 2, 256): {DEFAULT: Configuration(32, 8, 1, columns=32), **_WIDE_TOKENS},
    Case("edge_tokens forward", 4, 256): {DEFAULT: Configuration(16, 8, 1, columns=16)},
    Case("edge_tokens backward", 2, 256): {
        DEFAULT: Configuration(32, 8, 1, columns=32),
        **_WIDE_TOKENS,
        **_NARROW_BLOCKS,
    },
    Case("edge_tokens backward", 4, 256): {DEFAULT: Configuration(16, 4, 1, columns=16)},
    Case("projection forward", 2, 256): {DEFAULT: Configuration(64, 8, 1, columns=32)},
    Case("projection forward", 4, 256): {DEFAULT: Configuration(16, 8, 1, columns=16)},
    Case("projection backward", 2, 256): {DEFAULT: Configuration(64, 8, 1, columns=32)},
    Case("projection backward", 4, 256): {DEFAULT: Configuration(16, 8, 1, columns=16)},
    Case("edge_head forward", 2, 256): {DEFAULT: Configuration(64, 8, 1, columns=32)},
    Case("edge_head forward", 4, 256): {DEFAULT: Configuration(16, 8, 1, columns=16)},
    Case("edge_head backward", 2, 256): {DEFAULT: Configuration(64, 8, 1, columns=32)},
    Case("edge_head backward", 4, 256): {DEFAULT: Configuration(16, 8, 1, columns=16)},
    Case("aspects forward", 4, 128): {DEFAULT: Configuration(128, 8, 1, columns=32)},
    Case("aspects backward", 4, 128): {DEFAULT: Configuration(128, 8, 1, columns=32)},
    Case("gru forward", 4, 128): {DEFAULT: Configuration(16, 4, 1)},
    Case("gru backward", 4, 128): {DEFAULT: Configuration(16, 4, 1)},
}


def configuration(kernel: str, itemsize: int, size: int, gpu: str = DEFAULT) -> Configuration:
    """Return the configuration of `kernel` for inputs of this size, `itemsize` bytes per element, on `gpu`.

    Measurements on `gpu` take precedence over the table. An unlisted `gpu` gets the default configuration.

    Raises KeyError if no kernel takes such inputs.
    """
    case = fitting(TABLE, kernel, itemsize, size)
    if case is None:
        raise KeyError(Case(kernel, itemsize, size))
    trial = trial_of(case)
    if trial is not None:
        return trial
    entry = listed(gpu)
    if entry is not None and case in entry.configurations:
        return entry.configurations[case]
    return TABLE[case].get(gpu, TABLE[case][DEFAULT])
