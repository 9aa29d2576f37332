"""Criteria against each other: how alike they rank the units, and what they would remove."""

from __future__ import annotations

import numpy as np
import streamlit as st

from amp_explore.budgets.allocation import allocate_by_unit, rank
from amp_explore.criteria.registry import CRITERIA
from amp_explore.criteria.scores import Scores
from amp_explore.models.shapes import ModelShape
from amp_explore.studies import agreement
from amp_explore.ui.charts import agreement_matrix, image_options


def against_each_other(shape: ModelShape, scores: dict[str, Scores]) -> None:
    """How alike the criteria rank, and what they would remove."""
    st.subheader("Criteria against each other")
    left, right = st.columns([2, 5], vertical_alignment="bottom")
    unit = left.segmented_control(
        "Of", ["heads", "neurons"], default="heads", required=True, key="alike_unit", persist_state="session"
    )
    percent = right.slider(
        "Share that goes from every layer", 5, 95, 20, 5, format="%d %%", key="alike_share", persist_state="session"
    )
    names = [name for name in scores if unit == "neurons" or CRITERIA[name].heads]
    gone = {
        name: getattr(allocate_by_unit(rank(shape, scores[name]), percent / 100, percent / 100), unit) for name in names
    }
    titles = [CRITERIA[name].title for name in names]
    alike = agreement.between([getattr(scores[name], unit) for name in names])
    removed = np.array([[agreement.overlap(gone[a], gone[b]) for b in names] for a in names])
    ranks, both = st.tabs(["Rank correlation within layers", f"Share of the {unit} that both remove"])
    ranks.plotly_chart(agreement_matrix(alike, titles), key="alike", config=image_options("criteria", "PNG"))
    both.plotly_chart(agreement_matrix(removed, titles), key="overlap", config=image_options("overlap", "PNG"))
