"""Where scenes come from: folders of USGS bundles, static STAC catalogs, STAC APIs. All yield the same `Scene`."""
