"""A small byte-level BPE with the Qwen2-VL special tokens, trained on a corpus's own text."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from marvel_jax.errors import MarvelError
from marvel_jax.files import write_json

SPECIAL_TOKENS: tuple[str, ...] = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen2-VL's special tokens, in its order, behind the vocabulary."""

VOCABULARY = 8_000
_PAD, _END = "<|endoftext|>", "<|im_end|>"
_BYTES = 256

# How Qwen2 cuts text before merging: English contractions, letters with one leading mark, single
# digits, runs of marks, line ends, blanks.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The words that chat templates put around every text (data/chat.py).
TEMPLATE_TEXTS: tuple[str, ...] = (
    "user\n",
    "system\n",
    "assistant\n",
    "\n",
    "You are a helpful assistant.",
)


def train(texts: Iterable[str], *, vocabulary: int = VOCABULARY) -> Tokenizer:
    """Trains a tokenizer of `vocabulary` entries, special tokens counted; any text can be encoded.

    Fewer entries come out if the texts have too few pairs to merge. Same texts, same result.

    Raises:
      MarvelError: the vocabulary cannot even hold the 256 bytes and the special tokens.
    """
    smallest = _BYTES + len(SPECIAL_TOKENS)
    if vocabulary < smallest:
        raise MarvelError(
            f"vocabulary is {vocabulary}, but the bytes and special tokens alone need {smallest}."
        )
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path | str) -> None:
    """Writes tokenizer.json and the tokenizer_config.json with which transformers loads it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(tokenizer.token_to_id(token)): {
                    "content": token,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
                for token in SPECIAL_TOKENS
            },
            "additional_special_tokens": [t for t in SPECIAL_TOKENS if t not in (_PAD, _END)],
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": _END,
            "errors": "replace",
            "model_max_length": 32_768,
            "pad_token": _PAD,
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )


def load(folder: Path | str) -> Tokenizer:
    """Reads a folder's tokenizer.json.

    Raises:
      MarvelError: it is missing, cannot be read, or lacks a Qwen2-VL special token.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise MarvelError(f"{path} does not exist: {folder} is not a tokenizer's folder.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise MarvelError(f"{path} cannot be read as a tokenizer: {error}.") from error
    missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    if missing:
        raise MarvelError(f"{path} lacks the special tokens {', '.join(missing)}.")
    return tokenizer
