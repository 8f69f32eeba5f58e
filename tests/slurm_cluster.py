"""A private real Slurm on this machine, with several virtual nodes, for tests of what jobs really do."""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

PACKAGES = "slurmctld slurmd slurm-client munge"
PLUGIN_PACKAGES = "gcc libc6-dev libslurm-dev"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
CPUS = 32
"""Of each virtual node; Slurm does not look at what the machine has."""
FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"})
"""How a job ends for good; PREEMPTED and NODE_FAIL are on the way back into the queue."""

CONFIGURATION = Path(__file__).with_name("slurm") / "slurm.conf.in"


class MissingPrograms(Exception):
    """Slurm is not installed here; says what to install."""


class SlurmCluster:
    """Partition `main` (default, requeues what it must make room for) and `hi`, which takes its nodes.

    Args:
        folder: for the daemons' files; its path must be short, as sockets lie in it.
        nodes: how many virtual nodes (n1, n2, ...), with 32 CPUs and 8 GPU names each, behind which nothing is.
        plugin: shared object of a SPANK plugin.
        kill_wait: seconds between a job's TERM and its KILL.
        node_timeout: seconds after which a silent node counts as dead.
    """

    def __init__(
        self, folder: Path, nodes: int = 2, plugin: Path | None = None, kill_wait: int = 4, node_timeout: int = 8
    ) -> None:
        self.folder = folder
        self.node_names = [f"n{i}" for i in range(1, nodes + 1)]
        self.plugin = plugin
        self._settings = {"kill_wait": kill_wait, "node_timeout": node_timeout}
        self._daemons: dict[str, subprocess.Popen] = {}
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SRUN"))}
        self.environment = {**kept, "SLURM_CONF": f"{folder}/slurm.conf", "PATH": kept.get("PATH", "") + ":/usr/sbin"}
        missing = [program for program in PROGRAMS if not shutil.which(program, path=self.environment["PATH"])]
        if missing:
            raise MissingPrograms(f"no {', '.join(missing)} here; Debian: apt-get install {PACKAGES}")

    def start(self) -> None:
        """Start the daemons and wait until every node is idle."""
        assert len(f"{self.folder}/spool/n1/n1_1234567.4294967291") < 104, f"{self.folder}: too long for sockets"
        self._configure()
        munge = ["munged", "--foreground", "--force", f"--socket={self.folder}/munge.sock"]
        munge += [f"--{kind}-file={self.folder}/munge.{kind}" for kind in ("key", "pid", "seed", "log")]
        self._start("munged", munge)
        self._until(lambda: (self.folder / "munge.sock").exists(), "munged", 10)
        self._start("slurmctld", ["slurmctld", "-D", "-c"])
        for name in self.node_names:
            self._start(name, ["slurmd", "-D", "-N", name])
        self._until(lambda: set(self.nodes().values()) == {"idle"}, "idle nodes", 30)

    def _configure(self) -> None:
        for name in ("state", "spool", "log", "devices"):
            (self.folder / name).mkdir()
        (self.folder / "munge.key").write_bytes(os.urandom(1024))
        (self.folder / "munge.key").chmod(0o600)
        ports = _free_ports(1 + len(self.node_names))
        first_job = random.SystemRandom().randrange(1000, 60000)
        text = CONFIGURATION.read_text().format(
            folder=self.folder, port=ports[0], user=psutil.Process().username(), first_job=first_job, **self._settings
        )
        devices = f"{self.folder}/devices/nvidia"
        for i in range(8):  # so that CUDA_VISIBLE_DEVICES is set as for real ones
            Path(f"{devices}{i}").symlink_to("/dev/null")
        gpus = []
        for name, port in zip(self.node_names, ports[1:], strict=True):
            (self.folder / "spool" / name).mkdir()
            text += f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} Gres=gpu:8 "
            text += "RealMemory=4000 State=UNKNOWN\n"
            gpus.append(f"NodeName={name} AutoDetect=off Name=gpu Flags=nvidia_gpu_env File={devices}[0-7]\n")
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text("".join(gpus))
        (self.folder / "plugstack.conf").write_text(f"required {self.plugin}\n" if self.plugin else "")

    def _start(self, name: str, command: list[str]) -> None:
        if shutil.which("setpriv"):  # whatever happens to this process, no daemon outlives it
            command = ["setpriv", "--pdeathsig", "TERM", *command]
        with (self.folder / "log" / f"{name}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def _until(self, ready: Callable[[], bool], what: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not ready():
            if time.monotonic() > deadline:
                raise RuntimeError(f"no {what} after {timeout} s\n{self.daemon_logs()}")
            time.sleep(0.1)

    def daemon_logs(self, lines: int = 15) -> str:
        """The last lines of every daemon's log."""
        files = sorted([*(self.folder / "log").iterdir(), self.folder / "munge.log"])
        parts = [(file.name, file.read_text(errors="replace").splitlines()) for file in files if file.exists()]
        return "\n".join("\n".join([f"--- {name}", *text[-lines:]]) for name, text in parts if text)

    def stop(self) -> None:
        """End all jobs and daemons; nothing of this cluster runs afterwards."""
        if "slurmctld" in self._daemons:
            subprocess.run(
                ["scancel", "--me"], env=self.environment, capture_output=True, timeout=30, check=False
            )  # ends pending jobs, too: none is started while the running ones are stopped
        for name in self.node_names:
            self.kill_node(name)
        for name, daemon in self._daemons.items():
            _end(daemon, signal.SIGTERM if name == "munged" else signal.SIGKILL)

    # Nodes

    def nodes(self) -> dict[str, str]:
        """Every node's state: idle, mixed, allocated, down, ..."""
        listing = subprocess.run(
            ["sinfo", "-h", "-N", "-p", "main", "-o", "%N %T"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        return dict(line.split() for line in listing.splitlines())

    def kill_node(self, name: str) -> None:
        """Kill all processes of a node at once, as a power failure does."""
        if name in self._daemons:
            _end(self._daemons.pop(name), signal.SIGKILL)
        deadline = time.monotonic() + 10
        while (processes := list(self._processes(name))) and time.monotonic() < deadline:
            for process in processes:
                process.kill()
            psutil.wait_procs(processes, timeout=0.2)  # some may have started more meanwhile

    def start_node(self, name: str) -> None:
        """Switch a killed node on again."""
        self._start(name, ["slurmd", "-D", "-N", name])

    def _processes(self, node: str) -> Iterable[psutil.Process]:
        """A node's slurmstepds and what they run: the former write its log, the latter carry its name."""
        log = f"{self.folder}/log/slurmd-{node}.log"
        marks = {f"SLURM_CONF={self.folder}/slurm.conf", f"SLURMD_NODENAME={node}"}
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                variables = {f"{key}={value}" for key, value in process.environ().items()}
                if marks <= variables or (process.name() == "slurmstepd" and _has_open(process, log)):
                    yield process
            except psutil.Error:
                continue

    # Jobs

    def run(self, *command: str | Path) -> str:
        """Standard output of a Slurm command."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def submit(self, script: Path, *options: str) -> int:
        """sbatch `options` `script`; the job's id."""
        return int(self.run("sbatch", "--parsable", *options, script).split(";")[0])

    def job(self, job: int | str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, StdOut, NodeList, ...; of an array's task: "ID_INDEX"."""
        line = self.run("scontrol", "show", "job", "-o", str(job)).splitlines()[0]
        return dict(re.findall(r"(?:^| )([\w/:]+)=(.*?)(?= [\w/:]+=|\s*$)", line))  # a path may have spaces

    def state(self, job: int | str) -> str:
        return self.job(job)["JobState"]

    def wait_for(self, job: int | str, states: str | Iterable[str] = FINAL, timeout: float = 30) -> str:
        """Poll until the job is in one of `states`."""
        wanted = {states} if isinstance(states, str) else set(states)
        what = " or ".join(sorted(wanted))
        return self.wait_until(job, lambda: (state := self.state(job)) in wanted and state, what, timeout)

    def wait_for_text(self, job: int | str, text: str, count: int = 1, timeout: float = 30) -> None:
        """Poll until the job's log has `text` `count` times."""
        self.wait_until(job, lambda: self.log(job).count(text) >= count, f"{count} x {text!r} in the log", timeout)

    def wait_until(self, job: int | str, ready: Callable[[], bool | str], what: str, timeout: float = 30) -> str:
        """Poll until `ready()`; fails with the job's log, at once when the job has ended for good."""
        deadline = time.monotonic() + timeout
        while True:
            over = self.state(job) in FINAL or time.monotonic() > deadline
            if answer := ready():
                return str(answer)
            assert not over, f"no {what} within {timeout} s: {self.describe(job)}"
            time.sleep(0.2)

    def log(self, job: int | str) -> str:
        """What the job has written so far."""
        file = Path(self.job(job)["StdOut"])
        return file.read_text(errors="replace") if file.exists() else ""

    def describe(self, job: int | str) -> str:
        """For a failure's message: the job's state, log, and what the controller wrote of it."""
        fields = self.job(job)
        names = ("JobState", "Reason", "Restarts", "ExitCode", "Dependency", "NodeList", "StdOut")
        facts = " ".join(f"{name}={fields.get(name)}" for name in names)
        controller = (self.folder / "log" / "slurmctld.log").read_text(errors="replace").splitlines()
        about = "\n".join([line for line in controller if f"={fields['JobId']}" in line][-20:])
        return f"job {job}: {facts}\n{self.log(job)}\n--- slurmctld\n{about}"

    def signal(self, job: int | str, name: str) -> None:
        """Send a signal to the batch script alone, as --signal=B:NAME@SECONDS does."""
        self.run("scancel", f"--signal={name}", "--batch", str(job))

    def cancel(self, job: int | str) -> None:
        self.run("scancel", str(job))


def build_plugin(source: Path, folder: Path) -> Path | None:
    """Compile a SPANK plugin; None where its compiler or header is missing (Debian: PLUGIN_PACKAGES)."""
    compiler = shutil.which("gcc")
    if compiler is None or not Path("/usr/include/slurm/spank.h").exists():
        return None
    target = folder / f"{source.stem}.so"
    subprocess.run([compiler, "-Wall", "-shared", "-fPIC", "-o", target, source], check=True, timeout=60)
    return target


def _free_ports(count: int) -> list[int]:
    """Ports above those that jobs meet at and below those that Linux gives away by itself."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(30001, 32700), 500):
        with socket.socket() as probe:
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError("no free ports between 30001 and 32700")


def _has_open(process: psutil.Process, file: str) -> bool:
    return any(opened.path == file for opened in process.open_files())


def _end(daemon: subprocess.Popen, signum: int) -> None:
    daemon.send_signal(signum)
    try:
        daemon.wait(timeout=10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
