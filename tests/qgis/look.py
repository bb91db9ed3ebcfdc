"""What QGIS makes of a product: run by the Python that QGIS is installed for, prints one JSON object.

    QT_QPA_PLATFORM=offscreen /usr/bin/python3 tests/qgis/look.py PRODUCT OUT

Opens each layer of PRODUCT/drivers.gpkg and the rasters as a user would (nothing but their default styles), then the
stored project, and draws OUT/events.png and OUT/project.png, and OUT/page.png from the project's print layout.
"""

import json
import sys
from pathlib import Path

from qgis.core import (
    Qgis,
    QgsApplication,
    QgsLayoutExporter,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsProject,
    QgsRasterLayer,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QSize

PICTURE = QSize(1000, 800)
LEVELS = {Qgis.Warning: "warning", Qgis.Critical: "critical"}


def renderer(layer):
    """Name the renderer, its expression and categories: value, label, colour, brush style and outline."""
    found = layer.renderer()
    if found is None:
        return None
    if found.type() != "categorizedSymbol":
        return {"type": found.type()}
    rows = []
    for item in found.categories():
        fill = item.symbol().symbolLayer(0)
        # a hatched fill draws its lines in the fill colour; one without a brush shows its outline alone
        colour = fill.strokeColor() if fill.brushStyle() == 0 else fill.fillColor()
        rows.append([str(item.value()), item.label(), colour.name(), int(fill.brushStyle())])
    return {"type": found.type(), "expression": found.classAttribute(), "categories": rows}


def fields(layer):
    """Name each field's alias and, where it has one, its list of values."""
    result = {}
    for field in layer.fields():
        setup = field.editorWidgetSetup()
        values = setup.config().get("map") if setup.type() == "ValueMap" else None
        pairs = (
            [next(iter(item.items())) for item in values] if isinstance(values, list) else list((values or {}).items())
        )
        result[field.name()] = {"alias": field.alias(), "values": {value: title for title, value in pairs}}
    return result


def vector(layer):
    """Describe a vector layer."""
    return {
        "valid": layer.isValid(),
        "features": layer.featureCount(),
        "title": layer.metadata().title(),
        "abstract": layer.metadata().abstract(),
        "crs": layer.crs().authid() or layer.crs().toWkt(),
        "renderer": renderer(layer),
        "fields": fields(layer),
    }


def raster(layer):
    """Describe a raster layer; the legend of a paletted one as code, label, colour."""
    found = {"valid": layer.isValid(), "crs": layer.crs().authid() or layer.crs().toWkt()}
    if not layer.isValid():
        return found
    found["renderer"] = layer.renderer().type()
    if found["renderer"] == "paletted":
        found["classes"] = [[int(c.value), c.label, c.color.name()] for c in layer.renderer().classes()]
    return found


def draw(layers, extent, crs, path):
    """Draw layers, the first on top, into a PNG."""
    settings = QgsMapSettings()
    settings.setLayers(layers)
    settings.setDestinationCrs(crs)
    settings.setOutputSize(PICTURE)
    settings.setExtent(extent)
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    assert job.renderedImage().save(str(path)), path


def project(folder, out):
    """Open the stored project and describe what it shows."""
    database = folder / "drivers.gpkg"
    opened = QgsProject.instance()
    root = opened.layerTreeRoot()
    found = {"read": opened.read(f"geopackage:{database}?projectName=drivers")}
    found["title"], found["crs"] = opened.title(), opened.crs().authid()
    entries = root.findLayers()
    found["layers"] = {}
    for entry in entries:
        layer = entry.layer()
        described = vector(layer) if isinstance(layer, QgsVectorLayer) else raster(layer)
        source = Path(layer.source().split("|")[0])
        described.update(shown=entry.isVisible(), source=str(source), group=entry.parent().name(), name=layer.name())
        found["layers"][layer.id()] = described
    view = opened.viewSettings().defaultViewExtent()
    found["extent"] = [view.xMinimum(), view.yMinimum(), view.xMaximum(), view.yMaximum()]
    if not view.isEmpty():
        draw([e.layer() for e in entries if e.isVisible()], view, opened.crs(), out / "project.png")
    found["layouts"] = []
    for layout in opened.layoutManager().printLayouts():
        found["layouts"].append(layout.name())
        page = QgsLayoutExporter.ImageExportSettings()
        page.dpi, page.exportMetadata = 100, False
        done = QgsLayoutExporter(layout).exportToImage(str(out / "page.png"), page)
        assert done == QgsLayoutExporter.Success, done
    return found


def main(folder, out):
    """Look at the product and print what was seen."""
    QgsApplication.setPrefixPath("/usr", True)
    application = QgsApplication([], False)
    application.initQgis()
    said = []
    application.messageLog().messageReceived.connect(
        lambda text, tag, level: said.append(f"{LEVELS[level]}: {tag}: {text}") if level in LEVELS else None
    )
    seen = {"qgis": Qgis.QGIS_VERSION, "layers": {}}
    layers = {}
    for name in ("events", "patches", "units", "scenes", "blocks", "summary", "estimates", "run"):
        layers[name] = QgsVectorLayer(f"{folder / 'drivers.gpkg'}|layername={name}", name, "ogr")
        seen["layers"][name] = vector(layers[name])
    for name in ("drivers", "confidence"):
        seen["layers"][f"{name}.tif"] = raster(QgsRasterLayer(str(folder / f"{name}.tif"), name))
    extent = layers["events"].extent()
    if not extent.isEmpty():
        extent.scale(1.1)
        draw([layers["events"]], extent, layers["events"].crs(), out / "events.png")
    seen["project"] = project(folder, out)
    seen["said"] = said
    print(json.dumps(seen))
    layers.clear()
    QgsProject.instance().clear()
    application.exitQgis()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
