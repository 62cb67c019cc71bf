"""What a plan found: every figure of one step on one topology."""

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One compiled step. Bytes are of one device; None where it is not known.

    fits: whether `needed_bytes` is within `memory_bytes`; None on a processor, where all devices
      share the machine's memory.
    needed_bytes: arguments, temporaries, code and outputs; what an output shares with an argument
      counts once, and weights that the step does not read count too. It is all that is known of a
      step that the compiler refuses for its size.
    useful_flops: of the whole step on all devices, without padding and repeats; `executed_flops`
      with them. `loss_flops` are those outside of the two towers.
    sent: (kind, how many in a step, bytes in a step) of each kind of message.
    """

    topology: str
    stage: str
    device: str
    devices: int
    hosts: int
    mesh: dict[str, int]
    kernel: str
    loss: str
    settings: dict[str, Any]
    # The batch.
    items: int  # pairs of a train step, items of an encode step
    rows: int
    row_counts: list[int]
    row: dict[str, int]
    token_fill: float
    patch_fill: float
    lengths: str
    # Memory.
    memory_bytes: int | None
    needed_bytes: int
    fits: bool | None
    weight_bytes: int
    moment_bytes: int
    batch_bytes: int
    argument_bytes: int | None = None
    temporary_bytes: int | None = None
    output_bytes: int | None = None
    aliased_bytes: int | None = None
    code_bytes: int | None = None
    # Work and messages.
    useful_flops: float = 0.0
    executed_flops: float = 0.0
    loss_flops: float = 0.0
    sent: list[tuple[str, int, int]] = dataclasses.field(default_factory=list)
    # Time.
    trace_seconds: float = 0.0
    compile_seconds: float = 0.0
    cpu_seconds: float = 0.0
    step_seconds: float | None = None
    compute_seconds: float | None = None
    memory_seconds: float | None = None
    link_seconds: float | None = None
    network_seconds: float | None = None
    mfu: float | None = None
    assumptions: str | None = None

    @property
    def items_per_second(self) -> float | None:
        """Of all devices together."""
        return None if self.step_seconds is None else self.items / self.step_seconds

    def to_dict(self) -> dict[str, Any]:
        """The fields, JSON-able, with the rate."""
        return dataclasses.asdict(self) | {"items_per_second": self.items_per_second}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Planned":
        """What `to_dict` wrote."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})
