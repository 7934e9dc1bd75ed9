#!/usr/bin/env python3
"""A stand-in for systemctl and systemd, for a test's private machine without systemd.

It runs the commands of the units in /etc/systemd/system, with the effects of WantedBy=, PartOf=
and Restart= on other units, as systemd.unit(5) and systemd.service(5) describe them. Limits,
namespaces and other users are left out: every process is root's.
"""
import contextlib
import fcntl
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

UNITS = pathlib.Path("/etc/systemd/system")
STATE = pathlib.Path("/run/stand-in")
STOP_SECONDS = 20
START_SECONDS = 20


class Unit:
    """A unit as it was when systemd last read it."""

    def __init__(self, name):
        self.name = name if "." in name else name + ".service"
        self.file = UNITS / self.name
        self.state = STATE / self.name
        self.settings = {}
        loaded = STATE / "loaded" / self.name
        if not loaded.exists() and self.file.exists():
            loaded.write_text(self.file.read_text())
        for line in loaded.read_text().splitlines() if loaded.exists() else []:
            key, is_setting, value = line.partition("=")
            if is_setting and not line.startswith("#"):
                self.settings.setdefault(key, []).append(value)

    def words(self, key):
        return " ".join(self.settings.get(key, [])).split()

    def setting(self, key, default=""):
        return self.settings.get(key, [default])[-1]

    def is_active(self):
        return self.state.exists()

    def main_process(self):
        return int(self.state.read_text() or 0) if self.is_active() else 0

    def parts(self):
        units = [Unit(path.name) for path in sorted(UNITS.glob("*.service"))]
        return [unit for unit in units if self.name in unit.words("PartOf")]

    def environment(self):
        environment = {"PATH": os.environ["PATH"], "STAND_IN_JOB": self.name}
        for kind, parent in [("Runtime", "/run"), ("State", "/var/lib")]:
            for folder in self.words(kind + "Directory"):
                path = pathlib.Path(parent) / folder
                path.mkdir(mode=0o755, parents=True, exist_ok=True)
                user = self.setting("User", "root")
                shutil.chown(path, user, user)
                environment[kind.upper() + "_DIRECTORY"] = str(path)
        return environment

    def run(self, key):
        """Runs the commands of a setting; returns False if one without the prefix `-` failed."""
        for line in self.settings.get(key, []):
            code = subprocess.call(command(line), env=self.environment())
            if code and not line.startswith("-"):
                return False
        return True

    def start(self):
        if self.is_active():
            return True
        is_oneshot = self.setting("Type") == "oneshot"
        start = (lambda: self.run("ExecStart")) if is_oneshot else self.start_main_process
        if not (self.run("ExecStartPre") and start()):
            self.run("ExecStopPost")
            return False
        if is_oneshot:
            self.state.write_text("")
        wanted = sorted((UNITS / (self.name + ".wants")).glob("*"))
        for path in wanted:  # They have After= this unit. Their failure does not matter.
            Unit(path.name).start()
        return True

    def start_main_process(self):
        """Starts the main process, and a process that restarts the unit when the main one ends."""
        environment = self.environment()
        ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ready.settimeout(START_SECONDS)
        if self.setting("Type") == "notify":
            address = STATE / "notify" / self.name
            address.unlink(missing_ok=True)
            ready.bind(str(address))
            environment["NOTIFY_SOCKET"] = str(address)
            address.chmod(0o777)
        if os.fork() == 0:
            os.setsid()
            lock.close()
            log = open(STATE / "log" / self.name, "ab")
            process = subprocess.Popen(
                command(self.setting("ExecStart")),
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )
            for output in (1, 2):
                os.dup2(log.fileno(), output)
            self.state.write_text(str(process.pid))
            process.wait()
            time.sleep(float(self.setting("RestartSec", "0.1").removesuffix("s")))
            if self.main_process() == process.pid and self.setting("Restart") == "always":
                os.environ.pop("STAND_IN_JOB", None)
                subprocess.call([__file__, "restart", self.name])
            os._exit(0)
        while not self.main_process():
            time.sleep(0.01)
        try:
            while "NOTIFY_SOCKET" in environment:
                if b"READY=1" in ready.recv(4096).split(b"\n"):
                    break
        except TimeoutError:
            return False
        return True

    def stop(self):
        if not self.is_active():
            return True
        for unit in self.parts():
            unit.stop()
        self.run("ExecStop")
        process = self.main_process()
        self.state.unlink()
        deadline = time.monotonic() + STOP_SECONDS
        with contextlib.suppress(ProcessLookupError):
            while process:
                late = time.monotonic() > deadline
                os.kill(process, signal.SIGKILL if late else signal.SIGTERM)
                time.sleep(0.01)
        self.run("ExecStopPost")
        for folder in self.words("RuntimeDirectory"):
            if self.setting("RuntimeDirectoryPreserve", "no") == "no":
                shutil.rmtree(pathlib.Path("/run") / folder, ignore_errors=True)
        return True

    def restart(self):
        parts = [unit for unit in self.parts() if unit.is_active()]
        self.stop()
        return self.start() and all(unit.start() for unit in parts)

    def enable(self):
        for other in self.words("WantedBy"):
            wants = UNITS / (other + ".wants")
            wants.mkdir(exist_ok=True)
            link = wants / self.name
            link.unlink(missing_ok=True)
            link.symlink_to(self.file)
        return True

    def disable(self):
        for link in UNITS.glob("*.wants/" + self.name):
            link.unlink()
            with contextlib.suppress(OSError):
                link.parent.rmdir()
        return True


def command(line):
    """Splits a command line, without the escapes of systemd.service(5)."""
    for escape in ("%%", "$$"):
        rest = line.replace(escape, "")
        if escape[0] in rest:
            sys.exit(f"not known to the stand-in for systemd: {escape[0]} in {line}")
        line = line.replace(escape, escape[0])
    return shlex.split(line.lstrip("-@:+!"))


def main(arguments):
    options = [word for word in arguments if word.startswith("-")]
    verb, *names = [word for word in arguments if word not in options]
    if verb == "daemon-reload":
        for path in (STATE / "loaded").iterdir():
            path.unlink()
        return 0
    if verb == "reset-failed":  # Units have no limit of starts here, and are not listed.
        return 0
    for unit in map(Unit, names):
        if not unit.settings:
            print(f"Unit {unit.name} not found.", file=sys.stderr)
            return 1
        if verb == "cat":
            print(unit.file.read_text())
            continue
        if verb == "show" and options == ["--property=MainPID", "--value"]:
            print(unit.main_process())
            continue
        if verb == "is-active" and not unit.is_active():
            return 3
        verbs = {
            "start": [Unit.start], "stop": [Unit.stop], "restart": [Unit.restart],
            "enable": [Unit.enable], "disable": [Unit.disable], "is-active": [],
        }
        steps = verbs[verb] + ([Unit.stop] if "--now" in options else [])
        if not all(step(unit) for step in steps):
            print(f"Job for {unit.name} failed.", file=sys.stderr)
            return 1
    return 0


for folder in ("loaded", "notify", "log"):
    (STATE / folder).mkdir(parents=True, exist_ok=True)
STATE.chmod(0o755)
# One job at a time, with the calls of systemctl by the commands that it runs.
lock = open(STATE / "lock", "w")
if "STAND_IN_JOB" not in os.environ:
    fcntl.flock(lock, fcntl.LOCK_EX)
sys.exit(main(sys.argv[1:]))
