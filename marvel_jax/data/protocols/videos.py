"""Sentences look for the video that they describe: MSR-VTT and MSVD."""

from pathlib import Path

from marvel_jax.data.protocols.protocol import Answers, Metric, Protocol, SetData, Size, Test
from marvel_jax.data.protocols.reading import read_csv, read_lines, read_plain_pickle, texts, video
from marvel_jax.errors import MarvelError

FIND_VIDEO = "Find an everyday video match with caption."
MSVD_FRAMES = 12


def _described(captions: list[tuple[str, str]], videos: dict[str, Path], frames: int) -> SetData:
    """Each of (video's id, sentence) looks for its video; 0 frames leaves their number open."""
    sampling = {"num_frames": frames} if frames else {}
    asked = [(str(n), text) for n, (_, text) in enumerate(captions)]
    return SetData(
        {
            "captions": texts(asked, instruction=FIND_VIDEO),
            "videos": [video(path, id=id, **sampling) for id, path in videos.items()],
        },
        (Test("t2v", "captions", "videos", [Answers((id,)) for id, _ in captions]),),
    )


def read_msrvtt(root: Path) -> SetData:
    """annotations/MSRVTT_JSFUSION_test.csv: a sentence for each video of videos/."""
    rows = read_csv(root / "annotations" / "MSRVTT_JSFUSION_test.csv", ("video_id", "sentence"))
    captions = [(row["video_id"], row["sentence"]) for row in rows]
    return _described(captions, {id: root / "videos" / f"{id}.mp4" for id, _ in captions}, 0)


def read_msvd(root: Path) -> SetData:
    """test_list.txt names the videos, raw-captions.pkl has the words of each one's sentences."""
    ids = read_lines(root / "test_list.txt")
    file = root / "raw-captions.pkl"
    told = read_plain_pickle(file)
    captions = []
    for id in ids:
        sentences = told.get(id) if isinstance(told, dict) else None
        if not isinstance(sentences, list) or not sentences:
            raise MarvelError(f"{file}: expected sentences of {id!r}, found {sentences!r:.80}.")
        for words in sentences:
            if not isinstance(words, list) or not words:
                raise MarvelError(f"{file}: {id!r} has {words!r:.80}; expected a list of words.")
            captions.append((id, " ".join(map(str, words))))
    videos = {id: root / "YouTubeClips" / f"{id}.avi" for id in ids}
    return _described(captions, videos, MSVD_FRAMES)


MSRVTT = Protocol(
    name="msrvtt",
    title="MSR-VTT 1K-A",
    read=read_msrvtt,
    metric=Metric(),
    source="Hugging Face, code-kunkun/LamRA_Eval; videos: MSR-VTT",
    layout=("annotations/MSRVTT_JSFUSION_test.csv", "videos/"),
    sizes={"t2v": Size(1000, 1000)},
    checked="annotations checked",
)
MSVD = Protocol(
    name="msvd",
    title="MSVD",
    read=read_msvd,
    metric=Metric(),
    source="cs.utexas.edu/~ml/clamp/videoDescription",
    layout=("test_list.txt", "raw-captions.pkl", "YouTubeClips/"),
    sizes={"t2v": Size(27_763, 670)},
)
