"""Every error a user can meet, each one readable line that names the file, key or scene and the remedy.

ClearcauseError
├── InputError            what was given cannot work: nothing was started (exit code 2)
│   ├── ConfigError       a key, a path or an argument of the configuration
│   ├── LossError         the loss raster or the loss polygons
│   ├── ModelError        a model package (digest, bands, classes, engine)
│   └── OutputError       the output folder: in use, not writable, foreign files
├── SceneError            one scene cannot serve: recorded in `scenes`, the run goes on without it
├── BlockError            one block cannot be computed: recorded in `blocks` with its reason
├── IncompleteError       some blocks failed and the product was withheld (exit code 3)
└── ProductError          a product is not sound (`inspect`), or could not be written whole
"""


class ClearcauseError(Exception):
    """Root of the tree; `exit_code` is what the program exits with when nobody catches it."""

    exit_code = 1


class InputError(ClearcauseError):
    """Raised before work starts, when what was given cannot work."""

    exit_code = 2


class ConfigError(InputError):
    """Raised for an unknown key, a bad value or a missing file of the configuration."""


class LossError(InputError):
    """Raised when a loss source cannot be read, has no CRS, or does not meet the region or the years."""


class ModelError(InputError):
    """Raised when a model package is damaged, altered, or does not fit the imagery."""


class OutputError(InputError):
    """Raised when the output folder is in use, not writable, or holds files of someone else."""


class SceneError(ClearcauseError):
    """Raised when one scene cannot serve; carries the scene and the reason for the `scenes` layer."""

    def __init__(self, scene_id: str, reason: str) -> None:
        super().__init__(f"scene {scene_id}: {reason}")
        self.scene_id = scene_id
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Pickle by the two parts, so that the error survives the way back from a worker."""
        return type(self), (self.scene_id, self.reason)


class BlockError(ClearcauseError):
    """Raised when one block cannot be computed; its reason lands in the `blocks` layer."""


class IncompleteError(ClearcauseError):
    """Raised when blocks failed and the product was withheld."""

    exit_code = 3


class ProductError(ClearcauseError):
    """Raised when a product is unsound or could not be written whole."""
