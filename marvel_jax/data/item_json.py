"""An item as JSON has it: texts, pictures and videos in any order."""

from pathlib import Path
from typing import Any

from marvel_jax.data.items import Image, Item, Part, Video
from marvel_jax.errors import MarvelError

CONTENT = ("text", "image", "video", "parts")
"""The fields that say what an item shows."""

_FRAMES = ("num_frames", "fps")


def item_from_json(
    fields: dict[str, Any], *, root: Path, where: str, id: str | None = None
) -> Item:
    """The item of an object with "text", "image" and "video", or with "parts".

    Of the first, every one may be missing or null but not all; "image" and "video" are a path or a
    list of them, and the order is the field's: images, videos, text. "parts" is a list in the order
    that the model reads: texts, and objects of one of {"text": ...}, {"image": path} and
    {"video": path}. A video, here as there, may also be an object {"video": path, "num_frames": 12}
    or with "fps"; "video" may then be a list of paths, too, which are its frames. Paths count from
    `root`; other fields are left alone.

    Raises:
      MarvelError: anything else; the message begins with `where`.
    """
    parts = fields.get("parts")
    if parts is None:
        given = _by_kind(fields, root, where)
    else:
        beside = [name for name in CONTENT[:-1] if fields.get(name) is not None]
        if beside:
            raise MarvelError(
                f"{where}: parts and {beside[0]} are both given: put the {beside[0]} among the "
                "parts, where it belongs in their order."
            )
        if not isinstance(parts, list):
            raise MarvelError(f"{where}: expected parts as a list, found {parts!r}.")
        given = [
            _part(part, root, f"{where}: part {number}") for number, part in enumerate(parts, 1)
        ]
    # A blank text is no text, as in `Item.of`.
    kept = tuple(part for part in given if not isinstance(part, str) or part.strip())
    if not kept:
        raise MarvelError(f"{where}: an item has neither text nor image nor video.")
    return Item(parts=kept, id=id)


def _by_kind(fields: dict[str, Any], root: Path, where: str) -> list[Part]:
    text, image, video = (fields.get(name) for name in ("text", "image", "video"))
    if not (text is None or isinstance(text, str)):
        raise MarvelError(f"{where}: expected text as a text, found {text!r}.")
    images = image if isinstance(image, list) else [image] if image else []
    videos = video if isinstance(video, list) else [video] if video else []
    return [
        *(_image(path, root, where) for path in images),
        *(_video(one, root, where) for one in videos),
        *([text] if text else []),
    ]


def _part(part: Any, root: Path, where: str) -> Part:
    if isinstance(part, str):
        return part
    kinds = [name for name in ("text", "image", "video") if isinstance(part, dict) and name in part]
    if len(kinds) != 1:
        raise MarvelError(
            f"{where}: expected a text, or an object of one of text, image and video; found "
            f"{part!r}."
        )
    if kinds[0] == "video":
        return _video(part, root, where)
    _only(part, kinds, where)
    content = part[kinds[0]]
    if kinds[0] == "image":
        return _image(content, root, where)
    if not isinstance(content, str):
        raise MarvelError(f"{where}: expected text as a text, found {content!r}.")
    return content


def _image(path: Any, root: Path, where: str) -> Image:
    if not isinstance(path, str) or not path:
        raise MarvelError(f"{where}: expected image as a path or paths, found {path!r}.")
    return Image(root / path)


def _video(value: Any, root: Path, where: str) -> Video:
    fields = value if isinstance(value, dict) else {"video": value}
    _only(fields, ("video", *_FRAMES), where)
    path = fields.get("video")
    if isinstance(path, list) and path:
        frames = tuple(_image(frame, root, f"{where}: a frame of video") for frame in path)
    elif not isinstance(path, str) or not path:
        raise MarvelError(f"{where}: expected video as a path, found {path!r}.")
    number, fps = (fields.get(name) for name in _FRAMES)
    if not (number is None or type(number) is int):
        raise MarvelError(f"{where}: expected num_frames as a whole number, found {number!r}.")
    if not (fps is None or type(fps) in (int, float)):
        raise MarvelError(f"{where}: expected fps as a number, found {fps!r}.")
    try:
        return Video(frames if isinstance(path, list) else root / path, num_frames=number, fps=fps)
    except MarvelError as error:
        raise MarvelError(f"{where}: {error}") from error


def _only(fields: dict[str, Any], known: tuple[str, ...] | list[str], where: str) -> None:
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise MarvelError(f"{where}: unknown field {unknown[0]!r}; there are {', '.join(known)}.")
