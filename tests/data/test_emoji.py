"""The emoji corpus: nothing leaks, every answer is there, the same seed gives the same files."""

import dataclasses
import hashlib
import re
from collections import defaultdict
from pathlib import Path

import emoji as emoji_package
import PIL.Image
import pytest

from marvel_jax.data import emoji, emoji_fonts
from marvel_jax.data.emoji_fonts import Painter, Undrawable, find_fonts
from marvel_jax.data.emoji_gallery import draw, picture_path
from marvel_jax.data.emoji_heldout import held_out_sets
from marvel_jax.data.emoji_lexicon import LANGUAGES, load_lexicon, text_key
from marvel_jax.data.emoji_split import hold_out
from marvel_jax.data.emoji_tasks import INSTRUCTIONS, Corpus, picture_id, training_queries
from marvel_jax.data.items import TASKS
from marvel_jax.data.mbeir import MbeirFolder, MbeirSource
from marvel_jax.errors import MarvelError
from tests.data.emoji_corpora import built, corpus, folder  # noqa: F401


def picture_of(item) -> str | None:
    return item.images[0].source.name if item.images else None


def text_of(item) -> str | None:
    return next((part for part in item.parts if isinstance(part, str)), None)


def code(sequence: str) -> str:
    return "-".join(f"{ord(c):x}" for c in sequence) + ".png"


def plain_names(sequence: str) -> dict[str, str]:
    """Names straight from the emoji package, by language."""
    emoji_package.config.load_language(list(LANGUAGES))
    data = emoji_package.EMOJI_DATA[sequence]
    return {language: data[language].strip(":").replace("_", " ") for language in LANGUAGES}


@pytest.fixture(scope="module")
def training(folder: Path) -> MbeirSource:  # noqa: F811
    return MbeirFolder(folder).source("train")


@pytest.fixture(scope="module")
def tests(folder: Path):  # noqa: F811
    return {one.task.id: one for one in MbeirFolder(folder).test_sets()}


def test_no_held_out_picture_is_shown_in_training(corpus, training, tests, folder):  # noqa: F811
    held = {picture_of(query.item) for query in tests[3].queries}
    assert held == {f"{corpus.by_number[n].code}.png" for n in corpus.split.pictures}
    shown = {picture_of(row.item) for row in (*training.queries, *training.candidates)}
    assert not held & shown
    # Nor under another name: the files' bytes are compared.
    color = folder / "mbeir_images/emoji/color"
    contents = {(color / name).read_bytes() for name in held}
    assert not contents & {(color / n).read_bytes() for n in shown if n and (color / n).is_file()}


def test_every_toned_base_loses_one_tone_and_keeps_the_others(corpus):  # noqa: F811
    families = defaultdict(list)
    for one in corpus.emoji:
        if one.tones:
            families[one.base].append(one.number)
    assert len(families) > 20
    for numbers in families.values():
        held = corpus.split.pictures & set(numbers)
        visible = len(corpus.gallery.twins[numbers[0]]) == 1
        assert len(held) == visible and len(numbers) >= 5


def test_a_tone_that_changes_no_pixel_is_neither_held_out_nor_asked_for():
    small = corpus_of(lambda one: one.base in ("🏂", "👍"))
    boards = {one.number for one in small.emoji if one.base == "🏂"}
    assert all(set(small.gallery.twins[number]) == boards for number in boards)
    assert len(small.split.pictures) == 1 and not small.split.pictures & boards
    pictures = {picture_path(one) for one in small.emoji if one.base == "🏂"}
    rows = [*training_queries(small), *(q for one in held_out_sets(small) for q in one.queries)]
    assert not any(row.image in pictures for row in rows if row.task in (7, 8))
    assert any(row.image in pictures for row in rows if row.task == 3)


def test_no_held_out_name_is_shown_with_its_emoji(corpus, training):  # noqa: F811
    pairs = set()  # (emoji's picture, name) that training can learn
    texts = set()
    answers = {c.id: (picture_of(c.item), text_of(c.item)) for c in training.candidates}
    for picture, text in answers.values():
        texts.add(text_key(text or ""))
        pairs.add((picture, text_key(text or "")))
    for query in training.queries:
        picture, text = picture_of(query.item), text_key(text_of(query.item) or "")
        texts.add(text)
        for positive in query.positives:
            found_picture, found_text = answers[positive]
            pairs |= {(found_picture, text), (picture, text_key(found_text or ""))}
    held = [(corpus.by_number[number], language) for number, language in corpus.split.cells]
    held += [(corpus.by_number[n], lang) for n in corpus.split.pictures for lang in LANGUAGES]
    trained_names = {
        text_key(name)
        for one in corpus.trained
        for language, name in plain_names(one.sequence).items()
        if corpus.split.trains_cell(one.number, language)
    }
    assert len(held) > 500
    for one, language in held:
        name = text_key(plain_names(one.sequence)[language])
        assert (code(one.sequence), name) not in pairs
        # A name is seen in training only where another emoji has it too.
        assert name not in texts or name in trained_names


def test_test_queries_ask_for_what_training_never_said(training, tests):
    said = {text_key(text_of(q.item) or "") for q in training.queries}
    said |= {text_key(text_of(c.item) or "") for c in training.candidates}
    for task in (0, 1, 2):
        for query in tests[task].queries:
            assert text_key(text_of(query.item)) not in said
    answers = {c.id: c for c in MbeirFolder(training.queries.files[0].path.parents[2]).pool("test")}
    asked = {(picture_of(q.item), text_of(q.item)) for q in training.queries if q.task.id == 6}
    for query in tests[6].queries:
        assert (picture_of(query.item), text_of(query.item)) not in asked
    shown = {picture_of(c.item) for c in training.candidates}
    for task in (7, 8):
        for query in tests[task].queries:
            assert picture_of(query.item) in shown
            for did in tests[task].qrels[query.id]:
                assert picture_of(answers[did].item) not in shown


def test_no_held_out_drawing_is_shown_in_training(training, tests):
    def drawing(query):
        return query.item.images[0].source.name

    held = {drawing(query) for query in tests[4].queries}
    shown = {drawing(query) for query in training.queries if query.task.id == 4}
    assert len(held) == round(0.1 * (len(held) + len(shown)))
    assert shown and not held & shown


def test_every_language_and_tone_word_is_in_training(corpus, training):  # noqa: F811
    by_task = defaultdict(set)
    for query in training.queries:
        by_task[query.task.id].add(text_of(query.item))
    assert by_task[6] == set(LANGUAGES.values())
    phrases = set(corpus.lexicon.tone_phrases.values())
    assert len(phrases) > 65 and by_task[7] == phrases
    for language in LANGUAGES:
        names = {corpus.lexicon.text(one, language).text for one in corpus.trained}
        assert len(names & by_task[0]) > 0.75 * len(names)


def test_a_tenth_of_the_names_is_held_out_whatever_the_seed(corpus):  # noqa: F811
    seen = set()
    for seed in range(5):
        split = hold_out(corpus.lexicon, corpus.emoji, corpus.gallery, seed=seed)
        trained = len(corpus.emoji) - len(split.pictures)
        share = len(split.cells) / (trained * len(LANGUAGES))
        assert 0.1 <= share < 0.11
        for one in corpus.emoji:
            if one.number not in split.pictures:
                assert any(split.trains_cell(one.number, language) for language in LANGUAGES)
                by_name = defaultdict(set)
                for language, name in one.names.items():
                    by_name[text_key(name)].add((one.number, language) in split.cells)
                assert all(len(sides) == 1 for sides in by_name.values())
                assert split.trains_cell(one.number, split.cards[one.number])
        seen.add(split.pictures)
    assert len(seen) == 5


def test_all_eight_tasks_are_there_with_their_instructions(training, tests):
    assert set(tests) == set(TASKS) == {query.task.id for query in training.queries}
    for source in (training.queries, *(one.queries for one in tests.values())):
        for query in source:
            assert query.item.modality == query.task.query_modality
            prompts = training.instructions[query.instruction_key]
            assert len(prompts) == 4
    assert all(len(prompt.split()) <= 7 for prompts in INSTRUCTIONS.values() for prompt in prompts)
    modality = {c.id: c.modality for c in training.candidates}
    for query in training.queries:
        assert {modality[p] for p in query.positives} == {query.task.candidate_modality}


def test_a_name_is_answered_by_every_emoji_that_carries_it(folder, tests):  # noqa: F811
    carriers = defaultdict(set)
    codes = {path.name for path in (folder / "mbeir_images/emoji/color").iterdir()}
    for sequence in emoji_package.EMOJI_DATA:
        if code(sequence) in codes:
            for name in plain_names(sequence).values():
                carriers[text_key(name)].add(code(sequence))
    pool = {candidate.id: picture_of(candidate.item) for candidate in tests[0].pool}
    for query in tests[0].queries:
        found = {pool[did] for did in tests[0].qrels[query.id]}
        assert carriers[text_key(text_of(query.item))] <= found


def test_pools_have_no_candidate_twice_and_the_union_has_them_all(folder, tests):  # noqa: F811
    union = [candidate.id for candidate in MbeirFolder(folder).pool("test")]
    assert len(union) == len(set(union))
    local = set()
    for one in tests.values():
        ids = [candidate.id for candidate in one.pool]
        texts = [text_key(text_of(c.item)) for c in one.pool if c.modality == "text"]
        assert len(ids) == len(set(ids)) and len(texts) == len(set(texts))
        local |= set(ids)
    assert local == set(union)
    # A name to translate is not among the answers: it would only find itself.
    names = {text_key(text_of(candidate.item)) for candidate in tests[1].pool}
    assert not names & {text_key(text_of(query.item)) for query in tests[1].queries}


def corpus_of(keep, *, seed: int = 0) -> Corpus:
    """The corpus of some chosen emoji."""
    lexicon = load_lexicon()
    chosen = tuple(one for one in lexicon.emoji if keep(one))
    gallery = draw(chosen, Painter(find_fonts()), progress=lambda stage, done, total: None)
    drawn = tuple(one for one in chosen if one.number in gallery.pictures)
    return Corpus(lexicon, drawn, gallery, hold_out(lexicon, drawn, gallery, seed=seed), seed)


def test_equal_pictures_answer_for_each_other():
    wanted = ("🇫🇷", "🇲🇫", "🇩🇪", "👍", *(f"👍{tone}" for tone in "🏻🏼🏽🏾🏿"))
    small = corpus_of(lambda one: one.sequence in wanted)
    flags = {picture_id(one.number) for one in small.emoji if one.sequence in ("🇫🇷", "🇲🇫")}
    asked = 0
    for query in (
        *training_queries(small),
        *(query for one in held_out_sets(small) for query in one.queries),
    ):
        if flags & set(query.positives):
            assert flags <= set(query.positives)
            asked += 1
    assert asked > 20


def test_what_looks_like_a_held_out_picture_is_held_out_too():
    small = corpus_of(lambda one: one.base in ("👍", "👎"))
    like: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for one in small.emoji:
        like[one.tones].append(one.number)
    # As if the font drew thumbs up and thumbs down alike.
    twins = {number: tuple(group) for group in like.values() for number in group}
    gallery = dataclasses.replace(small.gallery, twins=twins)
    for seed in range(5):
        held = hold_out(small.lexicon, small.emoji, gallery, seed=seed).pictures
        assert held and all(set(twins[number]) <= held for number in held)


def test_a_name_that_another_emoji_is_trained_under_is_no_test():
    lexicon = load_lexicon()
    owners = defaultdict(set)
    for one in lexicon.emoji:
        for name in one.names.values():
            owners[text_key(name)].add(one.number)
    shared = set().union(*(numbers for numbers in owners.values() if len(numbers) > 1))
    small = corpus_of(lambda one: one.number in shared)
    ambiguous = 0
    for seed in range(4):
        split = hold_out(lexicon, small.emoji, small.gallery, seed=seed)
        one_corpus = Corpus(lexicon, small.emoji, small.gallery, split, seed)
        trained = {
            text_key(one.names[language])
            for one in small.emoji
            for language in LANGUAGES
            if split.trains_cell(one.number, language)
        }
        held = {text_key(small.by_number[n].names[language]) for n, language in split.cells}
        ambiguous += len(held & trained)
        asked = [
            text_key(query.text or "")
            for one in held_out_sets(one_corpus)
            if one.task in (0, 1, 2)
            for query in one.queries
        ]
        assert len(asked) > 20 and not trained & set(asked)
    assert ambiguous


def test_the_same_seed_gives_the_same_files_and_another_does_not(tmp_path):
    def tree(root: Path) -> dict[str, str]:
        # TFDS writes the date of the build into its dataset_info.json.
        return {
            str(path.relative_to(root)): hashlib.md5(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*"))
            if path.is_file() and path.name != "dataset_info.json"
        }

    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        emoji.build(tmp_path / name, seed=seed, limit=60, vocabulary=600)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert tree(tmp_path / "a") != tree(tmp_path / "c")


def test_the_manifest_counts_what_the_folder_holds(built, training, tests):  # noqa: F811
    manifest = emoji.read_manifest(built.folder)
    assert manifest == built.manifest
    assert sum(manifest["training_queries"].values()) == len(training.queries)
    for task, one in tests.items():
        said = manifest["tests"][str(task)]
        assert said["queries"] == len(one.queries) == sum(said["held_out"].values())
        assert said["pool"] == len(one.pool)
    counts = manifest["emoji"]
    assert counts["drawn"] == len(list((built.folder / "mbeir_images/emoji/color").iterdir()))
    assert counts["listed"] == counts["drawn"] + counts["without_glyph"] + counts["falling_apart"]
    assert set(manifest["tokenizer"]["mean_tokens_of_a_name"]) == set(LANGUAGES)


def test_a_build_is_whole_or_absent(tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(emoji.tfds_builders, "write", fail)
        with pytest.raises(KeyboardInterrupt):
            emoji.build(tmp_path / "out", limit=20, vocabulary=400)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MarvelError, match="not an emoji corpus"):
        emoji.read_manifest(tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(MarvelError, match="exists already"):
        emoji.build(tmp_path / "out", limit=20)


def test_a_manifest_of_another_version_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": "marvel-jax emoji corpus", "version": 99}')
    with pytest.raises(MarvelError, match="version 99"):
        emoji.read_manifest(tmp_path)


def test_pictures_are_drawn_and_what_cannot_be_drawn_says_why():
    painter = Painter(find_fonts())
    picture = painter.picture("👩🏽‍🚒")
    assert isinstance(picture, PIL.Image.Image)
    assert picture.size == (128, 128) and picture.mode == "RGB"
    assert len(picture.getcolors(1 << 16)) > 100
    assert painter.picture("\U0010ffff") == Undrawable("missing")
    assert painter.picture("👩\u200d🍕") == Undrawable("apart")  # not an emoji: two glyphs
    drawing = painter.drawing("✈️")
    assert isinstance(drawing, PIL.Image.Image)
    assert drawing.convert("L").convert("RGB").tobytes() == drawing.tobytes()  # black on white
    assert painter.drawing("\U0010ffff") == Undrawable("missing")
    assert painter.drawing("👍🏽") == Undrawable("apart")


def test_a_missing_font_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji_fonts, "_folders", lambda: iter([tmp_path]))
    monkeypatch.setattr(emoji_fonts, "_ask_fontconfig", lambda names: None)
    with pytest.raises(MarvelError, match=r"apt-get install fonts-noto-color-emoji.*MARVEL_FONT"):
        find_fonts()


def test_the_font_folder_of_the_environment_comes_first(tmp_path, monkeypatch):
    fonts = find_fonts()
    (tmp_path / "deep").mkdir()
    for path in (fonts.colour, fonts.drawing):
        (tmp_path / "deep" / path.name).symlink_to(path)
    monkeypatch.setenv("MARVEL_FONT_DIR", str(tmp_path))
    found = find_fonts()
    assert {found.colour.parent, found.drawing.parent} == {tmp_path / "deep"}
    monkeypatch.setenv("MARVEL_FONT_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(MarvelError, match="nowhere, which is not a folder"):
        find_fonts()


def test_a_file_that_is_no_font_is_named(tmp_path):
    (tmp_path / "NotoColorEmoji.ttf").write_bytes(b"not a font")
    fonts = emoji_fonts.FontFiles(tmp_path / "NotoColorEmoji.ttf", find_fonts().drawing)
    with pytest.raises(MarvelError, match=re.escape(str(tmp_path / "NotoColorEmoji.ttf"))):
        Painter(fonts)


def test_names_are_plain_text():
    lexicon = load_lexicon()
    assert len(lexicon.emoji) == 3963
    thumbs = next(one for one in lexicon.emoji if one.sequence == "👍🏿")
    assert thumbs.names["en"] == "thumbs up dark skin tone"
    assert thumbs.names["fa"] == "پسندیدن پوست آبنوسی"
    assert thumbs.tones == (4,) and thumbs.base == "👍"
    assert picture_path(thumbs).endswith("1f44d-1f3ff.png")
    assert not any(set(":_") & set(text.text) for text in lexicon.texts.values())
