"""Other tools for tiled inference on the scene, weights and classes of a run; see `__main__`."""
