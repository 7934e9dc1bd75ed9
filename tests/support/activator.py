#!/usr/bin/env python3
"""Holds sockets and starts a program with them, as systemd does for a socket unit.

Usage: activator.py ADDRESS:PORT UDP_SOCKETS NAMES COMMAND...

It reads commands from standard input and confirms each with the process ID of the program, or 0:
start, terminate (SIGTERM), kill (SIGKILL); the last two wait for the end. At the end of the input
it kills the program. systemd-socket-activate(1) cannot mix UDP and TCP.
"""
import os
import signal
import socket
import sys

FIRST_DESCRIPTOR = 3
RECEIVE_BUFFER_BYTES = 16 * 1024 * 1024


def hold(address, udp_sockets):
    """Opens UDP sockets and a TCP listener, all on one address."""
    host, _, port = address.rpartition(":")
    address = (host, int(port))
    held = []
    for _ in range(udp_sockets):
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # SO_RCVBUFFORCE, which needs root; systemd sets ReceiveBuffer= the same way.
        for option in 33, socket.SO_RCVBUF:
            try:
                udp.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BUFFER_BYTES)
                break
            except PermissionError:
                pass
        udp.bind(address)
        held.append(udp)
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    tcp.bind(address)
    tcp.listen(4096)
    held.append(tcp)
    return held


def start(held, names, command):
    """Starts the program with duplicates of the sockets."""
    process = os.fork()
    if process:
        return process
    # Out of the way of the descriptors that the program gets.
    moved = [os.dup2(one.fileno(), 100 + at) for at, one in enumerate(held)]
    for at, one in enumerate(moved):
        os.dup2(one, FIRST_DESCRIPTOR + at)
    os.closerange(FIRST_DESCRIPTOR + len(held), 1000)
    environment = dict(
        os.environ,
        LISTEN_FDS=str(len(held)),
        LISTEN_PID=str(os.getpid()),
        LISTEN_FDNAMES=":".join([names] * len(held)),
    )
    os.execvpe(command[0], command, environment)


def main():
    address, udp_sockets, names, *command = sys.argv[1:]
    held, process = hold(address, int(udp_sockets)), 0
    for line in sys.stdin:
        if line.strip() == "start":
            process = start(held, names, command)
        else:
            os.kill(process, signal.SIGTERM if line.strip() == "terminate" else signal.SIGKILL)
            os.waitpid(process, 0)
            process = 0
        print(process, flush=True)
    if process:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


main()
