"""All that stands before the first step: inputs, plan, weights on the mesh, the compiled step."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from marvel_jax.data import lengths
from marvel_jax.data.epoch_plan import Plan, PlanConfig
from marvel_jax.data.lengths import Progress
from marvel_jax.data.pipeline import Build, build_batch
from marvel_jax.data.rerank_batch import build_rerank_batch
from marvel_jax.data.taught import lists_of
from marvel_jax.errors import MarvelError
from marvel_jax.parallel import hosts
from marvel_jax.parallel.heads import check_heads
from marvel_jax.parallel.mesh import data_shards, make_mesh
from marvel_jax.training import agreement, run_folder
from marvel_jax.training.compiled import CompiledStep
from marvel_jax.training.config import TrainConfig
from marvel_jax.training.export import write_blueprint
from marvel_jax.training.inputs import Inputs, open_inputs, place_state
from marvel_jax.training.objective_config import labels
from marvel_jax.training.optimizer import make_optimizer
from marvel_jax.training.progress import Teller
from marvel_jax.training.rerank_inputs import make_rerank_plan, reranker_settings
from marvel_jax.training.state import Placed
from marvel_jax.training.step import attention_kernels, make_train_step


class Prepared(NamedTuple):
    """A run that may begin, and has claimed its folder."""

    inputs: Inputs
    recipe: dict[str, Any]
    mesh: Mesh
    plan: Plan
    placed: Placed
    step: CompiledStep
    build: Build


def prepare(config: TrainConfig, workdir: Path, *, teller: Teller) -> Prepared:
    """Opens and checks everything, and only then writes `recipe.json`, `base.json`, `blueprint/`.

    Every process of the run calls it.

    Raises:
      MarvelError: `workdir` holds another run, or an input is missing or does not fit.
    """
    with teller.phase("opening the data"):
        inputs = open_inputs(config)
    recipe = run_folder.describe(config, inputs)
    agreement.require_same_inputs(inputs, workdir)
    hosts.connect()
    hosts.from_main(lambda: run_folder.require_same_run(workdir, recipe))
    mesh = make_mesh(config.mesh)
    check_heads(inputs.architecture, tensor=mesh.shape["tensor"])
    teller.say(attention_kernels(config, inputs.architecture, mesh).line)
    shards = data_shards(mesh)
    if config.data.global_batch % shards:
        raise MarvelError(
            f"data.global_batch={config.data.global_batch} is not a multiple of the {shards} data "
            f"shards of the mesh: use {-(-config.data.global_batch // shards) * shards}."
        )
    # The first process fills the cache that the others read.
    hosts.from_main(
        lambda: _fill_cache(config, inputs, shards=shards, cache=workdir, teller=teller)
    )
    plan = make_plan(config, inputs, shards=shards, cache=workdir)
    agreement.require_same_plan(plan)
    build = make_build(config, inputs, shards=shards)
    optimizer = make_optimizer(config.optimizer, steps=config.steps)
    with teller.phase("loading the weights" if inputs.weights_folder else "drawing the weights"):
        placed = hosts.together(lambda: place_state(config, inputs, optimizer, mesh))
        base = run_folder.describe_base(config, inputs, placed.frozen)
    # Only now: a config that cannot be trained must not keep the folder for itself.
    hosts.from_main(lambda: _claim(workdir, config, inputs, recipe, base))
    step = make_train_step(
        config,
        inputs.architecture,
        optimizer,
        mesh,
        shardings=placed.shardings,
        frozen_shardings=placed.frozen_shardings,
    )
    return Prepared(inputs, recipe, mesh, plan, placed, CompiledStep(step), build)


def make_plan(config: TrainConfig, inputs: Inputs, *, shards: int, cache: Path | None) -> Plan:
    """The order, labels and packing of every step, from the config and the items' lengths.

    With the objective "rerank" it is a `data.rerank_plan.RerankPlan`, which has the same interface.
    """
    if config.objective == "rerank":
        return _rerank_plan(config, inputs, shards=shards, cache=cache)
    data, distillation = config.data, config.distillation
    plan_config = PlanConfig(
        global_batch=data.global_batch,
        seed=config.seed,
        row=data.row,
        task_weights=data.task_weights,
        positives_per_query=labels(config),
        hard_negatives=data.hard_negatives,
        chunk_rows=config.chunk_rows or 1,
        parts=tuple(part.share for part in data.mixture),
        batches=data.batches,
        sub_batch=data.sub_batch,
        duplicates=data.duplicates,
    )
    lists = None
    if distillation is not None:
        lists = lists_of(
            inputs.source,
            depth=distillation.depth,
            weight=distillation.fused_weight,
            task_weights=distillation.fused_task_weights,
        )
    index = _index(config, inputs, cache=cache)
    return Plan(index, plan_config, num_shards=shards, lists=lists)


def make_build(config: TrainConfig, inputs: Inputs, *, shards: int) -> Build:
    """What makes a batch of a planned step, for `data.pipeline.batches`.

    Raises:
      MarvelError: the texts of a step do not divide among the shards.
    """
    if config.objective == "rerank":
        return build_rerank_batch
    texts = inputs.texts
    if texts is None:
        return build_batch
    texts.require_shards(shards)
    return functools.partial(build_batch, texts=texts)


def _rerank_plan(
    config: TrainConfig,
    inputs: Inputs,
    *,
    shards: int,
    cache: Path | None,
    progress: Progress | None = None,
) -> Any:
    processor: Any = inputs.processor
    return make_rerank_plan(
        inputs.source, processor, config, shards=shards, cache=cache, progress=progress
    )


def _index(
    config: TrainConfig, inputs: Inputs, *, cache: Path | None, progress: Progress | None = None
) -> lengths.LengthsIndex:
    return lengths.index(
        inputs.source,
        inputs.processor,
        cache=cache,
        hard_negatives=config.data.hard_negatives > 0,
        progress=progress,
    )


def _fill_cache(
    config: TrainConfig, inputs: Inputs, *, shards: int, cache: Path, teller: Teller
) -> None:
    with teller.phase("counting tokens and patches") as progress:
        if config.objective == "rerank":
            _rerank_plan(config, inputs, shards=shards, cache=cache, progress=progress)
        else:
            _index(config, inputs, cache=cache, progress=progress)


def _claim(
    workdir: Path,
    config: TrainConfig,
    inputs: Inputs,
    recipe: dict[str, Any],
    base: run_folder.Base,
) -> None:
    run_folder.require_same_base(workdir, base)
    run_folder.write_recipe(workdir, recipe)
    run_folder.write_base(workdir, base)
    write_blueprint(workdir, inputs, _settings(config))


def _settings(config: TrainConfig) -> Any:
    """What is kept beside the exported weights."""
    if config.objective != "rerank":
        return config.embedding
    return reranker_settings(config)
