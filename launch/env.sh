# Sourced by the launch scripts, after `root` is set. A value that is already set wins.
# shellcheck shell=bash

export HOME="${HOME:-$(cd ~ && pwd)}"  # an empty environment has none

case "${VENV:-.venv}" in
  /*) venv="$VENV" ;;
  *) venv="$root/${VENV:-.venv}" ;;
esac

# What was compiled once is not compiled again, across processes and runs.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$root/.cache/jax}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.3}"

# tokenizers warns, and can hang, when its threads meet a fork; grain brings parallelism of its own.
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
export HF_HUB_DISABLE_TELEMETRY="${HF_HUB_DISABLE_TELEMETRY:-1}"

# glibc gives large buffers back after each use; in huge pages they come back with few page faults,
# which saves 2 to 6% of the CPU time of a training step (docs/results.md).
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
