"""All test sets beside M-BEIR by name."""

from marvel_jax.data.protocols import (
    beir,
    caption_choice,
    captions,
    composed,
    mmeb,
    stories,
    videos,
)
from marvel_jax.data.protocols.protocol import Protocol
from marvel_jax.errors import MarvelError

PROTOCOLS: dict[str, Protocol] = {
    one.name: one
    for one in (
        captions.FLICKR30K,
        captions.COCO,
        captions.SHAREGPT4V,
        captions.URBAN1K,
        composed.CIRCO,
        composed.GENECIS,
        stories.VISDIAL,
        composed.MULTITURN_FASHIONIQ,
        stories.VIST,
        caption_choice.CCNEG,
        caption_choice.SUGARCREPE,
        videos.MSRVTT,
        videos.MSVD,
        mmeb.MMEB,
        beir.BEIR,
    )
}


def find(name: str) -> Protocol:
    """A set's entry by its name.

    Raises:
      MarvelError: there is none.
    """
    if name not in PROTOCOLS:
        raise MarvelError(
            f"There is no protocol {name!r}: choose one of {', '.join(PROTOCOLS)}, or give a "
            "Python file that defines `protocol`."
        )
    return PROTOCOLS[name]
