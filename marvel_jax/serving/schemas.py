"""The JSON that goes in and out; OpenAPI is made of it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from marvel_jax.collection.entry import Kind

Method = Literal["exact", "scann"]
_MOST = 1 << 31  # of a number in an address; the server's own limit is lower


class AddressRequest(BaseModel):
    """A query that an address can hold: text, an entry to find more like, or both."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = Field(None, description="In any language.")
    like: str | None = Field(
        None,
        description="An entry's id: more like this. With text or image, the mean of both vectors.",
    )
    instruction: str | None = Field(None, description="What to look for; read by the model.")
    kind: Kind | None = Field(None, description="Only entries of this kind.")
    k: Annotated[int, Field(ge=1, le=_MOST, description="How many to return.")] = 10
    method: Method = Field("exact", description="Exact, or approximate by ScaNN.")
    dimension: Annotated[
        int | None, Field(ge=1, le=_MOST, description="Compare only so many numbers of a vector.")
    ] = None
    collapse: bool = Field(True, description="Fold near-duplicates under the best of them.")
    compare: bool = Field(
        True, description="Search exactly, too, and tell the recall; false is quicker."
    )
    rerank: bool = Field(False, description="Let the reranker order the first results anew.")


class SearchRequest(AddressRequest):
    """A query: text, a picture, an entry to find more like, or several of them.

    The picture is base64 inside the JSON: so one schema says all, and every client can send it.
    """

    image: str | None = Field(
        None, description="A picture file's bytes in base64; a data: address is taken, too."
    )


class EntryBody(BaseModel):
    """A row of the collection."""

    id: str
    kind: Kind
    name: str = Field(description="What the source calls it.")
    text: str | None
    image: bool = Field(description="Whether /api/image has a picture of it.")
    gone: bool = Field(
        False, description="Its picture no longer lies where it did when it was indexed."
    )


class HitBody(EntryBody):
    """A result."""

    rank: int = Field(description="From 1.")
    score: float = Field(description="Cosine with the query.")
    copies: list[EntryBody] = Field(description="Near-duplicates folded under this one.")
    rerank_score: float | None = Field(
        description="The reranker's P(Yes), where it was asked; null where it could not read this."
    )
    previous_rank: int | None = Field(description="Its rank before the reranker.")


class Shares(BaseModel):
    """Of the results, the share of each kind: whether the instruction was obeyed."""

    text: float
    image: float
    image_text: float = Field(serialization_alias="image,text")


class SearchAnswer(BaseModel):
    """Results, and what they cost."""

    hits: list[HitBody]
    shares: Shares
    instruction: str | None = Field(
        description="As the models have read it; null where none was, or none has read anything."
    )
    method: Method
    dimension: int
    recall: float | None = Field(
        description="Of the exact results, the share that the approximate search found."
    )
    embed_ms: float = Field(description="Of the device call; 0 where only `like` was asked.")
    batch: int = Field(description="Queries in that call.")
    search_ms: float
    rerank_ms: float | None
    total_ms: float


class Preset(BaseModel):
    """An instruction that suits a kind of query and of target."""

    query: Kind
    target: Kind
    text: str


class Offered(BaseModel):
    """Limits that a client meets."""

    k: int
    body_bytes: int
    text_characters: int
    instruction_characters: int


class CollectionBody(BaseModel):
    """What is searched, and what a search may ask for."""

    name: str
    model: str
    count: int
    counts: dict[str, int] = Field(description="Rows by kind.")
    built: str
    methods: list[Method]
    dimensions: list[int] = Field(description="All numbers of a vector first.")
    reranker: bool
    presets: list[Preset]
    limits: Offered


class Health(BaseModel):
    """A state in a word."""

    status: Literal["ok", "ready", "warming"]
