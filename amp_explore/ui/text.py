"""Numbers as people read them. The space before a unit does not break."""

from __future__ import annotations


def compact(value: float) -> str:
    """134515008 -> '134.5 M'."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.1f}\N{NO-BREAK SPACE}{unit}"
    return f"{value:.0f}"


def megabytes(value: float) -> str:
    """Bytes in binary units."""
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= limit:
            return f"{value / limit:.1f}\N{NO-BREAK SPACE}{unit}"
    return f"{value:.0f}\N{NO-BREAK SPACE}B"


def signed_percent(value: float, reference: float) -> str:
    """A change: '−12.3 %'."""
    change = 100 * (value / reference - 1) if reference else 0.0
    return f"{change:+.1f}\N{NO-BREAK SPACE}%".replace("-", "−") if abs(change) >= 0.05 else "±0\N{NO-BREAK SPACE}%"
