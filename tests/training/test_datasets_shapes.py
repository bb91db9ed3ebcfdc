"""Polygons out of pickles of every age, and nothing else out of any pickle."""

from __future__ import annotations

import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.training.datasets.shapes import parse_region, read_region

OLD = Path(__file__).parent / "fixtures"
HOLE = [(12, 22), (15, 22), (15, 27)]
POLYGON = shapely.Polygon([(10, 20), (60, 20), (60, 30), (20, 30), (20, 90), (10, 90)], [HOLE])
MULTI = shapely.MultiPolygon([POLYGON, shapely.Polygon([(100, 100), (110, 100), (100, 110)])])


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize(("name", "shape"), [("polygon", POLYGON), ("multipolygon", MULTI)])
def test_bytes_of_shapely_1(name: str, shape: Any, protocol: int) -> None:
    found = read_region(OLD / f"shapely-1.8-{name}-protocol{protocol}.pkl")
    assert found.geom_type == shape.geom_type
    assert found.equals_exact(shape)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("shape", [POLYGON, MULTI, shapely.force_3d(POLYGON), shapely.set_srid(POLYGON, 4326)])
def test_bytes_of_shapely_2(shape: Any, protocol: int) -> None:
    found = parse_region(pickle.dumps(shape, protocol=protocol))
    assert found.equals_exact(shapely.force_2d(shape))
    assert not found.has_z


class Runs:
    """Pickles to a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def bombs(canary: Path) -> dict[str, bytes]:
    """Programs that would write the canary file if anything of them ran."""
    touch = f"__import__('pathlib').Path({str(canary)!r}).write_text('dead')"
    old = pickle.dumps(POLYGON, protocol=2)
    inner = Runs(os.system, f"echo dead > {canary}")
    out: dict[str, Any] = {
        "os.system": inner,
        "eval": Runs(eval, touch),
        "exec": Runs(exec, touch),
        "nested in a list": [POLYGON, inner],
        "as the argument of from_wkb": Runs(shapely.from_wkb, inner),
        "as what is encoded": Runs(shapely.from_wkb, Runs(__import__("_codecs").encode, inner, "latin1")),
        "getattr": Runs(getattr, Runs(__import__, "os"), "system"),
    }
    made = {f"{name}, protocol {p}": pickle.dumps(value, p) for name, value in out.items() for p in (0, 2, 4)}
    made["as a polygon's state"] = (
        b"\x80\x02cshapely.geometry.polygon\nPolygon\n)R" + pickle.dumps(inner, 2)[2:-1] + b"b."
    )
    made["before the polygon"] = b"\x80\x02" + pickle.dumps(inner, 2)[2:-1] + b"0" + old[2:]
    made["state of a name"] = b"\x80\x02cshapely.io\nfrom_wkb\nU\x01xb."
    made["by INST"] = f"(S'echo dead > {canary}'\nios\nsystem\n.".encode()
    made["by OBJ"] = f"(cos\nsystem\nS'echo dead > {canary}'\no.".encode()
    made["dotted name"] = b"\x80\x04\x8c\x0ashapely.io\x8c\x10sys.modules.__x__\x93."
    return made


def test_nothing_runs(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "forest_loss_region.pkl"
    for name, program in bombs(canary).items():
        path.write_bytes(program)
        with pytest.raises(InputError, match=r"forest_loss_region\.pkl.*nothing of it was run") as told:
            read_region(path)
        assert not canary.exists(), name
        assert "\n" not in str(told.value)


def test_the_canary_would_sing(tmp_path: Path) -> None:
    """The programs are live: Python's own loader runs them."""
    canary = tmp_path / "canary"
    for name in ("eval, protocol 2", "os.system, protocol 0", "by INST", "by OBJ"):
        pickle.loads(bombs(canary)[name])
        assert canary.exists(), name
        canary.unlink()


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(shapely.Point(1, 2)),
        pickle.dumps(shapely.LineString([(0, 0), (1, 1)])),
        pickle.dumps({"a": POLYGON}),
        pickle.dumps(b"bytes"),
        pickle.dumps(Runs(shapely.from_wkb, b"nonsense")),
        pickle.dumps(POLYGON)[:-20],
        pickle.dumps(shapely.Polygon([(0, 0), (np.inf, 0), (1, 1)])),
        b"\x80\x02r\xff\xff\xff\x7f.",
        b"",
        b"not a pickle",
    ],
)
def test_anything_else_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.pkl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"other\.pkl"):
        read_region(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.pkl: cannot be read"):
        read_region(tmp_path / "absent.pkl")


# Python's own reader of opcodes warns of odd escapes in the noise it is given
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 160), st.sampled_from([0, 2, 4]))
def test_damage_is_an_error_or_a_polygon(noise: bytes, at: int, protocol: int) -> None:
    content = bytearray(pickle.dumps(POLYGON, protocol))
    content[at : at + len(noise)] = noise
    try:
        found = parse_region(bytes(content))
    except ValueError:
        return
    assert found.geom_type in ("Polygon", "MultiPolygon")


def test_the_gate_knows_every_opcode_it_names() -> None:
    from pipeline.training.datasets.shapes import _OPCODES

    assert {code.name for code in pickletools.opcodes} >= _OPCODES
