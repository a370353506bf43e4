"""Compare the bits of runs of two versions of fedvtc-edge.

    python same_bits.py record --python OLD/bin/python --out old
    python same_bits.py record --python NEW/bin/python --out new
    python same_bits.py compare old/bits.json new/bits.json

``record`` runs a fixed list of small federations through the command line; ``bits.json`` has
digests of the tensors and files that each left, and its figures. Compare records of one machine
and one set of libraries only.

Noise of privacy and a run's number come from the system's entropy. Runs get a repeatable
``os.urandom`` before anything of the project is imported, so that no name inside the project
matters. Messages under masks are never the same, since a library makes their keys: only their
sizes are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import safe_open

SMALL = """seed=3 engine.device=cpu data.limit=240 data.test_limit=100 clients.count=3
    clients.architectures=["mlp","lenet"] method.rounds=3 method.latent=8 method.anchor=12
    training.epochs=1 training.decoder_steps=3 training.finetune_steps=3 training.finetune_from=2
    training.finetune_last=3 privacy.delta=1e-12 privacy.collusion=0"""

# What ends in -killed is killed after a round and resumed; flower- is --engine flower.
TABLE = """\
covariance
covariance-killed
diagonal-networks   method.moments=diagonal clients.architectures=["resnet8","mobilenet"]
float16-plain       transport.precision=float16 transport.seal=false data.partition=iid
trimmed-shards      server.trim=0.34 server.minimum_contributors=2 data.partition=shards
bfloat16-ablated    engine.precision=bfloat16 method.ablate=["dm","kl"] data.image_size=12
features-cohort     method.share=features clients.count=4 clients.cohort=0.5
decoder             method.share=features+decoder
masked-covariance   transport.masking=true
masked-features     transport.masking=true method.share=features clients.count=5
private-covariance  privacy.mode=anchored
private-masked      privacy.mode=anchored method.moments=diagonal transport.masking=true
example-covariance  privacy.mode=example privacy.delta=1e-5
example-masked      privacy.mode=example method.share=features transport.masking=true
example-killed      privacy.mode=example method.share=features+decoder
client-diagonal     privacy.mode=client method.moments=diagonal
client-plain        privacy.mode=client method.share=features transport.seal=false
client-masked       privacy.mode=client transport.masking=true clients.count=5 privacy.collusion=0.2
devices-features    method.share=features clients.count=6 clients.cohort=0.8
    clients.devices=["phone.toml","rpi4","phone.toml","esp32-s3"]
devices-killed      transport.masking=true clients.count=5 clients.devices=["phone.toml","rpi4"]
local               method.name=local
local-matched       method.name=local-matched data.evaluate=validation
fedproto            method.name=fedproto clients.count=4 clients.cohort=0.5
centralised         method.name=centralised
flower-decoder      method.share=features+decoder method.rounds=2
flower-masked       transport.masking=true method.rounds=1"""
CASES = {name: own for name, *own in map(str.split, TABLE.replace("\n ", " ").splitlines())}

# Made up, to miss rounds. It is named by a relative path, since settings are part of all uploads.
PHONE = """cores=4 memory_total_mb=4096 memory_usable_mb=2048 memory_gbps=10 fp32_gflops=9
    efficiency=0.5 torch_overhead_us=30 network_up_mbps=0.1 network_down_mbps=1 availability=0.9
    dropout=0.1 deadline_s=1"""
HEAD = 'name = "phone"\ntitle = "Made up"\narch = "any"\nruntime = "onnxruntime"\n'
FIGURE = '{} = {{ value = {}, kind = "assumed", source = "made up" }}\n'

TOLD = ("accuracy", "upload_bytes", "epsilon", "seconds_virtual", "rounds_missed")
CLOCKS = rb'"(?:seconds|samples_per_second)": [^,}]+'
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
COMMAND = "#!{}\nimport sys\nfrom {} import {} as go\nsys.exit(go())\n"
REPEATABLE = """import hashlib, os, random, runpy
def urandom(size, drawn={}):
    drawn[size] = drawn.get(size, 0) + 1  # by size: other draws may come in between
    return hashlib.shake_256(f"{size} {drawn[size]}".encode()).digest(size)
os.urandom = random._urandom = urandom
runpy.run_module("fedvtc_edge", run_name="__main__", alter_sys=True)
"""


def record(python: str, out: Path, names: list[str]) -> int:
    """Play cases one after another and write ``out/bits.json``; 1 where a run failed."""
    path = os.pathsep.join([flower_commands(python, out), os.environ.get("PATH", os.defpath)])
    figures = [FIGURE.format(*word.split("=")) for word in PHONE.split()]
    (out / "phone.toml").write_text(HEAD + "".join(figures))
    environment = {**os.environ, **THREADS, "PATH": path}
    bits: dict[str, dict[str, Any]] = {}
    for name in names:
        begun = time.monotonic()
        try:
            play(name, python, out, environment)
            bits[name] = bits_of(out / name)
        except (RuntimeError, OSError, LookupError, ValueError) as error:
            bits[name] = {"failed": str(error)}
        took, told = time.monotonic() - begun, bits[name].get("failed", "done")
        print(f"{name:19} {took:5.1f} s, {told}", flush=True)
    (out / "bits.json").write_text(json.dumps(bits, indent=1) + "\n")
    return int(any("failed" in parts for parts in bits.values()))


def play(name: str, python: str, out: Path, environment: dict[str, str]) -> None:
    """Run one case in ``out/name``, which is made anew."""
    run, settings = out / name, [*SMALL.split(), *CASES[name]]
    shutil.rmtree(run, ignore_errors=True)
    words = [python, "-c", REPEATABLE, "run", "--quiet"]
    more = ["--out", name, *(word for setting in settings for word in ("--set", setting))]
    more += ["--engine", "flower"] if name.startswith("flower-") else []
    with (out / f"{name}.log").open("wb") as log:
        start = partial(subprocess.Popen, cwd=out, env=environment, stdout=log, stderr=log)
        process = start([*words, *more])
        if name.endswith("-killed"):
            while process.poll() is None and not (run / "metrics.jsonl").exists():
                time.sleep(0.002)
            process.kill()
            if process.wait() != -9 or (run / "summary.json").exists():
                raise RuntimeError(f"it ended before it could be killed, see {log.name}")
            process = start([*words, "--resume", name])
        if process.wait():
            raise RuntimeError(f"exit code {process.returncode}, see {log.name}")


def flower_commands(python: str, out: Path) -> str:
    """A folder with Flower's commands for ``python``, which may lack them beside it."""
    ask = "from importlib.metadata import entry_points as e\n"
    ask += "for c in e(group='console_scripts'): print(c.name, c.module, c.attr)"
    told = subprocess.check_output([python, "-c", ask], text=True).splitlines()  # noqa: S603
    folder = out.absolute() / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    for name, module, attribute in map(str.split, told):
        if name.startswith(("flwr", "flower")):
            (folder / name).write_text(COMMAND.format(python, module, attribute))
            (folder / name).chmod(0o755)
    return str(folder)


def bits_of(run: Path) -> dict[str, Any]:
    """Results of a finished run: digests of tensors and files, and the figures of its summary."""
    parts: dict[str, Any] = {}
    for path in sorted([*run.glob("statistics.safetensors"), *run.glob("clients/*/*.safetensors")]):
        with safe_open(path, framework="numpy") as file:
            for key in sorted(file.keys()):
                tensor = file.get_tensor(key)
                digest = sha256(f"{tensor.dtype}{tensor.shape}".encode() + tensor.tobytes())
                parts[f"{path.relative_to(run).with_suffix('')}/{key}"] = digest.hexdigest()
    masked = [sha256(path.read_bytes()) for path in run.glob("server/**/*-mask*")]
    varying = b"|".join([CLOCKS, *(digest.hexdigest().encode() for digest in masked)])
    for pattern in ("server/**/*.*", "clients/*/*.release", "*.jsonl", "ledger.json"):
        for path in sorted(run.glob(pattern)):
            data, name = path.read_bytes(), str(path.relative_to(run))
            data = re.sub(varying, b"", data) if path.suffix in (".jsonl", ".json") else data
            parts[name] = len(data) if "-mask" in name else sha256(data).hexdigest()
    summary = json.loads((run / "summary.json").read_text())
    for where, figures in (("all", summary), *((one["id"], one) for one in summary["clients"])):
        parts |= {f"summary/{where}/{key}": figures[key] for key in figures if key.startswith(TOLD)}
    return parts


def compare(records: list[Path], names: list[str]) -> int:
    """Print a row per run; 1 where any differs, failed or is missing."""
    old, new = (json.loads(path.read_text()) for path in records)
    different = 0
    for name in names:
        left, right = old.get(name, {}), new.get(name, {})
        parts = [key for key in left | right if left.get(key, ...) != right.get(key, ...)]
        same = left and not parts and "failed" not in left
        wrong = f"{len(parts)} of {len(left | right)} parts differ: {', '.join(parts[:5])}"
        print(f"{name:19} {f'same, {len(left)} parts' if same else wrong}")
        different += not same
    print(f"{len(names) - different} of {len(names)} runs are the same")
    return int(different > 0)


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Whether two versions make the same bits.")
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run all cases and write OUT/bits.json")
    recording.add_argument("--python", required=True, type=os.path.abspath, help="that runs them")
    recording.add_argument("--out", type=Path, required=True, help="folder for runs and bits")
    comparing = commands.add_parser("compare", help="compare two records")
    comparing.add_argument("records", type=Path, nargs=2, metavar="BITS")
    for command in (recording, comparing):
        command.add_argument("--only", nargs="+", metavar="NAME", choices=CASES, default=CASES)
    given = parser.parse_args()
    if given.command == "record":
        return record(given.python, given.out, list(given.only))
    return compare(given.records, list(given.only))


if __name__ == "__main__":
    sys.exit(main())
