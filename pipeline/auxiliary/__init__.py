"""Predictors sampled for events from rasters and vector layers: elevation, slope, distance to a road, peat, climate."""

from pipeline.auxiliary.sample import match_columns, refuse_leaks, sample_auxiliary

__all__ = ["match_columns", "refuse_leaks", "sample_auxiliary"]
