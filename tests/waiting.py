"""How long tests wait for a state before they give up."""

WAIT = 300
"""Seconds; enough for a machine that has ten times as much to do as it can."""
