"""Stands where `marvel_jax.bench.accelerator_steps` does: steps that behave as a device may."""

import argparse
import json
import os
import sys
import time


def say(**message: object) -> None:
    print(json.dumps(message), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--platform")
    parser.add_argument("--device-kind")
    asked = parser.parse_args()
    name = asked.name
    if name == "machine" and "BLIND" in os.environ:
        sys.exit("no jax")
    if name == "machine":
        say(facts={
            "platform": "gpu", "device": "Fake 9000", "devices": 1, "processor": "p", "cores": 2,
            "date": "2026-01-01", "python": "3.12", "versions": {"jax": "0.11"}, "missing": ["PIL"],
        })  # fmt: skip
    elif name == "told":
        environment = os.environ.get("JAX_PLATFORMS")
        say(row={"platform": asked.platform, "kind": asked.device_kind, "quick": asked.quick})
        say(row={"jax_platforms": environment, "seconds": asked.seconds})
    elif name.startswith("rate"):
        ours, theirs = {"pairs/s": 50.0, "devices": 2}, {"pairs/s": 10.0, "devices": 1}
        say(row=theirs if name.endswith("torch") else ours)
        say(row={"pairs/s": 4.0})
    elif name == "wrong":
        say(row={"kernel": "a", "ok": True})
        say(row={"kernel": "b", "ok": False})
        say(row={"kernel": "c", "ok": True})
    elif name == "crash":
        say(row={"before": 1})
        os._exit(7)
    elif name == "hang":
        say(row={"pid": os.getpid()})
        time.sleep(60)
    else:
        say(**{name: "the reason"})


if __name__ == "__main__":
    main()
