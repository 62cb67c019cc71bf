"""A vector depends on its item alone: not on its neighbours, the batch, the order or the row."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.data.batch import pack, row_batches
from marvel_jax.data.items import Image, Item
from marvel_jax.errors import MarvelError
from marvel_jax.models.qwen2_vl import init_params
from marvel_jax.retrieval.embedder import Embedder, encoding_rows
from marvel_jax.retrieval.encode_calls import Tally
from marvel_jax.retrieval.encode_rows import row_groups, steady_rows
from tests import tiny

ITEMS = [
    Item.of(text="red cat"),
    Item.of(image=tiny.picture(0)),
    Item.of(text="the same, but blue", image=tiny.picture(1), instruction="find it"),
    Item.of(text=" ".join(tiny.WORDS) * 2),
    Item(parts=("first", Image(tiny.picture(2, size=(14, 40))), "then", Image(tiny.picture(3)))),
    Item.of(text="7"),
    Item.of(image=[tiny.picture(4), tiny.picture(5), tiny.picture(6)]),
    Item.of(image=tiny.picture(7, size=(14, 14))),  # a single visual token
]


def random_embedder(**options: object) -> Embedder:
    """Of random weights wide enough that everything in an item shows in its vector."""
    import jax

    architecture = tiny.architecture()
    processing = {name: options.pop(name) for name in ("template",) if name in options}
    params = init_params(architecture, key=jax.random.key(1))
    return Embedder(params, architecture, tiny.processor(**processing), **options)


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return random_embedder()


@pytest.fixture(scope="module")
def vectors(embedder) -> np.ndarray:
    return embedder.encode(ITEMS)


def test_vectors_are_float32_of_unit_norm(embedder, vectors):
    assert vectors.dtype == np.float32 and vectors.shape == (len(ITEMS), embedder.dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    # No two items are alike, so neither are their vectors: the order below cannot pass by chance.
    assert (vectors @ vectors.T - np.eye(len(ITEMS))).max() < 1 - 1e-3


@settings(max_examples=4)
@given(order=st.permutations(range(len(ITEMS))), batch_tokens=st.sampled_from([1, 96, 4096]))
def test_neither_order_nor_batch_size_change_a_vector(embedder, vectors, order, batch_tokens):
    found = embedder.encode([ITEMS[i] for i in order], batch_tokens=batch_tokens)
    np.testing.assert_allclose(found, vectors[list(order)], atol=1e-5)


@pytest.mark.parametrize("steady", [1, 3])
def test_a_servers_few_shapes_do_not_change_a_vector(embedder, vectors, steady):
    np.testing.assert_allclose(embedder.encode(ITEMS, steady=steady), vectors, atol=1e-5)


@pytest.mark.parametrize("number", range(len(ITEMS)))
def test_alone_an_item_has_the_vector_it_has_among_others(embedder, vectors, number):
    np.testing.assert_allclose(embedder.encode([ITEMS[number]])[0], vectors[number], atol=1e-5)


def test_nothing_in_gives_nothing_out(embedder):
    assert embedder.encode([]).shape == (0, embedder.dimension)


def test_an_instruction_changes_the_vector_and_the_items_own_wins(embedder, vectors):
    led = embedder.encode(ITEMS, instruction="name the picture")
    changed = np.abs(led - vectors).max(axis=1)
    own = [item.instruction is not None for item in ITEMS]
    assert np.all(changed[own] < 1e-5) and np.all(changed[~np.array(own)] > 1e-3)
    same = embedder.encode([ITEMS[0].with_instruction("name the picture")])
    np.testing.assert_allclose(same[0], led[0], atol=1e-5)


def test_the_parts_of_an_item_all_count_and_so_does_their_order(embedder):
    picture, other = Image(tiny.picture(0)), Image(tiny.picture(1))
    items = [
        Item(parts=parts)
        for parts in [
            (picture,),
            (other,),
            (picture, other),
            (other, picture),
            (picture, "red cat"),
            ("red cat", picture),
            ("red cat",),
            ("cat red",),
        ]
    ]
    found = embedder.encode(items)
    distances = np.abs(found[:, None] - found[None]).max(axis=-1) + np.eye(len(items))
    assert distances.min() > 1e-3


def test_every_way_to_give_a_picture_is_the_same(embedder, tmp_path):
    content = tiny.picture(7)
    (tmp_path / "picture.png").write_bytes(content)
    opened = PIL.Image.open(tmp_path / "picture.png")
    sources = [content, tmp_path / "picture.png", str(tmp_path / "picture.png"), opened]
    found = embedder.encode([Item.of(image=one) for one in [*sources, np.asarray(opened)]])
    np.testing.assert_allclose(found, np.tile(found[0], (5, 1)), atol=1e-6)


def test_progress_counts_every_item_once(embedder, capsys):
    seen = []
    embedder.encode(ITEMS, batch_tokens=64, progress=lambda done, total: seen.append((done, total)))
    assert [total for _, total in seen] == [len(ITEMS)] * len(seen)
    done = [done for done, _ in seen]
    assert done == sorted(set(done)) and done[-1] == len(ITEMS) and len(done) > 2
    embedder.encode(ITEMS[:1], progress=True)
    shown = capsys.readouterr()
    assert shown.out == "" and "encode" in shown.err


@pytest.mark.parametrize("content", [None, b"", b"no picture at all", tiny.picture(0)[:60]])
def test_an_unreadable_picture_is_named_with_its_item(embedder, tmp_path, content):
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    items = [*ITEMS, Item.of(text="words", image=path, id="90:17")]
    with pytest.raises(MarvelError, match=r"90:17.*broken\.png"):
        embedder.encode(items)


def test_half_precision_is_close(vectors):
    found = random_embedder(dtype="bfloat16").encode(ITEMS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert (found * vectors).sum(axis=1).min() > 0.999


@pytest.mark.parametrize(
    ("template", "pooling", "attention"),
    [("umarvel_released", "mean", "bidirectional"), ("gme", "last", "causal")],
)
def test_the_templates_of_others_batch_as_ours_does(template, pooling, attention):
    embedder = random_embedder(template=template, pooling=pooling, attention=attention)
    items = [item.with_instruction("find it") for item in ITEMS[:5]]
    together = embedder.encode(items)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    alone = np.concatenate([embedder.encode([item]) for item in items[:3]])
    np.testing.assert_allclose(alone, together[:3], atol=1e-5)


@pytest.mark.parametrize("reserved", [0, 1, 8], ids=["no row", "one row", "all rows"])
def test_markers_are_the_mean_of_the_table_and_emb_keeps_its_reserved_row(reserved):
    ours = random_embedder()
    architecture = tiny.architecture()
    processor = tiny.processor(template="umarvel_released")
    emb, *markers = (processor.marker_ids[name] for name in sorted(processor.marker_ids))
    assert {emb + 1, emb + 2} == set(markers)
    table = np.random.default_rng(0).normal(size=(emb + reserved, 32)).astype(np.float32)
    language = {**ours._params["language"], "token_embedding": jnp.asarray(table)}
    embedder = Embedder({**ours._params, "language": language}, architecture, processor)
    found = np.asarray(embedder._params["language"]["token_embedding"])
    mean = table[: emb + 1].mean(axis=0)
    for marker in markers:
        np.testing.assert_allclose(found[marker], mean, atol=1e-6)
    np.testing.assert_allclose(found[emb], table[emb] if reserved else mean, atol=1e-6)
    np.testing.assert_array_equal(found[:emb], table[:emb])


# --- a folder's settings ---------------------------------------------------------------------


def test_the_folders_settings_are_used_and_arguments_win(tiny_model):
    settings = json.loads((tiny_model / "marvel.json").read_text())
    plain = Embedder.from_pretrained(tiny_model).manifest_fields()
    for name in ("template", "attention", "pooling", "positions", "min_pixels", "max_pixels"):
        assert plain[name] == settings[name], name
    given = {
        "template": "gme",
        "attention": "causal",
        "pooling": "last",
        "positions": "sequential",
        "min_pixels": 392,
        "max_pixels": 588,
    }
    changed = Embedder.from_pretrained(tiny_model, **given).manifest_fields()
    assert {name: changed[name] for name in given} == given
    assert changed["model_hash"] == plain["model_hash"]
    assert changed["processor_hash"] != plain["processor_hash"]


def test_what_changes_a_vector_changes_the_manifest(tiny_model, tmp_path):
    plain = Embedder.from_pretrained(tiny_model).manifest_fields()
    assert plain == Embedder.from_pretrained(tiny_model).manifest_fields()
    shutil.copytree(tiny_model, tmp_path / "model")
    settings = json.loads((tiny_model / "marvel.json").read_text())
    shorter = json.dumps({**settings, "max_text_tokens": 3})
    (tmp_path / "model/marvel.json").write_text(shorter)
    cut = Embedder.from_pretrained(tmp_path / "model").manifest_fields()
    half = Embedder.from_pretrained(tiny_model, dtype="bfloat16").manifest_fields()
    prompted = [
        Embedder.from_pretrained(
            tiny_model, template="umarvel_released", generation_prompt=on
        ).manifest_fields()
        for on in (False, True)
    ]
    assert cut != plain and half != plain and prompted[0] != prompted[1]


def test_a_folder_of_others_has_the_defaults_and_its_own_pixel_limits(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model/marvel.json").unlink()
    fields = Embedder.from_pretrained(tmp_path / "model").manifest_fields()
    assert (fields["template"], fields["pooling"]) == ("marvel", "mean")
    assert (fields["min_pixels"], fields["max_pixels"]) == (196, 784)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"templte": "gme"}', r"marvel\.json: unknown field 'templte'; .* knows attention"),
        ('{"pooling": "max"}', "pooling='max': choose one of mean, last"),
        ('{"pooling": ', r"marvel\.json is not valid JSON"),
    ],
)
def test_a_broken_settings_file_is_refused(tiny_model, tmp_path, content, message):
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model/marvel.json").write_text(content)
    with pytest.raises(MarvelError, match=message):
        Embedder.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("source", ["no/such/folder", "./nowhere", "nobody-here/no-model"])
def test_a_model_that_cannot_be_had_is_told(source):
    with pytest.raises(MarvelError, match=source):
        Embedder.from_pretrained(source)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("dtype", "float23"), ("pooling", "max"), ("attention", "both"), ("template", "qwen")],
)
def test_an_unknown_choice_is_refused_by_name(tiny_model, argument, value):
    with pytest.raises(MarvelError, match=f"{argument}='{value}': choose one of"):
        Embedder.from_pretrained(tiny_model, **{argument: value})


# --- copies, failures, devices --------------------------------------------------------------


def test_copies_are_encoded_once_and_have_the_same_bits(embedder, tmp_path):
    (tmp_path / "a.png").write_bytes(tiny.picture(0))
    (tmp_path / "b.png").write_bytes(tiny.picture(0))
    other = tiny.picture(1)
    (tmp_path / "c.png").write_bytes(other + b" " * (len(tiny.picture(0)) - len(other)))
    same = [tmp_path / "a.png", tmp_path / "b.png", tiny.picture(0)]
    items = [Item.of(image=one, id=str(number)) for number, one in enumerate(same)]
    items += [Item.of(text="red"), Item.of(text="red", id="x"), Item.of(image=tmp_path / "c.png")]
    items += [items[0].with_instruction("find"), items[3].with_instruction("find")]
    items += [Item(parts=("red", "red")), Item.of(text="redred")]
    tally = Tally()
    found = embedder.encode(items, tally=tally)
    assert tally.items == len(items) and tally.copies == 3
    np.testing.assert_array_equal(found[:3], found[[0, 0, 0]])
    np.testing.assert_array_equal(found[3], found[4])
    different = found[[0, 3, 5, 6, 7, 8, 9]]
    assert (different @ different.T - 2 * np.eye(7)).max() < 1 - 1e-4
    plain = np.concatenate([embedder.encode([one]) for one in items])
    np.testing.assert_allclose(found, plain, atol=1e-5)
    # Real tokens are those of the items that were computed.
    lengths = [embedder.processor.lengths(items[number])[0] for number in (0, 3, 5, 6, 7, 8, 9)]
    assert tally.tokens == sum(lengths) and 0 < tally.token_fill <= 1


def test_with_a_listener_the_others_go_on(embedder, vectors, tmp_path):
    broken, absent = tmp_path / "broken.png", tmp_path / "absent.png"
    broken.write_bytes(tiny.picture(0, size=(28, 28))[:-300])  # its header is whole
    wide = np.zeros((1, 300, 3), np.uint8)
    bad = [
        Item.of(text="words", image=broken),
        Item.of(image=absent),
        Item.of(image=wide),
        Item.of(text="words", image=broken),
    ]
    items = [*bad[:2], *ITEMS, *bad[2:]]
    told, seen = {}, []
    found = embedder.encode(
        items, on_failure=told.__setitem__, progress=lambda *counts: seen.append(counts)
    )
    count = len(items)
    assert sorted(told) == [0, 1, count - 2, count - 1]
    assert not found[sorted(told)].any()
    np.testing.assert_allclose(found[2:-2], vectors, atol=1e-5)
    assert told[0].file == str(broken) and "decoded" in told[0].reason
    assert "not exist" in told[1].reason and "300x1" in told[count - 2].reason
    assert seen[-1] == (count, count)


def test_items_are_read_one_by_one_and_not_kept(embedder, vectors):
    """A pool with its pixels in memory need not fit there."""
    import gc
    import weakref
    from collections.abc import Sequence

    class Lazy(Sequence):
        alive, most = 0, 0

        def __len__(self) -> int:
            return 400

        def __getitem__(self, index: int) -> Item:
            if index >= len(self):
                raise IndexError(index)
            item = Item.of(text=f"cat {index}")
            Lazy.alive += 1
            Lazy.most = max(Lazy.most, Lazy.alive)
            weakref.finalize(item, Lazy.gone)
            return item

        @classmethod
        def gone(cls) -> None:
            cls.alive -= 1

    found = embedder.encode(Lazy(), batch_tokens=256)
    gc.collect()
    assert Lazy.alive == 0 and Lazy.most < 200
    alone = embedder.encode([Item.of(text="cat 0"), Item.of(text="cat 399")])
    np.testing.assert_allclose(found[[0, 399]], alone, atol=1e-5)


def test_all_devices_give_the_vectors_of_one(embedder):
    import jax

    items = [item.with_instruction(f"{number}") for number in range(12) for item in ITEMS]
    calls = []
    original = embedder._embed_spread
    embedder._embed_spread = lambda *given, **more: calls.append(1) or original(*given, **more)
    try:
        found = embedder.encode(items, batch_tokens=128)
    finally:
        embedder._embed_spread = original
    assert calls and embedder._mesh.size == len(jax.devices()) == 8
    single = random_embedder(devices=jax.devices()[3:4])
    np.testing.assert_allclose(found, single.encode(items, batch_tokens=1024), atol=1e-5)
    assert single.model_hash == embedder.model_hash


# --- row shapes ------------------------------------------------------------------------------


@given(
    lengths=st.lists(
        st.tuples(st.integers(4, 700), st.sampled_from([0, 4, 16, 300])), min_size=1, max_size=40
    ),
    batch_tokens=st.integers(1, 8192),
)
def test_every_item_fits_a_row_and_a_batch_its_tokens(lengths, batch_tokens):
    shape, num_rows = encoding_rows(np.array(lengths), batch_tokens=batch_tokens, merge_area=4)
    for tokens, patches in lengths:
        assert tokens <= shape.tokens and patches <= shape.patches
    spread, rows = encoding_rows(
        np.array(lengths), batch_tokens=batch_tokens, merge_area=4, devices=8
    )
    assert rows % 8 == 0 or rows < 8
    assert rows % 8 or len(pack(np.array(lengths), spread)) >= 8, "devices without a row"
    assert num_rows >= 1 and shape.items >= 1
    assert num_rows == 1 or num_rows * shape.tokens <= batch_tokens
    assert shape.patches % 4 == 0
    assert (shape.patches > 0) == any(patches for _, patches in lengths)
    # One short item is not worth a batch.
    assert num_rows == 1 or num_rows * shape.tokens <= 4 * sum(tokens for tokens, _ in lengths)


@given(
    lengths=st.lists(
        st.tuples(st.integers(4, 64), st.integers(1, 16).map(lambda tokens: 4 * tokens)),
        min_size=1,
        max_size=40,
    ),
    devices=st.sampled_from([1, 2, 8]),
)
def test_a_servers_queries_meet_few_shapes(lengths, devices):
    shape, rows = steady_rows(np.array(lengths), most_rows=6, merge_area=4, devices=devices)
    assert shape.tokens == 64 and shape.items == 1
    assert shape.patches in (4, 8, 16, 32, 64)
    assert all(patches <= shape.patches for _, patches in lengths)
    assert rows == (1 if len(lengths) == 1 else {1: 6, 2: 6, 8: 8}[devices])


@pytest.mark.parametrize("count", [256, 2048])
def test_nineteen_tokens_in_twenty_are_real(count):
    from marvel_jax.data.mbeir_lengths import MbeirMix, mbeir_lengths

    mix = mbeir_lengths(MbeirMix(queries=count // 2))
    lengths = np.concatenate([mix.queries, mix.candidates])
    slots = 0
    for group in row_groups(lengths):
        shape, num_rows = encoding_rows(lengths[group], batch_tokens=4096, merge_area=4)
        calls = list(row_batches(lengths[group], shape, num_rows=num_rows))
        slots += len(calls) * num_rows * shape.tokens
        # What was compiled once is not given up for a little less padding.
        again, _ = encoding_rows(
            lengths[group][::2], batch_tokens=4096, merge_area=4, known=[shape]
        )
        assert again == shape or count == 256
    assert lengths[:, 0].sum() / slots >= 0.95
