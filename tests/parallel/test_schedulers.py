"""A process finds its place in the environment that its scheduler sets, as JAX would."""

import os

import pytest
from jax._src.clusters import (
    GceTpuCluster,
    GkeTpuCluster,
    OmpiCluster,
    SlurmCluster,
    cloud_tpu_cluster,
)

from marvel_jax.errors import MarvelError
from marvel_jax.parallel.schedulers import detect

# As `srun --nodes=4 --ntasks-per-node=1` sets it on the third host (Slurm 23.11).
SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_JOB_NODELIST": "gpu[07-10]",
    "SLURM_NTASKS": "4",
    "SLURM_NPROCS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-10]",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
}
# As `mpirun -np 4 --map-by ppr:1:node` of Open MPI 4.1 sets it.
OPEN_MPI_4 = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1,10.108.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "OMPI_COMM_WORLD_NODE_RANK": "0",
    "OMPI_UNIVERSE_SIZE": "4",
}
OPEN_MPI_5 = {name: value for name, value in OPEN_MPI_4.items() if "orte" not in name} | {
    "OMPI_VERSION": "5.0.3",
    "PMIX_SERVER_URI41": "prterun-host-1@0.0;tcp4://10.96.0.1:34911",
}
# Of the fourth of eight tasks of a host, the second of two.
EIGHT = {"SLURM_STEP_TASKS_PER_NODE": "8(x4)", "SLURM_LOCALID": "3"}
TWO = {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
# As GKE's webhook sets it in the second pod of the second of two v5e-16 slices.
GKE_TPU = {
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "TPU_WORKER_ID": "1",
    "TPU_WORKER_HOSTNAMES": "run-slice-1-0.run,run-slice-1-1.run,run-slice-1-2.run,"
    "run-slice-1-3.run",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "run-slice-0-0.run:8476",
    "JOB_COMPLETION_INDEX": "1",
}
GKE_TPU_ONE_SLICE = {
    name: value for name, value in GKE_TPU.items() if not name.startswith("MEGASCALE")
}
# As launch/gke_jobset_gpu.yaml and Kubernetes set it together.
JOBSET = {
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "JOBSET_NAME": "umarvel",
    "REPLICATED_JOB_NAME": "host",
    "JOB_COMPLETION_INDEX": "5",
    "NNODES": "8",
}


def test_a_plain_shell_is_told_nothing():
    assert detect({"PATH": "/bin", "HOME": "/root"}) is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (SLURM, ("gpu07:61586", 4, 2, "Slurm")),
        (OPEN_MPI_4, ("10.96.0.1:62624", 4, 3, "Open MPI")),
        (GKE_TPU, ("run-slice-0-0.run:8482", 8, 5, "GKE TPU")),
        (GKE_TPU_ONE_SLICE, ("run-slice-1-0.run:8482", 4, 1, "GKE TPU")),
        (JOBSET, ("umarvel-host-0-0.umarvel:55527", 8, 5, "JobSet")),
    ],
    ids=lambda value: value[3] if isinstance(value, tuple) else None,
)
def test_each_scheduler_gives_a_place(environment, expected):
    place = detect(environment)
    assert place[:4] == expected
    assert place.local_device is None  # all devices of the host


@pytest.mark.parametrize(
    ("cluster", "environment"),
    [
        (SlurmCluster, SLURM),
        (SlurmCluster, SLURM | {"SLURM_STEP_NODELIST": "login1"}),
        (SlurmCluster, SLURM | {"SLURM_STEP_NODELIST": "node001,host2"}),
        (SlurmCluster, SLURM | {"SLURM_STEP_NODELIST": "node[001,007-015],host2"}),
        (SlurmCluster, SLURM | {"SLURM_JOB_ID": "9999999"}),
        (OmpiCluster, OPEN_MPI_4),
        (
            OmpiCluster,
            OPEN_MPI_4
            | {"OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp6://[fe80::b9b,2620:10d::2]:43370"},
        ),
        (GkeTpuCluster, GKE_TPU_ONE_SLICE),
        (GkeTpuCluster, GKE_TPU),
        (GkeTpuCluster, GKE_TPU_ONE_SLICE | {"TPU_PROCESS_ADDRESSES": "a:8476,b:8476"}),
    ],
)
@pytest.mark.parametrize("port", [None, "1234"])
def test_what_jax_derives_itself_is_the_same(monkeypatch, cluster, environment, port):
    environment = environment | ({"JAX_COORDINATOR_PORT": port} if port else {})
    for name in os.environ.keys() & {"JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_PORT"}:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cloud_tpu_cluster, "get_tpu_env_value", environment.get)
    monkeypatch.setattr(cluster, "wait_for_coordinator", lambda *_: None, raising=False)
    address = cluster.get_coordinator_address(timeout_secs=1, override_coordinator_port=port)
    found = detect(environment)
    assert found[:3] == (address, cluster.get_process_count(), cluster.get_process_id())


@pytest.mark.parametrize("endpoints", ["10.0.0.2,10.0.0.3", "a:0:10.0.0.2,b:1:10.0.0.3"])
@pytest.mark.parametrize(
    "settings", ["", "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\nZONE: 'us-east5-a'"]
)
def test_a_tpu_vm_asks_its_metadata_as_jax_does(monkeypatch, endpoints, settings):
    attributes = {
        "agent-worker-number": "1",
        "worker-network-endpoints": endpoints,
        "tpu-env": settings,
    }
    found = detect({}, tpu_metadata=attributes.get)
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: (attributes[key], 200))
    monkeypatch.setattr(GceTpuCluster, "wait_for_coordinator", lambda *_: None)
    address = GceTpuCluster.get_coordinator_address(1, None)
    count, number = GceTpuCluster.get_process_count(), GceTpuCluster.get_process_id()
    assert found == (address, count, number, "TPU VM", None)
    assert detect({"JAX_PLATFORMS": "cpu"}, tpu_metadata=attributes.get) is None
    assert detect({}, tpu_metadata=lambda name: None) is None


def test_a_node_list_of_one_number_is_that_node():
    assert detect(SLURM | {"SLURM_STEP_NODELIST": "node[9]"}).coordinator == "node9:61586"


@pytest.mark.parametrize(
    "environment",
    [
        SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        OPEN_MPI_4 | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        OPEN_MPI_5 | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        JOBSET | {"NNODES": "1", "JOB_COMPLETION_INDEX": "0"},
        {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"},
    ],
)
def test_one_task_is_one_process(environment):
    assert detect(environment).num_processes == 1


def test_a_shell_in_an_allocation_starts_nothing():
    salloc = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "gpu[07-10]"}
    assert detect(salloc) is None
    assert detect(salloc | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None


def test_an_address_of_the_environment_goes_before_a_derived_one():
    told = SLURM | {"JAX_COORDINATOR_ADDRESS": "head:99"}
    assert detect(told).coordinator == "head:99"
    assert detect(told, coordinator="flag:98").coordinator == "flag:98"


@pytest.mark.parametrize(
    ("environment", "device"),
    [
        (SLURM | EIGHT, 3),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_LOCALID": "1"}, 1),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1"}, None),
        # The launcher has done it: each sees one, which is number 0.
        (SLURM | EIGHT | {"CUDA_VISIBLE_DEVICES": "0"}, None),
        (SLURM | EIGHT | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, 3),
        (SLURM | EIGHT | {"JAX_LOCAL_DEVICE_IDS": "2,3"}, None),
        (OPEN_MPI_4 | TWO | {"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}, None),
        (OPEN_MPI_4 | TWO, 1),
    ],
)
def test_several_tasks_of_a_host_share_its_devices_out(environment, device):
    assert detect(environment).local_device == device


@pytest.mark.parametrize(
    ("environment", "missing", "message"),
    [
        (SLURM, "SLURM_PROCID", "SLURM_PROCID is not set.*of Slurm.*srun"),
        (SLURM, "SLURM_NTASKS", "SLURM_NTASKS is not set"),
        (SLURM, "SLURM_STEP_NODELIST", "SLURM_STEP_NODELIST is not set.*srun"),
        (OPEN_MPI_4, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_RANK is not set.*mpirun"),
        (OPEN_MPI_5, "", "OMPI_MCA_orte_hnp_uri is not set.*mpirun -x JAX_COORDINATOR_ADDRESS"),
        (GKE_TPU, "TPU_WORKER_ID", "TPU_WORKER_ID is not set"),
        (JOBSET, "NNODES", "NNODES is not set.*gke_jobset_gpu.yaml.*--coordinator HOST:PORT"),
        (JOBSET, "JOB_COMPLETION_INDEX", "JOB_COMPLETION_INDEX is not set"),
        (JOBSET, "REPLICATED_JOB_NAME", "REPLICATED_JOB_NAME is not set"),
        (JOBSET | {"NNODES": "eight"}, "", "NNODES='eight' is not a number"),
    ],
)
def test_half_an_environment_names_what_is_missing(environment, missing, message):
    given = {name: value for name, value in environment.items() if name != missing}
    with pytest.raises(MarvelError, match=message):
        detect(given)


def test_open_mpi_5_needs_an_address_only():
    told = OPEN_MPI_5 | {"JAX_COORDINATOR_ADDRESS": "head:99"}
    assert detect(told)[:3] == ("head:99", 4, 3)
