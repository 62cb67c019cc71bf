"""What a scheduler tells a process of the run that it belongs to: which one of how many, where."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from marvel_jax.errors import MarvelError

ADDRESS = "JAX_COORDINATOR_ADDRESS"
PORT = "JAX_COORDINATOR_PORT"

_EPHEMERAL = 65535 - 2**12 + 1  # Slurm's and Open MPI's jobs take one of the last 2^12 ports each
_TPU_PORT = "8482"
_JOBSET_PORT = "55527"

Metadata = Callable[[str], str | None]


class Place(NamedTuple):
    """A process's place in a run. `coordinator` is HOST:PORT of process 0.

    `local_device` is the one accelerator to use where several processes share a host; None = all
    of the host's. `told_by` is a scheduler's name.
    """

    coordinator: str
    num_processes: int
    process_id: int
    told_by: str
    local_device: int | None = None


def detect(
    environment: Mapping[str, str],
    *,
    coordinator: str | None = None,
    tpu_metadata: Metadata | None = None,
) -> Place | None:
    """The place that the first scheduler gives that is found; None in a plain shell.

    `coordinator` and the environment's JAX_COORDINATOR_ADDRESS go before what is derived, and
    JAX_COORDINATOR_PORT before a port that is, as in `jax.distributed.initialize`. `tpu_metadata`
    reads an attribute of a TPU VM; without it, only the environment is looked at.

    Raises:
      MarvelError: a scheduler's environment is there by half, or holds what is no number.
    """
    told = _Told(environment, coordinator or environment.get(ADDRESS))
    found = _open_mpi(told) or _slurm(told)
    if found is None and "tpu" in (environment.get("JAX_PLATFORMS") or "tpu"):
        found = _gke_tpu(told) or _tpu_vm(told, tpu_metadata)
    return found or _jobset(told)


class _Told:
    """An environment, and an address of process 0 that needs no deriving."""

    def __init__(self, environment: Mapping[str, str], address: str | None) -> None:
        self._environment = environment
        self._address = address

    def __contains__(self, name: str) -> bool:
        return name in self._environment

    def get(self, name: str, default: str = "") -> str:
        return self._environment.get(name, default)

    def need(self, name: str, *, of: str, advice: str) -> str:
        value = self._environment.get(name)
        if not value:
            raise MarvelError(
                f"{name} is not set, but other variables of {of} are: {advice}, or say it all with "
                "--coordinator HOST:PORT --num-processes N --process-id I (--num-processes 1 for "
                "a run of this process alone)."
            )
        return value

    def number(self, name: str, *, of: str, advice: str) -> int:
        value = self.need(name, of=of, advice=advice)
        if not value.isdigit():
            raise MarvelError(f"{name}={value!r} is not a number: {of} should say one.")
        return int(value)

    def has_its_devices(self) -> bool:
        """Whether the launcher, or a person, has shared a host's devices out already.

        With `srun --gpus-per-task=1` every task sees one, which is number 0 to each of them.
        """
        visible = self.get("CUDA_VISIBLE_DEVICES")
        return "JAX_LOCAL_DEVICE_IDS" in self or (visible != "" and "," not in visible)

    def at(self, host: Callable[[], str], port: Callable[[], str]) -> str:
        """HOST:PORT of process 0, derived as far as nobody has said it."""
        if self._address:
            return self._address
        return f"{host()}:{self.get(PORT) or port()}"


def _open_mpi(told: _Told) -> Place | None:
    """Open MPI 4 and 5: `mpirun` sets OMPI_COMM_WORLD_* for every rank.

    Version 4 also tells where it was started (OMPI_MCA_orte_hnp_uri, as
    "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"), which is taken for rank 0's host; version 5
    tells nothing of the kind.
    Source: https://docs.open-mpi.org/en/v5.0.x/tuning-apps/environment-var.html
    """
    if "OMPI_COMM_WORLD_SIZE" not in told and "OMPI_COMM_WORLD_RANK" not in told:
        return None
    name, advice = "Open MPI", "start every process with mpirun"
    count = told.number("OMPI_COMM_WORLD_SIZE", of=name, advice=advice)
    if count == 1:
        return Place("", 1, 0, name)
    uri = "OMPI_MCA_orte_hnp_uri"
    passed_on = f"start with `mpirun -x {ADDRESS}=HOST:PORT`, the host being that of rank 0"

    def launcher() -> str:
        found = re.search(
            r"tcp://(.+?)[,:]|tcp6://\[(.+?)[,\]]", told.need(uri, of=name, advice=passed_on)
        )
        if found is None:
            raise MarvelError(f"{uri}={told.get(uri)!r} holds no address: {passed_on}.")
        return next(group for group in found.groups() if group is not None)

    def port() -> str:
        job = told.need(uri, of=name, advice=passed_on).split(".", maxsplit=1)[0]
        # Its last 12 bits are always zero.
        return str(int(job) // 2**12 % 2**12 + _EPHEMERAL)

    rank = told.number("OMPI_COMM_WORLD_RANK", of=name, advice=advice)
    local = None
    if told.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1") != "1" and not told.has_its_devices():
        local = told.number("OMPI_COMM_WORLD_LOCAL_RANK", of=name, advice=advice)
    return Place(told.at(launcher, port), count, rank, name, local)


def _slurm(told: _Told) -> Place | None:
    """Slurm: `srun` sets SLURM_STEP_* and SLURM_PROCID for every task.

    A batch script and a shell of `salloc` are in a job too, but in none of its steps.
    Source: https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES
    """
    if "SLURM_JOB_ID" not in told:
        return None
    name, advice = "Slurm", "start every process with srun"
    if "SLURM_STEP_NODELIST" not in told:
        if "SLURM_PROCID" not in told or told.get("SLURM_NTASKS", "1") == "1":
            return None  # a shell in an allocation, or a batch script of one task
        told.need("SLURM_STEP_NODELIST", of=name, advice=advice)
    count = told.number("SLURM_NTASKS", of=name, advice=advice)
    if count == 1:
        return Place("", 1, 0, name)

    def first_node() -> str:
        return _first_of_node_list(told.get("SLURM_STEP_NODELIST"))

    def port() -> str:
        job = told.number("SLURM_JOB_ID", of=name, advice=advice)
        return str(job % 2**12 + _EPHEMERAL)

    # As "1(x4)": one task on each of four hosts.
    shared = re.fullmatch(r"1(\(x\d+\))?", told.get("SLURM_STEP_TASKS_PER_NODE", "1")) is None
    task = told.number("SLURM_PROCID", of=name, advice=advice)
    local = None
    if shared and not told.has_its_devices():
        local = told.number("SLURM_LOCALID", of=name, advice=advice)
    return Place(told.at(first_node, port), count, task, name, local)


def _first_of_node_list(nodes: str) -> str:
    """The name node001 in node001,host2 or node[001-015],host2 or node[001,007-015]."""
    head, bracket, rest = nodes.partition("[")
    if not bracket or "," in head:
        return head.split(",")[0]
    return head + re.split(r"[,\-\]]", rest)[0]


def _gke_tpu(told: _Told) -> Place | None:
    """TPU slices on GKE: its webhook sets TPU_WORKER_* in every pod, MEGASCALE_* for many slices.

    Source: https://cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice
    """
    hosts = "TPU_PROCESS_ADDRESSES" if "TPU_PROCESS_ADDRESSES" in told else "TPU_WORKER_HOSTNAMES"
    if hosts not in told:
        return None
    advice = "the pod must ask for google.com/tpu on a TPU node pool"
    workers = [one.split(":")[0] for one in told.get(hosts).split(",")]
    worker = told.number("TPU_WORKER_ID", of="GKE's TPUs", advice=advice)
    return _tpu(told, workers, worker, name="GKE TPU", setting=told.get)


def _tpu_vm(told: _Told, metadata: Metadata | None) -> Place | None:
    """TPU VMs: the metadata server knows the number of each worker and the hosts of all.

    Source: https://cloud.google.com/tpu/docs/managing-tpus-tpu-vm (attributes of the instance)
    """
    if metadata is None or "TPU_SKIP_MDS_QUERY" in told:
        return None
    worker = metadata("agent-worker-number")
    if worker is None:
        return None
    endpoints = metadata("worker-network-endpoints")
    if endpoints is None:
        raise MarvelError(
            "this TPU VM's metadata has agent-worker-number but no "
            "worker-network-endpoints: say --coordinator, --num-processes and "
            "--process-id, or --num-processes 1 for this worker alone."
        )
    # A host's name or address, or in an older form name:id:address.
    workers = [one.split(":")[-1] for one in endpoints.split(",")]
    settings = dict(re.findall(r"^(\w+): *'?(.*?)'?\s*$", metadata("tpu-env") or "", re.MULTILINE))

    def setting(name: str) -> str:
        return told.get(name) or settings.get(name, "")

    return _tpu(told, workers, int(worker), name="TPU VM", setting=setting)


def _tpu(
    told: _Told, workers: list[str], worker: int, *, name: str, setting: Callable[[str], str]
) -> Place:
    """One slice, or several that MEGASCALE_* join; processes are numbered slice by slice."""
    slices = int(setting("MEGASCALE_NUM_SLICES") or 1)
    slice_id = int(setting("MEGASCALE_SLICE_ID") or 0)
    count = len(workers) * slices
    if count == 1:
        return Place("", 1, 0, name)

    def first() -> str:
        return (setting("MEGASCALE_COORDINATOR_ADDRESS") or workers[0]).split(":")[0]

    address = told.at(first, lambda: _TPU_PORT)
    return Place(address, count, worker + slice_id * len(workers), name)


def _jobset(told: _Told) -> Place | None:
    """A JobSet of GPU pods, as `launch/gke_jobset_gpu.yaml` writes its environment.

    Kubernetes sets JOB_COMPLETION_INDEX in the pods of an Indexed Job; the manifest takes
    JOBSET_NAME and REPLICATED_JOB_NAME from the pod's annotations and says NNODES. Pod 0 is found
    by the name that JobSet's network gives it, JOBSET-REPLICATED_JOB-0-0.JOBSET.
    Source: https://jobset.sigs.k8s.io/docs/concepts/
    """
    if "JOBSET_NAME" not in told:
        return None
    name, advice = "JobSet", "take the `env` of launch/gke_jobset_gpu.yaml into the manifest"
    count = told.number("NNODES", of=name, advice=advice)
    index = told.number("JOB_COMPLETION_INDEX", of=name, advice=advice)
    if count == 1:
        return Place("", 1, 0, name)
    job, jobset = told.need("REPLICATED_JOB_NAME", of=name, advice=advice), told.get("JOBSET_NAME")
    address = told.at(lambda: f"{jobset}-{job}-0-0.{jobset}", lambda: _JOBSET_PORT)
    return Place(address, count, index, name)
