"""Importance: the score of every head and neuron, from the whole model down to one layer."""

import pandas as pd
import streamlit as st

from amp_explore.models.sharding import devices
from amp_explore.ui.charts import heads_heatmap, histogram, image_options, layer_distribution, neurons_heatmap
from amp_explore.ui.downloads import download_csv
from amp_explore.ui.errors import end_page
from amp_explore.ui.frame import open_page
from amp_explore.ui.scoring import scores_or_wait, scoring_options
from amp_explore.ui.session import session
from amp_explore.ui.text import text_of
from amp_explore.ui.token_windows import windows_of


def open_layer(chart: str) -> None:
    """Open the layer of the cell that was clicked."""
    points = st.session_state[chart].selection.points
    if points and isinstance(points[0].get("y"), (int, float)):
        st.session_state.layer = min(max(int(points[0]["y"]), 0), len(session().shape.layers) - 1)


with open_page("Importance") as state:
    shape = state.shape
    scoring = scoring_options(st.container(), state.loaded)
    scores = scores_or_wait(state, scoring)
    if scores is None:
        end_page()

    scale_picker, order_picker, image_picker = st.columns([3, 3, 2])
    scale = scale_picker.segmented_control(
        "Colours",
        ["linear", "log", "per layer"],
        default="log",
        required=True,
        wrap=True,
        key="scale",
        persist_state="session",
    )
    order = order_picker.segmented_control(
        "Neurons",
        ["by rank", "by position"],
        default="by rank",
        required=True,
        wrap=True,
        key="neuron_order",
        persist_state="session",
    )
    image = image_picker.segmented_control(
        "Save images as", ["PNG", "SVG"], default="PNG", required=True, wrap=True, key="image", persist_state="session"
    )

    left, right = st.columns(2)
    with left:
        st.subheader("Heads")
        st.plotly_chart(
            heads_heatmap(scores, scale, [layer.kv_of_head for layer in shape.layers]),
            key="heads_map",
            on_select=lambda: open_layer("heads_map"),
            selection_mode="points",
            config=image_options("heads", image),
            alt="Score of every head, layer by head",
        )
    with right:
        st.subheader("Neurons")
        st.plotly_chart(
            neurons_heatmap(scores, scale, order),
            key="neurons_map",
            on_select=lambda: open_layer("neurons_map"),
            selection_mode="points",
            config=image_options("neurons", image),
            alt="Mean score of neurons in bins, layer by bin",
        )
    st.caption("Hover for the scores; click a cell to open its layer below; the camera in a map's corner saves it.")

    st.session_state.setdefault("layer", 0)
    st.session_state.layer = min(st.session_state.layer, len(shape.layers) - 1)
    layer = st.slider("Layer", 0, len(shape.layers) - 1, key="layer", persist_state="session")
    heads_view, neurons_view = st.columns(2)
    heads, neurons = scores.heads[layer], scores.neurons[layer]
    with heads_view:
        st.subheader(f"Heads of layer {layer}")
        st.plotly_chart(
            layer_distribution(heads, unit="head", log=False),
            key="layer_heads",
            config=image_options(f"heads-{layer}", image),
        )
        st.caption(
            f"lowest: head {heads.argmin()} ({heads.min():.4g}) · highest: head {heads.argmax()} ({heads.max():.4g})"
        )
    with neurons_view:
        st.subheader(f"Neurons of layer {layer}")
        shown = st.segmented_control(
            "Show",
            ["sorted", "histogram"],
            default="sorted",
            required=True,
            wrap=True,
            key="spread",
            persist_state="session",
            label_visibility="collapsed",
        )
        log = scale == "log"
        chart = (
            layer_distribution(neurons, unit="neuron", log=log)
            if shown == "sorted"
            else histogram(neurons, unit="neuron", log=log)
        )
        st.plotly_chart(chart, key="layer_neurons", config=image_options(f"neurons-{layer}", image))
        st.caption(
            f"median {pd.Series(neurons).median():.4g} · lowest {neurons.min():.4g} · highest {neurons.max():.4g}"
        )

    st.subheader("Download")
    windows = windows_of(state.loaded, scoring.calibration)
    st.caption(f"Scored on {text_of(windows)}; {state.loaded.dtype} on {devices(state.loaded.model)}.")
    table = pd.concat(
        pd.DataFrame({"layer": number, "unit": unit, "index": range(len(values)), "score": values})
        for unit, layers in (("head", scores.heads), ("neuron", scores.neurons))
        for number, values in enumerate(layers)
    )
    metadata = {**scoring.made_by(), **state.loaded.describe(), **windows.describe()}
    csv, tensors, _ = st.columns([1, 1, 2])
    download_csv(csv, table, f"{scoring.criterion}.csv", width="stretch")
    tensors.download_button(
        "safetensors",
        scores.to_safetensors(**{name: str(value) for name, value in metadata.items()}),
        f"{scoring.criterion}.safetensors",
        icon=":material/download:",
        width="stretch",
    )
