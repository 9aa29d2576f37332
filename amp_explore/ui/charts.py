"""Plotly figures. Each function takes data and returns a figure; none fetches anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from amp_explore.criteria.scores import Scores

Scale = Literal["linear", "log", "per layer"]

DENSE, PRUNED, SPREAD = "#8a94a6", "#2f7de1", "#d98200"  # readable on light and on dark pages


def as_grid(layers: Sequence[np.ndarray]) -> np.ndarray:
    """(layers, widest) float64; NaN where a layer has fewer units."""
    grid = np.full((len(layers), max(map(len, layers))), np.nan)
    for number, layer in enumerate(layers):
        grid[number, : len(layer)] = layer
    return grid


def shade(grid: np.ndarray, scale: Scale) -> tuple[np.ndarray, str, str]:
    """Where each score lies on the colour scale, 0 to 1, and what its two ends mean.

    The ends are the 1st and 99th percentile, so that one outlier does not hide everything else.
    """
    if np.isnan(grid).all():
        return grid, "", ""
    if np.nanmax(grid) <= 0:
        scale = "linear" if scale == "log" else scale  # scores that are negative throughout have no logarithm
    values = np.log10(np.maximum(grid, np.nanmax(grid) * 1e-9 or 1e-30)) if scale == "log" else grid
    axis = 1 if scale == "per layer" else None
    low = np.nanpercentile(values, 1, axis=axis, keepdims=True)
    high = np.nanpercentile(values, 99, axis=axis, keepdims=True)
    shaded = np.clip((values - low) / np.where(high > low, high - low, 1), 0, 1)
    if scale == "per layer":
        return shaded, "layer's lowest", "layer's highest"
    ends = [float(np.ravel(end)[0]) for end in (low, high)]
    return shaded, *(f"{10**end if scale == 'log' else end:.3g}" for end in ends)


def image_options(name: str, kind: str) -> dict[str, Any]:
    """Plotly's configuration: the camera button saves the figure as this kind of image."""
    return {
        "displaylogo": False,
        "toImageButtonOptions": {"format": kind.lower(), "filename": name, "scale": 2},
    }


def heatmap(grid: np.ndarray, scale: Scale, *, x: str, hover: np.ndarray, height: int) -> go.Figure:
    """Layers down, units across; colours by `shade`, `hover` (layers, units) is the text of each cell."""
    shaded, low, high = shade(grid, scale)
    return _cells(shaded, hover, x=x, height=height, colours="Viridis", ticks={0: low, 1: high})


def _cells(
    grid: np.ndarray, hover: np.ndarray, *, x: str, height: int, colours: str, ticks: Mapping[float, str]
) -> go.Figure:
    """One coloured cell per unit, layers down; NaN: the layer has no such unit. `ticks` names values of the scale, its
    two ends among them. A click on a cell reports its layer as `customdata`."""
    figure = go.Figure(
        go.Heatmap(
            z=grid,
            hoverinfo="skip",
            colorscale=colours,
            zmin=min(ticks),
            zmax=max(ticks),
            xgap=1 if grid.shape[1] <= 64 else 0,
            ygap=1,
            colorbar={"tickvals": list(ticks), "ticktext": list(ticks.values()), "thickness": 12},
        )
    )
    # A heatmap does not report clicks; invisible points on its cells do, and so they carry the hover text too.
    layers, units = np.nonzero(~np.isnan(grid))
    figure.add_scatter(
        x=units,
        y=layers,
        mode="markers",
        marker={"opacity": 0, "size": 14},
        customdata=layers,  # one number: Streamlit turns rows into something else
        text=hover[layers, units],
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
    figure.update_xaxes(title=x, showgrid=False, zeroline=False, range=[-0.5, grid.shape[1] - 0.5])
    figure.update_yaxes(title="layer", range=[len(grid) - 0.5, -0.5], showgrid=False, zeroline=False)
    figure.update_layout(height=height, margin={"t": 10, "b": 40, "l": 50, "r": 10}, dragmode="pan")
    figure.update_layout(hovermode="closest", hoverdistance=-1)  # the nearest cell, wherever in it the pointer is
    return figure


def heads_heatmap(scores: Scores, scale: Scale, kv_of_head: Sequence[Sequence[int]]) -> go.Figure:
    """The layer x head map."""
    grid = as_grid(scores.heads)
    hover = np.full(grid.shape, "", object)
    for layer, heads in enumerate(kv_of_head):
        for head, kv in enumerate(heads):
            hover[layer, head] = f"layer {layer} · head {head} · KV head {kv}<br>score {grid[layer, head]:.5g}"
    return heatmap(grid, scale, x="head", hover=hover, height=_height(len(grid)))


def neurons_heatmap(
    scores: Scores, scale: Scale, order: Literal["by rank", "by position"], bins: int = 96
) -> go.Figure:
    """The layer x neuron overview: neurons of a layer in bins, weakest first or as they stand."""
    bins = min(bins, min(map(len, scores.neurons)))
    grid = np.empty((len(scores.neurons), bins))
    hover = np.full(grid.shape, "", object)
    for layer, values in enumerate(scores.neurons):
        ordered = np.sort(values) if order == "by rank" else values
        edges = np.linspace(0, len(values), bins + 1).astype(int)
        for place, (first, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            part = ordered[first:end]
            grid[layer, place] = part.mean()
            name = "rank" if order == "by rank" else "neuron"
            hover[layer, place] = (
                f"layer {layer} · {name} {first} to {end - 1}<br>"
                f"mean {part.mean():.4g} · {part.min():.4g} to {part.max():.4g}"
            )
    axis = "neurons, weakest first" if order == "by rank" else "neurons, by position"
    return heatmap(grid, scale, x=f"{axis} ({bins} bins)", hover=hover, height=_height(len(grid)))


def layer_distribution(values: np.ndarray, *, unit: str, log: bool) -> go.Figure:
    """How one layer's scores are spread: all of them sorted, weakest first."""
    order = np.argsort(values, kind="stable")
    common = {
        "y": values[order],
        "text": [f"{unit} {index}<br>rank {rank}<br>score {values[index]:.5g}" for rank, index in enumerate(order)],
        "hovertemplate": "%{text}<extra></extra>",
    }
    if few := len(values) <= 64:
        trace = go.Bar(x=[str(index) for index in order], textposition="none", marker={"color": PRUNED}, **common)
    else:
        fill = None if log else "tozeroy"  # a logarithmic axis has no zero
        trace = go.Scattergl(x=np.arange(len(values)), mode="lines", line={"color": PRUNED}, fill=fill, **common)
    figure = go.Figure(trace)
    figure.update_xaxes(title=f"{unit}s, weakest first", type="category" if few else "linear")
    figure.update_yaxes(title="score", type="log" if log else "linear", dtick="D2" if log else None)  # 1, 2, 5, 10
    figure.update_layout(height=280, margin={"t": 10, "b": 40, "l": 50, "r": 10})
    return figure


def histogram(values: np.ndarray, *, unit: str, log: bool) -> go.Figure:
    """How many units of one layer have which score."""
    shown = np.log10(np.maximum(values, values.max() * 1e-9)) if log else values
    figure = go.Figure(go.Histogram(x=shown, nbinsx=60, marker={"color": PRUNED}))
    figure.update_xaxes(title="log10 of the score" if log else "score")
    figure.update_yaxes(title=f"{unit}s")
    figure.update_layout(height=280, margin={"t": 10, "b": 40, "l": 50, "r": 10}, bargap=0.05)
    return figure


def side_by_side(
    names: Sequence[str], sides: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, y: str
) -> go.Figure:
    """Grouped bars with error bars: `sides[name]` is (values, standard errors or spreads)."""
    figure = go.Figure()
    for (side, (values, errors)), colour in zip(sides.items(), (DENSE, PRUNED), strict=False):
        figure.add_bar(
            name=side,
            x=list(names),
            y=list(values),
            error_y={"array": list(errors), "color": SPREAD},
            marker={"color": colour},
        )
    figure.update_yaxes(title=y, rangemode="tozero")
    figure.update_layout(
        barmode="group",
        height=320,
        margin={"t": 10, "b": 40, "l": 50, "r": 10},
        legend={"orientation": "h", "y": 1.12},
    )
    return figure


def speed_curves(rows: pd.DataFrame) -> go.Figure:
    """Tokens per second over the length of the prompt, one panel for each batch size; dashed, what the roofline allows.

    `rows` has columns `mode`, `batch`, `tokens`, `side`, `tokens/s`, `q1`, `q3` and `roofline`.
    """
    batches = sorted(rows.batch.unique())
    figure = make_subplots(1, len(batches), subplot_titles=[f"batch {batch}" for batch in batches])
    for column, batch in enumerate(batches, 1):
        for (side, mode), case in rows[rows.batch == batch].sort_values("tokens").groupby(["side", "mode"]):
            colour, other = DENSE if side == "dense" else PRUNED, mode == "eager" and rows["mode"].nunique() > 1
            name = f"{side}, {mode}" if other else side
            common = {"x": case.tokens, "legendgroup": name, "showlegend": column == 1}
            figure.add_scatter(
                name=name,
                y=case["tokens/s"],
                mode="lines+markers",
                marker={"color": colour, "size": 8, "symbol": "circle-open" if other else "circle"},
                line={"color": colour, "width": 1 if other else 2},
                error_y={"array": case.q3 - case["tokens/s"], "arrayminus": case["tokens/s"] - case.q1},
                hovertemplate="%{y:,.1f} tokens/s, prompt of %{x} tokens<extra>" + name + "</extra>",
                **common,
                row=1,
                col=column,
            )
            if not other:
                name = common["legendgroup"] = f"{side}, roofline"
                figure.add_scatter(
                    name=name,
                    y=case.roofline,
                    mode="lines+markers",
                    marker={"color": colour, "symbol": "line-ew-open", "size": 14},
                    line={"color": colour, "dash": "dash", "width": 1},
                    hovertemplate="at most %{y:,.1f} tokens/s<extra>" + name + "</extra>",
                    **common,
                    row=1,
                    col=column,
                )
    figure.update_xaxes(title="tokens in the prompt", type="log", tickvals=sorted(rows.tokens.unique()))
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title="tokens/s", col=1)
    figure.update_layout(height=340, margin={"t": 60, "b": 40, "l": 50, "r": 10}, legend={"orientation": "h", "y": 1.3})
    return figure


def _height(layers: int) -> int:
    return min(max(240, 20 * layers + 60), 1100)


def score_against_damage(
    scores: Sequence[np.ndarray], damage: Sequence[np.ndarray], title: str, unit: str = "head"
) -> go.Figure:
    """One point per unit: its score across, the measured rise of the loss up, coloured by layer."""
    layer = np.concatenate([np.full(len(values), number) for number, values in enumerate(scores)])
    index = np.concatenate([np.arange(len(values)) for values in scores])
    x, y = np.concatenate(list(scores)), np.concatenate(list(damage))
    there = np.isfinite(y)
    figure = go.Figure(
        go.Scatter(
            x=x[there],
            y=y[there],
            mode="markers",
            marker={
                "color": layer[there],
                "colorscale": "Viridis",
                "size": 7,
                "colorbar": {"title": "layer"},
                "line": {"color": DENSE, "width": 1},  # the darkest are not seen on a dark page without it
            },
            customdata=layer[there],  # one number: Streamlit turns rows into something else
            text=[f"layer {at} · {unit} {which}" for at, which in zip(layer[there], index[there], strict=True)],
            hovertemplate="%{text}<br>score %{x:.4g}<br>loss %{y:+.4f} nats<extra></extra>",
        )
    )
    figure.update_xaxes(title=f"score, {title}", type="log" if (x[there] > 0).all() else "linear")
    figure.update_yaxes(title="rise of the loss, nats per token")
    figure.update_layout(height=_height(len(scores)), margin={"t": 20, "b": 50, "l": 60, "r": 10})
    return figure


def disagreement_map(
    one: Sequence[np.ndarray], other: Sequence[np.ndarray], title: str, truth: str, unit: str = "head"
) -> go.Figure:
    """Layer by unit: how much higher `one` ranks a unit (share of all of them) than `other` does."""
    below, below_other = as_grid(one), as_grid(other)
    hover = np.full(below.shape, "", object)
    for layer, index in np.ndindex(below.shape):
        hover[layer, index] = (
            f"layer {layer} · {unit} {index}<br>{title}: {below[layer, index]:.0%} of {unit}s lie below<br>"
            f"{truth}: {below_other[layer, index]:.0%}"
        )
    ticks = {-1: "too low", 0: "agree", 1: "too high"}
    return _cells(below - below_other, hover, x=unit, height=_height(len(below)), colours="RdBu", ticks=ticks)


def agreement_matrix(values: np.ndarray, names: Sequence[str]) -> go.Figure:
    """Criteria by criteria, with the numbers written in."""
    lowest = min(0.0, float(np.nanmin(values)))
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=list(names),
            y=list(names),
            zmin=lowest,
            zmax=1,
            colorscale="Viridis",
            hovertemplate="%{y} · %{x}: %{z:.3f}<extra></extra>",
            showscale=False,
        )
    )
    # Plotly's own text on a heatmap is grey on green.
    rows, columns = np.nonzero(np.isfinite(values))
    written = values[rows, columns]
    figure.add_scatter(
        x=[names[column] for column in columns],
        y=[names[row] for row in rows],
        mode="text",
        text=[f"{value:.2f}" for value in written],
        textfont={"size": 10, "color": np.where(written - lowest > 0.45 * (1 - lowest), "black", "white")},
        hoverinfo="skip",
        showlegend=False,
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(tickangle=-45, showgrid=False)
    figure.update_layout(height=520, margin={"t": 10, "l": 10, "r": 10})
    return figure


def quality_curves(table: pd.DataFrame, titles: Mapping[str, str]) -> go.Figure:
    """Perplexity against what is left of the parameters: one line for each criterion, budget and repair."""
    figure = go.Figure()
    dense = table[table.criterion == "dense"]
    for (criterion, budget, repair), rows in table[table.criterion != "dense"].groupby(
        ["criterion", "allocation", "repair"], sort=False
    ):
        rows = pd.concat([dense, rows]).sort_values("parameters")
        parts = [criterion, *([] if budget == "uniform" else [budget]), *([] if repair == "none" else [repair])]
        figure.add_scatter(
            x=rows.parameters / 1e6,
            y=rows.perplexity,
            mode="lines+markers",
            name=" · ".join(titles[part] for part in parts),
            hovertemplate="%{x:.1f} M parameters<br>perplexity %{y:.2f}",
        )
    figure.update_xaxes(title="parameters, millions")
    figure.update_yaxes(title="perplexity", type="log")
    figure.update_layout(height=420, margin={"t": 20, "b": 50, "l": 60, "r": 10})
    return figure
