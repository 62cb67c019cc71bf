"""The kernel follows from platform, model and type; what cannot be is refused with the reason."""

import jax
import jax.numpy as jnp
import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.models.kernels import ALL_XLA
from marvel_jax.models.kernels.choice import choose
from marvel_jax.parallel.mesh import DATA_AXES, MeshConfig, make_mesh
from tests import tiny

MODEL = tiny.architecture(num_attention_heads=4, num_key_value_heads=2)


def names(asked, platform, **options):
    options = {"architecture": MODEL, "dtype": "bfloat16", "one_item_rows": False} | options
    return [kernel.name for kernel in choose(asked, platform=platform, **options).kernels]


@pytest.mark.parametrize(
    ("asked", "platform", "expected"),
    [
        ("auto", "cpu", ["xla", "xla"]),
        ("auto", "gpu", ["pallas_gpu", "pallas_gpu"]),
        ("auto", "cuda", ["pallas_gpu", "pallas_gpu"]),
        ("auto", "tpu", ["splash", "splash"]),
        ("auto", "rocm", ["xla", "xla"]),
        ("xla", "gpu", ["xla", "xla"]),
        ("pallas", "gpu", ["pallas_gpu", "pallas_gpu"]),
        ("pallas", "tpu", ["splash", "splash"]),
    ],
)
def test_the_platform_decides(asked, platform, expected):
    assert names(asked, platform) == expected


def test_cudnn_is_for_the_language_model_when_rows_hold_one_item():
    """An item may hold several images, which cuDNN cannot tell apart."""
    assert names("cudnn", "gpu", one_item_rows=True) == ["cudnn", "pallas_gpu"]


@pytest.mark.parametrize(
    ("asked", "platform", "options", "message"),
    [
        ("flash", "gpu", {}, "model.kernel='flash' is unknown: use one of auto, xla, pallas"),
        ("pallas", "cpu", {}, "model.kernel='pallas' cannot be: .*no Pallas kernel for 'cpu'"),
        ("cudnn", "tpu", {}, "cuDNN is for NVIDIA GPUs, not for 'tpu'"),
        ("cudnn", "gpu", {}, "rows may hold several items.*data.row.items=1"),
        (
            "cudnn",
            "gpu",
            {"one_item_rows": True, "dtype": "float32"},
            "bfloat16 and float16, not float32; use model.dtype='bfloat16'",
        ),
        ("pallas", "tpu", {"dtype": "float16"}, "bfloat16 or float32, not float16"),
        ("pallas", "gpu", {"capability": "7.5"}, "capability 7.5, .* need 8.0 or later"),
        ("cudnn", "gpu", {"one_item_rows": True, "capability": "7.0"}, "need 8.0 or later"),
        ("pallas", "gpu", {"capability": "gfx942"}, "no Pallas kernel for 'rocm'"),
    ],
)
def test_what_cannot_be_is_refused_and_auto_takes_xla_instead(asked, platform, options, message):
    with pytest.raises(MarvelError, match=message):
        names(asked, platform, **options)
    # Never an error, whatever the platform and the options.
    assert set(names("auto", platform, **options)) <= {"xla", "pallas_gpu", "splash"}


def test_auto_says_what_it_could_not_do():
    chosen = choose(
        "auto", platform="gpu", architecture=MODEL, dtype=jnp.bfloat16, capability="7.5"
    )
    assert chosen.kernels == ALL_XLA
    assert chosen.line.startswith("attention kernel: xla (the GPU has compute capability 7.5")


def test_windows_are_for_a_processor_whose_rows_are_not_split():
    def kernels(platform, mesh):
        asked = {"platform": platform, "architecture": MODEL, "dtype": jnp.float32}
        return choose("xla", mesh=mesh, **asked).kernels

    alone = make_mesh(MeshConfig(1, 1, 1), devices=jax.devices()[:1])
    several = make_mesh(MeshConfig(1, 2, 4))
    assert all(one.windows for one in (*kernels("cpu", None), *kernels("cpu", alone)))
    assert kernels("cpu", several) == kernels("gpu", None) == ALL_XLA


def test_heads_that_the_mesh_cannot_divide():
    """The language model has 4 heads and the vision tower 2: each tower for itself."""
    mesh = make_mesh(MeshConfig(1, 2, 4))
    options = {"mesh": mesh, "row_axes": DATA_AXES}
    with pytest.raises(MarvelError, match=r"mesh.tensor=4 does not divide the 2 vision heads"):
        names("pallas", "gpu", **options)
    assert names("auto", "gpu", **options) == ["pallas_gpu", "xla"]
    line = choose("auto", platform="gpu", architecture=MODEL, dtype="bfloat16", mesh=mesh).line
    assert "language pallas_gpu (chosen for gpu), vision xla (mesh.tensor=4" in line


def test_a_kernel_knows_its_mesh_and_its_rows():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    chosen = choose(
        "auto",
        platform="gpu",
        architecture=MODEL,
        dtype="bfloat16",
        mesh=mesh,
        row_axes=DATA_AXES,
    )
    assert all(kernel.head_axis == "tensor" for kernel in chosen.kernels)
    assert [kernel.row_axes for kernel in chosen.kernels.over(("fsdp",))] == [("fsdp",)] * 2
    assert hash(chosen.kernels) == hash(chosen.kernels.over(DATA_AXES))
    # On one device too: it is how the compiler is told of a device that is not here.
    alone = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    kernel = choose(
        "auto", platform="gpu", architecture=MODEL, dtype="bfloat16", mesh=alone
    ).kernels.language
    assert (kernel.mesh, kernel.head_axis) == (alone, None)


@pytest.mark.parametrize("asked", ["auto", "pallas", "cudnn"])
def test_heads_that_are_too_large_for_a_gpu(asked):
    model = tiny.architecture(
        hidden_size=384, num_attention_heads=2, num_key_value_heads=1, mrope_section=(24, 36, 36)
    )
    options = {"architecture": model, "one_item_rows": True}
    if asked == "auto":
        assert names(asked, "gpu", **options) == ["xla", "pallas_gpu"]
        assert names(asked, "tpu", **options) == ["splash", "splash"]
    else:
        with pytest.raises(MarvelError, match=r"language heads have size 192, .* at most 128"):
            names(asked, "gpu", **options)


def test_heads_that_cudnn_cannot_read():
    model = tiny.architecture(hidden_size=24, num_attention_heads=4, mrope_section=(1, 1, 1))
    with pytest.raises(MarvelError, match=r"language heads have size 6, .* multiple of 8"):
        names("cudnn", "gpu", architecture=model, one_item_rows=True)
