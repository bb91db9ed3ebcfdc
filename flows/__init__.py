"""Prefect at the edge: the flow, its tasks, and the Dask runtime that computes the blocks."""
