"""Two hosts train together; one is killed in mid-run and started again; the weights must be those of a run left alone.

python benchmarks/two_hosts.py -o benchmarks/results/two_hosts.json

A host is a network namespace with a name, an address and a torchrun of its own, on CPUs; it takes root, iproute2 and unshare.
Where these are missing, or with --agents, it is a torchrun alone, and both meet on the loopback interface.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from engine.benchmark import describe_machine

ROOT = Path(__file__).parents[1]
HOSTS = {"alpha": "10.77.0.1", "beta": "10.77.0.2"}
QUICK = (
    "train.epochs=1",
    "train.log_steps=1",
    "train.checkpoint_steps=10",
    "train.ema=null",
    "data.num_workers=0",
    "device=cpu",
)
SETTINGS = (*QUICK, "eval.pictures=0", "eval.batch_size=1")


@contextmanager
def namespaces(folder: Path) -> Iterator[dict[str, list[str]]]:
    """The words before a command that run it on a host, by the host's name: namespaces joined by a virtual cable."""
    hosts = folder / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in HOSTS.items()))
    (folder / "resolv.conf").write_text("")  # no name server: whoever asks one would wait for its timeout
    spaces = {name: f"vertebra-{name}" for name in HOSTS}
    cables = {name: f"vt-{name}" for name in HOSTS}
    try:
        for space in spaces.values():
            _call("ip", "netns", "add", space)
        first, second = cables.values()
        _call("ip", "link", "add", first, "type", "veth", "peer", "name", second)
        for name, address in HOSTS.items():
            _call("ip", "link", "set", cables[name], "netns", spaces[name])
            _call("ip", "-n", spaces[name], "addr", "add", f"{address}/24", "dev", cables[name])
            _call("ip", "-n", spaces[name], "link", "set", "lo", "up")
            _call("ip", "-n", spaces[name], "link", "set", cables[name], "up")
        enter = (
            'hostname {} && mount --bind {} /etc/hosts && mount --bind {} /etc/resolv.conf && GLOO_SOCKET_IFNAME={} exec "$@"'
        )
        yield {
            name: [
                *("ip", "netns", "exec", spaces[name], "unshare", "--uts", "--mount", "sh", "-c"),
                *(enter.format(name, hosts, folder / "resolv.conf", cables[name]), "host"),
            ]
            for name in HOSTS
        }
    finally:
        for space in spaces.values():
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)


def can_have_namespaces() -> bool:
    """Whether this user may make network namespaces here."""
    if not (shutil.which("ip") and shutil.which("unshare")):
        return False
    with tempfile.TemporaryDirectory() as folder:
        try:
            with namespaces(Path(folder)) as prefixes:
                _call(*prefixes["alpha"], "true")
        except subprocess.CalledProcessError:
            return False
    return True


class Host:
    """A host, and the torchrun on it."""

    def __init__(self, name: str, prefix: Sequence[str], endpoint: str, log: Path) -> None:
        self.name, self.prefix, self.endpoint, self.log = name, list(prefix), endpoint, log
        self.agent: subprocess.Popen[bytes] | None = None

    def start(self, output_dir: Path) -> None:
        """Start torchrun with the training tool, by the same command each time: a run finds out by itself that it goes on."""
        elastic = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--monitor-interval=0.5"]
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={self.endpoint}", "--rdzv-id=two_hosts"]
        tool = [
            str(ROOT / "tools" / "train_det.py"),
            str(ROOT / "configs" / "quickstart.yaml"),
            *SETTINGS,
            f"output_dir={output_dir}",
        ]
        # Without the second, a host that is started anew waits for an address that no one writes again.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with self.log.open("ab") as log:
            self.agent = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "torch.distributed.run", *elastic, *meeting, *tool],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self) -> list[int]:
        """The process ids below torchrun's, its own first, the training process last."""
        assert self.agent is not None
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                except OSError:  # it has ended meanwhile
                    continue
        found = [self.agent.pid]
        for process in found:
            found += [child for child, parent in parents.items() if parent == process]
        return found

    def kill(self, *, worker_only: bool = False) -> None:
        """SIGKILL to all processes of the host, or to its training process."""
        processes = self.processes()
        for process in processes[-1:] if worker_only else processes:
            os.kill(process, signal.SIGKILL)
        if not worker_only:
            assert self.agent is not None
            self.agent.wait()


def run_job(
    folder: Path, prefixes: dict[str, list[str]], *, kill: str | None, worker_only: bool, at_step: int, seconds: float = 600
) -> dict[str, Any]:
    """Train to the end, with a kill at a step of the whole host or of its training process; gives what came of it."""
    run, log = folder / "run", folder / "log"
    folder.mkdir()
    endpoint = "alpha:29400" if prefixes["alpha"] else f"127.0.0.1:{_free_port()}"
    hosts = {name: Host(name, prefixes[name], endpoint, log) for name in HOSTS}
    began = time.monotonic()
    try:
        for host in hosts.values():
            host.start(run)
        if kill is not None:
            while _last_step(run) < at_step:
                assert time.monotonic() - began < seconds, log.read_text()
                assert all(host.agent and host.agent.poll() is None for host in hosts.values()), log.read_text()
                time.sleep(0.05)
            hosts[kill].kill(worker_only=worker_only)
            if not worker_only:
                time.sleep(1)
                hosts[kill].start(run)
        statuses = [host.agent.wait(seconds) for host in hosts.values() if host.agent is not None]
    finally:
        for host in hosts.values():
            if host.agent is not None and host.agent.poll() is None:
                host.kill()
    text = log.read_text()
    assert statuses == [0, 0], text
    resumed = [line for line in text.splitlines() if line.startswith("resumed at step")]
    return {"seconds": round(time.monotonic() - began, 1), "resumed": resumed, "steps": _last_step(run)}


def compare(whole: Path, other: Path) -> dict[str, bool]:
    """Whether two runs ended in the same weights, optimizer state, last loss and results, to the bit."""
    first, second = (torch.load(path / "last.pt", weights_only=True) for path in (whole, other))
    losses = [[line["loss"] for line in _metrics(path) if line["kind"] == "train"][-1] for path in (whole, other)]
    results = [(path / "eval" / "segm_results.json").read_bytes() for path in (whole, other)]
    return {
        "same weights": _equal(first["model"], second["model"]),
        "same optimizer": _equal(first["training"]["optimizer"], second["training"]["optimizer"]),
        "same last loss": losses[0] == losses[1],
        "same results file": results[0] == results[1],
    }


def evaluate_alone(run: Path, folder: Path) -> bool:
    """Whether one process, with the weights of the last epoch, writes the results file that the two hosts wrote."""
    command = [sys.executable, str(ROOT / "tools" / "eval_det.py"), str(run / "best.pt"), "-o", str(folder)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return (folder / "segm_results.json").read_bytes() == (run / "eval" / "segm_results.json").read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", action="store_true", help="no namespaces: two torchruns on the loopback interface")
    parser.add_argument("--at-step", type=int, default=45, help="of 90")
    parser.add_argument("-o", "--output", metavar="FILE")
    args = parser.parse_args()
    in_namespaces = not args.agents and can_have_namespaces()
    where = "network namespaces" if in_namespaces else "two torchruns on the loopback interface"
    result: dict[str, Any] = {"machine": describe_machine(torch.device("cpu")), "hosts": where, "killed at step": args.at_step}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loopback: dict[str, list[str]] = {host: [] for host in HOSTS}
        with namespaces(folder) if in_namespaces else nullcontext(loopback) as prefixes:
            result["left alone"] = run_job(folder / "whole", prefixes, kill=None, worker_only=False, at_step=0)
            kills = {"host beta killed": ("beta", False), "worker of beta killed": ("beta", True)}
            kills["worker of alpha killed"] = ("alpha", True)
            for title, (host, worker_only) in kills.items():
                case = folder / title.replace(" ", "_")
                result[title] = run_job(case, prefixes, kill=host, worker_only=worker_only, at_step=args.at_step)
                result[title] |= compare(folder / "whole" / "run", case / "run")
                print(title, result[title], flush=True)
        result["evaluation as by one process"] = evaluate_alone(folder / "whole" / "run", folder / "alone")
    text = json.dumps(result, indent=2)
    print(text)
    if args.output:
        Path(args.output).write_text(text + "\n")


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _metrics(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    whole_lines = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole_lines.splitlines()]


def _last_step(run: Path) -> int:
    return max((line["step"] for line in _metrics(run)), default=0)


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_equal(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(_equal, first, second))
    return bool(first == second)


if __name__ == "__main__":
    main()
