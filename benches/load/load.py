"""The example server under load: bare against guarded, on each store. See scripts/load.

The machine's other work affects all of them alike: slices of a second each take turns, and the
printed figures are ratios of medians. wrk is a closed loop: it has as many requests at a time as it
has connections.
"""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
CONNECTIONS = 32
# For sessions, which wait for the provider: at most 850 a second are possible.
MANY_CONNECTIONS = 128
# The example's default.
PROVIDER_LATENCY = "150ms"
# As many as in requests.lua.
USERS = 1000
KINDS = ["bare", "first", "replay"]
STORES = ["memory", "sqlite", "redis", "postgres"]
# The example sweeps SQL stores every minute, so a shorter run would show no sweep.
SWEEP_EVERY = 60
PATIENCE = 30


class Missing(Exception):
    """A server that is not installed."""


class Process:
    """A server that belongs to this run, in a directory of its own."""

    def __init__(self, command, directory, **options):
        self.log = directory / "log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, **options)
        self.pid = self.process.pid

    def end(self, how=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def cpu_seconds(self):
        """The processor time that it has used, or None if the system does not report it."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_until(ready, server, what):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.process.poll() is None:
        if ready():
            return
        time.sleep(0.05)
    raise RuntimeError(f"{what} does not start:\n{server.log.read_text(errors='replace')}")


def accepts(port):
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0


class Sqlite:
    def __init__(self, directory):
        self.directory = directory

    def url(self, database):
        return f"sqlite:{self.directory / database}.db"

    def end(self):
        pass


class Memory(Sqlite):
    def url(self, database):
        return "memory"


class Redis:
    def __init__(self, directory):
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            raise Missing("Redis or Valkey")
        self.port = free_port()
        self.databases = {}
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": directory}
        command = [program]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        self.server = Process(command, directory, stdout=subprocess.DEVNULL)
        wait_until(lambda: accepts(self.port), self.server, "Redis")

    def url(self, database):
        number = self.databases.setdefault(database, len(self.databases))
        return f"redis://127.0.0.1:{self.port}/{number}"

    def end(self):
        self.server.end(signal.SIGKILL)


class Postgres:
    """With `fsync` off, because the disk of a test machine is not measured."""

    def __init__(self, directory):
        self.programs = self.find()
        self.directory = directory
        self.port = free_port()
        # PostgreSQL refuses to run as root.
        self.options = {}
        if os.geteuid() == 0:
            self.options = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            shutil.chown(directory, "nobody", "nogroup")
        data = directory / "data"
        self.run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
        settings = ["fsync=off", "full_page_writes=off", "max_connections=50", "shared_buffers=128MB"]
        command = [self.programs / "postgres", "-D", data, "-k", directory, "-h", "127.0.0.1", "-p", str(self.port)]
        for setting in settings:
            command += ["-c", setting]
        self.server = Process(command, directory, stdout=subprocess.DEVNULL, cwd="/", **self.options)
        pid_file = data / "postmaster.pid"
        wait_until(lambda: pid_file.exists() and "ready" in pid_file.read_text(), self.server, "PostgreSQL")

    @staticmethod
    def find():
        on_path = shutil.which("initdb")
        found = [Path(on_path).resolve().parent] if on_path else []
        versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
        found += sorted((path.parent for path in versions), key=lambda path: float(path.parent.name), reverse=True)
        if not found:
            raise Missing("PostgreSQL")
        return found[0]

    def run(self, program, *arguments):
        command = [self.programs / program, *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", **self.options)

    def url(self, database):
        at = ["-h", self.directory, "-p", str(self.port), "-U", "postgres"]
        self.run("createdb", *at, database)
        return f"postgres://postgres@127.0.0.1:{self.port}/{database}"

    def end(self):
        self.server.end(signal.SIGQUIT)


SERVERS = {"memory": Memory, "sqlite": Sqlite, "redis": Redis, "postgres": Postgres}


class Example:
    """The example server, release build."""

    def __init__(self, program, url, ttl, directory):
        command = [program, "--listen", "127.0.0.1:0", "--store", url, "--ttl", ttl]
        command += ["--provider-latency", PROVIDER_LATENCY]
        environment = {**os.environ, "RUST_LOG": "warn"}
        self.server = Process(command, directory, stdout=subprocess.PIPE, text=True, env=environment)
        line = self.server.process.stdout.readline()
        if not line.startswith("listening on "):
            raise RuntimeError(f"the example server does not start:\n{self.server.log.read_text()}")
        self.url = line.split()[-1]

    def load(self, kind, prefix, seconds=1, session=False):
        """One slice."""
        connections = MANY_CONNECTIONS if session else CONNECTIONS
        command = ["wrk", "-t", "1", "-c", str(connections), "-d", f"{seconds}s", "--timeout", "10s"]
        command += ["-s", HERE / "requests.lua", self.url, "--", kind, prefix]
        command += ["session"] if session else []
        before = self.server.cpu_seconds()
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        after = self.server.cpu_seconds()
        found = re.search(r"^result (.*)$", said, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"wrk did not report its results:\n{said}")
        requests, duration, errors, p50, p99, p999, longest = map(int, found[1].split())
        return {
            "per_second": requests / duration * 1e6,
            "requests": requests,
            "errors": errors,
            "cpu": None if before is None or requests == 0 else (after - before) / requests * 1e6,
            "p50": p50,
            "p99": p99,
            "p999": p999,
            "longest": longest,
        }

    def make_keys(self, prefix):
        """Makes the keys that are replayed, as requests.lua spells them."""
        client = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=PATIENCE)
        for user in range(USERS):
            headers = {
                "Authorization": "Bearer sk_test_acme",
                "Content-Type": "application/json",
                "Idempotency-Key": f"{prefix}-the-same-{user:06}",
            }
            client.request("PATCH", f"/v1/users/usr_{user:06}/status", '{"status":"approved"}', headers)
            response = client.getresponse()
            response.read()
            if response.status != 200:
                raise RuntimeError(f"a first request was answered with {response.status}")
        client.close()

    def metric(self, name):
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            found = re.search(rf"^{name} (\d+)", response.read().decode(), re.MULTILINE)
        return int(found[1]) if found else None


def in_turns(example, kinds, seconds, session=False):
    """Runs a slice of each kind, in turns. Returns the slices of each kind."""
    slices = {kind: [] for kind in kinds}
    for number in range(seconds):
        for kind in kinds:
            prefix = "keys" if kind == "replay" else f"keys-{number}{'-session' if session else ''}"
            slices[kind].append(example.load(kind, prefix, session=session))
    return slices


def measure(name, program, seconds, directory):
    servers = SERVERS[name](directory)
    examples = []

    def example(database, ttl):
        examples.append(Example(program, servers.url(database), ttl, directory))
        return examples[-1]

    try:
        kept = example("kept", "24h")
        kept.make_keys("keys")
        for kind in KINDS:
            # Warms up each connection, statement and page.
            kept.load(kind, "keys" if kind == "replay" else "warm", 2)
        result = {"kept": in_turns(kept, KINDS, seconds)}
        kept.load("first", "warm-session", 2, session=True)
        result["sessions"] = in_turns(kept, ["bare", "first"], seconds, session=True)
        examples.pop().server.end()

        # Records expire while others are made, and are removed under load.
        expiring = example("expiring", "2s")
        expiring.load("first", "warm", 2)
        sweeps = SWEEP_EVERY if name in ("sqlite", "postgres") else 0
        turns = max(seconds, (sweeps + 10 + 1) // 2)
        result["expiring"] = in_turns(expiring, ["bare", "first"], turns)
        result["entries"] = expiring.metric("idempotency_store_entries")
        result["evicted"] = expiring.metric("idempotency_store_evicted_total")
        return result
    finally:
        for running in examples:
            running.server.end()
        servers.end()
        # The standard error of all of this store's servers. The example only logs warnings.
        log = (directory / "log").read_text(errors="replace") if name != "redis" else ""
        warnings = [line for line in log.splitlines() if " WARN " in line or " ERROR " in line]
        if warnings:
            print(f"{name}: {len(warnings)} warnings, the last: {warnings[-1][:160]}", file=sys.stderr)


def median(slices, what):
    values = [one[what] for one in slices if one[what] is not None]
    return statistics.median(values) if values else None


def ratio(slices, base, what):
    """The median of the ratios of neighbouring slices, which had the same noise."""
    pairs = [(one[what], other[what]) for one, other in zip(slices, base)]
    pairs = [one / other for one, other in pairs if one is not None and other]
    return statistics.median(pairs) if pairs else None


def said(value, digits):
    return "" if value is None else f"{value:.{digits}f}"


def table(results):
    yield "| store | requests | per second | of bare | server's CPU, of bare | p50, ms | p99, ms | p99.9, ms |"
    yield "|---|---|---|---|---|---|---|---|"
    for store, result in results.items():
        lines = [(kind, kind, result["kept"]) for kind in KINDS]
        lines += [("bare", "session, bare", result["sessions"]), ("first", "session, first", result["sessions"])]
        lines += [("bare", "bare, beside expiry", result["expiring"])]
        lines += [("first", "first, TTL 2 s", result["expiring"])]
        for kind, name, slices in lines:
            mine, bare = slices[kind], slices["bare"]
            cells = [store, name, said(median(mine, "per_second"), 0)]
            cells += [said(ratio(mine, bare, "per_second"), 2), said(ratio(mine, bare, "cpu"), 2)]
            cells += [said(median(mine, what) / 1000, 2) for what in ("p50", "p99", "p999")]
            yield f"| {' | '.join(cells)} |"


def expiry_table(results):
    yield "| store | first requests, TTL 2 s | in the store at the end | evicted | worst p99.9 of a slice, ms | longest, ms | longest of bare, ms |"
    yield "|---|---|---|---|---|---|---|"
    for store, result in results.items():
        slices = result["expiring"]["first"]
        bare = result["expiring"]["bare"]
        cells = [store, str(sum(one["requests"] for one in slices))]
        cells += ["" if result[what] is None else str(result[what]) for what in ("entries", "evicted")]
        cells += [said(max(one["p999"] for one in slices) / 1000, 1)]
        cells += [said(max(one["longest"] for one in which) / 1000, 1) for which in (slices, bare)]
        yield f"| {' | '.join(cells)} |"


def main():
    program, seconds, stores, output = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(), sys.argv[4]
    # Makes sure that everything that was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results = {}
    for store in stores or STORES:
        with tempfile.TemporaryDirectory(prefix="idempotency-load-") as directory:
            # For the user that PostgreSQL runs as.
            os.chmod(directory, 0o755)
            try:
                results[store] = measure(store, program, seconds, Path(directory))
            except Missing as missing:
                print(f"{store}: skipped, {missing} is not installed", file=sys.stderr)
    failures = []
    for store, result in results.items():
        for phase in ("kept", "sessions", "expiring"):
            for kind, slices in result[phase].items():
                failed = sum(one["errors"] for one in slices)
                if failed:
                    failures.append(f"{store}, {kind}, {phase}: {failed} requests failed")
    print("\n".join(table(results)))
    print()
    print("\n".join(expiry_table(results)))
    Path(output).write_text(json.dumps(results))
    if failures:
        print("\nDo not use the figures above:", *failures, sep="\n", file=sys.stderr)
        sys.exit(1)


main()
