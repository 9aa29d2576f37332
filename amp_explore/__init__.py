"""AMP Explore: score, prune, slice and measure language models, unit by unit.

    source --load--> LoadedModel --observe--> ActivationStatistics --score--> Scores
           --allocate--> PruningPlan --slice--> sliced model --measure--> Measurement --> store

Each arrow is one function that a notebook can call; the dashboard and the command line are callers like any other.
"""

__version__ = "0.1.0"
