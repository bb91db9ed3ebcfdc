"""Why was it cleared? The chain, in one line for each arrow.

    loss raster --events--> connected patches of loss of one year, each with one driver to be found
    catalog --scenes--> Landsat Collection 2 Level-2 scenes, least cloudy first, on the run's grid
    scenes --composite--> per-pixel median of the clear observations
    composite --patches--> torchgeo samplers; only patches that speak for loss
    patches --predict--> logits of a backbone + neck + head network, overlaps blended within an event
    logits --drivers--> one calibrated driver for each event
    drivers --product--> GeoPackage, COGs, STAC Item, report

`graph.py` says the same in code.
"""
