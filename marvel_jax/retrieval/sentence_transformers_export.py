"""A model folder that sentence-transformers loads by its own modules, without remote code."""

import json
import shutil
from pathlib import Path

from marvel_jax.errors import MarvelError
from marvel_jax.files import atomic_folder, read_json_object, write_json
from marvel_jax.models import hub
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.settings import EmbeddingSettings

_MODULES = (
    ("", "sentence_transformers.base.modules.transformer.Transformer"),
    ("1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
    ("2_Normalize", "sentence_transformers.base.modules.normalize.Normalize"),
)

NO_INSTRUCTION = (
    "This model reads an instruction and leaves it out of the mean. sentence-transformers tracks "
    "no prompt in chat messages, so it would pool it: encode without a prompt here, or with "
    "marvel-jax."
)
"""What a prompt is refused with, when it is given to the exported model."""

# Our template, and `data.chat.format_text` of each text.
_CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] != 'user' -%}{{- raise_exception("NO_INSTRUCTION") -}}{%- endif -%}
{{- '<|im_start|>user\\n' -}}
{%- set parts = message['content'] -%}
{%- if parts is string -%}{%- set parts = [{'type': 'text', 'text': parts}] -%}{%- endif -%}
{%- for part in parts -%}
{%- if part['type'] == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- else -%}
{%- set text = part['text'].replace('\\r', '').strip().strip('"') -%}
{%- if text -%}
{{- text[:1].upper() + text[1:] + ('' if text[-1] in '.?!' else '.') -}}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{{- '<|im_end|>' -}}
{%- endfor -%}
""".replace("NO_INSTRUCTION", NO_INSTRUCTION)


def export_sentence_transformers(model: str | Path, folder: str | Path) -> None:
    """Writes `folder`, which `SentenceTransformer(folder)` loads, from a model's folder or Hub id.

    Bidirectional attention is `text_config.is_causal = false` in config.json, our template a chat
    template, the mean and the unit norm two modules. Vectors of items without an instruction equal
    ours to 1e-4, but: texts are not cut at `max_text_tokens`, a special token spelled in a text
    becomes one, and videos are read as transformers does. An instruction cannot be left out of the
    mean there, so the template refuses one (`NO_INSTRUCTION`). transformers wants torchvision
    installed to load the processor of any Qwen2-VL model.

    Raises:
      MarvelError: the model's template or positions cannot be said so, or `folder` exists.
    """
    source = hub.resolve(model)
    settings = EmbeddingSettings.read(source)
    for field, needed, why in (
        ("template", "marvel", "the others add tokens or a system turn"),
        ("positions", "mrope", "transformers gives pictures their rows and columns"),
        ("prompt", "none", "it goes behind an item whatever its kinds of part"),
    ):
        value = getattr(settings, field)
        if value != needed:
            raise MarvelError(
                f"{model}: {field} is {value!r}; sentence-transformers can express {needed!r} only "
                f"({why})."
            )
    config = Qwen2VLConfig.from_folder(source)
    with atomic_folder(folder) as partial:
        described = partial / "described"
        hub.save_blueprint(
            described, config=config, attention=settings.attention, tokenizer_from=source
        )
        for path in (*described.iterdir(), *source.glob("*.safetensors*")):
            shutil.copyfile(path, partial / path.name)
        shutil.rmtree(described)
        _describe(partial, config, settings, source)


def _describe(
    folder: Path, config: Qwen2VLConfig, settings: EmbeddingSettings, source: Path
) -> None:
    """Writes what sentence-transformers reads, and how its tokenizer and processor are told."""
    # What others wrote beside the weights told of their template and of their own limits.
    for name in ("chat_template.json", "processor_config.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE)
    tokenizer = folder / "tokenizer_config.json"
    told = read_json_object(tokenizer) if tokenizer.is_file() else {}
    told.pop("chat_template", None)
    write_json(
        tokenizer,
        {
            "pad_token": "<|endoftext|>",
            **told,
            "tokenizer_class": "PreTrainedTokenizerFast",  # tokenizer.json as it is
            "padding_side": "right",
        },
    )
    pixels = folder / "preprocessor_config.json"
    if pixels.is_file():
        limits = {"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels}
        flat = {"min_pixels": settings.min_pixels, "max_pixels": settings.max_pixels}
        # Pillow's resize is ours; torchvision's differs by up to 15 grey levels.
        pillow = {"image_processor_type": "Qwen2VLImageProcessorPil"}
        write_json(pixels, {**read_json_object(pixels), "size": limits, **flat, **pillow})
    forward = {"method": "forward", "method_output_name": "last_hidden_state"}
    kinds = dict.fromkeys(("text", "image", "video"), forward)
    write_json(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "feature-extraction",
            "modality_config": {**kinds, "message": {**forward, "format": "structured"}},
            "module_output_name": "token_embeddings",
            "unpad_inputs": False,
        },
    )
    pooling = {"mean": "mean", "last": "lasttoken"}[settings.pooling]
    for path, content in (
        ("1_Pooling", {"embedding_dimension": config.text.hidden_size, "pooling_mode": pooling}),
        ("2_Normalize", {}),
    ):
        (folder / path).mkdir()
        write_json(folder / path / "config.json", content)
    write_json(
        folder / "config_sentence_transformers.json",
        {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
    )
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": kind}
        for number, (path, kind) in enumerate(_MODULES)
    ]
    (folder / "modules.json").write_text(json.dumps(listed, indent=2) + "\n")
