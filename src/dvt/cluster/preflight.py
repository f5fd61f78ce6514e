"""What is checked before a job starts, and the fingerprint of what runs. Imports no MindSpore: devices are counted in a
process of its own, so that the launcher never holds one."""

import contextlib
import errno
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import dvt
from dvt.cluster.placement import DEFAULT_PORT, PACKAGE, Placement, python_environment
from dvt.config.files import config_to_dict, flattened
from dvt.config.sections import RunConfig
from dvt.errors import ConfigError, DeviceError, listing

SOURCE_SUFFIXES = (".py", ".cc")
LOCAL_KEYS = ("data.path", "data.workers", "output", "train.init_checkpoint")  # may differ between machines
FINGERPRINTS = 2**24  # a float32 holds every whole number below this exactly; CPU collectives carry no integers
COUNT_SECONDS = 300


def check(placement: Placement, config: RunConfig, device_counts: dict[str, int], path: str) -> None:
    """Raises ConfigError with everything that would stop this machine's share of the job. `device_counts` is what
    `count_devices` found, `path` the PATH of msrun, and the device target is not "auto"."""
    target, data, numpy = config.device_target, config.data.path, versions()["numpy"]
    problems = [*_devices(placement, target, device_counts), *_address(placement), *_rank_table(placement, target)]
    if shutil.which("msrun", path=path) is None:
        problems.append(f"msrun is neither beside {sys.executable} nor in PATH; it comes with MindSpore 2.3 and later")
    if numpy.startswith("2"):
        problems.append(f"NumPy is {numpy}; MindSpore's data sets need NumPy 1: pip install 'numpy<2'")
    if data is None and config.data.dataset == "image_folder":
        problems.append("data.path is needed for data.dataset image_folder: the folder with train/ and val/")
    elif data is not None and not Path(data).is_dir():
        problems.append(f"data.path {data} is not a folder on this machine; every machine needs the data")
    if problems:
        raise ConfigError("\n       ".join(problems))


def count_devices() -> dict[str, int]:
    """Devices of this machine by kind, best kind first (`dvt.device.available`). Raises DeviceError."""
    command = [sys.executable, "-c", "import json; from dvt import device; print(json.dumps(device.available()))"]
    how = {"capture_output": True, "text": True, "timeout": COUNT_SECONDS, "env": python_environment()}
    try:
        done = subprocess.run(command, **how)
    except subprocess.TimeoutExpired:
        what = f"MindSpore did not list the devices of this machine within {COUNT_SECONDS} s"
        raise DeviceError(f"{what}; the driver may hang: see `npu-smi info` or `nvidia-smi`") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DeviceError(f"MindSpore does not start with {sys.executable}: {last}")
    return json.loads(lines[-1])


def free_port(preferred: int = DEFAULT_PORT) -> int:
    """`preferred` if it is free on this machine, else another free port."""
    if not _bind_error("", preferred):
        return preferred
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def versions() -> dict[str, str]:
    """Versions of what decides about results; "unknown" for what was installed without naming itself."""
    found = {"dvt": dvt.__version__, "python": platform.python_version(), "mindspore": "unknown", "numpy": "unknown"}
    for name in ("mindspore", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def fingerprint(config: RunConfig) -> int:
    """A number below 2**24 that stands for the source files of this package, the configuration and the versions, so
    that ranks that may not train together have different ones (but for one case in 16 million)."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in SOURCE_SUFFIXES:
            digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    keys = {key: value for key, value in flattened(config_to_dict(config)).items() if key not in LOCAL_KEYS}
    digest.update(json.dumps([keys, versions()], sort_keys=True).encode())
    return int.from_bytes(digest.digest()[:8], "big") % FINGERPRINTS


def _devices(placement: Placement, target: str, counts: dict[str, int]) -> Iterator[str]:
    if target not in counts:
        yield f"DEVICE_TARGET is {target}, but MindSpore finds no such device here, only: {', '.join(counts) or 'none'}"
    elif target != "CPU" and placement.device_num > counts[target]:
        yield (
            f"DEVICE_NUM is {placement.device_num}, but this machine has {counts[target]} {target} device(s); "
            "DEVICE_NUM counts the devices of one machine, NNODES the machines"
        )


def _address(placement: Placement) -> Iterator[str]:
    address, port = placement.master_addr, placement.master_port
    try:
        ip = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError:
        yield f"MASTER_ADDR {address} cannot be resolved; give an IP address or a name that this machine knows"
        return
    if not placement.is_master:
        if not _bind_error(ip, 0):
            given = f"MASTER_ADDR {address} is an address of this machine, but NODE_RANK is {placement.node_rank}"
            yield f"{given}; give the address of the machine with NODE_RANK=0"
        return
    error = _bind_error(ip, port)
    if error == errno.EADDRINUSE:
        yield f"MASTER_PORT {port} is in use on this machine, perhaps by a run that has not ended; choose another"
    elif error == errno.EADDRNOTAVAIL:
        yield f"MASTER_ADDR {address} is no address of this machine; with NODE_RANK=0 the scheduler must run here"
    elif error:
        yield f"port {port} of {address} cannot be opened: {os.strerror(error)}"


def _bind_error(ip: str, port: int) -> int:
    """The error number of listening there; 0 if that works."""
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port of connections being closed is free
        try:
            probe.bind((ip, port))
            probe.listen()
        except OSError as error:
            return error.errno or errno.EIO
    return 0


def _rank_table(placement: Placement, target: str) -> Iterator[str]:
    table = placement.rank_table_file
    if table is None:
        return
    if target != "Ascend":
        yield f"RANK_TABLE_FILE is for Ascend only, and DEVICE_TARGET is {target}; unset it"
    try:
        servers = json.loads(table.read_text())["server_list"]
        ranks = sorted(int(device["rank_id"]) for server in servers for device in server["device"])
    except OSError as error:
        yield f"RANK_TABLE_FILE {table} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError) as error:
        yield f"RANK_TABLE_FILE {table} is no rank table ({error!r}): server_list, device and rank_id are needed"
    else:
        if ranks != list(range(placement.world_size)):
            yield (
                f"RANK_TABLE_FILE {table} names {len(ranks)} rank(s), {listing(map(str, ranks), shown=16)}; "
                f"{placement.nnodes} machine(s) with {placement.device_num} device(s) need the ranks 0 to "
                f"{placement.world_size - 1}, each once"
            )
