"""Labelled events to train on and to judge by: one protocol (`base`), and a reader for each published format."""
