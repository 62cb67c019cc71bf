import pytest

from marvel_jax.data.items import TASKS, Image, Item
from marvel_jax.errors import MarvelError
from tests.data import samples


def test_of_puts_images_first_and_keeps_their_order() -> None:
    item = Item.of(text="a pear", image=["one.png", Image("two.png")], id="q1")
    assert item.parts == (Image("one.png"), Image("two.png"), "a pear")
    assert item.images == (Image("one.png"), Image("two.png"))


@pytest.mark.parametrize(
    ("given", "modality"),
    [
        ({"text": "pear"}, "text"),
        ({"image": "pear.png"}, "image"),
        ({"image": "pear.png", "text": "pear"}, "image,text"),
        ({"image": "pear.png", "text": "  "}, "image"),
    ],
)
def test_modality_is_what_the_item_holds(given: dict, modality: str) -> None:
    assert Item.of(**given).modality == modality


def test_an_item_of_nothing_is_refused_by_its_id() -> None:
    with pytest.raises(MarvelError, match="q7"):
        Item.of(text=" ", id="q7")


def test_a_bare_picture_among_the_parts_is_refused() -> None:
    with pytest.raises(MarvelError, match=r"Item\.of"):
        Item(parts=("text", samples.picture(8, 8)))  # type: ignore[arg-type]


def test_tasks_are_the_eight_of_m_beir() -> None:
    assert {task.id: task.name for task in TASKS.values()} == {
        0: "t->i",
        1: "t->t",
        2: "t->(i,t)",
        3: "i->t",
        4: "i->i",
        6: "(i,t)->t",
        7: "(i,t)->i",
        8: "(i,t)->(i,t)",
    }
    short = {"text": "t", "image": "i", "image,text": "(i,t)"}
    for task in TASKS.values():
        assert task.name == f"{short[task.query_modality]}->{short[task.candidate_modality]}"


def test_a_new_instruction_leaves_the_rest() -> None:
    item = Item.of(text="pear", id="q1")
    assert item.with_instruction("find it.") == Item.of(
        text="pear", id="q1", instruction="find it."
    )
