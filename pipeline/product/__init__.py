"""The product of a run: GeoPackage, COGs, STAC item, report, run record, and the inspection of them all."""
