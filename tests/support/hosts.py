"""Several "hosts" on one machine, each with its own network, processes, files, shared memory and sshd.

A host is a network, PID, mount, UTS and IPC namespace with an overlay of this machine's root: it sees what is
installed here and this repository, and what it writes is its own and gone at the end. The hosts hang on one bridge, on
which this machine is ``.1``; no host reaches anything else. Needs root, iproute2, util-linux, sshd, overlayfs.

    with Hosts(("head", "silo-a")) as hosts:
        hosts.write("silo-a", "/etc/siloray/silo.yaml", "name: a")
        hosts.run("head", "ping -c 1 silo-a")
        agent = hosts.start("silo-a", "exec python -m agent --server head:9000")
        with hosts.cut("silo-a"):
            ...

A test that has one of its fixtures (``room``) names this module in ``pytest_plugins``, so that all test modules
share one room.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
TOOLS = {"ip": "iproute2", "unshare": "util-linux", "nsenter": "util-linux", "setpriv": "util-linux"}
SSHD = "/usr/sbin/sshd"
LABS = 20
"""So many sets of hosts may be on one machine at a time."""

_BOOT = r"""
root=$1 name=$2; shift 2
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/,upperdir=$root/up,workdir=$root/work" "$root/root"
mount --rbind /dev "$root/root/dev"; mount --make-rslave "$root/root/dev"
mknod -m 666 "$root/null" c 1 3; mount --bind "$root/null" "$root/root/dev/null"  # for every account, whatever is here
mount -t tmpfs -o size=8g shm "$root/root/dev/shm"
mount --rbind /sys "$root/root/sys"; mount -t proc proc "$root/root/proc"
mount -t tmpfs -o size=1g run "$root/root/run"; mkdir -p "$root/root/run/sshd"
for place in "$@"; do
  case $place in
    +*) mount --rbind "${place#+}" "$root/root${place#+}" ;;
    -*) mount -t tmpfs -o size=1m,ro hidden "$root/root${place#-}" ;;
  esac
done
hostname "$name"
# bash is the first process of this host and reaps what daemons leave behind
exec chroot "$root/root" bash -c 'echo ready > /run/ready; while :; do sleep 1; done'
"""

_SSHD = """Port 22
ListenAddress {address}
HostKey /etc/siloray-lab/hostkey
AuthorizedKeysFile /etc/siloray-lab/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
PrintMotd no
"""


def cannot() -> str | None:
    """Why no hosts can be made here, or None."""
    if sys.platform != "linux":
        return "namespaces are a thing of Linux"
    if os.geteuid() != 0:
        return "not root: hosts are made of namespaces and an overlay"
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            return f"no '{tool}' here (package {package})"
    if not os.access(SSHD, os.X_OK) or shutil.which("ssh") is None:
        return f"no {SSHD} here (package openssh-server)"
    return _no_namespaces()


def _no_namespaces() -> str | None:
    """Tries one: containers often forbid them even to root."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        script = (
            'mount --make-rprivate / && mount -t tmpfs lab "$0" && mkdir "$0/up" "$0/work" "$0/root" && '
            'mount -t overlay overlay -o "lowerdir=/,upperdir=$0/up,workdir=$0/work" "$0/root"'
        )
        command = ["unshare", "--fork", "--pid", "--net", "--mount", "--uts", "--ipc", "bash", "-c", script]
        tried = subprocess.run([*command, folder], capture_output=True, text=True)
    name = f"sr-try-{os.getpid()}"
    if tried.returncode == 0:
        tried = _ip("netns", "add", name, check=False)
        _ip("netns", "del", name, check=False)
    if tried.returncode == 0:
        return None
    lines = tried.stderr.strip().splitlines() or ["?"]
    return f"this machine allows no namespaces or no overlay ({lines[-1]})"


def _ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


class Hosts(AbstractContextManager["Hosts"]):
    """Hosts by name; the first has address ``.10``, the next ``.11``, and so on."""

    def __init__(
        self, names: Sequence[str] = ("head", "silo-a", "silo-b"), hide: Sequence[Path] = ()
    ) -> None:
        """``hide``: folders of this machine that no host is to see."""
        self.names = tuple(names)
        self._hide = [str(path) for path in hide]
        self._init: dict[str, subprocess.Popen[bytes]] = {}
        self._started: list[subprocess.Popen[bytes]] = []
        self._number = -1

    def __enter__(self) -> "Hosts":
        self._number = _free_number()
        self.folder = Path(tempfile.mkdtemp(prefix="srlab", dir="/var/tmp"))
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def key(self) -> Path:
        """The operator's ssh key, which every host lets in as root."""
        return self.folder / "id_ed25519"

    @property
    def operator(self) -> str:
        """The address of this machine, as the hosts see it."""
        return f"10.77.{self._number}.1"

    def address(self, host: str) -> str:
        return f"10.77.{self._number}.{10 + self.names.index(host)}"

    def run(
        self,
        host: str,
        command: str,
        *,
        check: bool = True,
        limit_s: float = 120,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
    ) -> subprocess.CompletedProcess[str]:
        """Run a line of bash on a host, as root; its output is text. Raises `AssertionError` if it fails."""
        done = subprocess.run(
            self._enter(host, command, cwd),
            env={**_environment(), **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
        )
        if check:
            told = f"--- standard output\n{done.stdout}\n--- standard error\n{done.stderr}"
            assert done.returncode == 0, f"{host}: {command}: exit {done.returncode}\n{told}"
        return done

    def start(
        self, host: str, command: str, *, env: Mapping[str, str] | None = None, cwd: str = "/", log: str = ""
    ) -> subprocess.Popen[bytes]:
        """Start a line of bash on a host; it ends with the host at the latest. ``log``: a file of this machine."""
        with open(log or os.devnull, "ab") as out:
            process = subprocess.Popen(
                self._enter(host, command, cwd),
                env={**_environment(), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        self._started.append(process)
        return process

    def path(self, host: str, path: str) -> Path:
        """A host's file as this machine sees it, to read."""
        return Path(f"/proc/{self._pid(host)}/root{path}")

    def write(self, host: str, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """Write a file on a host, and the folders it lies in."""
        there = self.path(host, path)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(content.encode() if isinstance(content, str) else content)
        there.chmod(mode)

    def link_down(self, host: str) -> None:
        """Pull the host's cable: packets are lost, nobody is told."""
        _ip("link", "set", self._cable(host), "nomaster")

    def link_up(self, host: str) -> None:
        """Plug the cable in again."""
        _ip("link", "set", self._cable(host), "master", self._bridge)

    @contextmanager
    def cut(self, host: str, seconds: float = 0.0) -> Iterator[None]:
        """The host's cable is out while the body runs, and so many seconds longer."""
        self.link_down(host)
        try:
            yield
            time.sleep(seconds)
        finally:
            self.link_up(host)

    def processes(self, host: str) -> list[str]:
        """Names of the host's processes, those of this class and of sshd aside."""
        names = []
        for comm in self.path(host, "/proc").glob("[0-9]*/comm"):
            with suppress(OSError):
                names.append(comm.read_text().strip())
        return sorted(name for name in names if name not in ("bash", "sleep", "sshd", "sshd-session"))

    def close(self) -> None:
        """Remove all of it, with every process on the hosts; again does nothing."""
        if self._number < 0:
            return
        for process in self._init.values():
            process.kill()  # takes the whole PID namespace along
            process.wait()
        for process in self._started:
            process.kill()
            process.wait()
        for host in self.names:
            _ip("netns", "del", self._netns(host), check=False)
            _ip("link", "del", self._cable(host), check=False)
        _ip("link", "del", self._bridge, check=False)
        subprocess.run(["umount", "--lazy", str(self.folder)], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._init.clear()
        self._started.clear()
        self._number = -1

    def _make(self) -> None:
        _bash(
            f"mount -t tmpfs -o size=4g,mode=755 srlab {self.folder}"
        )  # an upper folder cannot lie on an overlay
        _keygen(self.key)
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self.operator}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for host in self.names:
            self._make_network(host)
            self._make_files(host)
            self._boot(host)
        for host in self.names:
            wait_for(lambda host=host: self._answers(host), 20, f"{host} does not start: {self._log(host)}")

    def _make_network(self, host: str) -> None:
        netns = self._netns(host)
        _ip("netns", "add", netns)
        _ip("link", "add", self._cable(host), "type", "veth", "peer", "name", "eth0", "netns", netns)
        _ip("link", "set", self._cable(host), "master", self._bridge, "up")
        _ip("-n", netns, "link", "set", "lo", "up")
        _ip("-n", netns, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
        _ip("-n", netns, "link", "set", "eth0", "up")

    def _make_files(self, host: str) -> None:
        folder = self.folder / host
        for name in ("up/etc/siloray-lab", "work", "root"):
            (folder / name).mkdir(parents=True)
        etc = folder / "up/etc"
        # A resolver that does not answer would cost each start of Ray half a minute.
        (etc / "resolv.conf").write_text("")
        names = "".join(f"{self.address(name)} {name}\n" for name in self.names)
        (etc / "hosts").write_text("127.0.0.1 localhost\n" + names)
        _keygen(etc / "siloray-lab/hostkey")
        shutil.copy(self.key.with_suffix(".pub"), etc / "siloray-lab/authorized_keys")
        (etc / "siloray-lab/sshd_config").write_text(_SSHD.format(address=self.address(host)))

    def _boot(self, host: str) -> None:
        own = ["unshare", "--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc"]
        places = [*(f"+{path}" for path in _own_mounts()), *(f"-{path}" for path in self._hide)]
        with open(self.folder / f"{host}.log", "wb") as log:
            self._init[host] = subprocess.Popen(
                # a test run that is killed takes the hosts along
                [
                    *("setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self._netns(host), *own),
                    *("bash", "-euc", _BOOT, "_", str(self.folder / host), host, *places),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _answers(self, host: str) -> bool:
        if self._init[host].poll() is not None:
            raise AssertionError(f"{host} did not start: {self._log(host)}")
        with suppress(OSError, IndexError):
            if self.path(host, "/run/ready").exists():
                self.run(host, f"{SSHD} -f /etc/siloray-lab/sshd_config")
                return True
        return False

    def _log(self, host: str) -> str:
        return (self.folder / f"{host}.log").read_text()

    def _enter(self, host: str, command: str, cwd: str) -> list[str]:
        pid = str(self._pid(host))
        inside = f"cd {shlex.quote(cwd)} && {command}"
        return ["nsenter", "--target", pid, *["-m", "-u", "-i", "-n", "-p", "-r", "-w"], "bash", "-c", inside]

    def _pid(self, host: str) -> int:
        """The host's first process: the one child of ``unshare``."""
        outer = self._init[host].pid
        return int(Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0])

    @property
    def _bridge(self) -> str:
        return f"srbr{self._number}"

    def _cable(self, host: str) -> str:
        return f"srv{self._number}-{self.names.index(host)}"

    def _netns(self, host: str) -> str:
        return f"sr{self._number}-{host}"


def _free_number() -> int:
    """Of the labs that may be on this machine, the first that is not; cables go a second after their namespace."""
    for number in range(LABS):
        names = os.listdir("/sys/class/net")
        if not any(name == f"srbr{number}" or name.startswith(f"srv{number}-") for name in names):
            return number
    raise AssertionError(f"{LABS} sets of hosts are on this machine; remove those that nobody needs")


def _own_mounts() -> list[str]:
    """What hosts need and an overlay of the root does not show, because it is a file system of its own."""
    root = os.stat("/").st_dev
    needed = (REPOSITORY, Path(sys.prefix), Path(sys.base_prefix))
    return [str(path) for path in needed if os.stat(path).st_dev != root]


def _environment() -> dict[str, str]:
    """A plain one, as at a login: nothing of this process goes along."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
    }


def _keygen(path: Path) -> None:
    _bash(f"ssh-keygen -q -t ed25519 -N '' -f {path}")


def _bash(line: str) -> None:
    subprocess.run(["bash", "-c", line], check=True, capture_output=True)


def wait_for(condition: Callable[[], Any], limit_s: float, otherwise: str | Callable[[], str]) -> Any:
    """What the condition gives, as soon as that is true; `AssertionError` after so many seconds."""
    end = time.monotonic() + limit_s
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(otherwise if isinstance(otherwise, str) else otherwise())
        time.sleep(0.2)
    return found
