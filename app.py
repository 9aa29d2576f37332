"""Overview: what is loaded, the dense baseline, and where to go from here."""

import streamlit as st

from amp_explore.models.sharding import devices
from amp_explore.ui.charts import heads_heatmap
from amp_explore.ui.frame import open_page
from amp_explore.ui.live import costs, live_perplexity
from amp_explore.ui.scoring import scores_or_wait
from amp_explore.ui.session import Scoring, evaluation
from amp_explore.workbench import LIVE_WINDOWS

state = open_page("Overview")
loaded, shape = state.loaded, state.loaded.shape
first = shape.layers[0]

st.markdown(
    "See which attention heads and MLP neurons a language model can do without. Scores are AMP's "
    "([arXiv 2504.21174](https://arxiv.org/abs/2504.21174)); the pruned model is really sliced and measured live, "
    "always beside the dense one."
)

facts, numbers = st.columns([3, 2], gap="large")
with facts:
    st.subheader(loaded.name)
    grouping = f"{first.heads} heads on {first.kv_heads} KV heads of size {first.head_dim}"
    st.markdown(
        f"**Architecture** {loaded.model.config.model_type}, {len(shape.layers)} layers, hidden size {first.hidden}\n\n"
        f"**Attention** {grouping} per layer\n\n"
        f"**MLP** {first.neurons:,} neurons per layer\n\n"
        f"**Parameters** {shape.parameters:,}, "
        f"of which {shape.prunable_parameters / shape.parameters:.0%} in heads and neurons\n\n"
        f"**Runs as** {loaded.dtype} on {devices(loaded.model)}\n\n"
        f"**Fingerprint** `{shape.fingerprint}`"
    )
with numbers:
    st.subheader("Dense baseline" if state.plan.is_empty else "Current plan")
    costs(state)
    live_perplexity(state, evaluation(loaded, LIVE_WINDOWS))

st.subheader("What next?")
cards = st.container(horizontal=True)
for page, title, text in (
    ("1_Importance", "1. Look", "Which heads and neurons matter? Hover over the maps, click a cell to open its layer."),
    ("2_Prune", "2. Prune", "Drag a ratio, toggle heads, draw a curve over the layers; perplexity follows."),
    ("3_Evaluate", "3. Evaluate", "Perplexity and commonsense accuracy of your plan beside the dense model."),
    ("4_Speed", "4. Speed", "Tokens per second of both, what limits them, and both writing side by side."),
    ("5_Criteria", "5. Criteria", "Which way to score tells best what the model loses, and what its plans leave."),
):
    with cards.container(border=True, width=290, height="stretch"):
        st.page_link(f"pages/{page}.py", label=f"**{title}**", icon=":material/arrow_forward:")
        st.write(text)

st.subheader("Importance of every head (AMP)")
scores = scores_or_wait(state, Scoring(), chosen=False)
if scores is not None:
    figure = heads_heatmap(scores, "log", [layer.kv_of_head for layer in shape.layers])
    st.plotly_chart(figure, key="overview-heads", alt="AMP score of every head, layer by head, logarithmic colours")
