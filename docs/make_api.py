"""Writes docs/api.md from the docstrings of what a user's own code may name.

    python docs/make_api.py

Sources are parsed and not imported, so that it needs nothing but Python.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
WIDTH = 100

# Title of a part, then module by module the names that it shows.
PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "Items and models": {
        "data.items": ("Item", "Image", "Video"),
        "retrieval.embedder": ("Embedder",),
        "retrieval.rerank": ("Reranker", "Scores"),
        "settings": ("EmbeddingSettings",),
        "errors": ("MarvelError",),
    },
    "Stores and collections": {
        "retrieval.store": ("VectorStore",),
        "collection.build": ("build_collection", "Built"),
        "collection.options": ("BuildOptions",),
        "collection.collection": ("Collection", "Found", "Hit"),
    },
    "Training": {
        "training.config": (
            "TrainConfig",
            "DataConfig",
            "ModelConfig",
            "OptimizerConfig",
            "ParameterGroup",
            "CheckpointConfig",
            "TrackingConfig",
        ),
        "data.sources": ("SourceConfig",),
        "data.batch": ("RowShape",),
        "training.loss_config": ("LossConfig",),
        "training.objective_config": ("DistillationConfig", "RetentionConfig"),
        "training.rerank_config": ("RerankConfig",),
        "models.lora": ("LoraConfig",),
        "parallel.mesh": ("MeshConfig",),
        "parallel.sharding": ("ShardingRules",),
    },
    "Recipes": {
        "recipes.recipe": ("Recipe",),
        "recipes.stages": (
            "Emoji",
            "Synthetic",
            "Base",
            "Deepen",
            "Subset",
            "Train",
            "Mine",
            "Recall",
            "Score",
            "Evaluate",
            "Search",
            "Judged",
            "Fuse",
            "Column",
            "Report",
        ),
    },
    "Studies": {
        "studies.study": ("Study", "Metric"),
        "studies.axes": ("Axis", "Range", "Grid", "Random"),
    },
    "For extensions": {
        "losses.contrastive": ("info_nce", "ContrastiveLoss"),
        "losses.forms": ("Rows",),
        "data.pairs": ("Pair", "PairFile"),
        "data.protocols.protocol": ("Protocol", "Metric", "SetData", "Test", "Answers"),
    },
}

HEAD = """\
# API

What a user's own code may name, from the docstrings of the package: `python docs/make_api.py`
writes this page, and a test holds it to the source. `marvel_jax` itself has `Embedder`, `Item` and
`MarvelError`; everything else is imported from the module that stands above it. Anything whose name
begins with an underscore may change without notice. What the command line does is in `marvel
COMMAND --help`.
"""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def page() -> str:
    """The whole of docs/api.md."""
    return "\n".join([HEAD, *_contents(), *_parts()]).rstrip() + "\n"


def _contents() -> Iterator[str]:
    for title, modules in PARTS.items():
        names = ", ".join(f"`{name}`" for shown in modules.values() for name in shown)
        link = f"- [{title}](#{title.lower().replace(' ', '-')}): {names}"
        yield from textwrap.wrap(link, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    yield ""


def _parts() -> Iterator[str]:
    for title, modules in PARTS.items():
        yield from (f"## {title}", "")
        for module, names in modules.items():
            path = ROOT / "marvel_jax" / f"{module.replace('.', '/')}.py"
            tree = _Unquoted().visit(ast.parse(path.read_text(encoding="utf-8")))
            found = {
                node.name: node for node in tree.body if isinstance(node, ast.ClassDef | Function)
            }
            for name in names:
                yield from _entry(f"marvel_jax.{module}", found[name])


class _Unquoted(ast.NodeTransformer):
    """Types that the source quotes because they are defined further down."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = self._bare(node.annotation)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = self._bare(node.returns)
        self.generic_visit(node)
        return node

    def _bare(self, hint: ast.expr | None) -> ast.expr | None:
        if isinstance(hint, ast.Constant) and isinstance(hint.value, str):
            return ast.parse(hint.value, mode="eval").body
        return hint


def _entry(module: str, node: ast.ClassDef | Function) -> Iterator[str]:
    yield from (f"### {node.name}", "", f"`{module}`", "")
    if not isinstance(node, ast.ClassDef):
        yield from _code(_signature(node))
        yield from _text(ast.get_docstring(node), _arguments(node))
        return
    methods = [one for one in node.body if isinstance(one, Function)]
    init = next((one for one in methods if one.name == "__init__"), None)
    fields = [
        one
        for one in node.body
        if isinstance(one, ast.AnnAssign)
        and isinstance(one.target, ast.Name)
        and not one.target.id.startswith("_")
        and "ClassVar" not in ast.unparse(one.annotation)
    ]
    names = {ast.unparse(one.target) for one in fields}
    if init is not None:
        yield from _code(_signature(init, name=node.name))
    yield from _text(ast.get_docstring(node), names)
    if init is not None:
        yield from _text(ast.get_docstring(init), _arguments(init))
    if fields:
        yield from ("| field | type | default |", "|---|---|---|")
        for one in fields:
            default = f"`{_cell(one.value)}`" if one.value is not None else ""
            yield f"| `{ast.unparse(one.target)}` | `{_cell(one.annotation)}` | {default} |"
        yield ""
    for method in methods:
        if method.name.startswith("_"):
            continue
        decorators = {ast.unparse(one) for one in method.decorator_list}
        if "overload" in decorators:
            continue
        if decorators & {"property", "cached_property", "functools.cached_property"}:
            returns = f": {ast.unparse(method.returns)}" if method.returns else ""
            yield from _code(f"{node.name}.{method.name}{returns}")
        else:
            yield from _code(_signature(method, name=f"{node.name}.{method.name}"))
        yield from _text(ast.get_docstring(method), _arguments(method))


def _arguments(node: Function) -> set[str]:
    return {one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}


def _signature(node: Function, *, name: str | None = None) -> str:
    """On one line where it fits, else an argument a line."""
    arguments = node.args
    if arguments.args and arguments.args[0].arg in ("self", "cls"):
        arguments = ast.arguments(
            posonlyargs=arguments.posonlyargs,
            args=arguments.args[1:],
            vararg=arguments.vararg,
            kwonlyargs=arguments.kwonlyargs,
            kw_defaults=arguments.kw_defaults,
            kwarg=arguments.kwarg,
            defaults=arguments.defaults,
        )
    called = name or node.name
    returns = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    whole = f"{called}({_ascii_strings(ast.unparse(arguments))}){returns}"
    if len(whole) <= WIDTH:
        return whole
    each = [ast.unparse(ast.arguments([], [one], None, [], [], None, [])) for one in arguments.args]
    for place, value in enumerate(reversed(arguments.defaults), start=1):
        each[-place] += f" = {ast.unparse(value)}"
    if arguments.vararg:
        each.append(f"*{ast.unparse(arguments.vararg)}")
    elif arguments.kwonlyargs:
        each.append("*")
    for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        each.append(ast.unparse(one) + (f" = {ast.unparse(default)}" if default else ""))
    if arguments.kwarg:
        each.append(f"**{ast.unparse(arguments.kwarg)}")
    inner = "".join(f"    {_ascii_strings(one)},\n" for one in each)
    return f"{called}(\n{inner}){returns}"


def _ascii_strings(code: str) -> str:
    """Simple texts in double quotes, as they stand in the source."""
    return re.sub(r"'([^'\"\\]*)'", r'"\1"', code)


def _cell(node: ast.expr) -> str:
    return _ascii_strings(ast.unparse(node)).replace("|", "\\|")


def _code(text: str) -> Iterator[str]:
    yield from ("```python", text, "```", "")


def _text(docstring: str | None, names: set[str]) -> Iterator[str]:
    """Paragraphs; `name: what it is` becomes a list, `Args:` and `Raises:` become headings of one.

    Args:
      docstring: as `ast.get_docstring` gives it.
      names: fields or arguments, by which such a list is known.
    """
    for block in re.split(r"\n\s*\n", docstring or ""):
        lines = block.splitlines()
        if not lines:
            continue
        section = re.fullmatch(r"(Args|Raises|Returns|Yields):", lines[0])
        if section:
            yield from (f"*{section[1]}*", "")
            yield from _list(textwrap.dedent("\n".join(lines[1:])).splitlines())
        elif set(re.split(r", ", lines[0].partition(":")[0])) <= names:
            yield from _list(lines)
        elif block.startswith("    "):
            yield from _code(textwrap.dedent(block))
        else:
            yield from textwrap.wrap(_escape(" ".join(lines)), WIDTH, **_WRAP)
        yield ""


def _list(lines: list[str]) -> Iterator[str]:
    items: list[str] = []
    for line in lines:
        named = re.match(r"([\w*]+(?:, [\w*]+)*): ", line)
        if named:
            items.append(f"`{named[1]}`: {_escape(line[named.end() :])}")
        elif items:
            items[-1] += f" {_escape(line.strip())}"
        else:
            items.append(_escape(line.strip()))
    for item in items:
        yield from textwrap.wrap(f"- {item}", WIDTH, subsequent_indent="  ", **_WRAP)


_WRAP: dict[str, bool] = {"break_on_hyphens": False, "break_long_words": False}


def _escape(text: str) -> str:
    """Outside of code, a star or an angle bracket is itself."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*<])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
