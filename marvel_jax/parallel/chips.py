"""One table of accelerators: memory, speed and links of each, and where the figures are from."""

from dataclasses import dataclass

# What a process may take of a GPU's memory: the rest is the driver's context, NCCL's buffers and
# kernels. `marvel train` asks for as much (XLA_PYTHON_CLIENT_MEM_FRACTION); JAX by itself takes
# three quarters.
GPU_MEMORY_SHARE = 0.92
GPUS_PER_HOST = 8

_GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """What the compiler asks of a GPU besides the figures of its `Chip`."""

    name: str
    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    lanes: int  # float32 units in each
    shared_memory: int  # bytes in each
    block_shared_memory: int  # bytes that one block may opt in to
    l2_cache: int  # bytes
    clock: float  # GHz


@dataclass(frozen=True)
class Slices:
    """The slices in which a TPU generation comes."""

    largest: tuple[int, ...]  # chips along each side
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Chip:
    """One accelerator. Rates are bytes/s and TFLOP/s of one device, peaks without sparsity.

    kind: what JAX's `device_kind` contains.
    memory: bytes in all; of a TPU, what its compiler lets a program use.
    bandwidth: of that memory.
    bfloat16, float32: dense peaks; float32 is that of full precision ("highest").
    link: to the other devices of its host (NVLink), or along one axis of the torus (ICI), in one
      direction.
    network: between hosts, its share; None where the links reach through the whole slice.
    """

    kind: str
    memory: int
    bandwidth: float
    bfloat16: float
    float32: float
    link: float
    network: float | None = None
    per_host: int = 4
    gpu: Gpu | None = None
    slices: Slices | None = None

    @property
    def usable(self) -> int:
        """Bytes that a program may take."""
        return int(self.memory * GPU_MEMORY_SHARE) if self.gpu else self.memory


# Sources. GPUs: NVIDIA's architecture whitepapers and data sheets of Ampere, Hopper and Blackwell
# (cores, lanes, peaks, memory bandwidth, NVLink: half of the two directions' sum), table "Technical
# specifications per compute capability" of the CUDA programming guide (shared memory), what
# cudaGetDeviceProperties tells (memory, cache, clock), and the DGX data sheets (network: one
# adapter a GPU, of 200 Gbit/s with A100 and of 400 Gbit/s since).
# TPUs: Google Cloud's page of each generation (bfloat16, bandwidth, largest slice), the memory that
# libtpu's compiler names when it refuses a program, and "How to scale your model" (the JAX team,
# 2025), part 2, for a link's one-way rate. Full float32 takes a TPU six passes in bfloat16.
CHIPS: dict[str, Chip] = {
    "a100-80": Chip(
        kind="A100",
        memory=85_100_068_864,
        bandwidth=2.039e12,
        bfloat16=312.0,
        float32=19.5,
        link=300e9,
        network=25e9,
        per_host=GPUS_PER_HOST,
        gpu=Gpu(
            name="NVIDIA A100-SXM4-80GB",
            capability=(8, 0),
            cores=108,
            lanes=64,
            shared_memory=164 * 1024,
            block_shared_memory=163 * 1024,
            l2_cache=40 * 2**20,
            clock=1.41,
        ),
    ),
    "h100": Chip(
        kind="H100",
        memory=84_942_979_072,
        bandwidth=3.352e12,
        bfloat16=989.4,
        float32=66.9,
        link=450e9,
        network=50e9,
        per_host=GPUS_PER_HOST,
        gpu=Gpu(
            name="NVIDIA H100 80GB HBM3",
            capability=(9, 0),
            cores=132,
            lanes=128,
            shared_memory=228 * 1024,
            block_shared_memory=227 * 1024,
            l2_cache=50 * 2**20,
            clock=1.98,
        ),
    ),
    "h200": Chip(
        kind="H200",
        memory=151_397_597_184,
        bandwidth=4.8e12,
        bfloat16=989.4,
        float32=66.9,
        link=450e9,
        network=50e9,
        per_host=GPUS_PER_HOST,
        gpu=Gpu(
            name="NVIDIA H200",
            capability=(9, 0),
            cores=132,
            lanes=128,
            shared_memory=228 * 1024,
            block_shared_memory=227 * 1024,
            l2_cache=50 * 2**20,
            clock=1.98,
        ),
    ),
    "b200": Chip(
        kind="B200",
        memory=191_514_411_008,
        bandwidth=7.672e12,
        bfloat16=2250.0,
        float32=75.0,
        link=900e9,
        network=50e9,
        per_host=GPUS_PER_HOST,
        gpu=Gpu(
            name="NVIDIA B200",
            capability=(10, 0),
            cores=148,
            lanes=128,
            shared_memory=228 * 1024,
            block_shared_memory=227 * 1024,
            l2_cache=132_644_864,
            clock=1.965,
        ),
    ),
    # No `gpu`: known to MFU only.
    "h100-pcie": Chip("H100 PCIe", 85_520_809_984, 2.0e12, 756.0, 51.2, 64e9, 25e9, 8),
    "h100-nvl": Chip("H100 NVL", 100_496_572_416, 3.9e12, 835.0, 60.0, 300e9, 25e9, 8),
    # No `slices`: without its hardware libtpu compiles for the two halves of a v4 chip, not for it.
    "v4": Chip("TPU v4", 32 * _GIB, 1.2e12, 275.0, 275.0 / 6, 45e9),
    "v5e": Chip(
        kind="TPU v5 lite",
        memory=int(15.75 * _GIB),
        bandwidth=8.1e11,
        bfloat16=197.0,
        float32=197.0 / 6,
        link=45e9,
        slices=Slices((16, 16), ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")),
    ),
    "v5p": Chip(
        kind="TPU v5",  # it calls itself "TPU v5" or "TPU v5p"
        memory=int(95.73 * _GIB),
        bandwidth=2.8e12,
        bfloat16=459.0,
        float32=459.0 / 6,
        link=90e9,
        slices=Slices((16, 20, 28), ("2x2x1", "2x2x2", "2x2x4", "4x4x4", "4x4x8", "8x8x16")),
    ),
    "v6e": Chip(
        kind="TPU v6 lite",
        memory=int(31.24 * _GIB),
        bandwidth=1.6e12,
        bfloat16=918.0,
        float32=918.0 / 6,
        link=90e9,
        slices=Slices((16, 16), ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")),
    ),
}
_ALIASES = {"TPU v5e": "v5e", "TPU v6e": "v6e"}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that calls itself `device_kind` in JAX, or None where the table has none."""
    kinds = {chip.kind: name for name, chip in CHIPS.items()} | _ALIASES
    # The longest that fits: an "H100 PCIe" is no "H100".
    fitting = max((kind for kind in kinds if kind in device_kind), key=len, default=None)
    return None if fitting is None else CHIPS[kinds[fitting]]
