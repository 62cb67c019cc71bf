"""The GKE manifests are JobSets that Kubernetes would take, and that marvel finds its place in."""

import math
import runpy
from typing import Any

import pytest
import yaml

from marvel_jax.parallel.schedulers import detect
from tests.training.runs import ROOT

# The fields of JobSet v1alpha2, Job v1 and Pod v1 that may be used here, as documented at
# https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/ and
# https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/
FIELDS = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "metadata": {"name", "namespace", "annotations", "labels"},
    "spec": {
        "failurePolicy",
        "network",
        "replicatedJobs",
        "startupPolicy",
        "successPolicy",
        "suspend",
        "ttlSecondsAfterFinished",
    },
    "spec.failurePolicy": {"maxRestarts", "restartStrategy", "rules"},
    "spec.network": {"enableDNSHostnames", "publishNotReadyAddresses", "subdomain"},
    "spec.replicatedJobs": {"name", "replicas", "template", "dependsOn", "groupName"},
    "spec.replicatedJobs.template": {"metadata", "spec"},
    "spec.replicatedJobs.template.spec": {
        "activeDeadlineSeconds",
        "backoffLimit",
        "completionMode",
        "completions",
        "parallelism",
        "podFailurePolicy",
        "template",
    },
    "spec.replicatedJobs.template.spec.template": {"metadata", "spec"},
    "spec.replicatedJobs.template.spec.template.spec": {
        "affinity",
        "containers",
        "dnsPolicy",
        "hostNetwork",
        "nodeSelector",
        "restartPolicy",
        "securityContext",
        "serviceAccountName",
        "terminationGracePeriodSeconds",
        "tolerations",
        "volumes",
    },
    "spec.replicatedJobs.template.spec.template.spec.containers": {
        "args",
        "command",
        "env",
        "image",
        "name",
        "ports",
        "resources",
        "volumeMounts",
    },
    "spec.replicatedJobs.template.spec.template.spec.containers.resources": {"limits", "requests"},
    "spec.replicatedJobs.template.spec.template.spec.containers.ports": {"containerPort", "name"},
    "spec.replicatedJobs.template.spec.template.spec.containers.env": {
        "name",
        "value",
        "valueFrom",
    },
    "spec.replicatedJobs.template.spec.template.spec.containers.volumeMounts": {
        "mountPath",
        "name",
    },
}
GPU, TPU = "gke_jobset_gpu.yaml", "gke_jobset_tpu.yaml"


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "launch" / name).read_text())


def job(name: str) -> dict[str, Any]:
    (only,) = manifest(name)["spec"]["replicatedJobs"]
    return only


def pod(name: str) -> dict[str, Any]:
    return job(name)["template"]["spec"]["template"]["spec"]


def container(name: str) -> dict[str, Any]:
    (only,) = pod(name)["containers"]
    return only


@pytest.mark.parametrize("name", [GPU, TPU])
def test_every_field_is_a_documented_one(name):
    seen = set()

    def visit(value: Any, path: str) -> None:
        for one in value if isinstance(value, list) else [value]:
            if path in FIELDS:
                seen.add(path)
                assert set(one) <= FIELDS[path], path
            if isinstance(one, dict):
                for field, below in one.items():
                    visit(below, f"{path}.{field}".lstrip("."))

    visit(manifest(name), "")
    assert len(seen) > len(FIELDS) - 2  # or the table is of something else
    assert manifest(name)["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert manifest(name)["kind"] == "JobSet"


@pytest.mark.parametrize("name", [GPU, TPU])
def test_a_run_is_whole_or_not_at_all_and_may_save_before_it_goes(name):
    spec = job(name)["template"]["spec"]
    assert spec["completionMode"] == "Indexed" and spec["backoffLimit"] == 0
    assert spec["completions"] == spec["parallelism"]
    assert pod(name)["restartPolicy"] == "Never"
    assert pod(name)["terminationGracePeriodSeconds"] >= 120
    assert pod(name)["securityContext"]["runAsUser"] == 1000  # of the container files
    policy = manifest(name)["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0 and policy["restartStrategy"] == "BlockingRecreate"


@pytest.mark.parametrize("name", [GPU, TPU])
def test_mounts_have_volumes_and_the_workdir_is_on_the_shared_one(name):
    volumes = {volume["name"]: volume for volume in pod(name)["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container(name)["volumeMounts"]}
    assert mounts.keys() == volumes.keys()
    (shared,) = (mounts[key] for key in volumes if "persistentVolumeClaim" in volumes[key])
    args = container(name)["args"]
    assert args[args.index("--workdir") + 1].startswith(f"{shared}/")
    assert args[0] == "train" and (ROOT / args[1]).is_file()


def test_a_gpu_pod_finds_its_place():
    spec, run = job(GPU), manifest(GPU)["metadata"]["name"]
    hosts = spec["template"]["spec"]["completions"]
    told = {"JOB_COMPLETION_INDEX": str(hosts - 1)}  # Kubernetes sets it
    annotations = {"jobset-name": run, "replicatedjob-name": spec["name"]}  # JobSet does
    for variable in container(GPU)["env"]:
        if "value" in variable:
            told[variable["name"]] = variable["value"]
        else:
            path = variable["valueFrom"]["fieldRef"]["fieldPath"]
            told[variable["name"]] = annotations[path.split("/")[1].removesuffix("']")]
    place = detect(told)
    assert (place.num_processes, place.process_id) == (hosts, hosts - 1)
    host, port = place.coordinator.split(":")
    assert host == f"{run}-{spec['name']}-0-0.{run}"  # the name of JobSet's network
    assert int(port) in [one["containerPort"] for one in container(GPU)["ports"]]
    assert container(GPU)["resources"]["limits"]["nvidia.com/gpu"] == 8


def test_a_tpu_slice_has_as_many_chips_as_its_hosts():
    topology = pod(TPU)["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(map(int, topology.split("x")))
    hosts = job(TPU)["template"]["spec"]["completions"]
    assert chips == hosts * container(TPU)["resources"]["limits"]["google.com/tpu"]
    names = ",".join(f"umarvel-slice-0-{number}.umarvel" for number in range(hosts))
    place = detect({"TPU_WORKER_ID": "3", "TPU_WORKER_HOSTNAMES": names})
    assert (place.num_processes, place.process_id) == (hosts, 3)
    ports = [str(one["containerPort"]) for one in container(TPU)["ports"]]
    assert place.coordinator.split(":")[1] in ports


@pytest.mark.parametrize(("name", "resource"), [(GPU, "nvidia.com/gpu"), (TPU, "google.com/tpu")])
def test_the_layout_is_one_of_the_config_for_as_many_devices(name, resource):
    args = container(name)["args"]
    layout = args[args.index("--layout") + 1]
    assert layout in runpy.run_path(str(ROOT / args[1]))["layouts"]
    devices = math.prod(map(int, layout.rpartition(":")[2].split("x")))
    hosts = job(name)["template"]["spec"]["completions"]
    assert devices == hosts * container(name)["resources"]["limits"][resource]
