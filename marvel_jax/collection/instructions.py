"""What a query says that it looks for: presets by the kinds of query and target.

The model reads an instruction before the query and was trained to find what it asks for, the kind
of thing included. M-BEIR has such sentences for every data set; these are ours, for any corpus.
"""

from collections.abc import Mapping

from marvel_jax.collection.entry import Kind

Prompts = Mapping[tuple[str, str], tuple[str, ...]]

PRESETS: dict[tuple[Kind, Kind], tuple[str, ...]] = {
    ("text", "image"): (
        "Find a picture that shows what this text says.",
        "Find a photo or drawing of the thing named here.",
    ),
    ("text", "text"): (
        "Find a passage that answers this question.",
        "Find a text with the same meaning.",
    ),
    ("text", "image,text"): (
        "Find a picture with its caption about this.",
        "Find an illustrated entry that answers this question.",
    ),
    ("image", "text"): (
        "Find a text that describes this picture.",
        "Find the name of what this picture shows.",
    ),
    ("image", "image"): (
        "Find a picture of the same thing.",
        "Find a picture that looks like this one.",
    ),
    ("image", "image,text"): (
        "Find a picture of the same thing, with its caption.",
        "Find an illustrated entry about what this picture shows.",
    ),
    ("image,text", "text"): (
        "Find a passage that answers this question about the picture.",
        "Find a text that describes this picture with the change asked for.",
    ),
    ("image,text", "image"): (
        "Find this picture with the change asked for.",
        "Find another picture of the same thing, as the text says.",
    ),
    ("image,text", "image,text"): (
        "Find an illustrated entry that answers this question about the picture.",
        "Find this picture and caption with the change asked for.",
    ),
}
"""Two or more for each (kind of query, kind of target), the first by default."""


def presets(query: Kind, target: Kind | None, *, own: Prompts | None = None) -> tuple[str, ...]:
    """Instructions for a query of a kind that looks for a kind; the source's `own` stand first.

    For any kind (None) there is none: an instruction would ask for one of them.
    """
    if target is None:
        return ()
    return tuple(dict.fromkeys((*(own or {}).get((query, target), ()), *PRESETS[query, target])))
