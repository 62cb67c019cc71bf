"""How the contrastive loss of a run is computed."""

from dataclasses import dataclass
from typing import Literal

from marvel_jax.errors import MarvelError


@dataclass(frozen=True)
class LossConfig:
    """InfoNCE and its relatives, over every candidate of the global batch.

    implementation: "dense" (plain arrays), "gather" (each shard's queries against all candidates),
      "ring" (blocks go round; memory flat in the batch), or "auto": see
      `training.step.loss_implementation`.
    form: of the loss, see `losses.contrastive`; only "softmax" goes round the ring.
    symmetric: adds the direction from candidates to queries.
    in_batch_negatives: False leaves a query its own positives and hard negatives only.
    tile: rows (gather), rows and columns (ring) of the similarities that exist at one time.
    matryoshka: widths, ascending, at which the loss is taken too, of the first numbers of each
      vector (`losses.matryoshka`), so that stores can be truncated to them; () for none.
    matryoshka_weights: of these widths in the mean, in which the whole width has weight 1 unless
      it is named; () for 1 each.
    """

    implementation: Literal["auto", "dense", "gather", "ring"] = "auto"
    form: Literal["softmax", "sigmoid", "llave", "focal", "focal_abs", "diht"] = "softmax"
    symmetric: bool = False
    in_batch_negatives: bool = True
    tile: int = 1024
    matryoshka: tuple[int, ...] = ()
    matryoshka_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _require(self.tile > 0, f"loss.tile={self.tile} must be positive, e.g. 1024.")
        _require(
            self.implementation != "ring" or self.form == "softmax",
            f"loss.implementation='ring' cannot do loss.form={self.form!r}: use "
            "loss.implementation='gather', or loss.form='softmax'.",
        )
        _require(
            self.in_batch_negatives or not self.symmetric,
            "loss.symmetric=True needs loss.in_batch_negatives=True: without the batch's other "
            "queries a candidate has nothing to be told from.",
        )
        _require(
            self.form != "sigmoid" or not self.symmetric,
            "loss.symmetric=True beside loss.form='sigmoid', which is the same in both "
            "directions: leave loss.symmetric=False.",
        )
        widths, weights = self.matryoshka, self.matryoshka_weights
        _require(
            list(widths) == sorted(set(widths)) and min(widths, default=1) > 0,
            f"loss.matryoshka={widths}: give widths in ascending order, such as (64, 128, 256).",
        )
        _require(
            not weights or (len(weights) == len(widths) and min(weights) > 0),
            f"loss.matryoshka_weights={weights} for loss.matryoshka={widths}: give each width a "
            "positive weight, or () for 1 each.",
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise MarvelError(message)
