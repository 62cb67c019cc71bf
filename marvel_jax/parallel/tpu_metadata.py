"""The attributes that Google's metadata server knows of a TPU VM."""

import importlib.util
import urllib.error
import urllib.request
from pathlib import Path

_SECONDS = 5.0
# Source: https://cloud.google.com/compute/docs/metadata/querying-metadata
_ATTRIBUTES = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"


def has_tpu() -> bool:
    """Whether this machine shows TPU chips, and has the library that drives them."""
    if importlib.util.find_spec("libtpu") is None:
        return False
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev").glob("vfio/[0-9]*")]
    return bool(chips)


def attribute(name: str) -> str | None:
    """An attribute's value; None if it has none of the name, or there is no such server."""
    request = urllib.request.Request(_ATTRIBUTES + name, headers={"Metadata-Flavor": "Google"})
    # A proxy knows nothing of this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_SECONDS) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError):
        return None
