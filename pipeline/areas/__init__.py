"""Areas one may quote: estimates with intervals from a map and reference labels, and the samples they need.

A sum of mapped pixels carries the map's errors, all in one direction. Reference labels of a sample say what share of
each mapped driver is really which driver; the mapped areas are shared out by that, with a standard error.

    stratified  a stratified random sample: totals, ratios, variances; Stehman (2014)
    shares      what share of a mapped class is which class; Olofsson et al. (2014); areas and accuracy from it
    tables      the columns of `summary` and the layer `estimates`
    reference   labels that an analyst filled in, brought to the events of a map
    draw        which events to look at: strata, allocation, a seeded draw
    template    the files that an interpreter fills in
    assess      a filled-in sample held against its product
"""
